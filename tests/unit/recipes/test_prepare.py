import json
import math
import shlex
import shutil
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, DatasetError, SettingsError
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.prepare import memory_for, prepare_dataset
from candy_monai.training.options import SegmentationOptions
from tests.looks import counted_reads


def _prepare(dataset, out, **options):
    given = {name: options.pop(name) for name in ("trainer", "on_progress") if name in options}
    return prepare_dataset(
        dataset,
        TrainOptions(out=out, **options),
        device=torch.device("cpu"),
        **{"on_progress": lambda _message: None, **given},
    )


def _trainer(memory_factor=1.0, check_plan=lambda plan: None):
    options = SegmentationOptions(memory_factor=memory_factor, follows_filters=True)
    return SimpleNamespace(options=options, check_plan=check_plan, adapt_plan=lambda plan: plan)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=3, shape=(24, 24, 16))


def test_a_dataset_is_prepared_below_the_experiments_and_says_what_it_does(phantom, tmp_path):
    messages = []
    prepared = _prepare(phantom, tmp_path / "out", on_progress=messages.append)
    assert prepared.store.folder.parent == tmp_path / "out" / ".store"
    assert prepared.store.case_ids == prepared.dataset.case_ids
    assert [message.split()[0] for message in messages] == ["Checking", "Preprocessing"]


def test_the_store_can_be_elsewhere_and_is_found_again(phantom, tmp_path):
    first = _prepare(phantom, tmp_path, store=tmp_path / "fast disk")
    stamps = {path: path.stat().st_mtime_ns for path in first.store.folder.iterdir() if path.suffix == ".npy"}
    second = _prepare(phantom, tmp_path, store=tmp_path / "fast disk")
    assert second.store.folder == first.store.folder
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.fixture(scope="module")
def thick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "thick"
    return write_phantom_dataset(folder, num_cases=3, shape=(24, 24, 16), spacing_mm=(1.0, 1.0, 5.0))


def test_the_configuration_that_is_not_taken_is_planned_too_and_said_why_not(phantom, thick, tmp_path):
    other, why_not = _prepare(thick, tmp_path, trainer=_trainer()).other
    assert (other.configuration, other.slice_axis) == ("3d", None)
    assert "slices reached a Dice" in why_not
    assert _prepare(thick, tmp_path, trainer=_trainer(), configuration="2d").other is None
    other, why_not = _prepare(phantom, tmp_path, trainer=_trainer()).other
    assert (other.configuration, why_not) == ("2d", "no earlier run on a similar dataset compared slices with volumes")


def test_a_network_that_needs_more_memory_than_a_u_net_gets_smaller_patches(phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("candy_monai.recipes.prepare.device_memory", lambda device: 30 << 20)
    small, smaller = (_prepare(phantom, tmp_path, trainer=_trainer(factor)).plan for factor in (1.0, 2.0))
    assert math.prod(smaller.patch_shape) < math.prod(small.patch_shape)


def test_a_network_of_its_own_width_takes_twice_as_much_beside_the_narrow_u_net_of_a_small_memory(monkeypatch):
    wide, device = (
        SimpleNamespace(options=SegmentationOptions(memory_factor=2.0, follows_filters=False)),
        torch.device("cpu"),
    )
    bounds = {}
    for memory in (4 << 30, 64 << 30):
        monkeypatch.setattr("candy_monai.recipes.prepare.device_memory", lambda _device, found=memory: found)
        bounds[memory] = [memory_for(trainer, device) for trainer in (None, _trainer(2.0), wide)]
    assert bounds == {4 << 30: [4 << 30, 2 << 30, 1 << 30], 64 << 30: [64 << 30, 32 << 30, 32 << 30]}


def test_a_plan_that_cannot_be_followed_is_refused_before_the_cases_are_preprocessed(phantom, tmp_path):
    def refuse(plan):
        raise BadInputError(f"no {plan.num_dims}-D")

    with pytest.raises(BadInputError, match="no 3-D"):
        _prepare(phantom, tmp_path, trainer=_trainer(check_plan=refuse))
    assert not list(tmp_path.rglob("store*.json"))


def test_an_unknown_override_is_refused_with_the_closest_known_one(phantom, tmp_path):
    with pytest.raises(SettingsError, match="batch_size"):
        _prepare(phantom, tmp_path, overrides={"batch_sise": "2"})


@pytest.mark.parametrize("missing", ["imagesTr", "labelsTr", "dataset.json"])
def test_a_folder_that_is_no_dataset_says_what_is_missing(tmp_path, missing):
    folder = write_phantom_dataset(tmp_path / "d", num_cases=2, shape=(16, 16, 16))
    (folder / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=missing):
        _prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_cases_that_the_disk_cannot_hold_are_refused_with_both_sizes(phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=1000))
    with pytest.raises(BadInputError, match=r"cases take .* kB, and 1 kB are free"):
        _prepare(phantom, tmp_path)
    assert not list(tmp_path.rglob("*.npy"))


def test_the_size_is_said_before_preprocessing(phantom, tmp_path):
    said = []
    _prepare(phantom, tmp_path, on_progress=said.append)
    assert said[-1].startswith("Preprocessing 3 cases: ")
    assert " kB in " in said[-1]


def _with_more_cases(folder, source, *, scale=1.0):
    """Return a copy of a phantom with two cases more, of another spacing if asked for."""
    shutil.copytree(source, folder)
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (folder / "labelsTr").iterdir())
    for case_id in ids[:2]:
        for path in [*(folder / "imagesTr").glob(f"{case_id}_*"), folder / "labelsTr" / f"{case_id}.nii.gz"]:
            image = nibabel.load(path)
            affine = image.affine @ np.diag([1.0, 1.0, scale, 1.0])
            values = np.asarray(image.dataobj)[::-1]
            nibabel.save(nibabel.Nifti1Image(values, affine), path.with_name(f"z{path.name}"))
    description = json.loads((folder / "dataset.json").read_text())
    description["numTraining"] = len(ids) + 2
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_cases_that_are_added_are_all_that_is_looked_at_and_preprocessed(phantom, tmp_path, monkeypatch):
    grown, said = _with_more_cases(tmp_path / "data" / phantom.name, phantom), []
    _prepare(phantom, tmp_path / "out")
    reads = counted_reads(monkeypatch)
    for path in sorted(phantom.rglob("*.nii.gz")):  # a copy has times of its own
        shutil.copystat(path, grown / path.relative_to(phantom))
    prepared = _prepare(grown, tmp_path / "out", on_progress=said.append)
    assert said[-1].startswith("Preprocessing 2 of 5 cases: ")
    assert all(path.name.startswith("z") for path in reads)
    assert len(reads) == 2 * sum(path.name.startswith("z") for path in grown.rglob("*.nii.gz"))
    afresh = _prepare(grown, tmp_path / "afresh")
    assert (prepared.fingerprint, prepared.plan) == (afresh.fingerprint, afresh.plan)
    assert prepared.store.case_ids == afresh.store.case_ids
    for case_id in afresh.store.case_ids:
        assert np.array_equal(prepared.store.load(case_id).image, afresh.store.load(case_id).image)


def test_a_plan_that_moves_with_new_cases_is_told_and_the_old_one_can_be_kept(phantom, tmp_path):
    grown, said = _with_more_cases(tmp_path / "data" / phantom.name, phantom, scale=0.5), []
    overrides = {"orientation": "RAS"}
    old = _prepare(phantom, tmp_path / "out", overrides=overrides)
    moved = _prepare(grown, tmp_path / "out", overrides=overrides, on_progress=said.append)
    (told,) = [text for text in said if text.startswith("The plan has changed with the dataset (")]
    assert "spacing_mm" in told or "patch_shape" in told
    kept = _prepare(grown, tmp_path / "out", plan=shlex.split(told)[-1])
    assert kept.plan.spacing_mm == old.plan.spacing_mm
    assert kept.plan.patch_shape == old.plan.patch_shape
    assert kept.store.folder == old.store.folder
    assert moved.plan != old.plan
