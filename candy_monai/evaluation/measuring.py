"""Measure one case: a prediction against its reference, by metrics of classes and of the user's own. Reads no files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeGuard

import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.images.alignment import HAS_NO_GRID, aligned
from candy_monai.data.images.reading import geometry_of
from candy_monai.data.values import named, without_metadata
from candy_monai.errors import BadInputError
from candy_monai.label_ids import highest_id, ids_in
from candy_monai.metrics.overlap import count_overlap, is_any_of
from candy_monai.metrics.surface import SURFACE_METRICS, surface_metrics

_HIGHEST_ID = 65_535
_IGNORED = 2

Which = Literal["prediction", "reference"]
_BOTH: tuple[Which, Which] = ("prediction", "reference")

Metric = Callable[[Tensor, Tensor], Tensor | float]
"""Takes a prediction and its reference, as they were given or loaded, to one number for the case."""


class UnknownIdsError(BadInputError):
    """A label map holds ids that are of no class."""


@dataclass(frozen=True, kw_only=True)
class ComparedCase:
    """A prediction ``(1, *spatial)``, its reference, and the files that they came from."""

    case_id: str
    prediction: Tensor
    reference: Tensor
    files: tuple[str | None, str | None] = (None, None)

    def spacing_mm(self) -> tuple[float, ...]:
        """Return the spacing of the reference, or of the prediction where that has none; 1 mm where neither has."""
        for tensor in (self.reference, self.prediction):
            if _is_placed(tensor):
                return geometry_of(tensor).spacing_mm
        return (1.0,) * (self.reference.ndim - 1)

    def named(self, which: Which) -> str:
        """Return what to call the prediction or the reference in a message: its file, if it has one, and its case."""
        file = self.files[which == "reference"]
        return f"{self.case_id}: the {which}" + ("" if file is None else f" {file}")

    def on_one_grid(self) -> ComparedCase:
        """Return the case with its prediction on the grid of the reference; tensors without a grid are taken as given.

        Raises:
            BadInputError: If the grids cover other places; says what of each differs.
        """
        prediction, reference = self.prediction, self.reference
        if not _is_placed(prediction) or not _is_placed(reference):
            return self
        if prediction.ndim not in (3, 4) or reference.ndim not in (3, 4):
            return self
        values = prediction.as_tensor()
        grids = geometry_of(prediction), geometry_of(reference)
        turned = aligned(values, *grids, name=self.named("prediction"), against="the reference has")
        if turned is values:
            return self
        return replace(self, prediction=MetaTensor(turned, meta=dict(reference.meta)))


@dataclass(frozen=True, kw_only=True)
class MeasuredCase:
    """A case's numbers, without its tensors.

    Attributes:
        case_id: The case.
        files: Where the prediction and the reference came from.
        values: The user's metrics, by name.
        classes: Metrics by class that the case has, or by region.
        counts: The voxels behind them, as `confusion` counts them.
        num_voxels: Voxels that count.
    """

    case_id: str
    files: tuple[str | None, str | None]
    values: Mapping[str, float] = field(default_factory=dict)
    classes: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    num_voxels: int = 0


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What to measure of a case, and how.

    Attributes:
        names: Metrics of classes.
        own: The user's metrics, by name.
        label_ids: The ids of the classes, the background's among them; others are refused. None for those that occur.
        ignore_label: Voxels with this id in the reference count for nothing.
        include_background: Whether class 0 is measured, too.
        regions: Unions of ids to measure instead of single ids.
        tolerance_mm: For ``surface_dice``.
    """

    names: tuple[str, ...]
    own: Mapping[str, Metric]
    label_ids: tuple[int, ...] | None
    ignore_label: int | None
    include_background: bool
    regions: tuple[tuple[int, ...], ...] | None
    tolerance_mm: float

    def __call__(self, case: ComparedCase) -> MeasuredCase:
        """Measure a case.

        Raises:
            BadInputError: If it is no pair of label maps on one grid, one holds an id that is of no class, or a metric
                of the user's returns no number.
        """
        values = {name: _number(case, name, metric) for name, metric in self.own.items()}
        if not self.names:
            return MeasuredCase(case_id=case.case_id, files=case.files, values=values)
        measured = self._regions_of(case, self.regions) if self.regions else self._classes_of(case)
        return replace(measured, values=values)

    def _classes_of(self, case: ComparedCase) -> MeasuredCase:
        prediction, reference = self.checked(case)
        known = self.label_ids
        overlap = count_overlap(
            prediction,
            reference,
            max(_highest_of(prediction, reference, case.case_id) if known is None else max(known), 1) + 1,
            include_background=True,
            ignore_index=self.ignore_label,
            batched=False,
            check_ids=False,
        )
        is_valid = torch.ones_like(reference, dtype=torch.bool)
        if self.ignore_label is not None:
            is_valid = reference != self.ignore_label
        num_voxels = int(is_valid.sum())
        columns = (overlap.common.tolist(), overlap.predicted.tolist(), overlap.referenced.tolist())
        classes, counts = {}, {}
        for index, (common, predicted, referenced) in enumerate(zip(*columns, strict=True)):
            is_there = predicted + referenced > 0 if known is None else index in known
            if not is_there or index == self.ignore_label or (index == 0 and not self.include_background):
                continue
            counts[index] = confusion(common, predicted, referenced, num_voxels)
            total = predicted + referenced
            overlaps = {"dice": _ratio(2 * common, total), "iou": _ratio(common, total - common)}
            metrics = {**overlaps, **self._surfaces(prediction, reference, is_valid, index, case)}
            classes[index] = {name: metrics[name] for name in self.names}
        return MeasuredCase(
            case_id=case.case_id, files=case.files, classes=classes, counts=counts, num_voxels=num_voxels
        )

    def _regions_of(self, case: ComparedCase, regions: Sequence[Sequence[int]]) -> MeasuredCase:
        """Measure each region as the only class of label maps that hold 1 inside of it."""
        prediction, reference = self.checked(case)
        as_classes = replace(self, label_ids=(0, 1), ignore_label=_IGNORED, include_background=False)
        parts = []
        for ids in regions:
            inside, expected = (is_any_of(labels, ids).long() for labels in (prediction, reference))
            if self.ignore_label is not None:
                expected = expected.masked_fill(reference == self.ignore_label, _IGNORED)
            part = replace(case, prediction=_like(inside, case.prediction), reference=_like(expected, case.reference))
            parts.append(as_classes._classes_of(part))
        return replace(
            parts[0],
            classes={place: part.classes[1] for place, part in enumerate(parts, start=1)},
            counts={place: part.counts[1] for place, part in enumerate(parts, start=1)},
        )

    def checked(self, case: ComparedCase) -> tuple[Tensor, Tensor]:
        """Return prediction and reference as int64 on one device, if they are label maps of known ids on one grid.

        Raises:
            BadInputError: If they are not.
        """
        prediction, reference = (_ids(case, which, self.ignore_label) for which in _BOTH)
        if self.label_ids is not None:
            known = {*self.label_ids, self.ignore_label}
            problems = []
            for which, ids in zip(_BOTH, (prediction, reference), strict=True):
                if unknown := [str(label_id) for label_id in ids_in(ids) if label_id not in known]:
                    problems.append(f"{case.named(which)} holds the label ids {named(unknown)}")
            if problems:
                expected = named([str(label_id) for label_id in sorted(id_ for id_ in known if id_ is not None)])
                raise UnknownIdsError(
                    f"{'; '.join(problems)}; expected are {expected}: correct the maps, or name the ids"
                )
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

    def _surfaces(
        self, prediction: Tensor, reference: Tensor, is_valid: Tensor, index: int, case: ComparedCase
    ) -> dict[str, float]:
        wanted = [name for name in self.names if name in SURFACE_METRICS]
        if not wanted:
            return {}
        masks = ((ids == index) & is_valid for ids in (prediction, reference))
        predicted, referenced = (mask[0] for mask in masks)
        return surface_metrics(
            predicted, referenced, wanted, spacing_mm=case.spacing_mm(), tolerance_mm=self.tolerance_mm
        )


def _number(case: ComparedCase, name: str, metric: Metric) -> float:
    value = metric(case.prediction, case.reference)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise BadInputError(f"{name} returned a tensor of shape {tuple(value.shape)}, expected one number for the case")
    return float(value)


def _is_placed(tensor: Tensor) -> TypeGuard[MetaTensor]:
    return isinstance(tensor, MetaTensor) and not tensor.meta.get(HAS_NO_GRID, False)


def _like(ids: Tensor, tensor: Tensor) -> Tensor:
    """Give ids the metadata of the tensor that they were made of, if it has any."""
    return MetaTensor(ids, meta=dict(tensor.meta)) if isinstance(tensor, MetaTensor) else ids


def _ids(case: ComparedCase, which: Which, ignore_label: int | None) -> Tensor:
    ids = without_metadata(case.prediction if which == "prediction" else case.reference).detach()
    highest_id(ids, what=case.named(which), ignore_index=ignore_label)
    return ids.long()


def _highest_of(prediction: Tensor, reference: Tensor, case_id: str) -> int:
    highest = max(int(prediction.max()), int(reference.max()))
    if highest > _HIGHEST_ID:
        raise BadInputError(f"{case_id}: found the label id {highest}; are these label maps? If so, give num_classes")
    return highest


def confusion(common: int, predicted: int, referenced: int, num_voxels: int) -> dict[str, int]:
    """Count the voxels of one class: in both, in one of them, in neither, predicted, and in the reference."""
    return {
        "TP": common,
        "FP": predicted - common,
        "FN": referenced - common,
        "TN": num_voxels - predicted - referenced + common,
        "n_pred": predicted,
        "n_ref": referenced,
    }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
