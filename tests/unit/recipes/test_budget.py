import dataclasses
import itertools
from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from candy_monai.errors import SettingsError
from candy_monai.recipes import budget
from candy_monai.recipes.budget import (
    ROUNDS,
    TIMES_FASTER,
    VALIDATION_SHARE,
    Speed,
    fit_to_time,
    measure_speed,
    num_scored,
    typical,
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
    assert fit_to_time(small_plan(), slow, seconds=110, num_cases=40, num_training_cases=20).num_validation_cases == 2


def test_a_time_in_which_nothing_can_be_trained_is_refused_with_the_figures():
    with pytest.raises(SettingsError, match=r"nothing is left, one step takes 0\.5 s"):
        fit_to_time(small_plan(), SPEED, seconds=0.4, num_cases=5, num_training_cases=20)


def test_a_time_for_a_single_step_is_trained_in():
    plan = fit_to_time(small_plan(), SPEED, seconds=1.2, num_cases=5, num_training_cases=20)
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


def test_a_validation_that_the_user_chose_and_that_leaves_no_time_to_train_in_is_refused_with_the_figures():
    plan = dataclasses.replace(small_plan(), num_validation_cases=None, chosen=("num_validation_cases",))
    speed = dataclasses.replace(SPEED, case_s=5.0)
    with pytest.raises(SettingsError, match=r"validation on 40 cases takes about 200 s, and 72 s are left.*leave num_"):
        fit_to_time(plan, speed, seconds=120, num_cases=40, num_training_cases=20)
    fitted = fit_to_time(dataclasses.replace(plan, chosen=()), speed, seconds=120, num_cases=40, num_training_cases=20)
    assert fitted.num_validation_cases == 1


def test_what_the_user_chose_is_kept():
    chosen = ("mirror_axes", "num_validation_cases", "validate_every")
    plan = dataclasses.replace(small_plan(), validate_every=3, num_validation_cases=None, chosen=chosen)
    fitted = fit_to_time(plan, SPEED, seconds=120, num_cases=5, num_training_cases=20)
    assert (fitted.validate_every, fitted.num_validation_cases) == (3, None)
    assert fitted.mirror_axes == plan.mirror_axes


class _Machine:
    """A clock, and a network in several precisions whose steps and cases take a known time on it."""

    def __init__(self, monkeypatch, step_s, case_s=0.1, sizes=(64, 64, 64), noise=None):
        self.now, self.step_s, self.case_s, self.noise = 0.0, step_s, case_s, noise or (lambda _: 1.0)
        self.seen, self.amp = Counter(), None
        batches = [(torch.zeros(1, 1, size), torch.zeros(1, 1, size, dtype=torch.long)) for size in sizes]
        self.device, self.loaders = torch.device("cpu"), Loaders([batches[0]], batches)
        monkeypatch.setattr(budget.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(budget, "Rehearsal", lambda _trainer: self)

    def begun(self, settings, _image):
        self.amp = settings.amp
        network = torch.nn.Identity()
        return nullcontext(SimpleNamespace(model=network, networks=[network]))

    def train(self, _batch):
        self.seen["step", self.amp] += 1
        self.now += self.step_s[self.amp] * self.noise(self.now)

    def validate(self, image, _label):
        self.seen["case", self.amp] += 1
        self.now += self.case_s * image.numel() / 64


def test_a_moment_s_other_work_does_not_decide_between_precisions(monkeypatch):
    busy = lambda now: 9.0 if now < 1.0 else 1.0  # noqa: E731  # during the very first steps, which are in bf16
    _Machine(monkeypatch, {"bf16": 0.1, None: 0.3}, noise=busy)
    measured = measure_speed(None, precisions=["bf16", None], seconds=12.0)
    assert measured.amp == "bf16"
    assert measured.step_s == pytest.approx(0.1)


def test_a_precision_that_is_clearly_slower_is_not_timed_again(monkeypatch):
    machine = _Machine(monkeypatch, {"bf16": 0.1, None: 0.3})
    measure_speed(None, precisions=["bf16", None], seconds=6.0)
    assert machine.seen["step", "bf16"] > 2 * ROUNDS
    assert machine.seen["step", None] * 0.3 <= 2.0


def test_measuring_takes_its_time_and_a_single_step_where_that_is_longer(monkeypatch):
    machine = _Machine(monkeypatch, {None: 0.1})
    measure_speed(None, precisions=[None], seconds=3.0)
    assert 2.0 <= machine.now <= 3.5
    machine = _Machine(monkeypatch, {"bf16": 5.0, None: 5.0}, case_s=5.0)
    measured = measure_speed(None, precisions=["bf16", None], seconds=1.0)
    assert machine.seen == {("step", "bf16"): 1, ("case", "bf16"): 1}
    assert measured == Speed(amp="bf16", step_s=5.0, case_s=5.0)


def test_a_case_counts_by_its_size(monkeypatch):
    _Machine(monkeypatch, {None: 0.1}, sizes=(32, 64, 192))
    assert measure_speed(None, precisions=[None], seconds=3.0).case_s == pytest.approx(0.1 * 96 / 64)


def test_three_quarters_of_the_steps_may_be_slowed_down_by_other_work():
    assert typical([0.1, 0.1, 0.3, 0.9, 0.3]) == 0.1
    assert typical([0.5]) == 0.5
    assert typical([1.0, 2.0]) == 1.25
