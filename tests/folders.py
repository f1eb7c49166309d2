"""Small nnU-Net folders, sound or broken in one way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from candy_monai.data.datasets.nnunet import NNUNetDataset

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


def write_part(source: Path, folder: Path, num_cases: int, size: int | None = None) -> Path:
    """Write the first cases of a dataset, cut to this many voxels around the centre of the first two axes."""
    for case in NNUNetDataset(source).cases[:num_cases]:
        for file in (*case.images, case.label):
            target = folder / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_centre(file, target, size)
    describe(folder, **json.loads((source / "dataset.json").read_text()) | {"numTraining": num_cases})
    return folder


def _write_centre(file: Path, target: Path, size: int | None) -> None:
    if size is None:
        shutil.copyfile(file, target)
    elif file.suffix == ".png":
        with Image.open(file) as picture:
            (left, right), (top, bottom) = (_centre(length, size) for length in picture.size)
            picture.crop((left, top, right, bottom)).save(target)
    else:
        image = nibabel.load(file)
        nibabel.save(image.slicer[tuple(slice(*_centre(length, size)) for length in image.shape[:2])], target)


def _centre(length: int, size: int) -> tuple[int, int]:
    start = max(0, length - size) // 2
    return start, min(length, start + size)
