"""Lesion-wise metrics, from matched connected components of a predicted and a reference class.

Two rules of matching are in use, whose values are not comparable:

- ``iou``, as in panoptica's ``NaiveThresholdMatching``: pairs of components whose intersection over union reaches a
  threshold, the best first, with each component in at most one pair.
- ``dilation``, as in the BraTS challenges since 2023: components of the reference that a dilation joins are one lesion;
  it is found if any predicted component touches its dilation, and is then compared with all of these together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from candy_monai.boxes import bounding_box
from candy_monai.errors import BadInputError, SettingsError, did_you_mean
from candy_monai.label_ids import AnyTensor
from candy_monai.metrics.surface import checked_masks

LESION_METRICS = (
    "lesion_f1",
    "lesion_recall",
    "lesion_precision",
    "lesion_false_positives",
    "lesion_dice",
    "lesion_matched_dice",
)
"""Detection of lesions: F1, recall and precision of the matched ones, and the number of predicted ones without a match;
the sum of the matched lesions' Dice over the number of reference lesions and false positives, as in BraTS; and the mean
of the matched lesions' Dice, panoptica's ``sq_dsc``."""

Matching = Literal["iou", "dilation"]
Connectivity = Literal["full", "faces"]

_Mask = npt.NDArray[np.bool_]
_Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class LesionRule:
    """The definition of a lesion, and of its detection.

    Attributes:
        matching: ``iou`` or ``dilation``, see the module.
        iou: The minimum intersection over union of a pair, for ``iou``.
        dilation: The reference's dilation in voxels, for ``dilation``; across faces and edges, as in BraTS.
        connectivity: ``full``: voxels that share a face, an edge or a corner are connected (26 neighbours, 8 in a
            picture). ``faces``: those that share a face (6, or 4).
        least_mm3: Lesions of the reference up to this volume are ignored, together with the predictions there; in mm3,
            in a picture mm2.

    Raises:
        SettingsError: If a value is unknown or out of range.
    """

    matching: Matching = "iou"
    iou: float = 0.5
    dilation: int = 3
    connectivity: Connectivity = "full"
    least_mm3: float = 0.0

    def __post_init__(self) -> None:
        if self.matching not in get_args(Matching):
            raise SettingsError(
                f"matching of lesions must be one of {', '.join(get_args(Matching))}, got {self.matching!r}"
            )
        if self.connectivity not in get_args(Connectivity):
            known = ", ".join(get_args(Connectivity))
            raise SettingsError(f"connectivity of lesions must be one of {known}, got {self.connectivity!r}")
        if not 0 < self.iou <= 1:
            raise SettingsError(f"iou of lesions must be above 0 and at most 1, got {self.iou}")
        if self.dilation < 1:
            raise SettingsError(f"dilation of lesions must be at least 1 voxel, got {self.dilation}")
        if not 0 <= self.least_mm3 < math.inf:
            raise SettingsError(f"least_mm3 of lesions must be 0 or more, got {self.least_mm3}")

    @classmethod
    def of(cls, text: str) -> LesionRule:
        """Read a rule: ``panoptica`` or ``brats``, entries as ``iou=0.1``, or the one and then the others, with commas.

        ``panoptica`` is the default; ``brats`` is that of BraTS 2023 for gliomas: ``matching=dilation``,
        ``dilation=3``, ``least_mm3=50`` (metastases have ``dilation=1,least_mm3=2``).

        Raises:
            SettingsError: If the text is invalid.
        """
        presets: dict[str, dict[str, object]] = {
            "panoptica": {},
            "brats": {"matching": "dilation", "dilation": 3, "least_mm3": 50.0},
        }
        kinds: dict[str, type] = {
            "matching": str,
            "iou": float,
            "dilation": int,
            "connectivity": str,
            "least_mm3": float,
        }
        values: dict[str, object] = {}
        given: set[str] = set()
        for place, word in enumerate(part.strip() for part in text.split(",")):
            name, separator, value = word.partition("=")
            if not separator and place == 0 and word in presets:
                values |= presets[word]
                continue
            if not separator or name not in kinds:
                known = [*presets, *(f"{entry}=" for entry in kinds)]
                raise SettingsError(
                    f"lesions: unknown rule {word!r}; expected any of {', '.join(known)}.{did_you_mean(name, known)}"
                )
            if name in given:
                raise SettingsError(f"lesions: {name} is given twice in {text!r}")
            given.add(name)
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise SettingsError(f"lesions: {name} must be a number, got {value!r}") from None
        rule = cls(**values)  # type: ignore[arg-type]  # each was converted to its field's type
        idle = "iou" if rule.matching == "dilation" else "dilation"
        if idle in given:
            other = "brats" if idle == "dilation" else "panoptica"
            raise SettingsError(
                f"lesions: {idle} has no effect in {text!r}, which matches by {rule.matching}; leave it out, or "
                f"begin with {other}"
            )
        return rule

    def __str__(self) -> str:
        neighbours = "faces, edges and corners" if self.connectivity == "full" else "faces only"
        match = f"matched one to one, best first, where their intersection over union is at least {self.iou:g}"
        if self.matching == "dilation":
            match = (
                f"reference components that merge after a dilation of {self.dilation} voxels are one lesion, detected "
                "if a predicted component touches the dilated lesion, and compared with the union of all such "
                "components"
            )
        least = f"; only reference lesions larger than {self.least_mm3:g} mm3 count" if self.least_mm3 else ""
        return f"components connected across {neighbours}; {match}{least}"


def lesion_metrics(
    prediction: AnyTensor,
    reference: AnyTensor,
    names: Sequence[str] = LESION_METRICS,
    *,
    rule: LesionRule | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> dict[str, float]:
    """Compute the lesion-wise metrics of one class of one case.

    Args:
        prediction: Mask ``(*spatial)``, a tensor on any device or a NumPy array; components are computed on the CPU.
        reference: Mask of the same shape.
        names: Which of `LESION_METRICS`.
        rule: The rule that defines and matches lesions; None for panoptica's.
        spacing_mm: Distance of voxels along each axis, for the rule's ``least_mm3``; None for 1.

    Returns:
        Name to value; NaN where a ratio is undefined: recall without a lesion in the reference, precision without a
        predicted one, the Dice of matched lesions without a match, and all but the false positives if both maps have
        none.

    Raises:
        BadInputError: If the masks differ in shape or are not binary, there is not a positive spacing for each axis, or
            a name is unknown.
    """
    prediction, reference = checked_masks(prediction, reference, spacing_mm)
    if unknown := [name for name in names if name not in LESION_METRICS]:
        raise BadInputError(f"unknown lesion metric {unknown[0]!r}; expected any of {', '.join(LESION_METRICS)}")
    rule = LesionRule() if rule is None else rule
    one, other = (mask.bool().cpu().numpy() for mask in (prediction, reference))
    box = bounding_box(one | other, margin=rule.dilation if rule.matching == "dilation" else 0)
    voxel_mm3 = 1.0 if spacing_mm is None else math.prod(spacing_mm)
    if box is None:
        found = _Found(dice=(), num_reference=0, num_false=0)
    elif rule.matching == "iou":
        found = _matched_by_iou(one[box], other[box], rule, voxel_mm3)
    else:
        found = _matched_by_dilation(one[box], other[box], rule, voxel_mm3)
    hits, lesions, false = len(found.dice), found.num_reference, found.num_false
    values = {
        "lesion_f1": _ratio(2 * hits, lesions + hits + false),
        "lesion_recall": _ratio(hits, lesions),
        "lesion_precision": _ratio(hits, hits + false),
        "lesion_false_positives": float(false),
        "lesion_dice": _ratio(math.fsum(found.dice), lesions + false),
        "lesion_matched_dice": _ratio(math.fsum(found.dice), hits),
    }
    return {name: values[name] for name in names}


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The Dice of each lesion of the reference that was found, the number of lesions, and of false positives."""

    dice: tuple[float, ...]
    num_reference: int
    num_false: int


def _matched_by_iou(prediction: _Mask, reference: _Mask, rule: LesionRule, voxel_mm3: float) -> _Found:
    predicted, lesions = _components(prediction, rule), _components(reference, rule)
    sizes, sizes_of_lesions = _sizes(predicted), _sizes(lesions)
    pairs, common = _overlaps(predicted, lesions)
    union = sizes[pairs[:, 0]] + sizes_of_lesions[pairs[:, 1]] - common
    iou = common / union
    dice: dict[int, float] = {}
    partners: set[int] = set()
    for index in np.argsort(-iou, kind="stable"):
        component, lesion = map(int, pairs[index])
        if iou[index] < rule.iou:
            break
        if component not in partners and lesion not in dice:
            partners.add(component)
            dice[lesion] = 2 * common[index] / (sizes[component] + sizes_of_lesions[lesion])
    return _counted(dice, sizes_of_lesions, num_false=len(sizes) - 1 - len(partners), rule=rule, voxel_mm3=voxel_mm3)


def _matched_by_dilation(prediction: _Mask, reference: _Mask, rule: LesionRule, voxel_mm3: float) -> _Found:
    from scipy import ndimage

    predicted = _components(prediction, rule)
    # Faces and edges, without corners: generate_binary_structure(3, 2), as in BraTS.
    structure = ndimage.generate_binary_structure(reference.ndim, min(2, reference.ndim))
    dilated = ndimage.binary_dilation(reference, structure, iterations=rule.dilation)
    joined = _components(dilated, rule)
    lesions = np.where(reference, joined, np.int32(0))
    sizes, sizes_of_lesions = _sizes(predicted), _sizes(lesions)
    common = {tuple(pair): n for pair, n in zip(*map(np.ndarray.tolist, _overlaps(predicted, lesions)), strict=True)}
    touching: dict[int, list[int]] = {}
    for component, lesion in _overlaps(predicted, joined)[0].tolist():
        touching.setdefault(lesion, []).append(component)
    dice = {
        lesion: 2
        * sum(common.get((component, lesion), 0) for component in components)
        / (sum(int(sizes[component]) for component in components) + int(sizes_of_lesions[lesion]))
        for lesion, components in touching.items()
    }
    num_false = len(sizes) - 1 - len({component for components in touching.values() for component in components})
    return _counted(dice, sizes_of_lesions, num_false=num_false, rule=rule, voxel_mm3=voxel_mm3)


def _counted(
    dice: dict[int, float], sizes: npt.NDArray[np.int64], *, num_false: int, rule: LesionRule, voxel_mm3: float
) -> _Found:
    """Return the result without lesions that are too small, among those that were found and among all."""
    large = {lesion for lesion in range(1, len(sizes)) if sizes[lesion] * voxel_mm3 > rule.least_mm3}
    return _Found(
        dice=tuple(value for lesion, value in dice.items() if lesion in large),
        num_reference=len(large),
        num_false=num_false,
    )


def _components(mask: _Mask, rule: LesionRule) -> _Labels:
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(mask.ndim, mask.ndim if rule.connectivity == "full" else 1)
    return np.asarray(ndimage.label(mask, structure)[0], dtype=np.int32)


def _sizes(labels: _Labels) -> npt.NDArray[np.int64]:
    return np.bincount(labels.ravel()).astype(np.int64)


def _overlaps(one: _Labels, other: _Labels) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the pairs ``(n, 2)`` of components with common voxels, and the number of these."""
    both = (one > 0) & (other > 0)
    width = int(other.max(initial=0)) + 1
    keys, counts = np.unique(one[both].astype(np.int64) * width + other[both], return_counts=True)
    return np.stack([keys // width, keys % width], axis=1), counts.astype(np.int64)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
