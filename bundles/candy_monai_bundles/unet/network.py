"""How the U-Net is laid out and built: MONAI's DynUNet, the plain network of nnU-Net. Holds no weights."""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import DynUNet
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.errors import SettingsError

DEFAULT_FILTERS = {2: (32, 64, 128, 256, 512), 3: (32, 64, 128, 256, 320)}
MIN_LEVELS = 3
SMALLEST_AXIS = 4
"""No axis is halved below this many voxels: instance normalisation needs something to average over."""


class SupervisedDynUNet(DynUNet):
    """MONAI's DynUNet, whose lower levels' logits come at their own resolution in training mode.

    MONAI brings them to the full one, so that each level costs the loss as much as the finest: a tenth of a step of 16
    slices of 160 x 160 on a CPU. Here the labels are brought down instead, as in nnU-Net.
    """

    @override
    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the logits; in training mode with deep supervision a list of them, the finest first."""
        if not (self.training and self.deep_supervision):
            logits: Tensor = super().forward(x)
            return logits
        finest = self.output_block(self.skip_layers(x))
        return [finest, *self.heads]


def build_unet(
    *,
    num_dims: int,
    in_channels: int,
    out_channels: int,
    filters: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    deep_supervision: bool = False,
) -> nn.Module:
    """Build a U-Net with instance normalisation and leaky ReLU.

    Args:
        num_dims: 2 or 3 spatial axes.
        in_channels: Channels of the image.
        out_channels: Logits a voxel.
        filters: Feature maps of each level, the finest first.
        kernel_sizes: Kernel of each level, one number an axis.
        strides: Stride into each level, one number an axis; the first is all ones.
        deep_supervision: In training mode return a list: the logits, and those of the lower levels at their own
            resolutions.

    Returns:
        The network: images ``(B, in_channels, *spatial)`` to logits ``(B, out_channels, *spatial)``.

    Raises:
        SettingsError: If there are fewer than three levels.

    Source:
        Isensee et al., nnU-Net, Nature Methods 18, 2021.
    """
    check_levels(filters)
    network: nn.Module = SupervisedDynUNet(
        spatial_dims=num_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[tuple(kernel) for kernel in kernel_sizes],
        strides=[tuple(stride) for stride in strides],
        upsample_kernel_size=[tuple(stride) for stride in strides[1:]],
        filters=list(filters),
        norm_name=("instance", {"affine": True}),
        deep_supervision=deep_supervision,
        deep_supr_num=max(1, len(filters) - 2),
    )
    return network


def check_levels(filters: Sequence[int]) -> None:
    """Check that there are as many levels as MONAI's network needs.

    Raises:
        SettingsError: If there are fewer.
    """
    if len(filters) < MIN_LEVELS:
        raise SettingsError(f"the U-Net has at least {MIN_LEVELS} levels, got {len(filters)} filters: {list(filters)}")


def default_strides(size: Sequence[int], max_levels: int) -> list[tuple[int, ...]]:
    """Return each level's stride for images of this size: halve every axis that stays large enough.

    Args:
        size: The image's spatial size.
        max_levels: Levels at most; there are at least three, as many as MONAI's network needs.
    """
    strides = [(1,) * len(size)]
    while len(strides) < max_levels:
        stride = tuple(2 if extent >= 2 * SMALLEST_AXIS else 1 for extent in size)
        if max(stride) == 1 and len(strides) >= MIN_LEVELS:
            break
        strides.append(stride)
        size = [extent // step for extent, step in zip(size, stride, strict=True)]
    return strides
