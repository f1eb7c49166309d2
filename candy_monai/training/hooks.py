"""What a subclass of a trainer overrides: what is learned and how, and nothing of a run's bookkeeping.

A run, which does not see its trainer, gets what it needs of these as `Callbacks`.
"""

from __future__ import annotations

import copy
import sys
from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from torch import Tensor, nn, optim
from typing_extensions import override

from candy_monai.aliases import Metrics, Params, Scalar, Shape
from candy_monai.errors import SettingsError
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.nn.slicewise import without_axis
from candy_monai.training.description import bundle_of
from candy_monai.training.earlier import TrainerType
from candy_monai.training.names import check_attribute, check_class
from candy_monai.training.signals import how_to_resume
from candy_monai.training.toolbox import TrainerToolbox

if TYPE_CHECKING:
    from candy_monai.plotting.case.views import CaseView

Trainer = TypeVar("Trainer", bound="Hooks")

_ORIGINAL = "_trainer_that_this_is_a_copy_of"
"""The attribute of a trainer's copy, which draws a preview, that holds the trainer."""


class Hooks(metaclass=TrainerType):
    """The methods and attributes that a subclass overrides.

    The methods return values; they may ``log`` and ``record``, and write nothing themselves. `save_preview` does.

    Attributes:
        max_grad_norm: Clip the gradient's norm to this before each step; None to leave it. Override it to clip.
        score_range: The least and the largest validation score that there can be, each None for no bound, as ``(0, 1)``
            for Dice, ``(0, 100)`` for percent or ``(None, 0)`` for a negative loss; the forecast keeps to it. None if
            it is unknown. Override it with a score of your own.
        ignore_index: Label id of voxels that the padding module adds, so that a loss and metrics of your own leave them
            out; None for 0, the background's. Override it where labels have an id that counts nowhere.
        slice_axis: The spatial axis across the slices of volumes for a 2-D network, 0 to 2; None for a network with as
            many axes as the images. Override it to train a 2-D network on volumes, slice by slice.
    """

    max_grad_norm: float | None = None
    score_range: ScoreRange | None = None
    ignore_index: int | None = None
    slice_axis: int | None = None

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        check_class(cls)

    @override
    def __setattr__(self, name: str, value: object) -> None:
        module = sys._getframe(1).f_globals.get("__name__", "")  # who sets it decides whether names collide
        check_attribute(self, name, value, module=module)
        super().__setattr__(name, value)
        if (original := vars(self).get(_ORIGINAL)) is not None:
            object.__setattr__(original, name, value)

    @abstractmethod
    def build_network(self, example_shape: Shape) -> nn.Module:
        """Build the network for examples of shape ``(C, *spatial)``, as they come out of the padding module.

        Every trainer overrides it. Where `slice_axis` is set, the examples are slices ``(C, H, W)`` of volumes, and the
        2-D network is applied to each slice.
        """

    @abstractmethod
    def build_optimizer(self, params: Params) -> optim.Optimizer:
        """Build the optimizer of the network's parameters. Override it to choose another one."""

    @abstractmethod
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        """Build the learning-rate schedule; it steps once a batch: ``num_epochs * len(self._dataloader)`` times.

        Override it to choose another one. One whose ``step`` needs a metric, such as ``ReduceLROnPlateau``, steps after
        each validated epoch instead: with the score if its mode is ``"max"``; if it is ``"min"``, with the mean of the
        ``combined loss`` that `validate_case` returns, else with the negative score. Without validation the training
        loss takes their place. In a run with a time limit, one that has a method ``end_in(num_steps)`` is told after
        each step how many are left.
        """

    @abstractmethod
    def build_criterion(self) -> nn.Module:
        """Build the loss. It returns ``(loss, metrics)``, or the loss alone as MONAI's losses do.

        Override it to choose another one.
        """

    def build_ema(self, model: nn.Module) -> optim.swa_utils.AveragedModel:
        """Build the moving average of ``model``. Override it for another decay, or another kind of average."""
        return ExponentialMovingAverage(model)

    def build_padding_module(self) -> nn.Module | None:
        """Build what pads images to sizes that the network accepts, for example ``Pad2d(32)``; None to leave them.

        Override it for a network that does not take every size.
        """
        return None

    @abstractmethod
    def backward(self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics]:
        """Compute the loss of one batch and call ``loss.backward()``, but not ``optimizer.step()``.

        Override it to change what one step learns from. It may make several passes.

        Args:
            images: ``(B, C, *spatial)``, padded, on the trainer's device.
            labels: ``(B, 1, *spatial)``, padded in step.
            toolbox: Model, criterion and the rest.

        Returns:
            The loss and named numbers to record. Tensors are better than floats: reading a float waits for the GPU.
        """

    @abstractmethod
    def validate_case(self, image: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics, Tensor]:
        """Score one case. Override it to change how cases are run and scored.

        Args:
            image: ``(C, *spatial)``, not padded: in validation the toolbox's model and EMA pad and crop themselves.
            label: ``(1, *spatial)``.
            toolbox: Model, EMA, criterion and the rest.

        Returns:
            The score (higher is better), named numbers to record, and the output ``(classes, *spatial)``.
        """

    def infer(self, images: Tensor, toolbox: TrainerToolbox) -> Tensor:
        """Return the logits of whole images ``(B, C, *spatial)`` by the scored weights, as prediction would.

        Override it to run whole images in another way in validation.
        """
        logits: Tensor = (toolbox.ema if toolbox.ema else toolbox.model)(images)
        return logits

    def save_preview(self, image: Tensor, label: Tensor, output: Tensor, *, quality: float = 0.75) -> None:
        """Write pictures of one validated case into the experiment folder; by default there are none.

        Override it to draw others. It runs on a thread of its own, on a copy of the trainer as it was after that
        validation, so that `experiment_folder` and the trainer's attributes are those of the case even if the next run
        has begun. Attributes that it sets are set on the trainer too. What it raises is logged and the run goes on.

        Args:
            image: ``(C, *spatial)``, on the CPU.
            label: ``(1, *spatial)``.
            output: What `validate_case` returned.
            quality: Million voxels that a picture of a volume may be made from.
        """

    def check_sample(self, image: Tensor, label: Tensor) -> None:
        """Check one training example before anything is built. Override it to refuse data that would only fail later.

        Args:
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)``.

        Raises:
            BadInputError: If such data cannot be trained on.
        """

    def describe(self, example_shape: Shape) -> dict[str, object]:
        """Return more for ``experiment.json``, as plain values: here, how to build the network again.

        Override it to add what a later resumption is compared with.
        """
        arguments = self.network_arguments(without_axis(example_shape, self.slice_axis))
        network = {"example_shape": list(example_shape), "arguments": arguments, "slice_axis": self.slice_axis}
        return {"network": network}

    def network_arguments(self, example_shape: Shape) -> dict[str, Any] | None:
        """Return what the bundle needs to build this network again, as plain values; None if there is no bundle.

        Override it in a bundle's trainer.
        """
        return None

    def get_extra_state(self) -> dict[str, Any]:
        """Return what else of this trainer a resumed run needs, tensors and plain values; here, nothing.

        Override it where a trainer learns something besides the network. Random generators among its attributes are
        saved all the same.
        """
        return {}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Load what `get_extra_state` returned when the run was saved. Override it together with that."""

    def _check_one(self, image: Tensor, label: Tensor) -> None:
        """Check one training sample, or the first slice of it, as `check_sample` sees it."""
        axis = self.slice_axis
        if axis is not None:
            if image.ndim != 4 or axis not in (0, 1, 2):
                raise SettingsError(
                    f"slice_axis is {axis}, and the first training image has the shape {tuple(image.shape)}: expected "
                    "an axis of 0 to 2 and a volume (C, *spatial); set slice_axis = None for pictures"
                )
            image, label = image.select(1 + axis, 0), label.select(1 + axis, 0)
        self.check_sample(image, label)

    # What trainers of this package override or read

    _one_pass = True
    """Whether `backward` may be taken for one pass where its first one is. Docs tell users when to set it to False."""

    _preview_title = ""
    """Of a copy that draws a preview: which case that is."""

    def _case_view(self, image: Tensor, label: Tensor, output: Tensor) -> CaseView | None:
        """Return a validated case as the page of the run shows it; None where it cannot be shown.

        Args:
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)``.
            output: What ``validate_case`` returned.
        """
        return None

    def _network_input(self, image: Tensor) -> Tensor:
        """Return what the network sees at once of a training image ``(C, *spatial)``: here, all of it."""
        return image

    def _check_labels(self, labels: Tensor, case_ids: tuple[str, ...]) -> None:
        """Check the labels of one batch, ``(B, 1, *spatial)``, as the loader yielded them."""

    @property
    def _label_fill(self) -> int:
        """The id of label voxels that the padding module adds."""
        return 0 if self.ignore_index is None else self.ignore_index


def copy_that_draws(trainer: Trainer, *, title: str = "") -> Trainer:
    """Return a copy of a trainer as it is now, which draws a preview later, perhaps in the trainer's next run."""
    copied = copy.copy(trainer)
    vars(copied).update({_ORIGINAL: trainer, "_preview_title": title})
    return copied


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """What a run needs from its trainer, as functions.

    Attributes:
        name: The trainer's name.
        one_pass: Whether ``backward`` may be taken for one pass.
        build_scheduler: Builds the schedule for a number of epochs.
        get_extra_state: Returns what else is to be saved.
        set_extra_state: Restores what `get_extra_state` returned.
        attributes: Returns the trainer's attributes by name, to save the random generators among them, and to report
            those whose state is not saved.
        how_to_resume: Returns the command that resumes the run in a folder.
    """

    name: str
    build_scheduler: Callable[[optim.Optimizer, int], optim.lr_scheduler.LRScheduler]
    one_pass: bool = True
    get_extra_state: Callable[[], dict[str, Any]] = dict
    set_extra_state: Callable[[dict[str, Any]], None] = lambda _: None
    attributes: Callable[[], Mapping[str, object]] = dict
    how_to_resume: Callable[[Path], str] = str

    @classmethod
    def of(cls, trainer: Hooks, *, hidden: Collection[str], is_planned: bool) -> Self:
        """Return the functions of a trainer.

        Args:
            trainer: The trainer.
            hidden: Its attributes that are no part of what it learns, such as the run itself.
            is_planned: Whether the command line can find the run's data again.
        """
        return cls(
            name=type(trainer).__name__,
            one_pass=trainer._one_pass,
            build_scheduler=trainer.build_scheduler,
            get_extra_state=trainer.get_extra_state,
            set_extra_state=trainer.set_extra_state,
            attributes=lambda: {name: value for name, value in vars(trainer).items() if name not in hidden},
            how_to_resume=lambda folder: how_to_resume(
                type(trainer), folder, is_planned=is_planned, bundle=bundle_of(trainer)
            ),
        )
