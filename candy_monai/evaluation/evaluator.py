"""Compare predictions with references, wherever they are, by metrics of classes and of the user's own.

One case is in memory at a time. How the numbers are kept and written is in ``candy_monai.evaluation.results``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from candy_monai.data.cases import SupervisedDataset
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.evaluation.measuring import ComparedCase, Measure, MeasuredCase, Metric, confusion
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
        names, own = _sorted_out(metrics or ("dice", "iou"))
        self._measure = Measure(
            names=names,
            own=own,
            num_classes=num_classes,
            ignore_label=ignore_label,
            include_background=include_background,
            regions=None if regions is None else tuple(tuple(ids) for ids in regions),
            tolerance_mm=tolerance_mm,
        )

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
        return _evaluated(map(_loaded, pairs), self._measure, on_case)

    def evaluate_dataset(
        self, dataset: SupervisedDataset, *, on_case: Callable[[str], None] | None = None
    ) -> EvalResult:
        """Compare the items of a dataset: the first of each is a prediction, the second its reference."""

        def case(index: int) -> ComparedCase:
            prediction, reference = dataset[index]
            return ComparedCase(case_id=dataset.case_ids[index], prediction=prediction, reference=reference)

        cases = map(case, range(len(dataset.case_ids)))
        return _evaluated(cases, self._measure, on_case)

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
        if isinstance(images, str | os.PathLike):
            cases = find_inputs(images, channels=predictor.channels)
            if problems := [case.problem for case in cases if case.problem is not None]:
                raise BadInputError("\n  - ".join([f"{images}: cannot be predicted as it is:", *problems]))
            images = {case.case_id: case.files for case in cases}
        pairs = pair_up(images, references, names=("image", "reference"))

        def predicted(pair: Pair) -> ComparedCase:
            return ComparedCase(
                case_id=pair.case_id,
                prediction=predictor.predict(pair.first),
                reference=loaded(pair.second, is_label=True),
                files=(None, pair.files[1]),
            )

        return _evaluated(map(predicted, pairs), _completed(self._measure, predictor), on_case)


def _evaluated(cases: Iterable[ComparedCase], measure: Measure, on_case: Callable[[str], None] | None) -> EvalResult:
    measured = []
    for case in cases:
        measured.append(measure(case))
        if on_case is not None:
            on_case(case.case_id)
    classes = sorted({index for case in measured for index in case.classes}) or [1] * bool(measure.names)
    return EvalResult(cases=tuple(_finished(case, classes, measure.names) for case in measured))


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
    if measure.num_classes is None and predictor.num_classes is not None:
        measure = replace(measure, num_classes=max(2, predictor.num_classes))
    plan = predictor.plan
    if plan is not None and measure.ignore_label is None:
        measure = replace(measure, ignore_label=plan.ignore_label)
    if plan is not None and measure.regions is None and plan.regions:
        measure = replace(measure, regions=tuple(tuple(region.ids) for region in plan.regions))
    return measure


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
