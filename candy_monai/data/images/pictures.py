"""Read and write PNG, BMP, JPEG and TIFF by Pillow, and by tifffile where Pillow would truncate the samples.

Pillow supports no colours of more than 8 bits. For such a PNG its decoder returns the bytes, which are combined here;
such a TIFF, a volume and sample types that Pillow lacks are decoded by the extra ``tiff``.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from candy_monai.data.images.geometry import Geometry, UnusableFileError
from candy_monai.data.images.names import image_suffix, split_channel, stem_of
from candy_monai.optional import require
from candy_monai.text import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.aliases import Shape

PICTURES = (".png", ".bmp", ".jpg", ".jpeg")
TIFFS = (".tif", ".tiff")

_PALETTE_CHANNELS = 3
_WIDE_RAW_MODES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow's mode for the 16-bit samples of a PNG, of which it keeps the high bytes, and the mode for the low ones."""

_WIDE_GREY_ALPHA = "LA;16B"
_GREY_STEPS = {"2": 85, "4": 17}
"""Pillow's factors for samples of 2 and 4 bits, which extend them to 8."""

_INVERTED = "I"
"""Marks inverted samples (0 is white) in Pillow's modes for TIFF: it inverts them, tifffile and nnU-Net do not."""

_BITS, _SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _ORIENTATION = 258, 277, 338, 339, 274  # TIFF's and EXIF's tags
_COMPRESSION, _JPEG_KINDS = 259, (6, 7, 34892)
_COLORMAP = 320
_LOSSY = (
    "JPEG is lossy and changes label ids; export the labels from their original as PNG, and in an nnU-Net folder the "
    "images, too"
)
_ALPHA_KINDS = (1, 2)
_SIGNED = 2


def read(path: Path, *, is_label: bool) -> tuple[NDArray[np.generic], Geometry]:
    """Decode a file into a channel-first array and its geometry."""
    if series := _beyond_pillow(path):
        if is_label and series.is_jpeg:
            raise UnusableFileError(_LOSSY)
        if is_label and series.num_palettes > 1:
            raise UnusableFileError(
                f"its pages have {series.num_palettes} different palettes, so that an id has several colours: save "
                "the ids themselves, as grey values without a palette"
            )
        if not is_label and series.num_palettes:
            _warn_of_palette(path)
        array = _tifffile("read").imread(path, series=series.number)
        if series.is_turned:
            _warn_of_turn(path)
        axis = series.sample_axis
        return array[None] if axis is None else np.moveaxis(array, axis, 0), _tiff_geometry(path, series, is_label)
    with Image.open(path) as picture:
        if is_label and (picture.format == "JPEG" or _tags_of(picture).get(_COMPRESSION) in _JPEG_KINDS):
            raise UnusableFileError(_LOSSY)
        geometry = _geometry_of(picture)
        samples = _samples_of(picture, path, is_label=is_label)
        if picture.getexif().get(_ORIENTATION, 1) != 1:
            _warn_of_turn(path)
        return samples, geometry


def read_header(path: Path) -> Geometry:
    """Read the geometry of a file without decoding its samples."""
    if series := _beyond_pillow(path):
        return _tiff_geometry(path, series, False)
    with Image.open(path) as picture:
        return _geometry_of(picture)


def write(path: Path, array: NDArray[np.generic], geometry: Geometry, *, beside: Path) -> None:
    """Encode a channel-first array; the spacing of a volume of TIFF pages goes to a ``.json`` file beside ``beside``.

    Raises:
        ValueError: If the format does not support it.
    """
    suffix = image_suffix(path)
    if suffix in TIFFS and array.ndim > 3:
        if len(array) > 1:
            raise ValueError(f"a TIFF volume can hold only one channel, found {len(array)}")
        _tifffile("write").imwrite(path, array[0], photometric="minisblack")
        text = json.dumps({"spacing": geometry.spacing_mm})
        beside.with_name(f"{stem_of(beside)}.json").write_text(text, encoding="utf-8")
        return
    if array.ndim != 3:
        raise ValueError(f"{suffix} can only hold a 2-D picture, the array has {array.ndim - 1} spatial axes")
    if suffix in (".jpg", ".jpeg"):
        raise ValueError("JPEG is lossy and changes the values")
    kinds = (np.uint8, np.uint16, *((np.float32,) if suffix in TIFFS else ())) if len(array) == 1 else (np.uint8,)
    if array.dtype not in kinds:
        raise ValueError(f"{suffix} cannot hold {array.dtype} samples with {len(array)} channels")
    data = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    Image.fromarray(np.ascontiguousarray(data)).save(path)


def spacing_file(path: Path, *, is_label: bool) -> Path | None:
    """Return the ``<case>.json`` with a TIFF volume's spacing; an image's name ends in its channel's number."""
    names = [path.stem] if is_label else [split_channel(path.stem)[0], path.stem]
    return next((file for name in names if (file := path.with_name(f"{name}.json")).exists()), None)


def palette_of(path: Path) -> dict[int, str]:
    """Return the colour that a file with a palette gives to each stored value, as ``#ff0000``; none of other files."""
    if image_suffix(path) not in (*PICTURES, *TIFFS):
        return {}
    try:
        with Image.open(path) as picture:
            levels = bytes(picture.getpalette("RGB") or ()) if picture.mode == "P" else b""
    except UnidentifiedImageError:  # only tifffile reads it
        return {}
    return {index: f"#{levels[3 * index : 3 * index + 3].hex()}" for index in range(len(levels) // 3)}


def _warn_of_turn(path: Path) -> None:
    warnings.warn(
        f"{path.parent}: pictures whose EXIF data specify a rotation or flip, which is ignored: they are read as "
        "stored, and must match their labels as stored; rotate the pixels themselves if they do not",
        stacklevel=3,
    )


def _warn_of_palette(path: Path) -> None:
    warnings.warn(
        f"{path.parent}: TIFF volumes, or rotated or 16-bit TIFF pictures, with a palette, which is ignored: the "
        "stored values are read as grey; save them as colours if they only number these",
        stacklevel=3,
    )


def _tifffile(verb: str) -> Any:  # it has no types
    what = "3-D, 16-bit colour and rotated TIFF files"
    return require("tifffile", extra="tiff", purpose=f"{verb} {what}")


def _geometry_of(picture: ImageFile.ImageFile) -> Geometry:
    num_channels = len(picture.getbands())
    if picture.mode == "P":
        num_channels = _PALETTE_CHANNELS + ("transparency" in picture.info)
    elif _is_grey_with_alpha(picture):
        num_channels = 1
    return Geometry.unknown((picture.height, picture.width), num_channels=num_channels, is_picture=True)


def _samples_of(picture: ImageFile.ImageFile, path: Path, *, is_label: bool) -> NDArray[np.generic]:
    raw_mode = _raw_mode(picture)
    has_grey_alpha = _is_grey_with_alpha(picture)
    if raw_mode == _WIDE_GREY_ALPHA:
        high_and_low = _decoded_as(path, "RGBA").astype(np.uint16)  # the two bytes of each, as if they were colours
        array: NDArray[np.generic] = high_and_low[..., ::2] << 8 | high_and_low[..., 1::2]
    elif raw_mode in _WIDE_RAW_MODES:
        low = _decoded_as(path, _WIDE_RAW_MODES[raw_mode])
        array = np.asarray(picture).astype(np.uint16) << 8 | low
    elif picture.mode == "P" and not is_label:  # the values of a palette picture may be ids
        array = np.asarray(picture.convert("RGBA" if "transparency" in picture.info else "RGB"))
    else:
        array = np.asarray(picture)
        stored = raw_mode.partition(";")[2] if picture.mode in ("1", "L") else ""
        if _INVERTED in stored:
            array = np.invert(array)
        if is_label and stored[:1] in _GREY_STEPS:
            array = array // _GREY_STEPS[stored[:1]]
    if has_grey_alpha:
        grey, alpha = array[..., 0], array[..., 1]
        opaque = 0xFFFF if alpha.dtype == np.uint16 else 0xFF
        if np.any(alpha != opaque):
            raise UnusableFileError("a grey picture with transparency; save it without transparency")
        return grey[None]
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _raw_mode(picture: ImageFile.ImageFile) -> str:
    """Return Pillow's mode of the samples as stored in a PNG or TIFF, else an empty text. Unknown after decoding."""
    if picture.format not in ("PNG", "TIFF") or not picture.tile:
        return ""
    arguments = picture.tile[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _is_grey_with_alpha(picture: ImageFile.ImageFile) -> bool:
    """Return whether a second channel is transparency; in a TIFF it may have another meaning."""
    if picture.format == "TIFF":
        extra_samples = _tags_of(picture).get(_EXTRA_SAMPLES) or (0,)
        return picture.mode == "LA" and extra_samples[0] in _ALPHA_KINDS
    return picture.mode == "LA" or _raw_mode(picture) == _WIDE_GREY_ALPHA


def _decoded_as(path: Path, raw_mode: str) -> NDArray[np.uint8]:
    """Return the bytes that Pillow decodes if the samples are declared as another type of the same size."""
    with Image.open(path) as picture:
        picture.tile = [(*tile[:3], raw_mode) for tile in picture.tile]  # type: ignore[misc]  # plain before Pillow 11
        return np.asarray(picture)


class _Series(NamedTuple):
    """Pages of a TIFF that form one image: their index, shape, a letter for each axis, the axis of samples.

    ``num_palettes`` is the number of different palettes of the pages.
    """

    number: int
    shape: Shape
    axes: str
    sample_axis: int | None
    is_turned: bool
    is_jpeg: bool
    num_palettes: int


def _beyond_pillow(path: Path) -> _Series | None:
    """Return the image of a TIFF that Pillow opens partly or not at all, else None; the largest of several."""
    if image_suffix(path) not in TIFFS:
        return None
    try:
        with Image.open(path) as picture:
            if getattr(picture, "n_frames", 1) == 1 and not _is_cut_by_pillow(picture):
                return None
    except UnidentifiedImageError:
        pass  # floating-point or wide integer samples: tifffile opens these, and reports other errors
    with _tifffile("read").TiffFile(path) as file:
        sizes = [math.prod(series.shape) for series in file.series]
        if (count := sizes.count(max(sizes))) > 1:
            raise UnusableFileError(
                f"holds {count} images of the same size; expected one image, or one volume with its slices as pages"
            )
        number = sizes.index(max(sizes))
        shape, axes = tuple(file.series[number].shape), str(file.series[number].axes)
        tags = file.series[number].keyframe.tags
        is_turned, is_jpeg = tags.valueof(_ORIENTATION, 1) != 1, tags.valueof(_COMPRESSION) in _JPEG_KINDS
        palettes = _palettes(file, file.series[number].keyframe)
        return _Series(number, shape, axes, _sample_axis(axes, path), is_turned, is_jpeg, len(palettes))


def _palettes(file: Any, first: Any) -> set[bytes]:
    """Return the different palettes of the pages that resemble the first one of an image; none if that has none."""
    if first.tags.valueof(_COLORMAP) is None:
        return set()  # then the other pages need not be read
    pages = (page for page in file.pages if page.shape == first.shape)
    return {np.asarray(page.tags.valueof(_COLORMAP, ())).tobytes() for page in pages}


def _tags_of(picture: ImageFile.ImageFile) -> Any:
    """Return the tags of a TIFF by number; none for another format."""
    return getattr(picture, "tag_v2", {})


def _is_cut_by_pillow(picture: ImageFile.ImageFile) -> bool:
    """Return whether Pillow would drop bits, signs or channels of a TIFF, rotate it, or garble its samples."""
    tags = _tags_of(picture)
    if tags.get(_ORIENTATION, 1) != 1:
        return True
    bits, count = int(max(tags.get(_BITS, (1,)))), int(tags.get(_SAMPLES, 1))
    sample_format = int(max(tags.get(_SAMPLE_FORMAT, (1,))))
    if count > 1:
        return bits > 8 or count != len(picture.getbands())
    return (bits == 32 and sample_format == 1) or (bits == 8 and sample_format == _SIGNED)


def _sample_axis(axes: str, path: Path) -> int | None:
    """Return the axis of the samples at a position: those of a colour, or the channels of ImageJ and OME.

    Channels of pictures with a spacing file are slices, as in nnU-Net: tifffile labels the slices of a volume so when
    it writes for ImageJ without given axes.
    """
    if sorted(axes) == ["C", "X", "Y"] and spacing_file(path, is_label=False) is not None:
        return None
    return next((axes.index(name) for name in "SC" if name in axes), None)


def _tiff_geometry(path: Path, series: _Series, is_label: bool) -> Geometry:
    shape, axis = series.shape, series.sample_axis
    num_channels = 1 if axis is None else shape[axis]
    spatial = tuple(length for index, length in enumerate(shape) if index != axis)
    if len(spatial) not in (2, 3):
        raise UnusableFileError(f"has the shape {shape}, axes {series.axes}; expected 2 or 3 spatial axes")
    geometry = Geometry.unknown(spatial, num_channels=num_channels, is_picture=len(spatial) == 2)
    if not geometry.is_picture:
        geometry.affine[:3, :3] = np.diag(_spacing_beside(path, is_label=is_label))
    return replace(geometry, file_shape=shape)


def _spacing_beside(path: Path, *, is_label: bool) -> tuple[float, ...]:
    file = spacing_file(path, is_label=is_label)
    if file is None:  # one text per folder: Python shows each text once
        warnings.warn(
            f"{path.parent}: TIFF volumes without <case>.json beside them; assuming a spacing of 1 x 1 x 1 mm",
            stacklevel=2,
        )
        return 1.0, 1.0, 1.0
    try:
        content = read_json(file)
        spacing = content.get("spacing") if isinstance(content, dict) else None
        sizes = tuple(float(value) for value in spacing) if isinstance(spacing, list) else ()
    except (ValueError, TypeError) as error:
        raise UnusableFileError(f"{file.name} beside it cannot be read ({error}); write {{'spacing': [...]}}") from None
    if len(sizes) != 3 or not all(0 < size < np.inf for size in sizes):
        raise UnusableFileError(
            f"{file.name} beside it: expected 'spacing' with 3 positive numbers in millimetres, found {spacing!r}"
        )
    return sizes
