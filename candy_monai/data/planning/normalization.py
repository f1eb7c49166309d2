"""The normalisation of each channel's intensities: the schemes, their selection and their parameters.

The schemes and the names that select them are those of nnU-Net's dataset format. The computations are in MONAI, or in
``candy_monai.transforms.NormalizeForeground``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from candy_monai.errors import SettingsError, did_you_mean
from candy_monai.transforms.normalization import SCHEMES

if TYPE_CHECKING:
    from candy_monai.data.inspection.fingerprint import IntensityStatistics


@dataclass(frozen=True, kw_only=True)
class ChannelNormalization:
    """The normalisation of a channel.

    Attributes:
        scheme: One of ``SCHEMES``.
        lower: For ``ct``, the lower clipping bound.
        upper: For ``ct``, the upper clipping bound.
        mean: For ``ct``, the subtracted value. For ``zscore``, the channel's mean over all cases, for display.
        std: For ``ct``, the divisor. For ``zscore``, the channel's deviation over all cases.
        nonzero_only: For ``zscore``, whether mean and deviation are computed over non-zero voxels and zeros stay zero,
            for images with a blanked background, as after skull stripping.
    """

    scheme: str
    lower: float = 0.0
    upper: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    nonzero_only: bool = False


def scheme_of(channel_name: str) -> str:
    """Return the scheme for a channel's name: ``zscore`` unless the name is that of another scheme."""
    name = channel_name.casefold()
    return name if name in SCHEMES else "zscore"


def channel_normalization(
    scheme: str, statistics: IntensityStatistics, *, nonzero_only: bool = False
) -> ChannelNormalization:
    """Return a scheme with a channel's statistics: for ``ct`` those of labelled voxels, or of all if there are none.

    Raises:
        SettingsError: If the scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise SettingsError(
            f"unknown normalization {scheme!r}: expected one of {', '.join(SCHEMES)}.{did_you_mean(scheme, SCHEMES)}"
        )
    if scheme not in ("ct", "zscore"):
        return ChannelNormalization(scheme=scheme)
    measured = ChannelNormalization(scheme=scheme, mean=statistics.mean, std=statistics.std)
    if scheme == "zscore":
        return replace(measured, nonzero_only=nonzero_only)
    return replace(measured, lower=statistics.percentile_00_5, upper=statistics.percentile_99_5)


def denormalize(image: Tensor, channels: Sequence[ChannelNormalization]) -> Tensor:
    """Return a normalised image ``(C, *spatial)`` at about its original scale, for display: its own mean is lost."""
    return torch.stack([_denormalized(values, how) for values, how in zip(image.float(), channels, strict=True)])


def _denormalized(values: Tensor, how: ChannelNormalization) -> Tensor:
    if how.scheme in ("ct", "zscore"):
        return values * how.std + how.mean
    return values * 255.0 if how.scheme == "rgb_to_0_1" else values
