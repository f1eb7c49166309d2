"""Read every case once and summarise the dataset in a fingerprint, the input of planning."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import nibabel
import numpy as np

from candy_monai.aliases import PathLike, Shape
from candy_monai.boxes import bounding_box
from candy_monai.data.inspection.digest import CaseSource, case_seed, dataset_digest, opened_dataset
from candy_monai.data.inspection.fingerprint import (
    CaseFingerprint,
    ChannelFingerprint,
    Fingerprint,
    IntensityStatistics,
    Orientation,
)
from candy_monai.data.values import frozen
from candy_monai.data.workers import AHEAD, case_workers, in_order
from candy_monai.errors import BadInputError, CandyError, DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.data.datasets.bases import SupervisedDataset
    from candy_monai.data.datasets.nnunet_description import DatasetDescription
    from candy_monai.data.images.reading import Scan


_SAMPLES_PER_CASE = 10_000
_SAMPLES_IN_ALL = 10_000_000
_SAMPLES_OF_RANGE = 50_000


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasuredCase:
    """The measurements of a case, for the fingerprint and for the comparison of cases.

    Attributes:
        fingerprint: Its geometry and classes.
        is_picture: Whether its file has no physical space.
        is_mirrored: Whether the stored axes are left-handed; ``None`` without physical space.
        content: Equal for images with the same voxels, regardless of their files.
        ranges: The percentiles 0.5 and 99.5 of each channel.
        foreground: ``(C, n)`` intensities of labelled voxels in random order, at most 10 000.
        whole: ``(C, n)`` intensities of any voxels in random order, at most 10 000.
    """

    fingerprint: CaseFingerprint
    is_picture: bool
    is_mirrored: bool | None
    content: str
    ranges: tuple[tuple[float, float], ...]
    foreground: NDArray[np.floating]
    whole: NDArray[np.floating]

    @property
    def case_id(self) -> str:
        """The id of the case."""
        return self.fingerprint.case_id

    def thinned(self, count: int) -> MeasuredCase:
        """Return the case with at most this many samples, always the same ones."""
        return replace(self, foreground=self.foreground[:, :count].copy(), whole=self.whole[:, :count].copy())

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary from which ``from_dict`` restores the case; its plain values may be stored as JSON."""
        return {**vars(self), "fingerprint": asdict(self.fingerprint)}

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> MeasuredCase:
        """Build a case from the result of ``to_dict``."""
        fingerprint = CaseFingerprint.from_dict(entries["fingerprint"])
        return cls(**{**entries, "fingerprint": fingerprint, "ranges": frozen(entries["ranges"])})


def samples_per_case(num_cases: int, num_channels: int) -> int:
    """Return the number of samples to pool from each case: fewer if there are many cases."""
    return min(_SAMPLES_PER_CASE, max(_SAMPLES_IN_ALL // (max(1, num_cases) * num_channels), 100))


def inspect(
    dataset: SupervisedDataset | CaseSource | PathLike, *, num_workers: int | None = None, places_per_class: int = 0
) -> Fingerprint:
    """Read every case once, without the dataset's transforms, and summarise the dataset.

    Intensities are sampled, at most 10 000 voxels per case and 10 million in total, with a generator seeded by the case
    id: at most ``num_workers`` cases are in memory, and the result does not depend on order or workers. Cases without
    labelled voxels are ignored in foreground statistics.

    Args:
        dataset: A dataset, or its folder. Without names of labels, the labels are the ids in the cases.
        num_workers: Threads; decoding and counting release Python's lock. ``None`` for one per processor. Fewer if the
            cases would not fit into memory.
        places_per_class: Voxels of each foreground id to sample in each case; all if there are fewer.

    Raises:
        DatasetError: With every case that cannot be read, has NaN or infinite intensities, or has a label that does not
            match its image.
    """
    source = opened_dataset(dataset)
    cases, description = source.cases, source.description
    if not cases:
        raise DatasetError(description.name, ["no case found; check imagesTr and labelsTr"])
    count = samples_per_case(len(cases), len(description.channel_names))

    def measured(index: int) -> MeasuredCase | str:
        case_id = cases[index].case_id
        try:
            image, label = source.read(index)
            _refuse_unfit(image, label, description)
            return measure_case(case_id, image, label, description, num_places=places_per_class).thinned(count)
        except CandyError as error:
            return f"{case_id}: {error}"

    tasks = (partial(measured, index) for index in range(len(cases)))
    results = list(in_order(tasks, case_workers(cases, num_workers), ahead=AHEAD))
    problems = [result for result in results if isinstance(result, str)]
    seen = [result for result in results if not isinstance(result, str)]
    problems += mixed_axes(seen)
    if problems:
        raise DatasetError(description.name, problems)
    return pooled_fingerprint(description, dataset_digest(source), seen)


def mixed_axes(cases: Sequence[MeasuredCase]) -> list[str]:
    """Return the problem of a dataset with both pictures and volumes; none otherwise."""
    dimensions = {len(case.fingerprint.shape) for case in cases}
    if len(dimensions) < 2:
        return []
    return [f"found images with {sorted(dimensions)} spatial axes; all cases must have the same number"]


def pooled_fingerprint(description: DatasetDescription, digest: str, cases: Sequence[MeasuredCase]) -> Fingerprint:
    """Return the fingerprint of a dataset from the measurements of its cases."""
    return Fingerprint(
        dataset_name=description.name,
        digest=digest,
        is_picture=all(case.is_picture for case in cases),
        labels=_labels(description, cases),
        ignore_label=description.ignore_label,
        region_order=description.regions_class_order if description.has_regions else None,
        channels=tuple(
            ChannelFingerprint(
                name=name,
                foreground=_pooled([case.foreground[channel] for case in cases]),
                whole=IntensityStatistics.of(np.concatenate([case.whole[channel] for case in cases])),
            )
            for channel, name in enumerate(description.channel_names)
        ),
        cases=tuple(sorted((case.fingerprint for case in cases), key=lambda case: case.case_id)),
    )


def axis_codes(affine: NDArray[np.floating]) -> Orientation:
    """Return the axis codes of a volume's 4 x 4 affine.

    Raises:
        BadInputError: If the affine is degenerate, so that an axis has no direction.
    """
    codes = tuple(nibabel.aff2axcodes(affine))
    if None in codes:
        raise BadInputError(
            f"the affine does not define the direction of every axis: {np.asarray(affine).tolist()}; correct the header"
        )
    return codes


def measure_case(
    case_id: str, image_scan: Scan, label_scan: Scan | None, description: DatasetDescription, *, num_places: int = 0
) -> MeasuredCase:
    """Compute the measurements of a decoded case, whose label matches its image.

    The random generator is seeded by the case id; ``num_places`` voxels of each foreground id are sampled.

    Raises:
        BadInputError: If the affine is degenerate.
    """
    geometry, image = image_scan.geometry, image_scan.values.numpy()
    label = np.zeros(image.shape[1:], np.uint8) if label_scan is None else label_scan.values.numpy()[0]
    foreground = label > 0
    if description.ignore_label is not None:
        foreground &= label != description.ignore_label
    labelled, nonzero = bounding_box(foreground), bounding_box((image != 0).any(axis=0))
    seed, most = case_seed(case_id), _SAMPLES_PER_CASE
    rng, order = np.random.default_rng(seed), np.random.default_rng(seed)
    inside = np.flatnonzero(foreground)
    inside = rng.choice(inside, most) if len(inside) > most else order.permutation(inside)
    anywhere = order.permutation(label.size) if label.size <= most else rng.integers(0, label.size, most)
    is_volume = not geometry.is_picture and label.ndim == 3
    return MeasuredCase(
        fingerprint=CaseFingerprint(
            case_id=case_id,
            shape=tuple(label.shape),
            spacing_mm=geometry.spacing_mm,
            orientation=axis_codes(geometry.affine) if is_volume else None,
            nonzero_shape=_extent(nonzero) if nonzero else tuple(label.shape),
            foreground_shape=_extent(labelled) if labelled else None,
            class_voxels=_counts(label),
            foreground_bbox=tuple(end for side in labelled for end in (side.start, side.stop)) if labelled else None,
            class_places=_places(label, foreground, num_places, rng) if num_places else {},
        ),
        is_picture=geometry.is_picture,
        is_mirrored=bool(np.linalg.det(geometry.affine[:3, :3]) < 0) if is_volume else None,
        content=_content_of(image),
        ranges=tuple(_usual_range(channel.ravel()) for channel in image),
        foreground=np.stack([channel.ravel()[inside] for channel in image]),
        whole=np.stack([channel.ravel()[anywhere] for channel in image]),
    )


def _refuse_unfit(image: Scan, label: Scan, description: DatasetDescription) -> None:
    """Raise an error if a label does not match its image, intensities are NaN or infinite, or ids are negative."""
    shape, label_shape, num_channels = image.values.shape, label.values.shape[1:], len(description.channel_names)
    if shape != (num_channels, *label_shape):
        raise BadInputError(
            f"found {shape[0]} channels of shape {tuple(shape[1:])} and a label of shape {tuple(label_shape)}, "
            f"expected {num_channels} channels of the label's shape"
        )
    if not image.values.isfinite().all():
        raise BadInputError("the image holds NaN or infinite intensities; replace them")
    if (lowest := int(label.values.min())) < 0:
        raise BadInputError(f"the label holds negative ids ({lowest}); label ids start at 0")


def _content_of(image: NDArray[np.floating]) -> str:
    digest = hashlib.blake2b(f"{image.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def _usual_range(values: NDArray[np.floating]) -> tuple[float, float]:
    """Return the percentiles 0.5 and 99.5, from a regular subset of the voxels if there are many."""
    low, high = np.percentile(values[:: max(1, values.size // _SAMPLES_OF_RANGE)], (0.5, 99.5))
    return float(low), float(high)


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


def _labels(description: DatasetDescription, cases: Sequence[MeasuredCase]) -> Mapping[str, int | tuple[int, ...]]:
    if description.labels:
        return dict(description.labels)
    found = {index for case in cases for index in case.fingerprint.class_voxels}
    return {"background": 0} | {f"class_{index}": index for index in sorted(found - {0})}


def _pooled(samples: Sequence[NDArray[np.floating]]) -> IntensityStatistics | None:
    pooled = np.concatenate(samples)
    return IntensityStatistics.of(pooled) if len(pooled) else None


def _extent(box: tuple[slice, ...]) -> Shape:
    return tuple(side.stop - side.start for side in box)
