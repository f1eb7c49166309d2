"""DICOM series, read as one image: a folder of slices, one multi-frame file, or one projection.

A path identifies a series: its folder, or any of its files. Frames are sorted by their positions in the patient, which
also determine the distance between them; files that do not form one stack are refused, with their names. A projection
(CR, DX), which has no position in the patient, is read as a picture, (row, column).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.data.images.dicom_files import DicomFile, Frame, decoded, read_file
from candy_monai.data.images.geometry import Geometry, UnusableFileError, affine_problem
from candy_monai.data.values import join_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".dcm", ".dicom", ".ima")
"""Suffixes of files taken for DICOM; other files are recognised by their content."""

_OTHERS = (".nii", ".gz", ".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".mha", ".mhd", ".nrrd", ".nhdr", ".json")
"""Suffixes of files that are not opened to recognise DICOM, since folders may hold thousands of them."""

_MAGIC_AT, _MAGIC = 128, b"DICM"
_CHANNEL = re.compile(r"\d{4}", re.ASCII)
_APART = 0.1  # allowed deviation of a frame from even spacing, relative to the spacing
_SAME_PLACE = 0.01  # likewise; closer frames have the same position
_COSINES = 1e-3
_SPACING = 1e-3
_STRAIGHT = 0.5  # degrees; larger angles are reported
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series as one image: frames in the order of its last axis, and its grid.

    The axes are (column, row, frame), or (row, column) for a projection.
    """

    frames: tuple[Frame, ...]
    geometry: Geometry


def is_dicom(path: Path) -> bool:
    """Return whether a path may be a DICOM series: a file by its name or first bytes, a folder by its files."""
    try:
        return any(map(_is_dicom_file, path.iterdir())) if path.is_dir() else _is_dicom_file(path)
    except OSError:
        return False


def is_channel_folder(path: Path) -> bool:
    """Return whether a path is the series of one channel in its case's folder: ``CASE/0001``."""
    return _CHANNEL.fullmatch(path.name) is not None and path.is_dir() and is_dicom(path)


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder's DICOM files: the folder itself for a series, each projection, or none.

    Raises:
        UnusableFileError: If the headers cannot be read.
    """
    images = [image for image in _files_of(folder, _state(folder)) if image.frames]
    are_projections = len(images) > 1 and all(image.frames[0].position is None for image in images)
    return [image.file for image in images] if are_projections else [folder] if images else []


def read(path: Path, *, is_label: bool) -> tuple[NDArray[np.generic], Geometry]:
    """Decode a series into a channel-first array and its geometry."""
    series = read_series(path)
    dtype = np.float64 if is_label else np.float32
    stack: NDArray[np.floating] | None = None
    places = {frame: place for place, frame in enumerate(series.frames)}
    for frame, values in decoded(series.frames):
        if stack is None:  # allocated once the pixels are known to exist
            stack = np.empty((len(places), *values.shape), dtype)
        with np.errstate(over="ignore"):
            stack[places[frame]] = values
        if not is_label and np.isinf(stack[places[frame]]).any():
            raise UnusableFileError(
                f"{frame}: values exceed the range of float32 after scaling by RescaleSlope {frame.slope:.6g} and "
                f"RescaleIntercept {frame.intercept:.6g}; correct the header"
            )
    assert stack is not None
    channels = stack[..., None] if stack.ndim == 3 else stack
    if series.geometry.is_picture:
        return np.moveaxis(channels[0], -1, 0), series.geometry
    return channels.transpose(3, 2, 1, 0), series.geometry


def read_header(path: Path) -> Geometry:
    """Read the geometry of a series without decoding its samples."""
    return read_series(path).geometry


def read_series(path: Path) -> Series:
    """Read the headers of a series, given its folder or one of its files, and check that it is one stack.

    Raises:
        UnusableFileError: If it is not, or contains no image; names the files in question.
    """
    return _series(path, _state(path if path.is_dir() else path.parent))


def _is_dicom_file(path: Path) -> bool:
    if path.name.startswith(".") or path.name.lower().endswith(_OTHERS) or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return values that change whenever a file of a folder does, to detect outdated headers."""
    found = []
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            state = file.stat()
            found.append((file.name, state.st_size, state.st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=4)
def _files_of(folder: Path, state: tuple[tuple[str, int, int], ...]) -> tuple[DicomFile, ...]:
    """Read the headers of the DICOM files of a folder; warn once about other files."""
    files = [folder / name for name, _, _ in state]
    read = [read_file(file) for file in files if _is_dicom_file(file)]
    images = {entry.file for entry in read if entry.frames}
    if images and (others := [file.name for file in files if file not in images]):
        listed = join_names(others, limit=_NAMED)
        warnings.warn(f"{folder}: left out files that are not DICOM images: {listed}", stacklevel=2)
    return tuple(read)


@lru_cache(maxsize=16)
def _series(path: Path, state: tuple[tuple[str, int, int], ...]) -> Series:
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        own = read_file(path)
        if not own.frames:
            raise UnusableFileError(f"found a DICOM object of the kind {own.described}, expected an image")
        if len(own.frames) > 1 or own.frames[0].position is None:
            return _stacked([own])
        images = [image for image in _files_of(folder, state) if image.frames and image.series == own.series]
        return _stacked([image for image in images if len(image.frames) == 1])
    images = [image for image in _files_of(folder, state) if image.frames]
    if not images:
        raise UnusableFileError("found a folder without a DICOM image, expected the files of one series")
    by_series: dict[str, list[DicomFile]] = {}
    for image in images:
        by_series.setdefault(image.series, []).append(image)
    if len(by_series) > 1:
        listed = "; ".join(
            f"{uid or 'without SeriesInstanceUID'} ({few[0].described}, {_counted(few, 'file')}, such as "
            f"{few[0].file.name})"
            for uid, few in by_series.items()
        )
        raise UnusableFileError(
            f"found {len(by_series)} series, expected one: {listed}; name a file of the wanted series instead of the "
            "folder, or move the other series away"
        )
    return _stacked(images)


def _stacked(images: Sequence[DicomFile]) -> Series:
    """Return the frames of some files as one image, sorted by position.

    Raises:
        UnusableFileError: If they are not an evenly spaced stack; names the files in question.
    """
    frames = [frame for image in images for frame in image.frames]
    first = frames[0]
    if len(frames) == 1 and first.position is None:
        geometry = Geometry.unknown(first.shape, num_channels=first.num_channels, is_picture=True)
        return Series(frames=(first,), geometry=geometry)
    _check_alike(images, frames)
    assert first.orientation is not None
    rows, columns = np.reshape(first.orientation, (2, 3))
    normal = np.cross(rows, columns)
    normal /= np.linalg.norm(normal)
    frames.sort(key=lambda frame: float(np.dot(frame.position or (), normal)))
    step = _step(frames, normal)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = rows * first.spacing_mm[1], columns * first.spacing_mm[0]
    affine[:3, 2], affine[:3, 3] = step, frames[0].position
    affine[:2] *= -1  # DICOM's axes point left and posterior, ours right and anterior
    if problem := affine_problem(affine, 3):
        raise UnusableFileError(f"{frames[0]}: the affine {problem}: {affine.tolist()}; correct the header")
    tilt = float(np.degrees(np.arccos(np.clip(np.dot(step, normal) / np.linalg.norm(step), -1, 1))))
    if tilt > _STRAIGHT:
        warnings.warn(
            f"{first.file.parent}: the slices are sheared by {tilt:.1f} degrees, as with a tilted gantry; the result "
            "has the same sheared grid, which some viewers ignore",
            stacklevel=2,
        )
    geometry = Geometry.in_space((*first.shape[::-1], len(frames)), affine, num_channels=first.num_channels)
    return Series(frames=tuple(frames), geometry=geometry)


def _check_alike(images: Sequence[DicomFile], frames: Sequence[Frame]) -> None:
    """Refuse frames without a position, duplicate files, and frames of several sizes, spacings or directions."""
    known: dict[str, Path] = {}
    for image in images:
        if image.instance and (other := known.setdefault(image.instance, image.file)) != image.file:
            raise UnusableFileError(
                f"{image.file.name}: found the same image as in {other.name} (SOPInstanceUID {image.instance}), "
                "expected each once; move one of them away"
            )
    for frame in frames:
        if frame.position is None or frame.orientation is None:
            raise UnusableFileError(
                f"{frame}: found no ImagePositionPatient or ImageOrientationPatient, expected both for each of "
                f"{len(frames)} slices; name a single file if each is a separate picture"
            )
    stacks: list[list[Frame]] = []
    for frame in frames:
        alike = next((stack for stack in stacks if not _differing(frame, stack[0])), None)
        if alike is None:
            stacks.append([frame])
        else:
            alike.append(frame)
    if len(stacks) > 1:
        what = dict.fromkeys(name for stack in stacks[1:] for name in _differing(stack[0], stacks[0][0]))
        listed = "; ".join(
            f"{_counted(stack, 'slice')} of {', '.join(_facts(stack[0])[name] for name in what)}, such as {stack[0]}"
            for stack in sorted(stacks, key=len, reverse=True)[:_NAMED]
        )
        raise UnusableFileError(
            f"found {len(stacks)} stacks of slices in one series, expected slices of one size, spacing and direction: "
            f"{listed}; move each stack, such as a localizer, into its own folder"
        )


def _differing(frame: Frame, other: Frame) -> list[str]:
    """Return which of the properties that a stack has in common differ between two frames."""
    found = []
    if (frame.shape, frame.num_channels) != (other.shape, other.num_channels):
        found.append("size")
    if not np.allclose(frame.orientation or (), other.orientation or (), atol=_COSINES):
        found.append("direction")
    if not np.allclose(frame.spacing_mm, other.spacing_mm, rtol=_SPACING):
        found.append("spacing")
    return found


def _facts(frame: Frame) -> dict[str, str]:
    """Return the properties that `_differing` compares, as a message names them."""
    rows, columns = frame.shape
    samples = "" if frame.num_channels == 1 else f" of {frame.num_channels} samples"
    return {
        "size": f"{rows} x {columns} pixels{samples}",
        "direction": f"ImageOrientationPatient {list(frame.orientation or ())}",
        "spacing": f"PixelSpacing {list(frame.spacing_mm)}",
    }


def _step(frames: Sequence[Frame], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the vector from one frame to the next, in LPS.

    Raises:
        UnusableFileError: If two frames have the same position, or they are not evenly spaced along one line.
    """
    if len(frames) == 1:
        return normal * frames[0].thickness_mm
    positions = np.array([frame.position for frame in frames])
    steps = np.diff(positions, axis=0)
    depths = steps @ normal
    expected = float(np.quantile(depths, 0.5, method="lower"))  # of two distances the smaller: a gap is the larger
    nearest = int(np.argmin(depths))
    if depths[nearest] <= max(_SAME_PLACE * expected, 1e-4):
        one, other = frames[nearest], frames[nearest + 1]
        count = int((depths <= max(_SAME_PLACE * expected, 1e-4)).sum())
        raise UnusableFileError(
            f"found {one} and {other} at the same position ({list(one.position or ())}; {count} such pairs), expected "
            "one image per position; move each phase, echo or repetition into its own folder"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(frames) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(frames))[:, None] * step, axis=1)
    if off.max() <= _APART * np.linalg.norm(step):
        return step
    at = int(np.argmax(np.abs(depths - expected)))
    found = float(depths[at])
    if abs(found - expected) > _APART * expected / len(frames):
        what = "slices between them are missing" if found > 1.5 * expected else "they are not evenly spaced"
        raise UnusableFileError(
            f"found {found:.4g} mm from {frames[at]} to {frames[at + 1]}, expected {expected:.4g} mm as between the "
            f"others: {what}; export the whole series again, or resample it to evenly spaced slices"
        )
    at = int(np.argmax(off))
    raise UnusableFileError(
        f"{frames[at]}: found a slice {off[at]:.4g} mm off the line through the others, expected one straight stack; "
        "move each stack into its own folder"
    )


def _counted(entries: Sequence[object], what: str) -> str:
    return f"{len(entries)} {what}{'s' * (len(entries) > 1)}"
