import dataclasses
import math

import pytest

from candy_monai.recipes.candidates import FEWEST_STEPS, STEPS_TO_WIDEN, choose, lighter, wider, without_margin
from candy_monai.recipes.speed import Speed
from tests.plans import small_plan

GENEROUS = 1 << 40


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
    assert plan.coarse_axis == 2
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
