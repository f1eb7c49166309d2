"""Small experiments of every kind of plan, cases for them, and what the bundles made of them predict."""

from __future__ import annotations

import dataclasses
import sys

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import decollate_batch
from PIL import Image

from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.plan import Region
from candy_monai_bundles.base import BundleTrainer
from candy_monai_bundles.unet import UNetTrainer
from tests.plans import PLAN
from tests.toys import Squares, small_trainer

_FLAT = ((3, 3, 1),) * 3, ((1, 1, 1), (2, 2, 1), (2, 2, 1))
_CUBES = ((3, 3, 3),) * 3, ((1, 1, 1), (2, 2, 2), (2, 2, 2))
_SQUARES = ((3, 3),) * 3, ((1, 1), (2, 2), (2, 2))
_ZSCORE = ChannelNormalization(scheme="zscore")


def bundle_plan(layers=_CUBES, **changes):
    """Return a plan for a network of three levels."""
    kernel_sizes, strides = layers
    network = {"filters": (4, 4, 4), "kernel_sizes": kernel_sizes, "strides": strides, "deep_supervision": True}
    return dataclasses.replace(PLAN, **{"normalization": (_ZSCORE,), **network, **changes})


PLANS = {
    "volumes": bundle_plan(spacing_mm=(1.0, 1.5, 1.5)),
    "slices": bundle_plan(_FLAT, slice_axis=2, patch_shape=(8, 8, 1), spacing_mm=(1.2, 1.5, 3.0), mirror_axes=(0,)),
    "two channels": bundle_plan(
        channel_names=("CT", "MRI"),
        normalization=(
            ChannelNormalization(scheme="ct", lower=-1.0, upper=2.0, mean=0.5, std=1.5),
            ChannelNormalization(scheme="zscore", nonzero_only=True),
        ),
    ),
    "regions": bundle_plan(
        num_classes=2,
        regions=(Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2)),
        spacing_mm=(1.0, 1.5, 1.5),
    ),
    "one logit": bundle_plan(num_classes=1, class_names=("background", "a")),
    "ignored": bundle_plan(ignore_label=3),
    "pictures": bundle_plan(
        _SQUARES,
        num_dims=2,
        orientation=None,
        spacing_mm=None,
        resampling="none",
        median_shape=(20, 24),
        patch_shape=(8, 8),
        mirror_axes=(0,),
        channel_names=("R", "G", "B"),
        normalization=(_ZSCORE,) * 3,
    ),
}


def train_experiment(folder, plan, seed=0, cls=UNetTrainer):
    """Return the folder of an experiment that was trained for a step."""
    torch.manual_seed(seed)
    plan = cls.adapt_plan(plan) if issubclass(cls, BundleTrainer) else plan
    classes = plan.num_classes + (plan.num_classes == 1)
    squares = Squares(2, size=plan.patch_shape, num_classes=classes, channels=len(plan.channel_names))
    trainer = small_trainer(folder, squares, cls=cls)
    trainer.use_plan(plan)
    trainer.train(1, save_preview=False, seed=seed)
    return trainer.experiment_folder()


def write_case(folder, plan, shape=(21, 18, 11)):
    """Write a case that is larger than a window, with blank borders and axes that point elsewhere."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)
    if plan.num_dims == 2:
        Image.fromarray(rng.integers(0, 255, (21, 26, 3), dtype=np.uint8)).save(folder / "case_0000.png")
        return [folder / "case_0000.png"]
    affine = np.diag([-1.0, 1.3, 2.9, 1.0])
    files = []
    for channel, _ in enumerate(plan.channel_names):
        values = rng.normal(size=shape).cumsum(0).astype(np.float32)
        values[:2], values[:, -3:] = 0, 0
        files.append(folder / f"case_{channel:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values, affine), files[-1])
    return files


def predict_by_bundle(bundle, monkeypatch, dataset):
    """Return the label map that the bundle's parts make, as its evaluator would."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(bundle)
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser["dataset_dir"], parser["output_dir"] = str(dataset), str(dataset / "out")
    network = parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    (batch,) = parser.get_parsed_content("dataloader")
    inferer, after = (parser.get_parsed_content(name) for name in ("inferer", "postprocessing"))
    with torch.no_grad():
        batch["pred"] = inferer(batch["image"], network)
    (item,) = decollate_batch(batch)
    after(item)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]
    (written,) = (dataset / "out").iterdir()
    return written


def equal_share(one, other):
    """Return the share of voxels with the same id among those that either label map labels."""
    either = (one > 0) | (other > 0)
    assert either.any()
    return float((one == other)[either].mean())


def read_array(path):
    """Return a label map's ids as the file stores them."""
    return np.asarray(Image.open(path)) if path.suffix == ".png" else np.asarray(nibabel.load(path).dataobj)


def write_training_cases(folder, plan):
    """Write three cases with random labels."""
    (folder / "labelsTr").mkdir(parents=True)
    rng = np.random.default_rng(5)
    for number in range(3):
        highest = 3 if plan.ignore_label is not None else 1 if plan.num_classes == 1 else 2
        for file in write_case(folder / "imagesTr", plan):
            file.rename(file.with_name(f"{number}{file.name}"))
        if plan.num_dims == 2:
            label = Image.fromarray(rng.integers(0, highest + 1, (21, 26), dtype=np.uint8))
            label.save(folder / "labelsTr" / f"{number}case.png")
            continue
        ids = rng.integers(0, highest + 1, (21, 18, 11), dtype=np.uint8)
        affine = np.diag([-1.0, 1.3, 2.9, 1.0])
        nibabel.save(nibabel.Nifti1Image(ids, affine), folder / "labelsTr" / f"{number}case.nii.gz")
