from __future__ import annotations

import pytest
import torch

from candy_monai.device import HasDevice, auto_device, find_device
from candy_monai.errors import BadInputError


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_a_device_is_taken_by_name_or_as_an_object(device):
    assert HasDevice(device).device() == torch.device("cpu")


def test_a_device_given_later_stays():
    owner = HasDevice("cpu")
    assert owner.device(device="meta") == torch.device("meta")
    assert owner.device() == torch.device("meta")


def test_a_cuda_device_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [HasDevice(name).device() for name in ("cuda", "cuda:1")] == [torch.device("cuda"), torch.device("cuda:1")]


@pytest.mark.parametrize(("count", "name"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_cuda_device_that_is_not_there_is_an_error_that_says_what_is(monkeypatch, count, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    there = ", ".join(["cpu", "cuda:0", "cuda:1"][: 1 + count])
    with pytest.raises(BadInputError, match=f"device '{name}' is not available.* finds {count} .*available: {there}$"):
        HasDevice(name)


def test_mps_is_taken_only_where_it_is(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BadInputError, match="device 'mps' is not available"):
        HasDevice("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert HasDevice("mps").device().type == "mps"


@pytest.mark.parametrize("device", ["gpu", "cuda:one", ""])
def test_an_unknown_device_is_an_error_that_shows_what_is_expected(device):
    with pytest.raises(ValueError, match=r"unknown device .*: expected for example 'cpu'"):
        HasDevice(device)


def test_a_failed_change_of_device_changes_nothing():
    owner = HasDevice("cpu")
    with pytest.raises(ValueError, match="unknown device"):
        owner.device(device="gpu")
    assert owner.device() == torch.device("cpu")


def test_of_several_cuda_devices_the_one_with_the_most_free_memory_is_chosen(monkeypatch):
    free = [(1, 10), (7, 10), (3, 10)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: free[index])
    assert auto_device() == "cuda:1"


def test_auto_is_the_best_device(monkeypatch):
    monkeypatch.setattr("candy_monai.device.auto_device", lambda: "meta")
    assert find_device("auto") == torch.device("meta")


@pytest.mark.parametrize(("has_mps", "expected"), [(True, "mps"), (False, "cpu")])
def test_without_cuda_the_choice_is_mps_and_then_the_cpu(monkeypatch, has_mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert auto_device() == expected
