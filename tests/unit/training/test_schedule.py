import numpy as np
import pytest
import torch
from torch import nn, optim

from candy_monai.errors import BadInputError
from candy_monai.training.schedule import decays_too_early, needs_a_metric, step_after_batches, step_after_epoch
from tests.toys import SmallTrainer, small_trainer

QUIET = {"save_preview": False, "val_score_prediction": False, "early_stop_tolerance": None, "seed": 0}


class _Told:
    """A schedule that remembers what it was stepped with."""

    def __init__(self, mode=None):
        self.told = []
        if mode is not None:
            self.mode = mode

    def step(self, metrics):
        self.told.append(metrics)


def _optimizer(rate=1.0):
    return optim.SGD([nn.Parameter(torch.zeros(1))], lr=rate)


def _trained(tmp_path, num_epochs=2, **methods):
    trainer = small_trainer(tmp_path, cls=type("Mine", (SmallTrainer,), methods))
    trainer.train(num_epochs, **QUIET)
    return trainer


@pytest.mark.parametrize(
    ("mode", "metrics", "score", "validates", "told"),
    [
        ("max", {"val combined loss": [0.3]}, 0.8, True, [0.8]),
        ("min", {"val combined loss": [0.3]}, 0.8, True, [0.3]),
        ("min", {}, -0.4, True, [0.4]),
        (None, {"val combined loss": [0.3]}, 0.8, True, [0.8]),
        ("max", {}, None, True, []),
        ("max", {}, float("nan"), True, []),
        ("min", {"combined loss": [0.7]}, None, False, [0.7]),
        ("max", {"combined loss": [0.7]}, None, False, [-0.7]),
    ],
)
def test_a_schedule_that_needs_a_metric_gets_the_score_or_the_loss_after_its_mode(
    mode, metrics, score, validates, told
):
    scheduler = _Told(mode)
    step_after_batches(scheduler, 3)
    step_after_epoch(scheduler, metrics, epoch=1, score=score, validates=validates)
    assert scheduler.told == told


def test_a_schedule_that_needs_the_epoch_gets_the_number_of_those_done():
    class ByEpoch(_Told):
        def step(self, epoch):
            super().step(epoch)

    scheduler = ByEpoch()
    step_after_epoch(scheduler, {}, epoch=4, score=None, validates=True)
    assert scheduler.told == [4]


class _Passing(optim.lr_scheduler.ReduceLROnPlateau):
    def step(self, *arguments, **keywords):
        super().step(*arguments, **keywords)


class _Tolerant(optim.lr_scheduler.ReduceLROnPlateau):
    def step(self, metrics=None):
        if metrics is not None:
            super().step(metrics)


@pytest.mark.parametrize("kind", [_Passing, _Tolerant])
def test_a_plateau_schedule_of_the_user_s_own_gets_the_metric_whatever_its_step_looks_like(kind):
    optimizer = _optimizer()
    scheduler = kind(optimizer, "max", factor=0.5, patience=0)
    step_after_batches(scheduler, 3)
    for score in (0.5, 0.4):
        step_after_epoch(scheduler, {}, epoch=1, score=score, validates=True)
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_schedule_that_takes_the_epoch_and_a_metric_gets_both_if_there_are_both():
    class Both(_Told):
        def step(self, epoch, metric=None):
            super().step((epoch, metric))

    scheduler = Both()
    for epoch, score in enumerate((0.5, None, 0.7), start=1):
        step_after_epoch(scheduler, {}, epoch=epoch, score=score, validates=True)
    assert scheduler.told == [(1, 0.5), (2, None), (3, 0.7)]


def test_pytorch_s_other_schedules_step_by_batches():
    optimizer = _optimizer()
    for scheduler in (
        optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 3),
        optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        optim.lr_scheduler.SequentialLR(optimizer, [optim.lr_scheduler.ConstantLR(optimizer)], []),
    ):
        assert not needs_a_metric(scheduler)
    assert needs_a_metric(optim.lr_scheduler.ReduceLROnPlateau(optimizer))


def test_one_cycle_stays_at_its_end_value():
    optimizer = _optimizer()
    scheduler = optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=4)
    with pytest.warns(UserWarning, match="optimizer.step"):
        step_after_batches(scheduler, 9)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize(
    "around",
    [
        lambda optimizer, cycle: optim.lr_scheduler.SequentialLR(
            optimizer, [optim.lr_scheduler.ConstantLR(optimizer, 1.0, 1), cycle], [2]
        ),
        lambda optimizer, cycle: optim.lr_scheduler.ChainedScheduler([cycle], optimizer),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_one_cycle_in_another_schedule_stays_at_its_end_value(around):
    optimizer = _optimizer()
    scheduler = around(optimizer, optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=4, cycle_momentum=False))
    step_after_batches(scheduler, 12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1 / 25 / 1e4)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda it, length: optim.lr_scheduler.CosineAnnealingLR(it, length), "T_max"),
        (lambda it, length: optim.lr_scheduler.PolynomialLR(it, length, 0.9), "total_iters"),
        (lambda it, length: optim.lr_scheduler.OneCycleLR(it, 1.0, total_steps=length), "total_steps"),
        (
            lambda it, length: optim.lr_scheduler.SequentialLR(
                it,
                [optim.lr_scheduler.LinearLR(it), optim.lr_scheduler.CosineAnnealingLR(it, length)],
                milestones=[5],
            ),
            "T_max",
        ),
    ],
)
def test_a_schedule_whose_length_is_the_number_of_epochs_gets_a_warning(build, name):
    message = decays_too_early(build(_optimizer(), 10), 10, 4)
    assert message is not None
    assert f"{name}=10, the number of epochs" in message
    assert "after 10 of 40 batches" in message
    for length, epochs, batches in ((40, 10, 4), (10, 10, 1), (10, 10, None)):
        assert decays_too_early(build(_optimizer(), length), epochs, batches) is None


def test_the_log_warns_of_a_schedule_that_decays_in_the_first_epochs(tmp_path):
    def build_scheduler(self, optimizer, num_epochs):
        return optim.lr_scheduler.CosineAnnealingLR(optimizer, num_epochs)

    trainer = _trained(tmp_path, build_scheduler=build_scheduler)
    assert "Warning: the CosineAnnealingLR has T_max=2" in (trainer.experiment_folder() / "logs.txt").read_text()


def test_reduce_on_plateau_lowers_the_rate_and_goes_on_where_it_was_after_a_resume(tmp_path):
    def scheduler(self, optimizer, num_epochs):
        return optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=1, threshold_mode="abs")

    def validate_case(self, image, label, toolbox):
        return 0.5, {}, image

    methods = {"build_scheduler": scheduler, "validate_case": validate_case}
    # The first epoch sets the best score, two bad ones halve the rate: at the ends of epochs 3 and 5.
    expected = [0.02, 0.02, 0.02, 0.01, 0.01, 0.005]
    assert _trained(tmp_path / "whole", 6, **methods).metrics()["learning rate"] == expected
    trainer = _trained(tmp_path / "parts", 2, **methods)
    trainer.resume(trainer.experiment_folder().name, 6, schedule="keep")
    assert trainer.metrics()["learning rate"] == expected


def test_the_default_schedule_starts_from_the_rate_of_the_user_s_own_optimizer(tmp_path):
    metrics = _trained(tmp_path, build_optimizer=lambda _self, params: optim.SGD(params, lr=0.5)).metrics()
    assert metrics["learning rate"] == [0.5, 0.25]


def test_the_default_schedule_keeps_the_ratio_of_groups_with_rates_of_their_own(tmp_path):
    rates = []

    def build_optimizer(self, params):
        weights = list(params)
        return optim.SGD([{"params": weights[:1], "lr": 0.5}, {"params": weights[1:], "lr": 0.05}])

    def step(self, toolbox, **keywords):
        rates.append([group["lr"] for group in toolbox.optimizer.param_groups])
        SmallTrainer.step(self, toolbox, **keywords)

    _trained(tmp_path, build_optimizer=build_optimizer, step=step)
    assert rates == [[pytest.approx(0.5 * f), pytest.approx(0.05 * f)] for f in (1.0, 0.75, 0.5, 0.25)]


def test_a_rate_that_is_a_tensor_is_recorded_as_it_was_when_the_epoch_began(tmp_path):
    metrics = _trained(
        tmp_path,
        build_optimizer=lambda _self, params: optim.AdamW(params, lr=torch.tensor(0.5)),
        build_scheduler=lambda _self, optimizer, _epochs: optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    ).metrics()
    assert metrics["learning rate"] == [0.5, 0.125]


def test_a_rate_that_is_a_tensor_starts_again_with_a_restarted_schedule(tmp_path):
    trainer = _trained(tmp_path, build_optimizer=lambda _self, params: optim.AdamW(params, lr=torch.tensor(0.5)))
    trainer.resume(trainer.experiment_folder().name, 4, schedule="restart")
    assert trainer.metrics()["learning rate"] == [0.5, 0.25, 0.5, 0.25]


@pytest.mark.parametrize(
    "methods",
    [
        {"build_scheduler": lambda _s, o, _n: optim.lr_scheduler.LambdaLR(o, lambda step: np.cos(step / 9))},
        pytest.param(
            {"build_optimizer": lambda _s, params: optim.SGD(params, lr=np.float64(0.01), momentum=np.float32(0.9))},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"get_extra_state": lambda _s: {"n": np.arange(3)}, "set_extra_state": lambda _s, state: state["n"].sum()},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["a schedule", "an optimizer", "extra state"],
)
def test_numpy_s_numbers_in_a_state_go_on_to_the_same_result(tmp_path, methods):
    whole = _trained(tmp_path / "whole", 3, **methods)
    halted = small_trainer(tmp_path / "parts", cls=type("Mine", (SmallTrainer,), {**methods, "step": _halting}))
    with pytest.raises(RuntimeError, match="halt"):
        halted.train(3, **QUIET)
    again = small_trainer(tmp_path / "parts", cls=type("Mine", (SmallTrainer,), methods))
    again.resume(halted.experiment_folder().name)
    assert again.metrics()["combined loss"] == whole.metrics()["combined loss"]


def test_what_cannot_be_saved_is_said_before_the_first_step_and_leaves_nothing(tmp_path):
    with pytest.raises(BadInputError, match=r"Mine\.get_extra_state returned\['f'\] is a function"):
        _trained(tmp_path, get_extra_state=lambda _self: {"f": lambda: 0})
    assert list(tmp_path.iterdir()) == []


def _halting(self, toolbox, **keywords):
    if self._current().progress.epoch == 1:
        raise RuntimeError("halt")
    SmallTrainer.step(self, toolbox, **keywords)
