from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from candy_monai.data.planning.plan import Plan, Region
from candy_monai.errors import BadInputError, SettingsError
from tests.plans import PLAN


def test_a_step_of_a_larger_batch_or_a_wider_network_takes_more_memory():
    more = replace(PLAN, batch_size=2 * PLAN.batch_size)
    wide = replace(PLAN, filters=tuple(2 * number for number in PLAN.filters))
    assert PLAN.step_bytes < more.step_bytes < 2 * PLAN.step_bytes  # the weights are there once
    assert PLAN.step_bytes < wide.step_bytes


def test_a_plan_survives_json():
    regions = (Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2))
    made = replace(PLAN, regions=regions, class_names=("whole", "core"), num_classes=2)
    assert Plan.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_a_dictionary_that_is_no_plan_is_refused():
    with pytest.raises(BadInputError, match="plan the dataset again"):
        Plan.from_dict({"patch_shape": [8, 8, 8]})


TAMPERED = {
    "orientation": (["R", "R", "S"], [1, 2, 3], "RAS"),
    "spacing_mm": ([True, 1.0, 1.0],),
    "channel_names": ("MRI", [1]),
    "normalization": (
        [],
        [{"scheme": "foo"}],
        [{"scheme": "ct", "lower": float("nan")}],
        [{"scheme": "ct", "std": "1"}],
    ),
    "class_names": (5, "abc"),
    "num_classes": ("3", 2, 10**30, None),
    "ignore_label": ("3", 1.5),
    "regions": ([{"name": "a", "ids": ["1"], "paints": 1}],),
    "patch_shape": ([8.0, 8.0, 8.0],),
    "batch_size": (1.5, 1e30, True),
    "deep_supervision": (1, "yes"),
    "weight_decay": (float("nan"), "0", -1.0),
    "num_validation_cases": (0, 2.5),
    "resampling": ("other", None, []),
}


@pytest.mark.parametrize(("entry", "value"), [(name, value) for name, values in TAMPERED.items() for value in values])
def test_an_entry_of_another_kind_in_a_plan_from_a_file_is_refused_by_its_name(entry, value):
    with pytest.raises(BadInputError, match=f"{entry}( is|:)"):
        Plan.from_dict({**PLAN.to_dict(), entry: value})


@pytest.mark.parametrize(("entry", "value"), [("learning_rate", math.nan), ("spacing_mm", (1.0, math.nan, 1.0))])
def test_a_plan_that_says_no_number_is_refused_wherever_it_comes_from(entry, value):
    with pytest.raises(SettingsError, match=f"{entry}: got .*nan.*, expected"):
        replace(PLAN, **{entry: value})
