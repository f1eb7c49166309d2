"""Rehearse training: steps and validated cases for measuring time and memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from candy_monai.experiment.settings import TrainSettings
from candy_monai.training.loaders import Loaders
from candy_monai.training.toolbox import TrainerToolbox, build_toolbox
from candy_monai.training.trainer import Trainer


class Rehearsal:
    """Training steps and validated cases of a trainer between two runs, to measure time and memory; nothing is saved.

    Attributes:
        loaders: The trainer's loaders.
        device: The trainer's device.
    """

    _toolbox: TrainerToolbox

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.loaders = Loaders(trainer._dataloader, trainer._validation_dataloader)
        self.device = trainer.device()

    @contextmanager
    def begun(self, settings: TrainSettings, image: Tensor) -> Iterator[TrainerToolbox]:
        """Build the toolbox for a ``with`` block, and free its memory afterwards."""
        trainer = self._trainer
        run = trainer._new_run(settings, self.device, rehearses=True)
        with run.lasting():
            run.equip(build_toolbox(trainer, run.settings, trainer._network_input(image), self.device))
            self._toolbox = run.toolbox
            try:
                yield self._toolbox
            finally:
                del self._toolbox

    def train(self, batch: object) -> None:
        """Make one optimizer step."""
        self._trainer._train_batch(batch, self._toolbox)
        self._trainer.step(self._toolbox)

    @torch.no_grad()
    def validate(self, image: Tensor, label: Tensor) -> None:
        """Score one case, which is on the device."""
        self._trainer.validate_case(image, label, self._toolbox)
