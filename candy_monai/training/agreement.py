"""What follows the batches of an optimizer step, as all processes of a run agree on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from candy_monai.experiment.settings import SaveInterval
from candy_monai.processes import Processes
from candy_monai.training.gradients import trained_parameters
from candy_monai.training.toolbox import TrainerToolbox


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


def agree(own: Agreement, toolbox: TrainerToolbox, processes: Processes) -> Agreement:
    """Return what all processes do, and average the gradients over them.

    Args:
        own: What this process would do by itself.
        toolbox: Model and optimizer, whose parameters are the same in each process.
        processes: Those that train together.
    """
    if processes.world_size == 1:
        return own
    parameters = trained_parameters(toolbox)
    # One exchange for all of it: a parameter may have a gradient in some processes only.
    found = processes.all_reduce_any([not own.usable, *own[1:], *(each.grad is not None for each in parameters)])
    taking_part = [parameter for parameter, has in zip(parameters, found[len(own) :], strict=True) if has]
    for parameter in taking_part:
        if parameter.grad is None:  # without a part in this process's passes only
            parameter.grad = torch.zeros_like(parameter)
    processes.all_reduce_mean([parameter.grad for parameter in taking_part if parameter.grad is not None])
    return Agreement(usable=not found[0], save=found[1], stop=found[2], cut=found[3])


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
