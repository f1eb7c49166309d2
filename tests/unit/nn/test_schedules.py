from __future__ import annotations

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from candy_monai.errors import SettingsError
from candy_monai.nn.schedules import (
    AbsoluteLinearLR,
    CosineLR,
    PolyLRScheduler,
    RelativeLinearLR,
    WarmUpLR,
)


def optimizer(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates or (1.0,)])


def rates(scheduler, steps: int, group: int = 0) -> list[float]:
    """The rate in force at each of so many optimizer steps."""
    seen = []
    for _ in range(steps):
        seen.append(scheduler.optimizer.param_groups[group]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def test_the_line_starts_at_b_and_falls_by_k_at_every_step():
    assert rates(AbsoluteLinearLR(optimizer(), k=-0.125, b=1.0), 4) == [1.0, 0.875, 0.75, 0.625]


def test_the_line_stays_at_its_lower_bound_for_ever():
    seen = rates(AbsoluteLinearLR(optimizer(), k=-0.25, b=1.0, min_lr=0.5), 1000)
    assert seen[2:] == [0.5] * 998


def test_a_restarting_line_starts_again_every_time():
    seen = rates(AbsoluteLinearLR(optimizer(), k=-0.25, b=1.0, min_lr=0.5, restart=True), 9)
    assert seen == [1.0, 0.75, 0.5] * 3


def test_a_bound_missed_by_rounding_alone_still_ends_the_cycle_on_it():
    # 0.3 - 3 * 0.1 is -5.6e-17 in floating point
    seen = rates(AbsoluteLinearLR(optimizer(), k=-0.1, b=0.3, min_lr=0.0, restart=True), 8)
    assert seen == pytest.approx([0.3, 0.2, 0.1, 0.0] * 2)


@given(k=st.floats(-1, -1e-6), b=st.floats(0.1, 1), min_lr=st.floats(0, 0.1))
@settings(max_examples=30)
def test_a_restarting_line_is_periodic_and_within_its_bounds(k, b, min_lr):
    scheduler = AbsoluteLinearLR(optimizer(), k, b, min_lr=min_lr, restart=True)
    seen = rates(scheduler, 40)
    assert all(min_lr <= rate <= b for rate in seen)
    starts = [step for step, rate in enumerate(seen) if rate == b]
    assert len({later - earlier for earlier, later in itertools.pairwise(starts)}) <= 1


def test_a_rising_line_may_start_below_the_bound():
    assert rates(AbsoluteLinearLR(optimizer(), k=0.25, b=0.0, min_lr=0.25), 4) == [0.25, 0.25, 0.5, 0.75]


def test_a_line_turned_on_the_way_ends_where_it_was_told_to():
    scheduler = AbsoluteLinearLR(optimizer(), k=-0.125, b=1.0, min_lr=0.0)
    assert rates(scheduler, 4) == [1.0, 0.875, 0.75, 0.625]
    scheduler.end_in(2)
    assert rates(scheduler, 4) == [0.5, 0.25, 0.0, 0.0]


def test_a_line_cannot_be_told_to_end_at_once():
    with pytest.raises(SettingsError, match="at least 1, got 0"):
        AbsoluteLinearLR(optimizer(), k=-0.125, b=1.0).end_in(0)


def test_the_line_sets_every_group_alike():
    scheduler = AbsoluteLinearLR(optimizer(1.0, 0.1), k=-0.1, b=0.5)
    assert scheduler.get_last_lr() == [0.5, 0.5]


def test_the_polynomial_reaches_its_end_value_and_stays_there():
    seen = rates(PolyLRScheduler(optimizer(), 0.5, 4, exponent=2.0), 100)
    assert seen[:5] == [0.5, 0.5 * 0.75**2, 0.5 * 0.25, 0.5 / 16, 0.0]
    assert seen[5:] == [0.0] * 95


def test_the_polynomial_stays_at_its_lower_bound():
    assert rates(PolyLRScheduler(optimizer(), 1.0, 2, exponent=1.0, min_lr=0.7), 4) == [1.0, 0.7, 0.7, 0.7]


def test_each_group_keeps_its_ratio_to_the_first():
    scheduler = PolyLRScheduler(optimizer(0.25, 1.0), 0.5, 4, exponent=1.0)
    assert [rates(scheduler, 1, group=1)[0], *scheduler.get_last_lr()] == [2.0, 0.375, 1.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda opt: AbsoluteLinearLR(opt, k=-0.25, b=1.0, min_lr=0.4, restart=True),
        lambda opt: AbsoluteLinearLR(opt, k=-0.125, b=1.0),
        lambda opt: PolyLRScheduler(opt, 0.5, 7),
    ],
)
def test_a_schedule_saved_and_loaded_goes_on_as_if_nothing_had_happened(make):
    straight = make(optimizer(0.5, 1.0))
    expected = rates(straight, 10, group=1)
    first = make(optimizer(0.5, 1.0))
    seen = rates(first, 4, group=1)
    second = make(optimizer(0.5, 1.0))
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert seen + rates(second, 6, group=1) == expected


def test_no_schedule_warns_when_used_as_pytorch_asks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates(AbsoluteLinearLR(optimizer(), k=-0.25, b=1.0), 3)
        rates(PolyLRScheduler(optimizer(), 0.5, 2), 3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": float("nan"), "b": 1.0},
        {"k": -1.0, "b": 1.0, "min_lr": -1.0},
        {"k": -1.0, "b": 0.1, "min_lr": 0.2},
    ],
)
def test_a_line_out_of_range_is_refused(arguments):
    with pytest.raises(SettingsError):
        AbsoluteLinearLR(optimizer(), **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial_lr": 0.1, "max_steps": 0},
        {"initial_lr": 0.1, "max_steps": 5, "exponent": 0.0},
        {"initial_lr": 0.1, "max_steps": 5, "min_lr": 0.2},
    ],
)
def test_a_polynomial_out_of_range_is_refused(arguments):
    with pytest.raises(SettingsError):
        PolyLRScheduler(optimizer(), **arguments)


def test_ratios_to_a_first_group_without_learning_rate_are_refused():
    with pytest.raises(SettingsError, match="ratio"):
        PolyLRScheduler(optimizer(0.0, 1.0), 0.1, 5)


def test_a_relative_line_keeps_each_group_s_own_rate_and_stays_at_its_end():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups)
    scheduler = RelativeLinearLR(optimizer, 4, end_factor=0.1)
    rates = []
    for _ in range(6):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr())
    factors = [0.75, 0.5, 0.25, 0.1, 0.1, 0.1]
    assert rates == [pytest.approx([factor, 0.1 * factor]) for factor in factors]


def test_a_relative_line_can_be_turned_to_end_earlier():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = RelativeLinearLR(optimizer, 100, end_factor=0.0)
    optimizer.step()
    scheduler.step()
    scheduler.end_in(3)
    rates = []
    for _ in range(4):
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    assert rates == pytest.approx([0.66, 0.33, 0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize(("num_steps", "end_factor"), [(0, 0.1), (5, -0.1), (5, 1.5)])
def test_a_relative_line_that_cannot_be_is_refused(num_steps, end_factor):
    with pytest.raises(SettingsError):
        RelativeLinearLR(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), num_steps, end_factor=end_factor)


def test_a_cosine_falls_to_nothing_and_a_warm_up_before_it_rises_on_a_line():
    found = rates(WarmUpLR(CosineLR(optimizer(), 40), 4), 41)
    assert found[:3] == pytest.approx(
        [0.25, 0.5 * 0.5 * (1 + math.cos(math.pi / 40)), 0.75 * 0.5 * (1 + math.cos(math.pi / 20))]
    )
    assert found[20] == pytest.approx(0.5)
    assert found[40] == found[-1] == 0.0
    assert all(later < earlier for earlier, later in itertools.pairwise(found[4:]))


@pytest.mark.parametrize("kind", [lambda o: CosineLR(o, 100), lambda o: PolyLRScheduler(o, 1.0, 100)])
def test_a_decay_whose_end_is_moved_goes_on_from_where_it_is_and_ends_then(kind):
    stepped = optimizer()
    scheduler, found = kind(stepped), []
    for step in range(30):
        if step == 10:
            before = scheduler.get_last_lr()[0]
            scheduler.end_in(20)
            assert scheduler.get_lr()[0] == pytest.approx(before)
        stepped.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    assert found[-1] == pytest.approx(0.0, abs=1e-9)
    assert all(later < earlier for earlier, later in itertools.pairwise(found))


def test_a_moved_end_survives_saving_and_loading():
    first, second = (CosineLR(optimizer(), 100) for _ in "12")
    first.end_in(10)
    second.load_state_dict(first.state_dict())
    assert (second.num_steps, second.left_there) == (10, 1.0)


def test_a_cosine_of_no_length_is_refused():
    with pytest.raises(SettingsError, match="must be at least"):
        CosineLR(optimizer(), 0)


SCHEDULES = {
    "a line": lambda made: AbsoluteLinearLR(made, -0.05, 1.0),
    "a cosine": lambda made: torch.optim.lr_scheduler.CosineAnnealingLR(made, 20),
    "one that goes by its last rate": lambda made: torch.optim.lr_scheduler.ExponentialLR(made, 0.9),
    "a cycle": lambda made: torch.optim.lr_scheduler.OneCycleLR(made, [0.5, 1.0], total_steps=20),
}


@pytest.mark.parametrize("build", SCHEDULES.values(), ids=SCHEDULES)
def test_a_warm_up_rises_to_any_schedule_and_then_leaves_it_alone_also_when_it_is_loaded(build):
    plain, warm = build(optimizer(0.5, 1.0)), WarmUpLR(build(optimizer(0.5, 1.0)), 4)
    expected = [rates(plain, 5, group=1), rates(plain, 5, group=1)]
    seen = rates(warm, 5, group=1)
    assert [new / old for new, old in zip(seen, expected[0], strict=True)] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    again = WarmUpLR(build(optimizer(0.5, 1.0)), 4)
    again.load_state_dict(warm.state_dict())
    assert rates(again, 5, group=1) == pytest.approx(expected[1])
    assert again.get_last_lr() == [group["lr"] for group in again.optimizer.param_groups]


def test_a_schedule_is_told_of_its_end_through_a_warm_up():
    scheduler = WarmUpLR(AbsoluteLinearLR(optimizer(), k=-0.01, b=1.0), 2)
    rates(scheduler, 4)
    scheduler.end_in(4)
    assert rates(scheduler, 5)[-1] == pytest.approx(1e-6)
    assert not hasattr(WarmUpLR(torch.optim.lr_scheduler.ConstantLR(optimizer()), 2), "end_in")


def test_a_warm_up_takes_the_place_of_one_that_a_schedule_has_already():
    found = rates(WarmUpLR(WarmUpLR(torch.optim.lr_scheduler.ConstantLR(optimizer(), 1.0), 50), 4), 5)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_a_warm_up_of_no_step_is_refused():
    with pytest.raises(SettingsError, match="num_steps"):
        WarmUpLR(AbsoluteLinearLR(optimizer(), k=-0.1, b=1.0), 0)
