"""Look at every case once and keep what planning needs to know: the dataset's fingerprint.

Owns how a fingerprint is measured. Decides nothing (that is ``candy_monai.data.planning``), repairs nothing and writes
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import nibabel
import numpy as np

from candy_monai.aliases import PathLike, Shape
from candy_monai.data.digest import CaseSource, case_seed, dataset_digest, opened_dataset
from candy_monai.data.fingerprint import (
    CaseFingerprint,
    ChannelFingerprint,
    Fingerprint,
    IntensityStatistics,
    Orientation,
)
from candy_monai.data.geometric import bounding_box
from candy_monai.data.workers import case_workers
from candy_monai.errors import BadInputError, CandyError, DatasetError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.data.cases import SupervisedDataset
    from candy_monai.data.nnunet_description import DatasetDescription


_SAMPLES_PER_CASE = 10_000
_SAMPLES_IN_ALL = 10_000_000


def inspect(
    dataset: SupervisedDataset | CaseSource | PathLike, *, num_workers: int | None = None, places_per_class: int = 0
) -> Fingerprint:
    """Read every case once and summarise it, as it is before the dataset's transforms.

    Intensities are sampled, at most 10 000 voxels a case and 10 million in all, with a generator seeded by the case id:
    memory stays at ``num_workers`` cases whatever the dataset's size, and the result does not depend on order or
    workers. Cases without labelled voxels take no part in foreground statistics.

    Args:
        dataset: A dataset, or the folder of one. Where nothing names its labels, they are those that occur.
        num_workers: Threads; decoding and counting release Python's lock. ``None`` takes one a processor, at most 8,
            and fewer where cases would not fit into memory.
        places_per_class: Voxels of each foreground id to keep for each case, drawn evenly; all where there are fewer.

    Raises:
        DatasetError: With every case that cannot be read, holds NaN or infinite intensities, or whose label does not
            fit its image.
    """
    source = opened_dataset(dataset)
    cases = source.cases
    if not cases:
        raise DatasetError(source.description.name, ["no case found; check imagesTr and labelsTr"])
    names = source.description.channel_names
    per_case = min(_SAMPLES_PER_CASE, max(_SAMPLES_IN_ALL // (len(cases) * len(names)), 100))
    with ThreadPoolExecutor(num_workers or case_workers(cases)) as pool:
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


def axis_codes(affine: NDArray[np.floating]) -> Orientation:
    """Return the axis codes of a volume's 4 x 4 affine.

    Raises:
        BadInputError: If the affine is degenerate, so that an axis points nowhere.
    """
    codes = tuple(nibabel.aff2axcodes(affine))
    if None in codes:
        raise BadInputError(f"the affine does not say where every axis points: {np.asarray(affine).tolist()}")
    return codes


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
    image_scan, label_scan = source.read(index)
    geometry = image_scan.geometry
    image, label = image_scan.values.numpy(), label_scan.values.numpy()[0]
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
        return dict(description.labels)
    found = {index for case in seen for index in case.fingerprint.class_voxels}
    return {"background": 0} | {f"class_{index}": index for index in sorted(found - {0})}


def _pooled(samples: Sequence[NDArray[np.floating]]) -> IntensityStatistics | None:
    pooled = np.concatenate(samples)
    return IntensityStatistics.of(pooled) if len(pooled) else None


def _extent(box: tuple[slice, ...]) -> Shape:
    return tuple(side.stop - side.start for side in box)
