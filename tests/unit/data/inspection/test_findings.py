from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from candy_monai.data.inspection import checks
from candy_monai.data.inspection import inspect as inspection
from candy_monai.data.inspection.checks import check_dataset, visit_dataset
from candy_monai.data.inspection.findings import has_been_used
from candy_monai.data.inspection.inspect import inspect
from candy_monai.processes import Processes
from tests.folders import texture
from tests.looks import counted_digests, counted_parses, counted_reads

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
    """Return a list that grows by a path whenever a file is decoded."""
    return counted_reads(monkeypatch)


def names(paths):
    return sorted(path.name for path in paths)


ALL = ["a.nii", "a_0000.nii", "b.nii", "b_0000.nii", "t_0000.nii"]


def test_one_look_parses_digests_and_decodes_everything_once(dataset, tmp_path, looks, monkeypatch):
    parses, digests = counted_parses(monkeypatch), counted_digests(monkeypatch)
    visit_dataset(dataset, store=tmp_path / "store")
    assert len(parses) == 1
    assert names(looks) == ALL
    assert names(digests) == ALL


def test_one_look_finds_what_a_check_and_an_inspection_find_and_the_next_decodes_nothing(dataset, tmp_path, looks):
    expected = check_dataset(dataset), inspect(dataset)
    first = visit_dataset(dataset, store=tmp_path / "store")
    looks.clear()
    again = visit_dataset(dataset, store=tmp_path / "store")
    assert looks == []
    assert (first.report, first.fingerprint) == (again.report, again.fingerprint) == expected
    assert "labelsTr: no foreground in 1 of 2 cases: a" in again.report.warnings


def change_a_voxel(dataset):
    write(dataset / "imagesTr" / "a_0000.nii", np.full(SHAPE, 7.0, np.float32))


def change_a_label(dataset):
    write(dataset / "labelsTr" / "a.nii", np.ones(SHAPE, np.uint8))


def touch_a_file(dataset):
    path = dataset / "imagesTr" / "a_0000.nii"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def damage_a_test_case(dataset):
    (dataset / "imagesTs" / "t_0000.nii").write_bytes(b"junk")


def add_splits(dataset):
    (dataset / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["q"]}]))


def add_an_image_without_a_label(dataset):
    write(dataset / "imagesTr" / "c_0000.nii", np.ones(SHAPE, np.float32))


def add_a_case(dataset):
    write(dataset / "imagesTr" / "c_0000.nii", np.full(SHAPE, 9.0, np.float32))
    write(dataset / "labelsTr" / "c.nii", np.ones(SHAPE, np.uint8))
    path = dataset / "dataset.json"
    path.write_text(path.read_text().replace('"numTraining": 2', '"numTraining": 3'))


def rename_a_class(dataset):
    path = dataset / "dataset.json"
    path.write_text(path.read_text().replace('"x"', '"y"'))


@pytest.mark.parametrize(
    ("change", "decoded"),
    [
        (change_a_voxel, ALL[:2]),
        (change_a_label, ALL[:2]),
        (touch_a_file, ALL[:2]),
        (damage_a_test_case, ALL[4:]),
        (add_splits, []),
        (add_an_image_without_a_label, []),
        (add_a_case, ["c.nii", "c_0000.nii"]),
        (rename_a_class, ALL),
    ],
)
def test_what_has_changed_is_looked_at_again_and_nothing_else(dataset, tmp_path, looks, change, decoded):
    visit_dataset(dataset, store=tmp_path / "store")
    change(dataset)
    looks.clear()
    found = visit_dataset(dataset, store=tmp_path / "store")
    assert names(looks) == decoded
    assert found.report == check_dataset(dataset)
    if not found.report.problems:
        assert found.fingerprint == inspect(dataset)


def test_nothing_is_kept_of_a_dataset_with_problems_where_nothing_was_kept_before(dataset, tmp_path):
    write(dataset / "labelsTr" / "b.nii", np.full(SHAPE, 9, np.uint8))
    (tmp_path / "store").mkdir()
    assert visit_dataset(dataset, store=tmp_path / "store").report.problems != ()
    assert list((tmp_path / "store").iterdir()) == []
    assert visit_dataset(dataset, store=tmp_path / "out" / ".store").report.problems != ()
    assert visit_dataset(tmp_path / "none", store=tmp_path / "out" / ".store").report.problems != ()
    assert not (tmp_path / "out").exists()


def test_of_a_known_dataset_with_problems_only_the_cases_with_problems_are_looked_at_again(dataset, tmp_path, looks):
    visit_dataset(dataset, store=tmp_path / "store")
    write(dataset / "labelsTr" / "b.nii", np.full(SHAPE, 9, np.uint8))
    first = visit_dataset(dataset, store=tmp_path / "store")
    looks.clear()
    again = visit_dataset(dataset, store=tmp_path / "store")
    assert names(looks) == ["b.nii", "b_0000.nii"]
    assert first.report == again.report
    assert first.report.problems != ()
    assert first.fingerprint is None


def test_what_was_found_before_an_interruption_is_not_looked_for_again(dataset, tmp_path, looks, monkeypatch):
    whole = visit_dataset(dataset)
    read = checks.read_scan

    def interrupted(path, **keywords):
        if path.name == "b_0000.nii":
            raise KeyboardInterrupt
        return read(path, **keywords)

    with monkeypatch.context() as patched:
        patched.setattr(checks, "read_scan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            visit_dataset(dataset, store=tmp_path / "store", num_workers=1)
    looks.clear()
    again = visit_dataset(dataset, store=tmp_path / "store", num_workers=1)
    assert names(looks) == [name for name in ALL if not name.startswith("a")]
    assert (again.report, again.fingerprint) == (whole.report, whole.fingerprint)


def test_processes_share_what_they_look_at_by_what_is_kept(dataset, tmp_path, looks):
    alone = visit_dataset(dataset)
    looks.clear()
    second, first = (
        visit_dataset(dataset, store=tmp_path / "store", processes=Processes(rank=rank, world_size=2))
        for rank in (1, 0)
    )
    assert names(looks) == ALL
    assert first.fingerprint == second.fingerprint == alone.fingerprint
    assert first.report == second.report == alone.report
    assert not list((tmp_path / "store").rglob(".*"))


@pytest.mark.parametrize("rubbish", [b"", b"[]", b"PK", b"\xff"])
def test_damaged_files_are_made_again(dataset, tmp_path, looks, rubbish):
    store = tmp_path / "store"
    first = visit_dataset(dataset, store=store)
    kept = [path for path in store.rglob("*") if path.is_file()]
    assert len(kept) == 3
    for path in kept:
        path.write_bytes(rubbish)
    assert visit_dataset(dataset, store=store).fingerprint == first.fingerprint
    assert names(looks) == sorted(2 * ALL)


def test_of_more_cases_fewer_samples_are_pooled_and_kept_ones_do_until_more_are_needed(
    dataset, tmp_path, looks, monkeypatch
):
    for module in (inspection, checks):  # 60 of 120 voxels of 2 cases, 40 of 3
        monkeypatch.setattr(module, "samples_per_case", lambda num_cases, _: 120 // num_cases)
    store, path = tmp_path / "store", dataset / "dataset.json"
    visit_dataset(texture(dataset), store=store)
    add_a_case(dataset)
    looks.clear()
    fewer = visit_dataset(dataset, store=store).fingerprint
    assert names(looks) == ["c.nii", "c_0000.nii"]
    assert fewer == inspect(dataset)
    (dataset / "imagesTr" / "b_0000.nii").unlink()
    (dataset / "labelsTr" / "b.nii").unlink()
    path.write_text(path.read_text().replace('"numTraining": 3', '"numTraining": 2'))
    looks.clear()
    more = visit_dataset(dataset, store=store).fingerprint
    assert names(looks) == ["c.nii", "c_0000.nii"]
    assert more == inspect(dataset)


def test_a_folder_with_files_of_this_version_or_of_one_before_has_been_used(dataset, tmp_path):
    assert not has_been_used(tmp_path / "store")
    visit_dataset(dataset, store=tmp_path / "store")
    assert has_been_used(tmp_path / "store")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "Dataset001_X-0123456789abcdef.fingerprint-4.json").touch()
    assert has_been_used(tmp_path / "old")


def test_nothing_is_written_into_the_dataset(dataset, tmp_path):
    before = sorted(dataset.rglob("*"))
    visit_dataset(dataset, store=tmp_path / "store")
    assert sorted(dataset.rglob("*")) == before
