import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.inferers import sliding_window_inference
from monai.transforms import SpatialPad

from candy_monai.errors import SettingsError
from candy_monai.inference.inferers import WholeOrWindowsInferer, WindowInferer


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
@hypothesis_settings(max_examples=20, deadline=None)
def test_logits_and_labels_are_those_of_monai_s_stitched_windows(settings, num_classes, batch_size):
    size, window, overlap, sw_batch_size = settings
    torch.manual_seed(0)
    network = (torch.nn.Conv2d if len(size) == 2 else torch.nn.Conv3d)(2, num_classes, 3, padding=1)
    images = torch.randn(batch_size, 2, *size)
    inferer = WindowInferer(window, overlap=overlap, batch_size=sw_batch_size)
    with torch.no_grad():
        expected = sliding_window_inference(images, window, 1, network, overlap=overlap, mode="gaussian")
    labels = expected.argmax(1, keepdim=True) if num_classes > 1 else (expected > 0)
    assert torch.allclose(inferer(images, network), expected, atol=1e-5)
    assert torch.equal(inferer.labels(images, network), labels.to(torch.uint8))


@given(settings=_settings())
@hypothesis_settings(max_examples=20, deadline=None)
def test_a_constant_stays_that_constant_in_every_corner(settings):
    size, window, overlap, sw_batch_size = settings
    inferer = WindowInferer(window, overlap=overlap, batch_size=sw_batch_size)
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


def test_the_first_of_several_outputs_counts_and_arguments_are_passed_on():
    def network(windows, factor, *, shift):
        return [windows * factor + shift, windows[..., ::2, ::2]]

    images = torch.randn(1, 1, 12, 12)
    assert torch.allclose(WindowInferer((8, 8))(images, network, 2.0, shift=1.0), 2 * images + 1, atol=1e-5)


def test_more_classes_than_a_byte_counts_make_wider_ids():
    def network(windows):
        scores = windows.new_zeros(len(windows), 300, *windows.shape[2:])
        scores[:, 299] = 1
        return scores

    labels = WindowInferer((8, 8)).labels(torch.zeros(1, 1, 9, 9), network)
    assert (labels.dtype, labels.unique().tolist()) == (torch.int16, [299])


@pytest.mark.parametrize(
    ("window", "options"), [((0, 8), {}), ((8, 8), {"overlap": 1.0}), ((8, 8), {"batch_size": 0}), ((8,), {})]
)
def test_windows_that_cannot_be_used_are_refused_at_once(window, options):
    with pytest.raises(SettingsError):
        WindowInferer(window, **options)
