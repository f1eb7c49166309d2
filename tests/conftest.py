"""Fixtures for every test: where the real data live, one PyTorch thread, no settings from the user's home."""

from __future__ import annotations

import functools
import gc
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from candy_monai.observers.pictures import CurvesObserver
from tests.folders import write_part

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))

hypothesis.settings.register_profile("however busy the machine is", deadline=None)
hypothesis.settings.load_profile("however busy the machine is")


@pytest.fixture(scope="session")
def real_dataset():
    """Return a function from a real dataset's name to its folder; skips, saying why, where it is absent."""

    def folder(name: str) -> Path:
        if not (DATA / name / "dataset.json").exists():
            pytest.skip(f"{name} is not under {DATA} (set CANDY_MONAI_DATA to the folder that holds it)")
        return DATA / name

    return folder


@pytest.fixture(scope="session")
def real_part(real_dataset, tmp_path_factory):
    """Return a function from a real dataset's name, a number of cases and a size to a folder of this part of it."""
    folder = tmp_path_factory.mktemp("parts")

    @functools.cache
    def part(name: str, num_cases: int, size: int | None = None) -> Path:
        return write_part(real_dataset(name), folder / f"{num_cases}-{size}" / name, num_cases, size)

    return part


def pytest_collection_finish() -> None:
    """Keep what collecting the tests left out of each later garbage collection, whose time it would dominate."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _config_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("configs")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _own_config_folder(_config_folders: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(next(_config_folders)))


@pytest.fixture(autouse=True)
def _own_switches() -> Iterator[None]:
    """Restore what MONAI's ``set_determinism``, which bundles call, leaves switched on."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files of tests need not survive a power failure; that they are flushed is looked at where it matters."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("candy_monai.files._flush", lambda _handle: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)  # the tests run side by side


_DRAW_CURVES = CurvesObserver.draw
_CURVES = "candy_monai.observers.pictures.CurvesObserver.draw"


@pytest.fixture(autouse=True, scope="session")
def _no_curves() -> Iterator[None]:
    """Draw no curves: they take most of a short run's time; tests that look at them use `curves`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_CURVES, lambda *_arguments: None)
        yield


@pytest.fixture(scope="class")
def curves(_no_curves: None) -> Iterator[None]:
    """Draw the curves of runs, as outside the tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_CURVES, _DRAW_CURVES)
        yield
