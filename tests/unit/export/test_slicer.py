"""A model of SlicerMONAIAuto3DSeg, read as its script reads it; this reading is written after what the script does."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInfererAdapt
from monai.transforms import (
    Compose,
    ConcatItemsd,
    EnsureTyped,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    Spacingd,
)

from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError
from candy_monai.export.exporting import export_experiments as export
from candy_monai.export.slicer import _window
from candy_monai.incoming.opening import load_predictor
from candy_monai.recipes.train import train_dataset

pytestmark = pytest.mark.slow

TINY = {"filters": "8,16,16", "iterations_per_epoch": "60", "validate_every": "1", "num_validation_cases": "2"}


def _quiet(_):
    pass


def _trained(folder, spacing_mm=(1.0, 1.0, 1.0), **options):
    data = write_phantom_dataset(folder / "data", num_cases=6, shape=(40, 36, 16), spacing_mm=spacing_mm)
    overrides = TINY | options.pop("overrides", {})
    given = {"num_epochs": 3, "seed": 3, "overrides": overrides, "device": "cpu", "out": folder / "out"} | options
    return data, train_dataset(data, on_progress=_quiet, **given)


def _read_by_the_script(file, images):
    """Return the label map of the extension, of volumes that are given each by a file."""
    checkpoint = torch.load(file, map_location="cpu")
    config = checkpoint["config"]
    model = ConfigParser(config["network"]).get_parsed_content()
    model.load_state_dict(checkpoint["state_dict"], strict=True)
    model = model.to(memory_format=torch.channels_last_3d).eval()
    keys = [f"image{number}" for number in range(1, len(images) + 1)]
    steps = []
    for key, mode in zip(keys, [config["normalize_mode"], *dict(config["extra_modalities"]).values()], strict=True):
        if mode != "none":
            assert mode == "meanstd"
            steps.append(NormalizeIntensityd(key, nonzero=True, channel_wise=True))
    steps += [ConcatItemsd(keys, name="image", dim=0), EnsureTyped("image", dtype=torch.float)]
    assert config["orientation_ras"]
    assert not config["crop_foreground"]
    spacing = np.array(config["resample_resolution"])
    steps.append(Orientationd("image", axcodes="RAS"))
    steps.append(
        Spacingd(
            ["image"],
            pixdim=list(spacing),
            mode=["bilinear"],
            dtype=torch.float,
            min_pixdim=spacing * 0.75,
            max_pixdim=spacing * 1.25,
        )
    )
    transform = Compose(steps)
    loaded = LoadImaged(keys, ensure_channel_first=True, image_only=False)(dict(zip(keys, images, strict=True)))
    case = transform(loaded)
    inferer = SlidingWindowInfererAdapt(roi_size=config["roi_size"], sw_batch_size=1, overlap=0.625, mode="gaussian")
    with torch.no_grad():
        logits = inferer(case["image"].as_tensor()[None], model)
    labels = logits[0].sigmoid() >= 0.5 if config["sigmoid"] else logits[0].softmax(0).argmax(0, keepdim=True)
    case["pred"] = MetaTensor(labels.to(torch.uint8))
    inverted = Invertd("pred", transform=transform, orig_keys="image", nearest_interp=True)(case)["pred"]
    return inverted[0].numpy().astype(np.uint8)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.0, 5.0)], ids=["volumes", "slices"])
def test_the_script_predicts_what_the_experiment_does(tmp_path, spacing_mm):
    data, experiment = _trained(tmp_path, spacing_mm)
    file = export(experiment, tmp_path / "model-v1.0.0", to="slicer", on_progress=_quiet)
    image = sorted((data / "imagesTr").iterdir())[0]
    found = _read_by_the_script(file, [image])
    expected = load_predictor(experiment).predict(image)[0].numpy()
    assert found.shape == expected.shape
    both = ((found == expected) & (expected > 0)).sum()
    assert 2 * both / ((found > 0).sum() + (expected > 0).sum()) > 0.9
    with (file.parent / "labels.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [row["LabelValue"] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
    assert all(row["SegmentedPropertyTypeCodeSequence.CodeValue"] for row in rows)
    use = json.loads((file.parent / "model.pt.json").read_text())
    assert min(use["agreement_of_label_maps"]["dice_of_the_foreground"].values()) >= 0.9
    assert all(compared["max_difference"] < 1e-4 for compared in use["parity"]["compared"])


def test_the_windows_are_those_of_prediction():
    model = {"inferer": {"_target_": "monai.inferers.SaliencyInferer"}}
    predictor = SimpleNamespace(folder="runs/a", describe_models=lambda: [model])
    of_slices = SimpleNamespace(predictor=predictor, inference_window=(24, 20), slice_axis=2)
    assert _window(of_slices) == [24, 20, 1]
    with pytest.raises(BadInputError, match=r"runs/a: cannot be exported to slicer: .*SaliencyInferer"):
        _window(SimpleNamespace(predictor=predictor, inference_window=None, slice_axis=None))


def test_what_the_script_cannot_do_is_refused_by_name(tmp_path):
    _, experiment = _trained(tmp_path, num_epochs=1, overrides={"orientation": "L,P,S", "iterations_per_epoch": "2"})
    with pytest.raises(BadInputError, match=r"turned to LPS, and the extension turns them to RAS.*orientation=R,A,S"):
        export(experiment, tmp_path / "model", to="slicer", on_progress=_quiet)
    with pytest.raises(BadInputError, match="treats models with 'brats' in their path differently"):
        export(experiment, tmp_path / "brats", to="slicer", on_progress=_quiet)
    assert not (tmp_path / "model").exists()
