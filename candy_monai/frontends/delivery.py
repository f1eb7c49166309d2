"""Deliver a run's events to a dashboard without the run waiting for it.

A dashboard may be slow, hang or fail. Each one has its own thread, so it does not delay the run. At its end, the run
waits briefly for a dashboard that makes progress; remaining events are delivered in the background. When the program
ends, there is a last, bounded wait for the rest.
"""

from __future__ import annotations

import atexit
import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, Event, RunFinished, RunInterrupted, RunScored, RunStarted
from candy_monai.frontends.base import Frontend
from candy_monai.observers.base import BackgroundObserver, Observer, ObserverGroup

SHARE = 0.01
"""Maximum share of the run's time that its end waits for a dashboard."""
MOMENT_S = 0.5
"""In a short run: seconds after which a call counts as stuck; the total wait is twice as long."""
LAST_CALL_S = 5.0
"""Seconds after which a call counts as stuck when the program ends, or four times the longest call so far."""
LAST_CHANCE_S = 30.0
"""Maximum seconds that the end of the program waits for all dashboards together."""
MAX_WAITING = 8
"""Maximum number of pending events for a dashboard, even if each call is short."""

_POLL_S = 0.02
_unfinished: list[Delivery] = []


class Tally:
    """Counts the events that are sent to a dashboard, and those delivered without an error."""

    def __init__(self, *, catches_up: bool = False) -> None:
        self._catches_up = catches_up
        self._sent: list[str] = []
        self._told: list[str] = []
        self._epochs_sent = self._epochs_told = self._last_sent = self._last_told = 0

    def send(self, event: Event) -> None:
        """Count an event that was sent."""
        if isinstance(event, EpochFinished):
            self._epochs_sent += 1
            if self._epochs_sent == 1:
                self._last_told = event.epoch - 1
            self._last_sent = event.epoch
        else:
            self._sent.append(_NAMES[type(event)])

    def tell(self, event: Event) -> None:
        """Count an event that was delivered."""
        if isinstance(event, EpochFinished):
            self._epochs_told += 1
            self._last_told = event.epoch
        else:
            self._told.append(_NAMES[type(event)])

    def untold(self) -> str:
        """Return in words which events were sent but not delivered; empty if none."""
        by_number = self._last_sent - self._last_told
        epochs = by_number if self._catches_up else self._epochs_sent - self._epochs_told
        parts = [name for name in self._sent if name not in self._told]
        if epochs:
            parts.insert(parts[:1] == [_NAMES[RunStarted]], f"{epochs} of {self._epochs_sent} epochs")
        return " and ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


_NAMES: dict[type, str] = {
    RunStarted: "the start",
    RunFinished: "the end",
    RunInterrupted: "the interruption",
    RunScored: "the final scores",
}


class FrontendObserver(Observer):
    """Converts events to calls of a frontend's callbacks, with copies of all lists, so it cannot change the run's."""

    def __init__(self, frontend: Frontend, log: Callable[[str], None], tally: Tally | None = None) -> None:
        self.name = type(frontend).__name__
        self._frontend = frontend
        self._log = log
        self._tally = tally
        self._experiment_id = ""

    @override
    def receive(self, event: Event) -> None:
        if isinstance(event, EpochFinished):
            event = dataclasses.replace(
                event, preview=None, metrics={name: list(values) for name, values in event.metrics.items()}
            )
        super().receive(event)
        self._frontend.on_event(event)
        if self._tally is not None:
            self._tally.tell(event)

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

    @override
    def close(self) -> None:
        if self._experiment_id:
            self._frontend.on_experiment_closed(self._experiment_id)


class Delivery(BackgroundObserver):
    """The delivery of one run's events to one dashboard.

    The start and the end of the run are always delivered, and the epochs as long as the dashboard is fast enough. For a
    slow one, an epoch replaces pending epochs.
    """

    def __init__(self, frontend: Frontend, report: Callable[[str], None], *, after: Delivery | None = None) -> None:
        self.stays_open = False  # whether more events follow after the run, so that closing has no effect yet
        self._started = time.monotonic()
        self._busy_since: float | None = None
        self._longest_call_s = 0.0
        self._after = after  # the previous run's, finished first: no dashboard is called by two threads at once
        self._report = report  # may be called from another thread, and after the run
        self._tally = Tally(catches_up=frontend.catches_up)
        observer = ObserverGroup([FrontendObserver(frontend, report, self._tally)], report)
        super().__init__(observer, patience_s=0.0)
        self.name = type(frontend).__name__

    @override
    def receive(self, event: Event) -> None:
        if isinstance(event, EpochFinished):
            event = dataclasses.replace(event, preview=None)  # tensors that would wait in memory for nothing
        if isinstance(event, RunStarted | EpochFinished | RunInterrupted | RunFinished | RunScored):
            self._tally.send(event)
            super().receive(event)

    @override
    def close(self) -> None:
        if self.stays_open:
            return
        self._end()
        share = SHARE * (time.monotonic() - self._started)
        if not self.wait(stuck_after_s=max(MOMENT_S, share), at_most_s=max(2 * MOMENT_S, share)):
            self._report(f"{self.name} is still being updated, in the background")
            _unfinished.append(self)
            # Anew, to be the first: a dashboard's client may have something to end by itself, and cannot be told then.
            atexit.unregister(_finish)
            atexit.register(_finish)

    def wait(self, *, stuck_after_s: float, at_most_s: float) -> bool:
        """Return whether all events are delivered, at once or soon; a single longer call counts as stuck."""
        end = time.monotonic() + at_most_s
        while self._thread.is_alive() and time.monotonic() < end and self._in_call_s() <= stuck_after_s:
            self._thread.join(_POLL_S)
        return not self._thread.is_alive()

    def give_last_chance(self, *, at_most_s: float) -> None:
        """Wait as the program ends, and print a message if events are lost."""
        if not self.wait(stuck_after_s=max(LAST_CALL_S, 4 * self._longest_call_s), at_most_s=at_most_s):
            untold = self._tally.untold()
            self._report(f"{self.name} did not answer in time{untold and f' and did not receive {untold}'}")

    @override
    def _work(self) -> None:
        if self._after is not None:
            self._after._thread.join()
            self._after = None
        super()._work()
        if untold := self._tally.untold():
            self._report(f"{self.name} did not receive {untold}")

    @override
    def _pass_on(self, event: Event) -> None:
        self._busy_since = started = time.monotonic()
        super()._pass_on(event)
        self._busy_since = None
        self._longest_call_s = max(self._longest_call_s, time.monotonic() - started)

    @override
    def _leaves_epochs_out(self) -> bool:
        return self._in_call_s() > MOMENT_S or len(self._events) >= MAX_WAITING

    def _in_call_s(self) -> float:
        at_work = self._after or self  # the previous run's delivery, as long as it is not done
        since = at_work._busy_since
        return 0.0 if since is None else time.monotonic() - since


class Dashboards:
    """The dashboards of a trainer's runs, with the parts of a hybrid dashboard handled separately."""

    def __init__(self, frontend: Frontend | None = None) -> None:
        self.parts = () if frontend is None else tuple(frontend.parts())
        self.latest: tuple[Delivery | None, ...] = (None,) * len(self.parts)  # of the last run
        self._stay_open = False

    def deliveries(self, report: Callable[[str], None]) -> tuple[Delivery, ...]:
        """Start to deliver a run's events, after those of the previous run; ``report`` takes messages."""
        each = zip(self.parts, self.latest, strict=True)
        self.latest = started = tuple(Delivery(part, report, after=before) for part, before in each)
        for delivery in started:
            delivery.stays_open = self._stay_open
        return started

    @contextmanager
    def staying_open(self) -> Iterator[None]:
        """Keep the delivery of the next run open until the ``with`` block ends, for events after the run."""
        earlier, self._stay_open = self.latest, True
        try:
            yield
        finally:
            self._stay_open = False
            for delivery in self.latest if self.latest is not earlier else ():
                if delivery is not None:
                    delivery.stays_open = False
                    delivery.close()


def _finish() -> None:
    end = time.monotonic() + LAST_CHANCE_S
    while _unfinished:
        _unfinished.pop().give_last_chance(at_most_s=end - time.monotonic())
