from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from candy_monai.data.images.writing import save_image
from candy_monai.data.pipelines.building import build_pipeline
from candy_monai.data.pipelines.description import (
    OwnTransforms,
    augmentation,
    cutting,
    describe_pipelines,
    postprocessing,
    preprocessing,
)
from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.plan import Region
from candy_monai.errors import SettingsError
from tests.plans import PLAN

ZSCORE = ChannelNormalization(scheme="zscore", mean=4.0, std=2.0)
CT = ChannelNormalization(scheme="ct", lower=-10.0, upper=30.0, mean=5.0, std=4.0)
PICTURES = replace(
    PLAN,
    num_dims=2,
    orientation=None,
    spacing_mm=None,
    patch_shape=(8, 8),
    kernel_sizes=((3, 3), (3, 3)),
    strides=((1, 1), (2, 2)),
    mirror_axes=(0, 1),
)


def names(entries):
    return [entry["_target_"].rsplit(".", 1)[1] for entry in entries]


def step(entries, name):
    return next(entry for entry in entries if entry["_target_"].endswith(name))


def test_a_description_is_plain_data_that_survives_json():
    described = describe_pipelines(replace(PLAN, normalization=(CT,)))
    assert json.loads(json.dumps(described)) == described


def test_the_steps_have_the_names_that_monai_gives_them():
    described = describe_pipelines(replace(PLAN, normalization=(ZSCORE,)))
    assert names(described["preprocessing"]) == [
        "LoadImaged",
        "Orientationd",
        "CropForegroundd",
        "NormalizeIntensityd",
        "ResampleToSpacingd",
        "EnsureTyped",
    ]
    assert names(described["augmentation"]) == [
        "RandWarpd",
        "RandFlipd",
        "RandFlipd",
        "RandFlipd",
        "RandGaussianNoised",
        "RandBlurd",
        "RandScaleIntensityd",
        "RandScaleIntensityFixedMeand",
        "RandSimulateLowResolutiond",
        "RandAdjustContrastd",
        "RandAdjustContrastd",
        "EnsureTyped",
    ]
    assert names(described["postprocessing"]) == ["EnsureTyped", "Invertd", "AsDiscreted"]


@pytest.mark.parametrize(
    ("channels", "name"),
    [
        ((ZSCORE, replace(ZSCORE, mean=9.0)), "NormalizeIntensityd"),
        ((CT, CT), "ScaleIntensityRanged"),
        ((CT, replace(CT, mean=1.0)), "NormalizeForegroundd"),
        ((replace(CT, std=0.0),), "NormalizeForegroundd"),
        ((replace(ZSCORE, nonzero_only=True),), "NormalizeForegroundd"),
        ((ZSCORE, ChannelNormalization(scheme="nonorm")), "NormalizeForegroundd"),
        ((ChannelNormalization(scheme="rescale_to_0_1"),), "ScaleIntensityd"),
        ((ChannelNormalization(scheme="rgb_to_0_1"),) * 3, "ScaleIntensityRanged"),
    ],
)
def test_monais_own_normalisation_is_taken_where_one_step_does_for_all_channels(channels, name):
    found = names(describe_pipelines(replace(PLAN, normalization=channels))["preprocessing"])
    assert [each for each in found if "ntensity" in each or "Foregroundd" in each][1:] == [name]


def test_ct_in_monais_words_is_clipping_and_dividing():
    scale = build_pipeline(describe_pipelines(replace(PLAN, normalization=(CT,)))["preprocessing"][3:4], name="p")
    image = torch.tensor([[-100.0, 5.0, 9.0, 99.0]])
    assert torch.allclose(scale({"image": image})["image"], torch.tensor([[-3.75, 0.0, 1.0, 6.25]]))


def test_what_training_may_do_follows_the_plan():
    thin = replace(PLAN, spacing_mm=(1.0, 1.0, 5.0), mirror_axes=(1,), ignore_label=7, patch_shape=(16, 8, 8))
    augmentation = describe_pipelines(thin)["augmentation"]
    warp = step(augmentation, "RandWarpd")
    assert (warp["fixed_axis"], warp["fill"], warp["max_angle_deg"]) == (2, [0, 7], 15.0)
    assert [entry["spatial_axis"] for entry in augmentation if entry["_target_"].endswith("RandFlipd")] == [1]
    assert step(augmentation, "RandLowResolutiond")["fixed_axis"] == 2
    square = describe_pipelines(replace(thin, patch_shape=(8, 8, 8)))["augmentation"]
    assert step(square, "RandWarpd")["max_angle_deg"] == 180.0
    assert step(cutting(thin), "RandWarpd") == warp | {"prob_rotate": 0.0, "prob_scale": 0.0}


def test_a_list_of_ones_own_follows_the_plans_or_replaces_it_where_it_cuts_the_patch():
    blur = {"_target_": "candy_monai.transforms.RandBlurd", "keys": "image"}
    planned = augmentation(PLAN)
    assert augmentation(PLAN, [blur]) == [*planned[:-1], blur, planned[-1]]
    assert augmentation(PLAN, [planned[0], blur]) == [planned[0], blur]
    assert describe_pipelines(PLAN, own=OwnTransforms(augmentation=[blur]))["augmentation"][-2] == blur


@pytest.mark.parametrize("kind", ["Compose", "OneOf"])
def test_a_list_of_ones_own_that_cuts_the_patch_within_another_transform_replaces_the_plans_too(kind):
    own = [{"_target_": f"monai.transforms.{kind}", "transforms": [step(augmentation(PLAN), "RandWarpd")]}]
    assert augmentation(PLAN, own) == own


def test_a_preprocessing_step_of_ones_own_comes_last_but_one_or_where_it_says():
    clip = {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 0, "upper": 99}
    early = clip | {"_before_": "CropForegroundd"}
    plain, added = (preprocessing(PLAN, own) for own in ((), [clip, early]))
    assert added == [*plain[:2], clip, *plain[2:-1], clip, plain[-1]]
    assert preprocessing(PLAN, [plain[0], clip]) == [plain[0], clip]  # it loads the files itself
    with pytest.raises(SettingsError, match=r"preprocessing\[1\]: _before_ is 'Cropd', expected .*CropForegroundd"):
        preprocessing(PLAN, [clip, clip | {"_before_": "Cropd"}])


def test_a_step_that_moves_labels_takes_cases_without_a_label_too():
    flip = {"_target_": "Flipd", "keys": ["image", "label"], "spatial_axis": 0}
    assert preprocessing(PLAN, [flip])[-2] == flip | {"allow_missing_keys": True}


def test_a_postprocessing_step_of_ones_own_follows_the_plans_unless_it_undoes_preprocessing_itself():
    holes = {"_target_": "FillHolesd", "keys": "pred"}
    planned = postprocessing(PLAN)
    assert postprocessing(PLAN, [holes]) == [*planned, holes]
    assert postprocessing(PLAN, [planned[1], holes]) == [planned[1], holes]


def test_what_was_saved_gives_the_same_pipelines_again():
    own = OwnTransforms(
        preprocessing=[{"_target_": "ScaleIntensityd", "keys": "image"}],
        augmentation=[{"_target_": "RandShiftIntensityd", "keys": "image", "offsets": 0.1}],
        postprocessing=[{"_target_": "FillHolesd", "keys": "pred"}],
    )
    described = describe_pipelines(PLAN, own=own)
    assert describe_pipelines(PLAN, own=OwnTransforms.from_saved(json.loads(json.dumps(described)))) == described
    assert describe_pipelines(PLAN, own=OwnTransforms.from_saved(None)) == describe_pipelines(PLAN)


@pytest.mark.parametrize("saved", ["$import os", [], {}, {"other": []}])
def test_damaged_pipelines_are_not_taken_for_those_of_the_plan(saved):
    with pytest.raises(SettingsError, match="pipelines is damaged"):
        OwnTransforms.from_saved(saved)


@pytest.mark.parametrize("name", ["preprocessing", "augmentation", "postprocessing"])
@pytest.mark.parametrize("entries", [None, "$import os", [], [{"_target_": "ScaleIntensityd", "keys": "image"}]])
def test_a_saved_pipeline_that_is_empty_or_cut_short_is_refused_by_its_name(name, entries):
    saved = describe_pipelines(PLAN) | {name: entries}
    with pytest.raises(SettingsError, match=rf"experiment\.json: pipelines\.{name} is damaged"):
        OwnTransforms.from_saved(saved)


def test_several_channels_are_changed_one_by_one_and_a_single_one_by_monais_transforms():
    two = replace(PLAN, channel_names=("T1", "T2"), normalization=PLAN.normalization * 2)
    assert names(augmentation(two))[-4:-1] == ["RandLowResolutiond", "RandGammad", "RandGammad"]
    assert names(augmentation(PLAN))[-4:-1] == ["RandSimulateLowResolutiond", *["RandAdjustContrastd"] * 2]


def test_postprocessing_follows_what_the_classes_are():
    regions = (Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2))
    stock = {"resampling": "stock"}
    kinds = {
        "one": ({"num_classes": 1}, ["EnsureTyped", "Activationsd", "Invertd", "AsDiscreted"]),
        "many": ({"num_classes": 42}, ["PaintLabelsd", "EnsureTyped", "Invertd"]),
        "regions": ({"num_classes": 2, "regions": regions}, ["PaintLabelsd", "EnsureTyped", "Invertd"]),
        "many, stock": ({"num_classes": 42, **stock}, ["EnsureTyped", "Invertd", "AsDiscreted"]),
        "regions, stock": (
            {"num_classes": 2, "regions": regions, **stock},
            ["EnsureTyped", "Activationsd", "Invertd", "PaintLabelsd"],
        ),
    }
    for changes, expected in kinds.values():
        assert names(describe_pipelines(replace(PLAN, **changes))["postprocessing"]) == expected


@pytest.mark.parametrize("resampling", ["stock", "none"])
def test_stock_resampling_is_monais_and_named_so_where_nothing_is_resampled(resampling):
    described = describe_pipelines(replace(PLAN, resampling=resampling))
    assert "Spacingd" in names(described["preprocessing"])
    assert not any("candy_monai" in entry["_target_"] for entry in described["preprocessing"])


@pytest.mark.parametrize("made", [PLAN, PICTURES], ids=["volumes", "pictures"])
def test_every_description_is_built_without_trust(made):
    described = describe_pipelines(made)
    preprocessing = build_pipeline(described["preprocessing"], name="preprocessing")
    for name in ("augmentation", "postprocessing"):
        build_pipeline(described[name], name=name, transforms={"preprocessing": preprocessing.transforms})


def test_monai_alone_builds_it_from_the_data_and_goes_there_and_back(tmp_path):
    described = describe_pipelines(replace(PLAN, normalization=(ZSCORE,), resampling="stock"))
    values = np.zeros((6, 7, 8), dtype=np.float32)
    values[1:5, 2:6, 3:8] = np.random.default_rng(0).random((4, 4, 5)) + 1.0
    save_image(torch.from_numpy(values)[None], tmp_path / "scan.nii.gz")
    parser = ConfigParser(json.loads(json.dumps({key: described[key] for key in ("preprocessing", "postprocessing")})))
    preprocess, postprocess = (Compose(parser.get_parsed_content(key)) for key in ("preprocessing", "postprocessing"))
    case = preprocess({"image": str(tmp_path / "scan.nii.gz")})
    assert case["image"].shape == (1, 4, 4, 5)
    assert case["image"].mean().abs() < 1e-5
    scores = torch.zeros(3, 4, 4, 5)
    scores[2] = 1.0
    ids = postprocess({"image": case["image"], "pred": scores})["pred"][0]
    assert torch.equal(ids.as_tensor() == 2, torch.from_numpy(values > 0))
