"""The methods of a trainer that a subclass overrides: what is learned and how, without the bookkeeping of a run.

A run has no reference to its trainer; it gets the functions that it needs as `Callbacks`.
"""

from __future__ import annotations

import copy
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from torch import Tensor, nn, optim
from typing_extensions import override

from candy_monai.aliases import Metrics, Params, Scalar, Shape
from candy_monai.data.samples.batches import Batch
from candy_monai.errors import SettingsError
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.nn.previous_stage import without_ids
from candy_monai.nn.slicewise import without_axis
from candy_monai.training.description import bundle_of
from candy_monai.training.earlier import TrainerType
from candy_monai.training.names import check_attribute, check_class
from candy_monai.training.signals import how_to_resume
from candy_monai.training.toolbox import Equipment, TrainerToolbox

if TYPE_CHECKING:
    from candy_monai.plotting.case.views import CaseView

Trainer = TypeVar("Trainer", bound="Hooks")

_ORIGINAL = "_trainer_that_this_is_a_copy_of"
"""The attribute of a trainer's copy that draws a preview; it holds the original trainer."""
_OF_A_RUN = ("_run", "_loaders")
"""The attributes of a trainer that are no state of its own."""


class Hooks(metaclass=TrainerType):
    """The methods and attributes that a subclass overrides.

    The methods return values; they may call ``log`` and ``record``, but write nothing themselves, except
    `save_preview`.

    Attributes:
        max_grad_norm: Clip the norm of the gradients to this value before each step; None for no clipping. Override it
            to clip.
        score_range: The smallest and the largest possible validation score, each None for no bound, such as ``(0, 1)``
            for Dice, ``(0, 100)`` for percent or ``(None, 0)`` for a negative loss; used by the forecast. None if it is
            unknown. Override it together with your own score.
        ignore_index: Label id of voxels that the padding module adds, which your own loss and metrics should ignore;
            None for 0, the background. Override it if labels have an id that is to be ignored.
        slice_axis: The spatial axis across the slices of volumes for a 2-D network, 0 to 2; None for a network with as
            many dimensions as the images. Override it to train a 2-D network on volumes, slice by slice.
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

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy without a run, whose threads and locks cannot be copied."""
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            vars(copied)[name] = None if name == "_run" else copy.deepcopy(value, memo)
        return copied

    @abstractmethod
    def build_network(self, example_shape: Shape) -> nn.Module:
        """Build the network for examples of shape ``(C, *spatial)``, as they come out of the padding module.

        Every trainer overrides it. If `slice_axis` is set, the examples are slices ``(C, H, W)`` of volumes, and the
        2-D network is applied to each slice.
        """

    @abstractmethod
    def build_optimizer(self, params: Params) -> optim.Optimizer:
        """Build the optimizer of the network's parameters. Override it to use another one."""

    @abstractmethod
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        """Build the learning-rate schedule; it steps once a batch: ``num_epochs * len(self._dataloader)`` times.

        Override it to use another one. A schedule whose ``step`` needs a metric, such as ``ReduceLROnPlateau``, is
        stepped after each validated epoch instead: with the score if its mode is ``"max"``; if it is ``"min"``, with
        the mean of the ``combined loss`` that `validate_case` returns, or else with the negative score. Without
        validation the training loss is used. In a run with a time limit, the method ``end_in(num_steps)`` of a
        schedule, if it has one, is called after each step with the number of remaining steps.
        """

    @abstractmethod
    def build_criterion(self) -> nn.Module:
        """Build the loss.

        It returns ``(loss, metrics)``, or only the loss as MONAI's losses do. Override it to use another one.
        """

    def build_ema(self, model: nn.Module) -> optim.swa_utils.AveragedModel:
        """Build the moving average of ``model``. Override it for another decay, or another kind of average."""
        return ExponentialMovingAverage(model)

    def build_padding_module(self) -> nn.Module | None:
        """Build the module that pads images to valid sizes, for example ``Pad2d(32)``; None for no padding.

        Override it for a network that does not accept every size.
        """
        return None

    @abstractmethod
    def backward(self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics]:
        """Compute the loss of one batch and call ``loss.backward()``, but not ``optimizer.step()``.

        Override it to change the loss of a step. It may make several passes.

        Args:
            images: ``(B, C, *spatial)``, padded, on the trainer's device.
            labels: ``(B, 1, *spatial)``, padded in the same way.
            toolbox: Model, criterion and the rest.

        Returns:
            The loss and named metrics to record. Prefer tensors to floats: converting to a float waits for the GPU.
        """

    @abstractmethod
    def validate_case(self, image: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics, Tensor]:
        """Score one case. Override it to change how cases are run and scored.

        Args:
            image: ``(C, *spatial)``, not padded: in validation the toolbox's model and EMA pad their input and crop
                their output.
            label: ``(1, *spatial)``.
            toolbox: Model, EMA, criterion and the rest.

        Returns:
            The score (higher is better), named metrics to record, and the output ``(classes, *spatial)``.
        """

    def infer(self, images: Tensor, toolbox: TrainerToolbox) -> Tensor:
        """Return the logits of whole images ``(B, C, *spatial)`` with the scored weights, as in prediction.

        Override it to run whole images in another way in validation.
        """
        logits: Tensor = (toolbox.ema if toolbox.ema else toolbox.model)(images)
        return logits

    def save_preview(self, image: Tensor, label: Tensor, output: Tensor, *, quality: float = 0.75) -> None:
        """Write pictures of one validated case into the experiment folder; by default there are none.

        Override it to draw other pictures. It runs on a separate thread, on a copy of the trainer made after that
        validation, so that `experiment_folder` and the trainer's attributes belong to the case even if the next run has
        begun. Attributes that it sets are also set on the trainer. Exceptions are logged, and the run continues.

        Args:
            image: ``(C, *spatial)``, on the CPU.
            label: ``(1, *spatial)``.
            output: What `validate_case` returned.
            quality: Maximum number of voxels, in millions, from which a picture of a volume is made.
        """

    def check_sample(self, image: Tensor, label: Tensor) -> None:
        """Check one training example before anything is built. Override it to refuse unsuitable data early.

        Args:
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)``.

        Raises:
            BadInputError: If the data cannot be used for training.
        """

    def describe(self, example_shape: Shape) -> dict[str, object]:
        """Return further entries for ``experiment.json``, as plain values: here, how to build the network again.

        Override it to add entries that are compared when the run is resumed.
        """
        shape = without_ids(without_axis(example_shape, self.slice_axis), self._num_previous)
        arguments = self.network_arguments(shape)
        network = {"example_shape": list(example_shape), "arguments": arguments, "slice_axis": self.slice_axis}
        return {"network": network}

    def network_arguments(self, example_shape: Shape) -> dict[str, Any] | None:
        """Return the arguments with which the bundle builds this network again, as plain values; None without a bundle.

        Override it in the trainer of a bundle.
        """
        return None

    def get_extra_state(self) -> dict[str, Any]:
        """Return further state of this trainer that a resumed run needs, as tensors and plain values; here, nothing.

        Override it if a trainer learns something besides the network. Random generators among its attributes are also
        saved without it.
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
    """Whether `backward` always makes one pass if it does so at first. The docs say when to set it to False."""

    _num_previous = 0
    """The highest id of a cascade's first stage, whose label map is the last channel of the images; 0 without one."""

    _preview_title = ""
    """The description of the case, in a copy that draws a preview."""

    def _case_view(self, image: Tensor, label: Tensor, output: Tensor) -> CaseView | None:
        """Return a validated case as shown on the page of the run; None if it cannot be shown."""
        return None

    def _network_input(self, image: Tensor) -> Tensor:
        """Return the part of a training image ``(C, *spatial)`` that the network sees at once: here, all of it."""
        return image

    def _check_batch(self, batch: Batch) -> None:
        """Check images and labels of one batch, as the loader yielded them."""

    def _check_first_case(self, case: Batch, image: Tensor) -> None:
        """Check one validation case, a batch of one, before anything is built; ``image`` is a training image."""
        self._check_batch(case)

    def _try_case(self, case: Batch, equipment: Equipment) -> None:
        """Run the network on one validation case before a new run begins, if its size might not fit."""

    @property
    def _label_fill(self) -> int:
        """The id of label voxels that the padding module adds."""
        return 0 if self.ignore_index is None else self.ignore_index


def copy_that_draws(trainer: Trainer, *, title: str = "") -> Trainer:
    """Return a copy of a trainer in its present state, to draw a preview later, perhaps in the trainer's next run."""
    copied = copy.copy(trainer)
    vars(copied).update({_ORIGINAL: trainer, "_preview_title": title})
    return copied


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """The functions of a trainer that a run needs.

    Attributes:
        name: The trainer's name.
        one_pass: Whether ``backward`` may be assumed to make a single pass.
        build_scheduler: Builds the schedule for a number of epochs.
        get_extra_state: Returns further state to save.
        set_extra_state: Restores what `get_extra_state` returned.
        attributes: Returns the trainer's attributes by name, to save random generators among them, and to report
            attributes whose state is not saved.
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
    def of(cls, trainer: Hooks, *, is_planned: bool) -> Self:
        """Return the functions of a trainer; ``is_planned`` says whether the command line can find its data again."""
        return cls(
            name=type(trainer).__name__,
            one_pass=trainer._one_pass,
            build_scheduler=trainer.build_scheduler,
            get_extra_state=trainer.get_extra_state,
            set_extra_state=trainer.set_extra_state,
            attributes=lambda: {name: value for name, value in vars(trainer).items() if name not in _OF_A_RUN},
            how_to_resume=lambda folder: how_to_resume(
                type(trainer), folder, is_planned=is_planned, bundle=bundle_of(trainer)
            ),
        )
