"""The target ``torchscript``: scripted, or traced if the network cannot be scripted."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from candy_monai.errors import BadInputError, RunFailedError
from candy_monai.export.networks import ExportedNetwork
from candy_monai.export.parity import Comparison, check, compare
from candy_monai.export.programs import first_line, quiet, write_apart
from candy_monai.export.usage import write_usage

_UNSUPPORTED = (3, 14)


def write_torchscript(network: ExportedNetwork, file: Path, *, on_progress: Callable[[str], None]) -> None:
    """Write a network as TorchScript with a JSON file, load it again and compare it on real cases."""
    if sys.version_info >= _UNSUPPORTED:
        on_progress(
            f"Warning: PyTorch does not support TorchScript on Python {sys.version_info[0]}.{sys.version_info[1]}; "
            "prefer onnx or pt2, or export with Python 3.13 or earlier"
        )
    example = torch.zeros(1, network.predictor.num_channels, *network.sizes[0])
    with quiet(), torch.no_grad():
        try:
            made, how = torch.jit.script(network.network), "scripted"
        except Exception as reason:  # TorchScript supports only a part of Python
            on_progress(f"The network cannot be scripted, and is traced ({first_line(reason)})")
            try:
                made = torch.jit.trace(network.network, example, check_trace=False)  # type: ignore[no-untyped-call]
                how = "traced"
            except Exception as error:
                raise BadInputError(
                    f"{network.predictor.folder}: the network {type(network.network).__name__} can neither be scripted "
                    f"({first_line(reason)}) nor traced ({first_line(error)}): choose another target"
                ) from error
        write_apart(file, lambda buffer: torch.jit.save(made, buffer))
        module = torch.jit.load(file)  # type: ignore[no-untyped-call]

    def run(images: Tensor) -> Tensor:
        with quiet(), torch.no_grad():
            scores: Tensor = module(images)
        return scores

    on_progress("Comparing it with the experiment on real cases")
    comparisons, is_dynamic = _comparisons(network, run)
    check(comparisons, name="torchscript", on_progress=on_progress)
    write_usage(network, file, target="torchscript", is_dynamic=is_dynamic, comparisons=comparisons, made_by=how)


def _comparisons(network: ExportedNetwork, run: Callable[[Tensor], Tensor]) -> tuple[list[Comparison], list[bool]]:
    """Compare at two sizes, or at one if a trace is valid only for that; also return which axes may change.

    The first comparison is of one image at the size that the network was traced with, which has to match.
    """
    free = list(network.free_axes)
    found: list[Comparison] = []
    failure: Exception | None = None
    for batch, spatial in ((True, free), (True, [False] * len(free)), (False, [False] * len(free))):
        samples = list(network.samples(network.sizes_within(spatial)))
        try:
            found = compare(network, run, samples if batch else [one for one in samples if len(one.image) == 1])
        except Exception as error:  # constants of a trace do not fit this size
            failure = error
            continue
        if all(one.is_right for one in found):
            break
    if not found:
        assert failure is not None
        raise RunFailedError(
            f"torchscript: the exported network cannot be run, and was discarded ({first_line(failure)}); choose "
            "another target"
        )
    return found, [batch, False, *spatial]
