"""Predictions of a cross-validation's cases, read from their files."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from candy_monai.errors import BadInputError
from candy_monai.recipes.out_of_fold import PLACE, OutOfFold

LEVELS = np.array([[[0, 3, 5, 7]], [[0, 0, 6, 1]]], dtype=np.uint8)


@pytest.fixture
def stored(tmp_path):
    """Return the predictions of one case with two regions, and its file."""
    file = tmp_path / PLACE / "3d" / "a.npz"
    file.parent.mkdir(parents=True)
    np.savez_compressed(file, labels=np.ones((1, 4), dtype=np.uint8), affine=np.eye(4), levels=LEVELS, made_by="x")
    return OutOfFold(crossval=SimpleNamespace(folder=tmp_path, paints=(1, 2)), candidates={"3d": ("3d",)}), file


def test_a_label_map_is_made_with_other_thresholds_from_how_many_each_probability_exceeds(stored):
    out_of_fold, _ = stored
    assert torch.equal(out_of_fold.labels("3d", "a").as_tensor(), torch.ones(1, 1, 4, dtype=torch.uint8))
    found = out_of_fold.labels("3d", "a", thresholds=(0.4, 0.7))  # more than 2 and more than 5 of them
    assert found.as_tensor().tolist() == [[[0, 1, 2, 1]]]


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "other", "cut"])
def test_a_damaged_file_is_named(stored, content):
    out_of_fold, file = stored
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    with pytest.raises(BadInputError, match=r"a\.npz: cannot be read .*remove it, and candy-monai select"):
        out_of_fold.labels("3d", "a")
