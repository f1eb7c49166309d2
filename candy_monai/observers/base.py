"""The base class of observers, and the handling of their failures. Observers never control a run."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from typing_extensions import override

from candy_monai.experiment.events import (
    EpochFinished,
    Event,
    MessageLogged,
    RunFinished,
    RunInterrupted,
    RunScored,
    RunStarted,
    StepFinished,
)
from candy_monai.threads import SteadyThread

MAX_FAILURES_IN_A_ROW = 5


class Observer:
    """Receives the events of a run. Override the methods of the events that you need; the others do nothing."""

    def receive(self, event: Event) -> None:
        """Pass the event to its method."""
        match event:
            case RunStarted():
                self.on_run_started(event)
            case StepFinished():
                self.on_step_finished(event)
            case EpochFinished():
                self.on_epoch_finished(event)
            case MessageLogged():
                self.on_message_logged(event)
            case RunInterrupted():
                self.on_run_interrupted(event)
            case RunFinished():
                self.on_run_finished(event)
            case RunScored():
                self.on_run_scored(event)

    def on_run_started(self, event: RunStarted) -> None:
        """Called when the run begins."""

    def on_step_finished(self, event: StepFinished) -> None:
        """Called after each training batch and each validated case; should be fast."""

    def on_epoch_finished(self, event: EpochFinished) -> None:
        """Called when an epoch is saved."""

    def on_message_logged(self, event: MessageLogged) -> None:
        """Called for a message for the console."""

    def on_run_interrupted(self, event: RunInterrupted) -> None:
        """Called when the run ends early."""

    def on_run_finished(self, event: RunFinished) -> None:
        """Called when the run ends."""

    def on_run_scored(self, event: RunScored) -> None:
        """Called after a planned run, when its best weights are scored."""

    def close(self) -> None:
        """Finish pending work; called once, at the end of a run. Only `RunScored` comes later."""


@dataclass
class _Watched:
    observer: Observer
    failures_in_a_row: int = 0
    reported: set[str] = field(default_factory=set)


class ObserverGroup(Observer):
    """Passes every event to every observer, and isolates the run and the other observers from failures.

    An observer that raises anything other than a Ctrl-C is reported once for each kind of error and called again for
    the next event; after five failures in a row it is removed.
    """

    def __init__(self, observers: Iterable[Observer], report: Callable[[str], None]) -> None:
        self._watched = [_Watched(observer) for observer in observers]
        self._report = report

    @override
    def receive(self, event: Event) -> None:
        for watched in list(self._watched):
            self._guard(watched, lambda observer: observer.receive(event))

    @override
    def close(self) -> None:
        for watched in list(self._watched):
            self._guard(watched, lambda observer: observer.close())

    def _guard(self, watched: _Watched, call: Callable[[Observer], None]) -> None:
        try:
            call(watched.observer)
        except KeyboardInterrupt as error:
            if threading.current_thread() is threading.main_thread():  # the only one that a Ctrl-C reaches
                raise
            self._note_failure(watched, error)
        except BaseException as error:  # SystemExit, too: an observer does not end a run
            self._note_failure(watched, error)
        else:
            watched.failures_in_a_row = 0

    def _note_failure(self, watched: _Watched, error: BaseException) -> None:
        watched.failures_in_a_row += 1
        name, kind = _name(watched.observer), type(error).__name__
        if kind not in watched.reported:
            watched.reported.add(kind)
            self._say(f"{name} failed, and the run continues: {kind}: {_text_of(error)}")
        if watched.failures_in_a_row == MAX_FAILURES_IN_A_ROW and watched in self._watched:
            self._watched.remove(watched)
            self._say(f"{name} failed {MAX_FAILURES_IN_A_ROW} times in a row and is left out from now on")

    def _say(self, message: str) -> None:
        with suppress(Exception):  # a report that fails must not do what the failure may not
            self._report(message)


class BackgroundObserver(Observer):
    """Runs another observer on a separate thread, so that drawing and dashboards never block a step.

    Events are delivered in order; steps are not passed on.

    Args:
        observer: The observer; should not raise (an `ObserverGroup` does not).
        patience_s: Seconds that ``close`` waits for pending events, and that the end of the process waits for remaining
            ones. With 0 the process ends without waiting.
        newest_epoch_only: Of the epochs that finish while the observer is busy, keep and pass on only the last.
    """

    def __init__(self, observer: Observer, *, patience_s: float, newest_epoch_only: bool = False) -> None:
        self.name = _name(observer)
        self._observer = observer
        self._patience_s = patience_s
        self._newest_epoch_only = newest_epoch_only
        self._events: deque[Event] = deque()
        self._is_closed = False
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread = SteadyThread(target=self._work, name=f"candy-{self.name}", daemon=True)
        self._thread.start()
        if patience_s:
            # A thread that the interpreter stops within PyTorch's or matplotlib's code aborts the process. Known from
            # the start, since a run may end without `close`, or a Ctrl-C may interrupt it.
            atexit.register(self._end_with_process)

    @override
    def receive(self, event: Event) -> None:
        if isinstance(event, StepFinished):
            return
        with self._changed:
            if isinstance(event, EpochFinished) and self._leaves_epochs_out():
                self._events = deque(other for other in self._events if not isinstance(other, EpochFinished))
            self._events.append(event)
            self._changed.notify()

    @override
    def close(self) -> None:
        self._end()
        self._thread.join(self._patience_s)
        if not self._thread.is_alive():
            atexit.unregister(self._end_with_process)

    def _end_with_process(self) -> None:
        if os.getpid() != self._process:  # one that was forked has no such thread
            return
        self._end()
        self._thread.join(self._patience_s)
        with self._changed:
            self._events.clear()
        self._thread.join(self._patience_s)

    def _leaves_epochs_out(self) -> bool:
        return self._newest_epoch_only

    def _end(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _work(self) -> None:
        while (event := self._next()) is not None:
            self._pass_on(event)
        self._observer.close()

    def _next(self) -> Event | None:
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._is_closed)
            return self._events.popleft() if self._events else None

    def _pass_on(self, event: Event) -> None:
        self._observer.receive(event)


def _name(observer: Observer) -> str:
    return str(getattr(observer, "name", type(observer).__name__))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(without a readable message)"
