"""One run on disk and in memory: its folder, the parts of it, and the order in which they are written."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from candy_monai.aliases import Scalar
from candy_monai.columns import EPOCH_DURATION, LEARNING_RATE, SCORE
from candy_monai.experiment.checkpoints import BEST, LATEST, Checkpoints, Weights, checkpoint_name
from candy_monai.experiment.description import ExperimentDescription, write_description
from candy_monai.experiment.early_stopping import EarlyStopping
from candy_monai.experiment.events import EpochFinished, Preview, RunFinished, Validated
from candy_monai.experiment.folder import (
    LOGS,
    METRICS,
    VALIDATION_SCORES,
    FolderLock,
    disk_failures_of,
    log_line,
    publish_folder,
)
from candy_monai.experiment.history import History
from candy_monai.experiment.saving import Snapshots, Writer
from candy_monai.experiment.score_prediction import Knowledge, chance_of_gain, predict_safely
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import Progress, RunState, RunWeights, TrainerState, load_state, save_state
from candy_monai.experiment.time_limit import LEAST_SHARE, StepPace, epochs_in_time
from candy_monai.files import atomic_write_text
from candy_monai.forecasting.best_score import Forecast
from candy_monai.forecasting.curve import ScoreRange


class Experiment:
    """One run's folder, settings, progress, history, early stopping, checkpoints and log.

    It locks its folder against other processes until `close`.

    Args:
        folder: The published experiment folder.
        settings: The arguments of ``train``, including the drawn seed.
        writes: Whether this process writes the files; the other processes of a run only count.
        clock: Returns the time in seconds.

    Attributes:
        forecast: The forecast of the best score after the last validated epoch; None before the first.
        score_range: The smallest and the largest possible score; None if unknown.
        references: The scores of earlier runs of the same task, which the forecast learns from.
        references_have_same_settings: Whether they were trained with the settings of this run.
        num_validated: Number of cases in the last mean score; None if unknown.
        standard_error: The standard error of that mean; NaN if unknown.
        best_num_validated: Number of cases in the best mean score.
        best_standard_error: The standard error of that mean.
        is_stopped: Whether the library whose loop trains has ended the run before its last epoch.

    Raises:
        ExperimentError: If another process has locked the folder.
        RunFailedError: If the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainSettings,
        *,
        writes: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.settings = settings
        self.progress = Progress()
        self.history = History()
        self.early_stopping = EarlyStopping(
            settings.early_stop_tolerance, confidence=settings.early_stop_confidence, margin=settings.early_stop_margin
        )
        self.forecast: Forecast | None = None
        self.score_range: ScoreRange | None = None
        self.references: Sequence[Sequence[float]] = ()
        self.references_have_same_settings = False
        self.num_validated: int | None = None
        self.standard_error = self.best_standard_error = math.nan
        self.best_num_validated: int | None = None
        self.is_stopped = False
        self._pace, self._promised_epochs = StepPace(), 0
        self._save_s = self._longest_save_s = 0.0  # that is counted on; measured, by the thread that saves
        self.checkpoints = Checkpoints(folder, num_epochs=settings.num_epochs, num_checkpoints=settings.num_checkpoints)
        self._writes = writes
        with disk_failures_of(folder):
            self._lock = FolderLock(folder) if writes else None
        self._writer, self._snapshots = Writer(), Snapshots()
        self._clock = clock
        self._epoch_started = self._counted_until = clock()

    @staticmethod
    def publish(
        parent: Path,
        settings: TrainSettings,
        description: ExperimentDescription,
        weights: RunWeights,
        state: TrainerState,
        *,
        files: Mapping[str, str | Path] = MappingProxyType({}),
    ) -> Path:
        """Create a new folder with its description and a first state, and return it.

        Args:
            parent: The folder of this trainer's experiments.
            settings: What ``train`` was told.
            description: The description of trainer, network, plan and dataset; id, settings and environment are added.
            weights: The weights before the first step.
            state: The states of the trainer's parts.
            files: The texts of further initial files, or the files to copy, by their paths in the folder.
        """

        def fill(folder: Path, experiment_id: str) -> None:
            _describe(folder, description, experiment_id, settings)
            (folder / LOGS).touch()
            for name, content in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, folder / name)
                else:
                    atomic_write_text(folder / name, content)
            run = Experiment(folder, settings)
            run.save_point(weights, state)
            run.wait_until_saved()
            run.close()
            load_state(folder)  # what cannot be read again is better known before the first step

        return publish_folder(parent, fill)

    def restore(self, state: RunState) -> None:
        """Continue from a saved state, and make the files of the folder consistent with it.

        Raises:
            ExperimentError: If a weight file that the state names is missing or is another.
            RunFailedError: If the folder cannot be written to.
        """
        self.progress = dataclasses.replace(state.progress)
        self.history.load_state_dict(state.history)
        self.early_stopping.load_state_dict(state.early_stopping)
        self.checkpoints.records = dict(state.checkpoints)
        if not self._writes:
            return
        with disk_failures_of(self.folder):
            self.checkpoints.reconcile()
            if len(self.history):
                self.history.save_csv(self.folder / METRICS)

    def close(self) -> None:
        """Unlock the folder once nothing is being written."""
        self._writer.join()
        self._snapshots = Snapshots()  # as large as the run's weights and optimizer
        try:
            self.checkpoints.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    @contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Unlock the folder if a block raises."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    @property
    def experiment_id(self) -> str:
        """The id of the experiment, which is the name of its folder."""
        return self.folder.name

    @property
    def is_complete(self) -> bool:
        """Whether no epoch is left: all are done, early stopping was triggered, or the time is up."""
        all_done = self.progress.epoch >= self.settings.num_epochs
        return all_done or self.is_stopped or self.early_stopping.triggered or self.is_out_of_time

    @property
    def is_out_of_time(self) -> bool:
        """Whether epochs are left, but not enough time for a useful part of one."""
        return self.expected_epochs() <= self.progress.epoch < self.settings.num_epochs

    def expected_epochs(self, *, current_s: float | None = None) -> int:
        """Return the number of epochs of this run: those planned, or as many as fit into the time limit.

        ``current_s`` are the seconds that the current epoch has taken; None between two epochs.
        """
        current = () if current_s is None else (current_s,)
        limit_s = self.settings.time_limit_s
        expected = epochs_in_time(
            [*self.history.column(EPOCH_DURATION), *current],
            elapsed_s=self.progress.total_s + sum(current),
            num_epochs=self.settings.num_epochs,
            limit_s=None if limit_s is None else limit_s - self._save_s,
            closing_s=self._pace.coming_closing_s,
        )
        return min(max(expected, self._promised_epochs), self.settings.num_epochs)

    def step_done(self, *, num_batches: int) -> None:
        """Record the time of an optimizer step of so many batches."""
        if self.settings.time_limit_s is not None:
            self._pace.step_done(self.epoch_s, num_batches=num_batches)

    @property
    def left_s(self) -> float:
        """Seconds left for training within the time limit, without the known time for work after the last step."""
        limit_s = self.settings.time_limit_s
        if limit_s is None:
            return math.inf
        closing_s = self._pace.coming_closing_s or 0.0
        return limit_s - self.progress.total_s - self.epoch_s - closing_s - self._longest_save_s

    @property
    def batches_left(self) -> int | None:
        """Number of batches that fit into the time limit at the present pace, at least 1; None if unknown."""
        return None if math.isinf(self.left_s) else self._pace.batches_in(self.left_s)

    def ends_with_this_epoch(self) -> bool:
        """Return whether the current epoch is the last; if not, there will be another one in any case.

        An epoch that is not validated because it is not the last must be followed by a validated one. So there must be
        time for a useful part of that one, at the speed of this epoch.
        """
        epoch = self.progress.epoch + 1
        if self.left_s <= LEAST_SHARE * self.epoch_s or epoch >= self.expected_epochs(current_s=self.epoch_s):
            return True
        if self.settings.time_limit_s is not None:
            self._promised_epochs = epoch + 1
        return False

    def clock_state(self) -> dict[str, Any]:
        """Return the state that determines the number of remaining epochs, on which several processes must agree."""
        return {
            "history": self.history.state_dict(),
            "total_s": self.progress.total_s,
            "early_stopping": self.early_stopping.state_dict(),
            "promised_epochs": self._promised_epochs,
            "closing_s": self._pace.closing_s,
            "save_s": self._save_s,
        }

    def load_clock_state(self, state: Mapping[str, Any]) -> None:
        """Load the `clock_state` of another process, to use its clock."""
        self.history.load_state_dict(state["history"])
        self.progress.total_s = state["total_s"]
        self.early_stopping.load_state_dict(state["early_stopping"])
        self._promised_epochs, self._pace.closing_s = state["promised_epochs"], state["closing_s"]
        self._save_s = self._longest_save_s = state["save_s"]

    def score_rests_on(self, num_cases: int, standard_error: float) -> None:
        """Record the number of cases in the mean score of the current epoch, and its standard error."""
        self.num_validated, self.standard_error = num_cases, standard_error

    def log(self, message: str) -> str:
        """Append a message to ``logs.txt`` and return the line as written.

        Raises:
            RunFailedError: If it cannot be written.
        """
        if not self._writes:
            return message
        with disk_failures_of(self.folder):
            return log_line(self.folder, message)

    def begin_epoch(self, learning_rate: Scalar) -> None:
        """Start the epoch's clock and record its first learning rate, unless an interrupted epoch goes on."""
        if not self.progress.batch:
            self.progress.learning_rate, self.progress.epoch_s = float(learning_rate), 0.0
        self._epoch_started = self._clock()
        self._pace.begin_epoch()

    @property
    def epoch_s(self) -> float:
        """Seconds that the current epoch has taken, before an interruption too."""
        return self.progress.epoch_s + self._clock() - self._epoch_started

    def finish_epoch(self, score: float | None) -> bool:
        """Close the epoch's metrics, go to the next epoch, and return whether its weights are the best so far.

        The validation score is None if it was not validated.
        """
        progress, duration = self.progress, self.epoch_s
        self._pace.end_epoch(duration, validated=score is not None)
        self._save_s = self._longest_save_s  # only now: a save must not change whether the epoch that it saves is last
        of_the_score = {} if score is None else {SCORE: score}
        self.history.close_epoch({**of_the_score, LEARNING_RATE: progress.learning_rate, EPOCH_DURATION: duration})
        now = self._clock()
        progress.epoch += 1
        progress.total_s += progress.epoch_s + now - self._counted_until  # what was saved since the last one, too
        progress.batch, progress.learning_rate, progress.epoch_s = 0, Progress.learning_rate, 0.0
        self._epoch_started = self._counted_until = now
        if score is None:
            return False
        improved = progress.offer(score, epoch=progress.epoch)
        if improved:
            self.best_num_validated, self.best_standard_error = self.num_validated, self.standard_error
        self.forecast = self._predict()
        scores = self.history.column(SCORE)
        chance = chance_of_gain(self.forecast, scores, margin=self.settings.early_stop_margin)
        self.early_stopping.update(improved=improved, chance=chance)
        return improved

    def _predict(self) -> Forecast | None:
        if not self.settings.forecasts:
            return None
        degree = self.settings.val_score_prediction_degree
        return predict_safely(self.history.metrics(), self.expected_epochs(), degree=degree, **self.knowledge)

    @property
    def knowledge(self) -> Knowledge:
        """What a forecast knows besides the run's own metrics, as keywords of `predict_maximum`."""
        return {
            "score_range": self.score_range,
            "references": self.references,
            "same_settings": self.references_have_same_settings,
        }

    def save_epoch(self, weights: RunWeights, state: TrainerState, *, score: float | None, is_best: bool) -> None:
        """Start to write the epoch to disk: weight files, then ``state.pt`` (the commit), then the other files.

        Returns once everything is copied. A thread writes it; `wait_until_saved` waits for it and raises its errors.

        Args:
            weights: The weights at the end of the epoch.
            state: The states of optimizer, scheduler and the rest.
            score: The validation score of ``weights.scored``.
            is_best: Whether ``checkpoint_best.pth`` becomes ``weights.scored``; then the scores of the earlier ones,
                ``validation.json``, are removed.

        Raises:
            RunFailedError: If the previous save failed.
        """
        if not self._writes:
            return
        self.wait_until_saved()
        epoch, kind = self.progress.epoch, weights.kind
        raw_score = score if kind == "raw" else None
        names = [BEST] if is_best else []
        if self.checkpoints.is_due(epoch, is_last=self.is_complete):
            names.append(checkpoint_name(epoch))
        copied, saved = self._copied(weights, state, dataclasses.replace(self.progress))

        def write() -> None:
            self.checkpoints.stage(LATEST, copied.raw, epoch=epoch, score=raw_score, kind="raw")
            for name in names:
                self.checkpoints.stage(name, copied.scored, epoch=epoch, score=score, kind=kind)
            if is_best:  # the scores are of the weights that are replaced
                (self.folder / VALIDATION_SCORES).unlink(missing_ok=True)
            self._commit(saved, copied.to_dict(raw=False, scored=not names))
            self.checkpoints.publish()
            history = History()
            history.load_state_dict(saved.history)
            history.save_csv(self.folder / METRICS)

        self._begin_to(write)

    def save_point(self, weights: RunWeights, state: TrainerState) -> None:
        """Start to write ``state.pt`` with all weights in it: within an epoch, or before the first.

        Raises:
            RunFailedError: If the previous save failed.
        """
        if not self._writes:
            return
        self.wait_until_saved()
        copied, saved = self._copied(weights, state, dataclasses.replace(self.progress, epoch_s=self.epoch_s))
        self._begin_to(lambda: self._commit(saved, copied.to_dict(raw=True, scored=True)))

    @property
    def is_saved(self) -> bool:
        """Whether nothing is being written."""
        return not self._writer.is_busy

    def wait_until_saved(self) -> None:
        """Wait until the last save is on disk.

        Raises:
            RunFailedError: If it could not be written; the state saved before is complete.
        """
        self._writer.wait()

    def describe(self, description: ExperimentDescription) -> None:
        """Write ``experiment.json`` again, with the present settings.

        Raises:
            RunFailedError: If it cannot be written.
        """
        if not self._writes:
            return
        self.wait_until_saved()
        with disk_failures_of(self.folder):
            _describe(self.folder, description, self.experiment_id, self.settings)

    def epoch_finished(
        self, score: float | None, preview: Preview | None, validated: Validated | None = None
    ) -> EpochFinished:
        """Return the event for the last finished epoch."""
        return EpochFinished(
            epoch=self.progress.epoch,
            num_epochs=self.expected_epochs(),
            metrics=self.history.metrics(),
            score=score,
            best_score=self.progress.best_score,
            best_epoch=self.progress.best_epoch,
            early_stop_tolerance=self.early_stopping.remaining,
            preview=preview,
            forecast=None if score is None else self.forecast,
            score_range=self.score_range,
            has_time_limit=self.settings.time_limit_s is not None,
            num_validated=None if score is None else self.num_validated,
            standard_error=math.nan if score is None else self.standard_error,
            validated=validated,
            step=self.progress.step,
        )

    def finished(self) -> RunFinished:
        """Return the event for the end of the run."""
        progress = self.progress
        return RunFinished(epoch=progress.epoch, best_score=progress.best_score, best_epoch=progress.best_epoch)

    def _copied(self, weights: RunWeights, state: TrainerState, progress: Progress) -> tuple[RunWeights, RunState]:
        """Copy what is to be written: all but what is known only when the weight files are."""
        raw, scored, parts = self._snapshots.of((weights.raw, weights.scored, vars(state)))
        saved = RunState(
            settings=self.settings,
            progress=progress,
            history=self.history.state_dict(),
            early_stopping=self.early_stopping.state_dict(),
            is_complete=self.is_complete,
            kind=weights.kind,
            trainer=TrainerState(**parts),
        )
        return RunWeights(raw=raw, scored=scored, kind=weights.kind), saved

    def _commit(self, saved: RunState, weights: Mapping[str, Weights]) -> None:
        state = dataclasses.replace(saved, checkpoints=dict(self.checkpoints.records), weights=weights)
        save_state(self.folder, state, confirm=self.checkpoints.confirm_staged)

    def _begin_to(self, write: Callable[[], None]) -> None:
        def work() -> None:
            started = self._clock()
            with disk_failures_of(self.folder):
                write()
            self._longest_save_s = max(self._longest_save_s, self._clock() - started)

        self._writer.start(work)


def _describe(folder: Path, description: ExperimentDescription, experiment_id: str, settings: TrainSettings) -> None:
    write_description(folder, dataclasses.replace(description, id=experiment_id, settings=settings.as_dict()))
