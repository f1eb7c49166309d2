"""CMUNeXt: encoder, decoder with fused skip connections, a pointwise head."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Normalization = Literal["batch", "group"]
Norm = Callable[[int], nn.Module]

EXPANSION = 4
NUM_GROUPS = 4
"""Number of groups of group normalisation, so that each has two channels even in the narrowest layer, which has 8."""


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of a network, in 2-D or 3-D."""

    num_dims: int  # 2 or 3 spatial axes
    norm: Norm  # builds the normalisation for a number of channels

    def conv(self, *arguments: Any, **options: Any) -> nn.Conv2d | nn.Conv3d:
        """Build a convolution, with the arguments of PyTorch's class."""
        return (nn.Conv2d if self.num_dims == 2 else nn.Conv3d)(*arguments, **options)

    def convolved(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """Build a block that convolves, normalises, then activates."""
        conv = self.conv(in_channels, out_channels, 3, padding=1)
        return nn.Sequential(conv, self.norm(out_channels), nn.ReLU(inplace=True))

    def activated(self, *arguments: Any, **options: Any) -> nn.Sequential:
        """Build a block that convolves, activates, then normalises, in the order of the paper."""
        convolution = self.conv(*arguments, **options)
        return nn.Sequential(convolution, nn.GELU(), self.norm(convolution.out_channels))

    def bottleneck(self, in_channels: int, out_channels: int) -> nn.Sequential:
        """Build an inverted bottleneck, which widens and narrows the channels of each voxel."""
        hidden = EXPANSION * out_channels
        return nn.Sequential(self.activated(in_channels, hidden, 1), self.activated(hidden, out_channels, 1))


class CMUNeXt(nn.Module):
    """The network; its stages are given from the finest on.

    Args:
        in_channels: Number of channels of the image.
        out_channels: Number of logits per pixel.
        channels: Number of feature maps of each stage.
        depths: Number of mixing blocks of each stage.
        kernel_sizes: Side of the depthwise kernel of each stage, odd.
        normalization: ``"batch"`` or ``"group"``.
        spatial_dims: 2 or 3 spatial axes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        kernel_sizes: Sequence[int],
        normalization: Normalization = "batch",
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        norms: dict[Normalization, Norm] = {
            "batch": BatchNormOfAnySize if spatial_dims == 2 else BatchNormOfAnySize3d,
            "group": functools.partial(nn.GroupNorm, NUM_GROUPS),
        }
        layers = Layers(num_dims=spatial_dims, norm=norms[normalization])
        finest = channels[0]
        self.stem = layers.convolved(in_channels, finest)
        self.pool = F.max_pool2d if layers.num_dims == 2 else F.max_pool3d
        widths = itertools.pairwise((finest, *channels))
        self.encoder = nn.ModuleList(
            _stage(*pair, depth=depth, kernel_size=kernel_size, layers=layers)
            for pair, depth, kernel_size in zip(widths, depths, kernel_sizes, strict=True)
        )
        self.decoder = nn.ModuleList(
            _SkipFusion(coarse, fine, layers) for coarse, fine in itertools.pairwise(reversed(channels))
        )
        self.head = layers.conv(finest, out_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images ``(B, in_channels, *spatial)``."""
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
    """Batch normalisation that also trains on a single value per channel, which has no variance, by learned statistics.

    This case occurs if the last batch has a single picture and the network has reduced it to one pixel; PyTorch's own
    layer raises there.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as the base class calls it
        if self.training and input.numel() == self.num_features:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


class BatchNormOfAnySize(_AnySize, nn.BatchNorm2d):
    """Batch normalisation of pictures that also trains on a single value per channel."""


class BatchNormOfAnySize3d(_AnySize, nn.BatchNorm3d):
    """Batch normalisation of volumes that also trains on a single value per channel."""


class _Mixer(nn.Module):
    """Mixes each channel spatially, adds the result to the input, then mixes the channels of each voxel."""

    def __init__(self, channels: int, kernel_size: int, layers: Layers) -> None:
        super().__init__()
        self.space = layers.activated(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.channels = layers.bottleneck(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        mixed: Tensor = self.channels(features + self.space(features))
        return mixed


class _SkipFusion(nn.Module):
    """Upsamples coarse features to the next finer level and fuses them with the encoder's features there."""

    def __init__(self, coarse: int, fine: int, layers: Layers) -> None:
        super().__init__()
        upsample = nn.Upsample(scale_factor=2, mode="bilinear" if layers.num_dims == 2 else "trilinear")
        self.upward = nn.Sequential(upsample, layers.convolved(coarse, fine))
        self.fusion = nn.Sequential(
            layers.activated(2 * fine, 2 * fine, 3, padding=1, groups=2), layers.bottleneck(2 * fine, fine)
        )

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        fused: Tensor = self.fusion(torch.cat((skip, self.upward(coarse)), dim=1))
        return fused


def _stage(in_channels: int, out_channels: int, *, depth: int, kernel_size: int, layers: Layers) -> nn.Sequential:
    mixers = (_Mixer(in_channels, kernel_size, layers) for _ in range(depth))
    return nn.Sequential(*mixers, layers.convolved(in_channels, out_channels))
