"""DICOM series, read as one image: a folder of slices, one multi-frame file, or one projection.

A path names a series: the folder that holds it, or any of its files. Frames are put in order by their positions in the
patient, from which the distance between them comes, too; what does not make one stack is refused with its files. A
projection (CR, DX), which has no place in the patient, is read as a picture, (row, column).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from candy_monai.data.images.geometry import Geometry, UnusableFileError, affine_problem
from candy_monai.optional import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIXES = (".dcm", ".dicom", ".ima")
"""Of files that are taken for DICOM by their names; others are told by their content."""

_OTHERS = (".nii", ".gz", ".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff", ".mha", ".mhd", ".nrrd", ".nhdr", ".json")
"""Of files that are not opened to see whether they are DICOM: folders of thousands of them are looked at."""

_MAGIC_AT, _MAGIC = 128, b"DICM"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMAGE_CLASS = re.compile(r"Image Storage|Multi-frame|Segmentation Storage")
_CHANNEL = re.compile(r"\d{4}", re.ASCII)
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOST_PIXELS = 1 << 28  # of a frame; a header of damage or malice asks for gigabytes
_APART = 0.1  # what a frame may lie off its place in an even stack, of the distance between two
_SAME_PLACE = 0.01  # likewise; nearer to each other, frames are of one position
_COSINES = 1e-3
_SPACING = 1e-3
_STRAIGHT = 0.5  # degrees; what leans more is said
_NAMED = 3
_WITHOUT_DECODER = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.51"}
"""Transfer syntaxes of JPEG whose decoder for pydicom is under the GPL, so that no extra brings it."""

_TAGS = (
    "SOPClassUID",
    "SOPInstanceUID",
    "ImageType",
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SliceThickness",
    "SpacingBetweenSlices",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsStored",
    "PixelRepresentation",
    "RescaleIntercept",
    "RescaleSlope",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a series.

    Attributes:
        file: The file that holds it.
        index: Its number in the file, from 0; None if the file holds only one.
        shape: (rows, columns).
        num_channels: 3 for colours.
        position: Of its first pixel, in millimetres to the left, to the back and up (LPS); None for a projection.
        orientation: The direction cosines of its rows and of its columns, in LPS; None for a projection.
        spacing_mm: The distance between rows, and between columns.
        thickness_mm: What the header says of the distance to the next; only used where there is no next.
        slope: What stored values are multiplied by.
        intercept: What is added then.
    """

    file: Path
    index: int | None
    shape: tuple[int, int]
    num_channels: int
    position: tuple[float, ...] | None = None
    orientation: tuple[float, ...] | None = None
    spacing_mm: tuple[float, ...] = (1.0, 1.0)
    thickness_mm: float = 1.0
    slope: float = 1.0
    intercept: float = 0.0

    def __str__(self) -> str:
        return self.file.name if self.index is None else f"{self.file.name} frame {self.index + 1}"


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series as one image.

    Attributes:
        frames: In the order of the last axis of the image.
        geometry: The grid, (column, row, frame); of a projection (row, column).
    """

    frames: tuple[Frame, ...]
    geometry: Geometry


def is_dicom(path: Path) -> bool:
    """Return whether a path may be a DICOM series: a file by its name or its first bytes, a folder by its files."""
    try:
        return any(map(_is_dicom_file, path.iterdir())) if path.is_dir() else _is_dicom_file(path)
    except OSError:
        return False


def is_channel_folder(path: Path) -> bool:
    """Return whether a path is the series of one channel in its case's folder: ``CASE/0001``."""
    return _CHANNEL.fullmatch(path.name) is not None and path.is_dir() and is_dicom(path)


def images_in(folder: Path) -> list[Path]:
    """Return what the DICOM files of a folder are: itself, which is one series; each of several projections; nothing.

    Raises:
        UnusableFileError: If its headers cannot be read.
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
    for frame, values in _decoded(series.frames):
        if stack is None:  # made when it is known that the pixels are there
            stack = np.empty((len(places), *values.shape), dtype)
        with np.errstate(over="ignore"):
            stack[places[frame]] = values
        if not is_label and np.isinf(stack[places[frame]]).any():
            raise UnusableFileError(f"{frame}: values beyond single precision, {_scaled(frame)}; correct the header")
    assert stack is not None
    channels = stack[..., None] if stack.ndim == 3 else stack
    if series.geometry.is_picture:
        return np.moveaxis(channels[0], -1, 0), series.geometry
    return channels.transpose(3, 2, 1, 0), series.geometry


def read_header(path: Path) -> Geometry:
    """Read a series' geometry without decoding its samples."""
    return read_series(path).geometry


def write(path: Path, array: NDArray[np.generic], geometry: Geometry, *, beside: Path) -> None:
    """Refuse to encode an array."""
    raise ValueError("images are not written as DICOM; label maps are, as segmentations, by save_dicom_seg")


def read_series(path: Path) -> Series:
    """Read the headers of the series that a folder holds, or that a file belongs to, and check that it is one stack.

    Raises:
        UnusableFileError: If it is not, or holds no image; says which files are at fault.
    """
    return _series(path, _state(path if path.is_dir() else path.parent))


@dataclass(frozen=True, kw_only=True)
class _File:
    """What the header of a file says; no frames where it is no image."""

    file: Path
    series: str = ""
    described: str = ""
    instance: str = ""
    frames: tuple[Frame, ...] = field(default=(), repr=False)


def _is_dicom_file(path: Path) -> bool:
    if path.name.startswith(".") or path.name.lower().endswith(_OTHERS) or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] == _MAGIC


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when a file of a folder does, so that headers read once are known to be those on disk."""
    found = []
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            state = file.stat()
            found.append((file.name, state.st_size, state.st_mtime_ns))
    return tuple(found)


@lru_cache(maxsize=4)
def _files_of(folder: Path, state: tuple[tuple[str, int, int], ...]) -> tuple[_File, ...]:
    """Read the headers of the DICOM files of a folder; tell of the others once."""
    files = [folder / name for name, _, _ in state]
    read = [_read_file(file) for file in files if _is_dicom_file(file)]
    images = {entry.file for entry in read if entry.frames}
    if images and (others := [file.name for file in files if file not in images]):
        warnings.warn(f"{folder}: left out what is no DICOM image: {_listed(others)}", stacklevel=2)
    return tuple(read)


@lru_cache(maxsize=16)
def _series(path: Path, state: tuple[tuple[str, int, int], ...]) -> Series:
    folder = path if path.is_dir() else path.parent
    if not path.is_dir():
        own = _read_file(path)
        if not own.frames:
            raise UnusableFileError(f"found a DICOM object of the kind {own.described}, expected an image")
        if len(own.frames) > 1 or own.frames[0].position is None:
            return _stacked([own])
        images = [image for image in _files_of(folder, state) if image.frames and image.series == own.series]
        return _stacked([image for image in images if len(image.frames) == 1])
    images = [image for image in _files_of(folder, state) if image.frames]
    if not images:
        raise UnusableFileError("found a folder without a DICOM image, expected the files of one series")
    by_series: dict[str, list[_File]] = {}
    for image in images:
        by_series.setdefault(image.series, []).append(image)
    if len(by_series) > 1:
        listed = "; ".join(
            f"{uid or 'without SeriesInstanceUID'} ({few[0].described}, {_counted(few)}, such as {few[0].file.name})"
            for uid, few in by_series.items()
        )
        raise UnusableFileError(
            f"found {len(by_series)} series, expected one: {listed}; name a file of the series that is meant instead "
            "of the folder, or move the others away"
        )
    return _stacked(images)


def _read_file(file: Path) -> _File:
    """Read a file's header.

    Raises:
        UnusableFileError: If it cannot be read, or it is that of an image and lacks what an image needs.
    """
    pydicom = require("pydicom", extra="dicom", purpose="read DICOM series")
    try:
        meta = pydicom.filereader.read_file_meta_info(file)
        if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            raise UnusableFileError(
                f"{file.name}: found a deflated file, which is not unpacked here, expected pixels compressed frame by "
                "frame or not at all; convert it, for example with dcmconv +te"
            )
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        kind = pydicom.uid.UID(str(meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID", ""))).name
        has_size = "Rows" in header and "Columns" in header
        if not has_size and kind and not _IMAGE_CLASS.search(kind) and "Storage" in kind:
            return _File(file=file, described=kind)
        described = ", ".join(filter(None, (str(header.get(key, "")) for key in ("Modality", "SeriesDescription"))))
        return _File(
            file=file,
            series=str(header.get("SeriesInstanceUID", "")),
            described=described or kind,
            instance=str(header.get("SOPInstanceUID", "")),
            frames=tuple(_frames(file, header)),
        )
    except UnusableFileError:
        raise
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # pydicom has its own for each kind of damage
        raise UnusableFileError(_undecodable(file, error)) from error


def _undecodable(file: Path, error: Exception) -> str:
    found = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{file.name}: found a file of {file.stat().st_size} bytes that does not decode ({found[:300]}), expected a "
        "DICOM image; it may be truncated or misnamed: copy or export it again"
    )


def _frames(file: Path, header: Any) -> Iterator[Frame]:
    """Yield the frames of an image, from the header of its file or its functional groups."""
    missing = [key for key in ("Rows", "Columns") if header.get(key) is None]
    if missing:
        raise UnusableFileError(
            f"{file.name}: found an image without {' and '.join(missing)}; it may be truncated: copy or export it again"
        )
    shape = int(header.Rows), int(header.Columns)
    if not 0 < shape[0] * shape[1] <= _MOST_PIXELS:
        raise UnusableFileError(
            f"{file.name}: found {shape[0]} rows of {shape[1]} pixels, expected 1 to {_MOST_PIXELS} pixels; the header "
            "is damaged: copy or export the file again"
        )
    if "MOSAIC" in (header.get("ImageType") or ()):
        raise UnusableFileError(
            f"{file.name}: found a mosaic, which holds all slices in one picture, expected a file or a frame for each; "
            "export it as enhanced DICOM, or convert it, for example with dcm2niix"
        )
    channels = 3 if header.get("PhotometricInterpretation") == "PALETTE COLOR" else header.get("SamplesPerPixel") or 1
    frame = Frame(file=file, index=None, shape=shape, num_channels=int(channels))
    count = int(header.get("NumberOfFrames") or 1)
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    if not per_frame and not shared:
        if count != 1:
            raise UnusableFileError(
                f"{file.name}: found {count} frames without functional groups that say where each lies, such as those "
                "of a film, expected slices of a volume (an enhanced multi-frame image) or one picture"
            )
        yield _placed(frame, [header])
        return
    if len(per_frame) != count:
        raise UnusableFileError(
            f"{file.name}: found functional groups for {len(per_frame)} frames, and NumberOfFrames is {count}; the "
            "header is damaged: export the file again"
        )
    for index, groups in enumerate(per_frame):
        macros = [
            sequence[0]
            for source in (groups, *shared[:1])
            for keyword in (
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
            if (sequence := source.get(keyword))
        ]
        yield _placed(replace(frame, index=None if count == 1 else index), [*macros, header])


def _placed(frame: Frame, sources: Sequence[Any]) -> Frame:
    """Return a frame with its place and its scale, each from the first of some parts of the header that states it."""

    def numbers(keyword: str, count: int) -> tuple[float, ...] | None:
        for source in sources:
            value = source.get(keyword)
            if value is None or value == "":
                continue
            found = tuple(float(part) for part in ([value] if isinstance(value, int | float) else value))
            if len(found) != count or not np.isfinite(found).all():
                raise UnusableFileError(f"{frame}: {keyword} is {value}, expected {count} finite numbers")
            return found
        return None

    slope = numbers("RescaleSlope", 1) or (1.0,)
    if slope[0] == 0:
        raise UnusableFileError(f"{frame}: RescaleSlope is 0, which makes all values one; correct the header")
    frame = replace(frame, slope=slope[0], intercept=(numbers("RescaleIntercept", 1) or (0.0,))[0])
    position, orientation = numbers("ImagePositionPatient", 3), numbers("ImageOrientationPatient", 6)
    if position is None and orientation is None:
        return frame
    spacing = numbers("PixelSpacing", 2)
    stated = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": spacing}
    for keyword, value in stated.items():
        if value is None:
            raise UnusableFileError(f"{frame}: found no {keyword}, which says where the slice lies; export it again")
    assert orientation is not None
    assert spacing is not None
    axes = np.reshape(orientation, (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), atol=_COSINES * 10):
        raise UnusableFileError(
            f"{frame}: ImageOrientationPatient is {list(orientation)}, expected two perpendicular vectors of length 1"
        )
    if min(spacing) <= 0:
        raise UnusableFileError(f"{frame}: PixelSpacing is {list(spacing)}, expected two positive numbers")
    depth = numbers("SpacingBetweenSlices", 1) or numbers("SliceThickness", 1) or (0.0,)
    return replace(
        frame, position=position, orientation=orientation, spacing_mm=spacing, thickness_mm=abs(depth[0]) or 1.0
    )


def _stacked(images: Sequence[_File]) -> Series:
    """Return the frames of some files in the order of their positions, as one image.

    Raises:
        UnusableFileError: If they are no stack of even slices; says which files are at fault.
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
            f"{first.file.parent}: the slices lean by {tilt:.1f} degrees, as of a tilted gantry; the result has the "
            "same slanted grid, which some viewers straighten",
            stacklevel=2,
        )
    geometry = Geometry.in_space((*first.shape[::-1], len(frames)), affine, num_channels=first.num_channels)
    return Series(frames=tuple(frames), geometry=geometry)


def _check_alike(images: Sequence[_File], frames: Sequence[Frame]) -> None:
    """Refuse frames without a place, those of other sizes or directions than the first, and files that are copies."""
    first = frames[0]
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
                f"{frame}: found no ImagePositionPatient, expected {len(frames)} slices that say where they lie; name "
                "a single file where each is a picture of its own"
            )
        problem = None
        if (frame.shape, frame.num_channels) != (first.shape, first.num_channels):
            sizes = [f"{f.shape[0]} x {f.shape[1]} pixels of {f.num_channels}" for f in (frame, first)]
            problem = f"{sizes[0]} samples, {first} has {sizes[1]}"
        elif not np.allclose(frame.orientation, first.orientation or (), atol=_COSINES):
            problem = f"ImageOrientationPatient {list(frame.orientation)}, {first} has {list(first.orientation or ())}"
        elif not np.allclose(frame.spacing_mm, first.spacing_mm, rtol=_SPACING):
            problem = f"PixelSpacing {list(frame.spacing_mm)}, {first} has {list(first.spacing_mm)}"
        if problem:
            raise UnusableFileError(
                f"{frame}: found {problem}, expected slices of one size and direction; give each stack a folder of "
                "its own"
            )


def _step(frames: Sequence[Frame], normal: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the way from one frame to the next, in LPS.

    Raises:
        UnusableFileError: If two lie at one position, or they are not evenly spaced along one line.
    """
    if len(frames) == 1:
        return normal * frames[0].thickness_mm
    positions = np.array([frame.position for frame in frames])
    steps = np.diff(positions, axis=0)
    depths = steps @ normal
    expected = float(np.median(depths))
    nearest = int(np.argmin(depths))
    if depths[nearest] <= max(_SAME_PLACE * expected, 1e-4):
        one, other = frames[nearest], frames[nearest + 1]
        count = int((depths <= max(_SAME_PLACE * expected, 1e-4)).sum())
        raise UnusableFileError(
            f"found {one} and {other} at one position ({list(one.position or ())}; {count} such pairs), expected one "
            "image for each; give each phase, echo or repetition a folder of its own"
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
            f"others: {what}; export the whole series again, or resample it to even slices"
        )
    at = int(np.argmax(off))
    raise UnusableFileError(
        f"{frames[at]}: found a slice {off[at]:.4g} mm beside the line of the others, expected one straight stack; "
        "give each stack a folder of its own"
    )


def _decoded(frames: Sequence[Frame]) -> Iterator[tuple[Frame, NDArray[np.generic]]]:
    """Yield the values of frames, (row, column) or (row, column, channel), file by file.

    Raises:
        UnusableFileError: If a file's pixels are missing, truncated or compressed in a way that cannot be read.
    """
    pydicom = require("pydicom", extra="dicom", purpose="read DICOM series")
    of_file: dict[Path, dict[int, Frame]] = {}
    for frame in frames:
        of_file.setdefault(frame.file, {})[frame.index or 0] = frame
    for file, wanted in of_file.items():
        try:
            dataset = pydicom.dcmread(file)
            _check_pixels(pydicom, dataset, file)
            for index, stored in enumerate(pydicom.pixels.iter_pixels(dataset)):
                if index in wanted:
                    yield wanted[index], _values(pydicom, stored, dataset, wanted[index])
                    wanted.pop(index)
        except (UnusableFileError, MemoryError, PermissionError):
            raise
        except Exception as error:  # each decoder has its own
            raise UnusableFileError(_undecodable(file, error)) from error
        if wanted:
            raise UnusableFileError(
                f"{file.name}: found no pixels of frame {min(wanted) + 1}; it may be truncated: copy or export it again"
            )


def _check_pixels(pydicom: Any, dataset: Any, file: Path) -> None:
    if not any(keyword in dataset for keyword in _PIXELS):
        raise UnusableFileError(
            f"{file.name}: found no pixel data, expected {dataset.Rows} x {dataset.Columns} pixels; it may be "
            "truncated or a header alone: copy or export it again"
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        available = pydicom.pixels.get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        install = "pip install pylibjpeg-libjpeg (which is under the GPL), or " if syntax in _WITHOUT_DECODER else ""
        raise UnusableFileError(
            f"{file.name}: found pixels compressed as {syntax.name}, for which no decoder is installed; {install}"
            "decompress the series, for example with gdcmconv --raw"
        )


def _values(pydicom: Any, stored: NDArray[np.generic], dataset: Any, frame: Frame) -> NDArray[np.generic]:
    """Return what the stored numbers of a frame stand for."""
    photometric = dataset.get("PhotometricInterpretation")
    if stored.shape[:2] != frame.shape:
        raise UnusableFileError(f"{frame}: found {stored.shape[:2]} pixels, expected {frame.shape} as in its header")
    if photometric == "PALETTE COLOR":
        colours: NDArray[np.generic] = pydicom.pixels.apply_color_lut(stored, dataset)[..., :3]
        return colours
    if photometric == "MONOCHROME1" and stored.dtype.kind in "iu":
        # Where low values are bright: turned over, as in ITK, so that bright is bright in every image.
        bits = int(dataset.BitsStored)
        stored = (2**bits - 1 if stored.dtype.kind == "u" else -1) - stored.astype(np.int64)
    if dataset.get("ModalityLUTSequence"):
        looked_up: NDArray[np.generic] = pydicom.pixels.apply_modality_lut(stored, dataset)
        return looked_up
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * frame.slope + frame.intercept


def _scaled(frame: Frame) -> str:
    return f"by RescaleSlope {frame.slope:.6g} and RescaleIntercept {frame.intercept:.6g}"


def _counted(images: Sequence[_File]) -> str:
    return f"{len(images)} file{'s' * (len(images) > 1)}"


def _listed(names: Iterable[str]) -> str:
    few = list(names)
    return ", ".join(few[:_NAMED]) + (f" and {len(few) - _NAMED} more" if len(few) > _NAMED else "")
