from __future__ import annotations

import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import Flip
from torch.utils.data import DataLoader

from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase
from candy_monai.data.images.reading import Scan
from candy_monai.data.pipelines.description import augmentation, cutting
from candy_monai.data.samples.patches import EpochSampler, PatchDataset, StoredCases, untracked
from candy_monai.data.samples.store import CaseStore
from candy_monai.errors import BadInputError, SettingsError
from tests import plans

PLAN = replace(plans.PLAN, median_shape=(16, 16, 16), class_names=("background", "large", "small"))


class MemoryDataset:
    def __init__(self, pairs):
        self._pairs = list(pairs.values())
        self.cases = tuple(NNUNetCase(case_id=case_id, images=(), label=None) for case_id in pairs)
        self.description = DatasetDescription(
            name="Made up", channel_names=("MRI",), labels={"background": 0, "large": 1, "small": 2}, file_ending=".nii"
        )

    def read(self, idx):
        return tuple(Scan.of(tensor) for tensor in self._pairs[idx])


def pair(shape, *, foreground=True, seed=0):
    """Return an image that repeats its label, plus one so that nothing is cropped."""
    label = torch.zeros(1, *shape, dtype=torch.int64)
    if foreground:
        label[0, 1:4, 1:4, 1:4] = 1
        label[0, -1, -1, -1] = 2
    return label.float() + 1.0, label


def store_of(pairs, folder, plan=PLAN):
    return CaseStore.build(MemoryDataset(pairs), plan, folder)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    pairs = {f"case{index}": pair((16, 12 + index, 20)) for index in range(6)}
    return store_of(pairs, tmp_path_factory.mktemp("store"))


def patches(store, plan=PLAN, *, case_ids=None, seed=0, augment=False, **options):
    options = {"augmentation": None if augment else [], **options}
    return PatchDataset(store, case_ids or store.case_ids, plan, seed=seed, **options)


def same(first, second):
    return (
        torch.equal(first["image"], second["image"])
        and torch.equal(first["label"], second["label"])
        and first["case_id"] == second["case_id"]
    )


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("shape", [(20, 20, 20), (8, 8, 8), (5, 20, 8), (4, 4, 4)])
def test_every_patch_has_exactly_the_asked_shape(tmp_path, shape, augment):
    dataset = patches(store_of({"a": pair(shape)}, tmp_path), augment=augment)
    for index in range(20):
        sample = dataset[index]
        assert sample["image"].shape == sample["label"].shape == (1, 8, 8, 8)
        assert (sample["image"].dtype, sample["label"].dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(("ignore_label", "padding"), [(None, 0), (7, 7)])
def test_beyond_the_volume_labels_are_background_or_ignored_and_images_zero(tmp_path, ignore_label, padding):
    plan = replace(PLAN, ignore_label=ignore_label)
    sample = patches(store_of({"a": pair((4, 8, 8))}, tmp_path, plan), plan)[0]
    outside = torch.ones(8, dtype=torch.bool)
    outside[2:6] = False
    assert (sample["label"][0, outside] == padding).all()
    assert (sample["image"][0, outside] == 0.0).all()
    assert (sample["image"][0, ~outside] > 0.0).all()


@pytest.mark.parametrize("share", [0.0, 0.33, 0.5, 1.0])
def test_the_foreground_share_holds_over_any_stretch_of_samples(store, share):
    dataset = patches(store, replace(PLAN, foreground_share=share))
    for first, length in ((0, 600), (1234, 300), (7, 100)):
        measured = np.mean([dataset.draw(index).on_foreground for index in range(first, first + length)])
        assert measured == pytest.approx(share, abs=0.03)


@given(share=st.floats(0.1, 0.9), num_cases=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_every_case_is_sampled_both_ways_in_the_asked_share(store, share, num_cases, seed):
    dataset = patches(store, replace(PLAN, foreground_share=share), case_ids=store.case_ids[:num_cases], seed=seed)
    visits = {case_id: [] for case_id in store.case_ids[:num_cases]}
    for index in range(60 * num_cases):
        drawn = dataset.draw(index)
        visits[drawn.case_id].append(drawn.on_foreground)
    for ways in visits.values():
        assert len(ways) == 60
        assert np.mean(ways) == pytest.approx(share, abs=1 / 60 + 1e-9)


def test_each_pass_visits_every_case_once_in_an_order_of_its_own(store):
    dataset = patches(store)
    orders = [tuple(dataset.draw(6 * number + i).case_id for i in range(6)) for number in range(8)]
    assert {frozenset(order) for order in orders} == {frozenset(store.case_ids)}
    assert len(set(orders)) > 4


def test_a_foreground_patch_shows_a_labelled_voxel_and_classes_come_evenly(store):
    dataset = patches(store, replace(PLAN, foreground_share=1.0))
    labels = [dataset[index]["label"] for index in range(200)]
    assert all((label > 0).any() for label in labels)
    small = np.mean([bool((label == 2).any()) for label in labels])  # 1 voxel, against 27 of the other class
    assert small == pytest.approx(0.5, abs=0.12)


def test_cases_without_foreground_do_not_lower_the_share(tmp_path):
    pairs = {"full": pair((12, 12, 12)), "empty": pair((12, 12, 12), foreground=False)}
    dataset = patches(store_of(pairs, tmp_path))
    drawn = [dataset.draw(index) for index in range(300)]
    assert np.mean([draw.on_foreground for draw in drawn]) == pytest.approx(0.33, abs=0.03)
    assert not any(draw.on_foreground for draw in drawn if draw.case_id == "empty")


def test_with_an_ignore_label_no_patch_misses_what_was_annotated(tmp_path):
    label = torch.full((1, 30, 30, 30), 3)
    label[0, 2:5, 2:5, 2:5] = 0
    plan = replace(PLAN, ignore_label=3)
    dataset = patches(store_of({"a": (torch.ones(1, 30, 30, 30), label)}, tmp_path, plan), plan)
    assert all((dataset[index]["label"] != 3).any() for index in range(30))


def test_the_samples_are_a_function_of_seed_and_index(store):
    plan = replace(PLAN, foreground_share=1.0)  # patches of nothing but background may be equal by chance
    one, other = patches(store, plan, augment=True), patches(store, plan, augment=True)
    backwards = {index: other[index] for index in reversed(range(12))}
    assert all(same(one[index], backwards[index]) for index in range(12))
    assert not all(same(one[index], patches(store, plan, augment=True, seed=1)[index]) for index in range(12))
    assert not any(same(one[index], one[index + 6]) for index in range(6))


def test_a_large_store_is_mapped_and_gives_the_same_patches(store, monkeypatch):
    expected = [patches(store, augment=True)[index] for index in range(8)]
    monkeypatch.setattr("candy_monai.data.samples.patches._IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("candy_monai.data.samples.patches._OPEN_CASES", 2)
    mapped = patches(store, augment=True)
    assert all(same(mapped[index], expected[index]) for index in range(8))
    assert len(mapped._cases._opened) == 2


def test_a_pickled_dataset_carries_no_arrays_and_gives_the_same_patches(store):
    dataset = patches(store, augment=True)
    expected = dataset[3]
    sent = pickle.dumps(dataset)
    assert len(sent) < 10_000
    assert same(pickle.loads(sent)[3], expected)


def test_image_and_label_are_augmented_in_step(store):
    plan = replace(PLAN, foreground_share=1.0)
    spatial = [entry for entry in augmentation(plan) if "image" not in entry["keys"] or len(entry["keys"]) == 2]
    dataset = patches(store, plan, augmentation=spatial)  # leaves the image as label + 1, or 0 outside
    agreements = []
    for index in range(60):
        sample = dataset[index]
        seen = sample["image"].round().long()
        agreements.append(float((torch.where(seen > 0, seen - 1, 0) == sample["label"]).float().mean()))
    assert np.mean(agreements) > 0.99  # interpolation blurs the borders of the image alone


def test_a_transform_of_the_users_own_is_seeded_by_the_sample(store):
    flip = {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.5, "spatial_axis": 0}
    one, other = (patches(store, augmentation=[*cutting(PLAN), flip]) for _ in range(2))
    other[5]
    assert all(same(one[index], other[index]) for index in range(8))


def test_unknown_and_missing_cases_are_refused(store):
    with pytest.raises(BadInputError, match="there is no case 'nobody'"):
        patches(store, case_ids=["nobody"])
    with pytest.raises(BadInputError, match="no case was given"):
        PatchDataset(store, [], PLAN, seed=0)
    with pytest.raises(IndexError):
        patches(store)[-1]


def test_whole_cases_come_as_they_are_stored(store):
    dataset = StoredCases(store, store.case_ids[1:3])
    assert dataset.case_ids == ("case1", "case2")
    sample = dataset[1]
    assert sample["case_id"] == "case2"
    assert torch.equal(sample["image"], sample["label"].float() + 1.0)
    assert sample["label"].dtype == torch.int64
    assert len(dataset) == 2


def test_epochs_name_consecutive_samples():
    sampler = EpochSampler(4)
    assert list(sampler) == [0, 1, 2, 3]
    sampler.set_epoch(3)
    assert list(sampler) == [12, 13, 14, 15]
    assert len(sampler) == 4
    with pytest.raises(BadInputError):
        EpochSampler(0)


def test_the_place_of_a_patch_does_not_depend_on_how_it_is_changed(store):
    intensities = [entry for entry in augmentation(PLAN) if not entry["_target_"].endswith(("RandWarpd", "RandFlipd"))]
    plain, changed = patches(store), patches(store, augmentation=[*cutting(PLAN), *intensities])
    assert all(torch.equal(plain[index]["label"], changed[index]["label"]) for index in range(30))
    assert not all(torch.equal(plain[index]["image"], changed[index]["image"]) for index in range(30))


def test_one_random_state_is_shared_by_all_parts_and_is_the_samples_own(store):
    dataset = patches(store, augment=True)
    dataset[3]
    states = {id(part.R) for part in dataset._random}
    assert len(states) == 1
    assert len(dataset._random) > len(dataset.augmentation.transforms)  # those within dictionary transforms, too


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"_target_": "RandZoomd", "prob": 1.0, "min_zoom": 1.3, "max_zoom": 1.3, "mode": "area"}, "not whole numbers"),
        ({"_target_": "CenterSpatialCropd", "roi_size": [4, 4, 4]}, "leave out transforms that change it"),
    ],
)
def test_a_transform_of_ones_own_that_spoils_a_patch_is_refused(store, entry, message):
    own = augmentation(replace(PLAN, foreground_share=1.0), [entry | {"keys": ["image", "label"]}])
    dataset = patches(store, replace(PLAN, foreground_share=1.0), augmentation=own)
    with pytest.raises(BadInputError, match=message):
        [dataset[index] for index in range(4)]


def test_a_list_that_cannot_be_built_is_refused_with_its_position(store):
    with pytest.raises(SettingsError, match=r"augmentation\[1\]"):
        patches(store, augmentation=[*augmentation(PLAN)[:1], {"_target_": "os.system"}])


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_any_number_of_workers_forked_or_spawned_gives_the_same_samples(store, context):
    dataset, sampler = patches(store, augment=True), EpochSampler(12)
    sampler.set_epoch(2)
    plain = list(DataLoader(dataset, batch_size=3, sampler=sampler))
    workers = list(DataLoader(dataset, batch_size=3, sampler=sampler, num_workers=2, multiprocessing_context=context))
    for one, other in zip(plain, workers, strict=True):
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["label"], other["label"])
        assert one["case_id"] == other["case_id"]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"_target_": "DeleteItemsd", "keys": "label"}, "the keys image"),
        (
            {"_target_": "RandSpatialCropSamplesd", "keys": ["image", "label"], "roi_size": [4] * 3, "num_samples": 2},
            "several samples",
        ),
    ],
)
def test_an_augmentation_that_makes_no_single_patch_is_refused(store, entry, found):
    with pytest.raises(BadInputError, match=f"the augmentation returned {found}.*expected one sample"):
        patches(store, augmentation=[cutting(PLAN)[0], entry])[0]


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        (
            {"_target_": "RandFlipd", "keys": "img"},
            r"RandFlipd\(keys='img'\): cannot be applied to a patch of case4 \(KeyError",
        ),
        (
            {
                "_target_": "RandSmoothFieldAdjustContrastd",
                "keys": "image",
                "spatial_size": [5] * 3,
                "rand_size": [2] * 3,
            }
            | {"prob": 1.0},
            r"RandSmoothFieldAdjustContrastd\(.*cannot be applied.*RuntimeError",
        ),
    ],
    ids=["key", "shape"],
)
def test_a_step_that_cannot_be_applied_is_refused_with_its_position(store, entry, found):
    with pytest.raises(BadInputError, match=rf"augmentation\[1\], {found}"):
        patches(store, augmentation=[cutting(PLAN)[0], entry])[0]


def is_tracked():
    return isinstance(Flip(0)(MetaTensor(torch.rand(1, 2))), MetaTensor)


def test_metadata_are_off_within_the_block_and_on_after_it_also_after_an_error():
    with untracked():
        with untracked():
            assert not is_tracked()
        assert not is_tracked()
    assert is_tracked()
    with pytest.raises(KeyError), untracked():
        raise KeyError
    assert is_tracked()
    assert get_track_meta() is True


def test_other_threads_keep_their_metadata():
    seen = []
    with untracked():
        thread = threading.Thread(target=lambda: seen.append(is_tracked()))
        thread.start()
        thread.join()
    assert seen == [True]


def test_what_a_user_switched_off_stays_off():
    set_track_meta(False)
    try:
        with untracked():
            assert not is_tracked()
        assert get_track_meta() is False
    finally:
        set_track_meta(True)
