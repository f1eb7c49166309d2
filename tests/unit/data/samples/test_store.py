from __future__ import annotations

import errno
import hashlib
import itertools
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.reading import load_image
from candy_monai.data.images.writing import save_image
from candy_monai.data.inspection.digest import dataset_digests
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.pipelines.description import OwnTransforms, describe_pipelines
from candy_monai.data.pipelines.preprocessing import Preprocessor
from candy_monai.data.planning.rules import plan
from candy_monai.data.samples.store import ANNOTATED, CaseStore, sampled_places, store_bytes, store_name, unstored_cases
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, CandyError, DatasetError, RunFailedError
from candy_monai.processes import Processes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "Dataset900_Phantom"
    write_phantom_dataset(folder, num_cases=4, num_dims=3)
    return NNUNetDataset(folder)


@pytest.fixture(scope="module")
def fingerprint(dataset):
    return inspect(dataset)


@pytest.fixture(scope="module")
def made_plan(fingerprint):
    return plan(fingerprint)


class CountingDataset:
    """Counts what is loaded, and can break on a case."""

    def __init__(self, dataset, breaks_on=None):
        self._dataset, self.loaded, self._breaks_on = dataset, [], breaks_on
        self.description, self.cases = dataset.description, dataset.cases

    def read(self, idx):
        case_id = self.cases[idx].case_id
        if case_id == self._breaks_on:
            raise KeyboardInterrupt
        self.loaded.append(case_id)
        return self._dataset.read(idx)


def digest_of(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()


def test_what_is_stored_is_what_preprocessing_gives(dataset, made_plan, tmp_path):
    store = CaseStore.build(dataset, made_plan, tmp_path)
    expected = Preprocessor(made_plan).apply(*dataset.load(1))
    found = store.load(store.case_ids[1])
    assert np.array_equal(found.image, expected.image.numpy())
    assert np.array_equal(found.label, expected.label.numpy())
    assert store.case_ids == tuple(case.case_id for case in dataset.cases)


def test_arrays_are_mapped_from_disk_unless_asked_for_whole(dataset, made_plan, tmp_path):
    store = CaseStore.build(dataset, made_plan, tmp_path)
    assert isinstance(store.load(store.case_ids[0]).image, np.memmap)
    assert not isinstance(store.load(store.case_ids[0], mapped=False).image, np.memmap)


def test_places_lie_on_their_class(dataset, made_plan, tmp_path):
    store = CaseStore.build(dataset, made_plan, tmp_path)
    case = store.load(store.case_ids[0])
    assert store.classes_of(case.case_id) == tuple(case.places)
    assert set(case.places) == set(np.unique(case.label)) - {0}
    for class_id, places in case.places.items():
        assert (case.label.ravel()[places] == class_id).all()


def test_places_are_at_most_ten_thousand_a_class_and_a_function_of_the_seed():
    label = np.ones((30, 30, 30), dtype=np.uint8)
    places = sampled_places(label, None, 3)[1]
    assert len(places) == len(set(places.tolist())) == 10_000
    assert np.array_equal(places, sampled_places(label, None, 3)[1])


def test_ignored_voxels_are_no_places_and_annotated_ones_are_known():
    places = sampled_places(np.array([[0, 1, 9], [9, 9, 9]], dtype=np.uint8), 9, 0)
    assert {class_id: found.tolist() for class_id, found in places.items()} == {1: [1], ANNOTATED: [0, 1]}


def test_a_label_without_foreground_has_no_places():
    assert sampled_places(np.zeros((2, 2), dtype=np.uint8), None, 0) == {}


def test_a_finished_store_is_not_built_again(dataset, made_plan, tmp_path):
    CaseStore.build(dataset, made_plan, tmp_path)
    again = CountingDataset(dataset)
    CaseStore.build(again, made_plan, tmp_path)
    assert again.loaded == []


def test_what_a_process_does_not_store_the_next_one_does_and_nothing_is_stored_twice(dataset, made_plan, tmp_path):
    alone = CaseStore.build(dataset, made_plan, tmp_path / "alone")
    counted = [CountingDataset(dataset), CountingDataset(dataset)]
    for rank in (1, 0):
        store = CaseStore.build(
            counted[rank], made_plan, tmp_path / "shared", processes=Processes(rank=rank, world_size=2)
        )
        assert store.case_ids == alone.case_ids
    assert sorted(counted[1].loaded) == sorted(case.case_id for case in dataset.cases)
    assert counted[0].loaded == []
    assert not list((tmp_path / "shared").rglob(".*"))


def test_an_interrupted_build_resumes_where_it_stopped(dataset, made_plan, tmp_path):
    ids = [case.case_id for case in dataset.cases]
    with pytest.raises(KeyboardInterrupt):
        CaseStore.build(CountingDataset(dataset, breaks_on=ids[2]), made_plan, tmp_path, num_workers=1)
    folder = tmp_path / store_name(made_plan)
    with pytest.raises(BadInputError, match="no complete store"):
        CaseStore(folder)
    rest = CountingDataset(dataset)
    CaseStore.build(rest, made_plan, tmp_path)
    assert ids[0] not in rest.loaded
    assert ids[2] in rest.loaded


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("kind", ["empty", "pickle", "index"])
def test_a_damaged_case_is_refused_by_name_and_no_pickle_is_loaded(dataset, made_plan, tmp_path, kind, mapped):
    store = CaseStore.build(dataset, made_plan, tmp_path)
    case_id = store.case_ids[0]
    image = store._paths(case_id).arrays[0]
    if kind == "empty":
        image.write_bytes(b"")
    elif kind == "pickle":
        np.save(image, np.array([{}], dtype=object), allow_pickle=True)
    else:
        store._paths(case_id).index.write_text("{}")
    with pytest.raises(BadInputError, match=f"{case_id}' is damaged"):
        store.load(case_id, mapped=mapped)


def test_a_half_written_case_is_written_again(dataset, made_plan, tmp_path):
    store = CaseStore.build(dataset, made_plan, tmp_path)
    damaged = next(store.folder.glob("*.image.npy"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-10])
    again = CountingDataset(dataset)
    CaseStore.build(again, made_plan, tmp_path)
    assert len(again.loaded) == 1
    assert damaged.read_bytes() == whole


def test_the_key_covers_what_preprocessing_depends_on(made_plan):
    key = store_name(made_plan)
    assert store_name(replace(made_plan, batch_size=7, num_epochs=3)) == key
    assert store_name(replace(made_plan, spacing_mm=(9.0, 9.0, 9.0))) != key
    assert store_name(made_plan, precision="float16") != key
    (channel,) = made_plan.normalization
    assert channel.scheme == "zscore"  # each case by its own mean and deviation
    assert store_name(replace(made_plan, normalization=(replace(channel, mean=5.0, std=3.0),))) == key
    by_others = replace(channel, scheme="ct", lower=-1.0, upper=1.0)
    moved = replace(by_others, mean=5.0)
    assert len({store_name(replace(made_plan, normalization=(how,))) for how in (channel, by_others, moved)}) == 3


def test_the_key_covers_preprocessing_of_ones_own_and_a_saved_runs_is_that_of_the_run(made_plan):
    scaled, flipped = (
        OwnTransforms(preprocessing=[{"_target_": name, "keys": "image"}]) for name in ("ScaleIntensityd", "Flipd")
    )
    assert len({store_name(made_plan, own=own) for own in (scaled, flipped, None)}) == 3
    noise = OwnTransforms(augmentation=[{"_target_": "RandGaussianNoised", "keys": "image"}])
    assert store_name(made_plan, own=noise) == store_name(made_plan)
    for resampling, own in itertools.product(("extent", "none"), (OwnTransforms(), scaled)):
        planned = replace(made_plan, resampling=resampling)
        saved = json.loads(json.dumps(describe_pipelines(planned, own=own)))
        assert store_name(planned, own=OwnTransforms.from_saved(saved)) == store_name(made_plan, own=own)


def changed_copy(dataset, folder):
    shutil.copytree(dataset.folder, folder)
    label = min((folder / "labelsTr").iterdir())
    save_image(load_image(label, is_label=True).flip(1), label)
    return NNUNetDataset(folder)


def test_only_cases_that_are_new_or_changed_are_preprocessed(dataset, made_plan, tmp_path):
    CaseStore.build(dataset.subset(dataset.case_ids[:3]), made_plan, tmp_path)
    added = CountingDataset(dataset)
    store = CaseStore.build(added, made_plan, tmp_path)
    assert added.loaded == [dataset.case_ids[3]]
    assert store.case_ids == dataset.case_ids
    changed = CountingDataset(changed_copy(dataset, tmp_path / "changed"))
    assert unstored_cases(dataset_digests(changed), made_plan, tmp_path) == dataset.case_ids[:1]
    after = CaseStore.build(changed, made_plan, tmp_path)
    assert changed.loaded == [dataset.case_ids[0]]
    old, new = (each.load(dataset.case_ids[0]).label for each in (store, after))  # the first store is as it was
    assert not np.array_equal(old, new)
    assert np.array_equal(store.load(dataset.case_ids[1]).label, after.load(dataset.case_ids[1]).label)


def test_datasets_of_one_name_are_told_apart_in_the_store_that_they_share(dataset, made_plan, tmp_path):
    first = CaseStore.build(dataset.subset(dataset.case_ids[:2]), made_plan, tmp_path)
    second = CaseStore.build(dataset.subset(dataset.case_ids[2:]), made_plan, tmp_path)
    assert first.folder == second.folder
    for side, ids in ((dataset.case_ids[:2], first), (dataset.case_ids[2:], second)):
        digest = dataset_digests(dataset.subset(side)).whole
        assert CaseStore(ids.folder, digest=digest).case_ids == side
    assert CaseStore(first.folder).case_ids == second.case_ids  # the one that was stored last
    with pytest.raises(BadInputError, match="no complete store"):
        CaseStore(first.folder, digest="0" * 16)


def test_a_store_whose_index_had_no_digest_in_its_name_serves_on(dataset, made_plan, tmp_path):
    store = CaseStore.build(dataset, made_plan, tmp_path)
    (index,) = store.folder.glob("store-*.json")
    index.rename(store.folder / "store.json")
    assert CaseStore(store.folder).case_ids == dataset.case_ids
    again = CountingDataset(dataset)
    assert CaseStore.build(again, made_plan, tmp_path).case_ids == dataset.case_ids
    assert again.loaded == []


def test_a_disk_that_fills_is_a_failed_run_with_the_folder_and_what_to_do(dataset, made_plan, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(
        RunFailedError, match=r"cannot be written \(No space left on device\); free some space"
    ) as caught:
        CaseStore.build(dataset, made_plan, tmp_path)
    assert str(tmp_path / store_name(made_plan)) in str(caught.value)


def test_a_case_that_changes_while_it_is_read_is_refused(dataset, made_plan, tmp_path):
    digests = dataset_digests(dataset)
    early = replace(digests, stamps=dict.fromkeys(digests.stamps, "1:2"))
    with pytest.raises(DatasetError, match="changed during preprocessing"):
        CaseStore.build(dataset, made_plan, tmp_path, digests=early)


def test_a_case_whose_files_vanish_while_it_is_read_is_refused(made_plan, tmp_path, monkeypatch):
    data = NNUNetDataset(write_phantom_dataset(tmp_path / "d", num_cases=2, num_test_cases=0, shape=(24, 24, 16)))
    digests, read = dataset_digests(data), data.read

    def vanishing(index):
        case = read(index)
        data.cases[index].images[0].unlink()
        return case

    monkeypatch.setattr(data, "read", vanishing)
    with pytest.raises(DatasetError, match="2 problems") as caught:
        CaseStore.build(data, made_plan, tmp_path, digests=digests)
    assert all("changed during preprocessing" in problem for problem in caught.value.problems)


def test_a_store_of_before_is_refused_by_name(tmp_path):
    (tmp_path / "store.json").write_text('{"format": 2, "dataset": "x", "cases": {"a": [1]}}')
    with pytest.raises(BadInputError, match="a store of another version; build it again"):
        CaseStore(tmp_path)


def test_preprocessing_of_ones_own_is_stored(dataset, made_plan, tmp_path):
    own = OwnTransforms(preprocessing=[{"_target_": "ScaleIntensityd", "keys": "image", "minv": 2.0, "maxv": 3.0}])
    image = CaseStore.build(dataset, made_plan, tmp_path, own=own).load(dataset.cases[0].case_id).image
    assert (float(image.min()), float(image.max())) == (2.0, 3.0)


def test_half_precision_halves_the_images(dataset, made_plan, tmp_path):
    store = CaseStore.build(dataset, made_plan, tmp_path, precision="float16")
    assert store.load(store.case_ids[0]).image.dtype == np.float16


def test_the_datasets_folder_is_never_written_to(dataset, made_plan, tmp_path):
    before = digest_of(dataset.folder)
    CaseStore.build(dataset, made_plan, tmp_path)
    assert digest_of(dataset.folder) == before


def test_every_case_that_cannot_be_preprocessed_is_named(dataset, made_plan, tmp_path):
    class Broken(CountingDataset):
        def read(self, idx):
            image, label = super().read(idx)
            return (replace(image, values=image.values * math.nan) if idx in (1, 3) else image), label

    with pytest.raises(DatasetError) as caught:
        CaseStore.build(Broken(dataset), made_plan, tmp_path)
    assert [problem.split(":")[0] for problem in caught.value.problems] == [dataset.cases[i].case_id for i in (1, 3)]


def test_an_unknown_case_is_refused_with_a_suggestion(dataset, made_plan, tmp_path):
    store = CaseStore.build(dataset, made_plan, tmp_path)
    with pytest.raises(BadInputError, match=f"Did you mean '{store.case_ids[0]}'"):
        store.load(store.case_ids[0] + "x")


def test_labels_beyond_255_are_kept(made_plan, dataset, tmp_path):
    class Many(CountingDataset):
        def read(self, idx):
            image, label = super().read(idx)
            return image, replace(label, values=torch.where(label.values > 0, 300, 0))

    store = CaseStore.build(Many(dataset), made_plan, tmp_path)
    assert set(np.unique(store.load(store.case_ids[0]).label)) == {0, 300}


def test_no_folder_and_no_store_are_refused(tmp_path):
    with pytest.raises(CandyError, match="build it again"):
        CaseStore(tmp_path / "none")


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    [
        "Dataset063_SCTSpinalCord",
        "Dataset121_DRIVE",
        "Dataset127_BUSIMini",
        "Dataset134_MSDLungPatches2D",
        "Dataset056_PICAI2ch",
    ],
)
def test_real_datasets_of_every_kind_are_stored(real_dataset, tmp_path, name):
    dataset = NNUNetDataset(real_dataset(name))
    made = plan(inspect(dataset))
    store = CaseStore.build(dataset, made, tmp_path)
    for case_id in store.case_ids:
        case = store.load(case_id)
        assert len(case.image) == len(made.channel_names)
        assert case.label.shape == (1, *case.image.shape[1:])


@pytest.mark.parametrize("highest", [1e5, 1e-6])
def test_an_image_that_float16_does_not_hold_stays_float32_alone(fingerprint, dataset, tmp_path, highest):
    class Scaled(CountingDataset):
        def read(self, idx):
            image, label = super().read(idx)
            values = torch.linspace(0, highest, image.values.numel()).reshape(image.values.shape)
            return (replace(image, values=values) if idx == 1 else image), label

    as_stored = plan(fingerprint, overrides={"normalization": "nonorm"})
    store = CaseStore.build(Scaled(dataset), as_stored, tmp_path, precision="float16")
    kinds = [store.load(case_id).image.dtype for case_id in store.case_ids]
    assert kinds == [np.float16, np.float32, np.float16, np.float16]
    assert np.isclose(store.load(store.case_ids[1]).image.max(), highest, rtol=0.05)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_size_is_known_before_anything_is_preprocessed(dataset, made_plan, tmp_path, precision):
    expected = store_bytes(inspect(dataset), made_plan, precision=precision)
    store = CaseStore.build(dataset, made_plan, tmp_path, precision=precision)
    arrays = [np.load(path) for path in store.folder.glob("*.npy") if ".places." not in path.name]
    assert expected == sum(array.nbytes for array in arrays)


def test_the_label_map_of_a_first_stage_is_stored_with_the_axes_of_the_image(dataset, fingerprint, tmp_path):
    def predicted(case_id):  # the reference itself, as the file of a label with other axes has it
        (case,) = (case for case in dataset.cases if case.case_id == case_id)
        file = tmp_path / f"{case_id}.nii.gz"
        label = load_image(case.label, is_label=True)
        turned = label.affine.clone()
        turned[:, 3] += turned[:, 0] * (label.shape[1] - 1)
        turned[:, 0] *= -1
        save_image(MetaTensor(label.as_tensor().flip(1), affine=turned), file)
        return load_image(file, is_label=True)

    cascade = plan(fingerprint, configuration="3d_cascade")
    store = CaseStore.build(dataset, cascade, tmp_path / "store", previous=predicted)
    for case_id in dataset.case_ids:
        case = store.load(case_id)
        assert np.array_equal(case.image[1], case.label[0])
    with pytest.raises(DatasetError, match="phantom_000: the label map of the first stage: shape .*, the image has"):
        CaseStore.build(dataset, cascade, tmp_path / "other", previous=lambda case_id: predicted(case_id)[:, 1:])
