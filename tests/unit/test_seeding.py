from __future__ import annotations

import io
import os
import random

import numpy as np
import pytest
import torch

from candy_monai.seeding import GeneratorStates, draw_seed, set_seed


@pytest.fixture(autouse=True)
def _same_generators_afterwards(monkeypatch):
    before = GeneratorStates.capture()
    monkeypatch.setenv("PYTHONHASHSEED", os.environ.get("PYTHONHASHSEED", "0"))
    yield
    set_seed(0)  # leaves no determinism behind
    before.restore()


def draws() -> list[float]:
    """Draw from every global generator, the Gaussian that NumPy and Python keep back included."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.random()),
        float(np.random.standard_normal()),
        float(torch.rand(())),
    ]


def test_the_same_seed_gives_the_same_numbers_from_every_generator():
    set_seed(42)
    first = draws()
    set_seed(42)
    assert draws() == first


def test_another_seed_gives_other_numbers_from_every_generator():
    set_seed(42)
    first = draws()
    set_seed(43)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


def test_the_seed_reaches_the_hash_seed_of_child_processes():
    set_seed(42)
    assert os.environ["PYTHONHASHSEED"] == "42"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_the_ends_of_the_range_are_seeds(seed):
    set_seed(seed)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_an_error_that_leaves_the_generators_alone(seed):
    set_seed(7)
    expected = draws()
    set_seed(7)
    with pytest.raises(ValueError, match="seed must lie in 0"):
        set_seed(seed)
    assert draws() == expected


def test_a_seed_alone_does_not_switch_off_fast_kernels(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    set_seed(42)
    assert torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_determinism_is_switched_on_when_asked_for(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # puts the variable back afterwards
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    set_seed(42, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_a_later_seed_without_determinism_undoes_what_the_earlier_ones_changed(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    set_seed(1, deterministic=True)
    set_seed(2, deterministic=True)
    set_seed(0)
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cudnn.benchmark
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_determinism_that_the_user_chose_is_not_undone(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(True)
    try:
        set_seed(1, deterministic=True)
        set_seed(0)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_drawn_seed_is_fresh_in_range_and_leaves_the_generators_alone():
    set_seed(7)
    expected = draws()
    set_seed(7)
    seeds = {draw_seed() for _ in range(8)}
    assert len(seeds) > 1  # eight equal 32-bit numbers: one chance in 2**224
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert draws() == expected


def test_restored_states_continue_every_generator_where_it_was():
    set_seed(42)
    draws()  # leaves half of a pair of Gaussians behind
    states = GeneratorStates.capture()
    expected = draws()
    draws()
    states.restore()
    assert draws() == expected


def test_states_survive_a_file_that_is_loaded_without_unpickling():
    set_seed(42)
    draws()
    states, buffer = GeneratorStates.capture(), io.BytesIO()
    expected = draws()
    torch.save(states.state_dict(), buffer)
    buffer.seek(0)
    GeneratorStates(**torch.load(buffer, weights_only=True)).restore()
    assert draws() == expected


def test_captured_states_do_not_move_on_with_the_generators():
    set_seed(42)
    states = GeneratorStates.capture()
    before = states.torch.clone()
    draws()
    assert torch.equal(states.torch, before)
