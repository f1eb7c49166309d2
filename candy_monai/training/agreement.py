"""The decision of all processes of a run on what follows the batches of an optimizer step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from candy_monai.experiment.settings import SaveInterval
from candy_monai.training.averaging import GradientAverage


class Agreement(NamedTuple):
    """The actions after the batches of one optimizer step.

    Attributes:
        usable: Whether the optimizer steps, that is, whether the losses of all processes are finite.
        save: Whether the run is saved.
        stop: Whether it ends.
        cut: Whether the epoch ends here because the time is up.
    """

    usable: bool
    save: bool
    stop: bool
    cut: bool


def agree(own: Agreement, gradients: GradientAverage | None) -> Agreement:
    """Return the common decision of all processes, and average the gradients, if there are several processes."""
    if gradients is None:
        return own
    unusable, *others = gradients.average([not own.usable, *own[1:]])
    return Agreement(not unusable, *others)


class SaveTimer:
    """Decides when a run is saved within an epoch, by the value of ``save_every``; None for never.

    Raises:
        SettingsError: If it is not a valid interval.
    """

    def __init__(self, interval: int | str | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = None if interval is None else SaveInterval.parse(interval)
        self._clock = clock
        self.restart(0)

    def restart(self, batch: int) -> None:
        """Record that the run is saved now, after this number of batches of the epoch."""
        self._batch, self._moment = batch, self._clock()

    def is_over(self, batch: int) -> bool:
        """Return whether the run should be saved again, after this number of batches of the epoch."""
        return self._interval is not None and self._interval.is_over(
            steps=batch - self._batch, seconds=self._clock() - self._moment
        )
