"""Find the runs in a folder, with their progress and their folds, and name them in messages."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.description import DESCRIPTION, ExperimentDescription, read_description
from candy_monai.experiment.folder import METRICS, STATE
from candy_monai.text import read_json

CROSS_VALIDATION = "crossval.json"
"""The file in the folder of a cross-validation with the summary of its folds."""

COPIES = "mlartifacts"
"""A folder next to experiments where a dashboard keeps copies of their files, including ``experiment.json``."""

_FOLD = re.compile(r"fold_(\d+)")
_NAME = re.compile(r"\w[\w.-]*")
"""Of a configuration: such a folder lies in that of the cross-validation."""
_DEEPEST = 5
_MOST_FOLDERS = 5000
_MOST_LISTED = 12


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The progress of a run.

    Attributes:
        folder: The experiment folder.
        saved_at: When it was last saved.
        num_epochs: Number of planned epochs; None if unknown.
        epochs_done: Number of saved epochs; None if the state cannot be read.
        best_score: The best validation score; None if there is none.
        best_epoch: Its epoch, counted from 1.
        is_finished: Whether the run is finished; None if unknown.
    """

    folder: Path
    saved_at: datetime
    num_epochs: int | None = None
    epochs_done: int | None = None
    best_score: float | None = None
    best_epoch: int | None = None
    is_finished: bool | None = None

    def __str__(self) -> str:
        state = "state unknown" if self.is_finished is None else "finished" if self.is_finished else "not finished"
        # A run that ended early, as one with a time limit does, was never to have all the epochs of its settings.
        of = "" if self.num_epochs is None or self.is_finished else f" of {self.num_epochs}"
        plural = "s" * (of != "" or self.epochs_done != 1)
        epochs = "" if self.epochs_done is None else f", {self.epochs_done}{of} epoch{plural}"
        score = "" if self.best_score is None else f", best score {self.best_score:.4f} at epoch {self.best_epoch}"
        return f"{self.folder}: {self.saved_at:%Y-%m-%d %H:%M}, {state}{epochs}{score}"


def summarize(folder: Path) -> RunSummary:
    """Return the progress of a run, as far as the files in its folder can be read."""
    newest = next((path for path in (folder / STATE, folder / METRICS, folder / DESCRIPTION) if path.is_file()), folder)
    saved_at = datetime.fromtimestamp(newest.stat().st_mtime)
    summary = RunSummary(folder=folder, saved_at=saved_at)
    try:
        summary = replace(summary, num_epochs=read_description(folder).setting("num_epochs"))
        from candy_monai.experiment.state import load_state  # imports PyTorch

        state = load_state(folder, verify=False)
    except ExperimentError:  # of another version, or damaged: the run may still be predicted with
        return summary
    summary = replace(summary, epochs_done=state.progress.epoch, is_finished=state.is_complete)
    best = state.checkpoints.get("checkpoint_best.pth")
    return summary if best is None else replace(summary, best_score=best.score, best_epoch=best.epoch)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of different paths that distinguish them, with the same number of parts for all."""
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = [Path(*path.parts[-count:]).as_posix() for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def names_of_runs(runs: Sequence[Path]) -> list[str]:
    """Return a different name for each run: the end of its path, or for folds of cross-validations that of the fold."""
    # crossval-NAME/fold_0/TRAINER/RUN
    places = [run.parents[1] if len(run.parents) > 1 and _FOLD.fullmatch(run.parents[1].name) else run for run in runs]
    return distinct_names(places if len(set(places)) == len(places) else runs)


def resuming_call(folder: Path, description: ExperimentDescription) -> str:
    """Return the Python code with which the script of a run resumes it, if no command can."""
    where = str(folder.resolve())
    if description.host is None:
        return f"{description.trainer or 'Trainer'}(...).resume({where!r})"
    if description.host.startswith("monai"):
        return f"ExperimentFolderHandler({str(folder.resolve().parents[1])!r}, resume={where!r})"
    return "trainer.fit(..., ckpt_path=CHECKPOINT)  # a checkpoint of Lightning's, and the same ExperimentFolder"


def runs_below(folder: PathLike) -> list[Path]:
    """Return the experiment folders inside a folder, the last saved first."""
    return [file.parent for file in _newest_first(run / DESCRIPTION for run in _found_below(Path(folder)))]


def experiments_in(out: PathLike) -> list[Path]:
    """Return the experiments ``<out>/<trainer>/<id>`` of a folder that runs were given as ``out``, the newest first."""
    return [file.parent for file in _newest_first(Path(out).glob(f"*/[0-9]*/{DESCRIPTION}"))]


def folds_below(folder: PathLike) -> dict[int, Path | None]:
    """Return the newest experiment of each fold of a cross-validation, None without one; empty for other folders."""
    folder = Path(folder)
    folds: dict[int, Path | None] = {}
    if not folder.is_dir() or (folder / DESCRIPTION).is_file():
        return folds
    for path in sorted(folder.iterdir()):
        if (match := _FOLD.fullmatch(path.name)) and path.is_dir():
            folds[int(match[1])] = next(iter(experiments_in(path)), None)
    summary = folder / CROSS_VALIDATION
    if summary.is_file():
        try:
            listed = read_json(summary)["folds"]
            for fold in listed:
                folds.setdefault(int(fold["fold"]), None)
        except (ValueError, LookupError, TypeError):  # it is only asked for folds that never began
            pass
    elif not any(folds.values()):
        return {}
    return dict(sorted(folds.items()))


def configurations_below(folder: PathLike) -> dict[str, Path]:
    """Return the folder of each configuration of ``candy-monai crossval --configurations``, in the command's order.

    There are none for a cross-validation without named configurations, and for any other folder.
    """
    folder = Path(folder)
    try:
        named = read_json(folder / CROSS_VALIDATION)["configurations"]
        return {name: folder / name for name in named if _NAME.fullmatch(name) and (folder / name).is_dir()}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def cross_validations_below(folder: PathLike) -> list[Path]:
    """Return the cross-validations in a folder of experiments, the newest first."""
    return [file.parent for file in _newest_first(Path(folder).glob(f"*/{CROSS_VALIDATION}"))]


def what_is_below(folder: PathLike, *, call: str = "{run}", takes_folds: bool = False) -> str:
    """Return a text that lists the runs in a folder, for the end of a message; empty if there are none.

    ``call`` is how to call the command, with ``{run}`` for one of the runs; ``takes_folds`` says whether it also
    accepts the folder of a cross-validation.
    """
    runs = runs_below(folder)
    if not runs:
        return ""
    shown = [summarize(run) for run in runs[:_MOST_LISTED]]
    best = max(shown, key=lambda run: (run.best_score is not None, run.best_score or 0.0, run.saved_at))
    lines = [f"\n  - {run}" for run in shown]
    if len(runs) > _MOST_LISTED:
        lines.append(f"\n  - and {len(runs) - _MOST_LISTED} older ones")
    example = call.format(run=best.folder)
    if takes_folds:
        # crossval-NAME/fold_0/TRAINER/RUN
        parents = dict.fromkeys(run.parents[2] for run in runs if _FOLD.fullmatch(run.parent.parent.name))
        example += "".join(
            f"\nOr the {len(folds)} folds of a cross-validation together: {call.format(run=parent)}"
            for parent in parents
            if (folds := folds_below(parent))
        )
    return (
        f"; below it {'is a run' if len(runs) == 1 else f'are {len(runs)} runs'}:{''.join(lines)}\nGive one: {example}"
    )


def refuse_folder_of_runs(folder: PathLike, *, call: str) -> None:
    """Raise a `BadInputError` that lists the runs in a folder if a single one is expected."""
    if Path(folder).is_dir() and (below := what_is_below(folder, call=call)):
        raise BadInputError(f"{folder}: is not a run itself{below}")


def refuse_run(folder: PathLike) -> None:
    """Raise a `BadInputError` for a run, or a folder of runs, instead of a folder of label maps."""
    folder = Path(folder)
    call = "candy-monai predict {run} IMAGES PREDICTIONS"
    if (folder / DESCRIPTION).is_file():
        raise BadInputError(f"{folder}: is a run, expected label maps; predict first: {call.format(run=folder)}")
    if folder.is_dir() and all(path.is_dir() or path.suffix == ".json" for path in folder.iterdir()):
        refuse_folder_of_runs(folder, call=call)


def _newest_first(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)


def _found_below(folder: Path) -> Iterator[Path]:
    for visited, (place, folders, files) in enumerate(os.walk(folder)):
        path = Path(place)
        if path != folder and DESCRIPTION in files:
            yield path
            folders.clear()
        deep = len(path.relative_to(folder).parts) >= _DEEPEST
        entered = () if deep or visited > _MOST_FOLDERS else folders
        folders[:] = [name for name in entered if not name.startswith(".") and name != COPIES]
