"""Write events as JSON, one object per line, for programs that read it."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TextIO

from typing_extensions import override

from candy_monai.errors import WARNING
from candy_monai.experiment.description import as_json
from candy_monai.experiment.events import (
    EpochFinished,
    MessageLogged,
    RunFinished,
    RunInterrupted,
    RunScored,
    RunStarted,
    StepFinished,
)
from candy_monai.files import discard_standard_output
from candy_monai.observers.base import Observer
from candy_monai.observers.pace import Pace

PROGRESS_S = 1.0
"""Minimum seconds between two progress events."""


class JsonLines(Observer):
    """Writes each event as one line: an object with ``event``, ``level``, ``timestamp`` and further entries.

    Numbers that JSON cannot represent are ``null`` (NaN) or the strings ``inf`` and ``-inf``.

    Args:
        stream: The stream to write to; None to write nothing.
        is_quiet: Leave out messages, progress and epochs.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, stream: TextIO | None, *, is_quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._is_quiet = is_quiet
        self._clock = clock
        self._pace = Pace(clock=clock)
        self._shown_at = -math.inf
        self._lock = threading.Lock()  # dashboards report from threads of their own

    def write(self, event: str, *, level: str = "info", **facts: Any) -> None:
        """Write one line, with facts that JSON can represent, NumPy numbers and paths."""
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        content = {"event": event, "level": level, "timestamp": now, **_finite(as_json(facts))}
        line = json.dumps(content, allow_nan=False) + "\n"
        with self._lock:
            if self._stream is None:
                return
            try:
                self._stream.write(line)
                self._stream.flush()
            except BrokenPipeError:
                self._stream = None
                discard_standard_output()

    def say(self, text: str) -> None:
        """Write a message, or a warning if it is one."""
        if text.startswith(WARNING):
            self.write("warning", level="warning", message=text.removeprefix(WARNING))
        elif not self._is_quiet:
            self.write("message", message=text)

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._unless_quiet(
            "start",
            experiment=event.folder,
            trainer=event.trainer,
            network=event.model,
            parameters=event.num_params,
            multiply_adds=event.num_macs,
            epoch=event.epoch,
            num_epochs=event.num_epochs,
            class_names=event.class_names,
            note=event.note,
        )

    @override
    def on_step_finished(self, event: StepFinished) -> None:
        self._pace.step(event)
        if self._is_quiet or self._clock() - self._shown_at < PROGRESS_S:
            return
        self._shown_at = self._clock()
        self.write(
            "progress",
            epoch=event.epoch,
            phase=event.phase,
            done=event.done,
            total=event.total,
            samples_per_s=self._pace.samples_per_s,
            phase_left_s=self._pace.phase_left_s,
            run_left_s=self._pace.run_left_s,
        )

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        self._pace.epoch(event)
        forecast = event.forecast
        self._unless_quiet(
            "epoch",
            epoch=event.epoch,
            num_epochs=event.num_epochs,
            step=event.step,
            score=event.score,
            standard_error=event.standard_error,
            num_validated=event.num_validated,
            best_score=event.best_score if event.best_epoch else None,
            best_epoch=event.best_epoch or None,
            is_best=event.best_epoch == event.epoch,
            metrics={name: values[-1] for name, values in event.metrics.items()},
            forecast=None
            if forecast is None or forecast.interval is None
            else {
                "score": forecast.score,
                "epoch": forecast.epoch,
                "interval_80": forecast.interval,
                "chance_of_better": forecast.chance_above(event.best_score),
            },
            run_left_s=self._pace.run_left_s,
        )

    @override
    def on_message_logged(self, event: MessageLogged) -> None:
        self.say(event.text or event.line)

    @override
    def on_run_interrupted(self, event: RunInterrupted) -> None:
        error = event.error
        self.write("interrupted", level="warning", message=str(error), type=type(error).__name__)

    @override
    def on_run_finished(self, event: RunFinished) -> None:
        best = (event.best_score, event.best_epoch) if event.best_epoch else (None, None)
        self.write("trained", epoch=event.epoch, best_score=best[0], best_epoch=best[1])

    @override
    def on_run_scored(self, event: RunScored) -> None:
        self.write("scores", scores=event.scores, num_cases=event.num_cases, file=event.file)

    def _unless_quiet(self, event: str, **facts: Any) -> None:
        if not self._is_quiet:
            self.write(event, **facts)


def _finite(value: Any) -> Any:
    """Return plain values with NaN as None and infinity as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list) else value
