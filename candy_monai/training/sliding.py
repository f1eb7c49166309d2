"""Trainers for images that are too large for a network and are processed in overlapping windows."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from monai.inferers import Inferer
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Metrics, Scalar, Shape, Shape2d, Shape3d
from candy_monai.errors import SettingsError
from candy_monai.inference.inferer_descriptions import describe_inferer
from candy_monai.inference.inferers import MainOutput, WindowInferer, run_inferer
from candy_monai.inference.tiles import SWMetadata, WindowBlender, WindowGrid, batches_of_windows, check_window
from candy_monai.label_ids import holding
from candy_monai.nn.deep_supervision import main_output
from candy_monai.training.gradients import WeighedPasses, trained_parameters
from candy_monai.training.returns import case_score_returned, loss_returned, score_returned
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.trainer import Trainer

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan


class SlidingTrainer(Trainer):
    """Trains on all windows of each image and validates on whole images that are assembled from their windows.

    Implement one pass over some windows in `backward_windowed` and `validate_case_windowed`, instead of ``backward``
    and ``validate_case``. A training step is one batch of images, for any number of windows and passes: the gradients
    of the passes are summed to their mean over the windows. Images stay on the loader's device; only the windows of one
    pass are on the trainer's.

    The network is built for ``(C, *window)``, and a padding module pads windows. Combined with `SegmentationTrainer`,
    this class comes first: ``class Mine(SlidingTrainer, SegmentationTrainer)``.

    Attributes:
        inferer: The MONAI inferer that runs whole images through the network in `infer` and in prediction; None for the
            windows of training.
        sliding_window_overlap: Fraction of a window that overlaps with its neighbour, 0 to below 1.
        sliding_window_batch_size: Maximum number of windows in one pass.
    """

    _one_pass = False
    inferer: Inferer | None = None
    sliding_window_overlap: float = 0.5
    sliding_window_batch_size: int = 4

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        owner = next(base for base in cls.__mro__ if "backward" in vars(base))
        if not issubclass(owner, SlidingTrainer):
            raise TypeError(
                f"{cls.__name__} would train on whole images by {owner.__name__}.backward: "
                f"name SlidingTrainer before {owner.__name__} among its bases"
            )

    @abstractmethod
    def get_window_shape(self) -> Shape2d | Shape3d:
        """Return the window's shape, one number per spatial axis. Every trainer on windows overrides it."""

    @abstractmethod
    def backward_windowed(
        self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[Scalar, Metrics]:
        """Compute the loss of some windows and call ``loss.backward()``, but not ``optimizer.step()``.

        Override it in place of ``backward``.

        Args:
            images: ``(windows, C, *window)``, padded, on the trainer's device; at most `sliding_window_batch_size`.
            labels: ``(windows, 1, *window)``, padded in the same way.
            toolbox: Model, criterion and the rest.
            metadata: The positions of the windows in their images.

        Returns:
            The loss, a mean over the windows, and named metrics to record.
        """

    @abstractmethod
    def validate_case_windowed(
        self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[float, Metrics, Tensor]:
        """Score some windows of one case. Override it in place of ``validate_case``.

        Args:
            images: ``(windows, C, *window)``, not padded; at most `sliding_window_batch_size`.
            labels: ``(windows, 1, *window)``.
            toolbox: Model, EMA, criterion and the rest.
            metadata: The positions of the windows in their image.

        Returns:
            The score (higher is better), named metrics to record, and the output ``(windows, classes, *window)``.
        """

    @override
    def backward(self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics]:
        """Train on every window of a batch of whole images. Override `backward_windowed` instead.

        Args:
            images: ``(B, C, *spatial)`` as the loader yielded them.
            labels: ``(B, 1, *spatial)``.
            toolbox: Model, criterion and the rest.

        Returns:
            The means over the windows of the values of `backward_windowed`.
        """
        grid, count = self._grid(images), len(images)
        metadata, total = grid.metadata(count), count * len(grid)
        images, labels = grid.padded(images), grid.padded(holding(labels, self._label_fill), fill=self._label_fill)
        mean_loss: Scalar = 0.0
        metrics, passes = _WeightedMeans(), WeighedPasses(trained_parameters(toolbox))
        for numbers in batches_of_windows(total, self.sliding_window_batch_size):
            windows = super()._prepared(grid.cut(images, numbers), grid.cut(labels, numbers))
            share = len(numbers) / total
            passes.begin(share)
            result = self.backward_windowed(*windows, toolbox, metadata)
            loss, parts = loss_returned(self, "backward_windowed", result)
            mean_loss = mean_loss + share * (loss.detach() if isinstance(loss, Tensor) else loss)  # NaN must show
            metrics.add(parts, weight=len(numbers))
        passes.end()
        return mean_loss, metrics.means()

    @override
    def validate_case(self, image: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics, Tensor]:
        """Score a whole case by its windows. Override it to score the whole image, as segmentation does.

        Args:
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)``.
            toolbox: Model, EMA, criterion and the rest.

        Returns:
            The means over the windows of the score and the metrics of `validate_case_windowed`, and its outputs blended
            to ``(classes, *spatial)``, or the output of the `inferer` for the image.
        """
        images, labels = image[None], label[None]
        grid = self._grid(images)
        metadata, blender = grid.metadata(1), WindowBlender(grid, batch_size=1)
        images, labels = grid.padded(images), grid.padded(holding(labels, self._label_fill), fill=self._label_fill)
        scores, metrics = _WeightedMeans(), _WeightedMeans()
        for numbers in batches_of_windows(len(grid), self.sliding_window_batch_size):
            windows = grid.cut(images, numbers), grid.cut(labels, numbers)
            result = self.validate_case_windowed(*windows, toolbox, metadata)
            score, parts, output = score_returned(self, "validate_case_windowed", result, one_output=False)
            output = main_output(output, num_dims=metadata.ndim)
            parts_padded = self._current_run().validations.padded_parts
            blender.add(output if parts_padded is None else parts_padded.cropped(output), numbers)
            scores.add({"score": score}, weight=len(numbers))
            metrics.add(parts, weight=len(numbers))
        output = blender.result()[0] if self.inferer is None else self.infer(image[None], toolbox)[0]
        return float(scores.means().get("score", math.nan)), metrics.means(), output

    @override
    def infer(self, images: Tensor, toolbox: TrainerToolbox) -> Tensor:
        network = MainOutput(toolbox.ema if toolbox.ema else toolbox.model)
        return run_inferer(self._chosen_inferer(), images, network)

    @override
    def _network_input(self, image: Tensor) -> Tensor:
        grid = self._grid(image[None])
        return grid.cut(grid.padded(image[None]), [0])[0]

    @override
    def _prepared(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return whole images unchanged: `backward` moves their windows to the device and pads them."""
        return images, labels

    @override
    def check_sample(self, image: Tensor, label: Tensor) -> None:
        super().check_sample(image, label)
        window = self.get_window_shape()
        check_window(window, overlap=self.sliding_window_overlap, batch_size=self.sliding_window_batch_size)
        if len(window) != image.ndim - 1:
            raise SettingsError(
                f"the first training image has the shape {tuple(image.shape)}: that is {image.ndim - 1} spatial axes, "
                f"but {type(self).__name__}'s window {tuple(window)} has {len(window)}"
            )

    @override
    def describe(self, example_shape: Shape) -> dict[str, object]:
        return {**super().describe(example_shape), "inferer": describe_inferer(self._chosen_inferer())}

    def _grid(self, images: Tensor) -> WindowGrid:
        return WindowGrid(tuple(images.shape[2:]), tuple(self.get_window_shape()), self.sliding_window_overlap)

    def _chosen_inferer(self) -> Inferer:
        if self.inferer is not None:
            return self.inferer
        return WindowInferer(
            tuple(self.get_window_shape()), self.sliding_window_batch_size, self.sliding_window_overlap
        )


class SlidingSegmentationTrainer(SlidingTrainer, SegmentationTrainer):
    """Trains a segmentation network on windows and scores whole images.

    Implement ``build_network``. The outputs of the windows are assembled first; loss, Dice and score are those of the
    whole image.

    Attributes:
        sliding_window_shape: The window, one number per spatial axis.
    """

    sliding_window_shape: Shape2d | Shape3d = (128, 128)

    @override
    def get_window_shape(self) -> Shape2d | Shape3d:
        return self.sliding_window_shape

    @override
    def backward_windowed(
        self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[Scalar, Metrics]:
        return SegmentationTrainer.backward(self, images, labels, toolbox)

    @override
    def validate_case_windowed(
        self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[float, Metrics, Tensor]:
        """Return the windows' logits, without a score: the whole image is scored. Override it for other logits."""
        network = toolbox.ema if toolbox.ema else toolbox.model
        return math.nan, {}, main_output(network(images), num_dims=metadata.ndim)

    @override
    def validate_case(self, image: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics, Tensor]:
        if self.inferer is not None:
            return SegmentationTrainer.validate_case(self, image, label, toolbox)
        _, of_windows, logits = super().validate_case(image, label, toolbox)
        score, metrics = case_score_returned(self, self.score_case(logits[None], label[None], toolbox))
        return score, {**of_windows, **metrics}, logits

    @override
    def use_plan(self, plan: Plan) -> None:
        """Use a plan; the window is its patch. Override it to use more of the plan."""
        super().use_plan(plan)
        self.inferer = None
        self.sliding_window_shape = plan.patch_shape  # type: ignore[assignment]  # a plan has 2 or 3 axes


class _WeightedMeans:
    """Averages named numbers with weights. NaN means "not measured" and is ignored.

    Tensors stay on their device: nothing waits for a GPU.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[Scalar, int]]] = {}

    def add(self, metrics: Metrics, *, weight: int) -> None:
        """Add the numbers of one part."""
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(
                (value.detach().clone() if isinstance(value, Tensor) else value, weight)
            )

    def means(self) -> dict[str, Scalar]:
        """Return the weighted mean of each name: a tensor if any value was one, else a number; NaN if none is known."""
        return {name: _mean(values) for name, values in self._values.items()}


def _mean(values: Sequence[tuple[Scalar, int]]) -> Scalar:
    device = next((value.device for value, _ in values if isinstance(value, Tensor)), None)
    if device is None:
        known = [(float(value), weight) for value, weight in values if not math.isnan(value)]
        total = sum(weight for _, weight in known)
        return math.fsum(value * weight for value, weight in known) / total if total else math.nan
    numbers = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value, _ in values])
    weights = torch.tensor([weight for _, weight in values], dtype=torch.float32).to(device, non_blocking=True)
    weights = weights.masked_fill(numbers.isnan(), 0)
    return (numbers.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf) * weights).sum() / weights.sum()
