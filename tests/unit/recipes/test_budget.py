import dataclasses
import itertools
import math
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from candy_monai.errors import SettingsError
from candy_monai.recipes import budget
from candy_monai.recipes.budget import (
    FEWEST_STEPS,
    STEPS_TO_WIDEN,
    TIMES_FASTER,
    VALIDATION_SHARE,
    Speed,
    choose,
    fit_to_time,
    lighter,
    measure_speed,
    num_scored,
    wider,
    without_margin,
)
from candy_monai.training.loaders import Loaders
from tests.plans import small_plan

GENEROUS = 1 << 40
SPEED = Speed(amp=None, step_s=0.5, case_s=0.1)


def _seconds(plan, speed):
    num_epochs = plan.num_epochs // TIMES_FASTER
    validations = num_epochs / plan.validate_every
    training = num_epochs * plan.iterations_per_epoch * speed.step_s
    return training + validations * plan.num_validation_cases * speed.case_s


@pytest.mark.parametrize(
    ("seconds", "case_s"),
    [*itertools.product([30, 60, 120, 600, 3600], [0.01, 0.1, 2.0]), (600, 30.0), (3600, 30.0)],
)
def test_the_work_expected_takes_no_longer_than_the_time_and_uses_most_of_it(seconds, case_s):
    speed = dataclasses.replace(SPEED, case_s=case_s)
    num_cases = 5
    plan = fit_to_time(small_plan(), speed, seconds=seconds, num_cases=num_cases, num_training_cases=20)
    final = 2 * num_scored(speed, seconds, num_cases) * speed.case_s
    assert _seconds(plan, speed) + final <= seconds
    assert _seconds(plan, speed) + final >= 0.6 * seconds


def test_a_plan_has_epochs_for_a_machine_that_was_busy_while_it_was_measured():
    slow = dataclasses.replace(SPEED, step_s=TIMES_FASTER * SPEED.step_s, case_s=0.0)
    plan = fit_to_time(small_plan(), slow, seconds=600, num_cases=0, num_training_cases=20)
    assert plan.num_epochs * plan.iterations_per_epoch * SPEED.step_s >= 0.9 * 600


def test_validation_during_training_takes_only_its_share():
    plan = fit_to_time(small_plan(), SPEED, seconds=600, num_cases=400, num_training_cases=20)
    epoch_s = plan.iterations_per_epoch * SPEED.step_s
    assert plan.num_validation_cases * SPEED.case_s <= VALIDATION_SHARE * epoch_s * 1.2


def test_a_score_rests_on_ten_cases_at_least_and_is_computed_more_seldom_instead():
    slow = dataclasses.replace(SPEED, case_s=0.5)  # 0.4 cases an epoch would be within the share
    plan = fit_to_time(small_plan(), slow, seconds=100, num_cases=40, num_training_cases=20)
    assert plan.num_validation_cases == 10
    validations = plan.num_epochs / TIMES_FASTER / plan.validate_every
    assert 1 <= validations * 10 * slow.case_s <= 0.11 * 100


def test_where_even_ten_cases_would_take_too_long_fewer_are_scored():
    slow = dataclasses.replace(SPEED, case_s=3.0)
    assert fit_to_time(small_plan(), slow, seconds=100, num_cases=40, num_training_cases=20).num_validation_cases == 2


def test_a_time_in_which_nothing_can_be_trained_is_refused_with_the_figures():
    with pytest.raises(SettingsError, match=r"0 s are left, one step takes 0\.5 s"):
        fit_to_time(small_plan(), SPEED, seconds=0.4, num_cases=5, num_training_cases=20)


def test_a_time_for_a_single_step_is_trained_in():
    plan = fit_to_time(small_plan(), SPEED, seconds=0.9, num_cases=5, num_training_cases=20)
    assert (plan.num_epochs // TIMES_FASTER, plan.iterations_per_epoch) == (1, 1)


def test_where_scoring_all_cases_would_take_too_much_of_the_time_some_are_scored():
    slow = dataclasses.replace(SPEED, case_s=10.0)
    assert num_scored(slow, 400, 5) == 5
    assert num_scored(slow, 90, 5) == 1
    assert num_scored(slow, 200, 5) == 2
    assert num_scored(SPEED, 90, 0) == 0


def test_a_run_too_short_to_see_a_case_often_does_not_mirror():
    short = fit_to_time(small_plan(), SPEED, seconds=60, num_cases=5, num_training_cases=20)
    long = fit_to_time(small_plan(), SPEED, seconds=36_000, num_cases=5, num_training_cases=20)
    assert short.mirror_axes == ()
    assert long.mirror_axes == small_plan().mirror_axes != ()


def test_without_validation_all_the_time_is_trained():
    speed = dataclasses.replace(SPEED, case_s=0.0)  # what is measured where there is no case
    plan = fit_to_time(small_plan(), speed, seconds=100, num_cases=0, num_training_cases=1)
    assert plan.num_epochs // TIMES_FASTER * plan.iterations_per_epoch * SPEED.step_s >= 70


def test_what_the_user_chose_is_kept():
    chosen = ("mirror_axes", "num_validation_cases", "validate_every")
    plan = dataclasses.replace(small_plan(), validate_every=3, num_validation_cases=None, chosen=chosen)
    fitted = fit_to_time(plan, SPEED, seconds=120, num_cases=5, num_training_cases=20)
    assert (fitted.validate_every, fitted.num_validation_cases) == (3, None)
    assert fitted.mirror_axes == plan.mirror_axes


def test_a_moment_s_other_work_does_not_decide_between_precisions(monkeypatch):
    batch = (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))
    rehearsal = SimpleNamespace(loaders=Loaders([batch]), device=None)
    monkeypatch.setattr(budget, "Rehearsal", lambda _trainer: rehearsal)
    durations = {"bf16": iter([0.9, 0.1, 0.1]), None: iter([0.3, 0.3, 0.3])}  # busy during the very first steps
    monkeypatch.setattr(
        "candy_monai.recipes.budget._timed",
        lambda _rehearsal, amp, *_: Speed(amp=amp, step_s=next(durations[amp]), case_s=0.1),
    )
    measured = measure_speed(None, precisions=["bf16", None])
    assert (measured.amp, measured.step_s) == ("bf16", 0.1)


def test_what_is_slow_is_timed_once(monkeypatch):
    clock = iter(float(second) for second in range(0, 1000, 5))  # every look at the clock is five seconds later
    monkeypatch.setattr(budget.time, "perf_counter", lambda: next(clock))
    batch = (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))
    seen = Counter()
    network = torch.nn.Identity()
    rehearsal = SimpleNamespace(
        loaders=Loaders([batch], [batch] * 3),
        device=torch.device("cpu"),
        begun=lambda *_: nullcontext(SimpleNamespace(model=network, networks=[network])),
        train=lambda *_: seen.update(["batch"]),
        validate=lambda *_: seen.update(["case"]),
    )
    monkeypatch.setattr(budget, "Rehearsal", lambda _trainer: rehearsal)
    measured = measure_speed(None, precisions=["bf16", None])
    assert seen == {"batch": 1, "case": 1}
    assert (measured.amp, measured.step_s, measured.case_s) == ("bf16", 5.0, 5.0)


def _plan(**entries):
    plan = dataclasses.replace(small_plan(), median_shape=(99, 99, 99), patch_shape=(64, 64, 64), batch_size=4)
    return dataclasses.replace(plan, **entries)


def _cost(plan):
    return plan.batch_size * math.prod(plan.patch_shape) * plan.filters[0]


def _measured(plan, _precisions):
    return Speed(amp=None, step_s=_cost(plan) / 1e6, case_s=0.1)


def _chosen_for(seconds, plan, **options):
    return choose(plan, measure=_measured, num_steps=lambda speed: seconds / speed.step_s, **options)


def test_a_lighter_step_has_fewer_patches_then_smaller_ones_then_a_narrower_network():
    fewer = lighter(_plan())
    smaller = lighter(fewer)
    assert fewer == _plan(batch_size=2)
    assert smaller == _plan(batch_size=2, patch_shape=(44, 44, 44))
    smallest = _plan(batch_size=2, patch_shape=(32, 32, 32))
    assert lighter(smallest).filters == tuple(width // 2 for width in smallest.filters)
    assert lighter(dataclasses.replace(smallest, filters=(8,) * smallest.num_levels)) is None


def test_a_smaller_patch_stays_a_multiple_of_what_the_network_divides_by():
    patch, divisor = lighter(_plan(batch_size=2)).patch_shape, small_plan().divisor
    assert all(size % step == 0 and size >= 4 * step for size, step in zip(patch, divisor, strict=True))


def test_a_patch_is_not_shortened_across_thick_slices():
    plan = _plan(batch_size=2, patch_shape=(128, 128, 16))
    assert plan.anisotropic_axis == 2
    assert lighter(plan).patch_shape == (88, 88, 16)


@pytest.mark.parametrize("name", ["batch_size", "patch_shape", "filters"])
def test_what_the_user_chose_is_in_every_relative(name):
    plan = _plan(chosen=(name,))
    while (relative := lighter(plan)) is not None:
        assert getattr(relative, name) == getattr(plan, name)
        plan = relative
    assert wider(_plan(chosen=("filters",)), memory_bytes=GENEROUS) is None


def test_a_network_is_widened_up_to_nnu_net_s_width_and_within_the_memory():
    twice = wider(_plan(), memory_bytes=GENEROUS)
    assert twice.filters == tuple(2 * width for width in _plan().filters)
    assert wider(twice, memory_bytes=GENEROUS) is None
    assert wider(_plan(), memory_bytes=1 << 20) is None


def test_the_margin_around_the_median_case_is_left_out_of_the_patch():
    plan = _plan(median_shape=(35, 50, 99), patch_shape=(36, 52, 40))
    assert plan.divisor == (4, 4, 2)
    assert without_margin(plan).patch_shape == (32, 48, 40)
    assert _chosen_for(1e4, plan)[0].patch_shape == (32, 48, 40)
    plan = dataclasses.replace(plan, chosen=("patch_shape",))
    assert _chosen_for(1e4, plan)[0].patch_shape == (36, 52, 40)


def test_a_patch_without_its_margin_still_leaves_the_lowest_level_four_voxels():
    plan = _plan(median_shape=(9, 14, 99), patch_shape=(12, 16, 40))
    assert without_margin(plan).patch_shape == (12, 16, 40)


def test_a_short_time_is_spent_on_cheaper_steps_until_there_are_enough():
    seconds = FEWEST_STEPS * _cost(_plan(batch_size=2)) / 1e6
    plan, speed = _chosen_for(seconds, _plan())
    assert plan == _plan(batch_size=2)
    assert speed == _measured(plan, None)


def test_a_very_short_time_is_not_spent_on_measuring_what_is_bound_to_be_too_slow():
    measured = []

    def measure(plan, precisions):
        measured.append(plan)
        return _measured(plan, precisions)

    choose(_plan(), measure=measure, num_steps=lambda speed: 1e-3 / speed.step_s)
    assert len(measured) == 2
    assert lighter(measured[1]) is None


def test_a_time_with_steps_enough_is_spent_on_the_plan_itself():
    seconds = FEWEST_STEPS * _cost(_plan()) / 1e6
    assert _chosen_for(seconds, _plan())[0] == _plan()


def test_a_long_time_is_spent_on_a_wider_network_if_that_gets_steps_enough():
    seconds = 1.01 * STEPS_TO_WIDEN * _cost(_plan()) / 1e6
    assert _chosen_for(seconds, _plan(), memory_bytes=GENEROUS)[0] == wider(_plan(), memory_bytes=GENEROUS)

    def measured(plan, _precisions):  # on this machine twice the width costs four times the time
        return Speed(amp=None, step_s=_cost(plan) * plan.filters[0] / 1e6, case_s=0.1)

    seconds = 1.01 * STEPS_TO_WIDEN * measured(_plan(), None).step_s
    num_steps = lambda speed: seconds / speed.step_s  # noqa: E731
    assert choose(_plan(), measure=measured, num_steps=num_steps, memory_bytes=GENEROUS)[0] == _plan()


def test_a_relative_that_is_hardly_faster_on_this_machine_is_not_taken():
    plan, _ = choose(
        _plan(), measure=lambda _plan, _precisions: Speed(amp=None, step_s=1.0, case_s=0.1), num_steps=lambda _: 10.0
    )
    assert plan == _plan()


def test_a_network_that_is_not_as_wide_as_the_plan_says_is_tried_in_one_width():
    few, many = _chosen_for(1e-3, _plan(), may_resize=False)[0], _chosen_for(1e9, _plan(), may_resize=False)[0]
    assert few.filters == many.filters == _plan().filters
    assert few.patch_shape == (32, 32, 32)
