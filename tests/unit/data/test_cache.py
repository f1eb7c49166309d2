from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from candy_monai.data import cache
from candy_monai.data.cache import check_once, inspect_once
from candy_monai.data.inspection import inspect
from candy_monai.data.nnunet import NNUNetDataset, check_dataset
from candy_monai.errors import DatasetError

SHAPE = (6, 5, 4)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


@pytest.fixture
def dataset(tmp_path):
    """Return a folder of two cases, one of them without foreground, and one test case."""
    folder = tmp_path / "Dataset001_X"
    for index, case_id in enumerate("ab"):
        write(folder / "imagesTr" / f"{case_id}_0000.nii", np.full(SHAPE, 5.0 + index, np.float32))
        write(folder / "labelsTr" / f"{case_id}.nii", np.full(SHAPE, index, np.uint8))
    write(folder / "imagesTs" / "t_0000.nii", np.ones(SHAPE, np.float32))
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "numTraining": 2}
    (folder / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii"}))
    return folder


@pytest.fixture
def looks(monkeypatch):
    """Return a list that grows by a name whenever a dataset is decoded."""
    seen: list[str] = []

    def counted(name, function):
        return lambda *args, **kwargs: seen.append(name) or function(*args, **kwargs)

    monkeypatch.setattr(cache, "inspect", counted("inspect", inspect))
    monkeypatch.setattr(cache, "check_dataset", counted("check", check_dataset))
    return seen


def test_an_unchanged_dataset_is_inspected_once(dataset, tmp_path, looks):
    first = inspect_once(NNUNetDataset(dataset), tmp_path / "store")
    again = inspect_once(NNUNetDataset(dataset), tmp_path / "store")
    assert looks == ["inspect"]
    assert first == again == inspect(dataset)


def test_an_unchanged_dataset_is_checked_once_and_its_warnings_stay(dataset, tmp_path, looks):
    first = check_once(dataset, tmp_path / "store")
    again = check_once(dataset, tmp_path / "store")
    assert looks == ["check"]
    assert first == again == check_dataset(dataset)
    assert "labelsTr: no foreground in 1 of 2 cases: a" in again.warnings


def change_a_voxel(dataset):
    write(dataset / "imagesTr" / "a_0000.nii", np.full(SHAPE, 7.0, np.float32))


def change_a_label(dataset):
    write(dataset / "labelsTr" / "b.nii", np.zeros(SHAPE, np.uint8))


def rename_a_class(dataset):
    path = dataset / "dataset.json"
    path.write_text(path.read_text().replace('"x"', '"y"'))


@pytest.mark.parametrize("change", [change_a_voxel, change_a_label, rename_a_class])
def test_a_changed_dataset_is_looked_at_again(dataset, tmp_path, looks, change):
    store = tmp_path / "store"
    for _ in range(2):
        check_once(dataset, store)
        inspect_once(NNUNetDataset(dataset), store)
        change(dataset)
    assert looks == ["check", "inspect"] * 2
    assert inspect_once(NNUNetDataset(dataset), store) == inspect(dataset)


def damage_a_test_case(dataset):
    (dataset / "imagesTs" / "t_0000.nii").write_bytes(b"junk")


def add_splits(dataset):
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["q"]}]))


def add_an_image_without_a_label(dataset):
    write(dataset / "imagesTr" / "c_0000.nii", np.ones(SHAPE, np.float32))


def touch_a_file(dataset):
    path = dataset / "imagesTr" / "a_0000.nii"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [damage_a_test_case, add_splits, add_an_image_without_a_label, touch_a_file])
def test_whatever_a_check_looks_at_makes_it_look_again(dataset, tmp_path, looks, change):
    check_once(dataset, tmp_path / "store")
    change(dataset)
    assert check_once(dataset, tmp_path / "store") == check_dataset(dataset)
    assert looks == ["check"] * 2


def test_a_report_of_problems_is_not_kept(dataset, tmp_path, looks):
    write(dataset / "labelsTr" / "b.nii", np.full(SHAPE, 9, np.uint8))
    assert check_once(dataset, tmp_path / "store").problems == check_once(dataset, tmp_path / "store").problems != ()
    assert looks == ["check"] * 2
    assert check_once(tmp_path / "none", tmp_path / "store").problems


def test_a_dataset_that_cannot_be_inspected_leaves_no_file(dataset, tmp_path):
    write(dataset / "imagesTr" / "a_0000.nii", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(DatasetError):
        inspect_once(NNUNetDataset(dataset), tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("rubbish", [b"", b"[]", b"{", b"\xff", b'{"warnings": 3}'])
def test_damaged_files_are_made_again(dataset, tmp_path, looks, rubbish):
    store = tmp_path / "store"
    check_once(dataset, store)
    inspect_once(NNUNetDataset(dataset), store)
    for path in store.iterdir():
        path.write_bytes(rubbish)
    assert check_once(dataset, store) == check_dataset(dataset)
    assert inspect_once(NNUNetDataset(dataset), store) == inspect(dataset)
    assert looks == ["check", "inspect"] * 2


def test_a_part_of_a_dataset_has_a_fingerprint_of_its_own(dataset, tmp_path):
    whole = NNUNetDataset(dataset)
    inspect_once(whole, tmp_path / "store")
    assert [case.case_id for case in inspect_once(whole.subset(["b"]), tmp_path / "store").cases] == ["b"]


def test_nothing_is_written_into_the_dataset(dataset, tmp_path):
    before = sorted(dataset.rglob("*"))
    check_once(dataset, tmp_path / "store")
    inspect_once(NNUNetDataset(dataset), tmp_path / "store")
    assert sorted(dataset.rglob("*")) == before
    assert len(list((tmp_path / "store").iterdir())) == 2
