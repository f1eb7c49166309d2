"""Find earlier runs of the same task in an experiments folder, whose curves the forecast of another run uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.columns import SCORE
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.description import ExperimentDescription, read_description
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.runs import runs_below
from candy_monai.forecasting.reading import read_scores
from candy_monai.forecasting.references import LEAST_SCORES, MOST_REFERENCES

if TYPE_CHECKING:
    from candy_monai.experiment.experiment import Experiment
    from candy_monai.processes import Processes

_DICE = [0, 1]
_MOST_NAMED = 5
_FEWEST_ALIKE = 2
"""Number of runs with the same settings from which on other runs are left out."""
_PARTS = ("network", "optimizer", "scheduler", "criterion", "ema")


@dataclass(frozen=True, kw_only=True)
class ReferenceRun:
    """A finished run whose curve is a reference for others.

    Attributes:
        folder: The experiment folder.
        scores: The score of each epoch; NaN for epochs without one.
        same_settings: Whether it was trained with the settings of the run to forecast.
    """

    folder: Path
    scores: tuple[float, ...]
    same_settings: bool = False


def references_of(
    description: ExperimentDescription, experiments: PathLike, *, but: PathLike | None = None, column: str | None = None
) -> tuple[ReferenceRun, ...]:
    """Return the finished runs of the same task, the newest first; those with the same settings alone if there are two.

    Runs of the same task have a dataset with the same content and labels, and scores with the same meaning. A run that
    early stopping has ended is left out, since its best score might have been exceeded later. Runs have the same
    settings, as the folds of a cross-validation have, if trainer, plan, network, optimizer, schedule, criterion and
    number of epochs are equal.

    Args:
        description: The description of the run to forecast.
        experiments: The folder to search, including cross-validations in it.
        but: The folder of the run itself, which is left out, as are copies of it; None if it has none yet.
        column: The column of ``metrics.csv`` with the scores; None for ``val score``.

    Returns:
        At most as many as the forecast uses; none for a run without a digest of its dataset.
    """
    if description.dataset is None or description.dataset.digest is None:
        return ()
    own = None if but is None else Path(but).resolve()
    found: list[ReferenceRun] = []
    for folder in runs_below(experiments):
        if len(found) == MOST_REFERENCES:
            break
        if own is not None and (folder.resolve() == own or folder.name == own.name):
            continue
        if (reference := _reference_in(folder, description, column)) is not None:
            found.append(reference)
    alike = tuple(reference for reference in found if reference.same_settings)
    return alike if len(alike) >= _FEWEST_ALIKE else tuple(found)


def have_same_settings(references: Sequence[ReferenceRun]) -> bool:
    """Return whether all runs were trained with the settings of the run to forecast."""
    return all(reference.same_settings for reference in references)


def learn_from_earlier_runs(
    experiment: Experiment, description: ExperimentDescription, processes: Processes
) -> str | None:
    """Read the scores of earlier runs of the same task, as references for the forecast of a run.

    Returns:
        The message about them for the log; None if there are none.
    """
    root = folder_of_experiments(experiment.folder)
    found: tuple[ReferenceRun, ...] = ()
    if processes.is_main:  # all processes must know the same, though runs may end at this moment
        found = references_of(description, root, but=experiment.folder)
    found = processes.broadcast(found)
    experiment.references = [reference.scores for reference in found]
    experiment.references_have_same_settings = have_same_settings(found)
    return references_as_text(found, root) if found else None


def folder_of_experiments(run: PathLike) -> Path:
    """Return the experiments folder of a run; for a fold, the folder that contains its cross-validation.

    The run is ``<out>/<trainer>/<id>`` or ``<out>/crossval-<dataset>/fold_<n>/<trainer>/<id>``, where a folder for each
    configuration may come before that of the fold.
    """
    out = Path(run).resolve().parents[1]
    if out.name.startswith("fold_"):
        above = next((path for path in out.parents[:2] if path.name.startswith("crossval-")), None)
        return out if above is None else above.parent
    return out


def references_as_text(references: Sequence[ReferenceRun], experiments: PathLike) -> str:
    """Return the names of the runs that the forecast uses, for the log."""
    root, count = Path(experiments).resolve(), len(references)
    paths = (reference.folder.resolve() for reference in references[:_MOST_NAMED])
    names = [str(path.relative_to(root) if path.is_relative_to(root) else path) for path in paths]
    if count > _MOST_NAMED:
        names.append(f"{count - _MOST_NAMED} more")
    settings = ", with the settings of this run" * have_same_settings(references)
    what = "an earlier run" if count == 1 else f"{count} earlier runs"
    return f"The forecast uses {what} on this dataset in {experiments}: {', '.join(names)}{settings}"


def _reference_in(folder: Path, wanted: ExperimentDescription, column: str | None) -> ReferenceRun | None:
    """Return a finished run of the same task; None for any other run, or if its files cannot be read."""
    try:
        description = read_description(folder)
        if not _is_same_task(description, wanted, column):
            return None
        scores = read_scores(folder, column=column).scores
    except (BadInputError, ExperimentError, OSError):
        return None
    planned = description.setting("num_epochs")
    # A budget ends a run before its epochs are over; only then are its best weights scored.
    if len(scores) != planned and not (folder / VALIDATION_SCORES).is_file():
        return None
    if len(scores) != planned and description.setting("time_limit_s") is None:
        return None
    if np.isfinite(scores).sum() < LEAST_SCORES:
        return None
    return ReferenceRun(folder=folder, scores=scores, same_settings=_settings_of(description) == _settings_of(wanted))


def _is_same_task(one: ExperimentDescription, other: ExperimentDescription, column: str | None) -> bool:
    if one.dataset is None or other.dataset is None or one.dataset.digest != other.dataset.digest:
        return False

    def target(description: ExperimentDescription) -> tuple[object, ...]:
        labels = None if description.dataset is None else description.dataset.labels
        return labels, description.regions, description.num_classes, description.score_range

    if target(one) != target(other):
        return False
    # A Dice is comparable between different trainings; a loss, or the user's own score, is not.
    if column in (None, SCORE) and one.score_range is not None and list(one.score_range) == _DICE:
        return True
    return (one.trainer, _criterion(one)) == (other.trainer, _criterion(other))


def _settings_of(description: ExperimentDescription) -> tuple[object, ...]:
    """Return the settings that the folds of a cross-validation have in common."""
    parts = description.parts if isinstance(description.parts, dict) else {}
    num_epochs = description.setting("num_epochs")
    return description.trainer, description.plan, num_epochs, *(parts.get(name) for name in _PARTS)


def _criterion(description: ExperimentDescription) -> object:
    return description.parts.get("criterion") if isinstance(description.parts, dict) else None
