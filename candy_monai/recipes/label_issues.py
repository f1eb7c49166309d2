"""Find possible errors in the labels of a dataset, with predictions of models that were not trained on the case."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candy_monai.aliases import PathLike
from candy_monai.data.inspection.consistency import names_by_id
from candy_monai.data.inspection.digest import file_digests
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.evaluation.label_issues import Contradictions, LabelIssue, LabelIssues
from candy_monai.experiment.description import DatasetRecord, read_description
from candy_monai.files import check_writable
from candy_monai.inference.cases import CasePredictor
from candy_monai.inference.inputs import CaseFiles
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.recipes.predict import experiment_folders, load_experiments
from candy_monai.recipes.prepare import refuse_inside
from candy_monai.recipes.trained_on import change_in_words, dataset_again
from candy_monai.text import read_json

if TYPE_CHECKING:
    from monai.data import MetaTensor

    from candy_monai.data.images.reading import Scan
    from candy_monai.plotting.canvas.arrays import Pixels

LABEL_ISSUES = "label_issues.json"
MOST_PICTURES = 20


def find_label_issues(
    experiments: Sequence[PathLike],
    folder: PathLike,
    *,
    dataset: PathLike | None = None,
    most_pictures: int = MOST_PICTURES,
    on_progress: Callable[[str], None] = print,
    **options: Any,
) -> LabelIssues:
    """Return the regions of a dataset's labels that are contradicted by all models that were not trained on the case.

    Cases are predicted again, from their files, one after the other.

    Args:
        experiments: Folders of planned runs on one dataset, or of cross-validations, which stand for their folds.
        folder: The folder for ``label_issues.json`` and the pictures; created if missing.
        dataset: The dataset's folder; None for the one that the runs name.
        most_pictures: Maximum number of regions that are drawn, those with the highest scores.
        on_progress: Called with a line of text for each stage.
        **options: Keywords of `load_experiments`, such as ``device`` and ``mirror``.

    Raises:
        BadInputError: If the runs are not of one dataset, it is not there or lacks their cases, or they were trained on
            all of its cases.
    """
    runs = experiment_folders(experiments, on_progress=on_progress)
    records = [_record_of(run) for run in runs]
    for run, record in zip(runs[1:], records[1:], strict=True):
        if record.digest != records[0].digest:
            raise BadInputError(
                f"{run}: was trained on another dataset than {runs[0]}, or on another version of it; give runs on the "
                "same dataset"
            )
    source = dataset_again(records, dataset)
    refuse_inside(folder, source.folder)
    check_writable(folder)
    trained_on = [set(record.training or ()) for record in records]
    is_unseen = [any(case_id not in seen for seen in trained_on) for case_id in source.case_ids]
    unseen = [index for index, chosen in enumerate(is_unseen) if chosen]
    if not unseen:
        raise BadInputError(
            f"{', '.join(map(str, runs))}: every case of {source.folder} was used for training, and a model cannot "
            "check the labels that it was trained on; give the folder of a cross-validation"
        )
    if change := change_in_words(records[0], source, file_digests(source.description, source.cases)):
        on_progress(change)
    members = [load_experiments([run], on_progress=lambda _: None, **options) for run in runs]
    pictures = _Pictures(most_pictures)
    found: list[LabelIssue] = []
    is_flat = False
    for done, index in enumerate(unseen, start=1):
        case_id = source.case_ids[index]
        image, label = source.read(index)
        is_flat = label.geometry.is_picture or len(label.geometry.spatial_shape) != 3
        chosen = [m for m, seen in zip(members, trained_on, strict=True) if case_id not in seen]
        contradictions, prediction = _contradictions(CaseFiles(source.cases[index].images), label, chosen)
        issues = contradictions.issues(case_id, spacing_mm=None if is_flat else label.geometry.spacing_mm)
        for issue in issues[:most_pictures]:
            pictures.offer(issue, contradictions, image, label, prediction)
        found += issues
        on_progress(f"[{done}/{len(unseen)}] {case_id}: {len(issues)} region{'s' * (len(issues) != 1)}")
    result = LabelIssues(
        issues=tuple(sorted(found, key=lambda issue: -issue.score)),
        num_cases=len(unseen),
        left_out=tuple(case_id for case_id, chosen in zip(source.case_ids, is_unseen, strict=True) if not chosen),
        class_names={0: "background"} | names_by_id(source.description.labels),
        unit="pixels" if is_flat else "ml",
    )
    pictures.save(Path(folder), result)
    result.save(Path(folder) / LABEL_ISSUES)
    return result


def _record_of(run: Path) -> DatasetRecord:
    from candy_monai.incoming.opening import kind_of_model

    record = read_description(run).dataset if kind_of_model(run) == "experiment" else None
    if record is None or record.training is None or record.folder is None:
        raise ExperimentError(
            f"{run}: does not say which cases it was trained on, as runs of 'candy-monai train' and 'crossval' do"
        )
    return record


def _contradictions(
    files: CaseFiles, label: Scan, members: Sequence[CasePredictor]
) -> tuple[Contradictions, MetaTensor]:
    """Return where all members contradict a case's label, and the prediction of the first."""
    plan = members[0].plan if isinstance(members[0], NetworkPredictor) else None
    contradictions = Contradictions(
        label.values[0],
        regions=() if plan is None else [region.ids for region in plan.regions],
        ignore_label=None if plan is None else plan.ignore_label,
    )
    shown = None
    for member in members:
        prediction = member.predict_image(files, probabilities=True)
        assert prediction.probabilities is not None
        contradictions.add(prediction.labels.as_tensor()[0], prediction.probabilities.as_tensor())
        shown = prediction.labels if shown is None else shown
    assert shown is not None
    return contradictions, shown


class _Pictures:
    """Draws the regions of the highest scores so far, and keeps no case."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[tuple[float, int, LabelIssue, Pixels]] = []
        self._numbers = itertools.count(0, -1)  # of equal scores the first found comes first, as in the list

    def offer(
        self, issue: LabelIssue, contradictions: Contradictions, image: Scan, label: Scan, prediction: MetaTensor
    ) -> None:
        """Draw a region if it is among those of the highest scores."""
        from candy_monai.plotting.case.panels import region_panel

        is_full = len(self._kept) >= self._most
        if is_full and issue.score <= self._kept[0][0]:
            return
        region = contradictions.mask_of(issue)[None].astype("uint8")
        panel = region_panel(image.tensor(), label.tensor(), prediction, region)
        push = heapq.heappushpop if is_full else heapq.heappush
        push(self._kept, (issue.score, next(self._numbers), issue, panel))

    def save(self, folder: Path, found: LabelIssues) -> None:
        """Write the pictures, numbered by rank, in place of those of an earlier call."""
        from candy_monai.plotting.canvas import drawing

        _remove_pictures(folder)
        for rank, (_, _, issue, panel) in enumerate(sorted(self._kept, key=lambda kept: kept[:2], reverse=True), 1):
            title = (
                f"{rank}. {issue.case_id}: labelled {found.name_of(issue.label_id)}, predicted "
                f"{found.name_of(issue.predicted_id)}, {issue.volume:.3g} {found.unit}, at {issue.place}"
            )
            heading = drawing.line_of_text(title, panel.shape[1], 17, bold=True)
            picture = drawing.stacked([heading, panel], gap=6, margin=10)
            drawing.save_png(picture, folder / _picture_name(rank, issue.case_id))


def _picture_name(rank: int, case_id: str) -> str:
    return f"{rank:02} {case_id}.png"


def _remove_pictures(folder: Path) -> None:
    """Remove the pictures that the list in a folder had."""
    try:
        cases = [str(issue["case"]) for issue in read_json(folder / LABEL_ISSUES)["issues"]]
    except (OSError, ValueError, LookupError, TypeError):
        return  # there is none, or it is something else
    for rank, case_id in enumerate(cases, 1):
        name = _picture_name(rank, case_id)
        if Path(name).name == name:
            (folder / name).unlink(missing_ok=True)
