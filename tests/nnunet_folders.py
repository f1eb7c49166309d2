"""Small trained folders of nnU-Net v2, written as nnU-Net writes them, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

STATISTICS = {"mean": 40.0, "std": 20.0, "min": -100.0, "max": 300.0, "median": 41.0}
CHANNEL = {**STATISTICS, "percentile_00_5": -20.0, "percentile_99_5": 150.0}


def plans(
    *,
    patch: tuple[int, ...] = (8, 16, 12),
    spacing: tuple[float, ...] = (2.0, 1.0, 1.0),
    configuration: str = "3d_fullres",
    scheme: str = "ZScoreNormalization",
    reader: str = "SimpleITKIO",
    transpose: tuple[int, int, int] = (0, 1, 2),
    kind: str = "PlainConvUNet",
    num_channels: int = 1,
    uses_mask: bool = False,
    **changes: Any,
) -> dict[str, Any]:
    """Return the content of ``plans.json``; further keywords are entries of the configuration."""
    dims = len(patch)
    first = [1, *[2] * (dims - 1)] if dims == 3 else [2] * dims
    arguments = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [[1, *[3] * (dims - 1)] if dims == 3 else [3] * dims, [3] * dims, [3] * dims],
        "strides": [[1] * dims, first, [2] * dims],
        ("n_blocks_per_stage" if kind != "PlainConvUNet" else "n_conv_per_stage"): [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset999_Small",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "original_median_shape_after_transp": [8, 16, 12],
        "image_reader_writer": reader,
        "transpose_forward": list(transpose),
        "transpose_backward": [int(axis) for axis in np.argsort(transpose)],
        "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {str(channel): CHANNEL for channel in range(num_channels)},
        "configurations": {
            configuration: {
                "data_identifier": f"nnUNetPlans_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(patch),
                "median_image_size_in_voxels": [float(size) for size in patch],
                "spacing": list(spacing),
                "normalization_schemes": [scheme] * num_channels,
                "use_mask_for_norm": [uses_mask] * num_channels,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {**resampling, "order": 3},
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
                    "arch_kwargs": arguments,
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
                "batch_dice": True,
                **changes,
            }
        },
    }


def nnunet_network(written: dict[str, Any], configuration: str, *, num_outputs: int, seed: int = 0) -> nn.Module:
    """Return the network of plans as nnU-Net builds it, with weights whose logits are far from even."""
    import pydoc

    architecture = written["configurations"][configuration]["architecture"]
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        arguments[name] = None if arguments[name] is None else pydoc.locate(arguments[name])
    num_channels = len(written["configurations"][configuration]["normalization_schemes"])
    torch.manual_seed(seed)
    network = pydoc.locate(architecture["network_class_name"])(
        input_channels=num_channels, num_classes=num_outputs, deep_supervision=True, **arguments
    )
    for name, parameter in network.named_parameters():
        if "seg_layers" in name:
            nn.init.normal_(parameter, std=0.5)
    network.decoder.deep_supervision = False
    return network.eval()


def write_folder(
    folder: Path,
    written: dict[str, Any],
    *,
    labels: dict[str, Any] | None = None,
    folds: tuple[int | str, ...] = (0,),
    file_ending: str = ".nii.gz",
    channel_names: tuple[str, ...] = ("MRI",),
    mirror: tuple[int, ...] | None = None,
    file_name: str = "checkpoint_final.pth",
    **dataset: Any,
) -> list[nn.Module]:
    """Write a trained folder and return the networks of its folds."""
    labels = labels or {"background": 0, "organ": 1, "lesion": 2}
    (configuration,) = written["configurations"]
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "channel_names": {str(number): name for number, name in enumerate(channel_names)},
        "labels": labels,
        "numTraining": 2,
        "file_ending": file_ending,
        **dataset,
    }
    (folder / "plans.json").write_text(json.dumps(written))
    (folder / "dataset.json").write_text(json.dumps(description))
    num_outputs = len(labels) - any(isinstance(label, list) for label in labels.values())
    networks = []
    for fold in folds:
        seed = fold if isinstance(fold, int) else 99
        networks.append(nnunet_network(written, configuration, num_outputs=num_outputs, seed=seed))
        (folder / f"fold_{fold}").mkdir(exist_ok=True)
        torch.save(
            {
                "network_weights": networks[-1].state_dict(),
                "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
                "grad_scaler_state": None,
                "logging": {"ema_fg_dice": [np.float64(0.5)], "lrs": [np.float32(0.01)]},
                "_best_ema": np.float64(0.5),
                "current_epoch": 2,
                "init_args": {"plans": written, "configuration": configuration, "fold": fold},
                "trainer_name": "nnUNetTrainer",
                "inference_allowed_mirroring_axes": mirror,
            },
            folder / f"fold_{fold}" / file_name,
        )
    return networks
