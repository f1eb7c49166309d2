"""Read the results of evaluations: summaries of candy_monai and nnU-Net, and validations, which are written here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError
from candy_monai.evaluation.class_metrics import CLASS_METRICS
from candy_monai.evaluation.results import EvalResult, interval
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.runs import folds_below, what_is_below
from candy_monai.experiment.summary import Summary, read_summary, summary_of
from candy_monai.files import atomic_write_json

T = TypeVar("T")

SUMMARY = "summary.json"

_NAMES = {metric.summary_name: name for name, metric in CLASS_METRICS.items()}


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one method: by case id, class and metric; NaN where a value is missing.

    Classes are named as in nnU-Net's summary, metrics as for `Evaluator`.
    """

    source: str  # for messages
    cases: Mapping[str, Mapping[str, Mapping[str, float]]] = field(repr=False)
    voxels: Mapping[str, Mapping[str, float]] = field(repr=False)  # of the references, if known
    class_names: Mapping[str, str]
    definitions: Mapping[str, str]  # by metric, if known

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of its classes, in the order of tables, without those of the background."""
        found = {name for case in self.cases.values() for i, metrics in case.items() if i != "0" for name in metrics}
        return tuple(name for name in CLASS_METRICS if name in found)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes without the background, in order."""
        found = {index for case in self.cases.values() for index in case if index != "0"}
        return tuple(sorted(found, key=lambda index: (not index.isdecimal(), index.zfill(9))))


def summary_in(folder: Path) -> Path | None:
    """Return the file with the scores of a folder; None for the folder of a cross-validation, or another folder."""
    return next((folder / name for name in (SUMMARY, VALIDATION_SCORES) if (folder / name).is_file()), None)


def read_scores(source: PathLike) -> Scores:
    """Read the scores of a method.

    Args:
        source: A summary that ``candy-monai evaluate --summary`` or nnU-Net wrote, a folder with a ``summary.json``, an
            experiment with a ``validation.json``, or the folder of a cross-validation, for the cases of all folds
            together.

    Raises:
        BadInputError: If it is none of these, cannot be read, or contains a case twice.
    """
    path = Path(source)
    if path.is_file():
        return _scores_of(read_summary(path), str(path))
    if not path.is_dir():
        raise BadInputError(f"{path}: no such file or folder; expected an evaluation's summary, or a folder with one")
    if (found := summary_in(path)) is not None:
        return _scores_of(read_summary(found), str(found))
    if folds := folds_below(path):
        return _scores_of_folds(path, folds)
    below = what_is_below(path, call="candy-monai compare {run} ...", takes_folds=True)
    raise BadInputError(
        f"{path}: holds neither {SUMMARY} (candy-monai evaluate ... --summary FILE, or nnU-Net) nor "
        f"{VALIDATION_SCORES} (a finished planned run), and is not a cross-validation{below}"
    )


def save_validation(experiment: Path, result: EvalResult, *, num_validation_cases: int) -> None:
    """Write the scores of an experiment's best weights on its validation cases, or on those that were scored."""
    summary = {
        "num_cases": len(result),
        "num_validation_cases": num_validation_cases,
        "dice_interval_95": interval(result),
        **result.to_dict(),
    }
    atomic_write_json(experiment / VALIDATION_SCORES, summary)


def scores_of(summary: Mapping[str, Any], *, source: str) -> Scores:
    """Return the scores of a summary, as returned by `EvalResult.to_dict` or written by nnU-Net."""
    return _scores_of(summary_of(summary, source=source), source)


def _scores_of(summary: Summary, source: str) -> Scores:
    cases = {case.case_id: {i: _renamed(values) for i, values in case.classes.items()} for case in summary.cases}
    for case_id, classes in cases.items():
        for index, values in classes.items():
            _check_bounds(values, f"{source}: {case_id}, class {index}")
    return Scores(
        source=source,
        cases=cases,
        voxels={case.case_id: case.voxels for case in summary.cases},
        class_names=summary.class_names,
        definitions=_renamed(summary.definitions),
    )


def _check_bounds(values: Mapping[str, float], where: str) -> None:
    for name, metric in CLASS_METRICS.items():
        low, high = metric.bounds
        if (value := values.get(name, low)) < low or value > high:
            unit = " (a fraction, not a percentage)" if high == 1 else ""
            raise BadInputError(f"{where}: {name} is {value:g}, expected {low:g} to {high:g}{unit}")


def _renamed(by_metric: Mapping[str, T]) -> dict[str, T]:
    """Return values by metric, with the metrics' names in `Evaluator`."""
    return {_NAMES.get(name, name): value for name, value in by_metric.items()}


def _scores_of_folds(path: Path, folds: Mapping[int, Path | None]) -> Scores:
    files = {fold: None if run is None else run / VALIDATION_SCORES for fold, run in folds.items()}
    if lacking := [str(fold) for fold, file in files.items() if file is None or not file.is_file()]:
        raise BadInputError(f"{path}: the folds {', '.join(lacking)} are not finished: no {VALIDATION_SCORES}")
    found = [_scores_of(read_summary(file), str(file)) for file in files.values() if file is not None]
    together: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for scores in found:
        if twice := sorted(together.keys() & scores.cases.keys()):
            raise BadInputError(f"{scores.source}: the case {twice[0]} is in another fold, too")
        together |= scores.cases
    voxels = {case_id: counts for scores in found for case_id, counts in scores.voxels.items()}
    return Scores(
        source=str(path),
        cases=together,
        voxels=voxels,
        class_names=found[0].class_names,
        definitions=_agreed(found),
    )


def _agreed(folds: Sequence[Scores]) -> dict[str, str]:
    """Return the definitions of the metrics of folds; raise if one has several definitions."""
    merged: dict[str, str] = {}
    for scores in folds:
        for name, text in scores.definitions.items():
            if merged.setdefault(name, text) != text:
                raise BadInputError(
                    f"{scores.source}: {name} is not the same as in another fold: '{text}' and '{merged[name]}'; "
                    "evaluate all folds with the same options"
                )
    return merged
