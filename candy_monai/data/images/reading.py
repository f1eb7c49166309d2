"""Read and write images with the geometry that belongs to them, and read geometry alone.

Owns what a loaded image looks like (channel first, types, metadata) and how a bad file is reported. How single formats
are decoded is in ``candy_monai.data.images.formats``. Never reorients: axes stay in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.data.images import formats
from candy_monai.data.images.geometry import Geometry, UnusableFileError, affine_problem
from candy_monai.data.images.names import image_suffix
from candy_monai.errors import BadInputError, CandyError, ImageReadError
from candy_monai.files import atomic_path

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from nibabel.spatialimages import SpatialImage
    from numpy.typing import NDArray

__all__ = [
    "Geometry",
    "Scan",
    "at_finest_spacing",
    "geometry_of",
    "image_suffix",
    "load_image",
    "read_geometry",
    "read_scan",
    "save_image",
    "scan_of_nibabel",
]


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A decoded file without MONAI's metadata: checking and preprocessing can spare the seconds of importing MONAI.

    Attributes:
        values: ``(C, *spatial)``: float32 of an image, int64 ids of a label map.
        geometry: The grid that they lie on.
        file_name: The file, or of several channels the first one's; empty where there is none.
    """

    values: Tensor
    geometry: Geometry
    file_name: str

    @classmethod
    def of(cls, image: Tensor) -> Scan:
        """Return a loaded ``(C, *spatial)`` tensor as a scan; one without metadata lies on a grid of 1 mm."""
        from monai.data import MetaTensor

        if not isinstance(image, MetaTensor):
            shape = tuple(image.shape[1:])
            return cls(values=image, geometry=_plain_geometry(shape, num_channels=len(image)), file_name="")
        name = str(image.meta.get("filename_or_obj", ""))
        return cls(values=image.as_tensor(), geometry=geometry_of(image), file_name=name)

    def tensor(self, device: Device = "cpu") -> MetaTensor:
        """Return it with its geometry as MONAI's metadata, as `load_image` describes it."""
        from monai.data import MetaTensor

        geometry = self.geometry
        return MetaTensor(
            self.values.to(device),
            affine=torch.from_numpy(geometry.affine.copy()),
            meta={
                "filename_or_obj": self.file_name,
                "original_affine": torch.from_numpy(geometry.affine.copy()),
                "original_channel_dim": 0,
                "spatial_shape": geometry.spatial_shape,
                "file_shape": geometry.file_shape,
                "is_picture": geometry.is_picture,
            },
        )


def load_image(
    path: PathLike, *, is_label: bool = False, align_spacing: bool = False, device: Device = "cpu"
) -> MetaTensor:
    """Load an image or a label map, channel first.

    The axes stay those of the file's affine; a picture is (row, column). A NIfTI axis after the third becomes
    channels; a 2-D file stays 2-D and a volume of one slice stays 3-D. A picture's alpha is its last channel.

    Args:
        path: NIfTI, PNG, BMP, JPEG or TIFF; MHA and NRRD with the extra ``itk``, TIFF volumes with the extra ``tiff``.
        is_label: The file holds label ids: whole numbers, one channel.
        align_spacing: Resample to the finest spacing along every axis (nearest neighbour for labels). Coarse axes grow
            accordingly, so a training plan that keeps each axis' own spacing is usually the better choice.
        device: Where the tensor lives.

    Returns:
        A tensor ``(C, *spatial)``, float32 for an image and int64 for a label, with ``affine`` and in ``meta``
        ``original_affine``, ``spatial_shape`` (the file's), ``file_shape`` and ``filename_or_obj``.

    Raises:
        ImageReadError: If the file is missing, damaged, of an unknown format, or not a label map although
            ``is_label`` says so.
        MissingExtraError: If the format needs a package that is not installed.
    """
    scan = read_scan(path, is_label=is_label)
    tensor = scan.tensor(device)
    return at_finest_spacing(tensor, is_label=is_label) if align_spacing else tensor


def read_scan(path: PathLike, *, is_label: bool = False) -> Scan:
    """Decode an image or a label map; arguments and errors are those of `load_image`."""
    path = Path(path)
    with _readable(path, "a label map" if is_label else "an image"):
        array, geometry = formats.read(path, _known_suffix(path), is_label=is_label)
        values = _label_ids(array) if is_label else _intensities(array)
    return Scan(values=torch.from_numpy(values), geometry=geometry, file_name=str(path))


def scan_of_nibabel(image: SpatialImage) -> Scan:
    """Decode an image of nibabel's as its file is decoded: axes after the third are channels.

    Raises:
        ImageReadError: If its samples cannot be read, or its axes are not those of an image.
    """
    path = Path(image.get_filename() or "nibabel image")
    with _readable(path, "an image"):
        array, geometry = formats.nibabel_array(image)
        values = _intensities(array)
    return Scan(values=torch.from_numpy(values), geometry=geometry, file_name=image.get_filename() or "")


def read_geometry(path: PathLike) -> Geometry:
    """Read a file's grid without decoding its samples, which is cheap for hundreds of files.

    Raises:
        ImageReadError: If the file is missing, of an unknown format or its header is damaged. Damage behind the header
            shows only when the file is loaded.
    """
    path = Path(path)
    with _readable(path, "an image"):
        return formats.read_header(path, _known_suffix(path))


def geometry_of(image: MetaTensor) -> Geometry:
    """Return the grid of a loaded ``(C, *spatial)`` tensor, with whatever transforms did to it.

    Raises:
        BadInputError: If its affine gives no place: it holds NaN, a voxel size of 0, or axes in one plane.
    """
    shape = tuple(image.shape[1:])
    affine = _affine_4x4(image.affine.detach().cpu().numpy())
    if problem := affine_problem(affine, min(len(shape), 3)):
        name = image.meta.get("filename_or_obj") or f"a tensor of shape {tuple(image.shape)}"
        raise BadInputError(f"{name}: the affine {problem}: {affine.tolist()}; give it a right one")
    return Geometry(
        spatial_shape=shape,
        num_channels=len(image),
        affine=affine,
        is_picture=bool(image.meta.get("is_picture", False)),
        file_shape=_file_shape(image.meta.get("file_shape", ()), shape),
    )


def save_image(image: Tensor, path: PathLike, *, like: PathLike | MetaTensor | None = None) -> None:
    """Write an image or a label map where a given scan is; the file appears whole or not at all.

    Integers are stored in the smallest type that holds them, so labels stay ids. One channel leaves no axis of its own:
    the file has as many axes as the one that it follows.

    Args:
        image: ``(C, *spatial)`` or ``(*spatial)``. Without any geometry, three axes are read as ``(C, H, W)`` for a
            picture or where the first has length 1, else as a volume.
        path: The suffix chooses the format; ``.mhd`` and ``.nhdr`` are read and not written, since they are two files.
            Folders are created.
        like: The file or the loaded tensor whose grid the image lies on. ``None`` takes the grid of ``image`` itself
            when it carries one.

    Raises:
        BadInputError: If the shape is not that of ``like``, or the format cannot hold the image.
    """
    from monai.data import MetaTensor

    path, suffix = Path(path), image_suffix(path)
    if suffix not in formats.READABLE:
        raise BadInputError(f"{path}: cannot write {suffix or 'a file without suffix'!r}; {_KNOWN}")
    if suffix in formats.DETACHED:  # the samples would stay behind under the temporary name that the header states
        whole = formats.DETACHED[suffix]
        raise BadInputError(f"{path}: a {suffix} keeps its samples in a second file; write {whole}, which holds both")
    if like is None and isinstance(image, MetaTensor):
        like = image
    geometry = None if like is None else geometry_of(like) if isinstance(like, MetaTensor) else read_geometry(like)
    array = _channel_first(_compact(image), geometry, suffix, path)
    geometry = geometry or _plain_geometry(array.shape[1:], num_channels=len(array))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path, durable=False) as temporary:
            formats.write(temporary, suffix, array, geometry, beside=path)
    except ValueError as error:
        raise BadInputError(f"{path}: {error}; choose another format, for example .nii.gz") from error


_LARGEST_ID = 2**53  # what float64 holds exactly, in which some formats are decoded

_KNOWN = "known formats: " + ", ".join(formats.READABLE)


def _known_suffix(path: Path) -> str:
    if not path.exists():
        raise ImageReadError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise ImageReadError(f"{path}: found a folder, expected an image file; convert a DICOM series to NIfTI first")
    suffix = image_suffix(path)
    if suffix not in formats.READABLE:
        raise ImageReadError(f"{path}: cannot read {suffix or 'a file without suffix'!r}; {_KNOWN}")
    return suffix


@contextmanager
def _readable(path: Path, expected: str) -> Iterator[None]:
    """Turn whatever a decoder raises into one error that names the file, what was found and what to do."""
    try:
        yield
    except (CandyError, MemoryError):
        raise
    except UnusableFileError as error:
        raise ImageReadError(f"{path}: {error}") from error
    except PermissionError as error:
        raise ImageReadError(f"{path}: may not be read ({error.strerror}); check its permissions") from error
    except Exception as error:  # each decoder has its own set, down to zlib.error and struct.error
        found = " ".join(str(error).split()) or type(error).__name__
        size = f"{path.stat().st_size} bytes" if path.exists() else "unknown size"
        raise ImageReadError(
            f"{path}: found a file of {size} that does not decode ({found}), expected {expected}; "
            "it may be truncated or misnamed: copy or export it again"
        ) from error


def _intensities(array: NDArray[np.generic]) -> NDArray[np.float32]:
    _refuse_complex(array)
    with np.errstate(over="ignore"):
        values = np.array(array, dtype=np.float32, order="C")  # always a copy: the decoder's array may be a mapped file
    if array.dtype.kind == "f" and array.dtype.itemsize > values.dtype.itemsize:
        lost = np.isinf(values) & np.isfinite(array)
        if lost.any():
            raise UnusableFileError(
                f"{int(lost.sum())} values lie beyond single precision, for example {array[lost][0]}; images are "
                "float32: bring them to another unit"
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
                "label map: whole ids of classes; a mask that was scaled or resampled has to be brought back to its ids"
            )
    if array.size and array.dtype.kind not in "bi" and array.max() > _LARGEST_ID:
        raise UnusableFileError(f"the label id {array.max()}, expected ids of classes, at most {_LARGEST_ID}")
    return np.array(array, dtype=np.int64, order="C")


def _refuse_complex(array: NDArray[np.generic]) -> None:
    if np.iscomplexobj(array):
        raise UnusableFileError(f"{array.dtype} samples, which are complex numbers; save their magnitude")


def at_finest_spacing(image: MetaTensor, *, is_label: bool) -> MetaTensor:
    """Return a loaded ``(C, *spatial)`` tensor resampled to its finest spacing along every axis; a picture as it is."""
    geometry = geometry_of(image)
    spacing = geometry.spacing_mm
    if geometry.is_picture or np.allclose(spacing, min(spacing), rtol=1e-5):
        return image
    from monai.transforms import Spacing

    resample = Spacing(pixdim=[min(spacing)] * len(spacing), mode="nearest" if is_label else "bilinear")
    resampled = resample(image.float() if is_label else image)
    return resampled.to(image.dtype)


def _file_shape(file_shape: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Keep the singleton axes that the file had after its spatial ones."""
    trailing = file_shape[len(shape) :]
    return (*shape, *trailing) if set(trailing) <= {1} else shape


def _affine_4x4(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    rank = len(affine) - 1
    full = np.eye(4)
    full[:rank, :rank], full[:rank, 3] = affine[:rank, :rank], affine[:rank, -1]
    return full


def _plain_geometry(shape: Shape, *, num_channels: int) -> Geometry:
    return Geometry(
        spatial_shape=shape, num_channels=num_channels, affine=np.eye(4), is_picture=False, file_shape=shape
    )


def _compact(image: Tensor) -> NDArray[np.generic]:
    """Return the samples in the smallest type that keeps them: half precision widened, integers narrowed."""
    image = image.detach().cpu()
    if image.dtype in (torch.float16, torch.bfloat16):
        image = image.float()
    array = np.asarray(image.numpy())
    if array.dtype.kind == "f":
        return array
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    kinds = (np.int8, np.int16, np.int32, np.int64) if low < 0 else (np.uint8, np.uint16, np.uint32, np.uint64)
    return array.astype(next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))


def _channel_first(
    array: NDArray[np.generic], geometry: Geometry | None, suffix: str, path: Path
) -> NDArray[np.generic]:
    if geometry is None:
        is_picture = suffix in formats.PICTURES or array.shape[0] == 1
        has_channels = array.ndim == 4 or (array.ndim == 3 and is_picture)
    else:
        has_channels = array.ndim == len(geometry.spatial_shape) + 1
        if array.shape[has_channels:] != geometry.spatial_shape:
            raise BadInputError(
                f"{path}: the image has shape {tuple(array.shape)}, the scan that it follows {geometry.spatial_shape}; "
                "undo resampling, cropping and padding before writing"
            )
    result = array if has_channels else array[None]
    if result.ndim not in (3, 4):
        raise BadInputError(f"{path}: found shape {tuple(array.shape)}, expected 2 or 3 spatial axes and channels")
    return result
