from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Flipd, RandFlipd, Resized
from torch.utils.data import DataLoader, WeightedRandomSampler

from candy_monai.data.datasets.files import BinarizedDataset, DatasetFromMemory
from candy_monai.data.datasets.joint import JointTransform
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.samples.patches import EpochSampler
from candy_monai.data.samples.roi import RandomROIDataset, ROIDataset, statistical_foreground_shape
from candy_monai.errors import BadInputError
from tests.toys import SmallTrainer


def boxed(shape, *boxes):
    """Return a label with ids 1, 2 ... in boxes, and an image that says where each voxel was, from 1."""
    label = torch.zeros(1, *shape, dtype=torch.int64)
    for class_id, box in enumerate(boxes, start=1):
        label[(0, *(slice(*side) for side in box))] = class_id
    return torch.arange(1.0, label.numel() + 1).reshape(label.shape), label


def memory(*pairs, **options):
    return DatasetFromMemory([image for image, _ in pairs], [label for _, label in pairs], **options)


@pytest.fixture(scope="module")
def dataset():
    return memory(*(boxed((12, 14 + index), [(2, 5), (3, 8)], [(9, 10), (1, 2)]) for index in range(5)))


def test_the_statistical_shape_is_the_percentile_of_each_axis_over_cases_with_foreground():
    pairs = [boxed((20, 20), [(0, 2 + index), (0, 4)]) for index in range(5)] + [boxed((20, 20))]
    inspection = inspect(memory(*pairs))
    assert statistical_foreground_shape(inspection, percentile=0.5) == (4, 4)
    assert statistical_foreground_shape(inspection, percentile=1.0) == (6, 4)
    with pytest.raises(BadInputError, match="share from 0 to 1"):
        statistical_foreground_shape(inspection, percentile=95)


def test_a_crop_is_centred_on_the_foreground_s_box():
    image, label = ROIDataset(memory(boxed((12, 12), [(4, 7), (5, 8)])))[0]
    assert image.shape == label.shape == (1, 3, 3)
    assert (label == 1).all()
    assert image[0, 0, 0].item() == 4 * 12 + 5 + 1


def test_a_crop_stays_within_a_case_that_is_large_enough():
    image, label = ROIDataset(memory(boxed((12, 12), [(0, 2), (10, 12)])), roi_shape=(6, 6))[0]
    assert (image > 0).all()
    assert (label[0, :2, 4:] == 1).all()


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize(("ignore_label", "filled"), [(None, 0), (7, 7)])
def test_smaller_cases_are_padded_to_the_asked_shape(random, ignore_label, filled):
    cls = RandomROIDataset if random else ROIDataset
    dataset = cls(memory(boxed((4, 9), [(1, 3), (2, 4)])), roi_shape=(8, 5), ignore_label=ignore_label)
    for index in range(1 if not random else 8):
        image, label = dataset[index]
        assert image.shape == label.shape == (1, 8, 5)
        assert (image.dtype, label.dtype) == (torch.float32, torch.int64)
        assert (image[0, :2] == 0).all()
        assert (image[0, 6:] == 0).all()
        assert (label[0, :2] == filled).all()
        assert (label[0, 6:] == filled).all()


@given(
    volume=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    shape=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
@settings(max_examples=30)
def test_every_crop_has_exactly_the_asked_shape(volume, shape):
    dataset = memory(boxed(tuple(volume), [(0, 1)] * 3))
    for crops in (ROIDataset(dataset, roi_shape=shape), RandomROIDataset(dataset, roi_shape=shape)):
        assert crops[0][0].shape == crops[0][1].shape == (1, *shape)


def test_shapes_are_rounded_up_to_the_factor(dataset):
    assert ROIDataset(dataset, roi_shape=(5, 16), min_factor=8).roi_shape() == (8, 16)


def test_the_affine_of_a_crop_says_where_it_lies():
    affine = torch.tensor([[0, 2.0, 0, 10], [-3.0, 0, 0, 20], [0, 0, 1, 30], [0, 0, 0, 1]], dtype=torch.float64)
    image, label = boxed((12, 12, 5), [(4, 7), (5, 8), (1, 4)])
    (crop, _) = ROIDataset(memory((MetaTensor(image, affine=affine), MetaTensor(label, affine=affine))))[0]
    assert crop.affine[:3, 3].tolist() == [10 + 2 * 5, 20 - 3 * 4, 30 + 1]
    assert crop.affine[:3, :3].tolist() == affine[:3, :3].tolist()


def test_the_wrapped_dataset_s_transforms_apply_and_its_tensors_stay_as_they_are():
    image, label = boxed((12, 12), [(1, 3), (1, 3)])
    before = label.clone()
    flipped = memory((image, label), transform=JointTransform(Flipd(["image", "label"], spatial_axis=0)))
    for crops in (ROIDataset(flipped), RandomROIDataset(flipped, foreground_share=1.0, roi_shape=(2, 2))):
        _, crop = crops[0]
        crop += 5
        assert (crop > 5).any()
        assert torch.equal(label, before)
    assert (ROIDataset(flipped)[0][1] == 1).all()  # the foreground is where the flip took it


def test_crops_of_a_derived_dataset_see_its_labels(dataset):
    assert ROIDataset(BinarizedDataset(dataset, (2,)))[0][1].tolist() == [[[1]]]


def test_a_size_of_the_inspection_is_not_taken_for_cases_that_transforms_resize():
    resized = memory(
        boxed((8, 8), [(2, 4), (2, 4)]), transform=JointTransform(Resized(["image", "label"], (16, 16), mode="nearest"))
    )
    with pytest.raises(BadInputError, match=r"change its shape from \(8, 8\) to \(16, 16\).*give roi_shape"):
        ROIDataset(resized)[0]
    assert (ROIDataset(resized, roi_shape=(4, 4))[0][1] == 1).all()


def test_one_inspection_serves_every_fold(dataset):
    inspection = inspect(dataset)
    whole = RandomROIDataset(dataset, inspection)
    training, validation = whole.fold(k=5)
    assert (len(training), len(validation)) == (4, 1)
    assert {training.draw(index).case_id for index in range(40)} == set(training.case_ids)
    before = ROIDataset(dataset.fold(k=5)[1], inspection)
    assert before.case_ids == validation.case_ids


def test_a_case_that_was_not_inspected_is_named(dataset):
    with pytest.raises(BadInputError, match=r"lacks the cases 'case_0000'"):
        ROIDataset(dataset, inspect(dataset.subset(dataset.case_ids[1:])))


def test_an_ignored_id_that_the_inspection_counted_gives_no_size():
    pair = boxed((9, 9), [(2, 4), (2, 4)], [(0, 1), (0, 9)])
    with pytest.raises(BadInputError, match="counted the ignored id 2 as foreground"):
        ROIDataset(memory(pair), ignore_label=2)
    assert ROIDataset(memory(pair), ignore_label=2, roi_shape=(2, 2))[0][1].unique().tolist() == [1]


def test_what_is_no_labelled_dataset_is_refused(dataset):
    with pytest.raises(BadInputError, match="images with labels as the first argument, got a Fingerprint"):
        ROIDataset(inspect(dataset))
    with pytest.raises(BadInputError, match="dataset of images with labels, got a DatasetFromMemory"):
        inspect(DatasetFromMemory([torch.zeros(1, 4, 4)]))


def test_without_any_foreground_a_shape_must_be_given():
    empty = memory(boxed((6, 6)))
    with pytest.raises(BadInputError, match="give roi_shape"):
        ROIDataset(empty)
    image, _ = ROIDataset(empty, roi_shape=(2, 2))[0]
    assert image[0].tolist() == [[15, 16], [21, 22]]  # the middle: rows and columns 2 and 3
    assert RandomROIDataset(empty, roi_shape=(2, 2))[0][0].shape == (1, 2, 2)


@pytest.mark.parametrize("share", [0.0, 0.33, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_the_foreground_share_holds_for_any_batch_size_and_sampler(dataset, share, batch_size):
    crops = RandomROIDataset(dataset, foreground_share=share, patches_per_case=12, seed=3)
    samplers = (EpochSampler(60), range(60), torch.randperm(60).tolist())
    for sampler in samplers:
        seen = []
        for epoch in range(5):
            crops.set_epoch(epoch)
            indices = [index for batch in torch.utils.data.BatchSampler(sampler, batch_size, False) for index in batch]
            seen += [crops.draw(index).on_foreground for index in indices]
        assert np.mean(seen) == pytest.approx(share, abs=0.03)


def test_every_case_is_sampled_both_ways(dataset):
    crops = RandomROIDataset(dataset, foreground_share=0.33)
    seen = set()
    for epoch in range(12):
        crops.set_epoch(epoch)
        drawn = [crops.draw(index) for index in range(len(crops))]
        assert {draw.case_id for draw in drawn} == set(dataset.case_ids)
        seen |= {(draw.case_id, draw.on_foreground) for draw in drawn}
    assert len(seen) == 2 * len(dataset)


def test_a_sampler_that_draws_with_replacement_keeps_the_share_over_epochs(dataset):
    crops = RandomROIDataset(dataset, foreground_share=0.33)
    torch.manual_seed(0)
    seen = []
    for epoch in range(400):
        crops.set_epoch(epoch)
        seen += [crops.draw(index).on_foreground for index in WeightedRandomSampler([1, 5, 1, 1, 1], 5)]
    assert np.mean(seen) == pytest.approx(0.33, abs=0.03)


@pytest.mark.parametrize("places", [0, 3])
def test_a_crop_on_foreground_shows_a_labelled_voxel_and_classes_come_evenly(dataset, places):
    crops = RandomROIDataset(
        dataset, inspect(dataset, places_per_class=places), roi_shape=(2, 2), foreground_share=1.0, patches_per_case=40
    )
    labels = [label for _, label in crops]
    assert len(labels) == 200
    assert all((label > 0).any() for label in labels)
    small = np.mean([bool((label == 2).any()) for label in labels])  # 1 voxel, against 15 of the other class
    assert small == pytest.approx(0.5, abs=0.12)


def test_places_that_a_transform_emptied_are_not_trusted():
    pair = boxed((12, 12), [(1, 3), (1, 3)])
    inspection = inspect(memory(pair), places_per_class=4)
    flipped = memory(pair, transform=JointTransform(Flipd(["image", "label"], spatial_axis=1)))
    crops = RandomROIDataset(flipped, inspection, roi_shape=(2, 2), foreground_share=1.0)
    assert all((crops[index][1] == 1).any() for index in range(8))


def test_with_an_ignore_label_no_crop_misses_what_was_annotated():
    label = torch.full((1, 30, 30), 3)
    label[0, 2:5, 2:5] = 0
    crops = RandomROIDataset(memory((torch.ones(1, 30, 30), label)), roi_shape=(4, 4), ignore_label=3)
    assert all((crops[index][1] != 3).any() for index in range(30))


def test_crops_are_a_function_of_seed_epoch_and_index(dataset):
    one, other = RandomROIDataset(dataset, seed=1), RandomROIDataset(dataset, seed=1)
    one.set_epoch(2)
    other.set_epoch(2)
    backwards = {index: other[index] for index in reversed(range(10))}
    assert all(torch.equal(one[index][0], backwards[index][0]) for index in range(10))
    second = [one[index][0] for index in range(5)]
    one.set_epoch(3)
    assert not all(torch.equal(one[index][0], second[index]) for index in range(5))
    assert not all(torch.equal(RandomROIDataset(dataset, seed=2)[i][0], other[i][0]) for i in range(5))


def test_a_random_transform_is_seeded_for_each_crop(dataset):
    def crops():
        flip = JointTransform(RandFlipd(["image", "label"], prob=0.5, spatial_axis=0))
        return RandomROIDataset(dataset, transform=flip, roi_shape=(4, 4))

    one, other = crops(), crops()
    other[7]
    assert all(torch.equal(one[index][0], other[index][0]) for index in range(10))


def test_random_transforms_of_the_wrapped_dataset_are_seeded_for_each_crop_too():
    def crops():
        flip = JointTransform(RandFlipd(["image", "label"], prob=0.5, spatial_axis=0))
        return RandomROIDataset(memory(boxed((12, 12), [(1, 3), (1, 3)]), transform=flip), patches_per_case=12)

    one, other = crops(), crops()
    assert one.follows_position
    other[7]
    assert all(torch.equal(one[index][0], other[index][0]) for index in range(12))
    upright = [bool(image[0, 1, 0] > image[0, 0, 0]) for image, _ in one]
    assert set(upright) == {True, False}


def test_a_transform_that_cannot_be_seeded_leaves_no_promise(dataset):
    plain = RandomROIDataset(dataset, transform=lambda image, label: (image, label))
    assert not plain.follows_position
    assert RandomROIDataset(dataset).follows_position
    assert not RandomROIDataset(plain, inspect(dataset), roi_shape=(2, 2)).follows_position


def test_iterating_ends_with_the_epoch_and_negative_indices_are_refused(dataset):
    crops = RandomROIDataset(dataset, patches_per_case=2)
    assert len(list(crops)) == len(crops) == 10
    with pytest.raises(IndexError):
        crops[-1]
    assert crops[3][0].meta["case_id"] == crops.draw(3).case_id


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"foreground_share": 33}, "foreground_share"),
        ({"patches_per_case": 0}, "patches_per_case"),
        ({"roi_shape": (4, 4, 4)}, "3 axes, the cases have 2"),
        ({"roi_shape": (0, 4)}, "1 or more"),
        ({"min_factor": 0}, "1 or more"),
    ],
)
def test_options_that_cannot_work_are_refused(dataset, options, named):
    with pytest.raises(BadInputError, match=named):
        RandomROIDataset(dataset, **options)


def test_a_pickled_dataset_gives_the_same_crops(dataset):
    crops = RandomROIDataset(dataset)
    crops.set_epoch(4)
    assert torch.equal(pickle.loads(pickle.dumps(crops))[1][0], crops[1][0])


def test_a_trainer_says_which_epoch_it_is(tmp_path, dataset):
    crops = RandomROIDataset(dataset, roi_shape=(8, 8))
    trainer = SmallTrainer(tmp_path, DataLoader(crops, batch_size=5, shuffle=True), None, console=False)
    trainer.num_classes = 3
    trainer.train(3, save_preview=False, ema=False)
    assert int(crops._epoch) == 2


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_any_number_of_workers_gives_the_same_crops_and_running_ones_follow_the_epoch(dataset, context):
    crops = RandomROIDataset(dataset, patches_per_case=3, roi_shape=(4, 4))
    plain = DataLoader(crops, batch_size=4)
    workers = DataLoader(crops, batch_size=4, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    for epoch in (0, 5):
        crops.set_epoch(epoch)
        for (image, label), (other_image, other_label) in zip(plain, workers, strict=True):
            assert torch.equal(image, other_image)
            assert torch.equal(label, other_label)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "channels", "options"),
    [("Dataset004_Hippocampus", 1, {}), ("Dataset121_DRIVE", 3, {"roi_shape": (256, 192)})],
)
def test_crops_of_real_cases_have_one_shape_and_the_asked_share(real_dataset, name, channels, options):
    whole = NNUNetDataset(real_dataset(name))
    dataset = whole.subset(whole.case_ids[:10])
    inspection = inspect(dataset)
    middle = ROIDataset(dataset, inspection, percentile=1.0)
    assert all((crop > 0).sum() == (label > 0).sum() for (_, crop), (_, label) in zip(middle, dataset, strict=True))
    crops = RandomROIDataset(dataset, inspection, patches_per_case=3, foreground_share=0.5, **options)
    assert {tuple(image.shape) for image, _ in crops} == {(channels, *crops.roi_shape())}
    assert np.mean([crops.draw(index).on_foreground for index in range(len(crops))]) == pytest.approx(0.5, abs=0.03)
