"""What a training step works with. Builds nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn, optim


@dataclass
class TrainerToolbox:
    """The parts of one run, handed to ``backward`` and ``validate_case``.

    Attributes:
        model: What ``build_network`` returned. For the length of a run its calls are surrounded by mixed precision,
            float32 outputs, and padding in evaluation mode.
        optimizer: Steps once a batch.
        scheduler: Steps once after each optimizer step.
        criterion: The loss, on the trainer's device.
        ema: The moving average of ``model``, called like it, in evaluation mode; None when it is switched off.
    """

    model: nn.Module
    optimizer: optim.Optimizer
    scheduler: optim.lr_scheduler.LRScheduler
    criterion: nn.Module
    ema: optim.swa_utils.AveragedModel | None = None
