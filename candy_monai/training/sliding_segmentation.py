"""Segmentation of images that a network sees in windows. Owns neither the windows nor the loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Metrics, Scalar, Shape2d, Shape3d
from candy_monai.inference.tiles import SWMetadata
from candy_monai.nn.deep_supervision import main_output
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.sliding import SlidingTrainer
from candy_monai.training.toolbox import TrainerToolbox

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan


class SlidingSegmentationTrainer(SlidingTrainer, SegmentationTrainer):
    """Trains a segmentation network on windows and scores whole images.

    Implement ``build_network``. The windows' outputs are put together first; loss, Dice and score are those of the
    whole image.

    Attributes:
        sliding_window_shape: The window, one number a spatial axis.
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
        """Return the windows' logits. They have no score of their own: the whole image is scored."""
        network = toolbox.ema if toolbox.ema else toolbox.model
        return math.nan, {}, main_output(network(images), num_dims=metadata.ndim)

    @override
    def validate_case(self, image: Tensor, label: Tensor, toolbox: TrainerToolbox) -> tuple[float, Metrics, Tensor]:
        if self.inferer is not None:
            return SegmentationTrainer.validate_case(self, image, label, toolbox)
        _, of_windows, logits = super().validate_case(image, label, toolbox)
        score, metrics = self.score_case(logits[None], label[None], toolbox)
        return score, {**of_windows, **metrics}, logits

    @override
    def use_plan(self, plan: Plan) -> None:
        """Follow a plan; the window is its patch."""
        super().use_plan(plan)
        self.inferer = None
        self.sliding_window_shape = plan.patch_shape  # type: ignore[assignment]  # a plan has 2 or 3 axes
