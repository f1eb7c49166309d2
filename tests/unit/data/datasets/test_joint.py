from __future__ import annotations

import pytest
import torch
from monai.transforms import RandAffined, RandCropByPosNegLabeld, RandFlipd, RandGaussianNoised
from torch.utils.data import DataLoader, Dataset

from candy_monai.data.datasets.joint import JointTransform
from candy_monai.errors import BadInputError
from candy_monai.seeding import set_seed
from tests.toys import blob


def test_a_joint_transform_flips_both_or_neither():
    image, label = blob((6, 6))
    joint = JointTransform(RandFlipd(keys=["image", "label"], prob=0.5, spatial_axis=0))
    joint.set_random_state(0)
    seen = set()
    for _ in range(20):
        new_image, new_label = joint(image, label)
        assert torch.equal(torch.as_tensor(new_image).long(), torch.as_tensor(new_label))
        seen.add(torch.equal(torch.as_tensor(new_label), label))
    assert seen == {True, False}


def test_a_joint_transform_never_mutates_its_input():
    def spoil(pair):
        pair["image"].zero_()
        pair["label"].zero_()
        return pair

    image, label = blob((6, 6))
    before = image.clone(), label.clone()
    JointTransform(spoil, image_transform=lambda x: x.add_(1), label_transform=lambda x: x.add_(1))(image, label)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_one_sided_transforms_see_one_side():
    image, label = blob((6, 6))
    new_image, new_label = JointTransform(image_transform=lambda x: x * 2, label_transform=lambda x: (x > 0).long())(
        image, label
    )
    assert torch.equal(new_image, image * 2)
    assert set(new_label.unique().tolist()) == {0, 1}


def test_a_transform_that_blends_labels_is_found_out():
    image, label = blob()
    blending = JointTransform(
        RandAffined(keys=["image", "label"], prob=1.0, rotate_range=(0.5, 0.5, 0.5), mode="bilinear")
    )
    with pytest.raises(BadInputError, match="nearest neighbour"):
        blending(image, label)


def test_a_crop_returns_one_sample():
    image, label = blob((12, 12))
    both = ["image", "label"]
    crop = JointTransform(RandCropByPosNegLabeld(both, "label", (6, 6), num_samples=1))
    assert [part.shape for part in crop(image, label)] == [(1, 6, 6), (1, 6, 6)]
    with pytest.raises(BadInputError, match="returned 2 samples.*num_samples=1"):
        JointTransform(RandCropByPosNegLabeld(both, "label", (6, 6), num_samples=2))(image, label)


@pytest.mark.parametrize(
    ("returned", "found"), [((1, 2), "tuple"), ({"image": 0, "mask": 0}, "the entries .'image', 'mask'.")]
)
def test_a_transform_that_returns_no_image_and_label_is_refused(returned, found):
    with pytest.raises(BadInputError, match=f"but returned {found}"):
        JointTransform(lambda pair: returned)(*blob((6, 6)))


def test_the_label_keeps_its_type_through_monai():
    image, label = blob()
    nearest = JointTransform(
        RandAffined(keys=["image", "label"], prob=1.0, rotate_range=(0.5, 0.5, 0.5), mode=("bilinear", "nearest"))
    )
    _, new_label = nearest(image, label)
    assert new_label.dtype == torch.int64
    assert set(torch.as_tensor(new_label).unique().tolist()) <= {0, 4, 9}


def noise():
    return JointTransform(RandGaussianNoised(keys=["image"], prob=1.0))


class Noisy(Dataset):
    """Four equal cases, told apart by nothing but their noise."""

    def __init__(self):
        self.transform = noise()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return float(self.transform(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))[0].sum())


def test_no_two_samples_of_any_worker_and_epoch_are_augmented_alike():
    loader = DataLoader(Noisy(), batch_size=1, num_workers=2)
    sums = [float(value) for _ in range(2) for value in loader]
    assert len(set(sums)) == 8


def test_the_seed_of_everything_decides_the_numbers_of_every_worker():
    def epoch(seed, workers):
        set_seed(seed)
        return [float(value) for value in DataLoader(Noisy(), batch_size=1, num_workers=workers)]

    for workers in (0, 2):
        assert epoch(1, workers) == epoch(1, workers)
        assert epoch(1, workers) != epoch(2, workers)


def test_a_state_that_the_caller_sets_is_not_overruled():
    image, label = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64)
    first, second = noise(), noise()
    first.set_random_state(5)
    second.set_random_state(5)
    assert torch.equal(torch.as_tensor(first(image, label)[0]), torch.as_tensor(second(image, label)[0]))


def test_a_transform_without_randomness_leaves_the_generators_alone():
    image, label = blob((6, 6))
    before = torch.get_rng_state()
    JointTransform(image_transform=lambda x: x * 2)(image, label)
    assert torch.equal(torch.get_rng_state(), before)
