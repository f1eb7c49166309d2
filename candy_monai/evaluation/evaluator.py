"""Compare predictions with references, wherever they are, by metrics of classes and of the user's own.

One case is in memory at a time. How the numbers are kept and written is in ``candy_monai.evaluation.results``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.cases import SupervisedDataset
from candy_monai.data.io import geometry_of
from candy_monai.data.values import without_metadata
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.evaluation.pairing import Pair, Source, loaded, pair_up
from candy_monai.evaluation.results import SUMMARY_NAMES, EvalCase, EvalResult
from candy_monai.inference.inputs import find_inputs
from candy_monai.inference.predictor import Predictor
from candy_monai.metrics.overlap import count_overlap
from candy_monai.metrics.surface import SURFACE_METRICS, surface_metrics

_HIGHEST_ID = 65_535
_IGNORED = 2

Metric = Callable[[Tensor, Tensor], Tensor | float]
"""Takes a prediction and its reference, as they were given or loaded, to one number for the case."""


class Evaluator:
    """Measures how good predictions are, case by case and class by class.

    A class in neither prediction nor reference has no value (NaN), and means leave it out; one that only one of them
    contains scores 0, or infinity where the metric is a distance. Distances use the spacing of the reference's affine.

    Args:
        metrics: What to measure: ``dice``, ``iou``, ``hd95``, ``assd``, ``surface_dice``, or functions of the user's
            own, by their ``__name__`` or in a mapping from name to function. By default ``dice`` and ``iou``.
        num_classes: Classes, background included. ``None`` takes the ids that occur in any case, 1 where none does, or
            in `predict_and_evaluate` what the predictor says.
        ignore_label: Voxels with this id in the reference count for nothing; the user's own metrics see them.
        include_background: Whether class 0 is measured, too; it takes no part in means over classes.
        regions: Unions of ids to measure instead of single ids, each under its place, counted from 1; `None` takes the
            predictor's in `predict_and_evaluate`.
        tolerance_mm: For ``surface_dice``.

    Raises:
        BadInputError: If a metric is unknown, two have the same name, or an option is out of range.
    """

    def __init__(
        self,
        *metrics: str | Metric | Mapping[str, Metric],
        num_classes: int | None = None,
        ignore_label: int | None = None,
        include_background: bool = False,
        regions: Sequence[Sequence[int]] | None = None,
        tolerance_mm: float = 1.0,
    ) -> None:
        if num_classes is not None and num_classes < 1:
            raise BadInputError(f"num_classes must be 1 or more, got {num_classes}")
        if not tolerance_mm >= 0:
            raise BadInputError(f"tolerance_mm must be 0 or more, got {tolerance_mm}")
        self._names, self._own = _sorted_out(metrics or ("dice", "iou"))
        self._num_classes = num_classes
        self._ignore_label = ignore_label
        self._include_background = include_background
        self._regions = None if regions is None else tuple(tuple(ids) for ids in regions)
        self._tolerance_mm = tolerance_mm

    def evaluate(
        self, predictions: Source, references: Source, *, on_case: Callable[[str], None] | None = None
    ) -> EvalResult:
        """Compare predicted label ids with references.

        Folders, mappings and datasets are matched by name, and so are lists of files that have names in common;
        anything else by position. Nothing is measured before all files were found to match in name and grid.

        Args:
            predictions: A folder, a file, a tensor ``(1, *spatial)`` or ``(B, 1, *spatial)``, a list or a mapping from
                case id of files or tensors ``(1, *spatial)``, or a dataset of label maps alone.
            references: The same.
            on_case: Told each case's id when it is done.

        Raises:
            BadInputError: If there is nothing to compare, or something does not match; every such name is listed.
        """
        pairs = pair_up(predictions, references, names=("prediction", "reference"))
        return self._evaluated(
            map(_loaded, pairs), self._num_classes, self._ignore_label, on_case, regions=self._regions
        )

    def evaluate_dataset(
        self, dataset: SupervisedDataset, *, on_case: Callable[[str], None] | None = None
    ) -> EvalResult:
        """Compare the items of a dataset: the first of each is a prediction, the second its reference."""

        def case(index: int) -> _Case:
            prediction, reference = dataset[index]
            return _Case(case_id=dataset.case_ids[index], prediction=prediction, reference=reference)

        cases = map(case, range(len(dataset.case_ids)))
        return self._evaluated(cases, self._num_classes, self._ignore_label, on_case, regions=self._regions)

    def predict_and_evaluate(
        self,
        images: Source,
        references: Source,
        predictor: Predictor,
        *,
        on_case: Callable[[str], None] | None = None,
    ) -> EvalResult:
        """Predict images and compare the predictions with references, each on its image's own grid.

        Args:
            images: A folder or a file, where ``{case}_{CCCC}`` files belong together; a list, or a mapping from case
                id, of files, of lists of channel files, or of tensors ``(C, *spatial)``; or a dataset of images alone.
            references: As for `evaluate`.
            predictor: Predicts; says how many classes there are and which label is ignored, where this was not said.
            on_case: Told each case's id when it is done.

        Raises:
            BadInputError: As for `evaluate`.
        """
        plan = predictor.plan
        num_classes, ignore_label = self._num_classes, self._ignore_label
        if num_classes is None and predictor.num_classes is not None:
            num_classes = max(2, predictor.num_classes)
        if ignore_label is None and plan is not None:
            ignore_label = plan.ignore_label
        if isinstance(images, str | os.PathLike):
            cases = find_inputs(images, num_channels=predictor.num_channels)
            if problems := [case.problem for case in cases if case.problem is not None]:
                raise BadInputError("\n  - ".join([f"{images}: cannot be predicted as it is:", *problems]))
            images = {case.case_id: case.files for case in cases}
        regions = self._regions
        if regions is None and plan is not None and plan.regions:
            regions = tuple(region.ids for region in plan.regions)
        pairs = pair_up(images, references, names=("image", "reference"))

        def predicted(pair: Pair) -> _Case:
            return _Case(
                case_id=pair.case_id,
                prediction=predictor.predict(pair.first),
                reference=loaded(pair.second, is_label=True),
                files=(None, pair.files[1]),
            )

        return self._evaluated(map(predicted, pairs), num_classes, ignore_label, on_case, regions=regions)

    def _evaluated(
        self,
        cases: Iterable[_Case],
        num_classes: int | None,
        ignore_label: int | None,
        on_case: Callable[[str], None] | None,
        *,
        regions: Sequence[Sequence[int]] | None,
    ) -> EvalResult:
        measured = []
        for case in cases:
            if regions is None or not self._names:
                measured.append(self._measured(case, num_classes, ignore_label))
            else:
                measured.append(self._measured_regions(case, regions, ignore_label))
            if on_case is not None:
                on_case(case.case_id)
        classes = sorted({index for case in measured for index in case.classes}) or [1] * bool(self._names)
        return EvalResult(cases=tuple(self._finished(case, classes) for case in measured))

    def _measured(
        self, case: _Case, num_classes: int | None, ignore_label: int | None, *, with_own: bool = True
    ) -> _Measured:
        values = {name: _number(case, name, metric) for name, metric in self._own.items()} if with_own else {}
        if not self._names:
            return _Measured(case_id=case.case_id, files=case.files, values=values, classes={}, counts={}, num_voxels=0)
        prediction, reference = _label_ids(case)
        overlap = count_overlap(
            prediction,
            reference,
            _num_classes_in(prediction, reference, case.case_id) if num_classes is None else num_classes,
            include_background=True,
            ignore_index=ignore_label,
            batched=False,
        )
        valid = torch.ones_like(reference, dtype=torch.bool) if ignore_label is None else reference != ignore_label
        num_voxels = int(valid.sum())
        columns = (overlap.common.tolist(), overlap.predicted.tolist(), overlap.referenced.tolist())
        classes, counts = {}, {}
        for index, (common, predicted, referenced) in enumerate(zip(*columns, strict=True)):
            is_there = predicted + referenced > 0 or num_classes is not None
            if not is_there or index == ignore_label or (index == 0 and not self._include_background):
                continue
            counts[index] = _counts(common, predicted, referenced, num_voxels)
            total = predicted + referenced
            overlaps = {"dice": _ratio(2 * common, total), "iou": _ratio(common, total - common)}
            metrics = {**overlaps, **self._surfaces(prediction, reference, valid, index, case)}
            classes[index] = {name: metrics[name] for name in self._names}
        return _Measured(
            case_id=case.case_id, files=case.files, values=values, classes=classes, counts=counts, num_voxels=num_voxels
        )

    def _measured_regions(self, case: _Case, regions: Sequence[Sequence[int]], ignore_label: int | None) -> _Measured:
        """Measure each region as the only class of label maps that hold 1 inside of it."""
        prediction, reference = _label_ids(case)
        parts = []
        for ids in regions:
            united = torch.tensor(tuple(ids), device=reference.device)
            inside, expected = (torch.isin(labels, united).long() for labels in (prediction, reference))
            if ignore_label is not None:
                expected = expected.masked_fill(reference == ignore_label, _IGNORED)
            part = replace(case, prediction=_like(inside, case.prediction), reference=_like(expected, case.reference))
            parts.append(self._measured(part, 2, _IGNORED, with_own=False))
        return replace(
            parts[0],
            values={name: _number(case, name, metric) for name, metric in self._own.items()},
            classes={place: part.classes[1] for place, part in enumerate(parts, start=1)},
            counts={place: part.counts[1] for place, part in enumerate(parts, start=1)},
        )

    def _surfaces(
        self, prediction: Tensor, reference: Tensor, valid: Tensor, index: int, case: _Case
    ) -> dict[str, float]:
        wanted = [name for name in self._names if name in SURFACE_METRICS]
        if not wanted:
            return {}
        masks = ((ids == index) & valid for ids in (prediction, reference))
        predicted, referenced = (mask[0] for mask in masks)
        return surface_metrics(
            predicted, referenced, wanted, spacing_mm=case.spacing_mm(), tolerance_mm=self._tolerance_mm
        )

    def _finished(self, measured: _Measured, classes: Sequence[int]) -> EvalCase:
        """Give the case an entry for every class of the evaluation, also for those that it does not have."""
        absent = dict.fromkeys(self._names, math.nan)
        return EvalCase(
            case_id=measured.case_id,
            classes={index: measured.classes.get(index, absent) for index in classes},
            counts={index: measured.counts.get(index, _counts(0, 0, 0, measured.num_voxels)) for index in classes},
            values=measured.values,
            prediction_file=measured.files[0],
            reference_file=measured.files[1],
        )


@dataclass(frozen=True, kw_only=True)
class _Case:
    case_id: str
    prediction: Tensor
    reference: Tensor
    files: tuple[str | None, str | None] = (None, None)

    def spacing_mm(self) -> tuple[float, ...]:
        for tensor in (self.reference, self.prediction):
            if isinstance(tensor, MetaTensor):
                return geometry_of(tensor).spacing_mm
        return (1.0,) * (self.reference.ndim - 1)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A case's numbers, without its tensors."""

    case_id: str
    files: tuple[str | None, str | None]
    values: Mapping[str, float]
    classes: Mapping[int, Mapping[str, float]]
    counts: Mapping[int, Mapping[str, int]]
    num_voxels: int


def _sorted_out(metrics: Sequence[str | Metric | Mapping[str, Metric]]) -> tuple[tuple[str, ...], dict[str, Metric]]:
    """Divide what was asked for into names of ours and functions by name."""
    names: list[str] = []
    own: dict[str, Metric] = {}
    for metric in metrics:
        if isinstance(metric, str):
            if metric not in SUMMARY_NAMES:
                hint = did_you_mean(metric, SUMMARY_NAMES)
                raise BadInputError(f"there is no metric {metric!r}; known are {', '.join(SUMMARY_NAMES)}.{hint}")
            names.append(metric)
            continue
        if not callable(metric) and not isinstance(metric, Mapping):
            raise BadInputError(f"expected the name of a metric, a function or a mapping of functions, got {metric!r}")
        named = metric if isinstance(metric, Mapping) else {getattr(metric, "__name__", type(metric).__name__): metric}
        for name, function in named.items():
            if name in own or name in SUMMARY_NAMES:
                raise BadInputError(
                    f"two metrics are called {name!r}; give functions in a mapping from name to function"
                )
            own[name] = function
    return tuple(dict.fromkeys(names)), own


def _loaded(pair: Pair) -> _Case:
    return _Case(
        case_id=pair.case_id,
        prediction=loaded(pair.first, is_label=True),
        reference=loaded(pair.second, is_label=True),
        files=pair.files,
    )


def _number(case: _Case, name: str, metric: Metric) -> float:
    value = metric(case.prediction, case.reference)
    if isinstance(value, Tensor) and value.numel() != 1:
        raise BadInputError(f"{name} returned a tensor of shape {tuple(value.shape)}, expected one number for the case")
    return float(value)


def _like(ids: Tensor, tensor: Tensor) -> Tensor:
    """Give ids the metadata of the tensor that they were made of, if it has any."""
    return MetaTensor(ids, meta=dict(tensor.meta)) if isinstance(tensor, MetaTensor) else ids


def _label_ids(case: _Case) -> tuple[Tensor, Tensor]:
    """Return prediction and reference as int64 on one device, if they are label maps on one grid."""
    prediction, reference = _ids(case, "prediction"), _ids(case, "reference")
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


def _ids(case: _Case, which: str) -> Tensor:
    ids = without_metadata(getattr(case, which)).detach()
    if ids.is_floating_point() and not torch.equal(ids, ids.round()):
        raise BadInputError(f"{case.case_id}: the {which} holds values that are not whole numbers, expected label ids")
    return ids.long()


def _num_classes_in(prediction: Tensor, reference: Tensor, case_id: str) -> int:
    highest = max(1, int(prediction.max()), int(reference.max()))
    if highest > _HIGHEST_ID:
        raise BadInputError(f"{case_id}: found the label id {highest}; are these label maps? If so, give num_classes")
    return highest + 1


def _counts(common: int, predicted: int, referenced: int, num_voxels: int) -> dict[str, int]:
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
