"""How CMUNeXt is laid out and built: its three variants, and the network that MONAI's zoo lacks. Holds no weights.

Tang, Ding, Quan, Wang, Ning and Zhou, *CMUNeXt: An efficient medical image segmentation network based on large kernel
and skip fusion*, ISBI 2024, arXiv:2308.01239. A stage mixes space by a depthwise convolution of a large kernel, then
channels by two pointwise ones; every skip connection is fused by a convolution of two groups, one a source.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.errors import SettingsError

Variant = Literal["s", "l"] | None
Normalization = Literal["batch", "group"]
Norm = Callable[[int], nn.Module]

EXPANSION = 4
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
DIVISOR = 16
"""What height and width must be multiples of: five stages, halved between them."""


def build_cmunext(
    *, in_channels: int, out_channels: int, variant: Variant = None, normalization: Normalization = "batch"
) -> nn.Module:
    """Build a CMUNeXt.

    With three input channels and one output the base variant has 3 149 185 parameters, "s" 417 505 and "l" 8 286 721.
    The paper prints 3.14 million for the base, cut off where 3.15 would be rounded.

    Args:
        in_channels: Channels of the image.
        out_channels: Logits a pixel.
        variant: ``"s"`` is small, ``"l"`` large, None the paper's base.
        normalization: ``"batch"`` as in the paper, or ``"group"``, which does not depend on the size of the batch.

    Returns:
        The network: images ``(B, in_channels, H, W)``, H and W multiples of 16, to logits ``(B, out_channels, H, W)``.

    Raises:
        SettingsError: If there is no such variant or normalisation.
    """
    norms: dict[Normalization, Norm] = {
        "batch": BatchNormOfAnySize,
        "group": functools.partial(nn.GroupNorm, NUM_GROUPS),
    }
    if variant not in ARCHITECTURES:
        raise SettingsError(f"variant must be 's', 'l', or None for the base variant; got {variant!r}")
    if normalization not in norms:
        raise SettingsError(f"normalization must be 'batch' or 'group', got {normalization!r}")
    return CMUNeXt(in_channels, out_channels, architecture=ARCHITECTURES[variant], norm=norms[normalization])


class CMUNeXt(nn.Module):
    """The network of an architecture: encoder, decoder with fused skip connections, a pointwise head.

    Args:
        in_channels: Channels of the image.
        out_channels: Logits a pixel.
        architecture: Its stages.
        norm: Builds the normalisation of so many channels.
    """

    def __init__(self, in_channels: int, out_channels: int, *, architecture: Architecture, norm: Norm) -> None:
        super().__init__()
        finest = architecture.channels[0]
        self.stem = _convolved(in_channels, finest, norm)
        widths = itertools.pairwise((finest, *architecture.channels))
        self.encoder = nn.ModuleList(
            _stage(*pair, depth=depth, kernel_size=kernel_size, norm=norm)
            for pair, depth, kernel_size in zip(widths, architecture.depths, architecture.kernel_sizes, strict=True)
        )
        self.decoder = nn.ModuleList(
            _SkipFusion(coarse, fine, norm) for coarse, fine in itertools.pairwise(reversed(architecture.channels))
        )
        self.head = nn.Conv2d(finest, out_channels, 1)

    @override
    def forward(self, images: Tensor) -> Tensor:
        first, *lower = self.encoder
        levels = [first(self.stem(images))]
        for stage in lower:
            levels.append(stage(F.max_pool2d(levels[-1], 2)))
        features = levels.pop()
        for fuse in self.decoder:
            features = fuse(features, levels.pop())
        logits: Tensor = self.head(features)
        return logits


class BatchNormOfAnySize(nn.BatchNorm2d):
    """Batch normalisation that also trains on a single value a channel, which has no variance: by what it has learned.

    A single picture left over for the last batch comes to that where the network has reduced it to one pixel; PyTorch's
    own layer raises there.
    """

    @override
    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class _Mixer(nn.Module):
    """Mixes space within each channel, which is added to the input, then channels within each pixel."""

    def __init__(self, channels: int, kernel_size: int, norm: Norm) -> None:
        super().__init__()
        self.space = _activated(
            nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels), norm
        )
        self.channels = _bottleneck(channels, channels, norm)

    @override
    def forward(self, features: Tensor) -> Tensor:
        mixed: Tensor = self.channels(features + self.space(features))
        return mixed


class _SkipFusion(nn.Module):
    """Brings coarse features to the next finer level and fuses them with the encoder's features there."""

    def __init__(self, coarse: int, fine: int, norm: Norm) -> None:
        super().__init__()
        self.upward = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), _convolved(coarse, fine, norm))
        self.fusion = nn.Sequential(
            _activated(nn.Conv2d(2 * fine, 2 * fine, 3, padding=1, groups=2), norm), _bottleneck(2 * fine, fine, norm)
        )

    @override
    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        fused: Tensor = self.fusion(torch.cat((skip, self.upward(coarse)), dim=1))
        return fused


def _stage(in_channels: int, out_channels: int, *, depth: int, kernel_size: int, norm: Norm) -> nn.Sequential:
    mixers = (_Mixer(in_channels, kernel_size, norm) for _ in range(depth))
    return nn.Sequential(*mixers, _convolved(in_channels, out_channels, norm))


def _convolved(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1), norm(out_channels), nn.ReLU(inplace=True))


def _bottleneck(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    """Widen and narrow again, pixel by pixel: an inverted bottleneck."""
    hidden = EXPANSION * out_channels
    return nn.Sequential(
        _activated(nn.Conv2d(in_channels, hidden, 1), norm), _activated(nn.Conv2d(hidden, out_channels, 1), norm)
    )


def _activated(convolution: nn.Conv2d, norm: Norm) -> nn.Sequential:
    """Activate, then normalise, in the order of the paper."""
    return nn.Sequential(convolution, nn.GELU(), norm(convolution.out_channels))
