"""CMUNeXt, which MONAI lacks: large depthwise kernels and fused skip connections, for pictures and for volumes.

Tang, Ding, Quan, Wang, Ning and Zhou, *CMUNeXt: An efficient medical image segmentation network based on large kernel
and skip fusion*, ISBI 2024, arXiv:2308.01239. A stage mixes space by a depthwise convolution of a large kernel, then
channels by two pointwise ones; every skip connection is fused by a convolution of two groups, one a source. The paper's
network is 2-D; the 3-D form has the same stages, with cubes for kernels.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.aliases import Params, Shape
from candy_monai.errors import SettingsError
from candy_monai.inference.predictor import Predictor
from candy_monai.nn.schedules import PolyLRScheduler
from candy_monai.registry import Bundle
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.base import BundleTrainer

__all__ = ["BUNDLE", "CMUNeXtPredictor", "CMUNeXtTrainer", "build_cmunext"]

Variant = Literal["s", "l"] | None
Normalization = Literal["batch", "group"]
Norm = Callable[[int], nn.Module]

EXPANSION = 4
MOMENTUM = 0.99
"""nnU-Net's: after three minutes on the hippocampus a Dice of 0.77, where 0.9 has learned nothing yet."""
NUM_GROUPS = 4
"""Groups of group normalisation, so that even the narrowest layer, of 8 channels, compares two with each other."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A variant, stage by stage from the finest.

    Attributes:
        channels: Feature maps.
        depths: How often space and channels are mixed.
        kernel_sizes: Side of the depthwise kernel, odd.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    kernel_sizes: tuple[int, ...]


ARCHITECTURES: dict[Variant, Architecture] = {
    None: Architecture(channels=(16, 32, 128, 160, 256), depths=(1, 1, 1, 3, 1), kernel_sizes=(3, 3, 7, 7, 7)),
    "s": Architecture(channels=(8, 16, 32, 64, 128), depths=(1, 1, 1, 1, 1), kernel_sizes=(3, 3, 7, 7, 9)),
    "l": Architecture(channels=(32, 64, 128, 256, 512), depths=(1, 1, 1, 6, 3), kernel_sizes=(3, 3, 7, 7, 7)),
}
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
    8 286 721. The paper prints 3.14 million for the base, cut off where 3.15 would be rounded.

    Args:
        in_channels: Channels of the image.
        out_channels: Logits a pixel.
        variant: ``"s"`` is small, ``"l"`` large, None the paper's base.
        normalization: ``"batch"`` as in the paper, or ``"group"``, which does not depend on the size of the batch.
        num_dims: 2 or 3 spatial axes.

    Returns:
        The network: images ``(B, in_channels, *spatial)``, each axis a multiple of 16, to logits
        ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there is no such variant or normalisation.
    """
    norms: dict[Normalization, Norm] = {
        "batch": BatchNormOfAnySize if num_dims == 2 else BatchNormOfAnySize3d,
        "group": functools.partial(nn.GroupNorm, NUM_GROUPS),
    }
    if variant not in ARCHITECTURES:
        raise SettingsError(f"variant must be 's', 'l', or None for the base variant; got {variant!r}")
    if normalization not in norms:
        raise SettingsError(f"normalization must be 'batch' or 'group', got {normalization!r}")
    layers = Layers(num_dims=num_dims, norm=norms[normalization])
    return CMUNeXt(in_channels, out_channels, architecture=ARCHITECTURES[variant], layers=layers)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """What a network is made of, in 2-D or 3-D.

    Attributes:
        num_dims: 2 or 3 spatial axes.
        norm: Builds the normalisation of so many channels.
    """

    num_dims: int
    norm: Norm

    def conv(self, *arguments: Any, **options: Any) -> nn.Conv2d | nn.Conv3d:
        """Build a convolution, with the arguments of PyTorch's."""
        return (nn.Conv2d if self.num_dims == 2 else nn.Conv3d)(*arguments, **options)

    def convolved(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """Convolve, normalise, then activate."""
        conv = self.conv(in_channels, out_channels, 3, padding=1)
        return nn.Sequential(conv, self.norm(out_channels), nn.ReLU(inplace=True))

    def activated(self, *arguments: Any, **options: Any) -> nn.Sequential:
        """Convolve, activate, then normalise, in the order of the paper."""
        convolution = self.conv(*arguments, **options)
        return nn.Sequential(convolution, nn.GELU(), self.norm(convolution.out_channels))

    def bottleneck(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """Widen and narrow again, voxel by voxel: an inverted bottleneck."""
        hidden = EXPANSION * out_channels
        return nn.Sequential(self.activated(in_channels, hidden, 1), self.activated(hidden, out_channels, 1))


class CMUNeXt(nn.Module):
    """The network of an architecture: encoder, decoder with fused skip connections, a pointwise head.

    Args:
        in_channels: Channels of the image.
        out_channels: Logits a pixel.
        architecture: Its stages.
        layers: What it is made of.
    """

    def __init__(self, in_channels: int, out_channels: int, *, architecture: Architecture, layers: Layers) -> None:
        super().__init__()
        finest = architecture.channels[0]
        self.stem = layers.convolved(in_channels, finest)
        self.pool = F.max_pool2d if layers.num_dims == 2 else F.max_pool3d
        widths = itertools.pairwise((finest, *architecture.channels))
        self.encoder = nn.ModuleList(
            _stage(*pair, depth=depth, kernel_size=kernel_size, layers=layers)
            for pair, depth, kernel_size in zip(widths, architecture.depths, architecture.kernel_sizes, strict=True)
        )
        self.decoder = nn.ModuleList(
            _SkipFusion(coarse, fine, layers) for coarse, fine in itertools.pairwise(reversed(architecture.channels))
        )
        self.head = layers.conv(finest, out_channels, 1)

    @override
    def forward(self, images: Tensor) -> Tensor:
        first, *lower = self.encoder
        levels = [first(self.stem(images))]
        for stage in lower:
            levels.append(stage(self.pool(levels[-1], 2)))
        features = levels.pop()
        for fuse in self.decoder:
            features = fuse(features, levels.pop())
        logits: Tensor = self.head(features)
        return logits


class _AnySize(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that also trains on a single value a channel, which has no variance: by what it has learned.

    A single picture left over for the last batch comes to that where the network has reduced it to one pixel; PyTorch's
    own layer raises there.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class BatchNormOfAnySize(_AnySize, nn.BatchNorm2d):
    """Batch normalisation of pictures that also trains on a single value a channel."""


class BatchNormOfAnySize3d(_AnySize, nn.BatchNorm3d):
    """Batch normalisation of volumes that also trains on a single value a channel."""


class _Mixer(nn.Module):
    """Mixes space within each channel, which is added to the input, then channels within each voxel."""

    def __init__(self, channels: int, kernel_size: int, layers: Layers) -> None:
        super().__init__()
        self.space = layers.activated(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.channels = layers.bottleneck(channels, channels)

    @override
    def forward(self, features: Tensor) -> Tensor:
        mixed: Tensor = self.channels(features + self.space(features))
        return mixed


class _SkipFusion(nn.Module):
    """Brings coarse features to the next finer level and fuses them with the encoder's features there."""

    def __init__(self, coarse: int, fine: int, layers: Layers) -> None:
        super().__init__()
        upsample = nn.Upsample(scale_factor=2, mode="bilinear" if layers.num_dims == 2 else "trilinear")
        self.upward = nn.Sequential(upsample, layers.convolved(coarse, fine))
        self.fusion = nn.Sequential(
            layers.activated(2 * fine, 2 * fine, 3, padding=1, groups=2), layers.bottleneck(2 * fine, fine)
        )

    @override
    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        fused: Tensor = self.fusion(torch.cat((skip, self.upward(coarse)), dim=1))
        return fused


def _stage(in_channels: int, out_channels: int, *, depth: int, kernel_size: int, layers: Layers) -> nn.Sequential:
    mixers = (_Mixer(in_channels, kernel_size, layers) for _ in range(depth))
    return nn.Sequential(*mixers, layers.convolved(in_channels, out_channels))


class CMUNeXtTrainer(BundleTrainer):
    """Trains a CMUNeXt on pictures or volumes, by SGD with momentum and a polynomial decay.

    Attributes:
        variant: ``"s"`` is small, ``"l"`` large, None the paper's base.
        size: ``"S"``, ``"B"`` or ``"L"``, other names of the variants; None for that of ``variant``.
        normalization: ``"batch"`` or ``"group"``; None for batch normalisation where the loader's batches are larger
            than one, and group normalisation where they are not, or where it cannot be known.
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
    """Predicts with a trained CMUNeXt, from its experiment folder alone."""


BUNDLE = Bundle(name="cmunext", build_network=build_cmunext, trainer=CMUNeXtTrainer, predictor=CMUNeXtPredictor)
