"""Measure the speed of a run's steps, and estimate the end of its phase and of the run."""

from __future__ import annotations

import time
from collections.abc import Callable

from candy_monai.experiment.events import EpochFinished, StepFinished
from candy_monai.experiment.score_prediction import duration_as_text, score_as_text, seconds_until

_LEAST_S = 0.05
"""Minimum seconds for an estimate of the speed."""


class Pace:
    """Follows the steps and epochs of a run."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._step: StepFinished | None = None
        self._began = self._now = 0.0
        self._num_steps = 0
        self._num_samples: int | None = 0
        self._epoch: EpochFinished | None = None
        self._ends_at: float | None = None

    def step(self, event: StepFinished) -> None:
        """Update the pace with a step. The first step of a phase starts its clock."""
        self._now = self._clock()
        last, self._step = self._step, event
        if last is None or (last.epoch, last.phase) != (event.epoch, event.phase):
            self._began, self._num_steps, self._num_samples = self._now, 0, 0
            return
        self._num_steps += 1
        known = self._num_samples is not None and event.num_samples is not None
        self._num_samples = self._num_samples + event.num_samples if known else None  # type: ignore[operator]

    def epoch(self, event: EpochFinished) -> None:
        """Update the expected end of the run with a finished epoch."""
        left_s = seconds_until(event.num_epochs, event.epoch, event.metrics)
        self._epoch, self._step = event, None
        self._ends_at = self._clock() + left_s if left_s else None

    @property
    def steps_per_s(self) -> float | None:
        """Steps or cases per second in this phase; None if unknown."""
        passed = self._now - self._began
        return self._num_steps / passed if self._num_steps and passed >= _LEAST_S else None

    @property
    def samples_per_s(self) -> float | None:
        """Samples per second in this phase, of all processes; None if unknown."""
        passed = self._now - self._began
        return self._num_samples / passed if self._num_samples and passed >= _LEAST_S else None

    @property
    def phase_left_s(self) -> float | None:
        """Seconds until the end of the phase; None if unknown."""
        step, speed = self._step, self.steps_per_s
        return None if step is None or step.total is None or not speed else max(0, step.total - step.done) / speed

    @property
    def run_left_s(self) -> float | None:
        """Seconds until the end of the run, from its epochs so far; None if unknown."""
        if self._ends_at is None:
            return None
        return max(self._ends_at - self._clock(), self.phase_left_s or 0.0, 0.0) or None

    def title(self) -> str:
        """Return the current epoch, the number of epochs if known, and the phase."""
        assert self._step is not None
        of = "" if self._epoch is None else f" of {'about ' * self._epoch.has_time_limit}{self._epoch.num_epochs}"
        return f"Epoch {self._step.epoch}{of} {self._step.phase}"

    def speed(self) -> str:
        """Return the speed and the remaining time of the phase in words; empty if unknown."""
        speed, unit = self.samples_per_s, "cases" if self._step and self._step.phase == "validation" else "samples"
        if speed is None:
            speed, unit = self.steps_per_s, "steps"
        if speed is None:
            return ""
        left_s = self.phase_left_s
        left = "" if left_s is None else f", {duration_as_text(left_s)} left"
        return f"{speed:.3g} {unit}/s{left}"

    def outlook(self) -> str:
        """Return the expected end and score of the run in words; empty before the first epoch."""
        event, left_s = self._epoch, self.run_left_s
        parts = [] if left_s is None else [f"the run ends in {duration_as_text(left_s)}"]
        if event is not None and event.best_epoch:
            parts.append(f"best {score_as_text(event.best_score)}")
            forecast = event.forecast
            if forecast is not None and forecast.reason is None and forecast.score > event.best_score:
                parts.append(f"{score_as_text(forecast.score)} expected")
        return ", ".join(parts)
