"""Measure one case, a prediction against its reference, with metrics of classes and custom metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeGuard

import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.images.alignment import HAS_NO_GRID, aligned
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.reading import geometry_of
from candy_monai.data.values import join_names, plain_tensor
from candy_monai.errors import BadInputError
from candy_monai.evaluation.class_metrics import CLASS_METRICS, ClassCounts
from candy_monai.evaluation.results import EvalCase
from candy_monai.label_ids import highest_id, ids_in
from candy_monai.metrics.lesions import LesionRule, lesion_metrics
from candy_monai.metrics.overlap import count_overlap, is_any_of
from candy_monai.metrics.surface import surface_metrics

_HIGHEST_ID = 65_535

_Counted = tuple[int, tuple[int, ...], tuple[int, int, int]]
"""The number of a class or region, its ids, and the voxels in both maps, in the prediction and in the reference."""

Metric = Callable[[Tensor, Tensor], Tensor | float]
"""Maps a prediction and its reference, as they were given or loaded, to one number for the case."""


class UnknownIdsError(BadInputError):
    """Raised if a label map contains ids that belong to no class."""


@dataclass(frozen=True, kw_only=True)
class ComparedCase:
    """A prediction ``(1, *spatial)``, its reference, and the files that they were read from."""

    case_id: str
    prediction: Tensor
    reference: Tensor
    files: tuple[str | None, str | None] = (None, None)

    def geometry(self) -> Geometry | None:
        """Return the geometry of the reference, else of the prediction; None if neither has a position in space."""
        placed = (tensor for tensor in (self.reference, self.prediction) if _is_placed(tensor))
        return next(map(geometry_of, placed), None)

    def named(self, which: str) -> str:
        """Return the name of the prediction or the reference for messages: its file, if it has one, and its case."""
        file = self.files[which == "reference"]
        return f"{self.case_id}: the {which}" + ("" if file is None else f" {file}")

    def on_one_grid(self) -> ComparedCase:
        """Return the case with its prediction on the grid of the reference; raise if the grids are incompatible.

        Tensors without a grid are returned unchanged.
        """
        prediction, reference = self.prediction, self.reference
        if not (_is_placed(prediction) and _is_placed(reference)) or {prediction.ndim, reference.ndim} - {3, 4}:
            return self
        values = prediction.as_tensor()
        grids = geometry_of(prediction), geometry_of(reference)
        turned = aligned(values, *grids, name=self.named("prediction"), against="the reference has")
        return self if turned is values else replace(self, prediction=MetaTensor(turned, meta=dict(reference.meta)))


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The metrics for a case: those of classes by ``names``, and custom ones, ``own``; the rest as for `Evaluator`.

    The background is among ``label_ids``; other ids are refused. None uses the ids that occur.
    """

    names: tuple[str, ...]
    own: Mapping[str, Metric]
    label_ids: tuple[int, ...] | None
    ignore_label: int | None
    include_background: bool
    regions: tuple[tuple[int, ...], ...] | None
    tolerance_mm: float
    tolerances_mm: Mapping[int, float] = field(default_factory=dict)
    lesions: LesionRule = field(default_factory=LesionRule)
    subvoxels: bool = False

    def __call__(self, case: ComparedCase) -> tuple[EvalCase, ClassCounts]:
        """Return the values of a case for the classes that it contains, and the counts of a class that it lacks.

        Other than label maps on the same grid, unknown ids, and custom metrics that return no number are refused.
        """
        classes: dict[int, dict[str, float]] = {}
        counts: dict[int, dict[str, int]] = {}
        measured = EvalCase(
            case_id=case.case_id,
            classes=classes,
            counts=counts,
            values={name: _value_of(case, name, metric) for name, metric in self.own.items()},
            prediction_file=case.files[0],
            reference_file=case.files[1],
        )
        if not self.names:
            return measured, ClassCounts(common=0, predicted=0, referenced=0, num_voxels=0)
        maps = prediction, reference = self.checked(case)
        is_valid = torch.ones_like(reference, dtype=torch.bool)
        if self.ignore_label is not None:
            is_valid = reference != self.ignore_label
        geometry = case.geometry()
        spacing_mm = (1.0,) * (reference.ndim - 1) if geometry is None else geometry.spacing_mm
        voxel_ml = math.nan if geometry is None or geometry.voxel_ml is None else geometry.voxel_ml
        absent = ClassCounts(common=0, predicted=0, referenced=0, num_voxels=int(is_valid.sum()), voxel_ml=voxel_ml)
        of_absent: dict[str, float] = {}
        counted = self._regions_of(maps, is_valid) if self.regions else self._classes_of(maps, case.case_id)
        for index, ids, (common, predicted, referenced) in counted:
            of_class = replace(absent, common=common, predicted=predicted, referenced=referenced)
            counts[index] = confusion(of_class)
            if not predicted and not referenced:
                of_absent = of_absent or self.of_absent(absent)
                classes[index] = dict(of_absent)
                continue
            masks = None
            if any(CLASS_METRICS[name].kind != "counts" for name in self.names):
                masks = (is_any_of(prediction, ids) & is_valid)[0], (is_any_of(reference, ids) & is_valid)[0]
            classes[index] = self._values_of(of_class, masks, spacing_mm, self.tolerances_mm.get(index))
        return measured, absent

    def _values_of(
        self,
        counts: ClassCounts,
        masks: tuple[Tensor, Tensor] | None,
        spacing_mm: tuple[float, ...],
        tolerance_mm: float | None,
    ) -> dict[str, float]:
        values = {
            name: compute(counts) for name in self.names if (compute := CLASS_METRICS[name].from_counts) is not None
        }
        if masks is not None:
            surfaces, lesions = ([n for n in self.names if CLASS_METRICS[n].kind == k] for k in ("surfaces", "lesions"))
            if surfaces:
                tolerance = self.tolerance_mm if tolerance_mm is None else tolerance_mm
                values |= surface_metrics(
                    *masks, surfaces, spacing_mm=spacing_mm, tolerance_mm=tolerance, subvoxels=self.subvoxels
                )
            if lesions:
                values |= lesion_metrics(*masks, lesions, rule=self.lesions, spacing_mm=spacing_mm)
        return {name: values[name] for name in self.names}

    def of_absent(self, counts: ClassCounts) -> dict[str, float]:
        """Return the metrics of a class that is in neither map of a case; NaN for those undefined without it."""
        empty = torch.zeros((1, 1), dtype=torch.bool)
        return self._values_of(counts, (empty, empty), (1.0, 1.0), None)

    def _classes_of(self, maps: tuple[Tensor, Tensor], case_id: str) -> Iterator[_Counted]:
        known = self.label_ids
        overlap = count_overlap(
            *maps,
            max(_highest_of(*maps, case_id) if known is None else max(known), 1) + 1,
            include_background=True,
            ignore_index=self.ignore_label,
            batched=False,
            check_ids=False,
        )
        columns = (overlap.common.tolist(), overlap.predicted.tolist(), overlap.referenced.tolist())
        for index, numbers in enumerate(zip(*columns, strict=True)):
            is_there = sum(numbers[1:]) > 0 if known is None else index in known
            if is_there and index != self.ignore_label and (index or self.include_background):
                yield index, (index,), numbers

    def _regions_of(self, maps: tuple[Tensor, Tensor], is_valid: Tensor) -> Iterator[_Counted]:
        for place, ids in enumerate(self.regions or (), start=1):
            predicted, referenced = (is_any_of(labels, ids) & is_valid for labels in maps)
            yield place, ids, (int((predicted & referenced).sum()), int(predicted.sum()), int(referenced.sum()))

    def checked(self, case: ComparedCase) -> tuple[Tensor, Tensor]:
        """Return prediction and reference as int64 on one device; raise unless ids are known and grids the same."""
        maps: list[Tensor] = []
        problems: list[str] = []
        known = None if self.label_ids is None else {*self.label_ids}
        if known is not None and self.ignore_label is not None:
            known.add(self.ignore_label)
        for which, given in (("prediction", case.prediction), ("reference", case.reference)):
            labels = plain_tensor(given).detach()
            highest_id(labels, what=case.named(which), ignore_index=self.ignore_label)
            maps.append(labels.long())
            unknown = [] if known is None else [str(label_id) for label_id in ids_in(labels) if label_id not in known]
            if unknown:
                problems.append(f"{case.named(which)} holds the label ids {join_names(unknown)}")
        if problems:
            expected = join_names([str(label_id) for label_id in sorted(known or ())])
            raise UnknownIdsError(f"{'; '.join(problems)}; expected are {expected}: correct the maps, or name the ids")
        prediction, reference = maps
        if prediction.shape != reference.shape:
            raise BadInputError(
                f"{case.case_id}: the prediction has shape {tuple(prediction.shape)}, its reference "
                f"{tuple(reference.shape)}; bring both onto one grid"
            )
        if reference.ndim not in (3, 4) or len(reference) != 1 or not reference.numel():
            raise BadInputError(
                f"{case.case_id}: expected label ids (1, *spatial) with 2 or 3 spatial axes, got shape "
                f"{tuple(reference.shape)}"
            )
        return prediction.to(reference.device), reference


def _value_of(case: ComparedCase, name: str, metric: Metric) -> float:
    value = metric(case.prediction, case.reference)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise BadInputError(f"{name} returned a tensor of shape {tuple(value.shape)}, expected one number for the case")
    try:
        return float(value)
    except (TypeError, ValueError):
        found = "None" if value is None else f"a {type(value).__name__}"
        raise BadInputError(f"{name} returned {found}, expected one number for the case") from None


def _is_placed(tensor: Tensor) -> TypeGuard[MetaTensor]:
    return isinstance(tensor, MetaTensor) and not tensor.meta.get(HAS_NO_GRID, False)


def _highest_of(prediction: Tensor, reference: Tensor, case_id: str) -> int:
    highest = max(int(prediction.max()), int(reference.max()))
    if highest > _HIGHEST_ID:
        raise BadInputError(f"{case_id}: found the label id {highest}; are these label maps? If so, give num_classes")
    return highest


def confusion(counts: ClassCounts) -> dict[str, int]:
    """Count the voxels of one class: in both, in one of them, in neither, predicted, and in the reference."""
    return {
        "TP": counts.common,
        "FP": counts.predicted - counts.common,
        "FN": counts.referenced - counts.common,
        "TN": counts.num_voxels - counts.predicted - counts.referenced + counts.common,
        "n_pred": counts.predicted,
        "n_ref": counts.referenced,
    }
