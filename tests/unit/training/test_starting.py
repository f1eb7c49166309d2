import json

import pytest
import torch
from torch import nn, optim

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.checkpoints import load_weights
from candy_monai.experiment.state import load_state
from tests.crashes import QUIET, Crash, assert_same_run, crashing
from tests.toys import SmallTrainer, Squares, log_of, small_trainer


class WithNorm(SmallTrainer):
    def build_network(self, example_shape):
        return nn.Sequential(
            nn.Conv2d(example_shape[0], 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, self.num_classes, 3, padding=1),
        )


class StillTrainer(WithNorm):
    """Its rate is 0."""

    def build_optimizer(self, params):
        return optim.SGD(params, lr=0.0)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    trainer = small_trainer(tmp_path_factory.mktemp("run"), cls=WithNorm)
    trainer.train(2, **QUIET)
    return trainer.experiment_folder()


def test_a_run_starts_from_the_weights_and_so_does_its_average(experiment, tmp_path):
    trainer, met = small_trainer(tmp_path, cls=StillTrainer), []
    original = trainer.train_epoch

    def look(toolbox):
        met.extend((toolbox.model[3].weight.clone(), toolbox.ema.module[3].weight.clone()))
        original(toolbox)

    trainer.train_epoch = look
    trainer.train(1, init_from=experiment, **QUIET)
    best = load_weights(experiment / "checkpoint_best.pth")
    assert all(torch.equal(weight, best["3.weight"]) for weight in met)
    assert "9 of the network's 9 tensors loaded" in log_of(trainer)
    assert str(experiment) in log_of(trainer)
    saved = load_weights(trainer.experiment_folder() / "checkpoint_latest.pth")
    assert torch.equal(saved["3.weight"], best["3.weight"])


def test_other_channels_and_classes_are_fitted_and_drawn_anew(experiment, tmp_path):
    trainer = small_trainer(tmp_path, Squares(channels=3, num_classes=3), cls=StillTrainer)
    trainer.num_classes = 3
    trainer.train(1, init_from=experiment, **QUIET)
    before, after = (load_weights(run / "checkpoint_best.pth") for run in (experiment, trainer.experiment_folder()))
    assert torch.allclose(after["0.weight"], before["0.weight"].expand(-1, 3, -1, -1) / 3)
    assert after["3.weight"].shape[0] == 3
    assert "3.weight: 1x4x3x3 -> 3x4x3x3" in log_of(trainer)


def test_what_is_frozen_stays_in_the_network_its_average_and_its_statistics(experiment, tmp_path):
    trainer = small_trainer(tmp_path, cls=WithNorm)
    trainer.train(2, init_from=experiment, freeze=("0", "1.*"), **QUIET)
    before = load_weights(experiment / "checkpoint_best.pth")
    state = load_state(trainer.experiment_folder())
    assert len(state.trainer.optimizer["state"]) == 2
    for name in ("checkpoint_best.pth", "checkpoint_latest.pth"):
        after = load_weights(trainer.experiment_folder() / name)
        assert [entry for entry in before if torch.equal(before[entry], after[entry])] == [
            entry for entry in before if not entry.startswith("3.")
        ]
    assert "Frozen: 4 parameter tensors with 48 values, and the statistics of 1 normalisation layers" in log_of(trainer)


def test_the_network_is_given_back_trainable(tmp_path):
    class Keeps(WithNorm):
        def build_network(self, example_shape):
            self.kept = super().build_network(example_shape)
            return self.kept

    trainer = small_trainer(tmp_path, cls=Keeps)
    trainer.train(1, freeze="0.*", **QUIET)
    assert all(parameter.requires_grad for parameter in trainer.kept.parameters())


@pytest.mark.parametrize(
    ("freeze", "message"), [("2.weigth", "matches no parameter"), ("*", "nothing to train"), ((1,), "a pattern")]
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused_before_anything_is_written(tmp_path, freeze, message):
    with pytest.raises(SettingsError, match=message):
        small_trainer(tmp_path / "out", cls=WithNorm).train(1, freeze=freeze, **QUIET)
    assert not (tmp_path / "out").exists()


def test_weights_that_fit_nowhere_are_refused_before_anything_is_written(tmp_path):
    torch.save({"conv.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(BadInputError, match="nothing in it fits"):
        small_trainer(tmp_path / "out", cls=WithNorm).train(1, init_from=tmp_path / "other.pth", **QUIET)
    assert not (tmp_path / "out").exists()


def test_a_crashed_run_from_weights_is_resumed_to_the_bit_and_does_not_read_them_again(tmp_path):
    start = small_trainer(tmp_path / "start", cls=WithNorm)
    start.train(1, **QUIET)
    weights = tmp_path / "weights.pth"
    torch.save(load_weights(start.experiment_folder() / "checkpoint_best.pth"), weights)
    keywords = {"init_from": weights, "freeze": "0.*", "warm_up": 5, **QUIET}
    whole = small_trainer(tmp_path / "whole", cls=WithNorm)
    whole.train(4, **keywords)
    halted = crashing(small_trainer(tmp_path / "halted", cls=WithNorm), step=3)
    with pytest.raises(Crash):
        halted.train(4, save_every=1, **keywords)
    weights.unlink()
    resumed = small_trainer(tmp_path / "halted", cls=WithNorm)
    resumed.resume(halted.experiment_folder())
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())


def test_the_rate_warms_up_by_default_only_where_a_run_starts_from_weights(experiment, tmp_path):
    def rates(**keywords):
        trainer, found = small_trainer(tmp_path, cls=WithNorm), []
        trainer.step = lambda toolbox, num_batches=1: (
            found.append(toolbox.optimizer.param_groups[0]["lr"]),
            WithNorm.step(trainer, toolbox, num_batches=num_batches),
        )
        trainer.train(20, **keywords, **QUIET, validate_every=20, num_checkpoints=0)
        warm_up = json.loads((trainer.experiment_folder() / "experiment.json").read_text())["settings"]["warm_up"]
        assert (f"over the first {warm_up} steps" in log_of(trainer)) == (warm_up is not None)
        return found, warm_up

    plain, none = rates()
    warm, two = rates(init_from=experiment)
    asked, four = rates(warm_up=4)
    assert (none, two, four) == (None, 2, 4)
    assert [new / old for old, new in zip(plain, warm, strict=True)] == pytest.approx([0.5] + [1.0] * 39)
    assert [new / old for old, new in zip(plain, asked, strict=True)][:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
