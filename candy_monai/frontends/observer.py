"""Tells a frontend what happens in a run. Knows the four callbacks, not the services behind them."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, Event, RunFinished, RunInterrupted, RunStarted
from candy_monai.frontends.base import Frontend
from candy_monai.observers.base import Observer


class FrontendObserver(Observer):
    """Translates events into a frontend's callbacks.

    Meant for a thread of its own, which no Ctrl-C reaches: what a callback raises is always an error of its own.

    Args:
        frontend: The dashboard. It gets copies of all lists, so it cannot change the run's.
        log: Writes a message of the dashboard's into the run's log.
    """

    def __init__(self, frontend: Frontend, log: Callable[[str], None]) -> None:
        self.name = type(frontend).__name__
        self._frontend = frontend
        self._log = log
        self._experiment_id = ""

    @override
    def receive(self, event: Event) -> None:
        try:
            super().receive(event)
        except Exception:
            raise
        except BaseException as error:  # SystemExit would end the thread without a word
            raise RuntimeError(f"a callback raised {error!r}") from error

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._experiment_id = event.experiment_id
        self._frontend.log_to(self._log)
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
