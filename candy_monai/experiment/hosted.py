"""An experiment whose training loop belongs to another library, so that a failure to write it must not end the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from candy_monai.errors import reason_in_short
from candy_monai.experiment.checkpoints import CheckpointRecord
from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.saving import Writer
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import Progress, RunState, RunWeights, TrainerState


class HostedExperiment(Experiment):
    """An `Experiment` that reports a failure to write instead of raising it, and writes again as soon as possible.

    After a failed save, the folder stays at the epoch that was saved before, and the next epoch is saved as usual. The
    weights of a best epoch that could not be saved do not count: the best score is again that of the saved weights.
    The user is warned by ``warn``.

    Raises:
        ExperimentError: If another process has locked the folder.
        RunFailedError: If the folder cannot be written to at the start.
    """

    def __init__(
        self, folder: Path, settings: TrainSettings, *, warn: Callable[[str], None], writes: bool = True
    ) -> None:
        super().__init__(folder, settings, writes=writes)
        self._warn = warn
        self._warned: set[str] = set()
        self._is_behind = False
        self._on_disk: tuple[Progress, dict[str, CheckpointRecord]] = Progress(), {}

    @override
    def restore(self, state: RunState) -> None:
        super().restore(state)
        self._on_disk = state.progress, dict(state.checkpoints)

    def go_on_from(self, before: HostedExperiment) -> None:
        """Read the progress of an earlier part of this run, whose last epochs may not have reached the disk."""
        self.progress = dataclasses.replace(before.progress)
        self.history.load_state_dict(before.history.state_dict())
        self.early_stopping.load_state_dict(before.early_stopping.state_dict())

    @override
    def wait_until_saved(self) -> None:
        """Wait until the last save is on disk, or has failed."""
        try:
            super().wait_until_saved()
        except Exception as error:
            self._writer = Writer()
            self._is_behind = True
            self._return_to_saved()
            self._report(error)

    @override
    def save_epoch(self, weights: RunWeights, state: TrainerState, *, score: float | None, is_best: bool) -> None:
        """Start to write the epoch to disk, if the disk can be written."""
        if self._is_behind and self._writes:
            self.wait_until_saved()
            try:
                self.checkpoints.reconcile()
            except Exception as error:
                self._return_to_saved()
                self._report(error)
                return
            self._is_behind = False
        super().save_epoch(weights, state, score=score, is_best=is_best)

    @override
    def log(self, message: str) -> str:
        """Append a message to ``logs.txt`` if possible, and return the line."""
        try:
            return super().log(message)
        except Exception as error:
            self._report(error)
            return message

    @override
    def describe(self, description: ExperimentDescription) -> None:
        """Write ``experiment.json`` again if possible, with the present settings."""
        try:
            super().describe(description)
        except Exception as error:
            self._report(error)

    @override
    def close(self) -> None:
        """Unlock the folder once nothing is being written."""
        try:
            super().close()
        except Exception as error:
            self._report(error)

    @override
    def _commit(self, saved: RunState, weights: Mapping[str, Any]) -> None:
        super()._commit(saved, weights)
        self._on_disk = saved.progress, dict(self.checkpoints.records)
        self._warned.clear()

    def _return_to_saved(self) -> None:
        saved, records = self._on_disk
        self.checkpoints.records = dict(records)
        self.progress.best_score, self.progress.best_epoch = saved.best_score, saved.best_epoch

    def _report(self, error: Exception) -> None:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else reason_in_short(cause)
        if reason in self._warned:
            return
        self._warned.add(reason)
        self._warn(
            f"{self.folder}: cannot be written ({reason}). The training continues, and writing is tried again after "
            f"each epoch; the folder is that of epoch {self._on_disk[0].epoch}"
        )
