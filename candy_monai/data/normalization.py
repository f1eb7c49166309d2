"""Bring intensities to a common scale: one pure function a scheme, and the choice of a scheme by a channel's name.

Owns the arithmetic and the names. Where the numbers of a scheme come from is decided by ``candy_monai.data.planning``.
The schemes and the names that select them are those of nnU-Net's dataset format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from candy_monai.errors import BadInputError, SettingsError, did_you_mean

if TYPE_CHECKING:
    from candy_monai.data.fingerprint import IntensityStatistics

SCHEMES = ("ct", "zscore", "nonorm", "rescale_to_0_1", "rgb_to_0_1")
"""The names of all schemes."""

_SMALLEST_SCALE = 1e-8


@dataclass(frozen=True, kw_only=True)
class ChannelNormalization:
    """How one channel is normalised.

    Attributes:
        scheme: One of ``SCHEMES``.
        lower: For ``ct``, the intensity below which everything is clipped.
        upper: For ``ct``, the intensity above which everything is clipped.
        mean: For ``ct``, what is subtracted. For ``zscore``, the channel's mean over all cases, to show it by.
        std: For ``ct``, what is divided by. For ``zscore``, the channel's deviation over all cases.
        nonzero_only: For ``zscore``, whether mean and deviation are taken over non-zero voxels and zeros stay zero:
            for images whose background was blanked, as after skull stripping.
    """

    scheme: str
    lower: float = 0.0
    upper: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    nonzero_only: bool = False


def scheme_of(channel_name: str) -> str:
    """Return the scheme that a channel's name asks for; any name that is no scheme's means ``zscore``."""
    name = channel_name.casefold()
    return name if name in SCHEMES else "zscore"


def channel_normalization(
    scheme: str, statistics: IntensityStatistics, *, nonzero_only: bool = False
) -> ChannelNormalization:
    """Fill a scheme with a channel's statistics.

    Args:
        scheme: One of ``SCHEMES``.
        statistics: The channel's intensities: for ``ct`` over labelled voxels, or over all where there are none.
        nonzero_only: See ``ChannelNormalization``; of no effect but for ``zscore``.

    Raises:
        SettingsError: If the scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise SettingsError(
            f"unknown normalization {scheme!r}: expected one of {', '.join(SCHEMES)}.{did_you_mean(scheme, SCHEMES)}"
        )
    if scheme == "zscore":
        return ChannelNormalization(scheme=scheme, mean=statistics.mean, std=statistics.std, nonzero_only=nonzero_only)
    if scheme != "ct":
        return ChannelNormalization(scheme=scheme)
    return ChannelNormalization(
        scheme=scheme,
        lower=statistics.percentile_00_5,
        upper=statistics.percentile_99_5,
        mean=statistics.mean,
        std=statistics.std,
    )


def normalize(image: Tensor, channels: Sequence[ChannelNormalization], *, mask: Tensor | None = None) -> Tensor:
    """Normalise every channel of a case by its own scheme.

    Args:
        image: ``(C, *spatial)``, floating.
        channels: One entry a channel.
        mask: Boolean ``(*spatial)``: what counts as non-zero for ``nonzero_only``. ``None`` is the channel's own
            non-zero voxels.

    Returns:
        A new float32 tensor of the same shape.

    Raises:
        BadInputError: If the number of channels differs.
    """
    if len(image) != len(channels):
        raise BadInputError(f"found an image of {len(image)} channels, expected {len(channels)}")
    return torch.stack([_normalized(values, how, mask) for values, how in zip(image.float(), channels, strict=True)])


def usual_intensities(image: Tensor, channels: Sequence[ChannelNormalization]) -> Tensor:
    """Bring a normalised image back to about its own scale, for the eye: a case's own mean and deviation are lost.

    Args:
        image: ``(C, *spatial)``, normalised.
        channels: One entry a channel.

    Returns:
        A new float32 tensor of the same shape.
    """
    return torch.stack([_usual(values, how) for values, how in zip(image.float(), channels, strict=True)])


def clip_and_standardize(values: Tensor, *, lower: float, upper: float, mean: float, std: float) -> Tensor:
    """Clip to a range, then subtract and divide by given numbers: for intensities on an absolute scale, as in CT."""
    return values.clamp(lower, upper).sub_(mean).div_(max(std, _SMALLEST_SCALE))


def standardize(values: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """Bring one channel to mean 0 and standard deviation 1; a constant one becomes 0.

    Args:
        values: One channel of any shape.
        mask: Boolean, same shape: where mean and deviation are measured. Outside, the result is 0.
    """
    inside = values if mask is None else values[mask]
    if not inside.numel():
        return torch.zeros_like(values)
    std, mean = torch.std_mean(inside, correction=0)
    result = (values - mean).div_(std.clamp_min(_SMALLEST_SCALE))
    return result if mask is None else result.masked_fill_(~mask, 0.0)


def rescale(values: Tensor) -> Tensor:
    """Map one channel's range to 0 .. 1; a constant one becomes 0."""
    low, high = torch.aminmax(values)
    return (values - low).div_((high - low).clamp_min(_SMALLEST_SCALE))


def _normalized(values: Tensor, how: ChannelNormalization, mask: Tensor | None) -> Tensor:
    if how.scheme == "ct":
        return clip_and_standardize(values, lower=how.lower, upper=how.upper, mean=how.mean, std=how.std)
    if how.scheme == "zscore":
        chosen = (values != 0 if mask is None else mask) if how.nonzero_only else None
        return standardize(values, mask=chosen)
    if how.scheme == "rescale_to_0_1":
        return rescale(values)
    if how.scheme == "rgb_to_0_1":
        return values / 255.0
    return values


def _usual(values: Tensor, how: ChannelNormalization) -> Tensor:
    if how.scheme in ("ct", "zscore"):
        return values * how.std + how.mean
    return values * 255.0 if how.scheme == "rgb_to_0_1" else values
