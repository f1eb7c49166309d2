from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import get_args, get_origin

import pytest
import torch

from candy_monai import aliases


@pytest.mark.parametrize(
    ("alias", "values"),
    [
        (aliases.PathLike, ["folder", Path("folder")]),
        (aliases.Device, ["cpu", torch.device("cpu")]),
        (aliases.Scalar, [0.5, torch.tensor(0.5)]),
    ],
)
def test_an_alias_for_a_choice_of_types_accepts_each_of_them(alias, values):
    kinds = tuple(get_origin(kind) or kind for kind in get_args(alias))
    assert all(isinstance(value, kinds) for value in values)


def test_shapes_of_fixed_length_have_that_length():
    assert get_args(aliases.Shape2d) == (int, int)
    assert get_args(aliases.Shape3d) == (int, int, int)
    assert get_args(aliases.Shape) == (int, ...)


def test_metrics_map_names_to_scalars():
    assert get_origin(aliases.Metrics) is Mapping
    assert get_args(aliases.Metrics) == (str, aliases.Scalar)
