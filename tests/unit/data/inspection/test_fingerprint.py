from __future__ import annotations

import numpy as np
import pytest

from candy_monai.data.inspection.fingerprint import Fingerprint, IntensityStatistics
from candy_monai.data.inspection.inspect import inspect
from candy_monai.errors import BadInputError
from tests.memory import MemoryDataset, ramp_case


def test_a_saved_fingerprint_equals_the_loaded_one():
    regions = {"background": 0, "whole": (1, 2), "core": (2,)}
    found = inspect(MemoryDataset({"a": ramp_case()}, labels=regions, region_order=(1, 2)))
    assert Fingerprint.from_json(found.to_json()) == found


def test_text_that_is_no_fingerprint_is_refused():
    with pytest.raises(BadInputError, match="inspect the dataset again"):
        Fingerprint.from_json('{"cases": []}')


def test_statistics_of_known_numbers():
    found = IntensityStatistics.of(np.arange(201.0))
    assert (found.percentile_00_5, found.median, found.percentile_99_5) == (1.0, 100.0, 199.0)
