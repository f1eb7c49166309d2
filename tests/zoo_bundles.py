"""MONAI Bundles in the model zoo's layout, with small networks, and MONAI's own run of them."""

from __future__ import annotations

import copy
import json
import os
from contextlib import contextmanager

import monai.networks.nets
import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser

METADATA = {
    "version": "0.1.0",
    "monai_version": "1.4.0",
    "pytorch_version": "2.4.0",
    "numpy_version": "1.24.4",
    "name": "Spleen CT segmentation",
    "task": "Spleen Segmentation in CT images",
    "network_data_format": {
        "inputs": {
            "image": {"num_channels": 1, "spatial_shape": ["16*n", "16*n", "16*n"], "channel_def": {"0": "image"}}
        },
        "outputs": {"pred": {"num_channels": 2, "channel_def": {"0": "background", "1": "spleen"}}},
    },
}

SPLEEN = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'",
    "output_ext": ".nii.gz",
    "output_dtype": "$numpy.float32",
    "output_postfix": "trans",
    "separate_folder": False,
    "dataset_dir": "/workspace/data/Task09_Spleen",
    "datalist": "$list(sorted(glob.glob(@dataset_dir + '/imagesTs/*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8, 16],
        "strides": [2, 2],
        "num_res_units": 2,
        "norm": "batch",
    },
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": [1.5, 1.5, 2.0], "mode": "bilinear"},
            {
                "_target_": "ScaleIntensityRanged",
                "keys": "@image_key",
                "a_min": -57,
                "a_max": 164,
                "b_min": 0,
                "b_max": 1,
                "clip": True,
            },
            {"_target_": "EnsureTyped", "keys": "@image_key", "device": "@device"},
        ],
    },
    "dataset": {
        "_target_": "Dataset",
        "data": "$[{'image': i} for i in @datalist]",
        "transform": "@preprocessing",
    },
    "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "sw_batch_size": 4, "overlap": 0.5},
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {
                "_target_": "Invertd",
                "keys": "pred",
                "transform": "@preprocessing",
                "orig_keys": "@image_key",
                "nearest_interp": False,
                "to_tensor": True,
            },
            {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
            {
                "_target_": "SaveImaged",
                "keys": "pred",
                "output_dir": "@output_dir",
                "output_ext": "@output_ext",
                "output_dtype": "@output_dtype",
                "output_postfix": "@output_postfix",
                "separate_folder": "@separate_folder",
            },
        ],
    },
    "handlers": [{"_target_": "StatsHandler", "iteration_log": False}],
    "evaluator": {
        "_target_": "SupervisedEvaluator",
        "device": "@device",
        "val_data_loader": "@dataloader",
        "network": "@network",
        "inferer": "@inferer",
        "postprocessing": "@postprocessing",
        "val_handlers": "@handlers",
        "amp": False,
    },
    "checkpointloader": {
        "_target_": "CheckpointLoader",
        "load_path": "$@bundle_root + '/models/model.pt'",
        "load_dict": {"model": "@network"},
    },
    "initialize": ["$monai.utils.set_determinism(seed=123)", "$@checkpointloader(@evaluator)"],
    "run": ["$@evaluator.run()"],
}

BTCV = copy.deepcopy(SPLEEN) | {
    "network_def": {
        "_target_": "SwinUNETR",
        "spatial_dims": 3,
        "img_size": 96,
        "in_channels": 1,
        "out_channels": 5,
        "feature_size": 12,
        "use_checkpoint": False,
        "depths": [1, 1, 1, 1],
    },
    "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [64, 64, 64], "sw_batch_size": 4, "overlap": 0.25},
}
BTCV["preprocessing"]["transforms"][0]["reader"] = "ITKReader"


def write_bundle(folder, config=SPLEEN, *, metadata=METADATA, weights=None, seed=0):
    """Write a bundle with weights that predict every class somewhere."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config, indent=4))
    if metadata is not None:
        (folder / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=4))
    if weights is None:
        torch.manual_seed(seed)
        arguments = {key: value for key, value in config["network_def"].items() if key not in ("_target_", "img_size")}
        network = getattr(monai.networks.nets, config["network_def"]["_target_"].rpartition(".")[2])(**arguments)
        # Shifted so that no class is the greatest everywhere.
        num_classes = arguments["out_channels"]
        with torch.no_grad():
            scores = network.eval()(torch.rand(1, arguments["in_channels"], *[64] * arguments["spatial_dims"]))
            bias = [value for value in network.parameters() if value.shape == (num_classes,)][-1]
            bias -= scores.flatten(2).median(2).values[0]
        weights = {"model": network.state_dict()}
    torch.save(weights, folder / "models" / "model.pt")
    return folder


def write_scan(path, shape=(30, 26, 20), seed=1):
    """Write a blurred scan that lies obliquely and is stored with flipped and swapped axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.array([[0.0, -1.1, 0.0, 10], [1.3, 0.0, 0.0, -20], [0, 0.0, 2.4, 5], [0, 0, 0, 1]])
    noise = np.random.default_rng(seed).normal(size=shape)
    image = nibabel.Nifti1Image((50 + 120 * noise).astype(np.float32), affine)
    nibabel.save(image, path)
    return path


@contextmanager
def _inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_by_monai(bundle, dataset_dir, out):
    """Return the label map that MONAI makes of the only case."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    config = parser.get()
    config["network_def"].pop("img_size", None)  # MONAI takes it no more
    config |= {"bundle_root": str(bundle), "dataset_dir": str(dataset_dir), "output_dir": str(out)}
    parser = ConfigParser(config)
    parser.parse()
    for step in ("initialize", "run"):
        parser.get_parsed_content(step)
    (written,) = out.rglob("*.nii.gz")
    return nibabel.load(written)
