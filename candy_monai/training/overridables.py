"""The methods of a trainer that a researcher overrides: the science of a run, and nothing of its bookkeeping."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn, optim
from typing_extensions import override

from candy_monai.aliases import Metrics, Params, Scalar, Shape
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.training.names import check_attribute, check_class
from candy_monai.training.toolbox import TrainerToolbox


class Overridables(ABC):
    """What is learned, and how. They return values; they may ``log`` and ``record``, and write nothing themselves.

    Attributes:
        max_grad_norm: Clip the gradient's norm to this before each step; None to leave it.
        bundle: Name of the bundle that can build this network again from `network_arguments`; None if there is none.
        score_range: The least and the largest validation score that there can be, each None for no bound, as ``(0, 1)``
            for Dice, ``(0, 100)`` for percent or ``(None, 0)`` for a negative loss; the forecast keeps to it. None if
            it is unknown.
    """

    max_grad_norm: float | None = None
    bundle: str | None = None
    score_range: ScoreRange | None = None

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        check_class(cls)

    @override
    def __setattr__(self, name: str, value: object) -> None:
        module = sys._getframe(1).f_globals.get("__name__", "")  # who sets it decides whether names collide
        check_attribute(self, name, value, module=module)
        super().__setattr__(name, value)

    @abstractmethod
    def build_network(self, example_shape: Shape) -> nn.Module:
        """Build the network for examples of shape ``(C, *spatial)``, as they come out of the padding module."""

    @abstractmethod
    def build_optimizer(self, params: Params) -> optim.Optimizer:
        """Build the optimizer of the network's parameters."""

    @abstractmethod
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        """Build the learning-rate schedule; it steps once a batch: ``num_epochs * len(self._dataloader)`` times.

        One whose ``step`` needs a metric, such as ``ReduceLROnPlateau``, steps after each validated epoch instead: with
        the score if its mode is ``"max"``; if it is ``"min"``, with the mean of the ``combined loss`` that
        `validate_case` returns, else with the negative score. Without validation the training loss takes their place.
        """

    def end_schedule_in(self, num_steps: int, scheduler: optim.lr_scheduler.LRScheduler) -> None:
        """Let a schedule end within so many more steps, which are those that a time limit leaves room for.

        Called after each step of a run with a time limit. By default the schedule stays as it is.

        Args:
            num_steps: Steps of the schedule that are left, at least 1.
            scheduler: What `build_scheduler` built.
        """

    @abstractmethod
    def build_criterion(self) -> nn.Module:
        """Build the loss. It returns ``(loss, metrics)``, or the loss alone as MONAI's losses do."""

    @abstractmethod
    def backward(self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics]:
        """Compute the loss of one batch and call ``loss.backward()``, but not ``optimizer.step()``.

        Args:
            images: ``(B, C, *spatial)``, padded, on the trainer's device.
            labels: ``(B, 1, *spatial)``, padded in step.
            toolbox: Model, criterion and the rest.

        Returns:
            The loss and named numbers to record. Tensors are better than floats: reading a float waits for the GPU.
        """

    @abstractmethod
    def validate_case(self, image: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics, Tensor]:
        """Score one case.

        Args:
            image: ``(C, *spatial)``, not padded: in validation the toolbox's model and EMA pad and crop themselves.
            label: ``(1, *spatial)``.
            toolbox: Model, EMA, criterion and the rest.

        Returns:
            The score (higher is better), named numbers to record, and the output ``(classes, *spatial)``.
        """

    def build_ema(self, model: nn.Module) -> optim.swa_utils.AveragedModel:
        """Build the moving average of ``model``."""
        return ExponentialMovingAverage(model)

    def build_padding_module(self) -> nn.Module | None:
        """Build what pads images to sizes that the network accepts, for example ``Pad2d(32)``; None to leave them."""
        return None

    @property
    def label_fill(self) -> int:
        """The id of label voxels that the padding module adds; the background's."""
        return 0

    def network_input(self, image: Tensor) -> Tensor:
        """Return what the network sees at once of a training image ``(C, *spatial)``: here, all of it."""
        return image

    def infer(self, images: Tensor, toolbox: TrainerToolbox) -> Tensor:
        """Return the logits of whole images ``(B, C, *spatial)`` by the scored weights, as prediction would."""
        logits: Tensor = (toolbox.ema if toolbox.ema else toolbox.model)(images)
        return logits

    def save_preview(self, image: Tensor, label: Tensor, output: Tensor, *, quality: float = 0.75) -> None:
        """Write pictures of one validated case into the experiment folder; by default there are none.

        Runs on a thread of its own, where `experiment_folder` is that of the case's run even if the next one has begun;
        what it raises is logged and the run goes on.

        Args:
            image: ``(C, *spatial)``, on the CPU.
            label: ``(1, *spatial)``.
            output: What `validate_case` returned.
            quality: Million voxels that a picture of a volume may be made from.
        """

    def network_arguments(self, example_shape: Shape) -> dict[str, Any] | None:
        """Return what the bundle needs to build this network again, as plain values; None if there is no bundle."""
        return None

    def check_sample(self, image: Tensor, label: Tensor) -> None:
        """Look at one training example before anything is built, and raise what would only show later.

        Args:
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)``.

        Raises:
            BadInputError: If such data cannot be trained on.
        """

    def check_labels(self, labels: Tensor, case_ids: tuple[str, ...]) -> None:
        """Look at the labels of one batch before they go to the device, and raise if they cannot be right.

        Args:
            labels: ``(B, 1, *spatial)``, as the loader yielded them.
            case_ids: Their cases, as far as they are known.

        Raises:
            BadInputError: If such labels cannot be trained on.
        """

    def get_extra_state(self) -> dict[str, Any]:
        """Return what else of this trainer a resumed run needs, tensors and plain values; here, nothing.

        Random generators among its attributes are saved all the same.
        """
        return {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take up what `get_extra_state` returned when the run was saved."""

    def describe(self, example_shape: Shape) -> dict[str, object]:
        """Return more for ``experiment.json``, as plain values: here, how to build the network again."""
        arguments = self.network_arguments(example_shape)
        return {"network": {"example_shape": list(example_shape), "arguments": arguments}}
