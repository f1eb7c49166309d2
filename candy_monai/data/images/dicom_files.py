"""Read the files of DICOM series: the frames that each header describes, and their values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from candy_monai.data.images.geometry import UnusableFileError
from candy_monai.optional import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMAGE_CLASS = re.compile(r"Image Storage|Multi-frame|Segmentation Storage")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOST_PIXELS = 1 << 28  # of a frame; damaged or malicious headers ask for gigabytes
_PERPENDICULAR = 1e-2  # tolerance for perpendicular directions
_WITHOUT_DECODER = {"1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.51"}
"""JPEG transfer syntaxes whose decoder for pydicom is under the GPL, so that no extra includes it."""

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
        file: The file that contains it.
        index: Its number in the file, from 0; None if it is the only one.
        shape: (rows, columns).
        num_channels: 3 for colours.
        position: Position of its first pixel in millimetres, in LPS; None for a projection.
        orientation: The direction cosines of its rows and of its columns, in LPS; None for a projection.
        spacing_mm: The distance between rows, and between columns.
        thickness_mm: The distance to the next frame according to the header; only used if there is no next one.
        slope: The factor for stored values.
        intercept: The number added to the product.
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
class DicomFile:
    """The header of a file; without frames if it is not an image."""

    file: Path
    series: str = ""
    described: str = ""
    instance: str = ""
    frames: tuple[Frame, ...] = field(default=(), repr=False)


def read_file(file: Path) -> DicomFile:
    """Read the header of a file.

    Raises:
        UnusableFileError: If it cannot be read, or describes an image and lacks required entries.
    """
    pydicom = require("pydicom", extra="dicom", purpose="read DICOM series")
    try:
        meta = pydicom.filereader.read_file_meta_info(file)
        if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            raise UnusableFileError(
                f"{file.name}: found a deflated file, which is not supported, expected pixels that are uncompressed or "
                "compressed frame by frame; convert it, for example with dcmconv +te"
            )
        header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        kind = pydicom.uid.UID(str(meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID", ""))).name
        has_size = "Rows" in header and "Columns" in header
        if not has_size and kind and not _IMAGE_CLASS.search(kind) and "Storage" in kind:
            return DicomFile(file=file, described=kind)
        described = ", ".join(filter(None, (str(header.get(key, "")) for key in ("Modality", "SeriesDescription"))))
        return DicomFile(
            file=file,
            series=str(header.get("SeriesInstanceUID", "")),
            described=described or kind,
            instance=str(header.get("SOPInstanceUID", "")),
            frames=tuple(_frames(file, header)),
        )
    except (UnusableFileError, MemoryError, PermissionError):
        raise
    except Exception as error:  # pydicom has different errors for different damage
        raise UnusableFileError(_undecodable(file, error)) from error


def _undecodable(file: Path, error: Exception) -> str:
    found = " ".join(str(error).split()) or type(error).__name__
    return (
        f"{file.name}: found a file of {file.stat().st_size} bytes that cannot be decoded ({found[:300]}), expected a "
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
            f"{file.name}: found a mosaic, which holds all slices in one picture, expected a file or a frame for each "
            "slice; export it as enhanced DICOM, or convert it, for example with dcm2niix"
        )
    channels = 3 if header.get("PhotometricInterpretation") == "PALETTE COLOR" else header.get("SamplesPerPixel") or 1
    frame = Frame(file=file, index=None, shape=shape, num_channels=int(channels))
    count = int(header.get("NumberOfFrames") or 1)
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared = header.get("SharedFunctionalGroupsSequence") or ()
    if not per_frame and not shared:
        if count != 1:
            raise UnusableFileError(
                f"{file.name}: found {count} frames without functional groups that give their positions, as in a cine "
                "loop, expected slices of a volume (an enhanced multi-frame image) or a single picture"
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
    """Return a frame with its position and scaling, each from the first part of the header that states it."""

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
        raise UnusableFileError(f"{frame}: RescaleSlope is 0, which makes all values equal; correct the header")
    frame = replace(frame, slope=slope[0], intercept=(numbers("RescaleIntercept", 1) or (0.0,))[0])
    position, orientation = numbers("ImagePositionPatient", 3), numbers("ImageOrientationPatient", 6)
    if position is None and orientation is None:
        return frame
    spacing = numbers("PixelSpacing", 2)
    stated = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "PixelSpacing": spacing}
    for keyword, value in stated.items():
        if value is None:
            raise UnusableFileError(
                f"{frame}: found no {keyword}, which gives the position of the slice; export it again"
            )
    assert orientation is not None
    assert spacing is not None
    axes = np.reshape(orientation, (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), atol=_PERPENDICULAR):
        raise UnusableFileError(
            f"{frame}: ImageOrientationPatient is {list(orientation)}, expected two perpendicular vectors of length 1"
        )
    if min(spacing) <= 0:
        raise UnusableFileError(f"{frame}: PixelSpacing is {list(spacing)}, expected two positive numbers")
    depth = numbers("SpacingBetweenSlices", 1) or numbers("SliceThickness", 1) or (0.0,)
    return replace(
        frame, position=position, orientation=orientation, spacing_mm=spacing, thickness_mm=abs(depth[0]) or 1.0
    )


def decoded(frames: Sequence[Frame]) -> Iterator[tuple[Frame, NDArray[np.generic]]]:
    """Yield the values of frames, (row, column) or (row, column, channel), file by file.

    Raises:
        UnusableFileError: If the pixels of a file are missing, truncated or compressed in an unsupported way.
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
        except Exception as error:  # each decoder has its own errors
            raise UnusableFileError(_undecodable(file, error)) from error
        if wanted:
            raise UnusableFileError(
                f"{file.name}: found no pixels of frame {min(wanted) + 1}; it may be truncated: copy or export it again"
            )


def _check_pixels(pydicom: Any, dataset: Any, file: Path) -> None:
    if not any(keyword in dataset for keyword in _PIXELS):
        raise UnusableFileError(
            f"{file.name}: found no pixel data, expected {dataset.Rows} x {dataset.Columns} pixels; it may be "
            "truncated or contain only a header: copy or export it again"
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
    """Return the values that the stored numbers of a frame represent."""
    photometric = dataset.get("PhotometricInterpretation")
    if stored.shape[:2] != frame.shape:
        raise UnusableFileError(f"{frame}: found {stored.shape[:2]} pixels, expected {frame.shape} as in its header")
    if photometric == "PALETTE COLOR":
        colours: NDArray[np.generic] = pydicom.pixels.apply_color_lut(stored, dataset)[..., :3]
        return colours
    if photometric == "MONOCHROME1" and stored.dtype.kind in "iu":
        # Low values are bright here: inverted, as in ITK, so that bright is bright in every image.
        bits = int(dataset.BitsStored)
        stored = (2**bits - 1 if stored.dtype.kind == "u" else -1) - stored.astype(np.int64)
    if dataset.get("ModalityLUTSequence"):
        looked_up: NDArray[np.generic] = pydicom.pixels.apply_modality_lut(stored, dataset)
        return looked_up
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * frame.slope + frame.intercept
