from __future__ import annotations

import pytest
import torch
from monai.transforms import NormalizeIntensity

from candy_monai.data.inspection.fingerprint import IntensityStatistics
from candy_monai.data.planning.normalization import channel_normalization, denormalize, scheme_of
from candy_monai.errors import SettingsError

STATISTICS = IntensityStatistics(
    mean=50.0, std=10.0, median=50.0, percentile_00_5=0.0, percentile_99_5=100.0, min=-5.0, max=500.0
)


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("CT", "ct"), ("NoNorm", "nonorm"), ("rgb_to_0_1", "rgb_to_0_1"), ("T1", "zscore"), ("cineMRI", "zscore")],
)
def test_the_channels_name_picks_the_scheme_whatever_its_case(name, scheme):
    assert scheme_of(name) == scheme


def test_ct_is_clipped_to_the_datasets_percentiles_and_scaled_by_its_statistics():
    how = channel_normalization("ct", STATISTICS)
    assert (how.lower, how.upper, how.mean, how.std) == (0.0, 100.0, 50.0, 10.0)


def test_an_unknown_scheme_is_refused_with_a_suggestion():
    with pytest.raises(SettingsError, match="Did you mean 'zscore'"):
        channel_normalization("z-score", STATISTICS)


def test_a_normalised_picture_is_shown_in_about_its_own_colours():
    image = torch.tensor([[[200.0, 100.0]], [[20.0, 40.0]]])
    red, green = (channel_normalization("zscore", IntensityStatistics.of(values.numpy().ravel())) for values in image)
    normalised = NormalizeIntensity(channel_wise=True)(image.clone())
    assert torch.allclose(denormalize(normalised, [red, green]), image)
