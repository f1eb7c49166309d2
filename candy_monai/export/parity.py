"""Compare an exported network with the experiment's own, and refuse it if they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from candy_monai.errors import RunFailedError
from candy_monai.export.networks import ExportedNetwork, Sample
from candy_monai.transforms.painting import label_ids

TOLERANCE = 1e-3
"""Maximum difference of two logits, relative to the largest logit or to 1. Kernels other than PyTorch's sum in another
order, which makes about 1e-5; a wrong weight or a wrong layer makes a difference of the order of 1."""

LEAST_EQUAL = 0.999
"""Minimum fraction of voxels with equal labels."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The comparison of the logits of one part of a case."""

    case: str
    shape: tuple[int, ...]  # ``(B, C, *size)`` of the input
    max_difference: float  # of two logits
    max_logit: float  # the maximum magnitude
    equal_labels: float  # the fraction of voxels

    @property
    def is_right(self) -> bool:
        """Whether the difference is explained by rounding."""
        # A comparison with NaN is false.
        near = self.max_difference <= TOLERANCE * max(1.0, self.max_logit)
        return near and self.equal_labels >= LEAST_EQUAL

    def to_dict(self) -> dict[str, object]:
        """Return plain values."""
        return {**asdict(self), "shape": list(self.shape)}


def compare(
    network: ExportedNetwork, exported: Callable[[Tensor], Tensor], samples: Iterable[Sample]
) -> list[Comparison]:
    """Return comparisons of both networks on parts of real cases; raise if the exported one fails."""
    return [_compared(sample, network.logits(sample.image), _run(exported, sample), network) for sample in samples]


def check(comparisons: Sequence[Comparison], *, name: str, on_progress: Callable[[str], None]) -> None:
    """Check that no difference exceeds rounding, and report the largest ones."""
    for found in comparisons:
        if not found.is_right:
            raise RunFailedError(
                f"{name}: differs from the experiment and was discarded: on {found.case} of shape {found.shape} "
                f"logits differ by {found.max_difference:.2g} (at most {TOLERANCE:g} of {found.max_logit:.3g} is "
                f"expected), and {found.equal_labels:.2%} of the labels are equal (at least {LEAST_EQUAL:.1%}); "
                "choose another target"
            )
    sizes = sorted({"x".join(map(str, found.shape[2:])) for found in comparisons})
    on_progress(
        f"{len({found.case for found in comparisons})} cases at {' and '.join(sizes)}: logits differ by up to "
        f"{max(found.max_difference for found in comparisons):.1e}, "
        f"{min(found.equal_labels for found in comparisons):.3%} of the labels are equal"
    )


def _run(exported: Callable[[Tensor], Tensor], sample: Sample) -> Tensor:
    try:
        return exported(sample.image)
    except Exception as error:  # of any runtime
        raise RunFailedError(
            f"the exported network fails on {sample.case_id} of shape {tuple(sample.image.shape)} and was discarded "
            f"({type(error).__name__}: {error}): choose another target"
        ) from error


def _compared(sample: Sample, expected: Tensor, found: Tensor, network: ExportedNetwork) -> Comparison:
    shape = tuple(sample.image.shape)
    if found.shape != expected.shape:
        raise RunFailedError(
            f"the exported network returns logits of shape {tuple(found.shape)} for an image of shape {shape}, the "
            f"experiment's {tuple(expected.shape)}"
        )
    paints = network.predictor.paints
    equal = [
        (label_ids(one, paints=paints) == label_ids(other, paints=paints)).double().mean()
        for one, other in zip(expected, found, strict=True)
    ]
    return Comparison(
        case=sample.case_id,
        shape=shape,
        max_difference=float((found - expected).abs().max()),
        max_logit=float(expected.abs().max()),
        equal_labels=float(torch.stack(equal).mean()),
    )
