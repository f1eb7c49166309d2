"""A small synthetic labelled dataset, for demonstrations and tests.

The task is designed to need learning: intensities of the classes and the background overlap, brightness differs between
cases, and distractors have a body's intensity but not its texture, shape or position.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from candy_monai.aliases import PathLike, Shape
from candy_monai.data.images.writing import save_image
from candy_monai.errors import BadInputError
from candy_monai.files import atomic_write_text, check_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CLASS_NAMES = ("shell", "core", "tube")
_MEANS = (1.3, 0.1, 1.6, -1.1)  # in units of the background's texture; used by the classes in turn
_GRAINS = (0.7, 1.3, 0.5, 0.9)  # the texture's scale in voxels
_TILT_DEGREES = (8.0, -5.0, 12.0)
_NUM_DISTRACTORS = 4
_DESCRIPTION = "Synthetic bodies in a textured background"


def write_phantom_dataset(
    folder: PathLike,
    *,
    num_cases: int = 24,
    num_test_cases: int = 4,
    num_dims: Literal[2, 3] = 3,
    num_classes: int = 3,
    num_channels: int = 1,
    shape: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    file_ending: str | None = None,
    seed: int = 0,
) -> Path:
    """Write a synthetic dataset in nnU-Net's format.

    Class 1 is a shell around class 2, class 3 a bent tube beside them, and further classes are small bodies around
    them; two classes make one whole body. Volumes are anisotropic and tilted. The same arguments give the same bytes.

    Args:
        folder: The dataset's folder; created if missing; the cases of an earlier call are removed from it.
        num_cases: The number of training cases, at least 1.
        num_test_cases: The number of test cases, which also have labels.
        num_dims: 2 or 3.
        num_classes: The number of classes with background, at least 2.
        num_channels: At least 1; each shows the same bodies with another contrast.
        shape: Voxels of every case along each axis, at least 16; ``None`` for about 48 x 48 x 24 or 96 x 96, slightly
            different in every case.
        spacing_mm: Voxel size; ``None`` for 1 x 1 x 2.5 mm, or 1 x 1 mm.
        file_ending: ``None`` for ``.nii.gz`` for volumes and ``.png`` for pictures (8 bit).
        seed: The random seed.

    Returns:
        The folder.

    Raises:
        BadInputError: If an argument is out of range, or the folder cannot be written to or holds another dataset.
    """
    if num_dims not in (2, 3):
        raise BadInputError(f"num_dims must be 2 or 3, got {num_dims}")
    if num_classes < 2 or num_channels < 1:
        raise BadInputError(
            f"found num_classes {num_classes} and num_channels {num_channels}, expected 2 or more (background "
            "included) and 1 or more"
        )
    if num_cases < 1 or num_test_cases < 0:
        raise BadInputError(
            f"found {num_cases} and {num_test_cases} cases, expected 1 or more, and 0 or more for testing"
        )
    usual_shape = tuple(shape or ((96, 96) if num_dims == 2 else (48, 48, 24)))
    spacing = tuple(spacing_mm or ((1.0, 1.0) if num_dims == 2 else (1.0, 1.0, 2.5)))
    if len(usual_shape) != num_dims or min(usual_shape) < 16:
        raise BadInputError(f"shape must have {num_dims} lengths of 16 or more, got {usual_shape}")
    if len(spacing) != num_dims or min(spacing) <= 0:
        raise BadInputError(f"spacing_mm must have {num_dims} positive lengths, got {spacing}")
    ending = file_ending or (".png" if num_dims == 2 else ".nii.gz")
    folder = Path(folder)
    check_writable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_earlier(folder)
    for index in range(num_cases + num_test_cases):
        split, case_id = "Tr" if index < num_cases else "Ts", f"phantom_{index:03d}"
        random = np.random.default_rng([seed, index])
        varied = usual_shape if shape else _varied(usual_shape, random)
        label, channels, affine = _case(varied, spacing, num_classes, num_channels, random, as_picture=ending == ".png")
        save_image(_placed(label, affine), folder / f"labels{split}" / f"{case_id}{ending}")
        for channel, image in enumerate(channels):
            save_image(_placed(image, affine), folder / f"images{split}" / f"{case_id}_{channel:04d}{ending}")
    description = {
        "channel_names": {str(channel): f"phantom contrast {channel + 1}" for channel in range(num_channels)},
        "labels": {name: index for index, name in enumerate(["background", *_class_names(num_classes)])},
        "numTraining": num_cases,
        "file_ending": ending,
        "name": folder.name,
        "description": _DESCRIPTION,
        "licence": "CC0",
    }
    atomic_write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n", durable=False)
    return folder


def _remove_earlier(folder: Path) -> None:
    """Remove the cases of an earlier call, which may be more; raise if the folder holds another dataset."""
    if not (folder / "dataset.json").exists():
        return
    if _DESCRIPTION not in (folder / "dataset.json").read_text(encoding="utf-8", errors="replace"):
        raise BadInputError(f"{folder}: holds another dataset, expected a phantom dataset or none: give another folder")
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        for file in (folder / name).glob("phantom_*"):
            file.unlink()


def _class_names(num_classes: int) -> list[str]:
    if num_classes == 2:
        return ["body"]
    return [_CLASS_NAMES[i] if i < len(_CLASS_NAMES) else f"satellite {i - 2}" for i in range(num_classes - 1)]


def _varied(shape: Shape, random: np.random.Generator) -> Shape:
    return tuple(int(length + random.integers(-length // 16, length // 16 + 1)) for length in shape)


def _placed(array: NDArray[np.generic], affine: NDArray[np.float64]) -> MetaTensor:
    return MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine))


def _case(
    shape: Shape,
    spacing_mm: tuple[float, ...],
    num_classes: int,
    num_channels: int,
    random: np.random.Generator,
    *,
    as_picture: bool,
) -> tuple[NDArray[np.generic], list[NDArray[np.generic]], NDArray[np.float64]]:
    """Return a label map, the channels of its image as they are stored, and the affine of both."""
    points = _points(shape, spacing_mm)
    label = _label(points, num_classes, random)
    distractors = _distractors(points, label, random)
    affine = _affine(spacing_mm, random)
    images = (_image(label, distractors, channel, random) for channel in range(num_channels))
    return label, [_as_picture(image) if as_picture else _as_scan(image, random) for image in images], affine


def _points(shape: Shape, spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Return each voxel's position, ``(num_dims, *shape)``: 0 in the centre, 1 at the nearest border."""
    extent = np.array(shape) * spacing_mm
    axes = [(np.arange(n) - (n - 1) / 2) * step * 2 / extent.min() for n, step in zip(shape, spacing_mm, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _noise(shape: Shape, scale: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Return smooth noise of mean 0 and standard deviation 1; ``scale`` is in voxels."""
    field = gaussian_filter(random.standard_normal(shape), scale, mode="wrap", truncate=3.0)
    field -= field.mean()
    return field / field.std()  # type: ignore[no-any-return]


def _ellipsoid(
    points: NDArray[np.float64], centre: NDArray[np.float64], radii: NDArray[np.float64], turn: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance from the centre in units of the radii: below 1 inside."""
    offset = points - centre.reshape(-1, *[1] * (points.ndim - 1))
    turned = np.tensordot(turn, offset, axes=1)
    return np.linalg.norm(turned / radii.reshape(-1, *[1] * (points.ndim - 1)), axis=0)  # type: ignore[no-any-return]


def _turn(num_dims: int, degrees: float, random: np.random.Generator) -> NDArray[np.float64]:
    angles = random.uniform(-degrees, degrees, 3)
    axes, used = ("xyz", angles) if num_dims == 3 else ("z", angles[2])
    turn: NDArray[np.float64] = Rotation.from_euler(axes, used, degrees=True).as_matrix()[:num_dims, :num_dims]
    return turn


def _label(points: NDArray[np.float64], num_classes: int, random: np.random.Generator) -> NDArray[np.uint8]:
    num_dims, shape = len(points), points.shape[1:]
    bent = points + 0.05 * np.stack([_noise(shape, max(shape) / 9, random) for _ in range(num_dims)])
    centre = random.uniform(-0.2, 0.2, num_dims)
    usual_radii = np.array([0.5, 0.4] if num_dims == 2 else [0.6, 0.5, 0.7])
    radii = usual_radii * random.uniform(0.85, 1.15, num_dims)
    turn = _turn(num_dims, 25, random)
    label = np.zeros(shape, np.uint8 if num_classes <= 256 else np.uint16)
    _paint_satellites(label, bent, centre, num_classes, random)
    if num_classes > 3:
        label[_tube(bent, centre, radii, random) < 1] = 3
    label[_ellipsoid(bent, centre, radii, turn) < 1] = 1
    if num_classes > 2:
        inner = centre + random.uniform(-0.06, 0.06, num_dims)
        label[_ellipsoid(bent, inner, radii * random.uniform(0.52, 0.64), turn) < 1] = 2
    return label


def _tube(
    points: NDArray[np.float64], centre: NDArray[np.float64], radii: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Return the distance from a bent line beside the body, in units of the tube's radius."""
    along = points[-1] - centre[-1]
    bend = random.uniform(0.15, 0.35) * along**2
    side = points[0] - (centre[0] + radii[0] + 0.2) + bend
    across = [side, points[1] - centre[1]] if len(points) == 3 else [side]
    thickness = np.hypot.reduce(np.stack(across)) / random.uniform(0.11, 0.14)
    return np.maximum(thickness, np.abs(along) / 0.75)  # type: ignore[no-any-return]


def _paint_satellites(
    label: NDArray[np.unsignedinteger],
    points: NDArray[np.float64],
    centre: NDArray[np.float64],
    num_classes: int,
    random: np.random.Generator,
) -> None:
    """Draw the classes from the fourth on into a label map, each at its own angle around the body."""
    for number in range(4, num_classes):
        angle = 2.2 + 2 * np.pi * (number - 4) / max(num_classes - 4, 3) * 0.7 + random.uniform(-0.15, 0.15)
        place = centre.copy()
        place[:2] += 0.72 * np.array([np.cos(angle), np.sin(angle)])
        radii = random.uniform(0.13, 0.2, len(points))
        label[_ellipsoid(points, np.clip(place, -0.8, 0.8), radii, np.eye(len(points))) < 1] = number


def _distractors(
    points: NDArray[np.float64], label: NDArray[np.unsignedinteger], random: np.random.Generator
) -> NDArray[np.int64]:
    """Return irregular blobs beside the bodies: 0 outside, else the class whose intensity they have."""
    num_dims, shape = len(points), label.shape
    ragged = 0.35 * _noise(shape, max(shape) / 16, random)
    near = gaussian_filter((label > 0).astype(np.float64), 1.0) > 0.02
    blobs = np.zeros(shape, np.int64)
    for number in range(_NUM_DISTRACTORS):
        place = random.uniform(-0.9, 0.9, num_dims)
        radii = random.uniform(0.2, 0.38, num_dims)
        inside = _ellipsoid(points, place, radii, np.eye(num_dims)) + ragged < 1
        blobs[inside & ~near] = 1 + number % max(int(label.max()), 1)
    return blobs


def _image(
    label: NDArray[np.unsignedinteger], distractors: NDArray[np.int64], channel: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return intensities before the gain, offset and bias of the case: the background has mean 0, deviation 0.75."""
    shape = label.shape
    image = 0.5 * _noise(shape, 1.0, random) + 0.45 * _noise(shape, 2.5, random) + 0.35 * _noise(shape, 6.0, random)
    flip = -1.0 if channel % 2 else 1.0
    means = [flip * _MEANS[(i + channel // 2) % len(_MEANS)] for i in range(int(label.max()))]
    for number, mean in enumerate(means, start=1):
        grain = _noise(shape, _GRAINS[(number - 1) % len(_GRAINS)], random)
        image = np.where(label == number, mean + 0.55 * grain + 0.35 * image, image)
        image = np.where(distractors == number, mean + 0.5 * image, image)
    blurred = gaussian_filter(image, 0.5)  # partial volume at borders, as in a scanner
    return blurred + 0.12 * random.standard_normal(shape) + 0.3 * _noise(shape, max(shape) / 4, random)


def _as_scan(image: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int32]:
    """Return values as from a scanner without a common scale: with gain, offset and sensitivity map of the case."""
    bias = np.exp(0.12 * _noise(image.shape, max(image.shape) / 4, random))
    gain, offset = np.exp(random.uniform(-0.7, 0.7)), random.uniform(400, 700)
    return np.clip(np.rint((offset + 100 * image) * bias * gain), 0, 32767).astype(np.int32)  # type: ignore[no-any-return]


def _as_picture(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(110 + 32 * image), 0, 255).astype(np.uint8)


def _affine(spacing_mm: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float64]:
    """Return the affine of a tilted volume at a random position, or of an axis-aligned picture."""
    affine = np.diag([*spacing_mm, *(1.0,) * (4 - len(spacing_mm))])
    shift = random.uniform(-20, 20, 3)
    if len(spacing_mm) == 3:
        tilt = np.array(_TILT_DEGREES) + random.uniform(-3, 3, 3)
        affine[:3, :3] = Rotation.from_euler("xyz", tilt, degrees=True).as_matrix() @ affine[:3, :3]
        affine[:3, 3] = shift
    return affine
