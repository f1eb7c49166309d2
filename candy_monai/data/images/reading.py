"""Read images with their geometry, or geometry alone: the entry point for all formats.

This module defines what a loaded image looks like (channel first, types, metadata) and how a bad file is reported; the
modules of ``candy_monai.data.images.formats`` decode single formats. Axes stay in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from candy_monai.aliases import Device, PathLike
from candy_monai.data.images import nifti
from candy_monai.data.images.alignment import aligned, mismatch
from candy_monai.data.images.formats import KNOWN, Codec, codec_of
from candy_monai.data.images.geometry import Geometry, UnusableFileError, affine_problem, in_ras
from candy_monai.data.images.names import image_suffix
from candy_monai.errors import BadInputError, CandyError, ImageReadError

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from nibabel.spatialimages import SpatialImage
    from numpy.typing import NDArray

_LARGEST_ID = 2**53  # the range of exact integers in float64, to which some formats are decoded


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A decoded file without MONAI's metadata: checks and preprocessing save the seconds of importing MONAI.

    Attributes:
        values: ``(C, *spatial)``: float32 of an image, int64 ids of a label map.
        geometry: The grid of the values.
        file_name: The file, or the first one of several channels; empty if there is none.
    """

    values: Tensor
    geometry: Geometry
    file_name: str

    @classmethod
    def of(cls, image: Tensor, *, name: str | None = None) -> Scan:
        """Return a loaded ``(C, *spatial)`` tensor as a scan; without metadata it gets a grid of 1 mm.

        Raises:
            BadInputError: If its affine is invalid; ``name`` is its name in the message, by default its file.
        """
        from monai.data import MetaTensor

        if not isinstance(image, MetaTensor):
            geometry = Geometry.unknown(tuple(image.shape[1:]), num_channels=len(image))
            return cls(values=image, geometry=geometry, file_name="")
        file_name = str(image.meta.get("filename_or_obj", ""))
        return cls(values=image.as_tensor(), geometry=geometry_of(image, name=name), file_name=file_name)

    def tensor(self, device: Device = "cpu") -> MetaTensor:
        """Return the scan with its geometry as MONAI's metadata, as described in `load_image`."""
        from monai.data import MetaTensor

        return MetaTensor(self.values.to(device), meta=self.meta())

    def meta(self) -> dict[str, Any]:
        """Return its metadata under the keys of MONAI's readers, and the entries needed to write a file like it.

        Every value has the same type in all cases, so that MONAI's loaders can batch cases and take batches apart.
        """
        return {
            "filename_or_obj": self.file_name,
            "affine": self.geometry.affine.copy(),
            "original_affine": self.geometry.affine.copy(),
            "original_channel_dim": 0,
            "space": "RAS",
            "spatial_shape": self.geometry.spatial_shape,
            "trailing_axes": self.geometry.trailing_axes,
            "is_picture": self.geometry.is_picture,
        }


def load_image(
    path: PathLike, *, is_label: bool = False, align_spacing: bool = False, device: Device = "cpu"
) -> MetaTensor:
    """Load an image or a label map, channel first.

    The axes stay those of the file's affine; a picture is (row, column). A NIfTI axis after the third is the channel
    axis; a 2-D file stays 2-D and a volume of one slice stays 3-D. A picture's alpha is its last channel.

    Args:
        path: NIfTI, PNG, BMP, JPEG or TIFF; MHA and NRRD with the extra ``itk``, TIFF volumes with the extra ``tiff``;
            with the extra ``dicom`` the folder of a DICOM series, or any of its files.
        is_label: The file holds label ids: whole numbers, one channel.
        align_spacing: Resample to the finest spacing along every axis (nearest neighbour for labels). Coarse axes grow
            accordingly, so a training plan that keeps the spacing of each axis is usually better.
        device: The device of the tensor.

    Returns:
        A tensor ``(C, *spatial)``, float32 for an image and int64 for a label, with ``affine`` and in ``meta``
        ``original_affine``, ``spatial_shape`` (the file's), ``space``, ``original_channel_dim``, ``filename_or_obj``.

    Raises:
        ImageReadError: If the file is missing, damaged, of an unknown format, or not a label map although
            ``is_label`` says so.
        MissingExtraError: If the format needs a package that is not installed.
    """
    tensor = read_scan(path, is_label=is_label).tensor(device)
    return at_finest_spacing(tensor, is_label=is_label) if align_spacing else tensor


def read_scan(path: PathLike, *, is_label: bool = False) -> Scan:
    """Decode an image or a label map; arguments and errors are those of `load_image`."""
    path = Path(path)
    with _readable(path, "a label map" if is_label else "an image"):
        array, geometry = _codec_of(path).read(path, is_label=is_label)
        values = _label_ids(array) if is_label else _intensities(array)
    return Scan(values=torch.from_numpy(values), geometry=geometry, file_name=str(path))


def read_channels(paths: Sequence[PathLike], *, is_label: bool = False) -> Scan:
    """Decode the files of one case, in the order of their channels, as one image on the grid of the first.

    Raises:
        ImageReadError: If a file cannot be read, as in `load_image`, or their grids cover different regions.
    """
    return joined([read_scan(path, is_label=is_label) for path in paths])


def joined(parts: Sequence[Scan], *, names: Sequence[str] | None = None) -> Scan:
    """Return the channels of a case as one image on the grid of the first, with axes swapped and flipped as needed.

    Raises:
        ImageReadError: If their grids cover different regions; ``names`` are for messages, by default their files.
    """
    first, *others = parts
    if not others:
        return first
    names = [part.file_name for part in parts] if names is None else names
    against = f"the channel {Path(names[0]).name} has"
    try:
        values = torch.cat(
            [
                aligned(part.values, part.geometry, first.geometry, name=name, against=against)
                for part, name in zip(parts, names, strict=True)
            ]
        )
    except BadInputError as error:
        raise ImageReadError(str(error)) from error
    return replace(first, values=values, geometry=replace(first.geometry, num_channels=len(values)))


def turned_label(scan: Scan, grid: Geometry) -> Scan:
    """Return label ids in the axes of their image; unchanged if the grids do not match, which a check reports."""
    against = "the image has"
    if mismatch(scan.geometry, grid, against=against):
        return scan
    values = aligned(scan.values, scan.geometry, grid, name=scan.file_name, against=against)
    if values is scan.values:
        return scan
    return replace(scan, values=values, geometry=replace(grid, num_channels=1, file_shape=tuple(values.shape[1:])))


def scan_of_nibabel(image: SpatialImage) -> Scan:
    """Decode a nibabel image as its file would be: axes after the third are channels.

    Raises:
        ImageReadError: If its samples cannot be read, or its axes are not those of an image.
    """
    file_name = image.get_filename() or ""
    with _readable(Path(file_name or "nibabel image"), "an image"):
        array, geometry = nifti.decoded(image)
        values = _intensities(array)
    return Scan(values=torch.from_numpy(values), geometry=geometry, file_name=file_name)


def readable_by(path: PathLike) -> Codec:
    """Return the decoder of a file, which need not exist.

    Raises:
        ImageReadError: If the format is unknown.
    """
    if (codec := codec_of(Path(path))) is None:
        suffix = image_suffix(path)
        raise ImageReadError(f"{path}: cannot read {suffix or 'a file without suffix'!r}; {KNOWN}")
    return codec


def read_geometry(path: PathLike) -> Geometry:
    """Read a file's grid without decoding its samples, which is fast for hundreds of files.

    Raises:
        ImageReadError: If the file is missing, of an unknown format or its header is damaged. Damage after the header
            is detected only when the file is loaded.
    """
    path = Path(path)
    with _readable(path, "an image"):
        return _codec_of(path).read_header(path)


def geometry_of(image: MetaTensor, *, name: str | None = None) -> Geometry:
    """Return the grid of a loaded ``(C, *spatial)`` tensor, including the effect of transforms.

    Raises:
        BadInputError: If its affine is invalid (NaN, a voxel size of 0, axes in one plane, several in one tensor);
            ``name`` is its name in the message, by default its file.
    """
    from monai.data.utils import to_affine_nd

    shape = tuple(image.shape[1:])
    name = name or image.meta.get("filename_or_obj") or f"a tensor of shape {tuple(image.shape)}"
    if image.affine.ndim != 2:
        raise BadInputError(
            f"{name}: the affine has the shape {tuple(image.affine.shape)}, expected (4, 4), that of one case: take a "
            "batch apart with monai.data.decollate_batch"
        )
    affine = to_affine_nd(3, in_ras(image).affine.detach().cpu().numpy(), dtype=np.float64)
    if problem := affine_problem(affine, min(len(shape), 3)):
        raise BadInputError(f"{name}: the affine {problem}: {affine.tolist()}; give it a valid one")
    return Geometry(
        spatial_shape=shape,
        num_channels=len(image),
        affine=affine,
        is_picture=bool(image.meta.get("is_picture", False)),
        file_shape=(*shape, *(1,) * int(image.meta.get("trailing_axes", 0))),
    )


def at_finest_spacing(image: MetaTensor, *, is_label: bool) -> MetaTensor:
    """Return a loaded ``(C, *spatial)`` tensor resampled to its finest spacing along every axis; pictures unchanged."""
    geometry = geometry_of(image)
    spacing = geometry.spacing_mm
    if geometry.is_picture or np.allclose(spacing, min(spacing), rtol=1e-5):
        return image
    from monai.transforms import Spacing

    resample = Spacing(pixdim=[min(spacing)] * len(spacing), mode="nearest" if is_label else "bilinear")
    return resample(image.float()).to(image.dtype)


def _codec_of(path: Path) -> Codec:
    if not path.exists():
        raise ImageReadError(f"{path}: no such file; check the path")
    if path.is_dir() and codec_of(path) is None:
        raise ImageReadError(f"{path}: found a folder without DICOM files, expected an image file or a DICOM series")
    return readable_by(path)


@contextmanager
def _readable(path: Path, expected: str) -> Iterator[None]:
    """Convert any error of a decoder into one error with the file, what was found and what to do."""
    try:
        yield
    except (CandyError, MemoryError):
        raise
    except UnusableFileError as error:
        raise ImageReadError(f"{path}: {str(error).removeprefix(f'{path.name}: ')}") from error
    except PermissionError as error:
        raise ImageReadError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # each decoder has its own errors, including zlib.error and struct.error
        found = " ".join(str(error).split()) or type(error).__name__
        size = f"{path.stat().st_size} bytes" if path.exists() else "unknown size"
        raise ImageReadError(
            f"{path}: found a file of {size} that cannot be decoded ({found}), expected {expected}; it may be "
            "truncated or misnamed: copy or export it again"
        ) from error


def _intensities(array: NDArray[np.generic]) -> NDArray[np.float32]:
    _refuse_complex(array)
    with np.errstate(over="ignore"):
        values = np.array(array, dtype=np.float32, order="C")  # always a copy: the decoder's array may be memory-mapped
    if array.dtype.kind == "f" and array.dtype.itemsize > values.dtype.itemsize:
        lost = np.isinf(values) & np.isfinite(array)
        if lost.any():
            raise UnusableFileError(
                f"{int(lost.sum())} values exceed the range of float32, for example {array[lost][0]}; rescale the image"
            )
    return values


def _label_ids(array: NDArray[np.generic]) -> NDArray[np.int64]:
    _refuse_complex(array)
    if len(array) != 1:
        raise UnusableFileError(f"{len(array)} channels where one channel of label ids was expected")
    if array.dtype.kind not in "biu":
        whole = np.isfinite(array) & (np.rint(array) == array)
        if not whole.all():
            raise UnusableFileError(
                f"{int((~whole).sum())} values that are not whole numbers, for example {array[~whole][0]}, expected a "
                "label map of class ids; undo any scaling of the values, and resample label maps with "
                "nearest-neighbour interpolation"
            )
    if array.size and array.dtype.kind not in "bi" and array.max() > _LARGEST_ID:
        raise UnusableFileError(f"the label id {array.max()}, expected class ids of at most {_LARGEST_ID}")
    return np.array(array, dtype=np.int64, order="C")


def _refuse_complex(array: NDArray[np.generic]) -> None:
    if np.iscomplexobj(array):
        raise UnusableFileError(f"{array.dtype} samples, which are complex numbers; save their magnitude")
