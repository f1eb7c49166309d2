"""Datasets of every kind that the format allows go the whole way: checked, planned, trained and predicted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.nnunet_description import NNUNetCase
from candy_monai.data.images.reading import load_image, read_geometry
from candy_monai.data.inspection.checks import check_dataset
from candy_monai.incoming.opening import load_predictor
from candy_monai.recipes.train import train_dataset

pytestmark = pytest.mark.slow

STEPS = {"iterations_per_epoch": "2", "filters": "4,8,8", "batch_size": "2", "validate_every": "1"}


def body(shape: tuple[int, ...], seed: int, *, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return an image around 100 and a label of stripes in a box, all classes in it."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.int32)
    box = tuple(slice(size // 5, size - size // 5) for size in shape)
    extent = label[box].shape
    stripes = np.arange(np.prod(extent)).reshape(extent) * (num_classes - 1) // np.prod(extent) + 1
    label[box] = stripes
    return rng.normal(100, 10, shape) + 40.0 * (label > 0), label


def describe(
    folder: Path, *, classes: int = 3, channels: tuple[str, ...] = ("MRI",), ending: str, **more: object
) -> Path:
    labels = {"background": 0, **{f"class {index}": index for index in range(1, classes)}}
    content = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": labels,
        "numTraining": len(list((folder / "labelsTr").iterdir())),
        "file_ending": ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return folder


def folders(folder: Path) -> tuple[Path, Path]:
    images, labels = folder / "imagesTr", folder / "labelsTr"
    images.mkdir(parents=True)
    labels.mkdir()
    return images, labels


def pictures(folder: Path, *, mode: str = "L", ending: str = ".png", shape: tuple[int, int] = (40, 52)) -> Path:
    images, labels = folders(folder)
    channels = {"L": ("grey",), "I;16": ("grey",), "RGB": ("R", "G", "B"), "RGBA": ("R", "G", "B", "A")}[mode]
    for index in range(4):
        image, label = body((shape[0] + index, shape[1]), index)
        if mode == "I;16":
            pixels = Image.fromarray((image * 300).clip(0, 65535).astype(np.uint16))
        else:
            parts = [(image * scale).clip(0, 255) for scale in (1.0, 0.5, 1.5, 1.2)[: len(channels)]]
            pixels = Image.fromarray(np.squeeze(np.stack(parts, -1)).astype(np.uint8))
        pixels.save(images / f"c{index}_0000{ending}")
        Image.fromarray(label.astype(np.uint8)).save(labels / f"c{index}{ending}")
    return describe(folder, channels=channels, ending=ending)


def volumes(
    folder: Path,
    *,
    shape: tuple[int, ...] = (24, 20, 18),
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0),
    channels: tuple[str, ...] = ("MRI",),
    classes: int = 3,
    count: int = 4,
    scales: tuple[float, ...] = (1.0, 1.0),
    ending: str = ".nii.gz",
    **more: object,
) -> Path:
    images, labels = folders(folder)
    for index in range(count):
        image, label = body(shape, index, num_classes=classes)
        affine = np.diag([-spacing[0], *spacing[1:], 1.0] if index % 2 else [*spacing, 1.0])
        for channel in range(len(channels)):
            values = (image * scales[channel]).astype(np.float32)
            nibabel.save(nibabel.Nifti1Image(values, affine), images / f"c{index}_{channel:04d}{ending}")
        nibabel.save(nibabel.Nifti1Image(label.astype(np.int16), affine), labels / f"c{index}{ending}")
    return describe(folder, classes=classes, channels=channels, ending=ending, **more)


def decathlon(folder: Path) -> Path:
    """Write version 1 with two modalities in one 4-D file, its hidden macOS files among them."""
    images, labels = folders(folder)
    for index in range(4):
        image, label = body((24, 20, 18), index)
        nibabel.save(
            nibabel.Nifti1Image(np.stack([image, image * 9 + 500], -1).astype(np.float32), np.eye(4)),
            images / f"c_{index}.nii.gz",
        )
        nibabel.save(nibabel.Nifti1Image(label.astype(np.uint8), np.eye(4)), labels / f"c_{index}.nii.gz")
        (images / f"._c_{index}.nii.gz").write_bytes(b"\0")
    listed = [{"image": f"./imagesTr/c_{i}.nii.gz", "label": f"./labelsTr/c_{i}.nii.gz"} for i in range(4)]
    return describe(
        folder,
        ending="",
        channel_names=None,
        file_ending=None,
        modality={"0": "FLAIR", "1": "T1"},
        labels={"0": "background", "1": "a", "2": "b"},
        training=listed,
        test=[],
        tensorImageSize="4D",
    )


def tiff_volumes(folder: Path) -> Path:
    tifffile = pytest.importorskip("tifffile")
    images, labels = folders(folder)
    for index in range(4):
        image, label = body((10, 28, 24), index)
        tifffile.imwrite(images / f"c{index}_0000.tif", image.astype(np.uint16), photometric="minisblack")
        tifffile.imwrite(labels / f"c{index}.tif", label.astype(np.uint8), photometric="minisblack")
        for place in (images, labels):
            (place / f"c{index}.json").write_text(json.dumps({"spacing": [4.0, 1.0, 1.0]}))
    described = describe(folder, ending=".tif")
    content = json.loads((described / "dataset.json").read_text())
    (described / "dataset.json").write_text(json.dumps({**content, "numTraining": 4}))
    return described


def listed_elsewhere(folder: Path) -> Path:
    """Write a folder that holds nothing but a description: every path is in its ``dataset`` dictionary."""
    elsewhere = volumes(folder.with_name(f"{folder.name}-elsewhere"))
    folder.mkdir()
    entries = {
        f"case {index}": {
            "images": [f"../{elsewhere.name}/imagesTr/c{index}_0000.nii.gz"],
            "label": str(elsewhere / f"labelsTr/c{index}.nii.gz"),
        }
        for index in range(4)
    }
    content = json.loads((elsewhere / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "dataset": entries}))
    return folder


REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}

KINDS: dict[str, Callable[[Path], Path]] = {
    "grey pictures": pictures,
    "16-bit pictures": lambda folder: pictures(folder, mode="I;16"),
    "colour pictures": lambda folder: pictures(folder, mode="RGB"),
    "colour pictures with alpha": lambda folder: pictures(folder, mode="RGBA"),
    "bitmaps": lambda folder: pictures(folder, ending=".bmp"),
    "TIFF pictures": lambda folder: pictures(folder, ending=".tif"),
    "tiny pictures": lambda folder: pictures(folder, shape=(9, 11)),
    "TIFF volumes": tiff_volumes,
    "CT of two orientations": lambda folder: volumes(folder, channels=("CT",)),
    "uncompressed NIfTI": lambda folder: volumes(folder, ending=".nii"),
    "thick slices": lambda folder: volumes(folder, shape=(32, 30, 6), spacing=(0.7, 0.7, 5.0)),
    "a thick first axis": lambda folder: volumes(folder, shape=(5, 30, 28), spacing=(6.0, 0.8, 0.8)),
    "one slice": lambda folder: volumes(folder, shape=(32, 30, 1)),
    "tiny volumes": lambda folder: volumes(folder, shape=(7, 6, 5)),
    "channels of different scales": lambda folder: volumes(folder, channels=("T1", "ADC"), scales=(1.0, 3000.0)),
    "a single case": lambda folder: volumes(folder, count=1),
    "two cases": lambda folder: volumes(folder, count=2),
    "300 classes": lambda folder: volumes(folder, classes=300, count=3),
    "regions and an ignore label": lambda folder: volumes(folder, classes=4, **REGIONS),
    "regions in pictures": lambda folder: describe(
        pictures(folder), ending=".png", labels={"background": 0, "all": [1, 2], "b": [2]}, regions_class_order=[1, 2]
    ),
    "the Decathlon's 4-D files": decathlon,
    "cases listed by path": listed_elsewhere,
}


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_dataset_of_this_kind_goes_the_whole_way_and_stays_as_it_was(tmp_path, kind):
    folder = KINDS[kind](tmp_path / "Dataset900_Kind")
    before = digest(folder)
    assert check_dataset(folder).problems == ()
    experiment = train_dataset(
        folder,
        num_epochs=1,
        seed=0,
        overrides=STEPS,
        device="cpu",
        out=tmp_path / "out",
        on_progress=lambda _text: None,
    )
    dataset = NNUNetDataset(folder)
    case: NNUNetCase = dataset.cases[0]
    source = tmp_path / "source"
    source.mkdir()
    for path in case.images:
        (source / path.name).write_bytes(path.read_bytes())
        beside = path.with_name(f"{case.case_id}.json")
        if beside.exists():
            (source / beside.name).write_bytes(beside.read_bytes())
    (written,) = load_predictor(experiment).predict_to_files(source, tmp_path / "predictions")
    one, other = read_geometry(case.images[0]), read_geometry(written)
    assert other.spatial_shape == one.spatial_shape
    assert np.allclose(other.affine, one.affine, atol=1e-5)
    assert set(np.unique(load_image(written, is_label=True))) <= set(dataset.description.label_ids)
    assert (experiment / "actual (preview).png").exists() == (len(dataset) > 1)
    assert digest(folder) == before
