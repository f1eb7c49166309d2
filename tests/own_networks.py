"""A network and a trainer as a user would write them, from PyTorch alone."""

import pytest
import torch
from torch import nn

from candy_monai.training.trainer import Trainer
from tests.crashes import Crash, crashing
from tests.toys import small_trainer

QUIET = {"seed": 3, "save_preview": False, "early_stop_tolerance": None, "val_score_prediction": False}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, images, *, scale=1.0):
        return self.decoder(self.encoder(images).relu()) * scale


class Plain(Trainer):
    """As a user would write it, with a loss that is a mean over samples."""

    by_parts = False

    def build_network(self, example_shape):
        return Net()

    def build_optimizer(self, params):
        return torch.optim.SGD(params, lr=0.1)

    def build_scheduler(self, optimizer, num_epochs):
        return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)

    def build_criterion(self):
        return nn.BCEWithLogitsLoss()

    def run(self, network, images):
        return network.decoder(network.encoder(images).relu()) if self.by_parts else network(images)

    def backward(self, images, labels, toolbox):
        loss = toolbox.criterion(self.run(toolbox.model, images), labels.to(images.dtype))
        loss.backward()
        return loss.item(), {}

    def scored(self, toolbox):
        return toolbox.ema.module if toolbox.ema else toolbox.model

    def validate_case(self, image, label, toolbox):
        output = self.run(self.scored(toolbox), image[None])
        return -toolbox.criterion(output, label[None].to(image.dtype)).item(), {}, output[0]


def weights_of(trainer, name="latest"):
    return torch.load(trainer.experiment_folder() / f"checkpoint_{name}.pth", weights_only=True)


def log_of(trainer):
    return (trainer.experiment_folder() / "logs.txt").read_text()


def trained(folder, cls=Plain, num_epochs=2, data=None, settings=None, **attributes):
    trainer = small_trainer(folder, data, cls=type(cls.__name__, (cls,), attributes))
    trainer.train(num_epochs, **QUIET, **(settings or {}))
    return trainer


def crashed_and_resumed(folder, cls, num_epochs=3, *, step=3, settings=None, **attributes):
    """Return a trainer that resumed a run which crashed before a step."""
    kind = type(cls.__name__, (cls,), attributes)
    halted = crashing(small_trainer(folder, cls=kind), step=step)
    with pytest.raises(Crash):
        halted.train(num_epochs, **QUIET, **(settings or {}))
    resumed = small_trainer(folder, cls=kind)
    resumed.resume(halted.experiment_folder().name)
    return resumed
