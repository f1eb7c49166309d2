"""Every fold of a dataset trained as a process of its own, several side by side, and summed up. Trains nothing itself.

A fold that was interrupted is resumed, one that is finished is left as it is: the same call goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet_description import DatasetDescription
from candy_monai.data.datasets.patients import patients_on_both_sides
from candy_monai.device import find_device
from candy_monai.errors import RunFailedError, SettingsError
from candy_monai.evaluation.results import mean_of_known
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.runs import CROSS_VALIDATION
from candy_monai.files import atomic_write_text
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.prepare import checked_dataset, chosen_folds, store_of
from candy_monai.recipes.train import Parts
from candy_monai.report.evaluation import write_cross_validation
from candy_monai.training.signals import StopRequest

_POLL_S = 0.2
_PATIENCE_S = 60.0
"""How long folds that were asked to end may take to finish their step and save."""


def cross_validate(
    dataset: PathLike,
    options: TrainOptions | None = None,
    *,
    num_parallel: int = 1,
    on_progress: Callable[[str], None] = print,
    **keywords: Any,
) -> Path:
    """Train every fold of a dataset by a process of its own, and write the mean of their validation scores.

    Each fold's experiment and log lie in ``<out>/crossval-<dataset>/fold_<n>/``.

    Args:
        dataset: The dataset's folder, nnU-Net format.
        options: What decides each fold's run, its ``fold`` aside; ``budget_s`` is one fold's. Trainers and frontends of
            your own are named as ``FILE:Class``. None for the defaults.
        num_parallel: Folds trained at the same time; each gets its share of the CPU's cores, for preprocessing too,
            and, where there are several, a GPU of its own.
        on_progress: Told what is being done, a line at a time.
        **keywords: Fields of `TrainOptions`, in place of those of ``options``.

    Returns:
        The summary's file, ``crossval.json``: Dice (0 to 1) of each fold and class, and their means over the folds;
        null where there is none.

    Raises:
        BadInputError: If the dataset or an option cannot work; nothing was trained.
        RunFailedError: If a fold failed; the others were trained all the same.
    """
    if num_parallel < 1:
        raise SettingsError(f"the number of folds at the same time must be at least 1, got {num_parallel}")
    options = TrainOptions.of(options, keywords)
    find_device(options.device)
    Parts.of(options)  # what is wrong with them is better said once than by every fold
    store = store_of(options)
    on_progress(f"Checking {dataset}")
    checked = checked_dataset(dataset, store, jobs=options.jobs).dataset
    folds = chosen_folds(checked, options)
    for warning in patients_on_both_sides(folds):
        on_progress(f"Warning: {warning}")
    folder = Path(options.out) / f"crossval-{checked.folder.resolve().name}"
    jobs = options.jobs
    if jobs is None and num_parallel > 1:
        jobs = share_of_cores(num_parallel)
    runs = []
    for number in range(len(folds)):
        own = folder / f"fold_{number}"
        chosen = dataclasses.replace(options, fold=number, out=own, store=store, jobs=jobs)
        chosen.to_json()  # refuses what only this process has
        runs.append(FoldRun(dataset=Path(dataset), options=chosen))
    failed = _run_all(runs, num_parallel, options.device, on_progress)
    summary = _summarised(runs, checked.description)
    atomic_write_text(folder / CROSS_VALIDATION, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    try:
        write_cross_validation(folder)
    except Exception as error:  # no cross-validation fails at its page
        on_progress(f"Warning: {folder}: its page could not be written ({type(error).__name__}: {error})")
    if failed:
        logs = ", ".join(str(run.log) for run in failed)
        raise RunFailedError(f"{len(failed)} of {len(runs)} folds failed; their logs say why: {logs}")
    return folder / CROSS_VALIDATION


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """One fold and where its training lies.

    Attributes:
        dataset: The dataset's folder.
        options: Of its run; ``out`` is its own folder.
    """

    dataset: Path
    options: TrainOptions

    @property
    def number(self) -> int | str:
        """The fold."""
        return self.options.fold

    @property
    def folder(self) -> Path:
        """Its own folder of experiments."""
        return Path(self.options.out)

    @property
    def log(self) -> Path:
        """What the fold's process printed."""
        return self.folder / "output.txt"

    @property
    def experiment(self) -> Path | None:
        """The fold's newest experiment; None before it has one."""
        found = sorted(self.folder.glob("*/[0-9]*/experiment.json"), key=lambda path: path.stat().st_mtime)
        return found[-1].parent if found else None

    @property
    def scores(self) -> Path | None:
        """The scores of a finished fold; None while it is not."""
        path = None if self.experiment is None else self.experiment / VALIDATION_SCORES
        return path if path is not None and path.is_file() else None

    def command(self) -> list[str]:
        """Write the fold's options to a file, and return the command that begins the fold or goes on with it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file, options = self.folder / "options.json", self.options
        if self.experiment is None:
            words = ["train", str(self.dataset)]
        else:
            words = ["resume", str(self.experiment), "--dataset", str(self.dataset)]
            options = dataclasses.replace(options, num_epochs=None)  # as many as were planned
        atomic_write_text(file, options.to_json() + "\n")
        return [sys.executable, "-m", "candy_monai", *words, "--options", str(file)]


def _run_all(
    runs: Sequence[FoldRun], num_parallel: int, device: str, on_progress: Callable[[str], None]
) -> list[FoldRun]:
    """Run what is not finished, and return what failed."""
    waiting = [run for run in runs if run.scores is None]
    for run in runs:
        if run not in waiting:
            on_progress(f"Fold {run.number} is finished already: {run.experiment}")
    failed: list[FoldRun] = []
    running: dict[int, tuple[FoldRun, subprocess.Popen[bytes]]] = {}
    with ended_with_us(running) as asked:
        while waiting or running:
            free = sorted(set(range(num_parallel)) - running.keys())
            for slot in free[: len(waiting)]:
                run = waiting.pop(0)
                on_progress(f"Fold {run.number}: {'resumed' if run.experiment else 'begun'}, output in {run.log}")
                running[slot] = run, start_run(run, environment_of(slot, num_parallel, device))
            time.sleep(_POLL_S)
            if asked.is_pending:
                asked.obey()
            for slot in [slot for slot, (_, process) in running.items() if process.poll() is not None]:
                run, process = running.pop(slot)
                has_failed = bool(process.returncode) or run.scores is None
                failed += [run] if has_failed else []
                on_progress(f"Fold {run.number}: {'failed' if has_failed else 'done'}")
    return failed


def start_run(run: FoldRun, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process that begins a run or goes on with it; its output goes to the run's log."""
    command = run.command()
    with run.log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )


@contextmanager
def ended_with_us(running: Mapping[int, tuple[Any, subprocess.Popen[bytes]]]) -> Iterator[StopRequest]:
    """Yield what remembers Ctrl-C and SIGTERM; if a block raises, let the processes in it finish their step and save.

    Args:
        running: The processes, by their slots.
    """
    asked = StopRequest()
    with asked.listening():
        try:
            yield asked
        except BaseException:
            for _, process in running.values():
                process.terminate()
            end = time.monotonic() + _PATIENCE_S
            for _, process in running.values():
                try:
                    process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
            raise


def share_of_cores(num_parallel: int) -> int:
    """Return how many cores each of several processes gets, 1 at least."""
    return max(1, (os.cpu_count() or 1) // num_parallel)


def environment_of(slot: int, num_parallel: int, device: str) -> dict[str, str]:
    """Return a process's environment variables: its share of the cores, and of several GPUs one."""
    environment = dict(os.environ)
    if num_parallel > 1:
        environment["OMP_NUM_THREADS"] = str(share_of_cores(num_parallel))
        num_gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        if num_gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % num_gpus)
    return environment


def _summarised(runs: Sequence[FoldRun], description: DatasetDescription) -> dict[str, Any]:
    """Return the Dice of each fold and class, and their means over the folds; null where there is none."""
    folds: list[dict[str, Any]] = []
    for run in runs:
        scores = None if run.scores is None else json.loads(run.scores.read_text(encoding="utf-8"))
        folds.append(
            {
                "fold": run.number,
                "experiment": None if run.experiment is None else str(run.experiment),
                "foreground_mean": None if scores is None else scores["foreground_mean"]["Dice"],
                "classes": {} if scores is None else {name: mean["Dice"] for name, mean in scores["mean"].items()},
            }
        )
    names = dict.fromkeys(name for fold in folds for name in fold["classes"])
    return {
        "foreground_mean": _mean(fold["foreground_mean"] for fold in folds),
        "classes": {name: _mean(fold["classes"].get(name) for fold in folds) for name in names},
        "class_names": {
            str(place if description.has_regions else label_id): name  # regions are scored by their place
            for place, (name, label_id) in enumerate(description.labels.items())
            if label_id != 0
        },
        "folds": folds,
    }


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_of_known(known) if known else None
