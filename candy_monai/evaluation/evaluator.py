"""Compare predictions with references, wherever they are, by metrics of classes and of the user's own.

One case is in memory at a time. How the numbers are kept and written is in ``candy_monai.evaluation.results``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.datasets.bases import SupervisedDataset
from candy_monai.data.values import without_metadata
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.evaluation.measuring import ComparedCase, Measure, MeasuredCase, Metric, UnknownIdsError, confusion
from candy_monai.evaluation.pairing import Pair, Source, loaded, pair_up
from candy_monai.evaluation.results import SUMMARY_NAMES, EvalCase, EvalResult
from candy_monai.inference.found import find_inputs
from candy_monai.inference.predictor import Predictor


class Evaluator:
    """Measures how good predictions are, case by case and class by class.

    A class in neither prediction nor reference has no value (NaN), and means leave it out; one that only one of them
    contains scores 0, or infinity where the metric is a distance. Distances use the spacing of the reference's affine.

    Args:
        metrics: What to measure: ``dice``, ``iou``, ``hd95``, ``assd``, ``surface_dice``, or functions of the user's
            own, by their ``__name__`` or in a mapping from name to function. By default ``dice`` and ``iou``.
        num_classes: Classes, background included; ids from there on are refused. ``None`` takes the ids of
            ``class_names``, without these the ids that occur in any case, 1 where none does, or in
            `predict_and_evaluate` what the predictor says.
        class_names: Names by id, or in order from the background; ids without a name are refused.
        ignore_label: Voxels with this id in the reference count for nothing; the user's own metrics see them.
        include_background: Whether class 0 is measured, too; it takes no part in means over classes.
        regions: Unions of ids to measure instead of single ids, each under its place, counted from 1; by name, or
            without names. `None` takes the predictor's in `predict_and_evaluate`.
        tolerance_mm: For ``surface_dice``.

    Raises:
        BadInputError: If a metric is unknown, two have the same name, or an option is out of range.
    """

    def __init__(
        self,
        *metrics: str | Metric | Mapping[str, Metric],
        num_classes: int | None = None,
        class_names: Mapping[int, str] | Sequence[str] | None = None,
        ignore_label: int | None = None,
        include_background: bool = False,
        regions: Sequence[Sequence[int]] | Mapping[str, Sequence[int] | int] | None = None,
        tolerance_mm: float = 1.0,
    ) -> None:
        if num_classes is not None and num_classes < 1:
            raise BadInputError(f"num_classes must be 1 or more, got {num_classes}")
        if not tolerance_mm >= 0:
            raise BadInputError(f"tolerance_mm must be 0 or more, got {tolerance_mm}")
        names, own = _sorted_out(metrics or ("dice", "iou"))
        classes = _names_by_id(class_names, num_classes)
        self._measure = Measure(
            names=names,
            own=own,
            label_ids=_known_ids(classes, num_classes),
            ignore_label=ignore_label,
            include_background=include_background,
            regions=None if regions is None else _unions(regions),
            tolerance_mm=tolerance_mm,
        )
        self._class_names = _region_names(regions) if regions is not None else classes

    def evaluate(
        self,
        predictions: Source,
        references: Source,
        *,
        common: bool = False,
        on_case: Callable[[str], None] | None = None,
    ) -> EvalResult:
        """Compare predicted label ids with references.

        Folders, mappings and datasets are matched by name, and so are lists of files that have names in common;
        anything else by position. Nothing is measured before all files were found to match in name and grid. A
        prediction whose axes run another way is turned to its reference. Of a folder of predictions, the probabilities
        that ``predict --probabilities`` wrote are no cases, nor are files of other formats that match no reference.

        Args:
            predictions: A folder, a file, a tensor ``(1, *spatial)`` or ``(B, 1, *spatial)``, a nibabel image, a list
                or a mapping from case id of files, nibabel images or tensors ``(1, *spatial)``, or a dataset of label
                maps alone.
            references: The same.
            common: Compare the cases that both have, and name the others in the result's ``left_out``; by default a
                case that only one of them has is an error.
            on_case: Told each case's id when it is done.

        Raises:
            BadInputError: If there is nothing to compare, or something does not match; every such name is listed.
        """
        pairs = pair_up(predictions, references, names=("prediction", "reference"), common=common)
        result = _evaluated(map(_loaded, pairs), self._measure, self._class_names, on_case)
        return replace(result, left_out=pairs.left_out, passed_over=pairs.passed_over)

    def evaluate_dataset(
        self, dataset: SupervisedDataset, *, on_case: Callable[[str], None] | None = None
    ) -> EvalResult:
        """Compare the items of a dataset: the first of each is a prediction, the second its reference."""

        def case(index: int) -> ComparedCase:
            prediction, reference = dataset[index]
            return ComparedCase(case_id=dataset.case_ids[index], prediction=prediction, reference=reference)

        cases = map(case, range(len(dataset.case_ids)))
        return _evaluated(cases, self._measure, self._class_names, on_case)

    def predict_and_evaluate(
        self,
        images: Source,
        references: Source,
        predictor: Predictor,
        *,
        common: bool = False,
        on_case: Callable[[str], None] | None = None,
    ) -> EvalResult:
        """Predict images and compare the predictions with references, each on its image's own grid.

        Args:
            images: A folder or a file, where ``{case}_{CCCC}`` files belong together; a list, or a mapping from case
                id, of files, of lists of channel files, or of tensors ``(C, *spatial)``; or a dataset of images alone.
            references: As for `evaluate`.
            predictor: Predicts; says how many classes there are and which label is ignored, where this was not said.
            common: As for `evaluate`.
            on_case: Told each case's id when it is done.

        Raises:
            BadInputError: As for `evaluate`.
        """
        if isinstance(images, str | os.PathLike):
            cases = find_inputs(images, channels=predictor.channels)
            if problems := [case.problem for case in cases if case.problem is not None]:
                raise BadInputError("\n  - ".join([f"{images}: cannot be predicted as it is:", *problems]))
            images = {case.case_id: case.files for case in cases}
        pairs = pair_up(images, references, names=("image", "reference"), common=common)

        def predicted(pair: Pair) -> ComparedCase:
            prediction: Tensor = predictor.predict(pair.first)
            has_no_grid = isinstance(pair.first, Tensor) and not isinstance(pair.first, MetaTensor)
            return ComparedCase(
                case_id=pair.case_id,
                prediction=without_metadata(prediction) if has_no_grid else prediction,
                reference=loaded(pair.second, is_label=True),
                files=(None, pair.files[1]),
            )

        measure = _completed(self._measure, predictor)
        names = self._class_names or _predicted_names(predictor, measure)
        return replace(_evaluated(map(predicted, pairs), measure, names, on_case), left_out=pairs.left_out)


def _evaluated(
    cases: Iterable[ComparedCase],
    measure: Measure,
    class_names: Mapping[int, str],
    on_case: Callable[[str], None] | None,
) -> EvalResult:
    measured: list[MeasuredCase] = []
    problems: list[str] = []
    for case in cases:
        try:
            placed = case.on_one_grid()
            if problems:
                measure.checked(placed)  # to name all of them; there will be nothing to measure
            else:
                measured.append(measure(placed))
        except UnknownIdsError as error:
            problems.append(str(error))
        if on_case is not None:
            on_case(case.case_id)
    if problems:
        raise BadInputError("\n".join(problems))
    classes = sorted({index for case in measured for index in case.classes}) or [1] * bool(measure.names)
    finished = tuple(_finished(case, classes, measure.names) for case in measured)
    return EvalResult(
        cases=finished, class_names={index: class_names[index] for index in classes if index in class_names}
    )


def _finished(measured: MeasuredCase, classes: Sequence[int], names: Sequence[str]) -> EvalCase:
    """Give a case an entry for every class of the evaluation, also for those that it does not have."""
    absent = dict.fromkeys(names, math.nan)
    return EvalCase(
        case_id=measured.case_id,
        classes={index: measured.classes.get(index, absent) for index in classes},
        counts={index: measured.counts.get(index, confusion(0, 0, 0, measured.num_voxels)) for index in classes},
        values=measured.values,
        prediction_file=measured.files[0],
        reference_file=measured.files[1],
    )


def _completed(measure: Measure, predictor: Predictor) -> Measure:
    """Take from a predictor what was not said."""
    plan = predictor.plan
    if plan is not None and measure.ignore_label is None:
        measure = replace(measure, ignore_label=plan.ignore_label)
    if plan is not None and measure.regions is None and plan.regions:
        measure = replace(measure, regions=tuple(tuple(region.ids) for region in plan.regions))
    if measure.label_ids is None and predictor.num_classes is not None:
        known = set(range(max(2, predictor.num_classes)))
        if plan is not None and plan.regions:  # then there are as many channels as regions, and not as ids
            known = {0, *(label_id for region in plan.regions for label_id in (*region.ids, region.paints))}
        measure = replace(measure, label_ids=tuple(sorted(known)))
    return measure


def _predicted_names(predictor: Predictor, measure: Measure) -> dict[int, str]:
    """Return the names of a plan's classes or regions by the ids or places that they are measured under."""
    plan = predictor.plan
    if plan is None:
        return {}
    if measure.regions is None:
        return dict(enumerate(plan.class_names)) if len(plan.class_names) > 1 else {}
    by_ids = {tuple(region.ids): region.name for region in plan.regions}
    return {place: by_ids[ids] for place, ids in enumerate(measure.regions, start=1) if ids in by_ids}


def _names_by_id(class_names: Mapping[int, str] | Sequence[str] | None, num_classes: int | None) -> dict[int, str]:
    names = dict(class_names) if isinstance(class_names, Mapping) else dict(enumerate(class_names or ()))
    if num_classes is not None and any(index not in range(max(2, num_classes)) for index in names):
        raise BadInputError(
            f"num_classes={num_classes} and class_names of the ids {sorted(names)} contradict each other"
        )
    return names


def _known_ids(names: Mapping[int, str], num_classes: int | None) -> tuple[int, ...] | None:
    if num_classes is not None:
        return tuple(range(max(2, num_classes)))
    return tuple(sorted({0, *names})) if names else None


def _unions(regions: Sequence[Sequence[int]] | Mapping[str, Sequence[int] | int]) -> tuple[tuple[int, ...], ...]:
    unions = regions.values() if isinstance(regions, Mapping) else regions
    return tuple((ids,) if isinstance(ids, int) else tuple(ids) for ids in unions)


def _region_names(regions: Sequence[Sequence[int]] | Mapping[str, Sequence[int] | int]) -> dict[int, str]:
    return dict(enumerate(regions, start=1)) if isinstance(regions, Mapping) else {}


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


def _loaded(pair: Pair) -> ComparedCase:
    return ComparedCase(
        case_id=pair.case_id,
        prediction=loaded(pair.first, is_label=True),
        reference=loaded(pair.second, is_label=True),
        files=pair.files,
    )
