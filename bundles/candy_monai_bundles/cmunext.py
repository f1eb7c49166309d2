"""CMUNeXt, which MONAI lacks: large depthwise kernels and fused skip connections, for pictures and for volumes.

Tang, Ding, Quan, Wang, Ning and Zhou, *CMUNeXt: An efficient medical image segmentation network based on large kernel
and skip fusion*, ISBI 2024, arXiv:2308.01239. A stage mixes features spatially with a large depthwise kernel, then
their channels with two pointwise convolutions; every skip connection is fused by a convolution with two groups, one per
source. The paper's network is 2-D; the 3-D form has the same stages with cubic kernels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn, optim
from typing_extensions import override

from candy_monai.aliases import Params, Shape
from candy_monai.errors import SettingsError
from candy_monai.inference.predictor import Predictor
from candy_monai.nn.schedules import PolyLRScheduler
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer
from candy_monai_bundles.networks.cmunext import CMUNeXt, Normalization

__all__ = ["BUNDLE", "CMUNeXtPredictor", "CMUNeXtTrainer", "build_cmunext"]

Variant = Literal["s", "l"] | None

MOMENTUM = 0.99
"""As in nnU-Net: after three minutes on the hippocampus the Dice is 0.77; with 0.9 nothing is learned by then."""


ARCHITECTURES: dict[Variant, dict[str, tuple[int, ...]]] = {
    None: {"channels": (16, 32, 128, 160, 256), "depths": (1, 1, 1, 3, 1), "kernel_sizes": (3, 3, 7, 7, 7)},
    "s": {"channels": (8, 16, 32, 64, 128), "depths": (1, 1, 1, 1, 1), "kernel_sizes": (3, 3, 7, 7, 9)},
    "l": {"channels": (32, 64, 128, 256, 512), "depths": (1, 1, 1, 6, 3), "kernel_sizes": (3, 3, 7, 7, 7)},
}
"""Of each variant, stage by stage from the finest: feature maps, mixing blocks, and sides of the depthwise kernels."""
SIZES: dict[str, Variant] = {"S": "s", "B": None, "L": "l"}


def build_cmunext(
    *,
    in_channels: int,
    out_channels: int,
    variant: Variant = None,
    normalization: Normalization = "batch",
    num_dims: int = 2,
) -> nn.Module:
    """Build a CMUNeXt.

    With three input channels and one output the base variant has 3 149 185 parameters in 2-D, "s" 417 505 and "l"
    8 286 721. The paper states 3.14 million for the base, truncated instead of rounded to 3.15.

    Args:
        in_channels: Number of channels of the image.
        out_channels: Number of logits per pixel.
        variant: ``"s"`` is small, ``"l"`` large, None the paper's base.
        normalization: ``"batch"`` as in the paper, or ``"group"``, which does not depend on the batch size.
        num_dims: 2 or 3 spatial axes.

    Returns:
        The network: images ``(B, in_channels, *spatial)``, each axis a multiple of 16, to logits
        ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there is no such variant or normalisation.
    """
    if variant not in ARCHITECTURES:
        raise SettingsError(f"variant must be 's', 'l', or None for the base variant; got {variant!r}")
    if normalization not in get_args(Normalization):
        raise SettingsError(f"normalization must be 'batch' or 'group', got {normalization!r}")
    return CMUNeXt(
        in_channels,
        out_channels,
        normalization=normalization,
        spatial_dims=num_dims,
        **ARCHITECTURES[variant],
    )


class CMUNeXtTrainer(BundleTrainer):
    """Trains a CMUNeXt on pictures or volumes, with SGD with momentum and a polynomial decay.

    Attributes:
        variant: ``"s"`` is small, ``"l"`` large, None the paper's base.
        size: ``"S"``, ``"B"`` or ``"L"``, other names of the variants; None for the one of ``variant``.
        normalization: ``"batch"`` or ``"group"``; None for batch normalisation if the loader's batches are larger than
            one, and group normalisation if they are not, or if this is not known.
    """

    network_name = "CMUNeXt"
    network_builder = staticmethod(build_cmunext)
    network_options = ("size", "variant", "normalization")
    sizes: ClassVar = {name: {"variant": variant} for name, variant in SIZES.items()}
    memory_factors: ClassVar = {"S": 1.1, "B": 2.5, "L": 4.6, None: 2.5}
    divisor = 16
    variant: Variant = None
    normalization: Normalization | None = None
    options = SegmentationOptions(learning_rate=1e-2, weight_decay=1e-4, memory_factor=2.5)

    @override
    @classmethod
    def check_network(cls) -> None:
        super().check_network()
        with torch.device("meta"):
            build_cmunext(
                in_channels=1, out_channels=1, variant=cls.variant, normalization=cls.normalization or "batch"
            )

    @override
    def network_arguments(self, example_shape: Shape) -> dict[str, Any]:
        arguments = super().network_arguments(example_shape)
        size = arguments.pop("size")
        arguments["normalization"] = self.normalization or self._normalization_for_batches()
        return arguments if size is None else {**arguments, "variant": SIZES[size]}

    @override
    def build_optimizer(self, params: Params) -> optim.Optimizer:
        rate, decay = self.options.learning_rate, self.options.weight_decay
        return optim.SGD(params, lr=rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay)

    @override
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        first = optimizer.param_groups[0]
        return PolyLRScheduler(optimizer, float(first.get("initial_lr", first["lr"])), self._num_steps(num_epochs))

    def _normalization_for_batches(self) -> Normalization:
        loader = self._dataloader
        batch_size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
        return "batch" if isinstance(batch_size, int) and batch_size > 1 else "group"


class CMUNeXtPredictor(Predictor):
    """Predicts with a trained CMUNeXt, given only its experiment folder."""


BUNDLE = Bundle(
    name="cmunext",
    build_network=build_cmunext,
    trainer=CMUNeXtTrainer,
    predictor=CMUNeXtPredictor,
    networks=(CMUNeXt,),
)
