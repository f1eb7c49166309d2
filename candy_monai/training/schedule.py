"""Step a learning rate schedule: after every batch, or after every validated epoch with its score.

A schedule that supports it is adapted to the time limit of the run.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
)
from torch.utils.data import DataLoader

from candy_monai.columns import LOSS
from candy_monai.experiment.experiment import Experiment
from candy_monai.nn.schedules import WarmUpLR
from candy_monai.processes import Processes
from candy_monai.training.loaders import length

_LENGTHS = {CosineAnnealingLR: "T_max", PolynomialLR: "total_iters", OneCycleLR: "total_steps"}
"""The attribute with the number of steps after which a schedule has decayed."""
_SHARE_TO_WARM_UP = 0.05
_MOST_STEPS_TO_WARM_UP = 250


def default_warm_up(num_steps: int | None) -> int:
    """Return the warm-up steps of a run that starts from weights: a twentieth of the run, at most 250.

    A full learning rate would destroy trained weights while the optimizer's moments are based on a few batches. The
    number of steps of the whole run is None if unknown.
    """
    if num_steps is None:
        return _MOST_STEPS_TO_WARM_UP
    return min(_MOST_STEPS_TO_WARM_UP, math.ceil(_SHARE_TO_WARM_UP * num_steps))


def warmed_up(scheduler: Any, num_steps: int | None) -> Any:
    """Return a schedule with a warm-up over this number of steps; unchanged for None and 0."""
    return WarmUpLR(scheduler, num_steps) if num_steps else scheduler


def needs_a_metric(scheduler: Any) -> bool:
    """Return whether a schedule is stepped with a metric or the epoch, as ``ReduceLROnPlateau`` is.

    Such a schedule steps after each validated epoch rather than after each batch.
    """
    return bool(_arguments(plain_schedule(scheduler).__class__))


def plain_schedule(scheduler: Any) -> Any:
    """Return the schedule without its warm-up."""
    return scheduler.scheduler if isinstance(scheduler, WarmUpLR) else scheduler


def decays_too_early(scheduler: Any, num_epochs: int, num_batches: int | None) -> str | None:
    """Return the log message for a schedule whose length is the number of epochs; None for any other.

    The number of batches of an epoch is None if unknown.
    """
    own = plain_schedule(scheduler)
    for part in (own, *getattr(own, "_schedulers", ())):
        name = _LENGTHS.get(type(part))
        if name and getattr(part, name) == num_epochs > 1 and num_batches is not None and num_batches > 1:
            return (
                f"the {type(part).__name__} has {name}={num_epochs}, the number of epochs, but a schedule steps once a "
                f"batch: it has decayed after {num_epochs} of {num_epochs * num_batches} batches. For the whole run "
                f"give it {name}=num_epochs * len(self._dataloader)"
            )
    return None


def step_after_batches(scheduler: Any, num_batches: int) -> None:
    """Step a schedule once for each batch, unless it steps by epochs or has come to the end of its cycle."""
    if isinstance(scheduler, WarmUpLR):
        scheduler.step_by(lambda: step_after_batches(scheduler.scheduler, num_batches))
        scheduler.count(num_batches)  # also before a schedule that steps by epochs
        return
    if needs_a_metric(scheduler):
        return
    for _ in range(num_batches):
        if _is_at_its_end(scheduler):
            return  # its curve would rise again, and then be an error; the rate stays at its end value
        scheduler.step()


def _is_at_its_end(scheduler: Any) -> bool:
    """Return whether a one-cycle schedule is over, or a schedule that would step one that is."""
    if isinstance(scheduler, OneCycleLR):
        return scheduler.last_epoch >= scheduler.total_steps - 1
    if isinstance(scheduler, SequentialLR):  # of its parts only the last has no end of its own
        is_in_last = scheduler.last_epoch >= scheduler._milestones[-1]
        return is_in_last and _is_at_its_end(scheduler._schedulers[-1])
    if isinstance(scheduler, ChainedScheduler):
        return any(_is_at_its_end(part) for part in scheduler._schedulers)
    return False


def step_after_epoch(
    scheduler: Any, metrics: Mapping[str, Sequence[float]], *, epoch: int, score: float | None, validates: bool
) -> None:
    """Step a schedule that needs a metric.

    With ``mode="max"`` it gets the validation score. With ``mode="min"``, PyTorch's default, it gets the validation
    loss if ``validate_case`` recorded ``combined loss``, or else the negative score. A schedule without a mode gets the
    score. An argument named ``epoch`` gets the number of epochs. Without a validation loader the mean training loss
    replaces the validation loss, and its negative the score.

    Args:
        scheduler: Any schedule; nothing is done for one that steps by batches.
        metrics: Every metric over the epochs so far.
        epoch: The epoch that is finished, counted from 1.
        score: Its validation score; None if it was not validated.
        validates: Whether the run has a validation loader.
    """
    if isinstance(scheduler, WarmUpLR):
        own = scheduler.scheduler
        scheduler.step_by(lambda: step_after_epoch(own, metrics, epoch=epoch, score=score, validates=validates))
        return
    arguments = _arguments(scheduler.__class__)
    if not arguments:
        return
    metric = _metric_for(scheduler, metrics, score=score, validates=validates)
    values: list[float] = []
    for argument in arguments:
        value = epoch if "epoch" in argument.name else metric
        if value is None and argument.default is not inspect.Parameter.empty:
            break
        if value is None:
            return
        values.append(value)
    scheduler.step(*values)


def _metric_for(
    scheduler: Any, metrics: Mapping[str, Sequence[float]], *, score: float | None, validates: bool
) -> float | None:
    """Return the metric of the last epoch in the direction that a schedule expects; None if there is none."""
    loss = _last(metrics, f"val {LOSS}" if validates else LOSS)
    if score is None:
        if validates or loss is None:
            return None
        score = -loss
    value = score
    if getattr(scheduler, "mode", "max") == "min":
        value = -score if loss is None else loss
    return None if math.isnan(value) else value


def end_in_time(scheduler: Any, experiment: Experiment, loader: DataLoader[Any], processes: Processes) -> None:
    """Make a schedule that has ``end_in`` end with the time limit; with several processes only after an epoch.

    The number of remaining steps is estimated from the past ones. Processes use the clock of the first one.
    """
    end_in = getattr(scheduler, "end_in", None)
    timed = experiment.settings.time_limit_s is not None and not (
        processes.world_size > 1 and experiment.progress.batch
    )
    if not timed or end_in is None:
        return
    steps_an_epoch = length(loader)
    epochs_left = experiment.expected_epochs() - experiment.progress.epoch
    # If much of the time is spent outside of the steps, the expected number of epochs is a better estimate.
    by_epochs = None if steps_an_epoch is None else epochs_left * steps_an_epoch - experiment.progress.batch
    known = [number for number in (experiment.batches_left, by_epochs) if number is not None]
    num_steps = processes.broadcast(min(known, default=0))
    if num_steps > 0:
        end_in(num_steps)


@functools.lru_cache(maxsize=64)
def _arguments(kind: Any) -> tuple[inspect.Parameter, ...]:
    """Return the arguments for a class's ``step``: those it cannot be called without, and metrics that it accepts.

    There are none for a schedule that steps without arguments, whether or not it accepts an epoch.
    """
    try:
        _, *parameters = inspect.signature(kind.step).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return ()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = tuple(
        itertools.takewhile(
            lambda one: one.kind in positional and (one.default is inspect.Parameter.empty or "metric" in one.name),
            parameters,
        )
    )
    if not taken and isinstance(kind, type) and issubclass(kind, ReduceLROnPlateau):  # passes on what it is given
        return (inspect.Parameter("metrics", inspect.Parameter.POSITIONAL_ONLY),)
    return taken


def _last(metrics: Mapping[str, Sequence[float]], name: str) -> float | None:
    values = metrics.get(name, ())
    return values[-1] if values and math.isfinite(values[-1]) else None
