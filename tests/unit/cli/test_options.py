from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from candy_monai.cli.options import (
    parse_channels,
    parse_duration,
    parse_fold,
    parse_memory,
    parse_overrides,
    parse_save_interval,
    resolve_device,
)
from candy_monai.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h30m15s", 5415),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("0.5s", 0.5),
        ("10M", 600),
        (" 5m ", 300),
    ],
)
def test_a_duration_is_read_in_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "5x", "10 minutes", "-5m", "5m1h", "5m5m", "0", "0h0m", "1.2.3", ".", "inf", "nan", "1e3", "9" * 400],
)
def test_what_is_no_duration_is_an_error_with_examples(text):
    with pytest.raises(SettingsError, match="expected for example 90s, 10m or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["2", "90", "0.5", " 10 "])
def test_a_duration_without_a_unit_is_an_error_that_names_the_units(text):
    with pytest.raises(SettingsError, match=rf"has no unit: say {text.strip()}s, {text.strip()}m or {text.strip()}h"):
        parse_duration(text)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_the_parts_of_a_duration_add_up(hours, minutes, seconds):
    assert parse_duration(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds


def test_overrides_are_split_at_the_first_equals_sign():
    assert parse_overrides(["a=1", " b = x=y ", "note="]) == {"a": "1", "b": "x=y", "note": ""}


def test_no_overrides_are_none():
    assert parse_overrides([]) == {}


@pytest.mark.parametrize("item", ["a", "=1", " =1", ""])
def test_an_override_without_key_or_value_is_an_error(item):
    with pytest.raises(SettingsError, match="expected KEY=VALUE"):
        parse_overrides(["ok=1", item])


def test_one_key_with_two_values_is_an_error():
    with pytest.raises(SettingsError, match="--set a is given twice: '1' and '2'"):
        parse_overrides(["a=1", "a=2"])
    assert parse_overrides(["a=1", "a=1"]) == {"a": "1"}


def test_a_fold_is_a_number_or_all():
    assert parse_fold("0") == 0
    assert parse_fold("12") == 12
    assert parse_fold("all") == "all"


@pytest.mark.parametrize("text", ["", "-1", "1.5", "All", "²", "one"])
def test_what_is_no_fold_is_an_error(text):
    with pytest.raises(SettingsError, match="expected a number from 0, or 'all'"):
        parse_fold(text)


def test_auto_becomes_the_best_device(monkeypatch):
    monkeypatch.setattr("candy_monai.device.auto_device", lambda: "cuda:1")
    assert resolve_device("auto") == "cuda:1"


def test_a_device_that_is_there_is_kept(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("cpu", "cuda", "cuda:1")] == ["cpu", "cuda", "cuda:1"]


@pytest.mark.parametrize(("count", "name"), [(0, "cuda"), (1, "cuda:1"), (2, "cuda:2")])
def test_a_cuda_device_that_is_not_there_is_an_error_with_a_way_out(monkeypatch, count, name):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(SettingsError, match=f"{name}: PyTorch finds {count} CUDA devices; use --device auto"):
        resolve_device(name)


def test_an_mps_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="use --device auto"):
        resolve_device("mps")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x"])
def test_a_device_that_pytorch_does_not_know_is_an_error(name):
    with pytest.raises(SettingsError, match="is unknown: expected auto, cpu, cuda"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("500M", 500_000_000), ("1g", 10**9), ("1.5 GB", 1_500_000_000), ("2T", 2 * 10**12)]
)
def test_a_size_of_memory_has_a_unit_of_powers_of_1000(text, num_bytes):
    assert parse_memory(text) == num_bytes


@pytest.mark.parametrize(("text", "value"), [("50", 50), ("10m", "10m"), ("90s", "90s")])
def test_to_save_within_epochs_is_said_in_steps_or_as_a_time(text, value):
    assert parse_save_interval(text) == value


@pytest.mark.parametrize("text", ["0", "-3", "often", "1.5", "0m"])
def test_what_is_neither_steps_nor_a_time_is_refused(text):
    with pytest.raises(SettingsError, match="a number of batches, or a time"):
        parse_save_interval(text)


@pytest.mark.parametrize("text", ["1", "G", "0G", "-1G", "1.2.3G", ".G", "1 X", "many", "9" * 400 + "G"])
def test_what_is_no_size_of_memory_is_refused(text):
    with pytest.raises(SettingsError, match="is no size of memory"):
        parse_memory(text)


@pytest.mark.parametrize(("text", "channels"), [("1,2", (1, 2)), (" 3 ", (3,)), ("2, 0", (2, 0)), ("None", ())])
def test_channels_are_numbers_or_none(text, channels):
    assert parse_channels(text) == channels


@pytest.mark.parametrize("text", ["", "a", "1,", "-1", "1.5", "1-2"])
def test_other_channels_are_refused(text):
    with pytest.raises(SettingsError, match="expected numbers such as 1,2, or none"):
        parse_channels(text)
