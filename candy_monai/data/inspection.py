"""Look at every case once and keep what planning needs to know: the dataset's fingerprint.

Owns the fingerprint and the digest that tells one state of a dataset from another. Decides nothing (that is
``candy_monai.data.planning``), repairs nothing and writes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import nibabel
import numpy as np

from candy_monai.aliases import PathLike, Shape
from candy_monai.data.described import DescribedDataset
from candy_monai.data.io import geometry_of
from candy_monai.data.values import frozen
from candy_monai.errors import BadInputError, CandyError, DatasetError
from candy_monai.files import atomic_write_text

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray

    from candy_monai.data.cases import SupervisedDataset
    from candy_monai.data.nnunet_description import DatasetDescription, NNUNetCase

Orientation = tuple[str, ...]
"""Axis codes in nibabel's sense: ``("R", "A", "S")`` says where each stored axis points to."""

_SAMPLES_PER_CASE = 10_000
_SAMPLES_IN_ALL = 10_000_000
_WHOLE_FILE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
_CHECKSUMMED = (".gz", ".png")  # the tail of these covers every byte before it


@runtime_checkable
class CaseSource(Protocol):
    """What inspection and preprocessing need of a dataset; ``NNUNetDataset`` is one."""

    @property
    def description(self) -> DatasetDescription:
        """What ``dataset.json`` says."""

    @property
    def cases(self) -> tuple[NNUNetCase, ...]:
        """The cases with their files."""

    def load(self, idx: int) -> tuple[MetaTensor, MetaTensor]:
        """Return a case's image and label as they are stored."""


@dataclass(frozen=True, kw_only=True)
class IntensityStatistics:
    """Summary of a channel's intensities over some voxels."""

    mean: float
    std: float
    median: float
    percentile_00_5: float
    percentile_99_5: float
    min: float
    max: float

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> IntensityStatistics:
        """Summarise a non-empty array."""
        low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
        return cls(
            mean=float(values.mean(dtype=np.float64)),
            std=float(values.std(dtype=np.float64)),
            median=float(median),
            percentile_00_5=float(low),
            percentile_99_5=float(high),
            min=float(values.min()),
            max=float(values.max()),
        )


@dataclass(frozen=True, kw_only=True)
class ChannelFingerprint:
    """One channel's intensities over all cases.

    Attributes:
        name: The channel's name in ``dataset.json``.
        foreground: Over labelled voxels; ``None`` when no case has any.
        whole: Over all voxels.
    """

    name: str
    foreground: IntensityStatistics | None
    whole: IntensityStatistics


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """One case's geometry and classes, in the axes of its file.

    Attributes:
        case_id: The case.
        shape: Spatial shape.
        spacing_mm: Distance of samples along each axis; 1 for a picture.
        orientation: Axis codes of a volume; ``None`` for anything 2-D.
        nonzero_shape: Shape of the box around voxels that are non-zero in any channel; the whole when all are zero.
        foreground_shape: Shape of the box around labelled voxels; ``None`` without any.
        class_voxels: Number of voxels of each label id that occurs, background and ignore included.
        foreground_bbox: First voxel and end along each axis of the box around labelled voxels, ``(a0, a1, b0, b1)`` or
            ``(a0, a1, b0, b1, c0, c1)``; ``None`` without any. `crop` takes it.
        class_places: Voxels of each foreground id, as many as ``inspect`` was asked for.
    """

    case_id: str
    shape: Shape
    spacing_mm: tuple[float, ...]
    orientation: Orientation | None
    nonzero_shape: Shape
    foreground_shape: Shape | None
    class_voxels: Mapping[int, int]
    foreground_bbox: tuple[int, ...] | None = None
    class_places: Mapping[int, tuple[Shape, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Everything about a dataset that a plan depends on.

    Attributes:
        dataset_name: The dataset's name.
        digest: Identifies the dataset's present content, see ``dataset_digest``.
        is_picture: The files know no physical space (PNG and relatives).
        labels: Name to id, or to ids where regions overlap; in the order of ``dataset.json``.
        ignore_label: The id that is masked out of training, if any.
        region_order: What each foreground region paints, in painting order; ``None`` without regions.
        channels: One entry a channel.
        cases: One entry a case, sorted by id.
    """

    dataset_name: str
    digest: str
    is_picture: bool
    labels: Mapping[str, int | tuple[int, ...]]
    ignore_label: int | None
    region_order: tuple[int, ...] | None
    channels: tuple[ChannelFingerprint, ...]
    cases: tuple[CaseFingerprint, ...]

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels' names in order."""
        return tuple(channel.name for channel in self.channels)

    @property
    def num_dims(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.cases[0].shape)

    def save(self, path: PathLike) -> None:
        """Write the fingerprint to a file, from which ``load`` restores an equal one."""
        atomic_write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: PathLike) -> Fingerprint:
        """Restore a fingerprint from a file.

        Raises:
            BadInputError: If there is no such file, or it is not a fingerprint.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInputError(f"{path}: cannot be read ({error.strerror}); inspect the dataset again") from error

    def to_json(self) -> str:
        """Return JSON text from which ``from_json`` restores an equal fingerprint."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """Restore a fingerprint from the text of ``to_json``.

        Raises:
            BadInputError: If the text is not a fingerprint.
        """
        try:
            values = json.loads(text)
            values["labels"] = {name: frozen(ids) for name, ids in values["labels"].items()}
            values["region_order"] = frozen(values["region_order"])
            values["channels"] = tuple(_channel(entry) for entry in values["channels"])
            values["cases"] = tuple(_case(entry) for entry in values["cases"])
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise BadInputError(f"not a fingerprint of this version ({error!r}): inspect the dataset again") from error


def inspect(
    dataset: SupervisedDataset | CaseSource | PathLike, *, num_workers: int | None = None, places_per_class: int = 0
) -> Fingerprint:
    """Read every case once and summarise it, as it is before the dataset's transforms.

    Intensities are sampled, at most 10 000 voxels a case and 10 million in all, with a generator seeded by the case id:
    memory stays at ``num_workers`` cases whatever the dataset's size, and the result does not depend on order or
    workers. Cases without labelled voxels take no part in foreground statistics.

    Args:
        dataset: A dataset, or the folder of one. Where nothing names its labels, they are those that occur.
        num_workers: Threads; decoding and counting release Python's lock. ``None`` takes one a processor, at most 8.
        places_per_class: Voxels of each foreground id to keep for each case, drawn evenly; all where there are fewer.

    Raises:
        DatasetError: With every case that cannot be read, holds NaN or infinite intensities, or whose label does not
            fit its image.
    """
    source = _opened(dataset)
    cases = source.cases
    if not cases:
        raise DatasetError(source.description.name, ["no case found; check imagesTr and labelsTr"])
    names = source.description.channel_names
    per_case = min(_SAMPLES_PER_CASE, max(_SAMPLES_IN_ALL // (len(cases) * len(names)), 100))
    with ThreadPoolExecutor(num_workers or min(os.cpu_count() or 1, 8)) as pool:
        results = list(
            pool.map(_case_or_problem, repeat(source), range(len(cases)), repeat(per_case), repeat(places_per_class))
        )
    problems = [result for result in results if isinstance(result, str)]
    seen = [result for result in results if not isinstance(result, str)]
    dimensions = {len(case.fingerprint.shape) for case in seen}
    if len(dimensions) > 1:
        problems.append(f"found images with {sorted(dimensions)} spatial axes; all cases must have the same number")
    if problems:
        raise DatasetError(source.description.name, problems)
    description = source.description
    return Fingerprint(
        dataset_name=description.name,
        digest=dataset_digest(source),
        is_picture=all(case.is_picture for case in seen),
        labels=_labels(description, seen),
        ignore_label=description.ignore_label,
        region_order=description.regions_class_order if description.has_regions else None,
        channels=tuple(
            ChannelFingerprint(
                name=name,
                foreground=_pooled([case.foreground[channel] for case in seen]),
                whole=IntensityStatistics.of(np.concatenate([case.whole[channel] for case in seen])),
            )
            for channel, name in enumerate(names)
        ),
        cases=tuple(sorted((case.fingerprint for case in seen), key=lambda case: case.case_id)),
    )


def dataset_digest(dataset: SupervisedDataset | CaseSource | PathLike) -> str:
    """Return 16 hexadecimal digits that change when the dataset's content does.

    Covers channels, labels, case ids, and of each file its name, size and content. Files up to 1 MiB count whole. Of
    larger ones the first and the last 64 KiB count: the header and, for ``.gz`` and ``.png``, checksums of all that
    lies between. Larger files without checksums add their modification time. Of a dataset that names no files every
    voxel counts.
    """
    source = _opened(dataset)
    if isinstance(source, DescribedDataset):
        return source.digest()
    about = source.description
    meaning = (about.channel_names, list(about.labels.items()), about.ignore_label, about.regions_class_order)
    digest = hashlib.blake2b(repr(meaning).encode(), digest_size=8)
    for case in sorted(source.cases, key=lambda case: case.case_id):
        digest.update(case.case_id.encode())
        for path in (*case.images, *([case.label] if case.label else [])):
            _digest_file(digest, Path(path))
    return digest.hexdigest()


def axis_codes(affine: NDArray[np.floating]) -> Orientation:
    """Return the axis codes of a volume's 4 x 4 affine.

    Raises:
        BadInputError: If the affine is degenerate, so that an axis points nowhere.
    """
    codes = tuple(nibabel.aff2axcodes(affine))
    if None in codes:
        raise BadInputError(f"the affine does not say where every axis points: {np.asarray(affine).tolist()}")
    return codes


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Return the smallest box around the true voxels of a spatial mask; ``None`` when there is none."""
    box = []
    for axis in range(mask.ndim):
        hits = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(hits):
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return tuple(box)


def case_seed(case_id: str) -> int:
    """Return a seed that depends on the case id alone."""
    return int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True, kw_only=True)
class _Seen:
    fingerprint: CaseFingerprint
    is_picture: bool
    foreground: list[NDArray[np.floating]]
    whole: list[NDArray[np.floating]]


def _case_or_problem(source: CaseSource, index: int, num_samples: int, num_places: int) -> _Seen | str:
    case_id = source.cases[index].case_id
    try:
        return _seen(source, index, num_samples, num_places)
    except CandyError as error:
        return f"{case_id}: {error}"


def _seen(source: CaseSource, index: int, num_samples: int, num_places: int) -> _Seen:
    case_id = source.cases[index].case_id
    image_tensor, label_tensor = source.load(index)
    geometry = geometry_of(image_tensor)
    image, label = image_tensor.numpy(), label_tensor.numpy()[0]
    names = source.description.channel_names
    if image.shape[1:] != label.shape or len(image) != len(names):
        raise BadInputError(
            f"found {len(image)} channels of shape {image.shape[1:]} and a label of shape {label.shape}, expected "
            f"{len(names)} channels of the label's shape"
        )
    if not np.isfinite(image).all():
        raise BadInputError("the image holds NaN or infinite intensities; replace them")
    if label.min() < 0:
        raise BadInputError(f"the label holds negative ids ({label.min()}); label ids start at 0")
    foreground = label > 0
    if source.description.ignore_label is not None:
        foreground &= label != source.description.ignore_label
    labelled, nonzero = bounding_box(foreground), bounding_box((image != 0).any(axis=0))
    rng = np.random.default_rng(case_seed(case_id))
    inside = np.flatnonzero(foreground)
    if len(inside) > num_samples:
        inside = rng.choice(inside, num_samples)
    anywhere = np.arange(label.size) if label.size <= num_samples else rng.integers(0, label.size, num_samples)
    return _Seen(
        fingerprint=CaseFingerprint(
            case_id=case_id,
            shape=tuple(label.shape),
            spacing_mm=geometry.spacing_mm,
            orientation=None if geometry.is_picture or label.ndim < 3 else axis_codes(geometry.affine),
            nonzero_shape=_extent(nonzero) if nonzero else tuple(label.shape),
            foreground_shape=_extent(labelled) if labelled else None,
            class_voxels=_counts(label),
            foreground_bbox=tuple(end for side in labelled for end in (side.start, side.stop)) if labelled else None,
            class_places=_places(label, foreground, num_places, rng) if num_places else {},
        ),
        is_picture=geometry.is_picture,
        foreground=[channel.ravel()[inside] for channel in image],
        whole=[channel.ravel()[anywhere] for channel in image],
    )


def _counts(label: NDArray[np.integer]) -> dict[int, int]:
    ids, counts = np.unique(label, return_counts=True) if label.max() > 0xFFFF else (None, np.bincount(label.ravel()))
    found = np.arange(len(counts)) if ids is None else ids
    return {int(index): int(count) for index, count in zip(found, counts, strict=True) if count}


def _places(
    label: NDArray[np.integer], foreground: NDArray[np.bool_], count: int, rng: np.random.Generator
) -> dict[int, tuple[Shape, ...]]:
    places = {}
    for index in np.unique(label[foreground]):
        found = np.flatnonzero(label == index)
        chosen = found if len(found) <= count else np.sort(rng.choice(found, count, replace=False))
        voxels = np.stack(np.unravel_index(chosen, label.shape), axis=1)
        places[int(index)] = tuple(tuple(voxel) for voxel in voxels.tolist())
    return places


def _labels(description: DatasetDescription, seen: Sequence[_Seen]) -> Mapping[str, int | tuple[int, ...]]:
    if description.labels:
        return {name: ids if isinstance(ids, int) else tuple(ids) for name, ids in description.labels.items()}
    found = {index for case in seen for index in case.fingerprint.class_voxels}
    return {"background": 0} | {f"class_{index}": index for index in sorted(found - {0})}


def _pooled(samples: Sequence[NDArray[np.floating]]) -> IntensityStatistics | None:
    pooled = np.concatenate(samples)
    return IntensityStatistics.of(pooled) if len(pooled) else None


def _extent(box: tuple[slice, ...]) -> Shape:
    return tuple(side.stop - side.start for side in box)


def _opened(dataset: SupervisedDataset | CaseSource | PathLike) -> CaseSource:
    if isinstance(dataset, str | os.PathLike):
        from candy_monai.data.nnunet import NNUNetDataset

        return NNUNetDataset(dataset)
    return dataset if isinstance(dataset, CaseSource) else DescribedDataset(dataset)


def _digest_file(digest: hashlib.blake2b, path: Path) -> None:
    status = path.stat()
    digest.update(f"{path.name}\0{status.st_size}\0".encode())
    with path.open("rb") as file:
        if status.st_size <= _WHOLE_FILE_BYTES:
            digest.update(file.read())
            return
        digest.update(file.read(_BLOCK_BYTES))
        file.seek(-_BLOCK_BYTES, os.SEEK_END)
        digest.update(file.read())
    if not path.name.lower().endswith(_CHECKSUMMED):
        digest.update(str(status.st_mtime_ns).encode())


def _channel(entry: Mapping[str, object]) -> ChannelFingerprint:
    statistics = {
        key: None if entry[key] is None else IntensityStatistics(**entry[key])  # type: ignore[arg-type]
        for key in ("foreground", "whole")
    }
    return ChannelFingerprint(name=entry["name"], **statistics)  # type: ignore[arg-type]


def _case(entry: Mapping[str, object]) -> CaseFingerprint:
    values = {key: frozen(value) for key, value in entry.items()}
    counts: Mapping[str, int] = entry["class_voxels"]  # type: ignore[assignment]
    values["class_voxels"] = {int(index): count for index, count in counts.items()}
    values["class_places"] = {int(index): places for index, places in values["class_places"].items()}  # type: ignore[attr-defined]
    return CaseFingerprint(**values)  # type: ignore[arg-type]
