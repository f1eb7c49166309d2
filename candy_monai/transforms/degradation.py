"""Random blur, low resolution and gamma, each channel by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn import functional as F

_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class RandBlur(RandomizableTransform):
    """Blur each channel, with a probability of its own, by a Gaussian of random width.

    MONAI's ``RandGaussianSmooth`` takes 113 ms for a patch of 128^3, this one 7: the kernel has few taps, which are
    added up in place. Beyond the border the outermost voxel is repeated, where MONAI's takes 0, so a constant stays.

    Args:
        prob: Probability of any blur.
        sigma: Smallest and largest standard deviation in voxels. The kernel reaches three of the largest.
        channel_prob: Probability of each channel's, when there is any.
    """

    def __init__(self, prob: float = 0.1, *, sigma: Sequence[float] = (0.5, 1.0), channel_prob: float = 1.0) -> None:
        super().__init__(prob)
        self.sigma = (float(sigma[0]), float(sigma[1]))
        self.channel_prob = channel_prob
        self.sigmas: tuple[float | None, ...] = ()

    def randomize(self, data: Any) -> None:
        """Draw whether there is any blur and how wide each of ``data`` channels'; None for one that stays."""
        super().randomize(None)
        if not self._do_transform:
            self.sigmas = (None,) * data
            return
        self.sigmas = tuple(
            self.R.uniform(*self.sigma) if self.R.random_sample() < self.channel_prob else None for _ in range(data)
        )

    def __call__(self, img: Any, randomize: bool = True) -> Tensor:
        """Return the image ``(C, *spatial)``, blurred or as it was.

        Args:
            img: The image.
            randomize: Draw anew; else as the last time.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(len(img))
        radius = max(1, round(3 * self.sigma[1]))
        return _by_channel(img, self.sigmas, lambda values, sigma: _blurred(values, sigma, radius))


class RandBlurd(RandomizableTransform, MapTransform):
    """Dictionary form of `RandBlur`: all keys are blurred alike.

    Args:
        keys: The images.
        prob: Probability of any blur.
        sigma: Smallest and largest standard deviation in voxels.
        channel_prob: Probability of each channel's, when there is any.
        allow_missing_keys: Whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        *,
        sigma: Sequence[float] = (0.5, 1.0),
        channel_prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.blur = RandBlur(1.0, sigma=sigma, channel_prob=channel_prob)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandBlurd:
        """Seed the transform, as MONAI's do."""
        super().set_random_state(seed, state)
        self.blur.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys blurred, or as they were."""
        return _changed(self, self.blur, data)


class RandLowResolution(RandomizableTransform):
    """Simulate low resolution of each channel, with one axis spared: sample more coarsely, and interpolate back.

    MONAI's ``RandSimulateLowResolution``, which this one equals for one channel without the two options, coarsens every
    channel alike, and every axis: across thick slices that throws half of a volume's few slices away.

    Args:
        prob: Probability of any change.
        zoom_range: Smallest and largest share of the resolution that is kept.
        fixed_axis: The spatial axis to spare.
        channel_prob: Probability of each channel's, when there is any.
    """

    def __init__(
        self,
        prob: float = 0.1,
        *,
        zoom_range: Sequence[float] = (0.5, 1.0),
        fixed_axis: int | None = None,
        channel_prob: float = 1.0,
    ) -> None:
        super().__init__(prob)
        self.zoom_range = (float(zoom_range[0]), float(zoom_range[1]))
        self.fixed_axis = fixed_axis
        self.channel_prob = channel_prob
        self.zooms: tuple[float | None, ...] = ()

    def randomize(self, data: Any) -> None:
        """Draw whether there is any change and what each of ``data`` channels keeps; None for one that stays."""
        super().randomize(None)
        if not self._do_transform:
            self.zooms = (None,) * data
            return
        self.zooms = tuple(
            self.R.uniform(*self.zoom_range) if self.R.random_sample() < self.channel_prob else None
            for _ in range(data)
        )

    def __call__(self, img: Any, randomize: bool = True) -> Tensor:
        """Return the image ``(C, *spatial)``, coarsened or as it was.

        Args:
            img: The image.
            randomize: Draw anew; else as the last time.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(len(img))
        return _by_channel(img, self.zooms, lambda values, zoom: _coarsened(values, zoom, self.fixed_axis))


class RandLowResolutiond(RandomizableTransform, MapTransform):
    """Dictionary form of `RandLowResolution`: all keys are coarsened alike.

    Args:
        keys: The images.
        prob: Probability of any change.
        zoom_range: Smallest and largest share of the resolution that is kept.
        fixed_axis: The spatial axis to spare.
        channel_prob: Probability of each channel's, when there is any.
        allow_missing_keys: Whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        *,
        zoom_range: Sequence[float] = (0.5, 1.0),
        fixed_axis: int | None = None,
        channel_prob: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.coarsen = RandLowResolution(1.0, zoom_range=zoom_range, fixed_axis=fixed_axis, channel_prob=channel_prob)

    def set_random_state(
        self, seed: int | None = None, state: np.random.RandomState | None = None
    ) -> RandLowResolutiond:
        """Seed the transform, as MONAI's do."""
        super().set_random_state(seed, state)
        self.coarsen.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys coarsened, or as they were."""
        return _changed(self, self.coarsen, data)


class RandGamma(RandomizableTransform):
    """Bend the intensities of each channel by a random power, and keep its mean and deviation.

    MONAI's ``RandAdjustContrast`` with ``retain_stats``, which this one equals for one channel, takes least, greatest,
    mean and deviation over all channels together and one power for all: where one channel is brighter than another,
    what happens to the darker one depends on the brighter one.

    Args:
        prob: Probability of any change.
        gamma: Smallest and largest power.
        invert_image: Whether to bend the negative instead.
    """

    def __init__(self, prob: float = 0.1, *, gamma: Sequence[float] = (0.7, 1.5), invert_image: bool = False) -> None:
        super().__init__(prob)
        self.gamma = (float(gamma[0]), float(gamma[1]))
        self.invert_image = invert_image
        self.powers: tuple[float | None, ...] = ()

    def randomize(self, data: Any) -> None:
        """Draw whether there is any change, and the power of each of ``data`` channels."""
        super().randomize(None)
        self.powers = tuple(self.R.uniform(*self.gamma) if self._do_transform else None for _ in range(data))

    def __call__(self, img: Any, randomize: bool = True) -> Tensor:
        """Return the image ``(C, *spatial)``, bent or as it was.

        Args:
            img: The image.
            randomize: Draw anew; else as the last time.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(len(img))
        return _by_channel(img, self.powers, self._bent)

    def _bent(self, values: Tensor, power: float) -> Tensor:
        return _bent(values.neg(), power).neg_() if self.invert_image else _bent(values, power)


class RandGammad(RandomizableTransform, MapTransform):
    """Dictionary form of `RandGamma`: all keys are bent alike.

    Args:
        keys: The images.
        prob: Probability of any change.
        gamma: Smallest and largest power.
        invert_image: Whether to bend the negative instead.
        allow_missing_keys: Whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.1,
        *,
        gamma: Sequence[float] = (0.7, 1.5),
        invert_image: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.bend = RandGamma(1.0, gamma=gamma, invert_image=invert_image)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandGammad:
        """Seed the transform, as MONAI's do."""
        super().set_random_state(seed, state)
        self.bend.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys bent, or as they were."""
        return _changed(self, self.bend, data)


def _changed(
    transform: RandBlurd | RandGammad | RandLowResolutiond,
    change: RandBlur | RandGamma | RandLowResolution,
    data: Mapping[Hashable, Any],
) -> dict[Hashable, Any]:
    """Draw once, and change all keys alike."""
    d = dict(data)
    transform.randomize(None)
    drawn_for = -1
    for key in transform.key_iterator(d):
        d[key] = convert_to_tensor(d[key], track_meta=get_track_meta())
        if transform._do_transform:
            d[key] = change(d[key], randomize=len(d[key]) != drawn_for)
            drawn_for = len(d[key])
    return d


def _by_channel(img: Tensor, drawn: Sequence[float | None], change: Callable[[Tensor, float], Tensor]) -> Tensor:
    if all(strength is None for strength in drawn):
        return img
    values = img.as_tensor() if isinstance(img, MetaTensor) else img
    if not values.is_floating_point():
        values = values.float()
    result = torch.stack(
        [
            channel if strength is None else change(channel, strength)
            for channel, strength in zip(values, drawn, strict=True)
        ]
    )
    return MetaTensor(result).copy_meta_from(img) if isinstance(img, MetaTensor) else result


def _blurred(values: Tensor, sigma: float, radius: int) -> Tensor:
    weights = np.exp([-0.5 * (offset / sigma) ** 2 for offset in range(-radius, radius + 1)])
    weights /= weights.sum()
    for axis, size in enumerate(values.shape):
        if size == 1:
            continue
        edges = [values.narrow(axis, end, 1).expand_as(values.narrow(axis, 0, 1)) for end in (0, size - 1)]
        padded = torch.cat([edges[0]] * radius + [values] + [edges[1]] * radius, dim=axis)
        blurred = padded.narrow(axis, 0, size) * float(weights[0])
        for shift in range(1, len(weights)):
            blurred.add_(padded.narrow(axis, shift, size), alpha=float(weights[shift]))
        values = blurred
    return values


def _coarsened(values: Tensor, zoom: float, fixed_axis: int | None) -> Tensor:
    small = [size if axis == fixed_axis else max(1, round(size * zoom)) for axis, size in enumerate(values.shape)]
    coarse = F.interpolate(values[None, None], size=small, mode="nearest-exact")
    mode = _LINEAR_MODES[values.ndim]
    return F.interpolate(coarse, size=values.shape, mode=mode, align_corners=False)[0, 0]


def _bent(values: Tensor, power: float) -> Tensor:
    low, high = torch.aminmax(values)
    mean, deviation = _mean_and_deviation(values)
    bent = ((values - low) / (high - low).clamp_min(1e-7)).pow_(power)
    new_mean, new_deviation = _mean_and_deviation(bent)
    return bent.sub_(new_mean).mul_(deviation / new_deviation.clamp_min(1e-7)).add_(mean)


def _mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in two passes, which on a CPU takes a fifth of the time of ``torch.std_mean``."""
    mean = values.mean()
    return mean, torch.linalg.vector_norm(values - mean) / math.sqrt(values.numel())
