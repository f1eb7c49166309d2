"""Small nnU-Net folders, sound or broken in one way."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

AFFINE = np.diag([1.0, 1.5, 3.0, 1.0])
SHAPE = (6, 5, 4)


def write(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        nibabel.save(nibabel.Nifti1Image(array, affine), path)


def label_of(ids: tuple[int, ...]) -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    for position, value in enumerate(ids):
        label[position] = value
    return label


def describe(folder: Path, **changes: object) -> None:
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
        **changes,
    }
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def make(folder: Path, ids=("a", "b", "c"), num_channels: int = 1, **changes: object) -> Path:
    """Write a dataset in which the image of the i-th case holds 10 * i + channel."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, case_id in enumerate(ids):
        for channel in range(num_channels):
            image = np.full(SHAPE, 10 * index + channel, np.float32)
            write(folder / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz", image)
        write(folder / "labelsTr" / f"{case_id}.nii.gz", label_of((1, 2)))
    channels = {str(channel): f"c{channel}" for channel in range(num_channels)}
    describe(folder, **{"channel_names": channels, "numTraining": len(ids), **changes})
    return folder


def texture(folder: Path) -> Path:
    """Give every image voxels of its own, as real ones have."""
    rng = np.random.default_rng(0)
    for path in sorted(folder.glob("images*/*.nii*")):
        image = nibabel.load(path)
        write(path, rng.normal(100, 10, image.shape).astype(np.float32), image.affine)
    return folder
