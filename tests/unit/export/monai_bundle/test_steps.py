import ast
import dataclasses
import json

import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Spacingd

import candy_monai.transforms
from candy_monai.data.pipelines.description import resampling
from candy_monai.errors import ExperimentError
from candy_monai.export.monai_bundle.steps import (
    for_bundle,
    for_image_alone,
    monai,
    region_masks,
    script,
    scripts_in,
    without_ignored,
)
from candy_monai.transforms import NormalizeForeground, PaintLabels
from tests.plans import PLAN

_ALL = candy_monai.transforms.__all__
_DICTIONARY_FORMS = [f"{name}d" for name in _ALL if f"{name}d" in _ALL]
_MODULES = ("degradation", "ensemble", "foreground", "inferers", "losses", "normalization", "painting", "patches")


def imports_of(text):
    """Return the top-level packages that a module imports."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("module", [*_MODULES, "resampling", "warping"])
def test_what_a_bundle_carries_imports_pytorch_monai_numpy_and_scipy_alone(module):
    text = script(module)
    found = imports_of(text) - {"__future__", "abc", "collections", "functools", "itertools", "math", "typing"}
    assert found <= {"monai", "numpy", "scipy", "scripts", "torch"}
    compile(text, f"{module}.py", "exec")


def test_a_module_brings_those_that_it_imports():
    entries = for_bundle([{"_target_": "candy_monai.transforms.PaintLabelsd", "keys": "pred"}], PLAN, portable=False)
    assert entries == [{"_target_": "scripts.painting.PaintLabelsd", "keys": "pred"}]
    assert list(scripts_in(json.loads(json.dumps(entries)), {})) == ["painting", "resampling"]
    own = scripts_in([{"_target_": "scripts.mine.Network"}], {"mine": "from scripts.patches import RandCenterd"})
    assert list(own) == ["mine", "patches"]


@pytest.mark.parametrize("name", _DICTIONARY_FORMS)
def test_every_transform_that_plans_use_has_an_equivalent(name):
    needed = {
        "ResampleToSpacingd": {"pixdim": [1.0, 1.0, 1.0]},
        "RemoveSmallComponentsd": {"min_size": 5.0, "independent": False},
        "NormalizeForegroundd": {"channels": [{"scheme": "zscore"}, {"scheme": "nonorm"}]},
        "RandWarpd": {"spatial_size": [8, 8, 8]},
    }
    keys = ["image", "label"] if name in ("RandWarpd", "ResampleToSpacingd") else "image"
    entry = {"_target_": f"candy_monai.transforms.{name}", "keys": keys, **needed.get(name, {})}
    if name.startswith("CropForeground"):
        entry["source_key"] = "image"
    steps = for_bundle([entry], PLAN, portable=True)
    assert all(step["_target_"].startswith("monai.transforms.") for step in steps)
    ConfigParser({"steps": steps}).get_parsed_content("steps")  # MONAI builds them


def test_separate_resampling_of_thick_slices_has_monais_spacingd_for_equivalent():
    plan = dataclasses.replace(PLAN, resampling="separate_z", spacing_mm=(1.0, 1.0, 5.0))
    steps = for_bundle([resampling(plan)], plan, portable=True)
    (built,) = _built(steps).transforms
    assert isinstance(built, Spacingd)


def test_a_step_that_is_neither_monais_nor_ours_is_refused():
    with pytest.raises(ExperimentError, match=r"scipy\.ndimage\.zoom, which a bundle cannot carry"):
        for_bundle([{"_target_": "scipy.ndimage.zoom", "keys": "image"}], PLAN, portable=False)


def _built(steps):
    return Compose(ConfigParser({"steps": steps}).get_parsed_content("steps"))


def test_regions_are_painted_by_monais_transforms_as_by_ours():
    probabilities = torch.rand(3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    entry = {"_target_": "candy_monai.transforms.PaintLabelsd", "keys": "pred", "paints": [3, 1, 2]}
    steps = for_bundle([entry | {"are_probabilities": True}], PLAN, portable=True)
    painted = _built(steps)({"pred": probabilities})["pred"]
    assert torch.equal(painted.long().as_tensor(), PaintLabels((3, 1, 2), are_probabilities=True)(probabilities).long())


def test_channels_of_different_schemes_are_normalized_by_monais_transforms():
    channels = [{"scheme": "ct", "lower": -1.0, "upper": 1.0, "mean": 0.1, "std": 0.7}, {"scheme": "zscore"}]
    image = torch.randn(2, 6, 6, 6, generator=torch.Generator().manual_seed(0))
    entry = {"_target_": "candy_monai.transforms.NormalizeForegroundd", "keys": "image", "channels": channels}
    made = _built(for_bundle([entry], PLAN, portable=True))({"image": image.clone()})
    assert set(made) == {"image"}
    assert torch.allclose(made["image"].as_tensor(), NormalizeForeground(channels)(image), atol=1e-5)


def test_masks_of_regions_and_of_voxels_that_are_ignored():
    label = torch.tensor([[[0, 1, 2, 3]]])
    masks = _built(region_masks("label", [[1, 2], [2]]))({"label": label})
    assert masks["label"].tolist() == [[[0, 1, 1, 0]], [[0, 0, 1, 0]]]
    assert set(masks) == {"label"}
    plan = dataclasses.replace(PLAN, ignore_label=3)
    without = _built(without_ignored(plan, ["pred", "label"]))({"label": label, "pred": torch.ones(1, 1, 4)})
    assert without["label"].tolist() == [[[0, 1, 2, 0]]]
    assert without["pred"].tolist() == [[[1, 1, 1, 0]]]


def test_steps_for_the_image_alone_take_its_mode():
    both = monai("Spacingd", keys=["image", "label"], mode=["bilinear", "nearest"], pixdim=[1, 1, 1])
    label = monai("EnsureTyped", keys="label")
    channel = monai("ScaleIntensityd", keys="image_0")
    alone = monai("Spacingd", keys="image", mode="bilinear", pixdim=[1, 1, 1])
    assert for_image_alone([both, label, channel]) == [alone, channel]


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "candy_monai.transforms.RemoveSmallComponentsd", "keys": "pred", "min_size": 5.0},
        {
            "_target_": "candy_monai.transforms.RemoveSmallComponentsd",
            "keys": "pred",
            "min_size": 5.0,
            "applied_labels": [1],
            "independent": False,
        },
        {"_target_": "candy_monai.transforms.PaintLabelsd", "keys": "pred", "paints": [1, 2], "thresholds": [0.4, 0.5]},
    ],
)
def test_what_monai_cannot_do_is_refused_where_only_its_own_may_be_named(step):
    with pytest.raises(ExperimentError, match="no equivalent in MONAI: export without --portable"):
        for_bundle([step], PLAN, portable=True)
    assert for_bundle([step], PLAN, portable=False)[0]["_target_"].startswith("scripts.")
