"""The default augmentation of training patches: nnU-Net's kinds, strengths and probabilities, image and label in step.

Images are interpolated linearly. Every random number comes from the generator that the caller passes. Owns no choice of
patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from candy_monai.aliases import Shape
from candy_monai.data.warping import displace, sampled, sampled_by_slice, sampling_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.data.planning import Plan

_POINTS = 4
_BLUR_RADIUS = 3  # three standard deviations of the strongest blur
_LONGISH = 1.5


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """The default augmentation. Each entry ``p_...`` is the probability of one change for a patch.

    Attributes:
        num_dims: Spatial axes, 2 or 3.
        mirror_axes: Spatial axes that may be flipped, each with probability 0.5.
        spacing_mm: Distance of voxels, so that rotations keep anatomy rigid; ``None`` where there is none.
        coarse_axis: An axis across thick slices; nothing is rotated, scaled or coarsened across it.
        max_rotation_deg: Largest angle about each axis.
        scale: Smallest and largest zoom out; below 1 zooms in.
        elastic: Largest displacement as a share of the distance of the points that are moved, four along each axis;
            below 0.5 nothing folds over.
        noise: Largest standard deviation of Gaussian noise.
        blur: Smallest and largest standard deviation in voxels, at most 1.
        brightness: Smallest and largest factor.
        contrast: Smallest and largest factor around the mean; the range is kept.
        resolution: Smallest and largest share of the resolution that is kept.
        gamma: Smallest and largest exponent on the range scaled to 0 .. 1; mean and deviation are kept.
        p_rotation: For rotation.
        p_scale: For scaling.
        p_elastic: For elastic deformation; off by default, as in nnU-Net.
        p_noise: For noise.
        p_blur: For blur; then each channel with 0.5.
        p_brightness: For brightness.
        p_contrast: For contrast.
        p_resolution: For low resolution; then each channel with 0.5.
        p_gamma: For gamma.
        p_inverted_gamma: For gamma on the inverted image.
    """

    num_dims: int
    mirror_axes: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] | None = None
    coarse_axis: int | None = None
    max_rotation_deg: float = 30.0
    scale: tuple[float, float] = (0.7, 1.4)
    elastic: float = 0.2
    noise: float = 0.1
    blur: tuple[float, float] = (0.5, 1.0)
    brightness: tuple[float, float] = (0.75, 1.25)
    contrast: tuple[float, float] = (0.75, 1.25)
    resolution: tuple[float, float] = (0.5, 1.0)
    gamma: tuple[float, float] = (0.7, 1.5)
    p_rotation: float = 0.2
    p_scale: float = 0.2
    p_elastic: float = 0.0
    p_noise: float = 0.1
    p_blur: float = 0.2
    p_brightness: float = 0.15
    p_contrast: float = 0.15
    p_resolution: float = 0.25
    p_gamma: float = 0.3
    p_inverted_gamma: float = 0.1

    @classmethod
    def for_plan(cls, plan: Plan) -> Augmentation:
        """Return the default augmentation of a plan: free rotation in a plane, unless the patch is long in it."""
        in_plane = [size for axis, size in enumerate(plan.patch_shape) if axis != plan.coarse_axis]
        full_turn = 15.0 if max(in_plane) > _LONGISH * min(in_plane) else 180.0
        return cls(
            num_dims=plan.num_dims,
            mirror_axes=plan.mirror_axes,
            spacing_mm=plan.spacing_mm,
            coarse_axis=plan.coarse_axis,
            max_rotation_deg=full_turn if len(in_plane) == 2 else 30.0,
        )

    def __call__(self, image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return a changed copy of a patch. What turns in from outside repeats the border.

        Args:
            image: ``(C, *spatial)`` float32.
            label: ``(1, *spatial)`` integer.
            rng: The source of every random number.
        """
        shape = tuple(image.shape[1:])
        matrix, displacement = self.draw_matrix(rng), self.draw_displacement(shape, rng)
        image, label = image.clone(), label.clone()
        if matrix is not None or displacement is not None:
            matrix = np.eye(self.num_dims) if matrix is None else matrix
            centre = [(size - 1) / 2 for size in shape]
            image, label = self.warp(image, label, matrix, centre, shape, displacement=displacement)
        image, label = self.mirror(image, label, rng)
        return self.change_intensities(image, rng), label

    def draw_matrix(self, rng: np.random.Generator) -> NDArray[np.float64] | None:
        """Draw rotation and scaling as one matrix, from offsets in the patch to offsets in the case, in voxels.

        Returns:
            ``(num_dims, num_dims)``, or ``None`` when neither was drawn.
        """
        rotate, scale = rng.random(2) < (self.p_rotation, self.p_scale)
        if not rotate and not scale:
            return None
        matrix = self._rotation(rng) if rotate else np.eye(self.num_dims)
        if scale:
            low, high = self.scale
            factor = rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)
            free = [axis for axis in range(self.num_dims) if axis != self.coarse_axis]
            matrix[free] *= factor
        return matrix

    def draw_displacement(self, shape: Shape, rng: np.random.Generator) -> Tensor | None:
        """Draw an elastic deformation: how far a coarse grid of points over the patch is moved, in voxels.

        Args:
            shape: The patch's shape.
            rng: The source of every random number; untouched where elastic deformation is switched off.

        Returns:
            ``(num_dims, *points)``, or ``None`` when none was drawn.
        """
        if not self.p_elastic or rng.random() >= self.p_elastic:
            return None
        points = [1 if axis == self.coarse_axis else _POINTS for axis in range(self.num_dims)]
        displacement = rng.uniform(-1.0, 1.0, (self.num_dims, *points)) * rng.uniform(0.0, self.elastic)
        steps = [0.0 if axis == self.coarse_axis else size / _POINTS for axis, size in enumerate(shape)]
        return torch.from_numpy(displacement * np.array(steps).reshape(-1, *[1] * self.num_dims)).float()

    def warp(
        self,
        image: Tensor,
        label: Tensor,
        matrix: NDArray[np.float64],
        centre: list[float],
        shape: Shape,
        *,
        displacement: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample a patch from a larger box, the image linearly and the label by nearest neighbour.

        Args:
            image: ``(C, *box)`` float32.
            label: ``(1, *box)`` integer.
            matrix: From ``draw_matrix``.
            centre: Where the patch's centre lies in the box, in voxels.
            shape: The patch's shape. Along a coarse axis it must be that of the box.
            displacement: From ``draw_displacement``.
        """
        if self.coarse_axis is None:
            grid = sampling_grid(matrix, centre, tuple(image.shape[1:]), shape)
            if displacement is not None:
                displace(grid, displacement, tuple(image.shape[1:]))
            return sampled(image, grid, "bilinear"), sampled(label, grid, "nearest")
        plane = [axis for axis in range(self.num_dims) if axis != self.coarse_axis]
        box = tuple(image.shape[axis + 1] for axis in plane)
        grid = sampling_grid(
            matrix[np.ix_(plane, plane)], [centre[axis] for axis in plane], box, tuple(shape[axis] for axis in plane)
        )
        if displacement is not None:
            displace(grid, displacement[plane].squeeze(self.coarse_axis + 1), box)
        return (
            sampled_by_slice(image, grid, "bilinear", self.coarse_axis),
            sampled_by_slice(label, grid, "nearest", self.coarse_axis),
        )

    def mirror(self, image: Tensor, label: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Flip image and label along the same randomly chosen axes."""
        chosen = [axis + 1 for axis in self.mirror_axes if rng.random() < 0.5]
        return (image.flip(chosen), label.flip(chosen)) if chosen else (image, label)

    def change_intensities(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Return an image with random changes that leave every voxel where it is.

        Args:
            image: ``(C, *spatial)`` float32. May share memory with the result.
            rng: The source of every random number.
        """
        (noise, blur, brightness, contrast, resolution, inverted, gamma) = rng.random(7) < (
            self.p_noise,
            self.p_blur,
            self.p_brightness,
            self.p_contrast,
            self.p_resolution,
            self.p_inverted_gamma,
            self.p_gamma,
        )
        if noise:
            values = rng.standard_normal(tuple(image.shape), dtype=np.float32)
            image = image + torch.from_numpy(values).mul_(rng.uniform(0.0, self.noise))
        if blur:
            image = self._some_channels(image, rng, lambda values: _blurred(values, rng.uniform(*self.blur)))
        if brightness:
            image = image * _per_channel(image, rng, self.brightness)
        if contrast:
            image = _with_contrast(image, _per_channel(image, rng, self.contrast))
        if resolution:
            image = self._some_channels(image, rng, lambda values: self._coarsened(values, rng))
        if inverted:
            image = -_with_gamma(-image, rng.uniform(*self.gamma))
        if gamma:
            image = _with_gamma(image, rng.uniform(*self.gamma))
        return image

    def _rotation(self, rng: np.random.Generator) -> NDArray[np.float64]:
        most = math.radians(self.max_rotation_deg)
        planes = [(0, 1)] if self.num_dims == 2 else [(0, 1), (0, 2), (1, 2)]
        if self.coarse_axis is not None:
            planes = [plane for plane in planes if self.coarse_axis not in plane]
        turned = np.eye(self.num_dims)
        for first, second in planes:
            angle = rng.uniform(-most, most)
            turn = np.eye(self.num_dims)
            turn[first, first] = turn[second, second] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            turned = turned @ turn
        spacing = np.array(self.spacing_mm or (1.0,) * self.num_dims)
        # From voxels to millimetres, turn, and back to voxels.
        matrix: NDArray[np.float64] = turned * spacing[None, :] / spacing[:, None]
        return matrix

    def _some_channels(self, image: Tensor, rng: np.random.Generator, change: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([change(values) if rng.random() < 0.5 else values for values in image])

    def _coarsened(self, values: Tensor, rng: np.random.Generator) -> Tensor:
        share = rng.uniform(*self.resolution)
        small = [
            size if axis == self.coarse_axis else max(1, round(size * share)) for axis, size in enumerate(values.shape)
        ]
        coarse = F.interpolate(values[None, None], size=small, mode="nearest-exact")
        mode = "trilinear" if self.num_dims == 3 else "bilinear"
        return F.interpolate(coarse, size=values.shape, mode=mode, align_corners=False)[0, 0]


def _blurred(values: Tensor, sigma: float) -> Tensor:
    offsets = range(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    weights = np.exp([-0.5 * (offset / sigma) ** 2 for offset in offsets])
    weights /= weights.sum()
    for axis, size in enumerate(values.shape):
        if size == 1:
            continue
        edges = [values.narrow(axis, end, 1).expand_as(values.narrow(axis, 0, 1)) for end in (0, size - 1)]
        padded = torch.cat([edges[0]] * _BLUR_RADIUS + [values] + [edges[1]] * _BLUR_RADIUS, dim=axis)
        blurred = padded.narrow(axis, 0, size) * float(weights[0])
        for shift in range(1, len(weights)):
            blurred.add_(padded.narrow(axis, shift, size), alpha=float(weights[shift]))
        values = blurred
    return values


def _with_contrast(image: Tensor, factor: Tensor) -> Tensor:
    flat = image.flatten(1)
    mean, low, high = (bound.view(-1, *[1] * (image.ndim - 1)) for bound in (flat.mean(1), flat.amin(1), flat.amax(1)))
    return ((image - mean) * factor + mean).clamp(low, high)


def _with_gamma(image: Tensor, exponent: float) -> Tensor:
    return torch.stack([_channel_with_gamma(values, exponent) for values in image])


def _channel_with_gamma(values: Tensor, exponent: float) -> Tensor:
    low, high = torch.aminmax(values)
    mean, deviation = _mean_and_deviation(values)
    curved = ((values - low) / (high - low).clamp_min(1e-7)).pow_(exponent)
    new_mean, new_deviation = _mean_and_deviation(curved)
    return curved.sub_(new_mean).mul_(deviation / new_deviation.clamp_min(1e-7)).add_(mean)


def _mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in two passes, which on a CPU takes a fifth of the time of ``torch.std_mean``."""
    mean = values.mean()
    return mean, torch.linalg.vector_norm(values - mean) / math.sqrt(values.numel())


def _per_channel(image: Tensor, rng: np.random.Generator, bounds: tuple[float, float]) -> Tensor:
    factors = torch.from_numpy(rng.uniform(*bounds, size=len(image)).astype(np.float32))
    return factors.view(-1, *[1] * (image.ndim - 1))
