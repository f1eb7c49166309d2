"""Random blur, low resolution and gamma for each channel independently."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.nn import functional as F

_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


class _RandByChannel(RandomizableTransform):
    """A change of each channel with its own random strength; ``channel_prob=None`` changes all without drawing."""

    def __init__(self, prob: float, strengths: Sequence[float], channel_prob: float | None) -> None:
        super().__init__(prob)
        self.strengths = (float(strengths[0]), float(strengths[1]))
        self.channel_prob = channel_prob
        self.drawn: tuple[float | None, ...] = ()

    def randomize(self, data: Any) -> None:
        """Draw whether to apply the change, and its strength for each channel of ``data``; None for no change."""
        super().randomize(None)
        self.drawn = tuple(self._strength() for _ in range(data))

    def _strength(self) -> float | None:
        if not self._do_transform or (self.channel_prob is not None and self.R.random_sample() >= self.channel_prob):
            return None
        return float(self.R.uniform(*self.strengths))

    def __call__(self, img: Any, randomize: bool = True) -> Tensor:
        """Return the image ``(C, *spatial)``, changed or unchanged.

        Args:
            img: The image.
            randomize: Whether to draw new parameters; else the last ones are used.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(len(img))
        if all(strength is None for strength in self.drawn):
            whole: Tensor = img
            return whole
        values = img.as_tensor() if isinstance(img, MetaTensor) else img
        values = values if values.is_floating_point() else values.float()
        channels = zip(values, self.drawn, strict=True)
        result = torch.stack([old if strength is None else self._changed(old, strength) for old, strength in channels])
        return MetaTensor(result).copy_meta_from(img) if isinstance(img, MetaTensor) else result

    @abstractmethod
    def _changed(self, values: Tensor, strength: float) -> Tensor:
        """Return one channel ``(*spatial)`` after the change."""


class _RandByChanneld(RandomizableTransform, MapTransform):
    """Dictionary form of a change by channel, the same for all keys."""

    array_form: Callable[..., _RandByChannel]

    def __init__(
        self, keys: KeysCollection, prob: float = 0.1, *, allow_missing_keys: bool = False, **options: Any
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        self.change = self.array_form(1.0, **options)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> Self:
        """Seed the transform, as MONAI's do."""
        super().set_random_state(seed, state)
        self.change.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys changed or unchanged."""
        d = dict(data)
        self.randomize(None)
        drawn_for = -1
        for key in self.key_iterator(d):
            d[key] = convert_to_tensor(d[key], track_meta=get_track_meta())
            if self._do_transform:
                d[key] = self.change(d[key], randomize=len(d[key]) != drawn_for)
                drawn_for = len(d[key])
        return d


class RandBlur(_RandByChannel):
    """Blur each channel, with its own probability, by a Gaussian of random width.

    MONAI's ``RandGaussianSmooth`` takes 113 ms for a patch of 128^3, this one 7: the kernel has few taps, which are
    added in place. The border is replicated and not padded with 0 as in MONAI, so that a constant is unchanged.

    Args:
        prob: Probability of applying the transform.
        sigma: Smallest and largest standard deviation in voxels. The kernel reaches three of the largest.
        channel_prob: Probability of each channel, if the transform is applied.
    """

    def __init__(self, prob: float = 0.1, *, sigma: Sequence[float] = (0.5, 1.0), channel_prob: float = 1.0) -> None:
        super().__init__(prob, sigma, channel_prob)

    def _changed(self, values: Tensor, strength: float) -> Tensor:
        radius = max(1, round(3 * self.strengths[1]))
        weights = np.exp([-0.5 * (offset / strength) ** 2 for offset in range(-radius, radius + 1)])
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


class RandBlurd(_RandByChanneld):
    """Dictionary form of `RandBlur`, with the same blur for all keys and the same options."""

    array_form = RandBlur


class RandLowResolution(_RandByChannel):
    """Simulate low resolution of each channel, optionally except along one axis: downsample, and interpolate back.

    With one channel and without the two options it is the same as MONAI's ``RandSimulateLowResolution``, which degrades
    all channels and axes alike; across thick slices that loses half of a volume's few slices.

    Args:
        prob: Probability of applying the transform.
        zoom_range: Smallest and largest share of the resolution that is kept.
        fixed_axis: The spatial axis whose resolution is kept.
        channel_prob: Probability of each channel, if the transform is applied.
    """

    def __init__(
        self,
        prob: float = 0.1,
        *,
        zoom_range: Sequence[float] = (0.5, 1.0),
        fixed_axis: int | None = None,
        channel_prob: float = 1.0,
    ) -> None:
        super().__init__(prob, zoom_range, channel_prob)
        self.fixed_axis = fixed_axis

    def _changed(self, values: Tensor, strength: float) -> Tensor:
        shape = values.shape
        small = [size if axis == self.fixed_axis else max(1, round(size * strength)) for axis, size in enumerate(shape)]
        coarse = F.interpolate(values[None, None], size=small, mode="nearest-exact")
        return F.interpolate(coarse, size=shape, mode=_LINEAR_MODES[values.ndim], align_corners=False)[0, 0]


class RandLowResolutiond(_RandByChanneld):
    """Dictionary form of `RandLowResolution`, with the same change for all keys and the same options."""

    array_form = RandLowResolution


class RandGamma(_RandByChannel):
    """Apply a random gamma to the intensities of each channel, and restore its mean and standard deviation.

    With one channel it is the same as MONAI's ``RandAdjustContrast`` with ``retain_stats``, which computes minimum,
    maximum, mean and standard deviation over all channels together and uses one power for all: the change of a darker
    channel then depends on a brighter one.

    Args:
        prob: Probability of applying the transform.
        gamma: Smallest and largest power.
        invert_image: Whether to transform the negative image instead.
    """

    def __init__(self, prob: float = 0.1, *, gamma: Sequence[float] = (0.7, 1.5), invert_image: bool = False) -> None:
        super().__init__(prob, gamma, None)
        self.invert_image = invert_image

    def _changed(self, values: Tensor, strength: float) -> Tensor:
        return _bent(values.neg(), strength).neg_() if self.invert_image else _bent(values, strength)


class RandGammad(_RandByChanneld):
    """Dictionary form of `RandGamma`, with the same change for all keys and the same options."""

    array_form = RandGamma


def _bent(values: Tensor, power: float) -> Tensor:
    low, high = torch.aminmax(values)
    mean, deviation = _mean_and_deviation(values)
    bent = ((values - low) / (high - low).clamp_min(1e-7)).pow_(power)
    new_mean, new_deviation = _mean_and_deviation(bent)
    return bent.sub_(new_mean).mul_(deviation / new_deviation.clamp_min(1e-7)).add_(mean)


def _mean_and_deviation(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return both from two passes, which takes a fifth of the time of ``torch.std_mean`` on a CPU."""
    mean = values.mean()
    return mean, torch.linalg.vector_norm(values - mean) / math.sqrt(values.numel())
