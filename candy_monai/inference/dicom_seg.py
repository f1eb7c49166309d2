"""DICOM SEG: label maps of DICOM series as binary segments, written by highdicom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from torch import Tensor

from candy_monai import __version__
from candy_monai.aliases import PathLike
from candy_monai.data.images import dicom
from candy_monai.data.images.alignment import HAS_NO_GRID, aligned
from candy_monai.data.images.dicom import Series
from candy_monai.data.images.formats import codec_of
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.reading import Scan, read_geometry
from candy_monai.errors import BadInputError, ImageReadError, SettingsError, did_you_mean
from candy_monai.files import atomic_path
from candy_monai.optional import require
from candy_monai.plotting.canvas.colors import class_color
from candy_monai.text import read_json

Code = tuple[str, str, str]
"""A coded concept: its value, coding scheme and meaning."""

TISSUE: Code = ("85756007", "SCT", "Tissue")
"""Default category and type of a segment, as in dcmqi and 3D Slicer."""

_PURPOSE = "write DICOM SEG"
_CODES = ("category", "type")
_COLOR = "color"
_LONGEST = (16, 16, 64)  # for a code's value, scheme and meaning; the last also for a segment's label
_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
"""Attributes that a header may omit although highdicom expects them."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One segment of a DICOM SEG.

    Attributes:
        label: Its name.
        ids: The ids of a label map that belong to it; those of different segments may overlap.
        color: Its display colour: red, green, blue in 0..255.
        category: The category of the segmented property, such as an anatomical structure.
        type: The type of the segmented property, such as a liver.
    """

    label: str
    ids: tuple[int, ...]
    color: tuple[int, int, int]
    category: Code = TISSUE
    type: Code = TISSUE


def read_segments(
    classes: Mapping[str, int | Sequence[int]], codes: PathLike | Mapping[str, Any] | None = None
) -> tuple[Segment, ...]:
    """Return the segments of some classes or regions, with codes and colours where given.

    Args:
        classes: The id of each class, or the ids of each region, by name; background is left out.
        codes: A JSON file or its contents: for any of the names ``category`` and ``type``, each the three texts of a
            code (value, scheme, meaning), and ``color``, three numbers from 0 to 255.

    Raises:
        SettingsError: If the codes are invalid or are of other classes.
    """
    more: Any = {} if codes is None else codes
    source = "segments"
    if not isinstance(more, Mapping):
        source = str(more)
        try:
            more = read_json(Path(more))
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{source}: not valid JSON ({error}), expected an object with the codes of each class, by its name"
            ) from error
        if not isinstance(more, Mapping):
            raise SettingsError(
                f"{source}: found {type(more).__name__}, expected an object with the codes of each class, by its name"
            )
    known: dict[str, tuple[int, ...]] = {}
    for name, ids in classes.items():
        of_class = (ids,) if isinstance(ids, int) else tuple(ids)
        if of_class != (0,):
            known[name] = of_class
    for name in more:
        if name not in known:
            listed = ", ".join(known)
            raise SettingsError(
                f"{source}: unknown class {name!r}, expected any of {listed}.{did_you_mean(name, known)}"
            )
    return tuple(
        Segment(label=name, ids=ids, **{"color": class_color(number), **_entry(f"{source}: {name}", more.get(name))})
        for number, (name, ids) in enumerate(known.items(), start=1)
    )


def check_series(path: Path | None, name: str) -> None:
    """Check, before predicting, that a segmentation that references an image can be written.

    Raises:
        BadInputError: If the image is not a DICOM series, or is one that highdicom cannot reference.
        MissingExtraError: If the extra ``dicom`` is not installed.
    """
    require("highdicom", extra="dicom", purpose=_PURPOSE)
    pydicom = require("pydicom", extra="dicom", purpose=_PURPOSE)
    if path is None or codec_of(path) is not dicom:
        found = name if path is None else path
        raise BadInputError(
            f"{found}: found no DICOM series, expected one: a DICOM SEG references the images that it was made from; "
            "predict the series' folder, or leave out --to-dicom-seg (dicom_seg)"
        )
    try:
        series = _series_at(path)
    except ImageReadError:  # reported when the case is processed
        return
    if len({frame.file for frame in series.frames}) > 1 and any(frame.index is not None for frame in series.frames):
        raise BadInputError(
            f"{path}: found several multi-frame files that form one volume, expected a single one, or a file for each "
            "slice: a DICOM SEG cannot reference them; leave out --to-dicom-seg (dicom_seg)"
        )
    needed = ["StudyInstanceUID", *([] if series.geometry.is_picture else ["FrameOfReferenceUID"])]
    header = pydicom.dcmread(series.frames[0].file, specific_tags=needed, stop_before_pixels=True)
    if missing := [keyword for keyword in needed if not header.get(keyword)]:
        raise BadInputError(
            f"{series.frames[0].file}: found no {' and no '.join(missing)}, which a DICOM SEG copies from the images "
            "that it references; correct the headers, or leave out --to-dicom-seg (dicom_seg)"
        )


def save_dicom_seg(
    labels: Tensor,
    path: PathLike,
    *,
    series: PathLike,
    segments: Mapping[str, int | Sequence[int]] | Sequence[Segment],
    codes: PathLike | Mapping[str, Any] | None = None,
) -> None:
    """Write a label map as a DICOM SEG of binary segments; the file is written atomically.

    Args:
        labels: Ids ``(1, *spatial)`` or ``(*spatial)`` on the grid of the series, as `load_image` reads it; a
            ``MetaTensor`` with other axis directions is reoriented.
        path: The file to write, usually ``.dcm``.
        series: The folder of the series, or any of its files: its images, patient and study are referenced.
        segments: The id of each class, or the ids of each region, by name; background is left out. Or the result of
            `read_segments`.
        codes: Codes and colours of these classes; see `read_segments`.

    Raises:
        BadInputError: If the label map is on another grid or has ids without a segment, the series cannot be read or
            referenced, or the codes are of other classes.
        MissingExtraError: If the extra ``dicom`` is not installed.
    """
    path, series = Path(path), Path(series)
    check_series(series, series.name)
    chosen = read_segments(segments, codes) if isinstance(segments, Mapping) else tuple(segments)
    found = _series_at(series)
    ids = _on_grid(labels, found.geometry, path).numpy()
    if ids.shape != found.geometry.spatial_shape:
        raise BadInputError(
            f"{path}: the label map has shape {ids.shape}, the series {series} {found.geometry.spatial_shape}; undo "
            "resampling, cropping and padding before writing"
        )
    frames = ids[None] if found.geometry.is_picture else ids.transpose(2, 1, 0)
    try:
        written = _segmentation(found, frames, chosen, path)
    except (BadInputError, MemoryError):
        raise
    except Exception as error:  # scanner headers violate the standard in many ways
        raise BadInputError(
            f"{series}: found headers that a DICOM SEG cannot reference ({' '.join(str(error).split())}), expected a "
            "valid patient, study and frame of reference; correct them, or leave out --to-dicom-seg (dicom_seg)"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, durable=False) as temporary:
        written.save_as(temporary)


def _on_grid(labels: Tensor, grid: Geometry, path: Path) -> Tensor:
    """Return ids ``(*spatial)``, reoriented to the axes of the series if they have an affine."""
    num_dims = len(grid.spatial_shape)
    whole = labels.detach().cpu()
    whole = whole if whole.ndim == num_dims + 1 else whole[None]
    if len(whole) != 1:
        raise BadInputError(f"{path}: found a label map of shape {tuple(labels.shape)}, expected one channel of ids")
    if isinstance(whole, MetaTensor) and not grid.is_picture and not whole.meta.get(HAS_NO_GRID):
        scan = Scan.of(whole, name="the label map")
        return aligned(scan.values, scan.geometry, grid, name="the label map", against="the series has")[0]
    return whole.as_subclass(Tensor)[0]


def _series_at(path: Path) -> Series:
    read_geometry(path)  # raises one readable error for any fault of the files
    return dicom.read_series(path)


def _segmentation(series: Series, frames: NDArray[np.generic], segments: Sequence[Segment], path: Path) -> Any:
    """Return the DICOM dataset of a label map ``(frame, row, column)``, with frames in the order of the series."""
    highdicom = require("highdicom", extra="dicom", purpose=_PURPOSE)
    from pydicom import dcmread
    from pydicom.sr.codedict import codes

    order = np.arange(len(frames))
    files = dict.fromkeys(frame.file for frame in series.frames)
    if len(series.frames) > 1 and len(files) == 1:  # highdicom uses the order of the file
        order = np.argsort([frame.index or 0 for frame in series.frames])
    sources = [dcmread(file, stop_before_pixels=True) for file in files]
    for source in sources:
        for keyword in _EMPTY:
            if keyword not in source:
                setattr(source, keyword, "")
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="candy_monai", version=__version__, family=codes.cid7162.ArtificialIntelligence
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=segment.label.replace("\\", "/")[: _LONGEST[-1]],
            segmented_property_category=highdicom.sr.CodedConcept(*segment.category),
            segmented_property_type=highdicom.sr.CodedConcept(*segment.type),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            display_color=highdicom.color.CIELabColor.from_rgb(*segment.color),
        )
        for number, segment in enumerate(segments, start=1)
    ]
    masks = _masks(frames[order], segments, path)
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=masks,
        omit_empty_frames=bool(masks.any()),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=int(sources[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="candy_monai",
        manufacturer_model_name="candy_monai",
        software_versions=__version__,
        device_serial_number="0",
        content_label="SEGMENTATION",
        series_description="Segmentation by candy_monai",
    )


def _masks(frames: NDArray[np.generic], segments: Sequence[Segment], path: Path) -> NDArray[np.generic]:
    """Return segment numbers from 1 on, ``(frame, row, column)``; or masks ``(..., segment)`` if they overlap."""
    there = set(np.unique(frames).tolist()) - {0}
    owned = [label_id for segment in segments for label_id in segment.ids]
    if unknown := sorted(there - set(owned)):
        raise BadInputError(
            f"{path}: the label map holds the ids {', '.join(map(str, unknown))}, which belong to none of "
            f"{', '.join(segment.label for segment in segments)}; give a segment for each"
        )
    if len(set(owned)) < len(owned):
        return np.stack([np.isin(frames, segment.ids) for segment in segments], axis=-1).astype(np.uint8)
    numbers = np.zeros(frames.shape, np.uint8 if len(segments) < 256 else np.uint16)
    for number, segment in enumerate(segments, start=1):
        numbers[np.isin(frames, segment.ids)] = number
    return numbers


def _entry(name: str, entry: object) -> dict[str, Any]:
    """Return the codes and the colour of one class as arguments of `Segment`."""
    if entry is None:
        return {}
    if not isinstance(entry, Mapping) or (unknown := set(entry) - {*_CODES, _COLOR}):
        found = f"{', '.join(sorted(map(str, unknown)))}" if isinstance(entry, Mapping) else repr(entry)
        raise SettingsError(f"{name}: found {found}, expected entries {', '.join(_CODES)} and {_COLOR}")
    result: dict[str, Any] = {}
    for key in set(_CODES) & set(entry):
        texts = entry[key]
        is_code = isinstance(texts, list | tuple) and len(texts) == 3 and all(isinstance(text, str) for text in texts)
        if not is_code or not all(0 < len(text) <= most for text, most in zip(texts, _LONGEST, strict=True)):
            raise SettingsError(
                f"{name}: {key} is {texts!r}, expected three texts of at most 16, 16 and 64 characters: value, scheme "
                'and meaning, such as ["10200004", "SCT", "Liver"]'
            )
        result[key] = tuple(texts)
    if _COLOR in entry:
        levels = entry[_COLOR]
        whole = isinstance(levels, list | tuple) and all(type(level) is int and 0 <= level <= 255 for level in levels)
        if not whole or len(levels) != 3:
            raise SettingsError(f"{name}: {_COLOR} is {levels!r}, expected three whole numbers from 0 to 255")
        result[_COLOR] = tuple(levels)
    return result
