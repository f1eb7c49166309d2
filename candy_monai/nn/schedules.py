"""Learning-rate schedules that PyTorch lacks: decays with an adjustable end, and a warm-up for any schedule.

The frequency of steps and the horizon are the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from candy_monai.errors import SettingsError


class AbsoluteLinearLR(LRScheduler):
    """Set every group's learning rate to ``k * step + b``, never below ``min_lr``.

    The optimizer's own learning rates are not used, and all groups get the same one.

    Args:
        optimizer: The wrapped optimizer.
        k: Slope per step; negative for a decay.
        b: Learning rate at step 0.
        min_lr: Lower bound, kept once it is reached.
        restart: Restart at ``b`` whenever the line would fall below the bound, instead of staying there.
        last_epoch: The number of the last step for resuming manually, else -1.

    Raises:
        SettingsError: If a value is not finite, ``min_lr`` is negative, or a line that does not rise starts below it.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = AbsoluteLinearLR(optimizer, k=-0.25, b=1.0, min_lr=0.5)
        >>> [(optimizer.step(), scheduler.step(), scheduler.get_last_lr()[0])[2] for _ in range(4)]
        [0.75, 0.5, 0.5, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        k: float,
        b: float,
        *,
        min_lr: float = 1e-6,
        restart: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if not all(map(math.isfinite, (k, b, min_lr))):
            raise SettingsError(f"k, b and min_lr must be finite, got k={k}, b={b}, min_lr={min_lr}")
        if min_lr < 0:
            raise SettingsError(f"min_lr must not be negative, got {min_lr}")
        if b < min_lr and k <= 0:
            raise SettingsError(f"the line starts at b={b}, below min_lr={min_lr}, and never rises (k={k})")
        self.k = k
        self.b = b
        self.min_lr = min_lr
        self.restart = restart
        super().__init__(optimizer, last_epoch)

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Compute the learning rate of the current step, the same for every group."""
        step = self.last_epoch
        if self.restart and self.k < 0:
            # Rounding may make the last step of a cycle miss the bound: allow a billionth of a step.
            step %= math.floor((self.b - self.min_lr) / -self.k + 1e-9) + 1
        return [max(self.k * step + self.b, self.min_lr)] * len(self.optimizer.param_groups)

    def end_in(self, num_steps: int) -> None:
        """Change the slope from now on, so that the line reaches zero after the given number of steps.

        Args:
            num_steps: At least 1.
        """
        _check_steps(num_steps)
        rate = float(self.get_lr()[0])
        self.k = -rate / num_steps
        self.b = rate - self.k * self.last_epoch


class RelativeLinearLR(LRScheduler):
    """Decay each group's learning rate linearly to ``end_factor`` times its own, and stay there.

    Args:
        optimizer: The wrapped optimizer; its groups' learning rates are those of step 0.
        num_steps: Steps until the end, at least 1.
        end_factor: The final share of the learning rate.
        last_epoch: The number of the last step for resuming manually, else -1.

    Raises:
        SettingsError: If ``num_steps`` is less than 1 or ``end_factor`` is not in 0 to 1.
    """

    def __init__(self, optimizer: Optimizer, num_steps: int, *, end_factor: float = 1e-3, last_epoch: int = -1) -> None:
        _check_steps(num_steps)
        if not 0 <= end_factor <= 1:
            raise SettingsError(f"end_factor must be from 0 to 1, got {end_factor}")
        self.k = -1.0 / num_steps
        self.b = 1.0
        self.end_factor = end_factor
        super().__init__(optimizer, last_epoch)

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Compute each group's learning rate at the current step."""
        return [rate * self._factor() for rate in self.base_lrs]

    def end_in(self, num_steps: int) -> None:
        """Change the slope from now on, as `AbsoluteLinearLR.end_in` does."""
        _check_steps(num_steps)
        factor = self._factor()
        self.k = -factor / num_steps
        self.b = factor - self.k * self.last_epoch

    def _factor(self) -> float:
        return max(self.k * self.last_epoch + self.b, self.end_factor)


class PolyLRScheduler(LRScheduler):
    """Decay by ``(1 - step / max_steps) ** exponent``, each group keeping its ratio to the first.

    The decay of Chen et al., *DeepLab* (2017), with the exponent that nnU-Net uses. After its horizon it stays at its
    final value.

    Args:
        optimizer: The wrapped optimizer; the ratios are those of its groups' learning rates at construction.
        initial_lr: The first group's learning rate at step 0.
        max_steps: The horizon, at least 1.
        exponent: 1 is a straight line; positive.
        min_lr: Lower bound of the first group's learning rate, and its final value; not above ``initial_lr``.
        last_epoch: The number of the last step for resuming manually, else -1.

    Raises:
        SettingsError: If a value is out of range, or the first group's own learning rate is 0, which allows no ratios.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        initial_lr: float,
        max_steps: int,
        *,
        exponent: float = 0.9,
        min_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if max_steps < 1:
            raise SettingsError(f"max_steps must be at least 1, got {max_steps}")
        if not (math.isfinite(exponent) and exponent > 0):
            raise SettingsError(f"exponent must be positive, got {exponent}")
        if not (math.isfinite(initial_lr) and 0 <= min_lr <= initial_lr):
            raise SettingsError(f"expected 0 <= min_lr <= initial_lr, got min_lr={min_lr}, initial_lr={initial_lr}")
        first, *others = (float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
        if first == 0 and others:
            raise SettingsError(
                "the learning rate of the first parameter group is 0, so the ratio of the others to it is undefined: "
                "give it a positive learning rate"
            )
        self.initial_lr = initial_lr
        self.max_steps = max_steps
        self.exponent = exponent
        self.min_lr = min_lr
        self.turned_at, self.left_there = 0, 1.0
        self._ratios = [1.0, *(other / first for other in others)]
        super().__init__(optimizer, last_epoch)

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Compute each group's learning rate at the current step."""
        first = max(self.initial_lr * self._left() ** self.exponent, self.min_lr)
        return [first * ratio for ratio in self._ratios]

    def end_in(self, num_steps: int) -> None:
        """Reach the final value after the given number of steps, continuing the decay from its current value."""
        _check_steps(num_steps)
        self.left_there, self.turned_at = self._left(), self.last_epoch
        self.max_steps = self.last_epoch + num_steps

    def _left(self) -> float:
        """Return the remaining share of the horizon."""
        return self.left_there * _left_between(self.last_epoch, self.turned_at, self.max_steps)


class CosineLR(LRScheduler):
    """Decay each group's learning rate to zero along half a cosine, and stay there.

    Like PyTorch's ``CosineAnnealingLR``, whose end cannot be moved if fewer steps fit into a time limit than expected.

    Args:
        optimizer: The wrapped optimizer; its groups' learning rates are those of step 0.
        num_steps: Steps until the end, at least 1.
        last_epoch: The number of the last step for resuming manually, else -1.

    Raises:
        SettingsError: If ``num_steps`` is less than 1.
    """

    def __init__(self, optimizer: Optimizer, num_steps: int, *, last_epoch: int = -1) -> None:
        _check_steps(num_steps)
        self.num_steps = num_steps
        self.turned_at, self.left_there = 0, 1.0
        super().__init__(optimizer, last_epoch)

    @override
    def get_lr(self) -> list[float | Tensor]:
        """Compute each group's learning rate at the current step."""
        factor = 0.5 * (1 - math.cos(math.pi * self._left()))
        return [rate * factor for rate in self.base_lrs]

    def end_in(self, num_steps: int) -> None:
        """Reach zero after the given number of steps, continuing the decay from its current value."""
        _check_steps(num_steps)
        self.left_there, self.turned_at = self._left(), self.last_epoch
        self.num_steps = self.last_epoch + num_steps

    def _left(self) -> float:
        """Return the remaining share of the decay."""
        return self.left_there * _left_between(self.last_epoch, self.turned_at, self.num_steps)


def _left_between(step: int, start: int, end: int) -> float:
    return max(0.0, (end - step) / max(1, end - start))


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise SettingsError(f"num_steps must be at least 1, got {num_steps}")


class WarmUpLR(LRScheduler):
    """Follow another schedule, with learning rates that rise from nearly 0 to its own over the first steps.

    In step ``s`` of these, counted from 1, every rate is ``s / num_steps`` times that of the schedule. The schedule
    itself runs from the first step on with its own rates, so that any of PyTorch's can be used, including those that
    compute a rate from the previous one. Its other attributes, such as ``end_in``, are available on this one.

    Args:
        scheduler: The schedule to follow, just built; if it has a warm-up, this one replaces that.
        num_steps: The number of steps until its own rates are reached, at least 1.

    Raises:
        SettingsError: If ``num_steps`` is less than 1.
    """

    scheduler: LRScheduler
    _own_rates: list[float]

    def __init__(self, scheduler: LRScheduler, num_steps: int) -> None:
        # Not LRScheduler's constructor, which would set the rates of the optimizer that the schedule has set.
        _check_steps(num_steps)
        if isinstance(scheduler, WarmUpLR):
            scheduler._set(scheduler._own_rates)
            scheduler = scheduler.scheduler
        self.scheduler, self.num_steps, self.num_done = scheduler, num_steps, 0
        self.optimizer = scheduler.optimizer
        self._own_rates = self._rates()
        self._scale()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "scheduler" not in vars(self):  # as during copying
            raise AttributeError(name)
        return getattr(self.scheduler, name)

    @override
    def step(self, epoch: Any = None) -> None:
        """Step the schedule, and scale its rates."""
        self.step_by(self.scheduler.step if epoch is None else lambda: self.scheduler.step(epoch))
        self.count(1)

    def step_by(self, step: Callable[[], object]) -> None:
        """Call a function that steps the schedule, with its own rates in the optimizer, and scale the new rates."""
        self._set(self._own_rates)
        step()
        self._own_rates = self._rates()
        self._scale()

    def count(self, num_steps: int) -> None:
        """Count steps of the warm-up."""
        self.num_done += num_steps
        self._scale()

    @override
    def get_last_lr(self) -> list[float | Tensor]:
        """Return the current rates of the optimizer."""
        return [group["lr"] for group in self.optimizer.param_groups]

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "num_done": self.num_done,
            "own_rates": self._own_rates,
            "scheduler": self.scheduler.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.num_steps, self.num_done = state_dict["num_steps"], state_dict["num_done"]
        self.scheduler.load_state_dict(state_dict["scheduler"])
        self._own_rates = list(state_dict["own_rates"])
        self._scale()

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def _scale(self) -> None:
        share = min(1.0, (self.num_done + 1) / self.num_steps)
        self._set([rate * share for rate in self._own_rates])

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # the same tensor, which a captured step reads
            else:
                group["lr"] = rate
