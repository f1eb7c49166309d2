"""The trainer for images too large for a network: it is shown overlapping windows. Owns no loss and no score."""

from __future__ import annotations

import math
from abc import abstractmethod

from monai.inferers import Inferer
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Metrics, Scalar, Shape, Shape2d, Shape3d
from candy_monai.errors import SettingsError
from candy_monai.inference.inferers import MainOutput, WindowInferer, describe_inferer, run_inferer
from candy_monai.inference.tiles import SWMetadata, WindowBlender, WindowGrid, batches_of_windows, check_window
from candy_monai.label_ids import holding
from candy_monai.nn.deep_supervision import main_output
from candy_monai.training.gradients import WeighedPasses, trained_parameters
from candy_monai.training.means import WeightedMeans
from candy_monai.training.returns import loss_returned, score_returned
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.trainer import Trainer


class SlidingTrainer(Trainer):
    """Trains on all windows of each image and validates on whole images that are put together from theirs.

    Say what one pass over some windows is, in `backward_windowed` and `validate_case_windowed`, instead of ``backward``
    and ``validate_case``. A training step is one batch of images, however many windows and passes it takes: the passes'
    gradients add up to their mean over the windows. Images wait where the loader left them and only the windows of one
    pass are on the device.

    The network is built for ``(C, *window)``. A padding module pads windows. Together with `SegmentationTrainer` this
    class stands first: ``class Mine(SlidingTrainer, SegmentationTrainer)``.

    Attributes:
        inferer: How a whole image is run through the network in `infer` and in prediction, one of MONAI's; None for the
            windows of training.
        sliding_window_overlap: Share of a window that its neighbour covers too, 0 to below 1.
        sliding_window_batch_size: Windows in one pass at most.
    """

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
        """Return the window's shape, one number a spatial axis."""

    @abstractmethod
    def backward_windowed(
        self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[Scalar, Metrics]:
        """Compute the loss of some windows and call ``loss.backward()``, but not ``optimizer.step()``.

        Args:
            images: ``(windows, C, *window)``, padded, on the trainer's device; at most `sliding_window_batch_size`.
            labels: ``(windows, 1, *window)``, padded in step.
            toolbox: Model, criterion and the rest.
            metadata: How the windows lie in their images.

        Returns:
            The loss, a mean over the windows, and named numbers to record.
        """

    @abstractmethod
    def validate_case_windowed(
        self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[float, Metrics, Tensor]:
        """Score some windows of one case.

        Args:
            images: ``(windows, C, *window)``, not padded; at most `sliding_window_batch_size`.
            labels: ``(windows, 1, *window)``.
            toolbox: Model, EMA, criterion and the rest.
            metadata: How the windows lie in their image.

        Returns:
            The score (higher is better), named numbers to record, and the output ``(windows, classes, *window)``.
        """

    @override
    def backward(self, images: Tensor, labels: Tensor, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics]:
        """Train on every window of a batch of whole images.

        Args:
            images: ``(B, C, *spatial)`` as the loader yielded them.
            labels: ``(B, 1, *spatial)``.
            toolbox: Model, criterion and the rest.

        Returns:
            The means over the windows of what `backward_windowed` returned.
        """
        grid, count = self._grid(images), len(images)
        metadata, total = grid.metadata(count), count * len(grid)
        images, labels = grid.padded(images), grid.padded(holding(labels, self.label_fill), fill=self.label_fill)
        mean_loss: Scalar = 0.0
        metrics, passes = WeightedMeans(), WeighedPasses(trained_parameters(toolbox))
        for numbers in batches_of_windows(total, self.sliding_window_batch_size):
            windows = super().prepare_batch(grid.cut(images, numbers), grid.cut(labels, numbers))
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
        """Score a whole case by its windows.

        Args:
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)``.
            toolbox: Model, EMA, criterion and the rest.

        Returns:
            The means over the windows of the score and the numbers that `validate_case_windowed` returned, and its
            outputs blended to ``(classes, *spatial)``, or what the `inferer` makes of the image.
        """
        images, labels = image[None], label[None]
        grid = self._grid(images)
        metadata, blender = grid.metadata(1), WindowBlender(grid, batch_size=1)
        images, labels = grid.padded(images), grid.padded(holding(labels, self.label_fill), fill=self.label_fill)
        scores, metrics = WeightedMeans(), WeightedMeans()
        for numbers in batches_of_windows(len(grid), self.sliding_window_batch_size):
            windows = grid.cut(images, numbers), grid.cut(labels, numbers)
            result = self.validate_case_windowed(*windows, toolbox, metadata)
            score, parts, output = score_returned(self, "validate_case_windowed", result, one_output=False)
            output = main_output(output, num_dims=metadata.ndim)
            blender.add(output if self._padded_parts is None else self._padded_parts.cropped(output), numbers)
            scores.add({"score": score}, weight=len(numbers))
            metrics.add(parts, weight=len(numbers))
        output = blender.result()[0] if self.inferer is None else self.infer(image[None], toolbox)[0]
        return float(scores.means().get("score", math.nan)), metrics.means(), output

    @override
    def infer(self, images: Tensor, toolbox: TrainerToolbox) -> Tensor:
        network = MainOutput(toolbox.ema if toolbox.ema else toolbox.model)
        return run_inferer(self._chosen_inferer(), images, network)

    @override
    def network_input(self, image: Tensor) -> Tensor:
        grid = self._grid(image[None])
        return grid.cut(grid.padded(image[None]), [0])[0]

    @override
    def prepare_batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Leave whole images where they are: `backward` brings their windows to the device and pads them."""
        return images, labels

    @override
    def check_sample(self, image: Tensor, label: Tensor) -> None:
        super().check_sample(image, label)
        window = tuple(self.get_window_shape())
        check_window(window, overlap=self.sliding_window_overlap, batch_size=self.sliding_window_batch_size)
        if len(window) != image.ndim - 1:
            raise SettingsError(
                f"the first training image has the shape {tuple(image.shape)}: that is {image.ndim - 1} spatial axes, "
                f"but {type(self).__name__}'s window {window} has {len(window)}"
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
