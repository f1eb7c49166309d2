"""What follows the batches of an optimizer step, as all processes of a run agree on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from candy_monai.experiment.settings import SaveInterval
from candy_monai.training.averaging import GradientAverage


class Agreement(NamedTuple):
    """What is done after the batches of one optimizer step.

    Attributes:
        usable: Whether the optimizer steps, as where the losses of all processes are finite.
        save: Whether the run is saved.
        stop: Whether it ends.
        cut: Whether the epoch ends here, since the time is up.
    """

    usable: bool
    save: bool
    stop: bool
    cut: bool


def agree(own: Agreement, gradients: GradientAverage | None) -> Agreement:
    """Return what all processes do, and average the gradients over them.

    Args:
        own: What this process would do by itself.
        gradients: Averages them; None where one process trains alone.
    """
    if gradients is None:
        return own
    unusable, *others = gradients.average([not own.usable, *own[1:]])
    return Agreement(not unusable, *others)


class SaveTimer:
    """When a run is saved within an epoch.

    Args:
        interval: What ``save_every`` was given; None for never.
        clock: Tells seconds.

    Raises:
        SettingsError: If it is no interval.
    """

    def __init__(self, interval: int | str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = None if interval is None else SaveInterval.parse(interval)
        self._clock = clock
        self.restart(0)

    def restart(self, batch: int) -> None:
        """Note that the run is saved now, after so many batches of the epoch."""
        self._batch, self._moment = batch, self._clock()

    def is_over(self, batch: int) -> bool:
        """Return whether it is time to save the run again, after so many batches of the epoch."""
        return self._interval is not None and self._interval.is_over(
            steps=batch - self._batch, seconds=self._clock() - self._moment
        )
