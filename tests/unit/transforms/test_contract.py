"""What every transform of ours keeps, as MONAI's do: keys, metadata, inputs, seeds, workers, pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import DataLoader as MonaiLoader
from monai.data import Dataset as MonaiDataset
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureTyped, MapTransform, Orientationd, RandFlipd, Randomizable
from torch.utils.data import DataLoader

from candy_monai import transforms as ours
from candy_monai.transforms import (
    CropForegroundIfAnyd,
    KeepLargestComponentd,
    NormalizeForegroundd,
    PaintLabelsd,
    RandBlurd,
    RandGammad,
    RandLowResolutiond,
    RandWarpd,
    RemoveSmallComponentsd,
    ResampleToSpacingd,
)

SHAPES = [(6, 8), (6, 8, 10)]


def transforms_for(num_dims, **options):
    """Return one of each transform for the keys image and label, by its class name."""
    both = ("image", "label")
    made = [
        CropForegroundIfAnyd(both, "image", **options),
        NormalizeForegroundd("image", [{"scheme": "zscore", "nonzero_only": True}], **options),
        ResampleToSpacingd(both, (0.5, 2.0, 1.5)[:num_dims], mode=("cubic", "majority"), **options),
        RandWarpd(both, (4, 6, 6)[:num_dims], mode=("bilinear", "nearest"), prob_rotate=1.0, **options),
        RandBlurd("image", 1.0, **options),
        RandGammad("image", 1.0, **options),
        KeepLargestComponentd("label", **options),
        RemoveSmallComponentsd("label", 5, **options),
        RandLowResolutiond("image", 1.0, zoom_range=(0.3, 0.5), **options),
        PaintLabelsd("image", **options),
    ]
    return {type(each).__name__: each for each in made}


NAMES = list(transforms_for(3))
RANDOM = [name for name, each in transforms_for(3).items() if isinstance(each, Randomizable)]


def case(shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    affine = torch.diag(torch.tensor([1.0, 1.5, 2.0, 1.0], dtype=torch.float64))
    meta = {"filename_or_obj": "scan.nii.gz"}
    label = torch.zeros(1, *shape, dtype=torch.int64)
    label[(0, *(slice(2, 5) for _ in shape))] = 2
    image = torch.rand(1, *shape, generator=generator) + 0.5
    return {"image": MetaTensor(image, affine=affine, meta=meta), "label": MetaTensor(label, affine=affine, meta=meta)}


def equal(first, second):
    return all(torch.equal(torch.as_tensor(first[key]), torch.as_tensor(second[key])) for key in ("image", "label"))


def seeded(transform, seed=0):
    if isinstance(transform, Randomizable):
        transform.set_random_state(seed)
    return transform


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_pictures_and_volumes_keep_metadata_and_the_input_is_left_alone(name, shape):
    data, before = case(shape), case(shape)
    result = seeded(transforms_for(len(shape))[name])(data)
    assert equal(data, before)
    assert result["image"].ndim == len(shape) + 1
    assert isinstance(result["image"], MetaTensor)
    assert result["image"].meta["filename_or_obj"] == "scan.nii.gz"
    assert torch.isfinite(result["image"].as_tensor()).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_arrays_and_plain_tensors_give_what_tensors_with_metadata_give(name, shape):
    data = case(shape)
    for item in data.values():
        item.affine = torch.eye(4, dtype=torch.float64)
    plain = {key: item.as_tensor() for key, item in data.items()}
    arrays = {key: item.numpy() for key, item in plain.items()}
    expected, *others = (seeded(transforms_for(len(shape))[name])(each) for each in (data, plain, arrays))
    assert all(equal(expected, other) for other in others)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_key_is_an_error_unless_it_is_allowed(name):
    rest = {"other": 1}
    with pytest.raises(KeyError):
        transforms_for(3)[name](rest)
    if name == "CropForegroundIfAnyd":  # the key that the box comes from is always needed, as in MONAI
        return
    assert transforms_for(3, allow_missing_keys=True)[name](rest) == rest


@pytest.mark.parametrize("name", RANDOM)
def test_the_same_seed_gives_the_same_result_and_another_one_another(name):
    one, same, other = (seeded(transforms_for(3)[name], seed)(case(SHAPES[1])) for seed in (1, 1, 2))
    assert equal(one, same)
    assert not equal(one, other)


@pytest.mark.parametrize("name", RANDOM)
def test_without_any_probability_the_image_is_the_same(name):
    transform = transforms_for(3)[name]
    quiet = RandWarpd(("image", "label"), prob_rotate=0.0, prob_scale=0.0) if name == "RandWarpd" else transform
    if name != "RandWarpd":
        quiet.prob = 0.0
    assert equal(quiet(case(SHAPES[1])), case(SHAPES[1]))


def pipeline():
    steps = transforms_for(3)
    del steps["PaintLabelsd"]
    both = ["image", "label"]
    return Compose(
        [Orientationd(both, "LPS", labels=None), *steps.values(), RandFlipd(both, 0.5, 0), EnsureTyped(both)]
    )


def test_in_compose_with_monais_a_seed_decides_everything():
    one, same, other = (pipeline().set_random_state(seed)(case((9, 8, 10))) for seed in (1, 1, 2))
    assert one["image"].shape == (1, 4, 6, 6)
    assert equal(one, same)
    assert not equal(one, other)


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_in_workers_the_samples_are_those_that_monais_loader_seeds(context):
    data = [case((9, 8, 10), seed) for seed in range(3)]

    def samples(context):
        dataset = MonaiDataset(data, pipeline())
        loader = MonaiLoader(dataset, batch_size=1, num_workers=1, multiprocessing_context=context)
        torch.manual_seed(5)
        return [batch["image"].as_tensor() for batch in loader]

    first, second = samples("fork"), samples(context)
    assert all(torch.equal(one, same) for one, same in zip(first, second, strict=True))
    assert not torch.equal(first[0], first[1])


def test_in_a_plain_loader_of_pytorchs_items_without_metadata_collate():
    items = [{key: np.asarray(item) for key, item in case((9, 8, 10), seed).items()} for seed in range(2)]
    dataset = MonaiDataset(
        items, Compose([RandWarpd(["image", "label"], (4, 4, 4)), EnsureTyped("image", track_meta=False)])
    )
    batch = next(iter(DataLoader(dataset, batch_size=2)))
    assert batch["image"].shape == (2, 1, 4, 4, 4)


def test_all_public_transforms_come_as_array_and_dictionary_form():
    names = set(ours.__all__)
    dictionaries = {name for name in names if issubclass(getattr(ours, name), MapTransform)}
    assert names == dictionaries | {name[:-1] for name in dictionaries}
    assert dictionaries == set(NAMES), "transforms_for makes one of each"
