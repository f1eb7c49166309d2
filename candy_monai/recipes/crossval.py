"""Every fold of a dataset trained as a process of its own, several side by side, and summed up. Trains nothing itself.

A fold that was interrupted is resumed, one that is finished is left as it is: the same call goes on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.patients import patients_on_both_sides
from candy_monai.errors import CandyError, SettingsError
from candy_monai.evaluation.results import mean_of_known
from candy_monai.experiment.runs import CROSS_VALIDATION
from candy_monai.files import atomic_write_text, check_writable
from candy_monai.recipes.planned_run import VALIDATION_SCORES
from candy_monai.recipes.prepare import checked_dataset, chosen_folds, store_of

SUMMARY = CROSS_VALIDATION
_POLL_S = 0.2
_PATIENCE_S = 60.0
"""How long folds that were asked to end may take to finish their step and save."""


def cross_validate(
    dataset: PathLike,
    *,
    options: Sequence[str] = (),
    jobs: int = 1,
    out: PathLike = "experiments",
    store: PathLike | None = None,
    num_folds: int | None = None,
    groups: str | None = None,
    stratify: str | None = None,
    splits: PathLike | None = None,
    device: str = "auto",
    on_progress: Callable[[str], None] = print,
) -> Path:
    """Train every fold by the command line's ``train``, and write the mean of their validation scores.

    Each fold's experiment and log lie in ``<out>/crossval-<dataset>/fold_<n>/``.

    Args:
        dataset: The dataset's folder, nnU-Net format.
        options: More options of ``candy-monai train``, for every fold.
        jobs: Folds trained at the same time; each gets its share of the CPU's cores and, where there are several, a GPU
            of its own.
        out: The folder for experiments.
        store: The folder for what is derived from datasets, shared by all folds; None for ``<out>/.store``.
        num_folds: How many folds to make; None for 5, or one a case.
        groups: Regular expression or CSV file: cases of a group stay on one side of a fold.
        stratify: Regular expression or CSV file: each fold gets its share of each kind of case.
        splits: A ``splits_final.json``; None for the dataset's own, or nnU-Net's default folds.
        device: A PyTorch device, or ``auto``.
        on_progress: Told what is being done.

    Returns:
        The summary's file.

    Raises:
        BadInputError: If the dataset or a setting cannot work; nothing was trained.
        CandyError: If a fold failed; the others were trained all the same.
    """
    if jobs < 1:
        raise SettingsError(f"the number of jobs must be at least 1, got {jobs}")
    check_writable(out)
    store_folder = store_of(store, out)
    on_progress(f"Checking {dataset}")
    checked = checked_dataset(dataset, store_folder).dataset
    folder = Path(out) / f"crossval-{checked.folder.resolve().name}"
    shared = ["--store", str(store_folder), "--device", device, *options]
    choice = {"--num-folds": num_folds, "--groups": groups, "--stratify": stratify, "--splits": splits}
    shared += [text for name, value in choice.items() if value is not None for text in (name, str(value))]
    folds = chosen_folds(checked, num_folds=num_folds, groups=groups, stratify=stratify, splits=splits)
    for warning in patients_on_both_sides(folds):
        on_progress(f"Warning: {warning}")
    runs = [
        FoldRun(number=number, folder=folder / f"fold_{number}", dataset=Path(dataset), options=tuple(shared))
        for number in range(len(folds))
    ]
    failed = _run_all(runs, jobs, device, on_progress)
    summary = _summarised(runs)
    atomic_write_text(folder / SUMMARY, json.dumps(summary, indent=2, allow_nan=False) + "\n")
    if failed:
        logs = ", ".join(str(run.log) for run in failed)
        raise CandyError(f"{len(failed)} of {len(runs)} folds failed; their logs say why: {logs}")
    return folder / SUMMARY


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """One fold and where its training lies.

    Attributes:
        number: The fold.
        folder: Its own folder of experiments.
        dataset: The dataset's folder.
        options: Options of ``train``.
    """

    number: int
    folder: Path
    dataset: Path
    options: tuple[str, ...] = field(default=())

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
        """Return the arguments that begin the fold, or go on with it."""
        if self.experiment is not None:
            kept = _only(self.options, "--device", "--trainer", "--frontend")
            return ["resume", str(self.experiment), "--dataset", str(self.dataset), *kept]
        return ["train", str(self.dataset), "--fold", str(self.number), "--out", str(self.folder), *self.options]


def _run_all(runs: Sequence[FoldRun], jobs: int, device: str, on_progress: Callable[[str], None]) -> list[FoldRun]:
    """Run what is not finished, and return what failed."""
    waiting = [run for run in runs if run.scores is None]
    for run in runs:
        if run not in waiting:
            on_progress(f"Fold {run.number} is finished already: {run.experiment}")
    failed: list[FoldRun] = []
    running: dict[int, tuple[FoldRun, subprocess.Popen[bytes]]] = {}
    with _ended_with_us(running):
        while waiting or running:
            free = sorted(set(range(jobs)) - running.keys())
            for slot in free[: len(waiting)]:
                run = waiting.pop(0)
                on_progress(f"Fold {run.number}: {'resumed' if run.experiment else 'begun'}, output in {run.log}")
                running[slot] = run, _started(run, _environment(slot, jobs, device))
            time.sleep(_POLL_S)
            for slot in [slot for slot, (_, process) in running.items() if process.poll() is not None]:
                run, process = running.pop(slot)
                has_failed = bool(process.returncode) or run.scores is None
                failed += [run] if has_failed else []
                on_progress(f"Fold {run.number}: {'failed' if has_failed else 'done'}")
    return failed


def _started(run: FoldRun, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    output: IO[bytes]
    with run.log.open("ab") as output:
        command = [sys.executable, "-m", "candy_monai", *run.command()]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )


@contextmanager
def _ended_with_us(running: Mapping[int, tuple[FoldRun, subprocess.Popen[bytes]]]) -> Iterator[None]:
    """When this process is interrupted, let the folds finish their step and save, too."""
    try:
        yield
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


def _environment(slot: int, jobs: int, device: str) -> dict[str, str]:
    """Give each job its share of the cores and, where there are several, a GPU of its own."""
    import torch

    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if jobs > 1 else dict(os.environ)
    num_gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if jobs > 1 and num_gpus > 1:
        environment["CUDA_VISIBLE_DEVICES"] = str(slot % num_gpus)
    return environment


def _summarised(runs: Sequence[FoldRun]) -> dict[str, Any]:
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
        "folds": folds,
    }


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_of_known(known) if known else None


def _only(options: Sequence[str], *names: str) -> list[str]:
    """Return those of ``--name value`` pairs that have these names."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [text for name, value in pairs if name in names for text in (name, value)]
