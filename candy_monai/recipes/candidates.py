"""Which network, patch and batch a time is best spent on: a plan and its relatives. Measures nothing itself.

A step that is cheap can be made often; a wide network learns more from each. Which of the two a time is better spent
on depends on the machine, so the steps that fit are counted by measured speed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from candy_monai.attachment import Precision
from candy_monai.data.planning.plan import DEFAULT_MEMORY_BYTES, Plan
from candy_monai.recipes.speed import Speed

FEWEST_STEPS = 400
"""With fewer steps than this, cheaper ones are better."""

STEPS_TO_WIDEN = 3000
"""With more steps than this, a wider network is measured ..."""

STEPS_WHEN_WIDE = 1500
"""... and taken if it still gets so many."""

_WORTHWHILE = 0.75
"""A relative must cut a step's time to this share to be worth what it gives up."""

_SMALLEST_BATCH = 2
_NARROWEST, _WIDEST, _WIDEST_LEVEL = 8, 32, 320
_SHORTEST_AXIS = {2: 128, 3: 32}
_VOXELS_AT_BOTTOM = 4
_SHORTER = 0.7  # of each axis: half the voxels of a picture, a third of a volume's


def choose(
    plan: Plan,
    *,
    measure: Callable[[Plan, Sequence[Precision] | None], Speed],
    num_steps: Callable[[Speed], float],
    memory_bytes: int | None = None,
    may_resize: bool = True,
) -> tuple[Plan, Speed]:
    """Return the plan, or the relative of it, that makes best use of a time, and its speed.

    Args:
        plan: The plan that follows from the data.
        measure: Returns the speed of a plan on this machine, in one of these precisions or the fastest of all.
        num_steps: How many steps fit at a speed, now.
        memory_bytes: Memory that a wider network may use; None for what a plan assumes.
        may_resize: Whether the network is as wide as the plan says, so that another width is another network.
    """
    fixed = () if may_resize else ("filters",)
    if "patch_shape" not in plan.chosen:
        plan = without_margin(plan)
    speed = measure(plan, None)
    while num_steps(speed) < FEWEST_STEPS and (relative := lighter(plan, fixed=fixed)) is not None:
        # To measure one that is bound to be too slow would only cost time.
        while num_steps(speed) * _work(plan) / _work(relative) < FEWEST_STEPS and (
            further := lighter(relative, fixed=fixed)
        ):
            relative = further
        measured = measure(relative, [speed.amp])
        if measured.step_s > _WORTHWHILE * speed.step_s:
            break
        plan, speed = relative, measured
    while num_steps(speed) > STEPS_TO_WIDEN:
        relative = wider(plan, memory_bytes=memory_bytes) if may_resize else None
        if relative is None or num_steps(measured := measure(relative, [speed.amp])) < STEPS_WHEN_WIDE:
            break
        plan, speed = relative, measured
    return plan, speed


def without_margin(plan: Plan) -> Plan:
    """Return the plan with a patch that is no larger than the median case.

    A planned patch is rounded up to what the network divides it by. Where whole cases fit into one, up to half of it is
    padding; the next smaller patch sees nearly as much and is trained on that much more often.

    Args:
        plan: The plan.
    """
    patch = tuple(
        size if size <= typical else max(typical // divisor, _VOXELS_AT_BOTTOM) * divisor
        for size, typical, divisor in zip(plan.patch_shape, plan.median_shape, plan.divisor, strict=True)
    )
    return dataclasses.replace(plan, patch_shape=tuple(map(min, patch, plan.patch_shape)))


def lighter(plan: Plan, *, fixed: Sequence[str] = ()) -> Plan | None:
    """Return the plan with cheaper steps: of fewer patches, else of smaller ones, else by a narrower network.

    The network's depth stays, and a patch still leaves its lowest level four voxels along each axis.

    Args:
        plan: The plan.
        fixed: Entries that stay, besides those that the user chose.

    Returns:
        None when nothing can give way.
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
    """Return the plan with a network of twice the width.

    Args:
        plan: The plan.
        memory_bytes: Memory of a training step; None for what a plan assumes.

    Returns:
        None when that is wider than nnU-Net's, or does not fit into the memory.
    """
    if "filters" in plan.chosen or 2 * plan.filters[0] > _WIDEST:
        return None
    filters = tuple(max(width, min(2 * width, _WIDEST_LEVEL)) for width in plan.filters)
    wide = dataclasses.replace(plan, filters=filters)
    return wide if wide.step_bytes <= (DEFAULT_MEMORY_BYTES if memory_bytes is None else memory_bytes) else None


def _work(plan: Plan) -> float:
    """Return what a step takes, in a unit of its own: nearly in proportion to the voxels, a bit more to the width."""
    return plan.batch_size * math.prod(plan.patch_shape) * math.pow(plan.filters[0], 1.5)


def _shortened(plan: Plan, axis: int) -> int:
    size, divisor = plan.patch_shape[axis], plan.divisor[axis]
    if axis == plan.coarse_axis:
        return size
    least = max(_SHORTEST_AXIS[plan.num_dims], _VOXELS_AT_BOTTOM * divisor)
    return min(size, max(math.ceil(least / divisor), round(_SHORTER * size / divisor)) * divisor)
