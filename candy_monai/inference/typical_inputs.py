"""Ranges of properties of a training set's cases, and the properties in which another image is outside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from candy_monai.data.values import frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.data.images.geometry import Geometry
    from candy_monai.data.inspection.fingerprint import CaseFingerprint

Range = tuple[float, float]
"""The minimum and the maximum in the training set."""

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
"""Quantiles of a channel's intensities after preprocessing."""

_VOXELS_ALONG_AN_AXIS = 48
"""The approximate number of planes along each axis that are sampled."""
_SPACING_FACTOR, _SIZE_FACTOR, _CLASS_FACTOR = 1.25, 1.5, 1.5
"""The factor by which a spacing, image size or class size may lie outside the training set's range. A class's size may
also lie outside by the width of the range, if that is more: few cases do not show the whole range of lesion sizes."""
_LEAST_MARGIN = 0.1
"""The same for intensities, as a share of a channel's range; or the spread of the training cases if larger."""


@dataclass(frozen=True, kw_only=True)
class ClassSize:
    """The size of a class or region in the training cases that contain it.

    Attributes:
        ids: Its ids in a label map.
        low: The minimum: in ml, or for pictures as a share of all pixels.
        median: The median.
        high: The maximum.
    """

    ids: tuple[int, ...]
    low: float
    median: float
    high: float


@dataclass(frozen=True, kw_only=True)
class TypicalInputs:
    """The ranges of properties of the cases of a training set.

    Attributes:
        spacing_mm: Ranges of the files' spacing, from the finest axis to the coarsest; empty for pictures.
        shape: Ranges of the number of voxels along each axis after preprocessing.
        intensities: For each channel, by name, the ranges of its `QUANTILES` after preprocessing.
        has_empty_cases: Whether there is a training case without any labelled voxel.
        classes: The size of each class or region, by name; those that no case contains are left out.
    """

    spacing_mm: tuple[Range, ...]
    shape: tuple[Range, ...]
    intensities: Mapping[str, tuple[Range, ...]]
    has_empty_cases: bool
    classes: Mapping[str, ClassSize]

    @classmethod
    def of(
        cls,
        images: Iterable[NDArray[np.floating]],
        cases: Sequence[CaseFingerprint],
        *,
        channel_names: Sequence[str],
        classes: Sequence[tuple[str, Sequence[int]]],
        is_picture: bool,
    ) -> TypicalInputs:
        """Compute the ranges of preprocessed training images ``(C, *spatial)``, one by one, and of their files.

        ``classes`` contains the name and the ids of each foreground class or region.
        """
        looked_at = [(image.shape[1:], _quantiles(image)) for image in images]
        by_channel = np.array([found for _, found in looked_at]).swapaxes(0, 1)
        spacings = [sorted(case.spacing_mm) for case in cases]
        return cls(
            spacing_mm=() if is_picture else _ranges(spacings),
            shape=_ranges([shape for shape, _ in looked_at]),
            intensities={name: _ranges(found) for name, found in zip(channel_names, by_channel, strict=True)},
            has_empty_cases=any(case.foreground_shape is None for case in cases),
            classes={
                name: ClassSize(ids=tuple(ids), low=min(sizes), median=median(sizes), high=max(sizes))
                for name, ids in classes
                if (sizes := [size for case in cases if (size := _size_in(case, ids, is_picture=is_picture))])
            },
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TypicalInputs:
        """Build an instance from the result of `asdict`, also after a round trip through JSON."""
        plain: dict[str, Any] = {name: frozen(value) for name, value in values.items()}
        plain["classes"] = {name: ClassSize(**size) for name, size in plain["classes"].items()}
        return cls(**plain)

    def differences(self, image: NDArray[np.floating], geometry: Geometry | None) -> list[str]:
        """Return the differences of a preprocessed image ``(C, *spatial)`` from all training images, a sentence each.

        ``geometry`` is the grid of its file, None if it has no position in space.
        """
        found = []
        spacing = [] if geometry is None or geometry.is_picture else sorted(geometry.spacing_mm)
        if len(spacing) == len(self.spacing_mm) and _lies_beyond(spacing, self.spacing_mm, _SPACING_FACTOR):
            found.append(
                f"its spacing is {' x '.join(f'{length:.3g}' for length in spacing)} mm, in the training images "
                f"{_as_text(self.spacing_mm)} mm"
            )
        shape = image.shape[1:]
        if len(shape) == len(self.shape) and _lies_beyond(shape, self.shape, _SIZE_FACTOR):
            found.append(
                f"its size after preprocessing is {' x '.join(map(str, shape))}, in the training images "
                f"{_as_text(self.shape)}"
            )
        for (name, ranges), values in zip(self.intensities.items(), _quantiles(image), strict=False):
            least = _LEAST_MARGIN * (ranges[-1][1] - ranges[0][0])
            beyond = [
                max(low - value, value - high) / max(high - low, least, np.finfo(np.float32).tiny)
                for value, (low, high) in zip(values, ranges, strict=True)
            ]
            worst = int(np.argmax(beyond))
            if beyond[worst] > 1:
                found.append(
                    f"the {100 * QUANTILES[worst]:.0f} % quantile of channel {name!r} after normalization is "
                    f"{values[worst]:.3g}, in the training images {_as_text(ranges[worst : worst + 1])}"
                )
        return found

    def usual_size(self, labels: Tensor, geometry: Geometry | None) -> tuple[float, list[str]]:
        """Return how usual the sizes of the classes in a label map are, and a sentence for each unusual one.

        The map is ``(1, *spatial)``; its grid is None if it has no position in space.

        Returns:
            The mean over the classes in it of the ratio of the smaller to the larger of the size and the training set's
            median: 0 to 1, and 0 without any class.
        """
        is_in_space = geometry is not None and not geometry.is_picture
        if bool(self.spacing_mm) != is_in_space:
            return 1.0, []
        unit = 1 / labels.numel() if geometry is None or not is_in_space else math.prod(geometry.spacing_mm) / 1000
        flat = labels.flatten()
        highest = max((label_id for usual in self.classes.values() for label_id in usual.ids), default=0)
        counts = torch.bincount(flat[flat <= highest], minlength=highest + 1)
        shares, found = [], []
        for name, usual in self.classes.items():
            size = int(counts[list(usual.ids)].sum()) * unit
            if not size:
                continue
            shares.append(min(size, usual.median) / max(size, usual.median))
            factor = max(_CLASS_FACTOR, usual.high / usual.low)
            if not usual.low / factor <= size <= usual.high * factor:
                shown = [f"{share if is_in_space else 100 * share:.3g}" for share in (size, usual.low, usual.high)]
                unit_name = "ml" if is_in_space else "% of the picture"
                usually = " to ".join(dict.fromkeys(shown[1:]))
                found.append(f"its {name} occupies {shown[0]} {unit_name}, in the training cases {usually}")
        return (fmean(shares) if shares else 0.0), found


def _size_in(case: CaseFingerprint, ids: Sequence[int], *, is_picture: bool) -> float:
    """Return the size of a class in a training case, in the units of `ClassSize`."""
    voxels = sum(case.class_voxels.get(label_id, 0) for label_id in ids)
    return voxels / math.prod(case.shape) if is_picture else voxels * math.prod(case.spacing_mm) / 1000


def _quantiles(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the `QUANTILES` of each channel, ``(C, quantiles)``."""
    steps = (slice(None, None, max(1, extent // _VOXELS_ALONG_AN_AXIS)) for extent in image.shape[1:])
    voxels = np.asarray(image[(slice(None), *steps)], dtype=np.float32).reshape(len(image), -1)
    return np.quantile(voxels, QUANTILES, axis=1).T.astype(np.float64)


def _ranges(values: Sequence[Sequence[float]] | NDArray[np.floating]) -> tuple[Range, ...]:
    """Return the range of each column; entries with fewer axes than the others are left out."""
    most = max(len(row) for row in values)
    columns = zip(*(row for row in values if len(row) == most), strict=True)
    return tuple((float(min(column)), float(max(column))) for column in columns)


def _lies_beyond(values: Sequence[float], ranges: Sequence[Range], factor: float) -> bool:
    return any(not low / factor <= value <= high * factor for value, (low, high) in zip(values, ranges, strict=True))


def _as_text(ranges: Sequence[Range]) -> str:
    return " x ".join(f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}" for low, high in ranges)
