"""One run on disk and in memory: the folder and the collaborators that fill it, and the order in which they write.

Owns what survives a crash. Knows no Trainer, no network and no data: it is handed weights and states and stores them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from candy_monai.errors import ExperimentError
from candy_monai.experiment.checkpoints import BEST, LATEST, Checkpoints, Weights, WeightsKind, checkpoint_name
from candy_monai.experiment.early_stopping import EarlyStopping
from candy_monai.experiment.events import EpochFinished, Preview, RunFinished
from candy_monai.experiment.folder import (
    DESCRIPTION,
    FORMAT,
    LOGS,
    METRICS,
    STATE,
    Json,
    environment,
    publish_folder,
)
from candy_monai.experiment.history import History
from candy_monai.experiment.log import RunLog
from candy_monai.experiment.progress import Progress
from candy_monai.experiment.settings import TrainSettings
from candy_monai.files import atomic_path, atomic_write_text

State = Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class EpochWeights:
    """The weights at the end of an epoch.

    Attributes:
        raw: As the optimizer left them.
        scored: The weights that validation scores: the moving average where there is one, else ``raw``.
        kind: What ``scored`` is.
    """

    raw: Weights
    scored: Weights
    kind: WeightsKind


class Experiment:
    """One run's folder, settings, progress, history, early stopping, checkpoints and log.

    Args:
        folder: The published experiment folder.
        settings: What ``train`` was told, the drawn seed among it.
        clock: Tells seconds.

    Attributes:
        is_out_of_time: Whether one more epoch, as long as those before, would exceed the time limit.
    """

    def __init__(self, folder: Path, settings: TrainSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.settings = settings
        self.progress = Progress()
        self.history = History()
        self.early_stopping = EarlyStopping(settings.early_stop_tolerance)
        self.checkpoints = Checkpoints(folder, num_epochs=settings.num_epochs, num_checkpoints=settings.num_checkpoints)
        self._log = RunLog(folder / LOGS)
        self._clock = clock
        self._started = clock()
        self.is_out_of_time = False

    @classmethod
    def create(
        cls, parent: Path, settings: TrainSettings, facts: Json, initial_state: Callable[[], State]
    ) -> Experiment:
        """Publish a new folder that holds its description and a first state, and return its experiment.

        Args:
            parent: The folder of this trainer's experiments.
            settings: What ``train`` was told.
            facts: More for ``experiment.json``: trainer, network, plan, dataset.
            initial_state: The states of optimizer, scheduler and the rest before the first step.
        """

        def fill(folder: Path, experiment_id: str) -> None:
            description = {
                "format": FORMAT,
                "id": experiment_id,
                **facts,
                "settings": settings.as_dict(),
                "environment": environment(),
            }
            atomic_write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
            (folder / LOGS).touch()
            cls(folder, settings).save_state(initial_state())

        return cls(publish_folder(parent, fill), settings)

    @property
    def experiment_id(self) -> str:
        """The experiment's id, which is its folder's name."""
        return self.folder.name

    @property
    def is_complete(self) -> bool:
        """Whether no epoch is left: all are done, the score has stopped getting better, or the time is up."""
        all_done = self.progress.epoch >= self.settings.num_epochs
        return all_done or self.early_stopping.triggered or self.is_out_of_time

    def _another_epoch_takes_too_long(self) -> bool:
        limit, done = self.settings.time_limit_s, self.progress.epoch
        elapsed = self._clock() - self._started
        return limit is not None and done < self.settings.num_epochs and elapsed * (done + 1) / done > limit

    def log(self, message: str) -> str:
        """Append a message to ``logs.txt`` and return the line as written."""
        return self._log.write(message)

    def finish_epoch(self, score: float | None) -> bool:
        """Close the epoch's metrics, move on by one epoch and say whether its weights are the best so far.

        Args:
            score: The epoch's validation score; None if it was not validated, which counts neither for nor against it.
        """
        self.history.close_epoch()
        self.progress.epoch += 1
        self.is_out_of_time = self._another_epoch_takes_too_long()
        if score is None:
            return False
        improved = self.progress.offer(score, epoch=self.progress.epoch)
        self.early_stopping.update(improved=improved)
        return improved

    def save_epoch(self, weights: EpochWeights, state: State, *, score: float | None, is_best: bool) -> None:
        """Write the epoch to disk: weight files, then ``metrics.csv``, then ``state.pt``, which is the only commit.

        Args:
            weights: The weights at the end of the epoch.
            state: The states of optimizer, scheduler and the rest.
            score: The validation score of ``weights.scored``.
            is_best: Whether ``checkpoint_best.pth`` becomes ``weights.scored``.
        """
        epoch, kind = self.progress.epoch, weights.kind
        raw_score = score if kind == "raw" else None
        self.checkpoints.save(LATEST, weights.raw, epoch=epoch, score=raw_score, kind="raw")
        if is_best:
            self.checkpoints.save(BEST, weights.scored, epoch=epoch, score=score, kind=kind)
        if self.checkpoints.is_due(epoch, is_last=self.is_complete):
            self.checkpoints.save(checkpoint_name(epoch), weights.scored, epoch=epoch, score=score, kind=kind)
        self.history.save_csv(self.folder / METRICS)
        self.save_state(state)

    def epoch_finished(self, score: float | None, preview: Preview | None) -> EpochFinished:
        """Return the event that tells of the last finished epoch.

        Args:
            score: Its validation score; None if it was not validated.
            preview: The case to look at.
        """
        return EpochFinished(
            epoch=self.progress.epoch,
            num_epochs=self.settings.num_epochs,
            metrics=self.history.metrics(),
            score=score,
            best_score=self.progress.best_score,
            best_epoch=self.progress.best_epoch,
            early_stop_tolerance=self.early_stopping.remaining,
            preview=preview,
        )

    def finished(self) -> RunFinished:
        """Return the event that tells of the run's end."""
        progress = self.progress
        return RunFinished(epoch=progress.epoch, best_score=progress.best_score, best_epoch=progress.best_epoch)

    def save_state(self, state: State) -> None:
        """Write ``state.pt``: the collaborators' states and what is passed in, as tensors and plain values."""
        own = {
            "format": FORMAT,
            "progress": self.progress.state_dict(),
            "history": self.history.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
            "checkpoints": self.checkpoints.state_dict(),
        }
        with atomic_path(self.folder / STATE) as temporary:
            torch.save({**own, **state}, temporary)


def load_state(folder: Path) -> dict[str, object]:
    """Read ``state.pt`` onto the CPU. Nothing in it is executed.

    Raises:
        ExperimentError: If it is missing, damaged or of another format.
    """
    path = folder / STATE
    if not path.is_file():
        raise ExperimentError(f"{path}: missing, so this run cannot be continued or checked")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ExperimentError(f"{path}: not readable ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ExperimentError(f"{path}: not a state of format {FORMAT}")
    return state
