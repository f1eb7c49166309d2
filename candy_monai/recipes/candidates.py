"""Choose the plan to spend a time budget on, from candidates and the number of steps of each that fit into the time.

Many cheap steps fit into a time, but a wide network learns more from each step. The candidates are the plan that
follows from the data, variants with cheaper steps, variants with a wider network, and the plan of the other
configuration. The steps of variants that may be chosen are measured by `candy_monai.recipes.budget.measure_speed`;
those of the others are predicted from a measured variant. The configuration is chosen according to earlier runs:
`candy_monai.data.planning.experience`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from candy_monai.attachment import Precision
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import DEFAULT_MEMORY_BYTES
from candy_monai.recipes.budget import Speed

FEWEST_STEPS = 400
"""With fewer steps than this, cheaper steps are preferred."""

STEPS_TO_WIDEN = 3000
"""With more steps than this, a wider network is measured ..."""

STEPS_WHEN_WIDE = 1500
"""... and chosen if it still gets this many steps."""

MOST_MEASURED = 5
"""Maximum number of measured plans."""

_WORTHWHILE = 0.75
"""A variant is considered only if it reduces the time of a step to this share."""

_CLEARLY = 1.3
"""A measurement overrides a prediction only if they differ by this factor."""

_SMALLEST_BATCH = 2
_NARROWEST, _WIDEST, _WIDEST_LEVEL = 8, 32, 320
_SHORTEST_AXIS = {2: 128, 3: 32}
_VOXELS_AT_BOTTOM = 4
_SHORTER = 0.7  # of each axis: half the voxels of a picture, a third of a volume's


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A plan on which the time could be spent.

    Attributes:
        plan: The plan.
        step_s: Seconds of a step.
        num_steps: Number of steps that fit into the time.
        is_measured: Whether the step was measured, or predicted from that of another plan.
        verdict: The reason why it was chosen or not.
        is_chosen: Whether it is.
        follows_filters: Whether the network is as wide as the plan says.
    """

    plan: Plan
    step_s: float
    num_steps: float
    is_measured: bool
    verdict: str
    is_chosen: bool = False
    follows_filters: bool = True

    def __str__(self) -> str:
        about = "" if self.is_measured else "about "
        return f"{self.in_words()}: {about}{self.num_steps:.0f} steps ({self.verdict})"

    def in_words(self) -> str:
        """Return in words what a step trains on: the choices that a budget makes."""
        plan, patch = self.plan, " x ".join(map(str, self.plan.patch_shape))
        patches = "1 patch" if plan.batch_size == 1 else f"{plan.batch_size} patches"
        widths = f", network of {plan.filters[0]} to {max(plan.filters)} filters" if self.follows_filters else ""
        return f"{plan.configuration}{widths}, {patches} of {patch} a step"

    def to_dict(self) -> dict[str, object]:
        """Return what ``experiment.json`` keeps of it."""
        return {
            "configuration": self.plan.configuration,
            "patch_shape": list(self.plan.patch_shape),
            "batch_size": self.plan.batch_size,
            "filters": list(self.plan.filters) if self.follows_filters else None,
            "step_s": round(self.step_s, 4),
            "num_steps": round(self.num_steps),
            "is_measured": self.is_measured,
            "is_chosen": self.is_chosen,
            "verdict": self.verdict,
        }


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """The candidates, and the chosen one.

    Attributes:
        plan: The plan that is chosen.
        speed: Its speed.
        candidates: All candidates, the chosen one first.
    """

    plan: Plan
    speed: Speed
    candidates: tuple[Candidate, ...]

    def in_words(self) -> str:
        """Return one line about the candidates that were not chosen."""
        others = [str(candidate) for candidate in self.candidates if not candidate.is_chosen]
        if not others:
            return "No other plans were considered, since the options leave only one"
        return f"Considered and not chosen, with the steps that fit into the budget: {'; '.join(others)}"


def choose(
    plan: Plan,
    *,
    measure: Callable[[Plan, Sequence[Precision] | None], Speed],
    num_steps: Callable[[Speed], float],
    memory_bytes: int | None = None,
    may_resize: bool = True,
    other: tuple[Plan, str] | None = None,
) -> Weighed:
    """Return the plan, or the variant of it, that makes best use of a time, with its speed and the other candidates.

    Args:
        plan: The plan that follows from the data.
        measure: Returns the speed of a plan on this machine, in one of these precisions or the fastest of all.
        num_steps: Returns the number of steps that fit into the remaining time at a speed.
        memory_bytes: Memory that a wider network may use; None for what a plan assumes.
        may_resize: Whether the plan sets the width of the network, so that other widths can be tried.
        other: The plan of the other configuration, and why it was not chosen; None if there is none.
    """
    begun_with = plan if "patch_shape" in plan.chosen else without_margin(plan)
    weighing = _Weighing(begun_with, measure, num_steps, follows_filters=may_resize)
    fixed = () if may_resize else ("filters",)
    lightened = functools.partial(lighter, fixed=fixed)
    widened = functools.partial(wider, memory_bytes=memory_bytes) if may_resize else lambda _plan: None
    weighing.lighten(lightened)
    weighing.widen(widened)
    if not weighing.rejected:  # nothing was tried, but what was near is worth a word
        weighing.reject(
            widened(weighing.plan),
            f"a wider network pays off if more than {STEPS_TO_WIDEN} steps of the narrower one fit",
        )
        weighing.reject(lightened(weighing.plan), f"lighter steps pay off if fewer than {FEWEST_STEPS} fit")
    if other is not None:
        weighing.reject(*other)
    chosen = weighing.candidate(weighing.plan, "chosen", weighing.speed)
    return Weighed(plan=weighing.plan, speed=weighing.speed, candidates=(chosen, *weighing.rejected))


class _Weighing:
    """The best plan so far, and the rejected ones."""

    def __init__(
        self,
        plan: Plan,
        measure: Callable[[Plan, Sequence[Precision] | None], Speed],
        num_steps: Callable[[Speed], float],
        *,
        follows_filters: bool,
    ) -> None:
        self.plan, self.speed = plan, measure(plan, None)
        self.rejected: list[Candidate] = []
        self._measure, self._num_steps, self._follows_filters = measure, num_steps, follows_filters
        self._num_measured = 1

    def lighten(self, lightened: Callable[[Plan], Plan | None]) -> None:
        """Try cheaper steps until enough of them fit."""
        while self._num_steps(self.speed) < FEWEST_STEPS and (relative := lightened(self.plan)) is not None:
            # To measure one that is bound to be too slow would only cost time.
            while self._num_steps(self._predicted(relative)) < FEWEST_STEPS and (further := lightened(relative)):
                relative = further
            if (measured := self._measured(relative)) is None:
                return
            if measured.step_s > _WORTHWHILE * self.speed.step_s:
                self.reject(relative, "its steps are hardly faster", measured)
                return
            self._go_on_to(relative, measured, f"fewer than {FEWEST_STEPS} steps are too few")
            if self._num_steps(measured) > FEWEST_STEPS / _CLEARLY:
                return  # the prediction was right: what a few steps more or less say does not count

    def widen(self, widened: Callable[[Plan], Plan | None]) -> None:
        """Try wider networks as long as enough steps of them fit."""
        while self._num_steps(self.speed) > STEPS_TO_WIDEN and (relative := widened(self.plan)) is not None:
            if (measured := self._measured(relative)) is None:
                return
            if self._num_steps(measured) < STEPS_WHEN_WIDE:
                self.reject(relative, f"a network so wide needs {STEPS_WHEN_WIDE} steps", measured)
                return
            self._go_on_to(relative, measured, "there is time for a wider network")

    def reject(self, plan: Plan | None, verdict: str, measured: Speed | None = None) -> None:
        """Record a plan that is not chosen, unless it is None."""
        if plan is not None:
            self.rejected.append(self.candidate(plan, verdict, measured))

    def candidate(self, plan: Plan, verdict: str, measured: Speed | None) -> Candidate:
        """Return a plan with its number of steps, from a measured or else a predicted duration."""
        speed = measured or self._predicted(plan)
        return Candidate(
            plan=plan,
            step_s=speed.step_s,
            num_steps=self._num_steps(speed),
            is_measured=measured is not None,
            verdict=verdict,
            is_chosen=plan is self.plan,
            follows_filters=self._follows_filters,
        )

    def _go_on_to(self, plan: Plan, measured: Speed, verdict: str) -> None:
        before, its_speed = self.plan, self.speed
        self.plan, self.speed = plan, measured
        self.reject(before, verdict, its_speed)

    def _measured(self, plan: Plan) -> Speed | None:
        """Return the speed of a plan in the fastest precision; None if enough plans were measured already."""
        self._num_measured += 1
        return None if self._num_measured > MOST_MEASURED else self._measure(plan, [self.speed.amp])

    def _predicted(self, plan: Plan) -> Speed:
        return dataclasses.replace(self.speed, step_s=self.speed.step_s * work(plan) / work(self.plan))


def work(plan: Plan) -> float:
    """Return the cost of a step in arbitrary units: the geometric mean of memory traffic and multiplications.

    A narrow network is limited by memory, a wide one by computation. By this measure a network of twice the width takes
    2.8 times as long, and kernels of 3 x 3 x 3 take 1.7 times as long as kernels of 3 x 3 on as many voxels, which is
    close to measurements on CPUs.
    """
    size, values, products, previous = plan.patch_shape, 0.0, 0.0, plan.num_inputs
    for kernel, stride, width in zip(plan.kernel_sizes, plan.strides, plan.filters, strict=True):
        size = tuple(-(-side // step) for side, step in zip(size, stride, strict=True))
        voxels = math.prod(size)
        values += voxels * width
        products += voxels * math.prod(kernel) * width * (previous + 4 * width)
        previous = width
    return plan.batch_size * math.sqrt(values * products)


def without_margin(plan: Plan) -> Plan:
    """Return the plan with a patch that is no larger than the median case.

    A planned patch is rounded up to a multiple of the network's divisor. If whole cases fit into it, up to half of it
    is padding; the next smaller patch covers nearly as much, and allows correspondingly more steps.
    """
    patch = tuple(
        size if size <= typical else max(typical // divisor, _VOXELS_AT_BOTTOM) * divisor
        for size, typical, divisor in zip(plan.patch_shape, plan.median_shape, plan.divisor, strict=True)
    )
    return dataclasses.replace(plan, patch_shape=tuple(map(min, patch, plan.patch_shape)))


def lighter(plan: Plan, *, fixed: Sequence[str] = ()) -> Plan | None:
    """Return the plan with cheaper steps: fewer patches, else smaller ones, else a narrower network; or None.

    The depth of the network is kept, and the lowest level still has four voxels along each axis of a patch.
    """
    fixed = (*fixed, *plan.chosen)
    if "batch_size" not in fixed and plan.batch_size > _SMALLEST_BATCH:
        return dataclasses.replace(plan, batch_size=max(_SMALLEST_BATCH, plan.batch_size // 2))
    patch = tuple(_shortened(plan, axis) for axis in range(plan.num_dims))
    if "patch_shape" not in fixed and patch != plan.patch_shape:
        return dataclasses.replace(plan, patch_shape=patch)
    if "filters" not in fixed and plan.filters[0] >= 2 * _NARROWEST:
        return dataclasses.replace(plan, filters=tuple(width // 2 for width in plan.filters))
    return None


def wider(plan: Plan, *, memory_bytes: int | None = None) -> Plan | None:
    """Return the plan with a network of twice the width; None if it is too wide or needs too much memory."""
    if "filters" in plan.chosen or 2 * plan.filters[0] > _WIDEST:
        return None
    filters = tuple(max(width, min(2 * width, _WIDEST_LEVEL)) for width in plan.filters)
    wide = dataclasses.replace(plan, filters=filters)
    return wide if wide.step_bytes <= (DEFAULT_MEMORY_BYTES if memory_bytes is None else memory_bytes) else None


def _shortened(plan: Plan, axis: int) -> int:
    size, divisor = plan.patch_shape[axis], plan.divisor[axis]
    if axis == plan.anisotropic_axis:
        return size
    least = max(_SHORTEST_AXIS[plan.network_dims], _VOXELS_AT_BOTTOM * divisor)
    return min(size, max(math.ceil(least / divisor), round(_SHORTER * size / divisor)) * divisor)
