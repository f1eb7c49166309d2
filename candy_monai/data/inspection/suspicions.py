"""What is unusual about a dataset and may be intended: warnings that compare its cases with each other.

Pure functions of a few facts a case; opens no file. What is wrong with a single case is found by
``candy_monai.data.inspection.checks``.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.data.datasets.folds import Fold
from candy_monai.data.values import as_ids, named

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FEWEST_TO_COMPARE = 4
_FAR_SPACING = 3.0
_FAR_RANGE = 4.0
_FAR_SHIFT = 0.35
"""As a share of the usual range: a CT that lacks the offset of 1024 lies about so far from the others."""
_DEVIATIONS = 6.0
_MAD_TO_DEVIATION = 1.4826
_SAMPLES = 50_000
_TAIL = 0.5


@dataclass(frozen=True, kw_only=True)
class CaseFacts:
    """What is compared between cases.

    Attributes:
        case_id: The case.
        content: Equal for images of the same voxels, whatever their files look like.
        spacing_mm: Along the patient's axes, left-right first; ``None`` for a picture.
        is_mirrored: Whether the stored axes are left-handed; ``None`` where there is no physical space.
        ranges: For each channel its percentiles 0.5 and 99.5.
        label_ids: The ids in the label; ``None`` without one.
    """

    case_id: str
    content: bytes
    spacing_mm: tuple[float, ...] | None
    is_mirrored: bool | None
    ranges: tuple[tuple[float, float], ...]
    label_ids: frozenset[int] | None


def content_of(arrays: Iterable[NDArray[np.generic]]) -> bytes:
    """Return a digest of the voxels of an image's channels, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def usual_range(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return a channel's percentiles 0.5 and 99.5, of evenly taken voxels where there are many."""
    flat = values.ravel()
    low, high = np.percentile(flat[:: max(1, flat.size // _SAMPLES)], (_TAIL, 100 - _TAIL))
    return float(low), float(high)


def suspicions(
    training: Sequence[CaseFacts],
    test: Sequence[CaseFacts],
    *,
    channel_names: Sequence[str],
    ignore_label: int | None = None,
) -> list[str]:
    """Compare the cases of a dataset and say what is odd about some.

    Args:
        training: The training cases.
        test: The test cases.
        channel_names: For the texts.
        ignore_label: The id that is no foreground.
    """
    return [
        *_twins(training, test),
        *_without_foreground(training, ignore_label),
        *_mirrored(training),
        *_outlying_spacings(training),
        *_outlying_intensities(training, channel_names),
    ]


def labels_absent_from_folds(
    folds: Sequence[Fold], ids_by_case: Mapping[str, frozenset[int]], names: Mapping[int, str], *, first: int = 0
) -> list[str]:
    """Say which folds have no training case with a label that other cases have, so that it cannot be learned.

    Args:
        folds: The folds.
        ids_by_case: The label ids of each case.
        names: The name of each foreground id.
        first: The number of the first of these folds.
    """
    everywhere = frozenset[int]().union(*ids_by_case.values())
    texts = []
    for number, fold in enumerate(folds, start=first):
        known = frozenset[int]().union(*(ids_by_case.get(case_id, frozenset()) for case_id in fold.train))
        absent = [
            f"{names[label_id]!r} (id {label_id})" for label_id in sorted(everywhere - known) if label_id in names
        ]
        if absent and fold.validation:
            texts.append(
                f"fold {number}: no training case has the label {', '.join(absent)}, which is then never learned; "
                "choose other folds, for example with --groups or --splits"
            )
    return texts


def names_by_id(labels: Mapping[str, int | tuple[int, ...]]) -> dict[int, str]:
    """Name each foreground id; an id of several regions has the names of all."""
    names: dict[int, str] = {}
    for name, ids in labels.items():
        for label_id in as_ids(ids):
            names[label_id] = f"{names[label_id]}, {name}" if label_id in names else name
    return {label_id: name for label_id, name in names.items() if label_id}


def _twins(training: Sequence[CaseFacts], test: Sequence[CaseFacts]) -> list[str]:
    by_content: dict[bytes, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for index, cases in enumerate((training, test)):
        for case in cases:
            if any(low < high for low, high in case.ranges):  # blank images are all alike
                by_content[case.content][index].append(case.case_id)
    texts = []
    for learned, tested in by_content.values():
        if len(learned) > 1:
            texts.append(
                f"imagesTr: {', '.join(learned)} hold the same image; remove all but one, or keep them on one side of "
                "a fold (--groups)"
            )
        if learned and tested:
            texts.append(
                f"the training case {learned[0]} and the test case {tested[0]} hold the same image, so a test score "
                "would flatter; remove one"
            )
    return texts


def _without_foreground(cases: Sequence[CaseFacts], ignore_label: int | None) -> list[str]:
    blank = [case.case_id for case in cases if case.label_ids is not None and not case.label_ids - {0, ignore_label}]
    return [f"labelsTr: no foreground in {len(blank)} of {len(cases)} cases: {named(blank)}"] if blank else []


def _mirrored(cases: Sequence[CaseFacts]) -> list[str]:
    known = [case for case in cases if case.is_mirrored is not None]
    mirrored = [case.case_id for case in known if case.is_mirrored]
    upright = [case.case_id for case in known if not case.is_mirrored]
    if not mirrored or not upright:
        return []
    few, kind, usual = (
        (mirrored, "left-handed", "right-handed")
        if len(mirrored) <= len(upright)
        else (upright, "right-handed", "left-handed")
    )
    return [
        f"imagesTr: {named(few)}: the affine is mirrored ({kind} axes, {usual} in the other cases); if a header lost "
        "a flip, left and right are swapped: compare these with the others"
    ]


def _outlying_spacings(cases: Sequence[CaseFacts]) -> list[str]:
    known = [(case.case_id, case.spacing_mm) for case in cases if case.spacing_mm is not None]
    if len(known) < _FEWEST_TO_COMPARE or len({len(spacing) for _, spacing in known}) > 1:
        return []
    usual = np.median([spacing for _, spacing in known], axis=0)
    texts = []
    for case_id, spacing in known:
        ratio = np.array(spacing) / usual
        if ratio.max() > _FAR_SPACING or ratio.min() < 1 / _FAR_SPACING:
            texts.append(f"{case_id} {_numbers(spacing)}")
    if not texts:
        return []
    return [
        f"imagesTr: spacing more than {_FAR_SPACING:g} times off the median of {_numbers(usual)} mm "
        f"(left-right, back-front, up): {named(texts)}; check the headers"
    ]


def _outlying_intensities(cases: Sequence[CaseFacts], channel_names: Sequence[str]) -> list[str]:
    texts = []
    for channel, name in enumerate(channel_names):
        ranges = np.array([case.ranges[channel] for case in cases if len(case.ranges) == len(channel_names)])
        owners = [case.case_id for case in cases if len(case.ranges) == len(channel_names)]
        if not owners:
            continue
        widths = ranges[:, 1] - ranges[:, 0]
        constant = [owner for owner, width in zip(owners, widths, strict=True) if width == 0]
        if constant:
            texts.append(f"imagesTr: channel {name!r} holds hardly more than one value in {named(constant)}")
        varied = np.flatnonzero(widths > 0)
        if len(varied) < _FEWEST_TO_COMPARE:
            continue
        logs, lows = np.log(widths[varied]), ranges[varied, 0]
        usual = math.exp(float(np.median(logs)))
        far = _is_far(logs, math.log(_FAR_RANGE)) | _is_far(lows, _FAR_SHIFT * usual)
        odd = [f"{owners[i]} ({_bounds(ranges[i])})" for i in varied[far]]
        if odd:
            typical = np.median(ranges[varied], axis=0)
            texts.append(
                f"imagesTr: channel {name!r} has intensities far from the usual {_bounds(typical)} in {len(odd)} of "
                f"{len(owners)} cases: {named(odd, limit=8)}; check units and scale"
            )
    return texts


def _is_far(values: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """Tell outliers: further off than the median's distance allows, and by ``least`` at any rate."""
    distance = np.abs(values - np.median(values))
    spread = _MAD_TO_DEVIATION * float(np.median(distance))
    far: NDArray[np.bool_] = distance > max(least, _DEVIATIONS * spread)
    return far


def _numbers(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _bounds(values: Sequence[float] | NDArray[np.float64]) -> str:
    return f"{values[0]:.4g} to {values[1]:.4g}"
