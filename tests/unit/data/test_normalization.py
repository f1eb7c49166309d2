from __future__ import annotations

import pytest
import torch

from candy_monai.data.fingerprint import IntensityStatistics
from candy_monai.data.normalization import (
    ChannelNormalization,
    channel_normalization,
    clip_and_standardize,
    normalize,
    rescale,
    scheme_of,
    standardize,
    usual_intensities,
)
from candy_monai.errors import BadInputError, SettingsError

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
    result = normalize(torch.tensor([[-1000.0, 50.0, 60.0, 3000.0]]), [how])
    assert result.tolist() == [[-5.0, 0.0, 1.0, 5.0]]


def test_zscore_gives_mean_zero_and_deviation_one():
    assert standardize(torch.tensor([1.0, 3.0])).tolist() == [-1.0, 1.0]


def test_zscore_over_nonzero_voxels_leaves_zeros_zero():
    how = ChannelNormalization(scheme="zscore", nonzero_only=True)
    assert normalize(torch.tensor([[0.0, 1.0, 3.0, 0.0]]), [how]).tolist() == [[0.0, -1.0, 1.0, 0.0]]


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1", "ct"])
def test_a_constant_channel_stays_finite(scheme):
    flat = IntensityStatistics(
        mean=7.0, std=0.0, median=7.0, percentile_00_5=7.0, percentile_99_5=7.0, min=7.0, max=7.0
    )
    assert normalize(torch.full((1, 4), 7.0), [channel_normalization(scheme, flat)]).tolist() == [[0.0] * 4]


def test_rescaling_maps_the_range_to_0_1():
    assert rescale(torch.tensor([2.0, 3.0, 6.0])).tolist() == [0.0, 0.25, 1.0]


def test_rgb_is_divided_by_255_and_nonorm_does_nothing():
    channels = [ChannelNormalization(scheme="rgb_to_0_1"), ChannelNormalization(scheme="nonorm")]
    assert normalize(torch.tensor([[255.0], [255.0]]), channels).tolist() == [[1.0], [255.0]]


def test_each_channel_is_normalised_by_itself():
    image = torch.tensor([[1.0, 3.0], [10.0, 30.0]])
    assert normalize(image, [ChannelNormalization(scheme="zscore")] * 2).tolist() == [[-1.0, 1.0], [-1.0, 1.0]]


@pytest.mark.parametrize("scheme", ["zscore", "rescale_to_0_1", "ct", "nonorm", "rgb_to_0_1"])
def test_the_input_is_left_alone(scheme):
    image = torch.tensor([[1.0, 200.0]])
    normalize(image, [channel_normalization(scheme, STATISTICS)])
    assert image.tolist() == [[1.0, 200.0]]


def test_clipping_does_not_write_into_its_input():
    values = torch.tensor([5.0, -5.0])
    clip_and_standardize(values, lower=0.0, upper=1.0, mean=0.0, std=1.0)
    assert values.tolist() == [5.0, -5.0]


def test_an_unknown_scheme_is_refused_with_a_suggestion():
    with pytest.raises(SettingsError, match="Did you mean 'zscore'"):
        channel_normalization("z-score", STATISTICS)


def test_a_wrong_number_of_channels_is_refused():
    with pytest.raises(BadInputError, match="2 channels, expected 1"):
        normalize(torch.ones(2, 4), [ChannelNormalization(scheme="zscore")])


def test_a_normalised_picture_is_shown_in_about_its_own_colours():
    image = torch.tensor([[[200.0, 100.0]], [[20.0, 40.0]]])
    red, green = (channel_normalization("zscore", IntensityStatistics.of(values.numpy().ravel())) for values in image)
    assert torch.allclose(usual_intensities(normalize(image, [red, green]), [red, green]), image)
