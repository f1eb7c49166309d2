"""The numbers in the outputs and the metrics of MONAI's engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from candy_monai.experiment.history import why_no_number

_MOST_COLUMNS = 128


def loss_of(output: Any) -> Any:
    """Return the loss in the output of a trainer's iteration, decollated or not; None if there is none."""
    if isinstance(output, list | tuple) and output and isinstance(output[0], Mapping):
        output = output[0]
    if isinstance(output, Mapping):
        return output.get("loss")
    return output if why_no_number(output) is None else None


def image_shape_of(output: Any) -> tuple[int, ...] | None:
    """Return the shape ``(C, *spatial)`` of an image in an iteration's output; None if there is none."""
    decollated = isinstance(output, list | tuple)
    first = output[0] if decollated and output else output
    image = first.get("image") if isinstance(first, Mapping) else None
    if not isinstance(image, Tensor):
        return None
    return tuple(image.shape if decollated else image.shape[1:])


def numbers_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield a metric as columns of ``metrics.csv``: one for each of its values, such as those of classes."""
    if why_no_number(value) is None:
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from numbers_in(f"{name} {key}", part)
    else:
        parts = value.flatten().tolist() if hasattr(value, "flatten") else value
        if isinstance(parts, list | tuple) and 1 < len(parts) <= _MOST_COLUMNS:
            for number, part in enumerate(parts, start=1):
                if why_no_number(part) is None:
                    yield f"{name} {number}", part
