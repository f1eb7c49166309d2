"""A script for MONAI's engines as its tutorials have them, small enough to train in a tenth of a second."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanDice, ValidationHandler, from_engine
from monai.losses import DiceLoss
from monai.transforms import AsDiscreted, Compose, RandFlipd, RandGaussianNoised
from monai.utils import set_determinism
from torch import nn

CPU = torch.device("cpu")


class Script(NamedTuple):
    """What a script has in its hands before it calls ``trainer.run()``."""

    trainer: SupervisedTrainer
    evaluator: SupervisedEvaluator
    network: nn.Module
    schedule: Any


def squares(count, *, seed=0):
    """Return dictionaries of noisy pictures of a bright box."""
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for index in range(count):
        label = torch.zeros(1, 16, 16)
        label[:, 3 + index % 3 : 12, 4:13] = 1
        cases.append({"image": label + 0.5 * torch.randn(1, 16, 16, generator=generator), "label": label})
    return cases


def make_network():
    """Return a small network with what makes training random and stateful: dropout and batch statistics."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 2, 3, padding=1)
    )


def host_script(
    *ours,
    max_epochs=3,
    arrange=None,
    val_handlers=(),
    validates=True,
    key_metric=True,
    seed=1,
    evaluator_options=None,
    **trainer_options,
):
    """Build what a script builds before it trains.

    Args:
        *ours: Handlers of ours, or functions of network and evaluator that make one.
        max_epochs: Of the trainer.
        arrange: Turns the list of handlers, the host's first, into that which is used.
        val_handlers: Of the evaluator.
        validates: Whether there is a ``ValidationHandler``.
        key_metric: Whether the evaluator has one.
        seed: Of everything.
        evaluator_options: More for the evaluator.
        trainer_options: More for the trainer.
    """
    set_determinism(seed)
    augment = Compose([RandFlipd(["image", "label"], prob=0.5, spatial_axis=0), RandGaussianNoised("image", prob=0.5)])
    train_loader = DataLoader(Dataset(squares(6), augment), batch_size=2, shuffle=True)
    val_loader = DataLoader(Dataset(squares(4, seed=1)), batch_size=1)
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    dice = MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))
    evaluator = SupervisedEvaluator(
        device=CPU,
        val_data_loader=val_loader,
        network=network,
        postprocessing=Compose([AsDiscreted(["pred", "label"], argmax=(True, False), to_onehot=2)]),
        key_val_metric={"val_mean_dice": dice} if key_metric else None,
        val_handlers=list(val_handlers),
        **(evaluator_options or {}),
    )
    hosts = [LrScheduleHandler(schedule, print_lr=False)]
    if validates:
        hosts.append(ValidationHandler(1, evaluator))
    made = [one if hasattr(one, "attach") else one(network, evaluator) for one in ours]
    handlers = [*hosts, *made]
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=max_epochs,
        train_data_loader=train_loader,
        network=network,
        optimizer=optimizer,
        loss_function=DiceLoss(to_onehot_y=True, softmax=True),
        train_handlers=handlers if arrange is None else arrange(handlers),
        **trainer_options,
    )
    return Script(trainer, evaluator, network, schedule)


def weights_of(network):
    """Return a copy of the weights and buffers of a network."""
    return {name: value.detach().clone() for name, value in network.state_dict().items()}


def trained_alone(**options):
    """Return the weights of the script without any handler of ours."""
    script = host_script(**options)
    script.trainer.run()
    return weights_of(script.network)


def same(first, second):
    """Return whether two sets of weights are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Raises:
    """A handler that raises an error at an iteration."""

    def __init__(self, error, *, iteration=5):
        self._error, self._iteration = error, iteration

    def attach(self, engine):
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=self._iteration), self._raise)

    def _raise(self, _engine):
        raise self._error


def only_run(save_dir):
    """Return the only experiment folder of a trainer below a folder."""
    (folder,) = (path for path in (save_dir / "SupervisedTrainer").iterdir() if not path.name.startswith("."))
    return folder
