"""Measure how fast this machine trains a plan, and divide a time budget into epochs, validation and final scores.

The choice among several plans is made in ``candidates.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from candy_monai.attachment import Precision
from candy_monai.data.planning.plan import Plan
from candy_monai.data.samples.batches import Batch, unpack
from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import TrainSettings
from candy_monai.training.rehearsal import Rehearsal
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.toolbox import TrainerToolbox

MEASURING_SHARE = 0.06
"""Share of the time that measuring may take, without the first step of each measured plan, which cannot be avoided."""
SHARE_OF_A_PLAN = 0.5
"""Share of the measuring time for the first plan, in all precisions; each further plan gets this share of the rest."""
ROUNDS = 3
"""Number of rounds in which the precisions are timed in turn, so that a temporary load does not decide between them."""
MOST_STEPS = 40
"""Maximum number of timed steps in a round; more hardly improve the estimate."""
MOST_CASES = 3
CLEARLY_SLOWER = 1.5
"""A precision is not timed again if its first round took this many times as long as that of the fastest."""
TARGET_EPOCHS = 25
SHORTEST_EPOCH_S = 4.0
VALIDATION_SHARE = 0.05
"""Share of the time that validation during training may take."""
TIMES_FASTER = 4
"""A plan has enough epochs for a machine this many times faster than measured; the time limit ends the run."""
FINAL_SHARE = 0.25
"""Maximum share of the time for scoring the validation cases at the end; if all would take longer, only some are
scored."""
RESERVE_SHARE = 0.03
"""Share of the time that is reserved for pictures and other work around the epochs."""
RESERVE_S = 14.0
"""Further reserve for building the run, drawing the last pictures, opening the predictor and ending the process, on a
machine that has become three times slower; a short budget reserves less."""
_MOST_RESERVED = 0.32
ENDING_S = 4.0
"""The part of this reserve that remains once the predictor is open."""
SHORTEST_KEPT_S = 60.0
"""A shorter budget cannot reserve `RESERVE_S`, and may be exceeded by the time for opening the trained weights."""
EPOCH_OVERHEAD_S = 0.3
FEWEST_CASES = 10
"""Minimum number of cases for a validation score, if there are that many; fewer give an unreliable mean."""
DEAREST_VALIDATION = 0.1
"""Maximum share of the time for one validation, and for all validations of `FEWEST_CASES` cases together."""
FROM_FILES = 2
"""Scoring a case from its file takes this many times as long as scoring a preprocessed case."""
PASSES_TO_MIRROR = 200
"""Number of passes over the training cases from which on mirroring is worthwhile."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measured seconds.

    Attributes:
        amp: The fastest precision.
        step_s: One optimizer step, data included.
        case_s: One validation case, scored.
    """

    amp: Precision
    step_s: float
    case_s: float


def measure_speed(
    trainer: SegmentationTrainer, *, seconds: float, precisions: Sequence[Precision] | None = None
) -> Speed:
    """Measure the time of some steps of a trainer with its plan and its loaders, and of a few cases.

    The lower quartile of the step times is used: it is the speed of the machine without other load, if this is present
    in at most three quarters of the time. If the load persists, the run is shortened accordingly. The weights trained
    here are discarded; the run draws its own from its seed. At least one step and one case are measured, in each of
    these precisions, or in all that the device supports.
    """
    rehearsal = Rehearsal(trainer)
    training, validation = rehearsal.loaders
    image = unpack(next(iter(training))).images[0]
    cases = [unpack(batch) for batch in itertools.islice(validation or (), MOST_CASES)]
    timing = list(precisions or precisions_at_hand(rehearsal.device))
    steps: dict[Precision, list[float]] = {amp: [] for amp in timing}
    scored: dict[Precision, list[float]] = {amp: [] for amp in timing}
    started = time.perf_counter()
    for number in range(ROUNDS):
        for amp in timing:
            if number + len(steps[timing[0]]) and time.perf_counter() - started > seconds:
                break
            with rehearsal.begun(TrainSettings(num_epochs=1, amp=amp), image) as toolbox:  # frees its memory again
                turn_s = seconds / (ROUNDS * len(timing))
                steps[amp] += _timed_steps(rehearsal, toolbox, turn_s)
                if not scored[amp]:
                    scored[amp] = _timed_cases(rehearsal, toolbox, cases, turn_s)
        fastest = min(typical(steps[amp]) for amp in timing if steps[amp])
        timing = [amp for amp in timing if steps[amp] and typical(steps[amp]) <= CLEARLY_SLOWER * fastest]
    amp = min(timing, key=lambda amp: typical(steps[amp]))
    return Speed(amp=amp, step_s=typical(steps[amp]), case_s=_case_s(scored[amp], cases))


def allowances(seconds: float) -> Iterator[float]:
    """Yield the seconds for measuring each plan, in total `MEASURING_SHARE` of a time."""
    left_s = MEASURING_SHARE * seconds
    while True:
        yield SHARE_OF_A_PLAN * left_s
        left_s -= SHARE_OF_A_PLAN * left_s


def typical(durations: Sequence[float]) -> float:
    """Return the lower quartile of durations."""
    return float(np.percentile(durations, 25))


def fit_to_time(
    plan: Plan,
    speed: Speed,
    *,
    seconds: float,
    num_cases: int,
    num_training_cases: int,
    spent_s: float = 0.0,
) -> Plan:
    """Return the plan with epochs and validation sized so that about `TARGET_EPOCHS` epochs fit into a time.

    `TIMES_FASTER` times as many epochs are planned, and a time limit ends the run and the schedule, so that a machine
    that was busy during the measurement is fully used later.

    A run so short that it sees each case only a few times does not mirror: learning the mirrored anatomies as well
    would take longer, and only the original ones are evaluated. A validation or mirroring that the user chose is kept.

    Args:
        plan: The plan.
        speed: What was measured.
        seconds: The time left for training and validation, including the final one.
        num_cases: Number of validation cases; of these, `num_scored` are scored again at the end, from their files.
        num_training_cases: Number of training cases.
        spent_s: The time that preparation and measuring have taken, for messages.

    Raises:
        SettingsError: If the time is too short for a single step, or for a step and a validation that the user chose.
    """
    final_s = final_validation_s(speed, seconds, num_cases)
    usable = usable_s(speed, seconds, num_cases)
    if usable < speed.step_s:
        left = f"{seconds:.0f} s are left" if seconds >= 1 else "nothing is left"
        raise SettingsError(
            f"the time is too short: preparing took {spent_s:.0f} s, {left}, one step takes {speed.step_s:.1f} s and "
            f"the final validation about {final_s:.0f} s; give more time, a lighter network or --epochs instead (the "
            "preprocessed cases are kept, so this time is saved when you start again)"
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
    if "num_validation_cases" in plan.chosen and validated * speed.case_s > usable - speed.step_s:
        raise SettingsError(
            f"a validation on {validated} cases takes about {validated * speed.case_s:.0f} s, and {usable:.0f} s are "
            "left to train and validate in; give more time, or leave num_validation_cases to the budget"
        )
    step_budget = epoch_s - EPOCH_OVERHEAD_S - validated * speed.case_s / fitted.validate_every
    num_iterations = max(1, int(step_budget / speed.step_s))
    passes = num_epochs * num_iterations * plan.batch_size / num_training_cases
    mirrored = "mirror_axes" in plan.chosen or passes >= PASSES_TO_MIRROR
    return dataclasses.replace(
        fitted, iterations_per_epoch=num_iterations, mirror_axes=plan.mirror_axes if mirrored else ()
    )


def usable_s(speed: Speed, seconds: float, num_cases: int) -> float:
    """Return the seconds that are left for training and for validation during training."""
    reserve_s = RESERVE_SHARE * seconds + min(RESERVE_S, _MOST_RESERVED * seconds)
    return seconds - reserve_s - final_validation_s(speed, seconds, num_cases)


def final_validation_s(speed: Speed, seconds: float, num_cases: int) -> float:
    """Return the seconds that scoring validation cases from their files takes, reading and restoring included."""
    return FROM_FILES * num_scored(speed, seconds, num_cases) * speed.case_s


def num_scored(speed: Speed, seconds: float, num_cases: int) -> int:
    """Return how many validation cases are scored at the end: all, unless that would take too long."""
    most = FINAL_SHARE * max(0.0, seconds)
    if FROM_FILES * num_cases * speed.case_s <= most:
        return num_cases
    return max(1, int(most / (FROM_FILES * speed.case_s)))


def _timed_steps(rehearsal: Rehearsal, toolbox: TrainerToolbox, seconds: float) -> list[float]:
    """Return the durations of steps; that of the first, a warm-up step, only if it took all the time."""
    toolbox.model.train()
    batches = itertools.chain.from_iterable(itertools.repeat(rehearsal.loaders.training))
    durations: list[float] = []
    while sum(durations) <= seconds and len(durations) <= MOST_STEPS:
        started = time.perf_counter()
        rehearsal.train(next(batches))
        _wait(rehearsal.device)
        durations.append(time.perf_counter() - started)
    return durations[1:] or durations


def _timed_cases(rehearsal: Rehearsal, toolbox: TrainerToolbox, cases: Sequence[Batch], seconds: float) -> list[float]:
    """Return the seconds for scoring each of some cases, as many as there is time for."""
    for network in toolbox.networks:
        network.eval()
    durations: list[float] = []
    for case in cases:
        if durations and sum(durations) > seconds:
            break
        started = time.perf_counter()
        rehearsal.validate(case.images[0].to(rehearsal.device), case.labels[0].to(rehearsal.device))
        _wait(rehearsal.device)
        durations.append(time.perf_counter() - started)
    return durations


def _case_s(durations: Sequence[float], cases: Sequence[Batch]) -> float:
    """Return the seconds for a case of mean size, from the median of the seconds per voxel."""
    if not durations:
        return 0.0
    sizes = [case.images[0].numel() for case in cases]
    by_voxel = [duration / size for duration, size in zip(durations, sizes, strict=False)]
    return statistics.median(by_voxel) * statistics.fmean(sizes)


def precisions_at_hand(device: torch.device) -> Sequence[Precision]:
    """Return the precisions worth timing; without hardware support, bf16 on a CPU is emulated and very slow."""
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported()
    else:
        has_bf16 = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return ("bf16", None) if has_bf16 else (None,)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
