"""Search the settings of planned runs with Optuna.

Each trial is a run in a separate process, in its own folder. Optuna proposes settings, stores the results, and decides
which trials to prune. This module starts the runs, reports their validation scores to Optuna during training, and ends
the pruned ones. A trial whose run was interrupted is marked as failed, and a new trial with its settings is enqueued,
which continues the run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, Trial, TrialState

from candy_monai.aliases import PathLike
from candy_monai.columns import EPOCH_DURATION, SCORE
from candy_monai.data.datasets.folds import pick_fold
from candy_monai.device import find_device
from candy_monai.errors import RunFailedError, SettingsError
from candy_monai.experiment.description import read_description
from candy_monai.experiment.folder import METRICS, FolderLock, held
from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.time_limit import epochs_in_time
from candy_monai.network import check_precision
from candy_monai.optional import require
from candy_monai.optuna.forecast_pruner import HORIZON, ForecastPruner
from candy_monai.recipes.cascade import first_stage_of
from candy_monai.recipes.launching import (
    Launcher,
    LauncherHere,
    RunningProcess,
    SeparateRun,
    ended_with_us,
    share_of_cores,
)
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.prepare import checked_dataset, checked_plan, chosen_folds, store_of
from candy_monai.recipes.sweep_space import SearchSpace
from candy_monai.recipes.sweep_study import (
    CONTINUES,
    EXPERIMENT,
    FAILURE,
    IS_INTERRUPTED,
    first_of,
    is_interrupted,
    journal_in,
    open_study,
    settings_of,
    write_results,
)
from candy_monai.recipes.train import Parts
from candy_monai.recipes.trainers import chosen_trainer

_POLL_S = 0.2
_PLACE = "candy_monai:place"


def sweep_dataset(
    dataset: PathLike,
    space: PathLike,
    options: TrainOptions | None = None,
    *,
    num_trials: int,
    num_parallel: int = 1,
    launcher: Launcher | None = None,
    storage: str | None = None,
    name: str | None = None,
    pruner: BasePruner | None = None,
    on_progress: Callable[[str], None] = print,
    **keywords: Any,
) -> Path:
    """Search settings of a dataset's runs for the best Dice of the validation cases.

    Each trial is a run as with `train_dataset`, in a separate process, in ``<out>/<name>/trial_<n>/``. Its value is the
    mean Dice of its best weights on the whole validation cases; for pruning it reports the validation score after each
    validated epoch. A trial that fails is recorded as failed, and the sweep continues.

    Args:
        dataset: The dataset's folder, nnU-Net format.
        space: A YAML or JSON file of the settings to search, see `SearchSpace.read`.
        options: The options of each run, except these settings; ``budget_s`` is the budget of one trial. None for the
            defaults.
        num_trials: Total number of trials of the study, including finished and failed ones of earlier calls and other
            machines.
        num_parallel: Number of trials at the same time; each gets its share of the CPU cores, and its own GPU if there
            are several.
        launcher: Starts the trials, such as a `JobLauncher` of ``candy_monai.recipes.jobs``; None for processes on this
            machine.
        storage: The URL of a database for Optuna, such as ``postgresql://...``, which several machines may share; None
            for a file in the sweep's folder.
        name: The name of the study and of its folder; None for ``sweep-<dataset>``.
        pruner: An Optuna pruner; None for a `ForecastPruner`.
        on_progress: Called with a line of text for each stage.
        **keywords: Fields of `TrainOptions`, in place of those of ``options``.

    Returns:
        The sweep's folder, which holds ``sweep.json`` (trials and the best of them) and ``sweep.html`` (plots).

    Raises:
        BadInputError: If the dataset, the settings or the options are invalid, or the study belongs to another sweep;
            nothing was trained.
        Interrupted: After Ctrl-C or SIGTERM, once the runs have finished their step and are saved; the same call
            continues them.
        RunFailedError: If no trial was completed.
    """
    for what, number in (("trials", num_trials), ("trials at the same time", num_parallel)):
        if number < 1:
            raise SettingsError(f"the number of {what} must be at least 1, got {number}")
    require("plotly", extra="optuna", purpose="draw the plots of a sweep")
    options = TrainOptions.of(options, keywords)
    if options.fold == "all":
        raise SettingsError("a sweep compares validation scores, and --fold all has no validation cases: choose a fold")
    searched = SearchSpace.read(space, options)
    launcher = launcher or LauncherHere(num_parallel, options.device)
    device = find_device("auto" if launcher.is_elsewhere else options.device)
    check_precision("auto" if launcher.is_elsewhere else options.amp, device)
    parts = Parts.of(options)  # what is wrong with them is better said once than by every trial
    options.to_json()  # refuses what only this process has
    store = store_of(options)
    on_progress(f"Checking {dataset}")
    checked = checked_dataset(dataset, store, jobs=options.jobs)
    fingerprint = checked.fingerprint
    assert fingerprint is not None  # a dataset without problems has one
    fold = pick_fold(chosen_folds(checked.dataset, options), options.fold)

    def check(chosen: TrainOptions) -> None:
        plan = checked_plan(fingerprint, chosen, chosen_trainer(chosen), device)
        first_stage_of(chosen, checked.dataset, plan, parts.own, [fold.validation])

    searched.check_with(options, check)
    name = name or f"sweep-{checked.dataset.folder.resolve().name}"
    if not re.fullmatch(r"[\w.-]+", name):
        raise SettingsError(
            f"--name is also the name of the sweep's folder: expected letters, digits, . _ -, got {name!r}"
        )
    folder = Path(options.out) / name
    folder.mkdir(parents=True, exist_ok=True)
    jobs = options.jobs
    if jobs is None and num_parallel > 1 and not launcher.is_elsewhere:
        jobs = share_of_cores(num_parallel)
    sweep = _Sweep(
        dataset=Path(dataset),
        folder=folder.resolve(),
        space=searched,
        options=dataclasses.replace(options, store=store.resolve(), jobs=jobs),
        num_trials=num_trials,
        num_parallel=num_parallel,
        launcher=launcher,
        say=on_progress,
    )
    with held(
        folder,
        "this sweep is running at this moment; for more trials at once give --jobs, on another machine another --out "
        "and the same --storage",
    ):
        seed = options.seed
        study = open_study(
            name,
            storage=storage if storage is not None else journal_in(folder),
            pruner=pruner or ForecastPruner(score_range=(0, 1)),
            settings=settings_of(checked.dataset.folder.resolve().name, fingerprint.digest, searched, options, fold),
            seed=seed,
        )
        try:
            sweep.run(study)
        finally:
            finished = write_results(study, folder)
    if not any(trial.state == TrialState.COMPLETE for trial in finished):
        finished = [trial for trial in finished if not is_interrupted(trial)]
        failures = [trial for trial in finished if trial.state == TrialState.FAIL]
        logs = ", ".join(str(trial.user_attrs.get(FAILURE)) for trial in failures)
        raise RunFailedError(f"none of {len(finished)} trials was completed; for the reasons, see {logs}")
    return folder


@dataclass
class _Running:
    """A trial that is being trained."""

    trial: Trial
    run: SeparateRun
    reported: int = 0
    read_at: int = 0
    horizon: int | None = None
    is_pruned: bool = False


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """Runs the trials of a study, with these options except the searched settings; ``say`` takes a line of text."""

    dataset: Path
    folder: Path
    space: SearchSpace
    options: TrainOptions
    num_trials: int
    num_parallel: int
    launcher: Launcher
    say: Callable[[str], None]
    _running: dict[int, tuple[_Running, RunningProcess]] = field(default_factory=dict)

    def run(self, study: optuna.Study) -> None:
        """Run trials until the study has the requested number.

        Raises:
            Interrupted: After Ctrl-C or SIGTERM; the runs are saved, and the study records which to continue.
        """
        if not self.launcher.is_elsewhere:  # there, a job that is left is waited for
            for trial in self._left_running(study):  # by an earlier call, which was killed
                self._refuse_running(self._run_of(trial))
        self._give_back(study)
        is_another_wanted = True  # once all are begun they stay so, and the storage need not be asked again
        try:
            with ended_with_us(self._running, self.launcher) as asked:
                while True:
                    while is_another_wanted and len(self._running) < self.num_parallel:
                        if is_another_wanted := self._is_another_wanted(study):
                            self._start(self._asked(study), study)
                    if not self._running:
                        return
                    time.sleep(_POLL_S)
                    if asked.is_pending:
                        asked.obey()
                    for slot in list(self._running):
                        self._look_at(slot, study)
        except BaseException:
            self._give_back(study)
            raise

    def _left_running(self, study: optuna.Study) -> list[Trial]:
        """Return the trials of this sweep on this machine that are marked as running in the study."""
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [
            Trial(study, trial._trial_id) for trial in running if trial.user_attrs.get(_PLACE) == self._place(trial)
        ]

    def _give_back(self, study: optuna.Study) -> None:
        """End the trials that are marked as running in the study, and enqueue those whose runs can be continued."""
        for running, process in self._running.values():
            if running.is_pruned or running.run.scores is not None:
                self._finish(running, study, code=process.poll() or 0)
        self._running.clear()
        for trial in self._left_running(study):
            if (experiment := self._run_of(trial).experiment) is not None:
                trial.set_user_attr(EXPERIMENT, str(experiment))
            trial.set_user_attr(IS_INTERRUPTED, True)
            study.tell(trial, state=TrialState.FAIL)
            study.enqueue_trial(trial.params, user_attrs={CONTINUES: first_of(trial)})
            self.say(f"Trial {trial.number} was interrupted; the same command continues its run")

    def _place(self, trial: Trial | FrozenTrial) -> str:
        machine = "" if self.launcher.is_elsewhere else platform.node()
        return f"{machine}:{self._folder_of(trial)}"

    def _folder_of(self, trial: Trial | FrozenTrial) -> Path:
        return self.folder / f"trial_{first_of(trial):03d}"

    def _is_another_wanted(self, study: optuna.Study) -> bool:
        begun = [trial for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        return sum(not is_interrupted(trial) for trial in begun) < self.num_trials

    def _asked(self, study: optuna.Study) -> Trial:
        """Return a new trial, enqueued ones first."""
        trial = study.ask(self.space.distributions())
        trial.set_user_attr(_PLACE, self._place(trial))
        return trial

    def _run_of(self, trial: Trial) -> SeparateRun:
        own = self._folder_of(trial)
        options = self.space.applied(self.options, trial.params)
        note = options.note or f"trial {first_of(trial)} of {self.folder.name}"
        options = dataclasses.replace(options, out=own, note=note)
        return SeparateRun(dataset=self.dataset, options=options, name=f"Trial {first_of(trial)}")

    def _refuse_running(self, run: SeparateRun) -> None:
        """Refuse to continue a run that a process of an earlier, killed call still trains."""
        if run.experiment is not None:
            FolderLock(run.experiment).release()

    def _start(self, trial: Trial, study: optuna.Study) -> None:
        what = ", ".join(f"{name}={value}" for name, value in trial.params.items())
        try:
            run = self._run_of(trial)
        except SettingsError as error:  # values that are right one by one may contradict each other
            trial.set_user_attr(FAILURE, str(error))
            study.tell(trial, state=TrialState.FAIL)
            self.say(f"Trial {trial.number} failed ({what}): {error}")
            return
        running = _Running(trial=trial, run=run)
        if run.scores is not None:  # it was interrupted between its end and its report
            self._finish(running, study, code=0)
            return
        self.say(f"Trial {trial.number} {'resumed' if run.experiment else 'started'}: {what}")
        slot = next(slot for slot in range(self.num_parallel) if slot not in self._running)
        self._running[slot] = running, self.launcher.start(run, slot)

    def _look_at(self, slot: int, study: optuna.Study) -> None:
        """Report the progress of a run to the study, and end the run if its trial is pruned."""
        running, process = self._running[slot]
        code = process.poll()
        if not running.is_pruned and _report(running) and code is None:
            self.say(f"Trial {running.trial.number} is pruned after epoch {running.reported}")
            running.is_pruned = True
            process.terminate()  # it finishes its step and saves
        if code is not None:
            del self._running[slot]
            self._finish(running, study, code=code)

    def _finish(self, running: _Running, study: optuna.Study, *, code: int) -> None:
        """Write the result of a trial to the study."""
        trial, run = running.trial, running.run
        _report(running)
        if run.experiment is not None:
            trial.set_user_attr(EXPERIMENT, str(run.experiment))
        dice = None if run.scores is None else _dice(run.scores)
        if dice is not None:
            study.tell(trial, dice)
            self.say(f"Trial {trial.number} is done: Dice {dice:.4f}")
        elif running.is_pruned and run.scores is None:
            study.tell(trial, state=TrialState.PRUNED)
        else:
            reason = "no validation case has a Dice" if run.scores is not None else f"exit code {code}, see {run.log}"
            trial.set_user_attr(FAILURE, reason)
            study.tell(trial, state=TrialState.FAIL)
            self.say(f"Trial {trial.number} failed: {reason}")
        write_results(study, self.folder, page=False)


def _report(running: _Running) -> bool:
    """Report the validation scores of newly finished epochs, and return whether the trial is to be pruned."""
    experiment = running.run.experiment
    if experiment is None or not (path := experiment / METRICS).is_file():
        return False
    if (written := path.stat().st_mtime_ns) == running.read_at:
        return False
    running.read_at, trial = written, running.trial
    metrics = load_metrics(path)
    horizon = _horizon(experiment, metrics)
    if horizon != running.horizon:
        running.horizon = horizon
        trial.set_user_attr(HORIZON, horizon)
    news = False
    for epoch, score in enumerate(metrics.get(SCORE, ()), start=1):
        if epoch > running.reported and not math.isnan(score):
            trial.report(score, epoch)
            running.reported, news = epoch, True
    return news and trial.should_prune()


def _horizon(experiment: Path, metrics: Mapping[str, list[float]]) -> int:
    """Return the number of epochs of a run according to its settings and its time limit."""
    description = read_description(experiment)
    durations = metrics.get(EPOCH_DURATION, [])
    return epochs_in_time(
        durations,
        elapsed_s=math.fsum(durations),
        num_epochs=int(description.setting("num_epochs")),
        limit_s=description.setting("time_limit_s"),
    )


def _dice(scores: Path) -> float | None:
    found = json.loads(scores.read_text(encoding="utf-8"))["foreground_mean"]["Dice"]
    return None if found is None else float(found)
