import pytest
from monai.data import CacheDataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, RandFlipd, ScaleIntensityd, ThresholdIntensityd
from torch.utils.data import Subset

from candy_monai.data.datasets.files import BinarizedDataset, DatasetFromMemory
from candy_monai.data.datasets.joint import JointTransform
from candy_monai.data.datasets.transform_names import names_of_transforms
from tests.toys import Squares, blob

BOTH = ["image", "label"]
STEPS = [
    LoadImaged(BOTH),
    EnsureChannelFirstd(BOTH),
    ScaleIntensityd("image"),
    Compose([RandFlipd(BOTH), ThresholdIntensityd("label", threshold=0)]),
]


def _ours(transform):
    image, label = blob()
    return DatasetFromMemory([image], [label], transform=transform)


@pytest.mark.parametrize(
    "dataset",
    [
        CacheDataset([], Compose(STEPS), progress=False),
        Subset(CacheDataset([], Compose(STEPS), progress=False), []),
        _ours(JointTransform(Compose(STEPS))),
        BinarizedDataset(_ours(JointTransform(STEPS[2], image_transform=None)), positive_ids=[4]),
    ],
)
def test_what_changes_images_is_named_wherever_the_dataset_keeps_it(dataset):
    expected = ["ScaleIntensityd"] if isinstance(dataset, BinarizedDataset) else ["ScaleIntensityd", "RandFlipd"]
    assert names_of_transforms(dataset) == expected


def test_a_dataset_without_transforms_has_none():
    assert names_of_transforms(Squares()) == []
