"""How each file format is decoded and encoded: arrays in channel-first order and the geometry they carry.

Owns no tensors and no error policy: what a decoder raises is turned into one readable error by ``candy_monai.data.io``.
NIfTI and pictures are decoded by nibabel and Pillow directly. MONAI's readers for these two stand on the same packages,
but the NIfTI one rewrites an affine that disagrees with the header's voxel size, so a result would no longer lie where
the scan is, and it reads a compressed file without verifying its checksum.
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np
from PIL import Image, UnidentifiedImageError

from candy_monai.data.names import image_suffix
from candy_monai.optional import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nibabel.spatialimages import SpatialImage
    from numpy.typing import NDArray

    from candy_monai.aliases import Shape

PICTURES = (".png", ".bmp", ".jpg", ".jpeg")
TIFFS = (".tif", ".tiff")
NIFTIS = (".nii", ".nii.gz")
ITK_FORMATS = (".mha", ".mhd", ".nrrd", ".nhdr")
READABLE = (*NIFTIS, *PICTURES, *TIFFS, *ITK_FORMATS)
DETACHED = {".mhd": ".mha", ".nhdr": ".nrrd"}
"""Headers that name a second file with the samples, and the formats that hold both: these are read and not written."""

_PALETTE_CHANNELS = 3
# What ITK's Python package reads as stored. The rest is asked for as floating point: finding no type takes ITK 10 s.
_ITK_SAMPLES = ("unsigned_char", "short", "unsigned_short", "int", "unsigned_int", "float", "double")


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """The grid on which a file's samples lie.

    Attributes:
        spatial_shape: The spatial axes in the file's order; (row, column) for a picture.
        num_channels: Samples for each position.
        affine: 4 x 4, from indices to millimetres in RAS+; the identity for a picture.
        is_picture: Whether the format knows no physical space.
        file_shape: The shape as the file declares it, so that a result can be written with as many axes.
    """

    spatial_shape: Shape
    num_channels: int
    affine: NDArray[np.float64]
    is_picture: bool
    file_shape: Shape

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """The distance between neighbouring samples along each spatial axis, in millimetres; 1 for a picture."""
        lengths = np.linalg.norm(self.affine[:3, : len(self.spatial_shape)], axis=0)
        return tuple(float(length) for length in lengths)


def read(path: Path, suffix: str, *, is_label: bool) -> tuple[NDArray[np.generic], Geometry]:
    """Decode a file into a channel-first array and its geometry. ``suffix`` must be one of ``READABLE``."""
    if suffix in NIFTIS:
        return _read_nifti(path, suffix)
    if suffix in ITK_FORMATS:
        return _read_itk(path, suffix)
    if suffix in TIFFS and (volume := _tiff_volume(path)):
        shape, axes = volume
        tifffile = require("tifffile", extra="tiff", purpose="read 3-D TIFF files")
        return _tiff_array(tifffile.imread(path), axes), _tiff_geometry(path, shape, axes, is_label=is_label)
    with Image.open(path) as picture:
        picture.load()
        return _picture_array(picture, is_label=is_label), _picture_geometry(picture)


def read_header(path: Path, suffix: str) -> Geometry:
    """Read a file's geometry without decoding its samples. ``suffix`` must be one of ``READABLE``."""
    if suffix in NIFTIS:
        image = _open_nifti(path)
        return _nifti_geometry(image.shape, image.affine, channels=_fields(image.get_data_dtype()))
    if suffix in ITK_FORMATS:
        return _itk_header(path, suffix)
    if suffix in TIFFS and (volume := _tiff_volume(path)):
        return _tiff_geometry(path, *volume, is_label=False)
    with Image.open(path) as picture:
        return _picture_geometry(picture)


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
        _write_nifti(path, array, geometry)
    elif suffix in ITK_FORMATS:
        _write_itk(path, suffix, array, geometry)
    elif suffix in TIFFS and array.ndim > 3:
        tifffile = require("tifffile", extra="tiff", purpose="write 3-D TIFF files")
        if len(array) > 1:
            raise ValueError("a volume of TIFF pages holds one channel")
        tifffile.imwrite(path, array[0], photometric="minisblack")
        spacing_file = beside.with_name(beside.name[: -len(suffix)] + ".json")
        spacing_file.write_text(json.dumps({"spacing": geometry.spacing_mm}), encoding="utf-8")
    else:
        _write_picture(path, suffix, array)


def _read_nifti(path: Path, suffix: str) -> tuple[NDArray[np.generic], Geometry]:
    if suffix == ".nii.gz":
        # Decompressing in one go is faster than nibabel's streaming and verifies the checksum at the file's end.
        data = gzip.decompress(path.read_bytes())
        image = _nifti_kind(data[:4]).from_bytes(data)
    else:
        image = _open_nifti(path)
    return nibabel_array(image)


def _open_nifti(path: Path) -> SpatialImage:
    """Read a file's header; for a suffix such as ``.Nii`` nibabel itself looks for a file of another name."""
    suffix = path.name[-len(image_suffix(path)) :]
    if suffix in (suffix.lower(), suffix.upper()):
        return nibabel.load(path)
    with (gzip.open if image_suffix(path) == ".nii.gz" else open)(path, "rb") as file:
        kind = _nifti_kind(file.read(4))
    return kind.from_file_map({"image": nibabel.FileHolder(str(path))})


def _nifti_kind(start: bytes) -> Any:  # a class of nibabel's, which has no types
    is_nifti2 = 540 in (int.from_bytes(start, "little"), int.from_bytes(start, "big"))
    return nibabel.Nifti2Image if is_nifti2 else nibabel.Nifti1Image


def nibabel_array(image: SpatialImage) -> tuple[NDArray[np.generic], Geometry]:
    """Return the samples of an image of nibabel's, channel first, and its geometry.

    Raises:
        ValueError: If its axes are not 2 or 3 in space and at most one of channels.
    """
    array = np.asanyarray(image.dataobj)
    geometry = _nifti_geometry(array.shape, image.affine, channels=_fields(array.dtype))
    if array.dtype.names:  # RGB samples are stored as records
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    spatial = geometry.spatial_shape
    return np.moveaxis(array.reshape(*spatial, geometry.num_channels), -1, 0), geometry


def _nifti_geometry(shape: Sequence[int], affine: NDArray[np.float64], *, channels: int) -> Geometry:
    """Tell channels from space: axes after the third hold channels, at most one of them longer than 1."""
    spatial, rest = tuple(shape[:3]), [length for length in shape[3:] if length > 1]
    if len(spatial) < 2 or len(rest) > 1 or (rest and channels > 1):
        raise ValueError(f"shape {tuple(shape)}: expected 2 or 3 spatial axes and at most one axis of channels")
    return Geometry(
        spatial_shape=spatial,
        num_channels=channels * (rest[0] if rest else 1),
        affine=np.asarray(affine, dtype=np.float64),
        is_picture=False,
        file_shape=tuple(shape),
    )


def _fields(dtype: np.dtype[np.generic]) -> int:
    return len(dtype.names or (0,))


def _write_nifti(path: Path, array: NDArray[np.generic], geometry: Geometry) -> None:
    data = np.moveaxis(array, 0, -1)
    spatial_ndim = data.ndim - 1
    trailing = geometry.file_shape[len(geometry.spatial_shape) :]
    if len(array) == 1:
        data = data[..., 0]
        if spatial_ndim == len(geometry.spatial_shape) and set(trailing) == {1}:
            data = data.reshape(*data.shape, *trailing)
    elif spatial_ndim == 2:
        data = data[:, :, None]  # otherwise the channels would read as a third spatial axis
    image = nibabel.Nifti1Image(data, geometry.affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)  # some readers prefer the qform: both must say the same
    nibabel.save(image, path)


def _picture_array(picture: Image.Image, *, is_label: bool) -> NDArray[np.generic]:
    if picture.mode == "P" and not is_label:  # the numbers in a palette picture are ids, not intensities
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    array = np.asarray(picture)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _picture_geometry(picture: Image.Image) -> Geometry:
    num_channels = len(picture.getbands())
    if picture.mode == "P":
        num_channels = _PALETTE_CHANNELS + ("transparency" in picture.info)
    shape = (picture.height, picture.width)
    return Geometry(spatial_shape=shape, num_channels=num_channels, affine=np.eye(4), is_picture=True, file_shape=shape)


def _write_picture(path: Path, suffix: str, array: NDArray[np.generic]) -> None:
    if array.ndim != 3:
        raise ValueError(f"{suffix} holds a picture, the array has {array.ndim - 1} spatial axes")
    if suffix in (".jpg", ".jpeg"):
        raise ValueError("JPEG changes the values that it stores")
    floating_tiff = suffix in TIFFS and array.dtype == np.float32 and len(array) == 1
    if not floating_tiff and array.dtype not in ((np.uint8, np.uint16) if len(array) == 1 else (np.uint8,)):
        raise ValueError(f"{suffix} cannot hold {array.dtype} samples with {len(array)} channels")
    data = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    Image.fromarray(np.ascontiguousarray(data)).save(path)


def _tiff_volume(path: Path) -> tuple[Shape, str] | None:
    """Return shape and axis names when the file is a volume or of a kind that Pillow does not open, else None."""
    try:
        with Image.open(path) as picture:
            if getattr(picture, "n_frames", 1) == 1:
                return None
    except UnidentifiedImageError:
        pass  # floating-point or wide integer samples: tifffile opens these, and names what is wrong with the rest
    tifffile = require("tifffile", extra="tiff", purpose="read 3-D TIFF files")
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        return tuple(series.shape), str(series.axes)


def _tiff_array(array: NDArray[np.generic], axes: str) -> NDArray[np.generic]:
    return np.moveaxis(array, -1, 0) if axes.endswith("S") else array[None]


def _tiff_geometry(path: Path, shape: Shape, axes: str, *, is_label: bool) -> Geometry:
    num_channels = shape[-1] if axes.endswith("S") else 1
    spatial = shape[:-1] if axes.endswith("S") else shape
    if len(spatial) not in (2, 3):
        raise ValueError(f"shape {shape}: expected 2 or 3 spatial axes")
    affine = np.eye(4)
    if len(spatial) == 3:
        affine[:3, :3] = np.diag(_spacing_beside(path, is_label=is_label))
    return Geometry(
        spatial_shape=tuple(spatial),
        num_channels=num_channels,
        affine=affine,
        is_picture=len(spatial) == 2,
        file_shape=tuple(shape),
    )


def spacing_file(path: Path, *, is_label: bool) -> Path | None:
    """Find the ``<case>.json`` that states a TIFF volume's spacing; an image's name ends in its channel's number."""
    names = [path.stem] if is_label else [re.sub(r"_\d{4}$", "", path.stem), path.stem]
    return next((file for name in names if (file := path.with_name(f"{name}.json")).exists()), None)


def _spacing_beside(path: Path, *, is_label: bool) -> tuple[float, ...]:
    file = spacing_file(path, is_label=is_label)
    if file is None:  # one text a folder: Python shows each text once
        warnings.warn(f"{path.parent}: TIFF volumes without <case>.json beside them; taking 1 x 1 x 1 mm", stacklevel=2)
        return 1.0, 1.0, 1.0
    spacing = json.loads(file.read_text(encoding="utf-8")).get("spacing")
    if not isinstance(spacing, list) or len(spacing) != 3 or not all(float(value) > 0 for value in spacing):
        raise ValueError(f"{file.name} beside it: expected 'spacing' with 3 positive numbers, found {spacing!r}")
    return tuple(float(value) for value in spacing)


def _read_itk(path: Path, suffix: str) -> tuple[NDArray[np.generic], Geometry]:
    itk = require("itk", extra="itk", purpose=f"read {suffix} files")
    from monai.data.image_reader import ITKReader  # imports itk, which takes its time

    information = _itk_information(path, suffix)
    pixel_type = None
    if information.GetNumberOfComponents() > 1:
        pixel_type = itk.VariableLengthVector[itk.F]
    elif information.GetComponentTypeAsString(information.GetComponentType()) not in _ITK_SAMPLES:
        pixel_type = itk.D
    reader = ITKReader(pixel_type=pixel_type)
    image = reader.read(path)
    array, meta = reader.get_data(image)
    dimensions = image.GetImageDimension()
    geometry = _itk_geometry(array.shape[:dimensions], image.GetNumberOfComponentsPerPixel(), meta["affine"])
    array = array.reshape(*geometry.spatial_shape, geometry.num_channels)
    return np.moveaxis(array, -1, 0), geometry


def _itk_geometry(shape: Sequence[int], components: int, affine: NDArray[np.float64]) -> Geometry:
    rank = min(len(affine) - 1, 3)
    full = np.eye(4)
    full[:rank, :rank], full[:rank, 3] = affine[:rank, :rank], affine[:rank, -1]
    return _nifti_geometry(shape, full, channels=components)


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
    affine = np.eye(rank + 1)
    for axis in range(rank):
        affine[:rank, axis] = np.asarray(reader.GetDirection(axis))[:rank] * reader.GetSpacing(axis)
        affine[axis, -1] = reader.GetOrigin(axis)
    affine[:2] *= -1  # ITK's axes point left and posterior, ours right and anterior
    shape = [reader.GetDimensions(axis) for axis in range(count)]
    return _itk_geometry(shape, reader.GetNumberOfComponents(), affine)


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
