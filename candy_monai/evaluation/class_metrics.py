"""Declarations of the metrics of one class for evaluations.

Imports no heavy packages, since ``--help`` lists the metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from candy_monai.errors import BadInputError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """The voxel counts of one class in one case: ``common`` in both maps, and all valid voxels of any class.

    ``voxel_ml`` is the volume of a voxel; NaN in a picture, or if neither map has a position in space.
    """

    common: int
    predicted: int
    referenced: int
    num_voxels: int
    voxel_ml: float = math.nan


@dataclass(frozen=True, kw_only=True)
class ClassMetric:
    """A metric of one class in one case.

    ``surfaces`` are measured by `surface_metrics`, ``lesions`` by `lesion_metrics`, the rest from voxel counts.
    """

    summary_name: str  # in nnU-Net's summary
    kind: Literal["counts", "surfaces", "lesions"] = "counts"  # what it is computed from
    from_counts: Callable[[ClassCounts], float] | None = None  # None for another kind; NaN where undefined
    better: Literal["higher", "lower"] | None = "higher"  # None for neither, as of a volume
    definition: str  # with the cases in which it is undefined (NaN) or infinite
    unit: str = ""  # empty for a number between 0 and 1
    is_signed: bool = False

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest possible value."""
        if not self.unit:
            return 0.0, 1.0
        return (-math.inf if self.is_signed else 0.0), math.inf

    @property
    def lower_is_better(self) -> bool:
        """Whether the best value is the lowest, as for a distance."""
        return self.better == "lower"


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


_ABSENT = "NaN where the class is in neither map, 0 where it is in one alone"
_VOLUME = "voxels times their volume; NaN in pictures and where neither map lies in space"


def _distance(summary_name: str, definition: str) -> ClassMetric:
    text = f"{definition}; NaN where the class is in neither map, infinite where it is in one alone"
    return ClassMetric(summary_name=summary_name, kind="surfaces", better="lower", unit="mm", definition=text)


def _of_lesions(summary_name: str, definition: str) -> ClassMetric:
    return ClassMetric(summary_name=summary_name, kind="lesions", definition=definition)


CLASS_METRICS = {
    "dice": ClassMetric(
        summary_name="Dice",
        from_counts=lambda n: _ratio(2 * n.common, n.predicted + n.referenced),
        definition=f"2 TP / (2 TP + FP + FN) of voxels; {_ABSENT}",
    ),
    "iou": ClassMetric(
        summary_name="IoU",
        from_counts=lambda n: _ratio(n.common, n.predicted + n.referenced - n.common),
        definition=f"TP / (TP + FP + FN) of voxels; {_ABSENT}",
    ),
    "precision": ClassMetric(
        summary_name="Precision",
        from_counts=lambda n: _ratio(n.common, n.predicted),
        definition="TP / (TP + FP) of voxels; NaN where the class is not predicted",
    ),
    "recall": ClassMetric(
        summary_name="Recall",
        from_counts=lambda n: _ratio(n.common, n.referenced),
        definition="TP / (TP + FN) of voxels (sensitivity); NaN where the reference lacks the class",
    ),
    "specificity": ClassMetric(
        summary_name="Specificity",
        from_counts=lambda n: _ratio(n.num_voxels - n.predicted - n.referenced + n.common, n.num_voxels - n.referenced),
        definition="TN / (TN + FP) of voxels of the whole image: the larger its margin, the nearer to 1; NaN where all "
        "of the reference is of the class",
    ),
    "hd95": _distance(
        "HD95",
        "the larger of both 95th percentiles of the distances from one surface to the other (not the "
        "percentile of all distances), with linear interpolation",
    ),
    "hd100": _distance("HD100", "Hausdorff distance: the largest distance from either surface to the other"),
    "assd": _distance("ASSD", "average symmetric surface distance: the mean of all distances of both surfaces"),
    "masd": _distance("MASD", "mean average surface distance: the mean of both surfaces' mean distances"),
    "surface_dice": ClassMetric(
        summary_name="SurfaceDice",
        kind="surfaces",
        definition="the share of both maps' surfaces that is within the tolerance of the other surface "
        f"(normalized surface distance); {_ABSENT}",
    ),
    "volume_ml": ClassMetric(
        summary_name="VolumeMl",
        better=None,
        unit="ml",
        from_counts=lambda n: n.predicted * n.voxel_ml,
        definition=f"volume in the prediction: {_VOLUME}",
    ),
    "reference_volume_ml": ClassMetric(
        summary_name="ReferenceVolumeMl",
        better=None,
        unit="ml",
        from_counts=lambda n: n.referenced * n.voxel_ml,
        definition=f"volume in the reference: {_VOLUME}",
    ),
    "volume_difference_ml": ClassMetric(
        summary_name="VolumeDifferenceMl",
        is_signed=True,
        better=None,
        unit="ml",
        from_counts=lambda n: (n.predicted - n.referenced) * n.voxel_ml,
        definition="volume in the prediction less that in the reference; its mean is the bias; NaN as for volumes",
    ),
    "volume_error_ml": ClassMetric(
        summary_name="VolumeErrorMl",
        better="lower",
        unit="ml",
        from_counts=lambda n: abs(n.predicted - n.referenced) * n.voxel_ml,
        definition="absolute difference of both volumes; NaN as for volumes",
    ),
    "lesion_f1": _of_lesions(
        "LesionF1",
        "2 TP / (2 TP + FP + FN) of lesions, TP those of the reference that are matched (panoptica's "
        "recognition quality); NaN where neither map has a lesion",
    ),
    "lesion_recall": _of_lesions("LesionRecall", "TP / (TP + FN) of lesions; NaN where the reference has none"),
    "lesion_precision": _of_lesions("LesionPrecision", "TP / (TP + FP) of lesions; NaN where none is predicted"),
    "lesion_false_positives": ClassMetric(
        summary_name="LesionFalsePositives",
        kind="lesions",
        better="lower",
        unit="lesions",
        definition="predicted lesions without a partner; 0 where neither map has one, so that the mean is over all "
        "cases",
    ),
    "lesion_dice": _of_lesions(
        "LesionDice",
        "sum of the Dice of the matched lesions / (TP + FP + FN) (BraTS's lesion-wise Dice); NaN where "
        "neither map has a lesion, where BraTS has 1",
    ),
    "lesion_matched_dice": _of_lesions(
        "LesionMatchedDice",
        "mean Dice of the matched lesions (panoptica's sq_dsc); NaN where none is matched",
    ),
}
"""The metrics by name, in the order of tables."""

METRIC_GROUPS = {
    "overlap": ("dice", "iou", "precision", "recall", "specificity"),
    "surfaces": tuple(name for name, metric in CLASS_METRICS.items() if metric.kind == "surfaces"),
    "volumes": ("volume_ml", "reference_volume_ml", "volume_difference_ml", "volume_error_ml"),
    "lesions": tuple(name for name, metric in CLASS_METRICS.items() if metric.kind == "lesions"),
    "all": tuple(CLASS_METRICS),
}
"""Names of groups of metrics."""


def metrics_named(names: Iterable[str]) -> tuple[str, ...]:
    """Return the metrics of these names of metrics and groups, without duplicates; raise if one is unknown."""
    found: list[str] = []
    for name in names:
        if name not in CLASS_METRICS and name not in METRIC_GROUPS:
            hint = did_you_mean(name, [*CLASS_METRICS, *METRIC_GROUPS])
            raise BadInputError(
                f"there is no metric {name!r}; known are {', '.join(CLASS_METRICS)}, and the groups "
                f"{', '.join(METRIC_GROUPS)}.{hint}"
            )
        found += METRIC_GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))


def definitions_of(
    names: Iterable[str], *, tolerance: str, lesions: str, subvoxels: bool = False, ignore_label: int | None = None
) -> dict[str, str]:
    """Return the definitions in an evaluation: of its metrics by their names in the summary, and of its policies."""
    metrics = {name: CLASS_METRICS[name] for name in names}
    if not metrics:
        return {}
    kinds = {metric.kind for metric in metrics.values()}
    texts = {metric.summary_name: metric.definition for metric in metrics.values()}
    if "surface_dice" in metrics:
        texts["SurfaceDice"] += f"; tolerance {tolerance}"
    texts["means"] = (
        "of a class over the cases where its value is defined; foreground_mean over the classes' means without the "
        "background; infinite values make a mean infinite, and are counted beside those that are undefined"
    )
    if "surfaces" in kinds:
        texts["surfaces"] = (
            "elements between voxels (of all neighbourhoods of two voxels along each axis that are not uniform), "
            "weighted by their areas in every mean, share and percentile, and percentiles without interpolation, as in "
            "DeepMind's surface-distance"
            if subvoxels
            else "voxels of the class that have a neighbour across a face, or the border of the image, outside it; "
            "each counts once, as in MONAI"
        )
        texts["distances"] = "in mm, in voxels where neither map lies in space; axes of length 1 are no axes"
    if "lesions" in kinds:
        texts["lesions"] = lesions
    if ignore_label is not None:
        texts["ignored"] = f"voxels where the reference has the label id {ignore_label} count for nothing"
    return texts
