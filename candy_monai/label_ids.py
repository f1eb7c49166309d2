"""The valid contents of a map of label ids: whole numbers from 0, each the number of a class.

Datasets, trainers, losses, metrics and the evaluation all use this module, so that they accept the same label maps.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from candy_monai.errors import BadInputError

AnyTensor = Tensor | npt.NDArray[Any]

_MOST_SHOWN = 4
_MOST_BINS = 1 << 20
_WHITE = 255
_ROUNDING = 1e-3


def tensor_of(values: AnyTensor, *, what: str) -> Tensor:
    """Return a tensor or a NumPy array as a plain tensor, without MONAI's metadata.

    Raises:
        BadInputError: If it is neither; ``what`` is its name in the message.
    """
    if isinstance(values, Tensor):
        return values.as_subclass(Tensor)
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufc":
        # A copy, since PyTorch takes no array in another byte order, with negative strides, or that is read-only.
        return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))
    found = f"an array of {values.dtype}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
    raise BadInputError(f"the {what} is {found}, expected a tensor or a NumPy array of numbers")


def holds_whole_numbers(tensor: Tensor) -> bool:
    """Return whether all values of a tensor of any type and shape are whole numbers, as class ids are."""
    plain = tensor.as_subclass(Tensor)
    if plain.is_complex():
        return False
    return not plain.is_floating_point() or torch.equal(plain, plain.round())


def widened(labels: Tensor) -> Tensor:
    """Return integers of any type as int64, in which -1 and 255 differ; floating-point values unchanged."""
    plain = labels.as_subclass(Tensor)
    return plain if plain.is_floating_point() or plain.is_complex() else plain.long()


def holding(labels: Tensor, label_id: int) -> Tensor:
    """Return labels in a type that can hold one more id: their own if possible, else int64."""
    if labels.is_floating_point() or labels.is_complex():
        return labels
    held = (0, 1) if labels.dtype == torch.bool else (torch.iinfo(labels.dtype).min, torch.iinfo(labels.dtype).max)
    return labels if held[0] <= label_id <= held[1] else labels.long()


def highest_id(labels: Tensor, *, what: str, ignore_index: int | None = None) -> int:
    """Return the highest label id; on a GPU this synchronises with the device.

    Args:
        labels: Of any shape and type; floating-point values must be whole numbers.
        what: Their name in the message: ``"case_3: the label"``.
        ignore_index: The id that is not a class; it may be negative and is not counted.

    Returns:
        The id; 0 if there is none.

    Raises:
        BadInputError: If a value is not an id: NaN, infinite, a fraction, negative, complex. The message contains the
            values and what to do.
    """
    plain = widened(labels.detach())
    if plain.is_complex():
        raise BadInputError(f"{what} holds complex numbers, expected label ids, which are whole numbers from 0")
    if not plain.numel():
        return 0
    low, high = torch.stack(torch.aminmax(plain)).tolist()  # NaN if there is one
    if plain.is_floating_point() and not (low == low and torch.equal(plain, plain.round()) and high - low < torch.inf):
        _refuse_fractions(plain, what)
    if ignore_index is not None and (low < 0 or high == ignore_index):
        plain = plain.masked_fill(plain == ignore_index, 0)
        low, high = torch.stack(torch.aminmax(plain)).tolist()
    if low < 0:
        raise BadInputError(
            f"{what} holds {_shown(plain[plain < 0])}, expected label ids, which are whole numbers from 0: map these "
            "voxels to 0, the background, or to a separate id and pass it as ignore_index to exclude them"
        )
    return int(high)


def ids_in(labels: Tensor) -> list[int]:
    """Return the distinct ids of a label map of whole numbers, ascending; on a GPU this synchronises."""
    flat = widened(labels.detach()).long().flatten()
    if not flat.numel():
        return []
    low, high = torch.stack(torch.aminmax(flat)).tolist()
    if low < 0 or high > _MOST_BINS:
        found: list[int] = torch.unique(flat).tolist()
        return found
    counted: list[int] = torch.bincount(flat).nonzero().flatten().tolist()  # many times faster than sorting
    return counted


def _refuse_fractions(labels: Tensor, what: str) -> NoReturn:
    expected = "expected label ids, which are whole numbers from 0"
    if not bool(labels.isfinite().all()):
        found = [name for name, there in (("NaN", labels.isnan()), ("infinity", labels.isinf())) if bool(there.any())]
        count = int((~labels.isfinite()).sum())
        raise BadInputError(
            f"{what} holds {' and '.join(found)} in {count} of {labels.numel()} voxels, {expected}: set these voxels "
            "to 0, the background, or to ignore_index to exclude them"
        )
    if _is_nearly_whole(labels):
        advice = "these are whole numbers but for rounding errors: round them, by labels.round()"
    elif _is_nearly_whole(labels.double() * _WHITE):
        advice = "these are ids divided by 255, as by ToTensor: multiply by 255 and round, or convert with as_tensor"
    else:
        advice = (
            "resize labels with nearest-neighbour interpolation (mode='nearest') and undo any scaling of their values; "
            "convert probabilities to the most probable class"
        )
    raise BadInputError(
        f"{what} holds fractions such as {_shown(labels[labels != labels.round()])}, {expected}: {advice}"
    )


def _is_nearly_whole(values: Tensor) -> bool:
    return float((values - values.round()).abs().max()) < _ROUNDING


def _shown(values: Tensor) -> str:
    """Return some of the distinct values as text."""
    found = torch.unique(values).tolist()
    more = f" and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    return ", ".join(_as_text(value) for value in found[:_MOST_SHOWN]) + more


def _as_text(value: float) -> str:
    if value == round(value):
        return f"{value:.0f}"
    short = f"{value:.4g}"
    return f"{value:.8g}" if float(short) == round(value) else short
