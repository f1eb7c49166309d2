import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import (
    SlidingWindowInferer,
    sliding_window_inference,
)
from monai.transforms import SpatialPad
from torch.utils._pytree import tree_leaves

from candy_monai.errors import SettingsError
from candy_monai.inference.inferers import (
    WholeOrWindowsInferer,
    WindowInferer,
    mirrored,
)


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (17, 31), (40, 70), (64, 64)])
def test_a_network_that_returns_a_constant_returns_it_everywhere(size):
    inferer = WholeOrWindowsInferer((16, 16), divisor=(8, 8))
    logits = inferer(torch.randn(1, 2, *size), lambda windows: torch.full_like(windows[:, :1], 3.25))
    assert logits.shape == (1, 1, *size)
    assert torch.allclose(logits, torch.tensor(3.25), atol=1e-5)


def test_a_small_image_is_run_at_once_with_every_axis_fitting_the_network():
    seen = []

    def network(windows):
        seen.append(tuple(windows.shape))
        return windows

    image = torch.randn(1, 1, 13, 18, 9)
    logits = WholeOrWindowsInferer((16, 16, 16), divisor=(8, 4, 1))(image, network)
    assert seen == [(1, 1, 16, 20, 9)]
    assert torch.equal(logits, image)


@pytest.mark.parametrize("size", [(1, 1), (5, 8)])
def test_an_image_of_which_one_voxel_would_be_left_is_padded_to_a_window(size):
    network = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.InstanceNorm2d(1), torch.nn.Upsample(scale_factor=8))
    inferer = WholeOrWindowsInferer((16, 16), divisor=(8, 8))
    assert inferer.num_windows(size) == 1
    assert inferer.input_shape(size, torch.device("cpu")) == (1, 16, 16)
    assert inferer(torch.randn(1, 1, *size), network).shape == (1, 1, *size)


def test_a_large_image_is_run_in_windows_of_the_asked_shape():
    seen = []

    def network(windows):
        seen.append(tuple(windows.shape[1:]))
        return windows

    image = torch.randn(1, 1, 40, 40)
    logits = WholeOrWindowsInferer((16, 16), divisor=(8, 8))(image, network)
    assert set(seen) == {(1, 16, 16)}
    assert torch.allclose(logits, image, atol=1e-5)


@st.composite
def _settings(draw):
    num_dims = draw(st.sampled_from([2, 3]))
    largest = 36 if num_dims == 2 else 18
    size = tuple(draw(st.integers(3, largest)) for _ in range(num_dims))
    window = tuple(draw(st.integers(3, 9)) for _ in range(num_dims))
    return size, window, draw(st.sampled_from([0.25, 0.4, 0.5, 0.75])), draw(st.integers(1, 3))


@given(settings=_settings(), num_classes=st.sampled_from([1, 4]), batch_size=st.integers(1, 3))
@hypothesis_settings(max_examples=20)
def test_logits_and_labels_are_those_of_monai_s_stitched_windows(settings, num_classes, batch_size):
    size, window, overlap, sw_batch_size = settings
    torch.manual_seed(0)
    network = (torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d)(2, num_classes, 3, padding=1)
    images = torch.randn(batch_size, 2, *size)
    inferer = WindowInferer(window, overlap=overlap, sw_batch_size=sw_batch_size)
    with torch.no_grad():
        expected = sliding_window_inference(images, window, 1, network, overlap=overlap, mode="gaussian")
    labels = expected.argmax(1, keepdim=True) if num_classes > 1 else (expected > 0)
    assert torch.allclose(inferer(images, network), expected, atol=1e-5)
    assert torch.equal(inferer.labels(images, network), labels.to(torch.uint8))


@given(settings=_settings())
@hypothesis_settings(max_examples=20)
def test_a_constant_stays_that_constant_in_every_corner(settings):
    size, window, overlap, sw_batch_size = settings
    inferer = WindowInferer(window, overlap=overlap, sw_batch_size=sw_batch_size)
    logits = inferer(torch.randn(1, 1, *size), lambda windows: torch.full_like(windows, -0.7))
    assert torch.allclose(logits, torch.tensor(-0.7), rtol=1e-5, atol=0)


def test_a_monai_script_gets_its_metadata_back():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    images = MetaTensor(torch.randn(1, 1, 9, 9, 9), affine=affine)
    inferer = WindowInferer((8, 8, 8))
    for result in (inferer(images, torch.nn.Identity()), inferer.labels(images, torch.nn.Identity())):
        assert torch.equal(result.affine, affine)


def test_what_monai_s_transforms_did_to_a_batch_can_be_undone_on_its_results():
    pad = SpatialPad((9, 10))
    images = list_data_collate([pad(MetaTensor(torch.randn(1, 7, 8), affine=torch.eye(4))) for _ in range(2)])
    inferer = WindowInferer((8, 8))
    for results in (inferer(images, torch.nn.Identity()), inferer.labels(images, torch.nn.Identity())):
        assert [tuple(pad.inverse(result).shape) for result in decollate_batch(results)] == [(1, 7, 8)] * 2


def test_arguments_are_passed_on_to_the_network():
    def network(windows, factor, *, shift):
        return windows * factor + shift

    images = torch.randn(1, 1, 12, 12)
    assert torch.allclose(WindowInferer((8, 8))(images, network, 2.0, shift=1.0), 2 * images + 1, atol=1e-5)
    assert torch.equal(WindowInferer((8, 8)).labels(images, network, 2.0, shift=1.0), (images > -0.5).to(torch.uint8))


def test_of_several_outputs_the_label_map_is_the_first_one_s():
    images = torch.randn(1, 1, 12, 12)
    labels = WindowInferer((8, 8)).labels(images, lambda windows: [windows * 1, -windows[..., ::2, ::2]])
    assert torch.equal(labels, (images > 0).to(torch.uint8))


def test_more_classes_than_a_byte_counts_make_wider_ids():
    def network(windows):
        scores = windows.new_zeros(len(windows), 300, *windows.shape[2:])
        scores[:, 299] = 1
        return scores

    labels = WindowInferer((8, 8)).labels(torch.zeros(1, 1, 9, 9), network)
    assert (labels.dtype, labels.unique().tolist()) == (torch.int16, [299])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 1.0}, "below 1, got 1.0"),
        ({"overlap": (0.5, -0.1)}, "at least 0"),
        ({"sw_batch_size": 0}, "at least 1, got 0"),
        ({"sigma_scale": (0.1, math.nan)}, r"sigma_scale above 0 and a finite cval, got \(0.1, nan\)"),
        ({"cval": math.inf}, "a finite cval"),
        ({"mode": "gausian"}, "mode must be one of constant, gaussian, got 'gausian'"),
        ({"padding_mode": "zeros"}, "padding_mode must be one of constant, reflect, replicate, circular"),
    ],
)
def test_windows_that_cannot_be_used_are_refused_at_once(options, words):
    with pytest.raises(SettingsError, match=words):
        WindowInferer((8, 8), **options)


def _convolution(num_dims=2, **options):
    torch.manual_seed(0)
    return (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)[num_dims - 1](2, 3, 3, padding=1, **options)


def _monai(options):
    """Return MONAI's inferer with the defaults of ours."""
    return SlidingWindowInferer(
        **{"roi_size": (16, 16), "sw_batch_size": 1, "overlap": 0.5, "mode": "gaussian"} | options
    )


def _ours(options):
    return WindowInferer(**{"roi_size": (16, 16)} | options)


@pytest.mark.parametrize(
    "options",
    [
        {"roi_size": 16},
        {"roi_size": (16, -1)},
        {"roi_size": (0, 16), "sw_batch_size": 3},
        {"roi_size": (16, 16), "overlap": (0.25, 0.75)},
        {"roi_size": (16, 16), "mode": "constant", "overlap": 0.25},
        {"roi_size": (16, 16), "sigma_scale": (0.3, 0.1)},
        {"roi_size": (64, 64), "padding_mode": "reflect"},
        {"roi_size": (16, 64), "padding_mode": "circular", "sw_batch_size": 2},
        {"roi_size": (64, 16), "cval": -2.5},
        {"roi_size": (16, 16), "device": "cpu", "sw_device": "cpu"},
        {"roi_size": (16, 16), "cpu_thresh": 100, "cache_roi_weight_map": True},
    ],
    ids=str,
)
def test_every_argument_means_what_it_means_to_monai_s_inferer(options, monkeypatch):
    images, network = torch.randn(2, 2, 40, 37), _convolution()
    with torch.no_grad():
        expected = _monai(options)(images, network)
        monkeypatch.setattr(SlidingWindowInferer, "__call__", None)  # ours does these itself
        ours = _ours(options)
        assert torch.allclose(ours(images, network), expected, rtol=5e-7, atol=5e-7)
        assert torch.equal(ours.labels(images, network), expected.argmax(1, keepdim=True).to(torch.uint8))


def _two_sizes(windows):
    return windows * 2, windows[:, :1, ::2, ::2] + 1


def _by_name(windows):
    return {"out": windows * 2, "edges": windows[:, :1] + 1}


def _shifted_by_place(windows, places):
    return windows + torch.tensor([float(place[2].start) for place in places]).reshape(-1, 1, 1, 1)


def _conditioned(windows, condition=None):
    return windows * condition


@pytest.mark.parametrize(
    ("network", "options", "keywords"),
    [
        (_two_sizes, {}, {}),
        (_by_name, {"sw_batch_size": 3}, {}),
        (lambda windows: windows[..., ::2, ::2] * 2, {}, {}),
        (_shifted_by_place, {"with_coord": True, "sw_batch_size": 3}, {}),
        (_conditioned, {}, {"condition": torch.full((2, 2, 40, 37), 3.0)}),
        (torch.sin, {"buffer_steps": 2, "buffer_dim": 0}, {}),
        (torch.sin, {}, {"device": torch.device("cpu")}),
    ],
    ids=["tuple", "dictionary", "another size", "coordinates", "condition", "buffers", "device of a call"],
)
def test_what_it_does_not_do_itself_is_monai_s_own_result(network, options, keywords):
    images = torch.randn(2, 2, 40, 37)
    expected, result = (make(options)(images, network, **keywords) for make in (_monai, _ours))
    assert type(result) is type(expected)
    pairs = zip(*map(tree_leaves, (result, expected)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_another_type_give_scores_of_that_type(dtype):
    images, network = torch.randn(1, 2, 40, 37, dtype=dtype), _convolution(dtype=dtype)
    with torch.no_grad():
        assert torch.equal(_ours({})(images, network), _monai({})(images, network))


def test_one_spatial_axis_is_enough():
    images, network = torch.randn(1, 2, 40), _convolution(1)
    with torch.no_grad():
        assert torch.equal(*(make({"roi_size": 16})(images, network) for make in (_ours, _monai)))


def test_a_network_can_be_trained_through_its_windows():
    images = torch.randn(1, 2, 40, 37)
    gradients = []
    for make in (_ours, _monai):
        network = _convolution()
        make({})(images, network).square().mean().backward()
        gradients.append(network.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("options", "keywords"),
    [({"with_coord": True}, {}), ({}, {"condition": torch.full((2, 2, 40, 37), 3.0)})],
    ids=["coordinates", "condition"],
)
def test_label_maps_are_made_with_coordinates_and_conditions_too(options, keywords):
    images = torch.randn(2, 2, 40, 37)
    network = _conditioned if keywords else _shifted_by_place
    expected = _monai(options)(images, network, **keywords).argmax(1, keepdim=True)
    assert torch.equal(_ours(options).labels(images, network, **keywords), expected.to(torch.uint8))


def test_it_stands_in_a_configuration_of_monai_s():
    config = ConfigParser({"inferer": {"_target_": "candy_monai.WindowInferer", "roi_size": [16, 16], "overlap": 0.25}})
    inferer = config.get_parsed_content("inferer")
    assert isinstance(inferer, SlidingWindowInferer)
    images = torch.randn(1, 2, 40, 37)
    with torch.no_grad():
        expected = sliding_window_inference(images, (16, 16), 1, torch.sin, overlap=0.25, mode="gaussian")
        assert torch.allclose(inferer(images, torch.sin), expected, rtol=5e-7, atol=5e-7)


def test_a_small_image_that_is_run_at_once_keeps_its_metadata_and_its_gradients():
    network = _convolution()
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64))
    images = MetaTensor(torch.randn(2, 2, 13, 18), affine=affine)
    scores = WholeOrWindowsInferer((16, 16), divisor=(8, 8))(images, network)
    assert torch.equal(scores.affine, affine)
    assert scores.shape == (2, 3, 13, 18)
    scores.sum().backward()
    assert network.weight.grad is not None


def test_scores_are_the_mean_over_all_combinations_of_flips():
    def last_column_of_last_row(windows):
        return windows * torch.tensor([[0.0, 0.0], [0.0, 1.0]])

    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    scores = mirrored(last_column_of_last_row, (0, 1))(image)
    assert torch.equal(scores, image / 4)  # each voxel is in that corner in one of the four flips


def test_a_network_that_commutes_with_flips_is_left_as_it_is():
    image = torch.randn(2, 1, 4, 5, 3)
    assert torch.allclose(mirrored(torch.relu, (0, 2))(image), torch.relu(image))


def test_a_call_is_made_for_each_combination_and_the_input_is_kept():
    calls = []
    image = torch.randn(1, 1, 3, 3, 3)
    before = image.clone()
    mirrored(lambda windows: calls.append(1) or windows, (0, 1, 2))(image)
    assert len(calls) == 8
    assert torch.equal(image, before)


def test_without_axes_the_network_is_the_same():
    assert mirrored(torch.relu, ()) is torch.relu
