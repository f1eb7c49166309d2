"""How each file format is decoded and encoded: arrays in channel-first order and the geometry they carry.

What a decoder raises is turned into one readable error by ``candy_monai.data.images.reading``. Every unit of length
becomes millimetres here, and what gives no place is refused here, so that nothing above meets either.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from candy_monai.data.images.geometry import IN_MM, Geometry, UnusableFileError, affine_problem
from candy_monai.data.images.nifti import in_space, nibabel_array, read_nifti, read_nifti_header, write_nifti
from candy_monai.data.images.pictures import (
    PICTURES,
    TIFFS,
    read_picture,
    read_picture_header,
    spacing_file,
    write_picture,
)
from candy_monai.optional import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "DETACHED",
    "ITK_FORMATS",
    "KNOWN",
    "NIFTIS",
    "PICTURES",
    "READABLE",
    "TIFFS",
    "Geometry",
    "nibabel_array",
    "read",
    "read_header",
    "spacing_file",
    "write",
]

NIFTIS = (".nii", ".nii.gz")
ITK_FORMATS = (".mha", ".mhd", ".nrrd", ".nhdr")
READABLE = (*NIFTIS, *PICTURES, *TIFFS, *ITK_FORMATS)
KNOWN = f"known formats: {', '.join(READABLE)}"
DETACHED = {".mhd": ".mha", ".nhdr": ".nrrd"}
"""Headers that name a second file with the samples, and the formats that hold both: these are read and not written."""

# What ITK's Python package reads as stored. The rest is asked for as floating point: finding no type takes ITK 10 s.
_ITK_SAMPLES = ("unsigned_char", "short", "unsigned_short", "int", "unsigned_int", "float", "double")

_MOST_HEADER_BYTES = 1 << 16
_STATED_UNITS = re.compile(rb"^(?:space units|units|DistanceUnits)\s*[:=]\s*(.+?)\s*$", re.MULTILINE)
_UNIT_NAMES = {
    "mm": ("mm", "millimeter", "millimeters", "millimetre", "millimetres"),
    "um": ("um", "\u00b5m", "\u03bcm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"),
    "nm": ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    "cm": ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
    "m": ("m", "meter", "meters", "metre", "metres"),
}


def read(path: Path, suffix: str, *, is_label: bool) -> tuple[NDArray[np.generic], Geometry]:
    """Decode a file into a channel-first array and its geometry. ``suffix`` must be one of ``READABLE``."""
    if suffix in NIFTIS:
        return read_nifti(path, is_label=is_label)
    if suffix in ITK_FORMATS:
        return _read_itk(path, suffix)
    return read_picture(path, is_label=is_label)


def read_header(path: Path, suffix: str) -> Geometry:
    """Read a file's geometry without decoding its samples. ``suffix`` must be one of ``READABLE``."""
    if suffix in NIFTIS:
        return read_nifti_header(path)
    if suffix in ITK_FORMATS:
        return _itk_header(path, suffix)
    return read_picture_header(path)


def write(path: Path, suffix: str, array: NDArray[np.generic], geometry: Geometry, *, beside: Path) -> None:
    """Encode a channel-first array.

    Args:
        path: The file to write, possibly a temporary one.
        suffix: Lower-case suffix that chooses the format.
        array: ``(C, *spatial)``, of a type that the format holds.
        geometry: Where the samples lie.
        beside: The file's final path: a volume of TIFF pages keeps its spacing in a ``.json`` file next to it.

    Raises:
        ValueError: If the format cannot hold the array.
    """
    if suffix in NIFTIS:
        write_nifti(path, array, geometry)
    elif suffix in ITK_FORMATS:
        _write_itk(path, suffix, array, geometry)
    else:
        write_picture(path, suffix, array, geometry, beside=beside)


def _read_itk(path: Path, suffix: str) -> tuple[NDArray[np.generic], Geometry]:
    itk = require("itk", extra="itk", purpose=f"read {suffix} files")
    from monai.data.image_reader import ITKReader  # imports itk, which takes its time

    geometry = _itk_header(path, suffix)
    information = _itk_information(path, suffix)
    pixel_type = None
    if information.GetNumberOfComponents() > 1:
        pixel_type = itk.VariableLengthVector[itk.F]
    elif information.GetComponentTypeAsString(information.GetComponentType()) not in _ITK_SAMPLES:
        pixel_type = itk.D
    reader = ITKReader(pixel_type=pixel_type)
    array, _ = reader.get_data(reader.read(path))
    return np.moveaxis(array.reshape(*geometry.spatial_shape, geometry.num_channels), -1, 0), geometry


def _itk_information(path: Path, suffix: str) -> Any:  # an object of ITK's, which has no types
    itk = require("itk", extra="itk", purpose=f"read {suffix} files")
    reader = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if reader is None:
        raise ValueError("ITK does not recognise its content")
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader


def _itk_header(path: Path, suffix: str) -> Geometry:
    reader = _itk_information(path, suffix)
    count = reader.GetNumberOfDimensions()
    rank = min(count, 3)
    affine = np.eye(4)
    for axis in range(rank):
        affine[:rank, axis] = np.asarray(reader.GetDirection(axis))[:rank] * reader.GetSpacing(axis)
        affine[axis, 3] = reader.GetOrigin(axis)
    affine[: min(rank, 2)] *= -1  # ITK's axes point left and posterior, ours right and anterior
    if problem := affine_problem(affine, rank):
        spacing = [reader.GetSpacing(axis) for axis in range(rank)]
        raise UnusableFileError(
            f"the header gives no position: with spacing {spacing}, the affine {problem}; write a right spacing and "
            "directions, for example by converting the original again"
        )
    affine[:3] *= _stated_unit(path)
    shape = [reader.GetDimensions(axis) for axis in range(count)]
    return in_space(shape, affine, channels=reader.GetNumberOfComponents())


def _stated_unit(path: Path) -> float:
    """Return the millimetres of the unit that a header of text states, which ITK passes over; 1 where it states none.

    Raises:
        UnusableFileError: If its axes have different units.
    """
    with path.open("rb") as file:
        found = _STATED_UNITS.search(file.read(_MOST_HEADER_BYTES).replace(b"\r\n", b"\n").split(b"\n\n")[0])
    if found is None:
        return 1.0
    stated = found[1].decode("utf-8", errors="replace").replace('"', " ").lower().split()[:3]
    factors = {IN_MM[unit] for unit, names in _UNIT_NAMES.items() for name in stated if name in names}
    if len(factors) > 1:
        raise UnusableFileError(f"its axes have different units ({', '.join(stated)}); expected one for all, as mm")
    return factors.pop() if factors else 1.0


def _write_itk(path: Path, suffix: str, array: NDArray[np.generic], geometry: Geometry) -> None:
    itk = require("itk", extra="itk", purpose=f"write {suffix} files")
    from monai.data.image_writer import ITKWriter

    several = len(array) > 1
    if several:
        array = array.astype(np.float32)  # the only type of which ITK's Python package wraps vectors of any length
    elif array.dtype in (np.int8, np.int64):
        array = array.astype(np.int32)
    data = np.moveaxis(array, 0, -1) if several else array[0]
    image = ITKWriter.create_backend_obj(
        data, channel_dim=-1 if several else None, affine=geometry.affine, dtype=array.dtype
    )
    itk.imwrite(image, str(path), compression=True)
