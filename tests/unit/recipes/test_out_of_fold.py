"""Predictions of a cross-validation's cases, read from their files."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.recipes import out_of_fold
from candy_monai.recipes.out_of_fold import PLACE, CrossValidation, OutOfFold

LEVELS = np.array([[[0, 3, 5, 7]], [[0, 0, 6, 1]]], dtype=np.uint8)


@pytest.fixture
def stored(tmp_path):
    """Return the predictions of one case with two regions, and its file."""
    file = tmp_path / PLACE / "3d" / "a.npz"
    file.parent.mkdir(parents=True)
    np.savez_compressed(file, labels=np.ones((1, 4), dtype=np.uint8), affine=np.eye(4), levels=LEVELS, made_by="x")
    return OutOfFold(crossval=SimpleNamespace(folder=tmp_path, paints=(1, 2)), candidates={"3d": ("3d",)}), file


def test_a_label_map_is_made_with_other_thresholds_from_how_many_each_probability_exceeds(stored):
    predictions, _ = stored
    assert torch.equal(predictions.labels("3d", "a").as_tensor(), torch.ones(1, 1, 4, dtype=torch.uint8))
    found = predictions.labels("3d", "a", thresholds=(0.4, 0.7))  # more than 2 and more than 5 of them
    assert found.as_tensor().tolist() == [[[0, 1, 2, 1]]]


@pytest.mark.parametrize("content", [b"", b"no archive", None], ids=["empty", "other", "cut"])
def test_a_damaged_file_is_named(stored, content):
    predictions, file = stored
    file.write_bytes(file.read_bytes()[:200] if content is None else content)
    with pytest.raises(BadInputError, match=r"a\.npz: cannot be read .*remove it, and the same command predicts"):
        predictions.labels("3d", "a")


def test_processes_that_predict_at_the_same_time_predict_each_case_once(tmp_path, monkeypatch):
    cases = {name: SimpleNamespace(case_id=name) for name in "abcd"}
    crossval = SimpleNamespace(
        folder=tmp_path,
        cases=cases,
        digests=SimpleNamespace(cases=dict.fromkeys(cases, "digest")),
        experiments={0: (tmp_path / "run",), 1: (tmp_path / "run",)},
        left_out={0: ("a", "b"), 1: ("c", "d")},
    )
    predicted = []

    def predict_case(self, case, ensemble, made):
        time.sleep(0.05)
        predicted.append(case.case_id)
        self.file("3d", case.case_id).parent.mkdir(exist_ok=True)
        np.savez(self.file("3d", case.case_id), made_by=made)

    monkeypatch.setattr(OutOfFold, "_predict_case", predict_case)
    for name, made in {"load_experiments": None, "EnsemblePredictor": None, "digest_of_file": "weights"}.items():
        monkeypatch.setattr(out_of_fold, name, lambda *_, made=made, **__: made)

    def predict(rank):
        OutOfFold(crossval=crossval, candidates={"3d": ("3d",)}).predict(
            device="cpu", rank=rank, on_progress=lambda _: None
        )

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(predict, range(3)))
    assert sorted(predicted) == list("abcd")
    assert not list((tmp_path / PLACE).glob(".*"))


def test_for_a_folder_of_cross_validations_these_are_named(tmp_path):
    for name in ("crossval-A", "crossval-B"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "crossval.json").write_text("{}")
    with pytest.raises(ExperimentError, match=r"not a cross-validation.*in it are .*crossval-.*, .*: give one$"):
        CrossValidation.read(tmp_path)
