"""Choose patch, depth, width and batch size of a network together, within a given memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from candy_monai.aliases import Shape
from candy_monai.data.planning.entries import Overrides
from candy_monai.data.planning.grid import median_of_shapes
from candy_monai.data.planning.topology import (
    Topology,
    check_levels,
    filters_of,
    kernels_of,
    rounded_up,
    topology_of,
    topology_with,
    training_bytes,
    without_axis,
)
from candy_monai.errors import SettingsError

LIGHT_BELOW_BYTES = 4 << 30
"""A memory below this means a CPU or a small GPU, and a network that starts at 16 filters instead of 32."""

_LIGHT_VOXELS_PER_STEP = 400_000
_LIGHT_VOXELS_PER_SLICE = 160 * 160
"""A step on a CPU has many small slices rather than few large ones: a third into ten minutes of ACDC, 16 of 160 x 160
per step had reached a Dice of 0.877 on ten training cases, 6 of 192 x 256 per step one of 0.807."""
_LARGEST_SHARE_OF_DATASET = 0.05  # a larger batch would hardly be random
_SMALLEST_BATCH = 2
_LARGEST_BATCH = {2: 32, 3: 16}
_LONGEST_SIDE = {2: 2048, 3: 256}
_SHORTEST_SIDE = 8
_ALONG_AXES = ("patch_shape", "kernel_sizes", "strides")


@dataclass(frozen=True, kw_only=True)
class FittedNetwork:
    """A network for a patch shape: the width of each level, and the number of patches in a step."""

    patch_shape: Shape
    batch_size: int
    filters: tuple[int, ...]
    topology: Topology


@dataclass(frozen=True, kw_only=True)
class _Search:
    spacing_mm: Sequence[float]
    num_inputs: int
    num_outputs: int
    light: bool
    overrides: Overrides

    def network(self, patch: Shape, batch_size: int) -> FittedNetwork:
        """Return the network for a patch, which is rounded up to a multiple of the network's divisor."""
        topology = self._topology(patch)
        base, limit = (16, 256) if self.light else (32, 320 if len(patch) == 3 else 512)
        filters = self.overrides.get("filters", filters_of(len(topology.strides), base=base, limit=limit))
        check_levels(filters, topology.kernel_sizes, topology.strides)
        rounded = patch if "patch_shape" in self.overrides else rounded_up(patch, topology.divisor)
        return FittedNetwork(patch_shape=rounded, batch_size=batch_size, filters=filters, topology=topology)

    def cost(self, network: FittedNetwork, batch_size: int) -> int:
        return training_bytes(
            network.patch_shape,
            network.topology,
            network.filters,
            batch_size=batch_size,
            num_inputs=self.num_inputs,
            num_outputs=self.num_outputs,
            deep_supervision=self.overrides.get("deep_supervision", supervises_deeply(network.filters)),
        )

    def _topology(self, patch: Shape) -> Topology:
        strides, kernels = self.overrides.get("strides"), self.overrides.get("kernel_sizes")
        if strides is None:
            topology = self._pooled(patch, self.overrides.get("filters") or kernels)
            return Topology(kernel_sizes=kernels or topology.kernel_sizes, strides=topology.strides)
        return Topology(kernel_sizes=kernels or kernels_of(strides, patch, self.spacing_mm), strides=strides)

    def _pooled(self, patch: Shape, by_level: Sequence[object] | None) -> Topology:
        if by_level is None:
            return topology_of(patch, self.spacing_mm, max_levels=6 if self.light else 8)
        topology = topology_with(patch, self.spacing_mm, num_levels=len(by_level))
        if topology is None:
            raise SettingsError(
                f"{len(by_level)} network levels were asked for, but a patch of {'x'.join(map(str, patch))} cannot be "
                "halved that often: set fewer filters, or a larger patch_shape"
            )
        return topology


def supervises_deeply(filters: Sequence[int]) -> bool:
    """Return whether the network also has outputs at coarser levels in training."""
    return len(filters) > 2


def fit_network(
    shapes: Sequence[Shape],
    spacing_mm: Sequence[float],
    *,
    num_inputs: int,
    num_outputs: int,
    memory_bytes: int,
    overrides: Overrides,
    most_voxels: float = math.inf,
) -> FittedNetwork:
    """Return the largest patch, then the largest batch, whose training step fits into a memory.

    Shapes are those of the cases after resampling; spacings are 1 without physical space. A patch has at most
    ``most_voxels``, as far as its axes can be reduced.

    Raises:
        SettingsError: If an override cannot be satisfied.
    """
    search = _Search(
        spacing_mm=spacing_mm,
        num_inputs=num_inputs,
        num_outputs=num_outputs,
        light=memory_bytes < LIGHT_BELOW_BYTES,
        overrides=overrides,
    )
    median = median_of_shapes(shapes)
    least = overrides.get("batch_size", _SMALLEST_BATCH)
    start = overrides.get("patch_shape", _largest_patch(median, spacing_mm))
    network = search.network(start, least)
    while "patch_shape" not in overrides and (
        search.cost(network, least) > memory_bytes or math.prod(network.patch_shape) > most_voxels
    ):
        smaller = _smaller(search, network, median)
        if smaller is None:
            break
        network = smaller
    if "batch_size" in overrides:
        return network
    most = _largest_batch(network.patch_shape, shapes, light=search.light)
    fitting = [size for size in range(most, least, -1) if search.cost(network, size) <= memory_bytes]
    return dataclasses.replace(network, batch_size=fitting[0] if fitting else least)


def fit_slice_network(
    axis: int,
    shapes: Sequence[Shape],
    spacing_mm: Sequence[float],
    *,
    memory_bytes: int,
    overrides: Overrides,
    **options: int,
) -> FittedNetwork:
    """Return the result of `fit_network` for a 2-D network on slices of volumes across ``axis``.

    Shapes, spacing and overrides have three axes, and so has the network, which is flat across the slices.
    """
    flat = {name: without_axis(value, axis) if name in _ALONG_AXES else value for name, value in overrides.items()}
    slices = [without_axis(shape, axis) for shape in shapes for _ in range(shape[axis])]
    network = fit_network(
        slices,
        without_axis(spacing_mm, axis),
        memory_bytes=memory_bytes,
        overrides=flat,
        most_voxels=_LIGHT_VOXELS_PER_SLICE if memory_bytes < LIGHT_BELOW_BYTES else math.inf,
        **options,
    )
    return dataclasses.replace(
        network,
        patch_shape=(*network.patch_shape[:axis], 1, *network.patch_shape[axis:]),
        topology=network.topology.with_flat_axis(axis),
    )


def _largest_patch(median: Shape, spacing_mm: Sequence[float]) -> Shape:
    """Return the median shape, cropped to a cube in space (a square for pictures) of sufficient size."""
    side_mm = _LONGEST_SIDE[len(median)] * math.prod(spacing_mm) ** (1 / len(median))
    return tuple(min(size, max(1, round(side_mm / step))) for size, step in zip(median, spacing_mm, strict=True))


def _smaller(search: _Search, network: FittedNetwork, median: Shape) -> FittedNetwork | None:
    """Shorten the axis that covers the largest share of the cases; ``None`` if no axis can be shortened."""
    patch, divisor = network.patch_shape, network.topology.divisor
    for axis in sorted(range(len(patch)), key=lambda axis: -patch[axis] / median[axis]):
        shorter = patch[axis] - divisor[axis]
        if shorter < _SHORTEST_SIDE:
            continue
        try:
            smaller = search.network((*patch[:axis], shorter, *patch[axis + 1 :]), network.batch_size)
        except SettingsError:  # the user's number of levels needs this axis
            continue
        if math.prod(smaller.patch_shape) < math.prod(patch):
            return smaller
    return None


def _largest_batch(patch: Shape, shapes: Sequence[Shape], *, light: bool) -> int:
    voxels = math.prod(patch)
    share = int(_LARGEST_SHARE_OF_DATASET * sum(math.prod(shape) for shape in shapes) / voxels)
    most = min(share, _LARGEST_BATCH[len(patch)])
    return max(_SMALLEST_BATCH, min(most, _LIGHT_VOXELS_PER_STEP // voxels) if light else most)
