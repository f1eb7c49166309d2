"""How fast this machine trains a plan, and how much of it fits into a time. Changes no network."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from candy_monai.attachment import Precision
from candy_monai.data.planning.plan import Plan
from candy_monai.data.samples.batches import Batch, unpack
from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import TrainSettings
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.trainer import Rehearsal

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
    training, validation = trainer._dataloader, trainer._validation_dataloader
    image = unpack(next(iter(training))).images[0]
    cases = [unpack(batch) for batch in itertools.islice(validation or (), 3)]
    to_time = precisions or _precisions_at_hand(trainer.device())
    speeds: list[Speed] = []
    started = time.perf_counter()
    for amp in itertools.chain.from_iterable(itertools.repeat(to_time, ROUNDS)):
        speeds.append(_timed(trainer, amp, image, cases))
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
    changes: dict[str, Any] = {}
    if num_cases:
        affordable = math.floor(VALIDATION_SHARE * epoch_s / speed.case_s)
        meaningful = min(FEWEST_CASES, max(1, math.floor(DEAREST_VALIDATION * usable / speed.case_s)))
        validated = min(num_cases, max(affordable, meaningful))
        changes["num_validation_cases"] = validated
        dear = validated * speed.case_s / (DEAREST_VALIDATION * epoch_s)
        changes["validate_every"] = 1 if validated <= affordable else min(num_epochs, max(1, math.ceil(dear)))
    kept = {name: value for name, value in changes.items() if name not in plan.chosen}
    fitted = dataclasses.replace(plan, **kept, num_epochs=TIMES_FASTER * num_epochs)
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


def _timed(trainer: SegmentationTrainer, amp: Precision, image: Tensor, cases: list[Batch]) -> Speed:
    rehearsal = Rehearsal(trainer, TrainSettings(num_epochs=1, amp=amp), image)
    with rehearsal.begun() as toolbox:  # its memory is free again for the next one
        toolbox.model.train()
        batches = itertools.chain.from_iterable(itertools.repeat(trainer._dataloader))
        durations: list[float] = []
        for _ in range(WARM_UP_STEPS + TIMED_STEPS):
            if sum(durations) > LONG_ENOUGH_S:
                break
            started = time.perf_counter()
            rehearsal.train(next(batches))
            _wait(trainer.device())
            durations.append(time.perf_counter() - started)
        for network in toolbox.networks:
            network.eval()
        started, num_timed, cases_s = time.perf_counter(), 0, 0.0
        for case in cases:
            rehearsal.validate(case.images[0].to(trainer.device()), case.labels[0].to(trainer.device()))
            _wait(trainer.device())
            num_timed, cases_s = num_timed + 1, time.perf_counter() - started
            if cases_s > LONG_ENOUGH_S:
                break
    # The fastest is the machine's own speed. If something else goes on slowing it down, the run is shortened for it.
    step_s = min(durations[WARM_UP_STEPS:] or durations)
    return Speed(amp=amp, step_s=step_s, case_s=cases_s / max(1, num_timed))


def _precisions_at_hand(device: torch.device) -> Sequence[Precision]:
    return ("bf16", None) if _may_have_bf16(device) else (None,)


def _may_have_bf16(device: torch.device) -> bool:
    """Return whether it is worth timing: without hardware for it bf16 on a CPU is emulated, and slow to find out."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
