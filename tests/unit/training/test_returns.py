import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from candy_monai.errors import BadInputError
from candy_monai.nn.padding import Pad2d
from candy_monai.training.sliding import SlidingSegmentationTrainer
from tests.toys import SmallTrainer, Squares, small_trainer

QUIET = {"save_preview": False, "val_score_prediction": False}
IMAGE = torch.zeros(1, 16, 16)


def _trained(tmp_path, cls=SmallTrainer, **methods):
    trainer = small_trainer(tmp_path, cls=type("Mine", (cls,), methods))
    trainer.train(1, **QUIET)
    return trainer


def _backward_that_returns(make):
    def backward(self, images, labels, toolbox):
        loss = toolbox.criterion(toolbox.model(images), labels)[0]
        loss.backward()
        return make(loss.detach())

    return backward


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda _loss: None, "returned None, expected"),
        (lambda loss: loss, r"returned a tensor of shape \(\), expected"),
        (lambda loss: (loss, {}, 1), r"returned a tuple of 3 \(Tensor, dict, int\)"),
        (lambda loss: (loss.expand(2), {}), r"returned a tensor of shape \(2,\) as the loss"),
        (lambda _loss: ("0.5", {}), "returned '0.5' as the loss"),
        (lambda loss: (loss, None), "returned None as the metrics"),
        (lambda loss: (loss, [loss]), r"returned a list of 1 \(Tensor\) as the metrics"),
        (lambda loss: (loss, {"dice": torch.ones(3)}), r"returned a tensor of shape \(3,\) as the metric 'dice'"),
        (lambda loss: (loss, {"dice": None}), "returned None as the metric 'dice'"),
        (lambda loss: (loss, {"dice": np.ones(2)}), r"returned an array of shape \(2,\) as the metric 'dice'"),
        (lambda loss: (loss, {"dice": 1j}), "returned a complex as the metric 'dice'"),
    ],
)
def test_what_backward_returned_and_what_was_expected_is_said(tmp_path, make, found):
    with pytest.raises(BadInputError, match=rf"Mine\.backward {found}.*expected \(loss, metrics\)|{found}"):
        _trained(tmp_path, backward=_backward_that_returns(make))


@pytest.mark.parametrize(
    "make",
    [
        lambda loss: (loss, {}),
        lambda loss: [loss.reshape(1), {"n": np.float32(2)}],
        lambda loss: (np.float64(loss), {"n": 2}),
        lambda loss: (float(loss), {"n": torch.tensor([2])}),
        lambda loss: (np.array([float(loss)]), {"n": np.array([2.0])}),
    ],
)
def test_numbers_of_every_kind_are_numbers(tmp_path, make):
    metrics = _trained(tmp_path, backward=_backward_that_returns(make)).metrics()
    assert metrics.get("n", [2.0]) == [2.0]
    assert math.isfinite(metrics["combined loss"][0])


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, "None"),
        (0.5, "0.5"),
        ((0.5, {}), r"a tuple of 2 \(float, dict\)"),
        (("good", {}, IMAGE), "'good' as the score"),
        ((None, {}, IMAGE), "None as the score"),
        ((torch.ones(2), {}, IMAGE), r"a tensor of shape \(2,\) as the score"),
        ((0.5, 0.5, IMAGE), "0.5 as the metrics"),
        ((0.5, {"a": "b"}, IMAGE), "'b' as the metric 'a'"),
        ((0.5, {}, [IMAGE]), r"a list of 1 \(Tensor\) as the output"),
    ],
)
def test_what_validate_case_returned_and_what_was_expected_is_said(tmp_path, result, found):
    message = rf"Mine\.validate_case returned {found}, expected \(score, metrics, output\)"
    with pytest.raises(BadInputError, match=message):
        _trained(tmp_path, validate_case=lambda *_: result)


@pytest.mark.parametrize(("result", "found"), [(None, "None"), (0.5, "0.5"), ((0.5, {}, IMAGE), "a tuple of 3")])
def test_what_score_case_returned_and_what_was_expected_is_said(tmp_path, result, found):
    with pytest.raises(BadInputError, match=rf"Mine\.score_case returned {found}.* expected \(score, metrics\)"):
        _trained(tmp_path, score_case=lambda *_: result)


def test_the_methods_of_windows_are_named_as_the_user_wrote_them(tmp_path):
    class Windows(SlidingSegmentationTrainer):
        sliding_window_shape = (8, 8)
        build_network = SmallTrainer.build_network

    with pytest.raises(BadInputError, match=r"Mine\.backward_windowed returned None"):
        _trained(tmp_path, Windows, backward_windowed=lambda *_: None)
    with pytest.raises(BadInputError, match=r"Mine\.validate_case_windowed returned None"):
        _trained(tmp_path, Windows, validate_case_windowed=lambda *_: None)


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("build_network", "a torch.nn.Module"),
        ("build_optimizer", "a torch.optim.Optimizer"),
        ("build_scheduler", "a schedule such as"),
        ("build_criterion", "a torch.nn.Module"),
    ],
)
def test_a_part_that_was_not_built_is_said_before_anything_is_written(tmp_path, method, wanted):
    with pytest.raises(BadInputError, match=rf"Mine\.{method} returned None, expected {wanted}.*return statement"):
        _trained(tmp_path, **{method: lambda *_: None})
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_that_needs_a_closure_is_refused_unless_the_trainer_steps_it_itself(tmp_path):
    with pytest.raises(BadInputError, match=r"a LBFGS, expected .* override `step`"):
        _trained(tmp_path, build_optimizer=lambda _self, params: torch.optim.LBFGS(params))
    assert list(tmp_path.iterdir()) == []

    def step(self, toolbox, **_):
        toolbox.optimizer.step(lambda: torch.tensor(1.0))

    _trained(tmp_path, build_optimizer=lambda _self, params: torch.optim.LBFGS(params), step=step)


def test_a_schedule_of_another_optimizer_and_a_class_in_its_place_are_refused(tmp_path):
    def of_another(self, optimizer, num_epochs):
        return lr_scheduler.ConstantLR(torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.1), 1.0)

    with pytest.raises(BadInputError, match=r"Mine\.build_scheduler returned a ConstantLR of another optimizer"):
        _trained(tmp_path, build_scheduler=of_another)
    with pytest.raises(BadInputError, match=r"Mine\.build_scheduler returned a type, expected a schedule such as"):
        _trained(tmp_path, build_scheduler=lambda *_: lr_scheduler.ConstantLR)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("score", [np.array([0.5]), np.float32(0.5), torch.tensor([0.5])])
def test_a_score_may_be_a_number_of_any_kind(tmp_path, score):
    trainer = _trained(tmp_path, validate_case=lambda *_: (score, {}, IMAGE))
    assert trainer.metrics()["val score"] == [0.5]


def test_a_function_in_the_place_of_a_criterion_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(BadInputError, match="a function, expected a torch.nn.Module, whose forward can call it"):
        _trained(tmp_path, build_criterion=lambda _self: nn.functional.mse_loss)


def test_a_backward_without_backpropagation_is_an_error(tmp_path):
    def backward(self, images, labels, toolbox):
        return toolbox.criterion(toolbox.model(images), labels)[0].detach(), {}

    with pytest.raises(BadInputError, match=r"Mine\.backward left no gradient .* in 2 batches.*loss\.backward\(\)"):
        _trained(tmp_path, backward=backward)


def test_a_backward_that_leaves_out_a_batch_or_steps_by_itself_is_none(tmp_path):
    def every_second(self, images, labels, toolbox):
        self.count = getattr(self, "count", 0) + 1
        loss = toolbox.criterion(toolbox.model(images), labels)[0]
        if self.count % 2 == 0:
            loss.backward()
        return loss.detach(), {}

    def by_itself(self, images, labels, toolbox):
        loss = toolbox.criterion(toolbox.model(images), labels)[0]
        loss.backward()
        toolbox.optimizer.step()
        toolbox.optimizer.zero_grad()
        return loss.detach(), {}

    def twice(self, images, labels, toolbox):
        by_itself(self, images, labels, toolbox)
        loss = toolbox.criterion(toolbox.model(images), labels)[0]
        loss.backward()
        return loss.detach(), {}

    for backward in (every_second, by_itself, twice):
        assert math.isfinite(_trained(tmp_path, backward=backward).metrics()["val score"][0])


def test_a_backward_that_leaves_its_gradients_to_a_second_step_is_refused_unless_the_trainer_steps_itself(tmp_path):
    def backward(self, images, labels, toolbox):
        toolbox.optimizer.zero_grad()
        loss = toolbox.criterion(toolbox.model(images), labels)[0]
        loss.backward()
        toolbox.optimizer.step()
        return loss.detach(), {}

    with pytest.raises(BadInputError, match=r"Mine\.backward calls toolbox\.optimizer\.step\(\).*applied twice"):
        _trained(tmp_path, backward=backward)

    def step(self, toolbox, *, num_batches=1):
        toolbox.ema.update_parameters(toolbox.model)

    assert math.isfinite(_trained(tmp_path, backward=backward, step=step).metrics()["val score"][0])


@pytest.mark.parametrize("result", [(IMAGE, {}), (0.5, {"dice": IMAGE})])
def test_what_score_case_returned_is_not_blamed_on_validate_case(tmp_path, result):
    with pytest.raises(BadInputError, match=r"^Mine\.score_case returned a tensor of shape \(1, 16, 16\) as the"):
        _trained(tmp_path, score_case=lambda *_: result)


@pytest.mark.parametrize("method", ["backward", "validate_case"])
def test_what_a_method_raises_names_its_cases_in_the_traceback_and_in_the_log(tmp_path, method):
    def fail(*_):
        raise KeyError("iou")

    with pytest.raises(KeyError) as caught:
        _trained(tmp_path, **{method: fail})
    (note,) = caught.value.__notes__
    assert note.startswith(f"Raised in Mine.{method}, which was given images (")
    (log,) = tmp_path.glob("*/*/logs.txt")
    assert note in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("method", ["backward", "validate_case"])
@pytest.mark.parametrize(
    ("pads", "other", "is_told"),
    [(False, (1, 3, 5), True), (True, (1, 3, 5), False), (False, (1, 2, 4), False)],
    ids=["another size", "padded", "another number of channels"],
)
def test_sizes_that_a_network_does_not_accept_name_the_hook_that_pads(tmp_path, method, pads, other, is_told):
    def skip(*_):
        return torch.zeros(1, 3, 4) + torch.zeros(other)  # as a skip connection after an odd size

    padding = (lambda *_: Pad2d(4)) if pads else (lambda *_: None)
    with pytest.raises(RuntimeError, match="must match") as caught:
        _trained(tmp_path, **{method: skip}, build_padding_module=padding)
    assert any("build_padding_module" in note for note in caught.value.__notes__) is is_told


def test_a_batch_too_small_for_batch_normalisation_is_told_how_to_leave_it_out(tmp_path):
    def build_network(self, example_shape):
        return nn.Sequential(nn.Conv2d(1, 1, 16), nn.BatchNorm2d(1), nn.ConvTranspose2d(1, 1, 16))

    trainer = small_trainer(tmp_path, Squares(3), cls=type("Mine", (SmallTrainer,), {"build_network": build_network}))
    with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
        trainer.train(1, save_preview=False)
    assert "larger batch_size, and leave out a last batch of one sample by drop_last=True" in caught.value.__notes__[1]


@pytest.mark.parametrize(("value", "found"), [(None, "None"), (nn.Conv2d(1, 1, 1), "a Conv2d")])
def test_an_average_that_is_none_is_refused_with_the_way_to_train_without(tmp_path, value, found):
    with pytest.raises(BadInputError, match=rf"build_ema returned {found}, expected .*AveragedModel.*ema=False"):
        _trained(tmp_path, build_ema=lambda *_: value)
    assert list(tmp_path.iterdir()) == []
