import pytest
import torch

from candy_monai.inference.inferers import WholeOrWindowsInferer


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


def test_a_large_image_is_run_in_windows_of_the_asked_shape():
    seen = []

    def network(windows):
        seen.append(tuple(windows.shape[1:]))
        return windows

    image = torch.randn(1, 1, 40, 40)
    logits = WholeOrWindowsInferer((16, 16), divisor=(8, 8))(image, network)
    assert set(seen) == {(1, 16, 16)}
    assert torch.allclose(logits, image, atol=1e-5)
