"""Make a small labelled dataset out of nothing, for demonstrations and tests.

The task is meant to take learning: intensities of the classes and the background overlap, brightness differs between
cases, and distractors have a body's intensity but not its texture, shape or place. Owns no training, no real anatomy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
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
from candy_monai.files import atomic_write_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CLASS_NAMES = ("shell", "core", "tube")
_MEANS = (1.3, 0.1, 1.6, -1.1)  # in the units of the background's texture; the classes take them in turn
_GRAINS = (0.7, 1.3, 0.5, 0.9)  # the texture's scale in voxels
_TILT_DEGREES = (8.0, -5.0, 12.0)
_NUM_DISTRACTORS = 4


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What all cases of one dataset share; the axis of channels comes first."""

    num_classes: int
    num_channels: int
    shape: Shape
    vary_shape: bool
    spacing_mm: tuple[float, ...]
    file_ending: str
    seed: int


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

    Class 1 is a shell around class 2, class 3 a bent tube beside them, further classes are small bodies around; two
    classes make one whole body. Volumes are anisotropic and tilted. The same arguments give the same bytes.

    Args:
        folder: The dataset's folder; created, and files in it replaced.
        num_cases: Training cases, 1 or more.
        num_test_cases: Test cases, which have labels, too.
        num_dims: 2 or 3.
        num_classes: 2 or more, the background included.
        num_channels: 1 or more; each shows the same bodies with another contrast.
        shape: Voxels of every case along each axis, 16 or more; ``None`` takes about 48 x 48 x 24 or 96 x 96, a little
            different in every case.
        spacing_mm: Voxel size; ``None`` takes 1 x 1 x 2.5 mm, or 1 x 1 mm.
        file_ending: ``None`` takes ``.nii.gz`` for volumes and ``.png`` for pictures (8 bit).
        seed: Everything random follows from it.

    Returns:
        The folder.

    Raises:
        BadInputError: If an argument is out of range.
    """
    plan = _plan(num_dims, num_classes, num_channels, shape, spacing_mm, file_ending, seed)
    if num_cases < 1 or num_test_cases < 0:
        raise BadInputError(
            f"found {num_cases} and {num_test_cases} cases, expected 1 or more, and 0 or more for testing"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = ["background", *_class_names(num_classes)]
    description = {
        "channel_names": {str(channel): f"phantom contrast {channel + 1}" for channel in range(num_channels)},
        "labels": {name: index for index, name in enumerate(names)},
        "numTraining": num_cases,
        "file_ending": plan.file_ending,
        "name": folder.name,
        "description": "Synthetic bodies in a textured background",
        "licence": "CC0",
    }
    for index in range(num_cases + num_test_cases):
        _write_case(folder, "Tr" if index < num_cases else "Ts", index, plan)
    atomic_write_text(folder / "dataset.json", json.dumps(description, indent=2) + "\n", durable=False)
    return folder


def _plan(
    num_dims: int,
    num_classes: int,
    num_channels: int,
    shape: Sequence[int] | None,
    spacing_mm: Sequence[float] | None,
    file_ending: str | None,
    seed: int,
) -> _Plan:
    if num_dims not in (2, 3):
        raise BadInputError(f"num_dims must be 2 or 3, got {num_dims}")
    if num_classes < 2 or num_channels < 1:
        raise BadInputError(
            f"found num_classes {num_classes} and num_channels {num_channels}, expected 2 or more (background "
            "included) and 1 or more"
        )
    default_shape, default_spacing = ((96, 96), (1.0, 1.0)) if num_dims == 2 else ((48, 48, 24), (1.0, 1.0, 2.5))
    chosen = tuple(int(length) for length in (shape or default_shape))
    spacing = tuple(float(length) for length in (spacing_mm or default_spacing))
    if len(chosen) != num_dims or min(chosen) < 16:
        raise BadInputError(f"shape must have {num_dims} lengths of 16 or more, got {chosen}")
    if len(spacing) != num_dims or min(spacing) <= 0:
        raise BadInputError(f"spacing_mm must have {num_dims} positive lengths, got {spacing}")
    return _Plan(
        num_classes=num_classes,
        num_channels=num_channels,
        shape=chosen,
        vary_shape=shape is None,
        spacing_mm=spacing,
        file_ending=file_ending or (".png" if num_dims == 2 else ".nii.gz"),
        seed=seed,
    )


def _class_names(num_classes: int) -> list[str]:
    if num_classes == 2:
        return ["body"]
    return [_CLASS_NAMES[i] if i < len(_CLASS_NAMES) else f"satellite {i - 2}" for i in range(num_classes - 1)]


def _write_case(folder: Path, split: str, index: int, plan: _Plan) -> None:
    random = np.random.default_rng([plan.seed, index])
    shape = plan.shape
    if plan.vary_shape:
        shape = tuple(int(length + random.integers(-length // 16, length // 16 + 1)) for length in shape)
    points = _points(shape, plan.spacing_mm)
    label = _label(points, plan.num_classes, random)
    distractors = _distractors(points, label, random)
    affine = torch.from_numpy(_affine(plan.spacing_mm, random))
    case_id = f"phantom_{index:03d}"
    save_image(
        MetaTensor(torch.from_numpy(label)[None], affine=affine),
        folder / f"labels{split}" / f"{case_id}{plan.file_ending}",
    )
    for channel in range(plan.num_channels):
        image = _image(label, distractors, channel, random)
        stored = _as_picture(image) if plan.file_ending == ".png" else _as_scan(image, random)
        path = folder / f"images{split}" / f"{case_id}_{channel:04d}{plan.file_ending}"
        save_image(MetaTensor(torch.from_numpy(stored)[None], affine=affine), path)


def _points(shape: Shape, spacing_mm: tuple[float, ...]) -> NDArray[np.float64]:
    """Return each voxel's place, ``(num_dims, *shape)``: 0 in the centre, 1 at the nearest border."""
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
    return (
        Rotation.from_euler("xyz", angles, degrees=True).as_matrix()[:num_dims, :num_dims]
        if num_dims == 3
        else (Rotation.from_euler("z", angles[2], degrees=True).as_matrix()[:2, :2])
    )


def _label(points: NDArray[np.float64], num_classes: int, random: np.random.Generator) -> NDArray[np.uint8]:
    num_dims, shape = len(points), points.shape[1:]
    bent = points + 0.05 * np.stack([_noise(shape, max(shape) / 9, random) for _ in range(num_dims)])
    centre = random.uniform(-0.2, 0.2, num_dims)
    radii = (np.array([0.5, 0.4]) if num_dims == 2 else np.array([0.6, 0.5, 0.7])) * random.uniform(
        0.85, 1.15, num_dims
    )
    turn = _turn(num_dims, 25, random)
    label = np.zeros(shape, np.uint8 if num_classes <= 256 else np.uint16)
    _paint_satellites(label, bent, centre, random, first=4, num_classes=num_classes)
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
    random: np.random.Generator,
    *,
    first: int,
    num_classes: int,
) -> None:
    """Paint the classes from ``first`` on, each at its own angle around the body."""
    for number in range(first, num_classes):
        angle = 2.2 + 2 * np.pi * (number - first) / max(num_classes - first, 3) * 0.7 + random.uniform(-0.15, 0.15)
        place = centre.copy()
        place[:2] += 0.72 * np.array([np.cos(angle), np.sin(angle)])
        place = np.clip(place, -0.8, 0.8)
        radii = random.uniform(0.13, 0.2, len(points))
        label[_ellipsoid(points, place, radii, np.eye(len(points))) < 1] = number


def _distractors(
    points: NDArray[np.float64], label: NDArray[np.unsignedinteger], random: np.random.Generator
) -> NDArray[np.int64]:
    """Return ragged blobs beside the bodies: 0 outside, else the class whose intensity they borrow."""
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
    blurred = gaussian_filter(image, 0.5)  # borders mix, as in a scanner
    return blurred + 0.12 * random.standard_normal(shape) + 0.3 * _noise(shape, max(shape) / 4, random)


def _as_scan(image: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.int32]:
    """Scale like a scanner without a common scale: another gain, offset and sensitivity map in every case."""
    bias = np.exp(0.12 * _noise(image.shape, max(image.shape) / 4, random))
    gain, offset = np.exp(random.uniform(-0.7, 0.7)), random.uniform(400, 700)
    return np.clip(np.rint((offset + 100 * image) * bias * gain), 0, 32767).astype(np.int32)  # type: ignore[no-any-return]


def _as_picture(image: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.rint(110 + 32 * image), 0, 255).astype(np.uint8)


def _affine(spacing_mm: tuple[float, ...], random: np.random.Generator) -> NDArray[np.float64]:
    affine = np.eye(4)
    num_dims = len(spacing_mm)
    shift = random.uniform(-20, 20, 3)
    if num_dims == 2:
        affine[0, 0], affine[1, 1] = spacing_mm
        return affine
    turn = Rotation.from_euler("xyz", np.array(_TILT_DEGREES) + random.uniform(-3, 3, 3), degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    affine[:3, 3] = shift
    return affine
