"""Compare predictions with references from any source, with one case in memory at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.datasets.bases import SupervisedDataset
from candy_monai.data.values import label_id_of, plain_tensor
from candy_monai.data.workers import in_order, measuring_workers
from candy_monai.errors import BadInputError
from candy_monai.evaluation.class_metrics import CLASS_METRICS, ClassCounts, definitions_of, metrics_named
from candy_monai.evaluation.measuring import ComparedCase, Measure, Metric, UnknownIdsError, confusion
from candy_monai.evaluation.pairing import Pair, Source, loaded, pair_up
from candy_monai.evaluation.results import EvalCase, EvalResult
from candy_monai.inference.inputs import find_inputs, is_path
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.prediction import Prediction
from candy_monai.metrics.lesions import LesionRule


class Evaluator:
    """Evaluates predictions case by case and class by class.

    A class in neither prediction nor reference has no value (NaN) and is left out of means; a class in only one of them
    scores 0, or infinity if the metric is a distance. Specificity, volumes and the number of false positives are
    defined without the class; ratios with a denominator of 0 are NaN. Distances use the spacing of the reference's
    affine.

    Args:
        metrics: The metrics: ``dice``, ``iou``, ``precision``, ``recall``, ``specificity`` (the group ``overlap``);
            ``hd95``, ``hd100``, ``assd``, ``masd``, ``surface_dice`` (``surfaces``); ``volume_ml``,
            ``reference_volume_ml``, ``volume_difference_ml``, ``volume_error_ml`` (``volumes``); ``lesion_f1``,
            ``lesion_recall``, ``lesion_precision``, ``lesion_false_positives``, ``lesion_dice``,
            ``lesion_matched_dice`` (``lesions``); ``all``; or custom functions, by their ``__name__`` or in a mapping
            from name to function. By default ``dice`` and ``iou``. The result's ``definitions`` define each of them.
        num_classes: The number of classes with background; higher ids are refused. ``None`` uses the ids of
            ``class_names``, or else the ids that occur in any case, 1 where none does, or in `predict_and_evaluate` the
            predictor's number.
        class_names: Names by id, or in order from the background; ids without a name are refused.
        ignore_label: Voxels with this id in the reference are ignored, except by custom metrics.
        include_background: Whether class 0 is measured, too; it is not included in means over classes.
        regions: Unions of ids to measure instead of single ids, numbered from 1; by name, or without names. `None` uses
            the predictor's in `predict_and_evaluate`.
        tolerance_mm: The tolerance of ``surface_dice``, for all classes or by the id or name of a class, 1 for the
            others. Regions are given by their name or number.
        lesions: The rule that defines and matches lesions, a `LesionRule` or its text (``panoptica``, ``brats``).
        subvoxels: Whether surfaces consist of elements between voxels, weighted by their areas, as in DeepMind's
            ``surface-distance``, instead of the outermost voxels, as in MONAI.

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
        tolerance_mm: float | Mapping[int | str, float] = 1.0,
        lesions: LesionRule | str = "panoptica",
        subvoxels: bool = False,
    ) -> None:
        if num_classes is not None and num_classes < 1:
            raise BadInputError(f"num_classes must be 1 or more, got {num_classes}")
        by_class, of_others = (tolerance_mm, 1.0) if isinstance(tolerance_mm, Mapping) else ({}, tolerance_mm)
        for tolerance in (of_others, *by_class.values()):
            if not 0 <= tolerance < math.inf:
                raise BadInputError(f"tolerance_mm must be 0 or more, got {tolerance}")
        names, own = _sorted_out(metrics or ("dice", "iou"))
        named = class_names if isinstance(class_names, Mapping) else dict(enumerate(class_names or ()))
        classes = {_as_id(index, "class_names"): name for index, name in named.items()}
        label_ids = sorted({0, *classes}) if classes else None
        if num_classes is not None:
            label_ids = list(range(max(2, num_classes)))
            if not classes.keys() <= set(label_ids):
                raise BadInputError(
                    f"num_classes={num_classes} and class_names of the ids {sorted(classes)} contradict each other"
                )
        if regions is not None:
            classes = dict(enumerate(regions, start=1)) if isinstance(regions, Mapping) else {}
        self._class_names = classes
        unions = regions.values() if isinstance(regions, Mapping) else regions
        self._measure = Measure(
            names=names,
            own=own,
            label_ids=None if label_ids is None else tuple(label_ids),
            ignore_label=ignore_label,
            include_background=include_background,
            regions=None if unions is None else tuple(map(_as_region, unions)),
            tolerance_mm=of_others,
            tolerances_mm=_by_index(by_class, classes),
            lesions=LesionRule.of(lesions) if isinstance(lesions, str) else lesions,
            subvoxels=subvoxels,
        )

    def evaluate(
        self,
        predictions: Source,
        references: Source,
        *,
        common: bool = False,
        jobs: int | None = 1,
        on_case: Callable[[str], None] | None = None,
    ) -> EvalResult:
        """Compare predicted label ids with references.

        Folders, mappings and datasets are matched by name, and so are lists of files with names in common; other inputs
        by position. Names and grids of all files are checked before any case is measured. A prediction with other axis
        directions is reoriented to its reference. In a folder of predictions, files of other formats that match no
        reference are not cases, nor are probabilities from ``predict --probabilities``.

        Args:
            predictions: A folder, a file, a tensor ``(1, *spatial)`` or ``(B, 1, *spatial)``, a nibabel image, a list
                or a mapping from case id of files, nibabel images or tensors ``(1, *spatial)``, or a dataset with only
                label maps.
            references: The same.
            common: Compare the cases that both have, and list the others in the result's ``left_out``; by default a
                case that only one of them has is an error.
            jobs: The number of cases in memory that are measured in parallel, in threads; custom metrics must support
                that. None for one per processor, fewer if memory is short.
            on_case: Called with each case's id when it is finished.

        Raises:
            BadInputError: If there is nothing to compare, or names do not match; every such name is listed.
        """
        if jobs is not None and jobs < 1:
            raise BadInputError(f"jobs must be at least 1, got {jobs}")
        found = pair_up(predictions, references, names=("prediction", "reference"), common=common)
        pairs: Iterable[Pair] = found.pairs
        if jobs is None and is_path(references):
            pairs = list(pairs)
            jobs = measuring_workers([Path(file) for pair in pairs if (file := pair.files[1])])

        def case_of(pair: Pair) -> ComparedCase:
            prediction, reference = (loaded(entry) for entry in (pair.first, pair.second))
            return ComparedCase(case_id=pair.case_id, prediction=prediction, reference=reference, files=pair.files)

        cases = (partial(case_of, pair) for pair in pairs)
        result = _evaluated(cases, self._measure, self._class_names, on_case, jobs=jobs or 1)
        return replace(result, left_out=found.left_out, passed_over=found.passed_over)

    def evaluate_dataset(
        self, dataset: SupervisedDataset, *, on_case: Callable[[str], None] | None = None
    ) -> EvalResult:
        """Compare the items of a dataset: the first of each is a prediction, the second its reference."""
        items = ((case_id, *dataset[index]) for index, case_id in enumerate(dataset.case_ids))
        cases = (
            partial(ComparedCase, case_id=case_id, prediction=prediction, reference=reference)
            for case_id, prediction, reference in items
        )
        return _evaluated(cases, self._measure, self._class_names, on_case)

    def predict_and_evaluate(
        self,
        images: Source,
        references: Source,
        predictor: NetworkPredictor,
        *,
        common: bool = False,
        on_case: Callable[[str], None] | None = None,
        on_prediction: Callable[[str, Prediction], None] | None = None,
    ) -> EvalResult:
        """Predict images and compare the predictions with references, each on its image's own grid.

        Args:
            images: A folder or a file, where ``{case}_{CCCC}`` files belong together; a list, or a mapping from case
                id, of files, of lists of channel files, or of tensors ``(C, *spatial)``; or a dataset with only images.
            references: As for `evaluate`.
            predictor: The predictor, which also provides the number of classes and the ignored label if not given.
            common: As for `evaluate`.
            on_case: Called with each case's id when it is finished.
            on_prediction: Called with each case's id and prediction, before it is measured.

        Raises:
            BadInputError: As for `evaluate`.
        """
        if isinstance(images, str | os.PathLike):
            cases = find_inputs(images, channels=predictor.channels)
            if problems := [case.problem for case in cases if case.problem is not None]:
                raise BadInputError("\n  - ".join([f"{images}: cannot be predicted as it is:", *problems]))
            images = {case.case_id: case.files for case in cases}
        found = pair_up(images, references, names=("image", "reference"), common=common)

        def predicted(pair: Pair) -> ComparedCase:
            made = predictor.predict_image(pair.first)
            if on_prediction is not None:
                on_prediction(pair.case_id, made)
            prediction: Tensor = made.labels
            has_no_grid = isinstance(pair.first, Tensor) and not isinstance(pair.first, MetaTensor)
            return ComparedCase(
                case_id=pair.case_id,
                prediction=plain_tensor(prediction) if has_no_grid else prediction,
                reference=loaded(pair.second),
                files=(None, pair.files[1]),
            )

        measure, names = _completed(self._measure, self._class_names, predictor)
        result = _evaluated((partial(predicted, pair) for pair in found.pairs), measure, names, on_case)
        return replace(result, left_out=found.left_out)


def _evaluated(
    cases: Iterable[Callable[[], ComparedCase]],
    measure: Measure,
    class_names: Mapping[int, str],
    on_case: Callable[[str], None] | None,
    *,
    jobs: int = 1,
) -> EvalResult:
    measured: list[tuple[EvalCase, ClassCounts]] = []
    problems: list[str] = []

    def measured_case(load: Callable[[], ComparedCase]) -> tuple[str, tuple[EvalCase, ClassCounts] | None, str | None]:
        case = load()
        try:
            placed = case.on_one_grid()
            if problems:
                measure.checked(placed)  # to report all errors; no more cases are measured
                return case.case_id, None, None
            return case.case_id, measure(placed), None
        except UnknownIdsError as error:
            return case.case_id, None, str(error)

    for case_id, found, problem in in_order((partial(measured_case, load) for load in cases), jobs):
        measured += [] if found is None else [found]
        problems += [] if problem is None else [problem]
        if on_case is not None:
            on_case(case_id)
    if problems:
        raise BadInputError("\n".join(problems))
    classes = sorted({index for case, _ in measured for index in case.classes}) or [1] * bool(measure.names)
    finished = tuple(_with_classes(case, classes, absent, measure) for case, absent in measured)
    names = {index: class_names[index] for index in classes if index in class_names}
    return EvalResult(cases=finished, class_names=names, definitions=_definitions(measure, names))


def _with_classes(case: EvalCase, classes: Sequence[int], absent: ClassCounts, measure: Measure) -> EvalCase:
    """Return a case with an entry for every class of the evaluation, including those that it does not contain."""
    if not set(classes) - case.classes.keys():
        return case
    values, counts = measure.of_absent(absent), confusion(absent)
    return replace(
        case,
        classes={index: case.classes.get(index) or dict(values) for index in classes},
        counts={index: case.counts.get(index) or dict(counts) for index in classes},
    )


def _definitions(measure: Measure, class_names: Mapping[int, str]) -> dict[str, str]:
    tolerance = f"{measure.tolerance_mm:g} mm"
    if measure.tolerances_mm:
        own = (f"{mm:g} mm for {class_names.get(i, f'class {i}')}" for i, mm in measure.tolerances_mm.items())
        tolerance = f"{', '.join(own)}, {tolerance} for the others"
    return definitions_of(
        measure.names,
        tolerance=tolerance,
        lesions=str(measure.lesions),
        subvoxels=measure.subvoxels,
        ignore_label=measure.ignore_label,
    )


def _as_id(value: object, option: str) -> int:
    if (found := label_id_of(value)) is None:
        raise BadInputError(f"{option}: {value!r} is not a label id, expected a whole number of at least 0")
    return found


def _as_region(ids: Sequence[int] | int) -> tuple[int, ...]:
    union = tuple(_as_id(label_id, "regions") for label_id in ([ids] if isinstance(ids, int | str) else ids))
    if not union:
        raise BadInputError("regions: found a region without label ids, expected one or more")
    return union


def _by_index(tolerances: Mapping[int | str, float], class_names: Mapping[int, str]) -> dict[int, float]:
    """Return tolerances by class id or region number, if some were given by name."""
    by_name = {name: index for index, name in class_names.items()}
    found: dict[int, float] = {}
    for key, tolerance in tolerances.items():
        index = key if isinstance(key, int) else by_name.get(key, int(key) if key.isdecimal() else None)
        if index is None or (class_names and index not in class_names):
            known = ", ".join(f"{i} {name}" for i, name in class_names.items()) or "none by name: give the class's id"
            raise BadInputError(f"tolerance_mm: there is no class {key!r}; there are {known}")
        found[index] = tolerance
    return found


def _completed(
    measure: Measure, class_names: Mapping[int, str], predictor: NetworkPredictor
) -> tuple[Measure, Mapping[int, str]]:
    """Return a measure and the names of its classes or regions, completed with the predictor's values."""
    plan = predictor.plan
    planned = () if plan is None else plan.regions
    if plan is not None and measure.ignore_label is None:
        measure = replace(measure, ignore_label=plan.ignore_label)
    if measure.regions is None and planned:
        if class_names and measure.tolerances_mm:
            raise BadInputError(
                "tolerance_mm: given for some classes, but the predictor's regions are measured: "
                f"{', '.join(region.name for region in planned)}; give regions, too, and their tolerances"
            )
        measure = replace(measure, regions=tuple(tuple(region.ids) for region in planned))
        class_names = {}  # those of ids, and now regions are measured
    if measure.label_ids is None and predictor.num_classes is not None:
        known = set(range(max(2, predictor.num_classes)))
        if planned:  # then the number of channels is that of the regions, not of the ids
            known = {0, *(label_id for region in planned for label_id in (*region.ids, region.paints))}
        measure = replace(measure, label_ids=tuple(sorted(known)))
    if class_names:
        return measure, class_names
    if measure.regions is None:
        names = () if plan is None or len(plan.class_names) < 2 else plan.class_names
        return measure, dict(enumerate(names))
    by_ids = {tuple(region.ids): region.name for region in planned}
    return measure, {place: by_ids[ids] for place, ids in enumerate(measure.regions, start=1) if ids in by_ids}


def _sorted_out(metrics: Sequence[str | Metric | Mapping[str, Metric]]) -> tuple[tuple[str, ...], dict[str, Metric]]:
    """Separate requested metrics into names of ours and functions by name."""
    names: list[str] = []
    own: dict[str, Metric] = {}
    for metric in metrics:
        if isinstance(metric, str):
            names += metrics_named([metric])
            continue
        if not callable(metric) and not isinstance(metric, Mapping):
            raise BadInputError(f"expected the name of a metric, a function or a mapping of functions, got {metric!r}")
        named = metric if isinstance(metric, Mapping) else {getattr(metric, "__name__", type(metric).__name__): metric}
        for name, function in named.items():
            if name in own or name in CLASS_METRICS:
                raise BadInputError(
                    f"two metrics are called {name!r}; give functions in a mapping from name to function"
                )
            own[name] = function
    return tuple(dict.fromkeys(names)), own
