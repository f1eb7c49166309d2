"""A plan of a phantom dataset, made once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from candy_monai.data.inspection import inspect
from candy_monai.data.phantom import write_phantom_dataset
from candy_monai.data.planning import Plan, plan


@functools.cache
def small_plan() -> Plan:
    """Return the plan of a small phantom of volumes."""
    with tempfile.TemporaryDirectory() as folder:
        return plan(inspect(write_phantom_dataset(Path(folder) / "d", num_cases=3, shape=(24, 24, 16))))
