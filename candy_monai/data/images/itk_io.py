"""Read and write MetaImage and NRRD files by ITK through MONAI, with the unit that a header states."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from candy_monai.data.images.geometry import IN_MM, Geometry, UnusableFileError, affine_problem
from candy_monai.data.images.names import image_suffix, stem_of
from candy_monai.optional import require

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Types that ITK's Python package reads as stored. Others are read as floating point: finding no type takes ITK 10 s.
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


def read(path: Path, *, is_label: bool) -> tuple[NDArray[np.generic], Geometry]:
    """Decode a file into a channel-first array and its geometry."""
    header = _header(path)
    geometry = _geometry(path, header)
    itk = _itk("read", path)
    if header.GetPixelTypeAsString(header.GetPixelType()) == "complex":  # otherwise its two parts would be two channels
        raise UnusableFileError("complex samples, which ITK reads as two channels; save their magnitude")
    from monai.data.image_reader import ITKReader  # slow, since it imports itk

    pixel_type = None
    if header.GetNumberOfComponents() > 1:
        pixel_type = itk.VariableLengthVector[itk.F]
    elif header.GetComponentTypeAsString(header.GetComponentType()) not in _ITK_SAMPLES:
        pixel_type = itk.D
    options = {"imageio": itk.MetaImageIO.New()} if _is_metaimage(path) else {}
    reader = ITKReader(pixel_type=pixel_type, **options)
    array, _ = reader.get_data(reader.read(path))
    return np.moveaxis(array.reshape(*geometry.spatial_shape, geometry.num_channels), -1, 0), geometry


def read_header(path: Path) -> Geometry:
    """Read the geometry of a file without decoding its samples."""
    return _geometry(path, _header(path))


def write(path: Path, array: NDArray[np.generic], geometry: Geometry, *, beside: Path) -> None:
    """Encode a channel-first array."""
    itk = _itk("write", path)
    from monai.data.image_writer import ITKWriter

    several = len(array) > 1
    if several:
        array = array.astype(np.float32)  # the only type of vectors of any length in ITK's Python package
    elif array.dtype in (np.int8, np.int64):
        array = array.astype(np.int32)
    data = np.moveaxis(array, 0, -1) if several else array[0]
    image = ITKWriter.create_backend_obj(
        data, channel_dim=-1 if several else None, affine=geometry.affine, dtype=array.dtype
    )
    named = path.with_name(f"{stem_of(path)}{image_suffix(path)}")
    itk.imwrite(image, str(named), compression=True)
    if named.name != path.name:  # for ``.MHA`` ITK writes a header and a separate data file
        named.replace(path)


def _itk(verb: str, path: Path) -> Any:  # ITK has no types
    return require("itk", extra="itk", purpose=f"{verb} {image_suffix(path)} files")


def _header(path: Path) -> Any:
    itk = _itk("read", path)
    if _is_metaimage(path):  # ITK recognises the suffix only in lower case
        header = itk.MetaImageIO.New()
    else:
        header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if header is None:
        raise ValueError("ITK does not recognise its content")
    header.SetFileName(str(path))
    header.ReadImageInformation()
    return header


def _is_metaimage(path: Path) -> bool:
    return image_suffix(path) in (".mha", ".mhd")


def _geometry(path: Path, header: Any) -> Geometry:
    num_axes = header.GetNumberOfDimensions()
    rank = min(num_axes, 3)
    affine = np.eye(4)
    for axis in range(rank):
        affine[:rank, axis] = np.asarray(header.GetDirection(axis))[:rank] * header.GetSpacing(axis)
        affine[axis, 3] = header.GetOrigin(axis)
    affine[: min(rank, 2)] *= -1  # ITK's axes point left and posterior, ours right and anterior
    if problem := affine_problem(affine, rank):
        spacing = [header.GetSpacing(axis) for axis in range(rank)]
        raise UnusableFileError(
            f"the header gives no position: with spacing {spacing}, the affine {problem}; write a valid spacing and "
            "valid directions, for example by converting the original again"
        )
    affine[:3] *= _stated_unit(path)
    shape = [header.GetDimensions(axis) for axis in range(num_axes)]
    return Geometry.in_space(shape, affine, num_channels=header.GetNumberOfComponents())


def _stated_unit(path: Path) -> float:
    """Return the unit, in millimetres, that a text header states, which ITK ignores; 1 if it states none.

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
        raise UnusableFileError(
            f"its axes have different units ({', '.join(stated)}); expected the same unit for all, such as mm"
        )
    return factors.pop() if factors else 1.0
