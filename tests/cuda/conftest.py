"""What is skipped where there is no GPU, and how numbers of a GPU and a CPU become comparable."""

from __future__ import annotations

import pytest
import torch


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")


@pytest.fixture(autouse=True)
def _single_precision_is_single(monkeypatch):
    """TF32, which cuDNN computes in by default, has ten bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


@pytest.fixture(params=["cpu", CUDA])
def device(request):
    """Run the test on a GPU, and on the CPU, so that the test itself is known to work."""
    return request.param
