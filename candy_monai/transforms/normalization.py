"""Normalise each channel by its own scheme, optionally over the foreground."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_tensor
from torch import Tensor

SCHEMES = ("ct", "zscore", "nonorm", "rescale_to_0_1", "rgb_to_0_1")
"""The names of all schemes, from nnU-Net's dataset format."""

_SMALLEST_SCALE = 1e-8


class NormalizeForeground(Transform):
    """Normalise each channel by its own scheme, optionally with the statistics of the foreground.

    The foreground is where any channel differs from 0, with holes filled: it includes a dark ventricle in a
    skull-stripped brain. MONAI's ``NormalizeIntensity(nonzero=True)`` uses each channel's own non-zero voxels, which
    excludes holes and normalises a channel with blank regions differently from the others (a mean difference of 0.26 on
    prostate images, 18 to 45 % of whose box is blank); it has one scheme for all channels, and modifies its input.

    Args:
        channels: An entry per channel: ``{"scheme": "zscore", "nonzero_only": True}`` for mean 0 and standard deviation
            1, over the foreground only with ``nonzero_only``, outside of which the result is 0 (with ``"fill_holes":
            False`` holes are outside, too, if the first such channel sets it); ``{"scheme": "ct",
            "lower": ..., "upper": ..., "mean": ..., "std": ...}`` to clip and standardise by given numbers;
            ``rescale_to_0_1`` for the channel's range; ``rgb_to_0_1`` to divide by 255; ``nonorm``.

    Raises:
        ValueError: If an entry is not a mapping, or its scheme is unknown or lacks a number.
    """

    def __init__(self, channels: Sequence[Mapping[str, Any]]) -> None:
        for index, channel in enumerate(channels):
            if not isinstance(channel, Mapping):
                raise ValueError(
                    f'channel {index}: found {channel!r}, expected a mapping such as {{"scheme": "zscore"}}'
                )
            if channel.get("scheme") not in SCHEMES:
                raise ValueError(
                    f"channel {index}: unknown scheme {channel.get('scheme')!r}: expected one of {SCHEMES}"
                )
            missing = sorted({"lower", "upper", "mean", "std"} - set(channel)) if channel["scheme"] == "ct" else []
            if missing:
                raise ValueError(f"channel {index}: the scheme ct needs {', '.join(missing)}")
        self.channels = tuple(dict(channel) for channel in channels)

    def __call__(self, img: Any) -> Tensor:
        """Return a new float32 image ``(C, *spatial)``; the input is not modified.

        Raises:
            ValueError: If the number of channels differs.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        values = (img.as_tensor() if isinstance(img, MetaTensor) else img).float()
        if len(values) != len(self.channels):
            raise ValueError(f"found an image with {len(values)} channels, expected {len(self.channels)}")
        mask = None
        over_foreground = [channel for channel in self.channels if _over_foreground(channel)]
        if over_foreground:
            inside = (values != 0).any(0).cpu().numpy()
            if over_foreground[0].get("fill_holes", True):
                inside = np.asarray(scipy.ndimage.binary_fill_holes(inside))
            mask = torch.from_numpy(inside).to(values.device)
        result = torch.stack([_normalized(*each, mask) for each in zip(values, self.channels, strict=True)])
        return MetaTensor(result).copy_meta_from(img) if isinstance(img, MetaTensor) else result


class NormalizeForegroundd(MapTransform):
    """Dictionary form of `NormalizeForeground`."""

    def __init__(
        self, keys: KeysCollection, channels: Sequence[Mapping[str, Any]], *, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.normalizer = NormalizeForeground(channels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys normalised."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.normalizer(d[key])
        return d


def _over_foreground(channel: Mapping[str, Any]) -> bool:
    return channel["scheme"] == "zscore" and bool(channel.get("nonzero_only", False))


def _normalized(values: Tensor, how: Mapping[str, Any], mask: Tensor | None) -> Tensor:
    scheme = how["scheme"]
    if scheme == "ct":
        clipped = values.clamp(how["lower"], how["upper"])
        return clipped.sub_(how["mean"]).div_(max(how["std"], _SMALLEST_SCALE))
    if scheme == "zscore":
        return _standardized(values, mask if _over_foreground(how) else None)
    if scheme == "rescale_to_0_1":
        low, high = torch.aminmax(values)
        return (values - low).div_((high - low).clamp_min(_SMALLEST_SCALE))
    return values / 255.0 if scheme == "rgb_to_0_1" else values


def _standardized(values: Tensor, mask: Tensor | None) -> Tensor:
    """Normalize one channel to mean 0 and deviation 1 within the mask and to 0 outside; a constant one becomes 0."""
    inside = values if mask is None else values[mask]
    if not inside.numel():
        return torch.zeros_like(values)
    std, mean = torch.std_mean(inside, correction=0)
    result = (values - mean).div_(std.clamp_min(_SMALLEST_SCALE))
    return result if mask is None else result.masked_fill_(~mask, 0.0)
