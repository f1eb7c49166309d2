from __future__ import annotations

import pytest
import torch
from monai.transforms import GaussianSmooth, RandAdjustContrast, RandSimulateLowResolution

from candy_monai.transforms import RandBlur, RandBlurd, RandGamma, RandLowResolution


def test_blur_is_monais_away_from_the_border():
    image = torch.rand(1, 24, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = GaussianSmooth(0.8, approx="sampled")(image)
    found = RandBlur(1.0, sigma=(0.8, 0.8))(image)
    inside = (0, *[slice(6, -6)] * 3)
    assert torch.allclose(found[inside], expected[inside], atol=2e-3)


@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1)])
def test_blur_keeps_a_constant_and_an_axis_of_one_voxel(shape):
    image = torch.full((1, *shape), 2.5)
    assert torch.allclose(RandBlur(1.0)(image), image, atol=1e-6)


@pytest.mark.parametrize("kind", [RandBlur, RandLowResolution])
def test_each_channel_is_changed_or_not_by_itself(kind):
    image = torch.rand(2, 8, 8)
    transform = kind(1.0, channel_prob=0.5).set_random_state(0)
    seen = {
        tuple(bool((new != old).any()) for new, old in zip(transform(image), image, strict=True)) for _ in range(60)
    }
    assert seen == {(False, False), (False, True), (True, False), (True, True)}


def test_all_keys_are_changed_alike():
    image = torch.rand(1, 8, 8)
    found = RandBlurd(("a", "b"), 1.0).set_random_state(0)({"a": image, "b": image})
    assert torch.equal(found["a"], found["b"])
    assert not torch.equal(found["a"], image)


def test_low_resolution_is_monais_where_no_axis_is_spared():
    image = torch.rand(1, 8, 9, 10)
    expected = RandSimulateLowResolution(1.0, downsample_mode="nearest-exact", zoom_range=(0.5, 0.5))(image)
    assert torch.allclose(RandLowResolution(1.0, zoom_range=(0.5, 0.5))(image), expected)


def test_low_resolution_spares_the_fixed_axis():
    image = torch.arange(6.0).expand(1, 8, 8, 6).clone()
    assert torch.equal(RandLowResolution(1.0, zoom_range=(0.5, 0.5), fixed_axis=2)(image), image)
    assert not torch.equal(RandLowResolution(1.0, zoom_range=(0.5, 0.5))(image), image)


@pytest.mark.parametrize("inverted", [False, True])
def test_gamma_is_monais_for_each_channel_by_itself(inverted):
    dark = torch.rand(1, 6, 7, 8, generator=torch.Generator().manual_seed(0)) - 0.3
    image = torch.cat([dark, 50.0 * dark.flip(1)])
    options = {"gamma": (1.4, 1.4), "invert_image": inverted}
    found = RandGamma(1.0, **options)(image)
    monais = RandAdjustContrast(1.0, retain_stats=True, **options)
    for channel, values in zip(found, image, strict=True):
        assert torch.allclose(channel, monais(values[None])[0], rtol=1e-3, atol=1e-4 * float(values.abs().max()))
    assert not torch.allclose(found, monais(image), rtol=1e-2)


def test_gamma_keeps_each_channels_mean_and_deviation_and_draws_each_a_power_of_its_own():
    image = torch.rand(1, 9, 9).repeat(2, 1, 1) * torch.tensor([1.0, 100.0]).view(2, 1, 1)
    found = RandGamma(1.0).set_random_state(0)(image)
    assert torch.allclose(found.mean((1, 2)), image.mean((1, 2)), rtol=1e-4)
    assert torch.allclose(found.std((1, 2)), image.std((1, 2)), rtol=1e-4)
    assert not torch.allclose(found[0] * 100.0, found[1], rtol=1e-3)


def test_gamma_leaves_a_constant_as_it_is():
    image = torch.full((1, 4, 4), 3.0)
    assert torch.allclose(RandGamma(1.0)(image), image)
