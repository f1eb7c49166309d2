"""Every fold of a dataset trained as a process of its own, several side by side, and summed up. Trains nothing itself.

A fold that was interrupted is resumed, one that is finished is left as it is: the same call goes on where it was. What
the scores of the folds say together is in `fold_scores`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.folds import Fold
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.patients import patients_on_both_sides
from candy_monai.data.inspection.digest import Digests
from candy_monai.data.inspection.fingerprint import Fingerprint
from candy_monai.data.values import join_names
from candy_monai.device import find_device
from candy_monai.errors import BadInputError, RunFailedError, SettingsError
from candy_monai.experiment.description import differences, read_description
from candy_monai.experiment.folder import VALIDATION_SCORES, held
from candy_monai.experiment.runs import CROSS_VALIDATION
from candy_monai.files import atomic_write_text
from candy_monai.recipes.fold_scores import score_the_rest, summary_of_folds, write_summary
from candy_monai.recipes.options import OF_A_MACHINE, TrainOptions
from candy_monai.recipes.prepare import adapted, checked_dataset, chosen_folds, memory_for, plan_for, store_of
from candy_monai.recipes.train import Parts
from candy_monai.recipes.trained_on import change_in_words
from candy_monai.report.evaluation import write_cross_validation
from candy_monai.text import read_json
from candy_monai.training.signals import StopRequest

Configuration = Literal["2d", "3d"]
CONFIGURATIONS: tuple[Configuration, ...] = get_args(Configuration)
"""What a dataset may be trained in, one beside the other."""

OPTIONS = "options.json"
"""The options of a run, in its folder; of a cross-validation those that its folds have in common."""
_MAY_CHANGE = (*OF_A_MACHINE, "trust", "save_every", "no_references", "no_report")
"""Options that a cross-validation may go on with otherwise, since none of them decides what is learned."""
_POLL_S = 0.2
_PATIENCE_S = 60.0
"""How long folds that were asked to end may take to finish their step and save."""


def cross_validate(
    dataset: PathLike,
    options: TrainOptions | None = None,
    *,
    configurations: Sequence[str] | Literal["all"] | None = None,
    num_parallel: int = 1,
    on_progress: Callable[[str], None] = print,
    **keywords: Any,
) -> Path:
    """Train every fold of a dataset in a process of its own, and write what their scores say together.

    Each fold's experiment and log lie in ``<out>/crossval-<dataset>/fold_<n>/``; with ``configurations``, in
    ``<out>/crossval-<dataset>/<configuration>/fold_<n>/``. Every case is scored by the model of the fold that left it
    out: also those that the budget of a fold left no time for.

    Args:
        dataset: The dataset's folder, nnU-Net format.
        options: What decides each fold's run, its ``fold`` aside; ``budget_s`` is one fold's. Trainers and frontends of
            your own are named as ``FILE:Class``. None for the defaults.
        configurations: Of ``2d`` and ``3d`` those to train, each on the same folds; ``all`` for those that the dataset
            has. None for the one of ``options``.
        num_parallel: Folds trained at the same time; each gets its share of the CPU's cores, for preprocessing too,
            and, where there are several, a GPU of its own.
        on_progress: Told what is being done, a line at a time.
        **keywords: Fields of `TrainOptions`, in place of those of ``options``.

    Returns:
        The summary's file, ``crossval.json``: Dice (0 to 1) of each fold and class, their means and spread over the
        folds, and the interval of the mean over all cases; null where there is none. With ``configurations``, this
        under the name of each.

    Raises:
        BadInputError: If the dataset or an option cannot work, folds were begun before on other cases or with other
            options, or another process trains them; nothing was trained.
        RunFailedError: If a fold failed; the others were trained all the same.
    """
    if num_parallel < 1:
        raise SettingsError(f"the number of folds at the same time must be at least 1, got {num_parallel}")
    options = TrainOptions.of(options, keywords)
    asked = None if configurations is None else known_configurations(configurations, options)
    device = find_device(options.device)
    trainer = Parts.of(options).trainer  # what is wrong with them is better said once than by every fold
    store = store_of(options)
    on_progress(f"Checking {dataset}")
    found = checked_dataset(dataset, store, jobs=options.jobs)
    checked, fingerprint = found.dataset, found.fingerprint
    assert fingerprint is not None  # a dataset without problems has one, and digests
    assert found.digests is not None
    folds = chosen_folds(checked, options)
    for warning in patients_on_both_sides(folds):
        on_progress(f"Warning: {warning}")
    folder = Path(options.out) / f"crossval-{checked.folder.resolve().name}"
    if options.jobs is None and num_parallel > 1:
        options = dataclasses.replace(options, jobs=share_of_cores(num_parallel))
    if asked is None:
        of_each = {"": dataclasses.replace(options, out=folder)}
    else:
        names = _configurations_of(fingerprint) if asked == "all" else asked
        of_each = {name: dataclasses.replace(options, configuration=name, out=folder / name) for name in names}
        for chosen in of_each.values():  # what does not fit the dataset is better said before the first fold, too
            adapted(plan_for(fingerprint, chosen, memory_bytes=memory_for(trainer, device), trainer=trainer), trainer)
    runs: dict[str, list[FoldRun]] = {name: [] for name in of_each}
    for name, number in itertools.product(of_each, range(len(folds))):
        own = Path(of_each[name].out) / f"fold_{number}"
        chosen = dataclasses.replace(of_each[name], fold=number, out=own, store=store)
        chosen.to_json()  # refuses what only this process has
        runs[name].append(FoldRun(dataset=Path(dataset), options=chosen, configuration=name))
    changes = [change for of_one in runs.values() for change in _checked(of_one, folds, checked, found.digests)]
    for change in dict.fromkeys(changes):
        on_progress(change)
    with held(folder, "this cross-validation is running at this moment; let it end, or give another folder (--out)"):
        for name, of_one in runs.items():
            _begun_alike(of_each[name], of_one)
        if asked is not None:  # so that the folder is known for what it is while the folds are trained
            write_summary(folder, {"configurations": dict.fromkeys(of_each)})
        every = [run for of_one in runs.values() for run in of_one]
        failed = _run_all(every, num_parallel, options.device, on_progress)
        summaries = {name: _summed_up(folder / name, of_one, checked, on_progress) for name, of_one in runs.items()}
        if asked is not None:
            write_summary(folder, {"configurations": summaries})
    if failed:
        logs = ", ".join(str(run.log) for run in failed)
        count = sum(map(len, runs.values()))
        raise RunFailedError(f"{len(failed)} of {count} folds failed; their logs say why: {logs}")
    return folder / CROSS_VALIDATION


def _checked(runs: Sequence[FoldRun], folds: Sequence[Fold], dataset: NNUNetDataset, digests: Digests) -> Iterator[str]:
    """Yield a warning for each fold that was begun on another state of the dataset.

    Raises:
        BadInputError: If one was begun on other cases, some of which would be scored twice.
    """
    for run, fold in zip(runs, folds, strict=True):
        if run.experiment is None or (trained := read_description(run.experiment).dataset) is None:
            continue
        if trained.validation is not None and set(trained.validation) != set(fold.validation):
            raise BadInputError(
                f"{run.experiment}: leaves out {join_names(trained.validation)}, but {run.name} of the folds that are "
                f"asked for leaves out {join_names(fold.validation)}: give the options that the folds were begun with, "
                "or another folder (--out)"
            )
        if change := change_in_words(trained, dataset, digests):
            yield change


def _begun_alike(options: TrainOptions, runs: Sequence[FoldRun]) -> None:
    """Write down the options that decide what one configuration's folds learn.

    Raises:
        BadInputError: If folds were begun with others, so that one table would mix both.
    """
    file = Path(options.out) / OPTIONS
    chosen = {name: value for name, value in json.loads(options.to_json()).items() if name not in _MAY_CHANGE}
    chosen = {name: value for name, value in chosen.items() if value not in (None, {}, [])}
    begun = any(run.experiment is not None for run in runs)
    if begun and file.is_file() and (changed := differences(read_json(file), chosen)):
        lines = "".join(f"\n  - {line}" for line in changed)
        raise BadInputError(
            f"{options.out}: its folds were begun with other options (then -> now):{lines}\n"
            "Give those again, or another folder (--out)"
        )
    Path(options.out).mkdir(parents=True, exist_ok=True)
    atomic_write_text(file, json.dumps(chosen, indent=2) + "\n")


def _summed_up(
    folder: Path, runs: Sequence[FoldRun], dataset: NNUNetDataset, on_progress: Callable[[str], None]
) -> dict[str, Any]:
    """Write the summary and the page of one configuration's folds, and return the summary."""
    for run in runs:
        score_the_rest(run.experiment, dataset, run.options, on_progress=on_progress)
    summary = summary_of_folds({run.number: run.experiment for run in runs}, dataset.description)
    write_summary(folder, summary)
    try:
        write_cross_validation(folder)
    except Exception as error:  # no cross-validation fails at its page
        on_progress(f"Warning: {folder}: its page could not be written ({type(error).__name__}: {error})")
    return summary


def known_configurations(
    asked: Sequence[str] | str, options: TrainOptions
) -> tuple[Configuration, ...] | Literal["all"]:
    """Return the configurations that were asked for, each once, or ``all``.

    Raises:
        SettingsError: If one is unknown, or they contradict another option.
    """
    if options.configuration != "auto" or options.plan is not None:
        given = "--plan" if options.plan is not None else f"--configuration {options.configuration}"
        raise SettingsError(f"give --configurations or {given}, not both: each decides what is trained")
    if asked == "all":
        return "all"
    names = (asked,) if isinstance(asked, str) else tuple(dict.fromkeys(asked))
    if unknown := [name for name in names if name not in CONFIGURATIONS]:
        raise SettingsError(f"unknown configuration {unknown[0]!r}: expected of {', '.join(CONFIGURATIONS)}, or all")
    if not names:
        raise SettingsError(f"no configuration: expected one at least of {', '.join(CONFIGURATIONS)}, or all")
    return names  # type: ignore[return-value]  # they are known


def _configurations_of(fingerprint: Fingerprint) -> tuple[Configuration, ...]:
    """Return every configuration that a dataset can be trained in."""
    shapes = [case.shape for case in fingerprint.cases]
    is_flat = fingerprint.is_picture or any(all(shape[axis] == 1 for shape in shapes) for axis in range(len(shapes[0])))
    return ("2d",) if is_flat or fingerprint.num_dims == 2 else CONFIGURATIONS


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """One fold and where its training lies.

    Attributes:
        dataset: The dataset's folder.
        options: Of its run; ``out`` is its own folder.
        configuration: Its configuration, where several are trained.
    """

    dataset: Path
    options: TrainOptions
    configuration: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.configuration} fold {self.number}" if self.configuration else f"Fold {self.number}"

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
        file, options = self.folder / OPTIONS, self.options
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
            on_progress(f"{run.name} is finished already: {run.experiment}")
    failed: list[FoldRun] = []
    running: dict[int, tuple[FoldRun, subprocess.Popen[bytes]]] = {}
    with ended_with_us(running) as asked:
        while waiting or running:
            free = sorted(set(range(num_parallel)) - running.keys())
            for slot in free[: len(waiting)]:
                run = waiting.pop(0)
                on_progress(f"{run.name}: {'resumed' if run.experiment else 'begun'}, output in {run.log}")
                running[slot] = run, start_run(run, environment_of(slot, num_parallel, device))
            time.sleep(_POLL_S)
            if asked.is_pending:
                asked.obey()
            for slot in [slot for slot, (_, process) in running.items() if process.poll() is not None]:
                run, process = running.pop(slot)
                has_failed = bool(process.returncode) or run.scores is None
                failed += [run] if has_failed else []
                on_progress(f"{run.name}: {'failed' if has_failed else 'done'}")
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
