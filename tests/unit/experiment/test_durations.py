from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candy_monai.errors import SettingsError
from candy_monai.experiment.durations import seconds_of


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
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "m", "5x", "10 minutes", "-5m", "5m1h", "5m5m", "0", "0h0m", "1.2.3", ".", "inf", "nan", "1e3", "9" * 400],
)
def test_what_is_no_duration_is_an_error_with_examples(text):
    with pytest.raises(SettingsError, match="expected a duration above 0 such as 90s, 10m or 1h30m"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["2", "90", "0.5", " 10 "])
def test_a_duration_without_a_unit_is_an_error_that_names_the_units(text):
    with pytest.raises(SettingsError, match=rf"has no unit: give {text.strip()}s, {text.strip()}m or {text.strip()}h"):
        seconds_of(text)


@given(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99))
def test_the_parts_of_a_duration_add_up(hours, minutes, seconds):
    assert seconds_of(f"{hours}h{minutes}m{seconds}s") == 3600 * hours + 60 * minutes + seconds
