"""Tells a frontend what happens in a run. Knows the four callbacks, not the services behind them."""

from __future__ import annotations

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, RunFinished, RunInterrupted, RunStarted
from candy_monai.frontends.base import Frontend
from candy_monai.observers.base import Observer


class FrontendObserver(Observer):
    """Translates events into a frontend's callbacks.

    Args:
        frontend: The dashboard.
    """

    def __init__(self, frontend: Frontend) -> None:
        self.name = type(frontend).__name__
        self._frontend = frontend
        self._experiment_id = ""

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._experiment_id = event.experiment_id
        self._frontend.on_experiment_created(
            event.experiment_id,
            event.trainer,
            event.model,
            event.note,
            event.num_params,
            event.num_macs,
            event.num_epochs,
            event.early_stop_tolerance,
        )

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        metrics = {name: list(values) for name, values in event.metrics.items()}
        self._frontend.on_experiment_updated(self._experiment_id, event.epoch, metrics, event.early_stop_tolerance)

    @override
    def on_run_finished(self, event: RunFinished) -> None:
        self._frontend.on_experiment_completed(self._experiment_id)

    @override
    def on_run_interrupted(self, event: RunInterrupted) -> None:
        self._frontend.on_experiment_interrupted(self._experiment_id, event.error)
