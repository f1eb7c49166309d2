"""Read and write NIfTI files by nibabel, in millimetres regardless of the header's unit.

MONAI's reader uses the same package. It changes an affine that disagrees with the header's voxel size, so that a result
would no longer match the scan, ignores the unit, and reads a compressed file without verifying its checksum.
"""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np

from candy_monai.data.images.geometry import IN_MM, Geometry, UnusableFileError, affine_problem
from candy_monai.data.images.names import image_suffix

if TYPE_CHECKING:
    from nibabel.spatialimages import SpatialImage
    from numpy.typing import NDArray

_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
_UNITS = {1: IN_MM["m"], 2: IN_MM["mm"], 3: IN_MM["um"]}
_UNIT_BITS = 7
_MOST_QUANTIZED = 0.005  # half a step of integers scaled in hundredths: the error of rounding
_SINGLE_PRECISION = 1e-6
_REMEDY = "write a valid header, for example by converting the original again"


def read(path: Path, *, is_label: bool) -> tuple[NDArray[np.generic], Geometry]:
    """Decode a file into a channel-first array and its geometry."""
    if image_suffix(path) == ".nii.gz":
        # Decompressing at once is faster than nibabel's streaming and verifies the checksum at the file's end.
        data = gzip.decompress(path.read_bytes())
        affine = _stated_affine(data[:_HEADER_BYTES], path)
        image = _nifti_kind(data[:4]).from_bytes(data)
    else:
        affine = _stated_affine(_start_of(path), path)
        image = _open_nifti(path)
    return decoded(image, affine, is_label=is_label)


def read_header(path: Path) -> Geometry:
    """Read the geometry of a file without decoding its samples."""
    affine = _stated_affine(_start_of(path), path)
    image = _open_nifti(path)
    return Geometry.in_space(image.shape, _in_mm(image, affine), num_channels=_num_fields(image.get_data_dtype()))


def write(path: Path, array: NDArray[np.generic], geometry: Geometry, *, beside: Path) -> None:
    """Encode a channel-first array, in millimetres."""
    data = np.moveaxis(array, 0, -1)
    num_dims = data.ndim - 1
    if len(array) == 1:
        trailing = geometry.trailing_axes if num_dims == len(geometry.spatial_shape) else 0
        data = data.reshape(*data.shape[:-1], *(1,) * trailing)
    elif num_dims == 2:
        data = data[:, :, None]  # otherwise the channels would become a third spatial axis
    image = nibabel.Nifti1Image(data, geometry.affine, dtype=data.dtype)  # explicit, or nibabel refuses 64-bit integers
    image.header.set_xyzt_units("mm")
    image.set_sform(geometry.affine, code=1)
    image.set_qform(geometry.affine, code=1)  # some readers prefer the qform: both must agree
    nibabel.save(image, path)


def decoded(
    image: SpatialImage, affine: NDArray[np.float64] | None = None, *, is_label: bool = False
) -> tuple[NDArray[np.generic], Geometry]:
    """Return the samples of a nibabel image, channel first, and its geometry.

    ``affine`` is the one in its file, in the header's unit, if that may differ from the image's own.

    Raises:
        ValueError: If it does not have 2 or 3 spatial axes and at most one of channels, or its affine is invalid.
    """
    array = np.asanyarray(image.dataobj)
    geometry = Geometry.in_space(array.shape, _in_mm(image, affine), num_channels=_num_fields(array.dtype))
    if array.dtype.names:  # RGB samples are structured
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    elif is_label:
        array = _without_scaling(array, image)
    spatial = geometry.spatial_shape
    return np.moveaxis(array.reshape(*spatial, geometry.num_channels), -1, 0), geometry


def _open_nifti(path: Path) -> SpatialImage:
    """Read the header of a file; for a suffix such as ``.Nii`` nibabel itself looks for another file name."""
    suffix = path.name[-len(image_suffix(path)) :]
    if suffix in (suffix.lower(), suffix.upper()):
        return nibabel.load(path)
    return _nifti_kind(_start_of(path)).from_file_map({"image": nibabel.FileHolder(str(path))})


def _start_of(path: Path) -> bytes:
    with (gzip.open if image_suffix(path) == ".nii.gz" else open)(path, "rb") as file:
        start: bytes = file.read(_HEADER_BYTES)
    return start


def _nifti_kind(start: bytes) -> Any:  # a class of nibabel's, which has no types
    is_nifti2 = 540 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big"))
    return nibabel.Nifti2Image if is_nifti2 else nibabel.Nifti1Image


def _in_mm(image: SpatialImage, stated: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return an image's affine in millimetres; ``stated`` is the one in its file, in the header's unit."""
    affine = np.array(image.affine if stated is None else stated, dtype=np.float64)
    if stated is None and (problem := affine_problem(affine, min(len(image.shape), 3))):
        raise UnusableFileError(f"the affine {problem}: {affine.tolist()}; give the image a valid one")
    header = image.header
    if "xyzt_units" in getattr(header, "keys", tuple)():  # NIfTI only; "unknown" counts as millimetres
        affine[:3] *= _UNITS.get(int(header["xyzt_units"]) & _UNIT_BITS, 1.0)
    return affine


def _stated_affine(start: bytes, path: Path) -> NDArray[np.float64] | None:
    """Return the affine in a file's header, in its own unit; ``None`` if it is not a NIfTI header.

    It is the one that nibabel uses, except for headers whose voxel size of zero or less nibabel corrects silently. A
    broken sform is replaced by a valid qform, as in ITK.

    Raises:
        UnusableFileError: If there is none.
    """
    kind = _nifti_kind(start).header_class
    size = kind.template_dtype.itemsize
    try:
        header = kind(start[:size], check=False)
        num_dims = min(max(int(header["dim"][0]), 2), 3)
    except Exception:  # nibabel itself reports what is wrong
        return None
    if int(header["sizeof_hdr"]) != kind.sizeof_hdr or not 1 <= int(header["dim"][0]) <= 7:
        return None
    _check_offset(header)
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    problem = ""
    if sform:
        affine: NDArray[np.float64] = np.asarray(header.get_sform(), dtype=np.float64)
        if (found := affine_problem(affine, num_dims)) is None:
            return affine
        problem = f"the sform (srow_x, srow_y, srow_z) {found}: {affine[:3].tolist()}"
    sizes = np.asarray(header["pixdim"], dtype=np.float64)[1 : num_dims + 1]
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        sized = f"the voxel size (pixdim[1..{num_dims}]) is {sizes.tolist()}, expected positive numbers"
        raise UnusableFileError(f"the header gives no position: {'; '.join(filter(None, (problem, sized)))}; {_REMEDY}")
    if sform and not qform:
        raise UnusableFileError(f"the header gives no position: {problem}; {_REMEDY}")
    if num_dims == 2 and not header["pixdim"][3] > 0:  # in a 2-D file it may be anything
        header["pixdim"][3] = 1
    if not qform:
        return np.asarray(header.get_base_affine(), dtype=np.float64)
    header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1  # 0 and invalid values count as 1 by the standard
    try:
        affine = np.asarray(header.get_qform(), dtype=np.float64)
        found = affine_problem(affine, num_dims)
    except ValueError as error:  # the quaternion's norm exceeds 1
        found = f"is not a rotation ({error})"
    if found is not None:
        turned = f"the qform (quatern_b, quatern_c, quatern_d, qoffset_x, qoffset_y, qoffset_z) {found}"
        raise UnusableFileError(
            f"the header gives no position: {'; '.join(filter(None, (problem, turned)))}; {_REMEDY}"
        )
    if problem:
        warnings.warn(f"{path}: {problem}; using the qform instead, which is valid", stacklevel=2)
    return affine


def _check_offset(header: Any) -> None:
    if header["vox_offset"] == 0:  # nibabel refuses other values within the header, but would read the header here
        raise UnusableFileError(
            f"the header says that the samples begin at byte 0 (vox_offset), expected {header.single_vox_offset} or "
            "more; the file may be half of a renamed pair of .hdr and .img: convert the original again"
        )


def _num_fields(dtype: np.dtype[np.generic]) -> int:
    return len(dtype.names or (0,))


def _without_scaling(array: NDArray[np.generic], image: SpatialImage) -> NDArray[np.generic]:
    """Return label ids that were stored as scaled integers: whole except for rounding of scale and storage.

    Raises:
        UnusableFileError: If values are fractions after scaling.
    """
    slope, offset = (getattr(image.dataobj, name, default) for name, default in (("slope", 1), ("inter", 0)))
    if array.dtype.kind != "f" or image.get_data_dtype().kind not in "iu" or (slope, offset) == (1, 0):
        return array
    values = array.astype(np.float64)
    whole: NDArray[np.float64] = np.rint(values)
    off = np.abs(values - whole)
    allowed = min(abs(slope) * 0.501, _MOST_QUANTIZED) + _SINGLE_PRECISION * (np.abs(whole) + abs(offset))
    if (bad := off > allowed).any():
        raise UnusableFileError(
            f"scaled by its header (scl_slope {slope:.6g}, scl_inter {offset:.6g}), {int(bad.sum())} of its values are "
            f"fractions, for example {values[bad][0]:.6g}, expected whole label ids; save the ids without scaling"
        )
    return whole
