"""How a time is best spent: how fast this machine trains a plan, which of its relatives to train, and how long.

A step that is cheap can be made often; a wide network learns more from each. Which of the two a time is better spent
on depends on the machine, so the steps that fit are counted by measured speed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from candy_monai.attachment import Precision
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import DEFAULT_MEMORY_BYTES
from candy_monai.data.samples.batches import Batch, unpack
from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import TrainSettings
from candy_monai.training.rehearsal import Rehearsal
from candy_monai.training.segmentation import SegmentationTrainer

WARM_UP_STEPS = 1
TIMED_STEPS = 2
LONG_ENOUGH_S = 3.0
"""After so long no other step or case is timed, and a warm-up counts: what is measured is missing from a short time."""
ROUNDS = 3
"""Each precision is timed so often, by turns: what else the machine does for a moment must not decide between them."""
ROUNDS_S = 6.0
"""After so long nothing else is timed."""
TARGET_EPOCHS = 25
SHORTEST_EPOCH_S = 4.0
VALIDATION_SHARE = 0.05
"""Share of the time that validation during training may take."""
TIMES_FASTER = 4
"""A plan has epochs for a machine so much faster than a few steps suggested. It is the time that ends the run."""
FINAL_SHARE = 0.25
"""Share of the time that scoring the validation cases at the end may take; where all would take more, some are."""
RESERVE_SHARE = 0.03
"""Share of the time that is kept back, for pictures and what else surrounds the epochs."""
RESERVE_S = 2.0
"""Kept back besides, for building the run and ending the process; of a very short time no more than a twentieth."""
EPOCH_OVERHEAD_S = 0.3
FEWEST_CASES = 10
"""Cases that a validation score is the mean of, if there are so many: of fewer it says little."""
DEAREST_VALIDATION = 0.1
"""Share of the time that one validation may take, and all of those of `FEWEST_CASES` together."""
FROM_FILES = 2
"""Scoring a case from its file takes so many times what scoring a preprocessed one does."""
PASSES_TO_MIRROR = 200
"""How often each case must be seen before mirroring pays."""

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
_SHORTEST_AXIS = {"2d": 128, "3d": 32}
_VOXELS_AT_BOTTOM = 4
_SHORTER = 0.7  # of each axis: half the voxels of a picture, a third of a volume's


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured seconds.

    Attributes:
        amp: The precision that was faster.
        step_s: One optimizer step, data included.
        case_s: One validation case, scored.
    """

    amp: Precision
    step_s: float
    case_s: float


def measure_speed(trainer: SegmentationTrainer, *, precisions: Sequence[Precision] | None = None) -> Speed:
    """Time a few steps of this trainer, and one case.

    The weights that are trained here are thrown away; the run draws its own from its seed.

    Args:
        trainer: A trainer with its plan and its loaders.
        precisions: Those to time, of which the faster is taken; None for all that the device has.
    """
    rehearsal = Rehearsal(trainer)
    training, validation = rehearsal.loaders
    image = unpack(next(iter(training))).images[0]
    cases = [unpack(batch) for batch in itertools.islice(validation or (), 3)]
    to_time = precisions or _precisions_at_hand(rehearsal.device)
    speeds: list[Speed] = []
    started = time.perf_counter()
    for amp in itertools.chain.from_iterable(itertools.repeat(to_time, ROUNDS)):
        speeds.append(_timed(rehearsal, amp, image, cases))
        if time.perf_counter() - started > ROUNDS_S:
            break
    return min(speeds, key=lambda speed: speed.step_s)


def fit_to_time(
    plan: Plan,
    speed: Speed,
    *,
    seconds: float,
    num_cases: int,
    num_training_cases: int,
) -> Plan:
    """Return the plan with an epoch, and validation, that a time holds about `TARGET_EPOCHS` of.

    The epochs planned are more, `TIMES_FASTER` as many: a time limit ends the run, and the schedule with it, so that a
    machine that was busy while it was measured is made use of later.

    A run so short that it sees each case only a few times does not mirror: to learn every anatomy in all its mirror
    images takes longer than that, and its own is what will be asked. How to validate and whether to mirror is left as
    it is where the user chose it.

    Args:
        plan: The plan.
        speed: What was measured.
        seconds: What is left for training and validation, the final one included.
        num_cases: Validation cases; those that `num_scored` allows are scored once more at the end, from their files.
        num_training_cases: Training cases.

    Raises:
        SettingsError: If the time is too short for a single step.
    """
    final_s = final_validation_s(speed, seconds, num_cases)
    usable = usable_s(speed, seconds, num_cases)
    if usable < speed.step_s:
        raise SettingsError(
            f"the time is too short: after preparing, {max(0.0, seconds):.0f} s are left, one step takes "
            f"{speed.step_s:.1f} s and the final validation about {final_s:.0f} s; give more, or set --epochs"
        )
    num_epochs = max(1, min(TARGET_EPOCHS, int(usable / SHORTEST_EPOCH_S)))
    epoch_s = usable / num_epochs
    fitted = dataclasses.replace(plan, num_epochs=TIMES_FASTER * num_epochs)
    if num_cases:
        affordable = math.floor(VALIDATION_SHARE * epoch_s / speed.case_s)
        meaningful = min(FEWEST_CASES, max(1, math.floor(DEAREST_VALIDATION * usable / speed.case_s)))
        validated = min(num_cases, max(affordable, meaningful))
        dear = validated * speed.case_s / (DEAREST_VALIDATION * epoch_s)
        if "num_validation_cases" not in plan.chosen:
            fitted = dataclasses.replace(fitted, num_validation_cases=validated)
        if "validate_every" not in plan.chosen:
            every = 1 if validated <= affordable else min(num_epochs, max(1, math.ceil(dear)))
            fitted = dataclasses.replace(fitted, validate_every=every)
    validated = num_cases if fitted.num_validation_cases is None else min(num_cases, fitted.num_validation_cases)
    step_budget = epoch_s - EPOCH_OVERHEAD_S - validated * speed.case_s / fitted.validate_every
    num_iterations = max(1, int(step_budget / speed.step_s))
    passes = num_epochs * num_iterations * plan.batch_size / num_training_cases
    mirrored = "mirror_axes" in plan.chosen or passes >= PASSES_TO_MIRROR
    return dataclasses.replace(
        fitted, iterations_per_epoch=num_iterations, mirror_axes=plan.mirror_axes if mirrored else ()
    )


def usable_s(speed: Speed, seconds: float, num_cases: int) -> float:
    """Return the seconds that are left for training and the validation on the way."""
    reserve_s = RESERVE_SHARE * seconds + min(RESERVE_S, 0.05 * seconds)
    return seconds - reserve_s - final_validation_s(speed, seconds, num_cases)


def final_validation_s(speed: Speed, seconds: float, num_cases: int) -> float:
    """Return the seconds that scoring validation cases from their files takes, reading and restoring included."""
    return FROM_FILES * num_scored(speed, seconds, num_cases) * speed.case_s


def num_scored(speed: Speed, seconds: float, num_cases: int) -> int:
    """Return how many of the validation cases are scored at the end: all, unless that took more than its share."""
    most = FINAL_SHARE * max(0.0, seconds)
    if FROM_FILES * num_cases * speed.case_s <= most:
        return num_cases
    return max(1, int(most / (FROM_FILES * speed.case_s)))


def _timed(rehearsal: Rehearsal, amp: Precision, image: Tensor, cases: list[Batch]) -> Speed:
    device, settings = rehearsal.device, TrainSettings(num_epochs=1, amp=amp)
    with rehearsal.begun(settings, image) as toolbox:  # its memory is free again for the next one
        toolbox.model.train()
        batches = itertools.chain.from_iterable(itertools.repeat(rehearsal.loaders.training))
        durations: list[float] = []
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            if sum(durations) > LONG_ENOUGH_S:
                break
            started = time.perf_counter()
            rehearsal.train(next(batches))
            _wait(device)
            durations.append(time.perf_counter() - started)
        for network in toolbox.networks:
            network.eval()
        started, num_timed, cases_s = time.perf_counter(), 0, 0.0
        for case in cases:
            rehearsal.validate(case.images[0].to(device), case.labels[0].to(device))
            _wait(device)
            num_timed, cases_s = num_timed + 1, time.perf_counter() - started
            if cases_s > LONG_ENOUGH_S:
                break
    # The fastest is the machine's own speed. If something else goes on slowing it down, the run is shortened for it.
    step_s = min(durations[WARM_UP_STEPS:] or durations)
    return Speed(amp=amp, step_s=step_s, case_s=cases_s / max(1, num_timed))


def _precisions_at_hand(device: torch.device) -> Sequence[Precision]:
    """Return what is worth timing: bf16 on a CPU without hardware for it is emulated, and slow to find out."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        has_bf16 = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return ("bf16", None) if has_bf16 else (None,)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
    """
    patch = tuple(
        size if size <= typical else max(typical // divisor, _VOXELS_AT_BOTTOM) * divisor
        for size, typical, divisor in zip(plan.patch_shape, plan.median_shape, plan.divisor, strict=True)
    )
    return dataclasses.replace(plan, patch_shape=tuple(map(min, patch, plan.patch_shape)))


def lighter(plan: Plan, *, fixed: Sequence[str] = ()) -> Plan | None:
    """Return the plan with cheaper steps: of fewer patches, else of smaller ones, else by a narrower network, or None.

    The network's depth stays, and a patch still leaves its lowest level four voxels along each axis.

    Args:
        plan: The plan.
        fixed: Entries that stay, besides those that the user chose.
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
    """Return the plan with a network of twice the width; None if that is wider than nnU-Net's, or needs more memory."""
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
    if axis == plan.anisotropic_axis:
        return size
    least = max(_SHORTEST_AXIS[plan.configuration], _VOXELS_AT_BOTTOM * divisor)
    return min(size, max(math.ceil(least / divisor), round(_SHORTER * size / divisor)) * divisor)
