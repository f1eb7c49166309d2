from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

import pytest

from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.entries import SHARE, as_text, settable
from candy_monai.data.planning.explanation import explain
from candy_monai.data.planning.plan import Plan, parsed_overrides
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError
from tests.plans import PLAN


@pytest.mark.parametrize(
    ("name", "value"),
    [("strides", ((1, 1, 1), (2, 2, 1))), ("mirror_axes", ()), ("deep_supervision", False), ("spacing_mm", (0.5, 3.0))],
)
def test_text_is_what_an_override_reads(name, value):
    assert parsed_overrides({name: as_text(value)})[name] == value


@dataclass(frozen=True, kw_only=True)
class WiderPlan(Plan):
    dropout: float = field(default=0.1, metadata=settable(SHARE, "A tenth is usual."))


def test_an_entry_that_is_declared_is_read_checked_and_explained_without_more(tmp_path):
    fingerprint = inspect(write_phantom_dataset(tmp_path / "d", num_cases=1, shape=(16, 16, 16)))
    assert WiderPlan.from_dict(asdict(PLAN)).dropout == 0.1  # an earlier plan, which lacks it
    plan = WiderPlan.from_dict(asdict(PLAN) | {"dropout": 0.25})
    choice = explain(plan, fingerprint)[-1]
    assert (choice.name, choice.value, choice.reason) == ("dropout", "0.25", "A tenth is usual.")
    assert choice.remedy == "--set dropout=0.25"
    for bad in (1.5, "0.2", None):
        with pytest.raises(BadInputError, match=r"dropout: got .*, expected a number from 0 to 1"):
            replace(plan, dropout=bad)
