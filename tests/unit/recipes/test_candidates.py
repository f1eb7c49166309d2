import dataclasses
import math
import random
from collections import Counter

import pytest

from candy_monai.recipes import candidates
from candy_monai.recipes.budget import Speed, allowances, typical
from candy_monai.recipes.candidates import (
    FEWEST_STEPS,
    MOST_MEASURED,
    STEPS_TO_WIDEN,
    STEPS_WHEN_WIDE,
    choose,
    lighter,
    wider,
    without_margin,
    work,
)
from tests.plans import small_plan

GENEROUS = 1 << 40


def _plan(**entries):
    plan = dataclasses.replace(small_plan(), median_shape=(99, 99, 99), patch_shape=(64, 64, 64), batch_size=4)
    return dataclasses.replace(plan, **entries)


def _cost(plan):
    return plan.batch_size * math.prod(plan.patch_shape) * plan.filters[0]


def _measured(plan, _precisions):
    return Speed(amp=None, step_s=_cost(plan) / 1e6, case_s=0.1)


def _weighed_for(seconds, plan, **options):
    options = {"measure": _measured, **options}
    return choose(plan, num_steps=lambda speed: seconds / speed.step_s, **options)


def test_a_step_of_the_second_stage_of_a_cascade_costs_more_than_one_without_its_inputs():
    assert candidates.work(dataclasses.replace(_plan(), num_previous=40)) > candidates.work(_plan())


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
    assert _weighed_for(1e4, plan).plan.patch_shape == (32, 48, 40)
    plan = dataclasses.replace(plan, chosen=("patch_shape",))
    assert _weighed_for(1e4, plan).plan.patch_shape == (36, 52, 40)


def test_a_patch_without_its_margin_still_leaves_the_lowest_level_four_voxels():
    plan = _plan(median_shape=(9, 14, 99), patch_shape=(12, 16, 40))
    assert without_margin(plan).patch_shape == (12, 16, 40)


def test_a_short_time_is_spent_on_cheaper_steps_until_there_are_enough():
    seconds = FEWEST_STEPS * _cost(_plan(batch_size=2)) / 1e6
    weighed = _weighed_for(seconds, _plan())
    assert weighed.plan == _plan(batch_size=2)
    assert weighed.speed == _measured(weighed.plan, None)


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
    assert _weighed_for(seconds, _plan()).plan == _plan()


def test_a_long_time_is_spent_on_a_wider_network_if_that_gets_steps_enough():
    seconds = 1.01 * STEPS_TO_WIDEN * _cost(_plan()) / 1e6
    assert _weighed_for(seconds, _plan(), memory_bytes=GENEROUS).plan == wider(_plan(), memory_bytes=GENEROUS)

    def measured(plan, _precisions):  # on this machine twice the width costs four times the time
        return Speed(amp=None, step_s=_cost(plan) * plan.filters[0] / 1e6, case_s=0.1)

    seconds = 1.01 * STEPS_TO_WIDEN * measured(_plan(), None).step_s
    assert _weighed_for(seconds, _plan(), measure=measured, memory_bytes=GENEROUS).plan == _plan()


def test_a_relative_that_is_hardly_faster_on_this_machine_is_not_taken():
    weighed = _weighed_for(10.0, _plan(), measure=lambda *_: Speed(amp=None, step_s=1.0, case_s=0.1))
    assert weighed.plan == _plan()
    assert "its steps are hardly faster" in weighed.in_words()


def test_a_network_that_is_not_as_wide_as_the_plan_says_is_tried_in_one_width():
    few, many = (_weighed_for(seconds, _plan(), may_resize=False) for seconds in (1e-3, 1e9))
    assert few.plan.filters == many.plan.filters == _plan().filters
    assert few.plan.patch_shape == (32, 32, 32)
    for candidate in (*few.candidates, *many.candidates):  # the plan's filters are not the network's
        assert "filters" not in str(candidate)
        assert candidate.to_dict()["filters"] is None


def test_what_was_weighed_is_told_with_its_steps_and_why_it_is_not_chosen():
    seconds, slices = 1000 * _cost(_plan()) / 1e6, dataclasses.replace(_plan(), batch_size=3)
    weighed = _weighed_for(seconds, _plan(), memory_bytes=GENEROUS, other=(slices, "volumes teach more"))
    chosen, wide, light, other = weighed.candidates
    assert [candidate.is_chosen for candidate in weighed.candidates] == [True, False, False, False]
    assert (chosen.plan, round(chosen.num_steps), chosen.is_measured) == (weighed.plan, 1000, True)
    assert (wide.plan.filters[0], light.plan.batch_size) == (2 * _plan().filters[0], 2)
    assert wide.num_steps == pytest.approx(1000 / 2**1.5, rel=0.1)
    assert light.num_steps == pytest.approx(2000)
    text = weighed.in_words()
    assert "\n" not in text
    assert "3d, network of 32 to 128 filters, 4 patches of 64 x 64 x 64 a step: about 3" in text
    assert "about 1333 steps (volumes teach more)" in text
    assert other.to_dict()["verdict"] == "volumes teach more"


def test_no_more_plans_are_measured_than_there_is_time_for():
    measured = []

    def measure(plan, _precisions):  # at which the predictions are always wrong, and each step a bit faster
        measured.append(plan)
        return Speed(amp=None, step_s=0.7 ** len(measured), case_s=0.1)

    _weighed_for(0.7**4, _plan(batch_size=64), measure=measure)
    assert len(measured) <= MOST_MEASURED


_WORK = work(_plan())


def _true_s(plan):
    """Return the seconds of a step on a machine that is as fast as it is predicted to be."""
    return 0.5 * candidates.work(plan) / _WORK


def _noisy(plan, rng, seconds):
    """Return the speed as measured: a step is up to 30 % faster or slower, and one takes three times as long."""
    durations = [_true_s(plan) * rng.uniform(0.7, 1.3) for _ in range(max(2, min(120, int(seconds / _true_s(plan)))))]
    durations[rng.randrange(len(durations))] *= 3
    return Speed(amp=None, step_s=typical(durations), case_s=0.1)


def _thresholds():
    """Yield the seconds at which another plan is chosen."""
    plan = _plan()
    while plan is not None:
        yield FEWEST_STEPS * _true_s(plan)
        plan = lighter(plan)
    plan = _plan()
    while (wide := wider(plan, memory_bytes=GENEROUS)) is not None:
        yield STEPS_TO_WIDEN * _true_s(plan)
        yield STEPS_WHEN_WIDE * _true_s(wide)
        plan = wide


@pytest.fixture
def _remembered(monkeypatch):  # what takes most of the time of a hundred choices
    for function in (lighter, wider, without_margin, work):
        monkeypatch.setattr(candidates, function.__name__, _remembering(function))


def _remembering(function):
    known = {}

    def call(plan, **options):
        key = (plan.batch_size, plan.patch_shape, plan.filters)
        if key not in known:
            known[key] = function(plan, **options)
        return known[key]

    return call


@pytest.mark.usefixtures("_remembered")
@pytest.mark.parametrize("seconds", [100.0 * 1.6**power for power in range(10)])  # two minutes to two hours
def test_starts_that_measure_otherwise_by_chance_choose_the_same_but_near_a_threshold(seconds):
    rng, plans = random.Random(0), Counter()
    for _ in range(100):
        allowed_s = allowances(seconds)
        weighed = _weighed_for(
            seconds,
            _plan(),
            measure=lambda plan, _: _noisy(plan, rng, next(allowed_s)),  # noqa: B023
            memory_bytes=GENEROUS,
        )
        plans[weighed.plan.batch_size, weighed.plan.patch_shape, weighed.plan.filters] += 1
    bias = 0.85  # of the lower quartile of such steps
    band = 0.15 if seconds > 1000 * _true_s(_plan()) else 0.25
    is_near = any(abs(math.log(seconds / (bias * threshold))) < band for threshold in _thresholds())
    assert is_near or plans.most_common(1)[0][1] >= 99
