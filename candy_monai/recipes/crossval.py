"""Train every fold of a dataset in a separate process, several at a time, and summarise the scores.

An interrupted fold is resumed and a finished one skipped, so the same call continues after an interruption. The summary
of the scores is computed in `fold_scores`.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.folds import Fold
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.digest import Digests
from candy_monai.data.inspection.fingerprint import Fingerprint
from candy_monai.data.values import join_names, repeated
from candy_monai.device import find_device
from candy_monai.errors import BadInputError, RunFailedError, SettingsError
from candy_monai.experiment.description import differences, read_description
from candy_monai.experiment.folder import held
from candy_monai.experiment.runs import CROSS_VALIDATION, configurations_below
from candy_monai.files import atomic_write_json
from candy_monai.network import check_precision
from candy_monai.recipes.cascade import FIRST, SECOND, check_second_stage, first_stage_of
from candy_monai.recipes.fold_scores import score_the_rest, summary_of_folds, write_summary
from candy_monai.recipes.launching import (
    Launcher,
    LauncherHere,
    RunningProcess,
    SeparateRun,
    ended_with_us,
    share_of_cores,
)
from candy_monai.recipes.options import OF_A_MACHINE, TrainOptions
from candy_monai.recipes.prepare import (
    check_fold_options,
    checked_dataset,
    checked_plan,
    chosen_folds,
    given_files,
    store_of,
)
from candy_monai.recipes.train import Parts
from candy_monai.recipes.trained_on import change_in_words
from candy_monai.report.evaluation import write_cross_validation
from candy_monai.text import read_json

Configuration = Literal["2d", "3d", "3d_lowres", "3d_cascade"]
CONFIGURATIONS: tuple[Configuration, ...] = get_args(Configuration)
"""The configurations that can be trained on the same folds."""

OPTIONS = "options.json"
"""The options that the folds of a configuration have in common."""
_MAY_CHANGE = (*OF_A_MACHINE, "trust", "save_every", "no_references", "no_report")
"""Options that may be changed when a cross-validation is continued, since they do not affect what is learned."""
_POLL_S = 0.2


def cross_validate(
    dataset: PathLike,
    options: TrainOptions | None = None,
    *,
    configurations: Sequence[str] | Literal["all"] | None = None,
    num_parallel: int | None = None,
    launcher: Launcher | None = None,
    on_progress: Callable[[str], None] = print,
    **keywords: Any,
) -> Path:
    """Train every fold of a dataset in a separate process, and write a summary of their scores.

    The experiment and the log of each fold are in ``<out>/crossval-<dataset>/fold_<n>/``; with ``configurations``, in
    ``<out>/crossval-<dataset>/<configuration>/fold_<n>/``. Every case is scored by the model of the fold that left it
    out, including the cases for which the budget of a fold left no time.

    Args:
        dataset: The dataset's folder, nnU-Net format.
        options: The options of each fold's run, except ``fold``; ``budget_s`` is the budget of one fold. Your own
            trainers and frontends are given as ``FILE:Class``. None for the defaults.
        configurations: The configurations to train on the same folds: ``2d``, ``3d``, ``3d_lowres`` and, after that,
            ``3d_cascade``; ``all`` for those that suit the dataset; None for the one of ``options``.
        num_parallel: Number of folds trained at the same time; each gets its share of the CPU cores, also for
            preprocessing, and its own GPU if there are several. None for one, or as many as the launcher allows.
        launcher: Starts the folds, such as a `JobLauncher` of ``candy_monai.recipes.jobs``; None for processes on this
            machine.
        on_progress: Called with a line of text for each stage.
        **keywords: Fields of `TrainOptions`, in place of those of ``options``.

    Returns:
        The file with the summary, ``crossval.json``: the Dice (0 to 1) of each fold and class, their means and standard
        deviations over the folds, and the confidence interval of the mean over all cases; for each fold also its number
        of trained epochs and its best epoch; null for undefined values.
        With ``configurations``, it holds this under the name of each configuration.

    Raises:
        BadInputError: If the dataset or an option is invalid, a fold leaves out no case or one that another fold
            leaves out, too, existing folds were started on other cases or with other options, or another process trains
            them; nothing was trained.
        RunFailedError: If a fold failed; the others were trained nevertheless.
    """
    if num_parallel is not None and num_parallel < 1:
        raise SettingsError(f"the number of folds at the same time must be at least 1, got {num_parallel}")
    options = TrainOptions.of(options, keywords)
    asked = None if configurations is None else known_configurations(configurations, options)
    launcher = launcher or LauncherHere(num_parallel or 1, options.device)
    num_parallel = num_parallel or launcher.num_parallel
    device = find_device("auto" if launcher.is_elsewhere else options.device)
    check_precision("auto" if launcher.is_elsewhere else options.amp, device)
    parts = Parts.of(options)  # what is wrong with them is better said once than by every fold
    store = store_of(options)
    check_fold_options(dataset, options)
    on_progress(f"Checking {dataset}")
    found = checked_dataset(dataset, store, jobs=options.jobs)
    checked, fingerprint = found.dataset, found.fingerprint
    assert fingerprint is not None  # a dataset without problems has one, and digests
    assert found.digests is not None
    folds = chosen_folds(checked, options)
    for warning in (*_never_scored(folds, checked), *found.warnings_for(folds)):
        on_progress(f"Warning: {warning}")
    folder = Path(options.out) / f"crossval-{checked.folder.resolve().name}"
    if options.jobs is None and num_parallel > 1 and not launcher.is_elsewhere:
        options = dataclasses.replace(options, jobs=share_of_cores(num_parallel))
    if asked is None:
        plan = checked_plan(fingerprint, options, parts.trainer, device)
        first_stage_of(options, checked, plan, parts.own, [fold.validation for fold in folds])
        of_each = {"": dataclasses.replace(options, out=folder)}
    else:
        check = partial(_check_configuration, fingerprint=fingerprint, options=options, parts=parts, device=device)
        configured = _suitable(fingerprint, check, on_progress) if asked == "all" else asked
        of_each = _options_of_each(configured, options, folder, check)
        if unnamed := [name for name in configurations_below(folder) if name not in of_each]:
            on_progress(f"Warning: the summary will leave out {join_names(unnamed)} of {folder}: name them, too")
    runs: dict[str, list[SeparateRun]] = {name: [] for name in of_each}
    for name, number in itertools.product(of_each, range(len(folds))):
        own = Path(of_each[name].out) / f"fold_{number}"
        chosen = dataclasses.replace(of_each[name], fold=number, out=own, store=store)
        chosen.to_json()  # refuses what only this process has
        called = f"{name} fold {number}" if name else f"Fold {number}"
        runs[name].append(SeparateRun(dataset=Path(dataset), options=chosen, name=called))
    changes = [change for of_one in runs.values() for change in _checked(of_one, folds, checked, found.digests)]
    for change in dict.fromkeys(changes):
        on_progress(change)
    with held(folder, "this cross-validation is running at this moment; let it end, or give another folder (--out)"):
        for name, of_one in runs.items():
            _begun_alike(of_each[name], of_one)
        if asked is not None:  # so that the folder is known for what it is while the folds are trained
            write_summary(folder, {"configurations": dict.fromkeys(of_each)})
        failed = _run_stages(
            runs,
            num_parallel,
            launcher,
            on_progress,
            predict_first=partial(_predict_first_stage, checked, fingerprint, folds, parts, device, on_progress),
        )
        scoring = dataclasses.replace(options, device=str(device))
        summaries = {
            name: _summed_up(folder / name, of_one, checked, scoring, on_progress) for name, of_one in runs.items()
        }
        if asked is not None:
            write_summary(folder, {"configurations": summaries})
    if failed:
        logs = ", ".join(str(run.log) for run in failed)
        count = sum(map(len, runs.values()))
        raise RunFailedError(f"{len(failed)} of {count} folds failed; their logs say why: {logs}")
    return folder / CROSS_VALIDATION


def _never_scored(folds: Sequence[Fold], dataset: NNUNetDataset) -> Iterator[str]:
    """Yield a warning if some cases are left out by no fold.

    Raises:
        BadInputError: If a fold leaves out no case, or a case is left out by several, so that it would count twice.
    """
    if empty := [number for number, fold in enumerate(folds) if not fold.validation]:
        raise BadInputError(
            f"{dataset.folder}: fold {empty[0]} of {len(folds)} leaves out no case, so there is nothing to score; a "
            "cross-validation needs at least two cases, or two groups of them: train on all of them with 'train' and "
            "the fold 'all'"
        )
    left_out = [case_id for fold in folds for case_id in fold.validation]
    if twice := repeated(left_out):
        raise BadInputError(
            f"{dataset.folder}: the folds leave out {join_names(twice)} more than once, which would count that often "
            "in the scores over all cases; name each case in 'val' of one fold only, or train such folds one by one "
            "with 'train'"
        )
    scored = set(left_out)
    if missed := [case_id for case_id in dataset.case_ids if case_id not in scored]:
        yield f"the folds never leave out {join_names(missed)}; the scores are those of the other {len(left_out)} cases"


def _checked(
    runs: Sequence[SeparateRun], folds: Sequence[Fold], dataset: NNUNetDataset, digests: Digests
) -> Iterator[str]:
    """Yield a warning for each fold that was started on another state of the dataset.

    Raises:
        BadInputError: If one was started on other cases, some of which would be scored twice.
    """
    for run, fold in zip(runs, folds, strict=True):
        if run.experiment is None or (trained := read_description(run.experiment).dataset) is None:
            continue
        if trained.validation is not None and set(trained.validation) != set(fold.validation):
            raise BadInputError(
                f"{run.experiment}: was validated on {join_names(trained.validation)}, but {run.name} is now to be "
                f"validated on {join_names(fold.validation)}: give the options that the folds were started with, or "
                "another folder (--out)"
            )
        if change := change_in_words(trained, dataset, digests):
            yield change


def _begun_alike(options: TrainOptions, runs: Sequence[SeparateRun]) -> None:
    """Write the options that affect the training of a configuration's folds.

    Raises:
        BadInputError: If existing folds were started with other options, so that one table would mix both.
    """
    file = Path(options.out) / OPTIONS
    chosen = {name: value for name, value in json.loads(options.to_json()).items() if name not in _MAY_CHANGE}
    chosen = {name: value for name, value in chosen.items() if value not in (None, {}, [])}
    chosen |= (given := given_files(options))
    if options.previous is not None and Path(options.previous).parent == Path(options.out).parent:
        chosen["previous"] = Path(options.previous).name  # both are in the cross-validation's folder, which may move
    begun = any(run.experiment is not None for run in runs)
    # Earlier versions did not write the content of the files.
    if begun and file.is_file() and (changed := differences({**given, **read_json(file)}, chosen)):
        lines = "".join(f"\n  - {line}" for line in changed)
        raise BadInputError(
            f"{options.out}: its folds were started with other options (then -> now):{lines}\nGive those again, or "
            "another folder (--out)"
        )
    Path(options.out).mkdir(parents=True, exist_ok=True)
    atomic_write_json(file, chosen)


def _summed_up(
    folder: Path,
    runs: Sequence[SeparateRun],
    dataset: NNUNetDataset,
    options: TrainOptions,
    on_progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write the summary and the page of one configuration's folds, and return the summary."""
    for run in runs:
        score_the_rest(run.experiment, dataset, options, on_progress=on_progress)
    summary = summary_of_folds({run.options.fold: run.experiment for run in runs}, dataset.description)
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
    if options.previous is not None:
        raise SettingsError(
            f"give --configurations or --previous, not both: {SECOND} follows the {FIRST} that it names"
        )
    if asked == "all":
        return "all"
    names = (asked,) if isinstance(asked, str) else tuple(dict.fromkeys(asked))
    if unknown := [name for name in names if name not in CONFIGURATIONS]:
        raise SettingsError(f"unknown configuration {unknown[0]!r}: expected {', '.join(CONFIGURATIONS)}, or all")
    if not names:
        raise SettingsError(f"no configuration: expected at least one of {', '.join(CONFIGURATIONS)}, or all")
    if SECOND in names and FIRST not in names:
        raise SettingsError(f"{SECOND} needs {FIRST}, its first stage: give --configurations {FIRST},{SECOND}")
    return names  # type: ignore[return-value]  # they are known


def _suitable(
    fingerprint: Fingerprint, check: Callable[[Configuration], None], on_progress: Callable[[str], None]
) -> tuple[Configuration, ...]:
    """Return every configuration that suits a dataset; ``check`` raises an error for one that does not."""
    shapes = [case.shape for case in fingerprint.cases]
    is_flat = fingerprint.is_picture or any(all(shape[axis] == 1 for shape in shapes) for axis in range(len(shapes[0])))
    if is_flat or fingerprint.num_dims == 2:
        return ("2d",)
    found: list[Configuration] = ["2d", "3d"]
    try:
        for name in (FIRST, SECOND):
            check(name)
            found.append(name)
    except SettingsError as error:
        on_progress(f"Not trained: {error}")
    return tuple(found)


def _check_configuration(
    name: Configuration, *, fingerprint: Fingerprint, options: TrainOptions, parts: Parts, device: torch.device
) -> None:
    """Refuse a configuration that does not fit the dataset, the trainer or other options."""
    if name == SECOND:
        check_second_stage(options, parts.own, parts.trainer)
    checked_plan(fingerprint, dataclasses.replace(options, configuration=name), parts.trainer, device)


def _options_of_each(
    configurations: Sequence[Configuration],
    options: TrainOptions,
    folder: Path,
    check: Callable[[Configuration], None],
) -> dict[str, TrainOptions]:
    """Return the options of each configuration; one that does not fit the dataset is refused before the first fold."""
    of_each: dict[str, TrainOptions] = {}
    for name in configurations:
        check(name)
        previous = folder / FIRST if name == SECOND else None
        of_each[name] = dataclasses.replace(options, configuration=name, out=folder / name, previous=previous)
    return of_each


def _run_stages(
    runs: Mapping[str, Sequence[SeparateRun]],
    num_parallel: int,
    launcher: Launcher,
    on_progress: Callable[[str], None],
    *,
    predict_first: Callable[[TrainOptions], None],
) -> list[SeparateRun]:
    """Run what is not finished, the second stage of a cascade last, and return what failed."""
    before = [run for name, of_one in runs.items() if name != SECOND for run in of_one]
    failed = _run_all(before, num_parallel, launcher, on_progress)
    second = list(runs.get(SECOND, ()))
    if second and any(run in failed for run in runs[FIRST]):
        on_progress(f"{SECOND} is not trained, since its first stage failed")
        return failed
    if any(run.scores is None for run in second) and not launcher.is_elsewhere:
        predict_first(second[0].options)  # otherwise the first of these runs does, within its budget
    return [*failed, *_run_all(second, num_parallel, launcher, on_progress)]


def _predict_first_stage(
    dataset: NNUNetDataset,
    fingerprint: Fingerprint,
    folds: Sequence[Fold],
    parts: Parts,
    device: torch.device,
    on_progress: Callable[[str], None],
    options: TrainOptions,
) -> None:
    """Predict what the first stage of a cascade has not yet predicted; ``options`` are those of the second one."""
    plan = checked_plan(fingerprint, options, parts.trainer, device)
    stage = first_stage_of(options, dataset, plan, parts.own, [fold.validation for fold in folds])
    assert stage is not None
    stage.predict(device=str(device), on_progress=on_progress)


def _run_all(
    runs: Sequence[SeparateRun], num_parallel: int, launcher: Launcher, on_progress: Callable[[str], None]
) -> list[SeparateRun]:
    """Run what is not finished, and return what failed."""
    waiting = [run for run in runs if run.scores is None]
    for run in runs:
        if run not in waiting:
            on_progress(f"{run.name} is finished already: {run.experiment}")
    failed: list[SeparateRun] = []
    running: dict[int, tuple[SeparateRun, RunningProcess]] = {}
    with ended_with_us(running, launcher) as asked:
        while waiting or running:
            free = sorted(set(range(num_parallel)) - running.keys())
            for slot in free[: len(waiting)]:
                run = waiting.pop(0)
                on_progress(f"{run.name}: {'resumed' if run.experiment else 'started'}, output in {run.log}")
                running[slot] = run, launcher.start(run, slot)
            time.sleep(_POLL_S)
            if asked.is_pending:
                asked.obey()
            codes = {slot: code for slot, (_, process) in running.items() if (code := process.poll()) is not None}
            for slot, code in codes.items():
                run, _ = running.pop(slot)
                has_failed = bool(code) or run.scores is None
                failed += [run] if has_failed else []
                on_progress(f"{run.name}: {'failed' if has_failed else 'done'}")
    return failed
