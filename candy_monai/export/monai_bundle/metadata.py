"""The ``metadata.json`` of a bundle, according to MONAI's schema of 2024-07-25."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

from candy_monai.data.images.pictures import PICTURES, TIFFS
from candy_monai.export.monai_bundle.source import BundleSource

SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
VERSION = "0.1.0"

_MODALITIES = {"ct": "CT", "mri": "MR", "mr": "MR", "us": "US", "pet": "PT"}
_STANDARDIZED = [-5, 5]
"""The range of most intensities with mean 0 and standard deviation 1, which have no bounds."""


def bundle_metadata(source: BundleSource, *, uses_scripts: bool) -> dict[str, Any]:
    """Return the content of ``metadata.json``."""
    plan, num_members = source.plan, source.network.num_members
    whose = "nnU-Net" if source.origin.of_nnunet else "candy_monai"
    found = ", ".join(name for name in plan.class_names if name != "background") or "foreground"
    images = ", ".join(name for name in plan.channel_names if name) or "images"
    kinds = f"{plan.configuration.upper().replace('D', '-D')} network"
    what = f"{num_members} networks, whose outputs are averaged" if num_members > 1 else f"A {kinds}"
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "changelog": {VERSION: f"exported from {source.origin.name} by candy_monai"},
        "monai_version": _version("monai"),
        "pytorch_version": _version("torch"),
        "numpy_version": _version("numpy"),
        "required_packages_version": {name: _version(name) for name in _required(source, uses_scripts=uses_scripts)},
        "supported_apps": {},
        "name": f"{_as_name(plan.dataset_name)}_segmentation",
        "task": f"Segmentation of {found} in {images}",
        "description": f"{what}, trained on {plan.dataset_name} with {whose}.",
        "authors": "whoever trained the experiment",
        "copyright": "whoever trained the experiment; the dataset's licence may bind the weights",
        "network_data_format": {
            "inputs": {"image": _image(source)},
            "outputs": {"pred": _prediction(source)},
        },
    }


def classes_by_id(source: BundleSource) -> dict[int, str]:
    """Return the names of the ids in a label map, the background first."""
    plan = source.plan
    if plan.regions:
        return {0: "background", **{region.paints: region.name for region in plan.regions}}
    return dict(enumerate(plan.class_names))


def _image(source: BundleSource) -> dict[str, Any]:
    plan = source.plan
    schemes = {channel.scheme for channel in plan.normalization}
    is_picture = plan.spacing_mm is None
    first = plan.channel_names[0].casefold()
    is_ct = schemes == {"ct"}
    value_range: list[float] = [0, 1] if schemes <= {"rescale_to_0_1", "rgb_to_0_1"} else list(_STANDARDIZED)
    if is_ct:
        value_range = [
            min((channel.lower - channel.mean) / max(channel.std, 1e-8) for channel in plan.normalization),
            max((channel.upper - channel.mean) / max(channel.std, 1e-8) for channel in plan.normalization),
        ]
    return {
        "type": "image",
        "format": "hounsfield" if is_ct else "rgb" if is_picture and len(plan.channel_names) == 3 else "magnitude",
        "modality": "CT" if is_ct else _MODALITIES.get(first, plan.channel_names[0] or "n/a"),
        "num_channels": len(plan.channel_names),
        "spatial_shape": source.network.spatial_shape,
        "dtype": "float32",
        "value_range": value_range,
        "is_patch_data": True,
        "channel_def": {str(index): name or f"channel {index}" for index, name in enumerate(plan.channel_names)},
    }


def _prediction(source: BundleSource) -> dict[str, Any]:
    return {
        "type": "image",
        "format": "segmentation",
        "num_channels": source.plan.num_classes,
        "spatial_shape": source.network.spatial_shape,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        # By the ids of label maps, as MONAI Label interprets them.
        "channel_def": {str(label_id): name for label_id, name in classes_by_id(source).items()},
    }


def _required(source: BundleSource, *, uses_scripts: bool) -> list[str]:
    """Return the packages that the bundle needs besides MONAI, PyTorch and NumPy."""
    ending = source.file_ending
    reading = "pillow" if ending in (*PICTURES, *TIFFS) else "nibabel" if ending.startswith(".nii") else "itk"
    named = str(source.network.entry)
    package = ["dynamic-network-architectures"] if "dynamic_network_architectures." in named else []
    return [reading, "pytorch-ignite", *(["scipy"] if uses_scripts else []), *package]


def _version(package: str) -> str:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return ""


def _as_name(name: str) -> str:
    return re.sub(r"\W+", "_", name.strip().casefold()).strip("_") or "dataset"
