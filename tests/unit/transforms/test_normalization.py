from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity

from candy_monai.transforms import NormalizeForeground

ZSCORE, BODY = {"scheme": "zscore"}, {"scheme": "zscore", "nonzero_only": True}
CT = {"scheme": "ct", "lower": 0.0, "upper": 100.0, "mean": 50.0, "std": 10.0}
EVERY = [ZSCORE, BODY, CT, {"scheme": "rescale_to_0_1"}, {"scheme": "rgb_to_0_1"}, {"scheme": "nonorm"}]


def test_ct_is_clipped_and_scaled_by_given_numbers():
    assert NormalizeForeground([CT])(torch.tensor([[-1000.0, 50.0, 60.0, 3000.0]])).tolist() == [[-5.0, 0.0, 1.0, 5.0]]


def test_each_channel_goes_by_its_own_scheme():
    image = torch.tensor([[1.0, 3.0], [2.0, 6.0], [255.0, 0.0], [7.0, 8.0]])
    channels = [ZSCORE, {"scheme": "rescale_to_0_1"}, {"scheme": "rgb_to_0_1"}, {"scheme": "nonorm"}]
    assert NormalizeForeground(channels)(image).tolist() == [[-1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [7.0, 8.0]]


def test_over_the_whole_image_it_is_what_monai_gives():
    image = torch.rand(2, 5, 6, 7)
    assert torch.allclose(
        NormalizeForeground([ZSCORE] * 2)(image), NormalizeIntensity(channel_wise=True)(image.clone()), atol=1e-5
    )


def test_the_foreground_is_that_of_all_channels_with_holes_and_zero_outside():
    image = torch.zeros(2, 5, 5)
    image[0, 1:4, 1:4] = torch.tensor([[2.0, 2.0, 2.0], [2.0, 0.0, 2.0], [2.0, 2.0, 2.0]])  # with a hole
    image[1, 1, 1] = 9.0
    found = NormalizeForeground([BODY, BODY])(image)
    inside = found[:, 1:4, 1:4].flatten(1)
    assert torch.allclose(inside.mean(1), torch.zeros(2), atol=1e-6)
    assert torch.allclose(inside.std(1, correction=0), torch.ones(2), atol=1e-6)
    assert found[:, 0].abs().max() == 0.0
    assert found[0, 2, 2] < 0.0


@pytest.mark.parametrize("channel", EVERY[:4])
def test_a_constant_channel_stays_finite(channel):
    assert torch.isfinite(NormalizeForeground([channel])(torch.full((1, 4, 4), 7.0))).all()


def test_an_image_of_zeros_stays_one():
    assert NormalizeForeground([BODY])(torch.zeros(1, 4, 4)).abs().max() == 0.0


@pytest.mark.parametrize("channel", EVERY)
def test_the_input_is_left_alone_and_metadata_stay(channel):
    image = MetaTensor(torch.tensor([[[1.0, 200.0]]]), affine=2 * torch.eye(3))
    found = NormalizeForeground([channel])(image)
    assert image.flatten().tolist() == [1.0, 200.0]
    assert torch.equal(found.affine, image.affine)


def test_wrong_channels_and_schemes_are_refused():
    with pytest.raises(ValueError, match="channel 1: unknown scheme 'z-score'"):
        NormalizeForeground([ZSCORE, {"scheme": "z-score"}])
    with pytest.raises(ValueError, match="2 channels, expected 1"):
        NormalizeForeground([ZSCORE])(torch.ones(2, 4))


@pytest.mark.parametrize(
    ("channel", "message"),
    [("MRI", "found 'MRI'.*zscore"), ({"scheme": "ct", "mean": 0}, "ct needs lower, std, upper")],
)
def test_an_entry_that_does_not_say_how_to_normalise_is_refused_when_it_is_given(channel, message):
    with pytest.raises(ValueError, match=message):
        NormalizeForeground([channel])
