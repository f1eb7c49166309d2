"""The geometry of a U-shaped network for a patch: strides and kernels of its levels, and their memory.

The pooling rule is that of nnU-Net (Isensee et al., Nature Methods 18, 2021): halve the axes that are still long, but a
coarse axis only once the spacing of the others is similar.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from candy_monai.aliases import Shape
from candy_monai.errors import SettingsError

_SHORTEST = 4
"""No axis is halved to fewer voxels than this, unless the requested depth requires it."""

_SHORTEST_ON_REQUEST = 2
_FEWEST_LEVELS = 3
"""The minimum for MONAI's DynUNet; levels for which the patch is too small do not halve it."""

_EVEN = 2.0
"""Axes count as equally spaced below this ratio of spacings."""

_KEPT_BOTH_WAYS = 10
_KEPT_AT_BOTTOM = 4
_PASSED_BACK = 4
_OF_OUTPUT = 5
_OF_COARSE_OUTPUT = 2
_BYTES_PER_WEIGHT = 20
_BYTES_PER_VALUE = 4


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Kernels and strides of each level, from the finest.

    Attributes:
        kernel_sizes: One kernel per level, with an entry per axis.
        strides: The stride of each level, applied on entry; the first level halves nothing.
    """

    kernel_sizes: tuple[Shape, ...]
    strides: tuple[Shape, ...]

    @property
    def divisor(self) -> Shape:
        """The divisor of each axis of a patch."""
        return tuple(math.prod(factors) for factors in zip(*self.strides, strict=True))

    def without_axis(self, axis: int) -> Topology:
        """Return the topology along the other axes."""
        return Topology(kernel_sizes=without_axis(self.kernel_sizes, axis), strides=without_axis(self.strides, axis))

    def with_flat_axis(self, axis: int) -> Topology:
        """Return the topology with an additional axis, along which kernels and strides are 1."""
        kernels, strides = (
            tuple((*level[:axis], 1, *level[axis:]) for level in levels) for levels in (self.kernel_sizes, self.strides)
        )
        return Topology(kernel_sizes=kernels, strides=strides)


def without_axis(value: Sequence[Any], axis: int) -> tuple[Any, ...]:
    """Return the numbers of the other axes, for each level if there are levels."""
    if value and isinstance(value[0], tuple):
        return tuple(without_axis(level, axis) for level in value)
    return (*value[:axis], *value[axis + 1 :])


def topology_of(patch_shape: Shape, spacing_mm: Sequence[float], *, max_levels: int) -> Topology:
    """Return the deepest topology for a patch, of at most ``max_levels``, and if these allow it of at least three.

    An axis of one voxel always has kernel 1 and stride 1. Any other axis has kernel 1 until its spacing is less than
    twice the finest one's, which grows as the fine axes are halved. Spacings are 1 without physical space.
    """
    return _descend(patch_shape, spacing_mm, max_levels, _SHORTEST)


def topology_with(patch_shape: Shape, spacing_mm: Sequence[float], *, num_levels: int) -> Topology | None:
    """Return a topology of exactly this many levels, or ``None`` if the patch is too small for it.

    If the usual depth is less, axes may shrink to two voxels.
    """
    for shortest in range(_SHORTEST, _SHORTEST_ON_REQUEST - 1, -1):
        topology = _descend(patch_shape, spacing_mm, num_levels, shortest)
        if len(topology.strides) == num_levels:
            return topology
    return None


def rounded_up(shape: Shape, divisor: Shape) -> Shape:
    """Return the smallest multiples of ``divisor`` that are not below ``shape``."""
    return tuple(-(-size // step) * step for size, step in zip(shape, divisor, strict=True))


def filters_of(num_levels: int, *, base: int, limit: int) -> tuple[int, ...]:
    """Return filters that double at each level up to a limit."""
    return tuple(min(base * 2**level, limit) for level in range(num_levels))


def training_bytes(
    patch_shape: Shape,
    topology: Topology,
    filters: Sequence[int],
    *,
    batch_size: int,
    num_inputs: int,
    num_outputs: int,
    deep_supervision: bool = False,
) -> int:
    """Compute the memory of the tensors in one training step, in bytes.

    The model: float32 throughout. For the backward pass a level of both encoder and decoder keeps 10 feature maps of
    its own width: the outputs of convolution and activation in two blocks each way, and the two concatenated maps. The
    lowest level keeps 4. An output of a coarser level needs 2 maps per class of that level's size: its logits and their
    gradients. In addition, the larger of two peaks counts: in the loss, 5 maps per class of the finest output; or, in
    the backward pass of the finest level, 4 maps of its width and the gradients of its output. A weight takes 20 bytes:
    value, gradient, two moments of the optimizer, average.

    ``benchmarks/training_memory.py`` compares it with the live tensors of a step: they differ by less than 1.3 % in
    U-Nets of 3 to 6 levels and 1 to 118 classes. Memory of libraries is not included: almost none on a CPU, the
    workspaces of cuDNN on a GPU. Mixed precision needs less.
    """
    size, num_voxels = patch_shape, math.prod(patch_shape)
    num_coarse = max(1, len(filters) - 2) if deep_supervision else 0
    kept = num_voxels * num_inputs
    weights = 0
    previous = num_inputs
    for level, (kernel, stride, width) in enumerate(zip(topology.kernel_sizes, topology.strides, filters, strict=True)):
        size = tuple(-(-side // step) for side, step in zip(size, stride, strict=True))
        is_bottom = level == len(filters) - 1
        kept += math.prod(size) * width * (_KEPT_AT_BOTTOM if is_bottom else _KEPT_BOTH_WAYS)
        if 0 < level <= num_coarse:
            kept += math.prod(size) * num_outputs * _OF_COARSE_OUTPUT
        weights += math.prod(kernel) * (previous * width + width * width * (1 if is_bottom else 4))
        weights += math.prod(stride) * previous * width
        previous = width
    passed_back = _PASSED_BACK * filters[0] + num_outputs
    values = kept + num_voxels * max(num_outputs * _OF_OUTPUT, passed_back)
    return values * batch_size * _BYTES_PER_VALUE + weights * _BYTES_PER_WEIGHT


def check_levels(filters: Sequence[int], kernel_sizes: Sequence[Shape], strides: Sequence[Shape]) -> None:
    """Refuse widths, kernels and strides with different numbers of levels.

    Raises:
        SettingsError: With these numbers.
    """
    counted = {"filters": len(filters), "kernel_sizes": len(kernel_sizes), "strides": len(strides)}
    if len(set(counted.values())) > 1:
        counts = ", ".join(f"{name} has {count}" for name, count in counted.items())
        raise SettingsError(f"every network level needs a width, a kernel and a stride, but {counts}")


def kernels_of(strides: Sequence[Shape], patch_shape: Shape, spacing_mm: Sequence[float]) -> tuple[Shape, ...]:
    """Return each level's kernel: 3 along an axis from the level on at which its spacing is like the finest, else 1."""
    real = [axis for axis, size in enumerate(patch_shape) if size > 1]
    spacing = list(spacing_mm)
    even: set[int] = set()
    kernels = []
    for stride in strides:
        spacing = [distance * step for distance, step in zip(spacing, stride, strict=True)]
        finest = min((spacing[axis] for axis in real), default=1.0)
        even |= {axis for axis in real if spacing[axis] < _EVEN * finest}
        kernels.append(tuple(3 if axis in even else 1 for axis in range(len(patch_shape))))
    return tuple(kernels)


def _descend(patch_shape: Shape, spacing_mm: Sequence[float], max_levels: int, shortest: int) -> Topology:
    sizes, spacing = list(patch_shape), list(spacing_mm)
    strides: list[Shape] = [(1,) * len(patch_shape)]
    while len(strides) < max_levels and (halved := _halved(sizes, spacing, shortest)):
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(sizes))))
        for axis in halved:
            sizes[axis] = -(-sizes[axis] // 2)
            spacing[axis] *= 2
    while len(strides) < min(_FEWEST_LEVELS, max_levels):
        strides.append((1,) * len(patch_shape))
    return Topology(kernel_sizes=kernels_of(strides, patch_shape, spacing_mm), strides=tuple(strides))


def _halved(sizes: Sequence[int], spacing: Sequence[float], shortest: int) -> list[int]:
    long = [axis for axis, size in enumerate(sizes) if size >= 2 * shortest]
    if not long:
        return []
    finest = min(spacing[axis] for axis in long)
    chosen = [axis for axis in long if spacing[axis] < _EVEN * finest]
    if len(chosen) == 1 and sizes[chosen[0]] < 3 * shortest:
        return []  # halving a single short axis would add no context
    return chosen
