"""What a user's network and trainer hold besides weights is saved with the run, or named."""

import numpy as np
import pytest
import torch
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.inference.predictor import Predictor
from tests.crashes import assert_same_run
from tests.own_networks import QUIET, Net, Plain, crashed_and_resumed, log_of, trained, weights_of
from tests.toys import SmallTrainer, small_trainer


class Counting(Net):
    """Learns a number that is no tensor, and uses it."""

    gain = 1.0

    def forward(self, images):
        if self.training:
            self.gain *= 1.01
        return super().forward(images) * self.gain

    def get_extra_state(self):
        return {"gain": self.gain}

    def set_extra_state(self, state):
        self.gain = state["gain"]


def test_the_extra_state_of_a_network_is_averaged_saved_resumed_and_predicted_with(tmp_path):
    attributes = {"build_network": lambda *_: Counting()}
    whole = trained(tmp_path / "whole", Plain, 3, **attributes)
    assert weights_of(whole, "best")["_extra_state"]["gain"] == pytest.approx(1.01**6)
    resumed = crashed_and_resumed(tmp_path / "halted", Plain, **attributes)
    assert_same_run(whole.experiment_folder(), resumed.experiment_folder())
    assert Predictor(whole.experiment_folder(), network=Counting()).model.gain == pytest.approx(1.01**6)


def test_an_extra_state_that_could_not_be_read_back_is_refused_before_anything_is_written(tmp_path):
    class Unreadable(Counting):
        def get_extra_state(self):
            return {"gain": np.float32(self.gain)}

    with pytest.raises(BadInputError, match=r"_extra_state in the network's state_dict.*numpy.*\.item\(\)"):
        trained(tmp_path, build_network=lambda *_: Unreadable())
    assert not list(tmp_path.iterdir())


def test_what_a_network_is_given_while_it_trains_is_saved_with_it(tmp_path):
    def train_epoch(self, toolbox):
        if not hasattr(toolbox.model, "epochs"):
            toolbox.model.register_buffer("epochs", torch.tensor(0))
        toolbox.model.epochs += 1
        return Plain.train_epoch(self, toolbox)

    trainer = trained(tmp_path, num_epochs=2, train_epoch=train_epoch)
    assert weights_of(trainer, "latest")["epochs"] == weights_of(trainer, "best")["epochs"] == 2


def test_what_a_trainer_keeps_and_does_not_save_is_said_once(tmp_path):
    class Adversarial(Plain):
        def build_network(self, example_shape):
            self.teacher, self.critic = Net(), nn.Linear(1, 1)
            self.critic_optimizer = torch.optim.Adam(self.critic.parameters())
            return Net()

        def get_extra_state(self):
            return {"critic": self.critic.state_dict()}

    trainer = small_trainer(tmp_path, cls=Adversarial)
    trainer.train(3, **QUIET)
    (line,) = [line for line in log_of(trainer).splitlines() if "Not saved with the run" in line]
    assert "self.teacher (Net), self.critic_optimizer (Adam);" in line


def test_a_trainer_that_keeps_nothing_else_hears_nothing_about_it(tmp_path):
    assert "Not saved" not in log_of(trained(tmp_path, SmallTrainer, 1, settings={"amp": "fp16"}))
