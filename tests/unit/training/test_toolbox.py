import pytest
import torch
from monai.losses import DiceLoss
from torch import nn, optim

from candy_monai.errors import BadInputError
from candy_monai.nn.losses import DiceBCELossWithLogits
from tests.toys import SmallTrainer, small_trainer


@pytest.mark.parametrize(("count", "names"), [(2, ["0.weight", "0.bias"]), (4, [])])
def test_parameters_that_the_optimizer_lacks_are_said_in_the_log(tmp_path, count, names):
    class LastOnes(SmallTrainer):
        def build_optimizer(self, params):
            return optim.SGD(list(params)[-count:], lr=0.1)

    trainer = small_trainer(tmp_path, cls=LastOnes)
    trainer.train(1, save_preview=False, save_report=False)
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert ("Not in the optimizer, and so not trained by it" in log) is bool(names)
    assert f"not trained by it: {', '.join(names)}\n" in log or not names


def test_parameters_of_the_loss_that_the_optimizer_lacks_are_said_too(tmp_path):
    class Weighted(DiceBCELossWithLogits):
        def __init__(self):
            super().__init__(1)
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, logits, labels):
            loss, parts = super().forward(logits, labels)
            return loss * self.weight.exp(), parts

    trainer = small_trainer(tmp_path, cls=type("Mine", (SmallTrainer,), {"build_criterion": lambda _self: Weighted()}))
    trainer.train(1, save_preview=False, save_report=False)
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert "not trained by it: criterion.weight\n" in log


def test_frozen_parameters_are_not_said_to_be_missing_in_the_optimizer(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1, freeze="0", save_preview=False, save_report=False)
    assert "Not in the optimizer" not in (trainer.experiment_folder() / "logs.txt").read_text()


def test_a_sharded_optimizer_is_said_to_have_no_effect_in_one_process(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1, shard_optimizer=True, save_preview=False, save_report=False)
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert "shard_optimizer has no effect in a run of one process\n" in log


def test_a_loss_without_an_activation_is_refused_in_the_first_step_and_left_without_hooks(tmp_path):
    criterion = DiceLoss()

    class Bare(SmallTrainer):
        def build_criterion(self):
            return criterion

    trainer = small_trainer(tmp_path, cls=Bare)
    with pytest.raises(BadInputError, match="the loss DiceLoss was given no activation.* give it sigmoid=True"):
        trainer.train(1, save_preview=False, save_report=False)
    assert trainer._current().progress.step == 0
    assert not criterion._forward_pre_hooks
