"""Write images and label maps on the grid of a scan; files are written atomically."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from candy_monai.aliases import PathLike
from candy_monai.data.images.formats import CODECS, DETACHED, KNOWN
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.names import image_suffix
from candy_monai.data.images.pictures import PICTURES
from candy_monai.data.images.reading import geometry_of, read_geometry
from candy_monai.errors import BadInputError
from candy_monai.files import atomic_path

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import DTypeLike, NDArray


def save_image(
    image: Tensor, path: PathLike, *, like: PathLike | MetaTensor | None = None, dtype: DTypeLike | None = None
) -> None:
    """Write an image or a label map on the grid of a given scan; the file is written atomically.

    Integers are stored in the smallest type that holds them, so labels stay ids. A single channel has no axis: the file
    has as many axes as the given scan.

    Args:
        image: ``(C, *spatial)`` or ``(*spatial)``. Without any geometry, three axes are ``(C, H, W)`` for a picture or
            if the first has length 1, else a volume.
        path: The suffix determines the format; ``.mhd`` and ``.nhdr`` are read but not written, since they need two
            files. Folders are created.
        like: The file or the loaded tensor with the grid of the image. ``None`` uses the grid of ``image`` itself if it
            has one.
        dtype: The NumPy type to store, or a wider one if it cannot hold the values. Integers are never stored as
            floating point, and floating point as integers only if all values are whole. ``None`` uses the smallest type
            for integers and keeps the others.

    Raises:
        BadInputError: If the shape is not that of ``like``, the format cannot hold the image, or ``dtype`` is an
            integer type and the image contains fractions.
    """
    from monai.data import MetaTensor

    path, suffix = Path(path), image_suffix(path)
    if suffix not in CODECS:
        raise BadInputError(f"{path}: cannot write {suffix or 'a file without suffix'!r}; {KNOWN}")
    if suffix in DETACHED:  # the header would refer to the samples under a temporary name
        whole = DETACHED[suffix]
        raise BadInputError(
            f"{path}: a {suffix} file stores its samples in a second file; write {whole}, which holds both"
        )
    if like is None and isinstance(image, MetaTensor):
        like = image
    geometry = None if like is None else geometry_of(like) if isinstance(like, MetaTensor) else read_geometry(like)
    array = _channel_first(_stored(image, dtype, path), geometry, suffix, path)
    geometry = geometry or Geometry.unknown(array.shape[1:], num_channels=len(array))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_path(path, durable=False) as temporary:
            CODECS[suffix].write(temporary, array, geometry, beside=path)
    except ValueError as error:
        raise BadInputError(f"{path}: {error}; choose another format, for example .nii.gz") from error


def _stored(image: Tensor, dtype: DTypeLike | None, path: Path) -> NDArray[np.generic]:
    """Return the samples in the type to store: half precision widened, integers narrowed, else by ``dtype``."""
    image = image.detach().cpu()
    if image.dtype in (torch.float16, torch.bfloat16):
        image = image.float()
    if image.is_complex():
        raise BadInputError(f"{path}: cannot hold complex numbers; save their magnitude, image.abs()")
    array = np.asarray(image.numpy())
    wanted = array.dtype if dtype is None else np.dtype(dtype)
    if array.dtype.kind == "f":
        if wanted.kind == "f":
            with np.errstate(over="ignore"):
                stored = array.astype(np.promote_types(wanted, np.float32), copy=False)
            return array if np.isinf(stored).sum() > np.isinf(array).sum() else stored
        if not (np.isfinite(array) & (np.rint(array) == array) & (np.abs(array) < 2.0**63)).all():
            raise BadInputError(f"{path}: {wanted} cannot hold fractions, NaN or such large numbers; choose float32")
        array = array.astype(np.int64)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    array = array.astype(np.min_scalar_type(high if low >= 0 else min(low, -high - 1)))
    wider = np.promote_types(array.dtype, wanted)
    return array.astype(wider) if dtype is not None and wider.kind in "iu" else array


def _channel_first(
    array: NDArray[np.generic], geometry: Geometry | None, suffix: str, path: Path
) -> NDArray[np.generic]:
    if array.ndim < 2:
        raise BadInputError(f"{path}: found shape {array.shape}, expected 2 or 3 spatial axes and a channel axis")
    if geometry is None:
        is_picture = suffix in PICTURES or array.shape[0] == 1
        has_channels = array.ndim == 4 or (array.ndim == 3 and is_picture)
    else:
        has_channels = array.ndim == len(geometry.spatial_shape) + 1
        if array.shape[has_channels:] != geometry.spatial_shape:
            raise BadInputError(
                f"{path}: the image has shape {tuple(array.shape)}, the scan whose geometry it should have "
                f"{geometry.spatial_shape}; undo resampling, cropping and padding before writing"
            )
    result = array if has_channels else array[None]
    if result.ndim not in (3, 4):
        raise BadInputError(
            f"{path}: found shape {tuple(array.shape)}, expected 2 or 3 spatial axes and a channel axis"
        )
    return result
