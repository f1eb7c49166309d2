"""A store of preprocessed cases on disk, from which a patch is read without reading the whole case.

A store is a cache: it can be rebuilt from dataset and plan, its location is chosen by the caller, and it is never
inside the dataset's folder. A case is stored by its content and everything that its preprocessing depends on, so that a
further case, or another network, does not affect the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote

import numpy as np
import torch

from candy_monai.aliases import PathLike
from candy_monai.data.images.alignment import aligned
from candy_monai.data.images.reading import Scan
from candy_monai.data.inspection.digest import CaseSource, Digests, case_seed, case_stamp, dataset_digests
from candy_monai.data.pipelines.description import OwnTransforms, preprocessing
from candy_monai.data.pipelines.preprocessing import PreprocessedCase, Preprocessor
from candy_monai.data.planning.grid import planned_shape
from candy_monai.data.planning.plan import Plan, as_applied
from candy_monai.data.workers import AHEAD, case_workers, in_order, shares
from candy_monai.errors import BadInputError, CandyError, DatasetError, RunFailedError, did_you_mean
from candy_monai.files import atomic_path, atomic_write_text

if TYPE_CHECKING:
    from monai.data import MetaTensor
    from numpy.typing import NDArray
    from torch import Tensor

    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.processes import Processes

StoredPrecision = Literal["float32", "float16"]

ANNOTATED = -1
"""Represents "any annotated voxel" among the classes of ``StoredCase.places``."""

_FORMAT = 3
_PLACES_PER_CLASS = 10_000
_LEAST_OF_HALF = 2.0**-4
"""Least maximum of an image for float16, whose steps end at 2 ** -24: a millionth of it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredCase:
    """A preprocessed case, memory-mapped: reading a part accesses only that part.

    Attributes:
        case_id: The id of the case.
        image: ``(C, *spatial)``, float32 or float16; always float32 if values do not fit into float16. The last channel
            holds the label map of a cascade's first stage, if the plan has one.
        label: ``(1, *spatial)``, uint8 or int16.
        places: For each foreground id in the label, sampled flat indices into ``*spatial``, at most 10 000. With an
            ignore label, ``ANNOTATED`` holds places anywhere outside of it.
    """

    case_id: str
    image: NDArray[np.floating]
    label: NDArray[np.integer]
    places: Mapping[int, NDArray[np.integer]]


class CaseStore:
    """Preprocessed cases in a folder, as written by ``build``.

    Args:
        folder: The store's own folder.
        digest: The digest of the dataset's content: datasets of one name share the folder. ``None`` for the one stored
            last.

    Raises:
        BadInputError: If there is no complete store in the folder.
    """

    def __init__(self, folder: PathLike, *, digest: str | None = None) -> None:
        self._folder = Path(folder)
        try:
            indices = self._folder.glob("store*.json" if digest is None else _index_name(digest))
            newest = max(indices, key=lambda path: path.stat().st_mtime_ns)
            index = json.loads(newest.read_text(encoding="utf-8"))
            is_known = index["format"] == _FORMAT
            if is_known:
                self._precision: StoredPrecision = index["precision"]
                self._classes = {case_id: tuple(case["classes"]) for case_id, case in index["cases"].items()}
                self._digests = {case_id: str(case["digest"]) for case_id, case in index["cases"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{self._folder}: no complete store of preprocessed cases; build it again") from error
        if not is_known:
            raise BadInputError(f"{self._folder}: a store of another version; build it again")

    @classmethod
    def build(
        cls,
        dataset: CaseSource,
        plan: Plan,
        folder: PathLike,
        *,
        num_workers: int | None = None,
        precision: StoredPrecision = "float32",
        digests: Digests | None = None,
        own: OwnTransforms | None = None,
        previous: Callable[[str], MetaTensor] | None = None,
        processes: Processes | None = None,
    ) -> CaseStore:
        """Preprocess a dataset, or complete an interrupted call, or return the store if it is complete.

        Args:
            dataset: The cases.
            plan: The plan for preprocessing.
            folder: The parent folder of stores. This one gets its own folder inside, named by ``store_name``; changed
                cases get new files there.
            num_workers: Threads; decoding and resampling release Python's lock, and threads have no start-up cost.
                ``None`` for one per processor. Fewer if the cases would not fit into memory.
            precision: Type of the stored images; float16 halves their size. An image whose values do not fit into it
                stays float32.
            digests: The dataset's digests, if they are known already.
            own: The user's own transforms, whose preprocessing extends or replaces the plan's.
            previous: Returns the label map ``(1, *spatial)`` that the first stage of a cascade predicted for a case, by
                its id, with its affine: its axes may be those of the label's file. Its content must be part of
                ``digests``. None without a cascade.
            processes: The processes that call this together and share the cases; None for this one alone.

        Raises:
            DatasetError: With all cases that could not be preprocessed.
            RunFailedError: If the store cannot be written, as on a full disk.
        """
        target = Path(folder) / store_name(plan, precision=precision, own=own)
        with _writing(target):
            target.mkdir(parents=True, exist_ok=True)
        digests = dataset_digests(dataset) if digests is None else digests
        paths = {case.case_id: _Paths(target, case.case_id, digests.cases[case.case_id]) for case in dataset.cases}
        preprocessor, problems = Preprocessor(plan, own=own), list[str]()

        def prepare(index: int) -> str | None:
            case = dataset.cases[index]
            if paths[case.case_id].is_complete():
                return None
            try:
                image, label = dataset.read(index)
                before = None if previous is None else _on_grid(previous(case.case_id), image)
                preprocessed = preprocessor.apply(image, label.values.to(torch.int16), previous=before)
            except CandyError as error:
                return f"{case.case_id}: {error}"
            try:
                changed = case_stamp(case) != digests.stamps.get(case.case_id, "")
            except OSError:  # a file has been removed
                changed = True
            if changed:
                return (
                    f"{case.case_id}: its files changed during preprocessing; wait until they are complete, and start "
                    "again"
                )
            with _writing(target):
                _write(preprocessed, paths[case.case_id], plan, precision)
            return None

        jobs = case_workers(dataset.cases, num_workers)
        for share in shares(range(len(paths)), processes, target):
            tasks = (partial(prepare, index) for index in share)
            problems += [problem for problem in in_order(tasks, jobs, ahead=AHEAD) if problem is not None]
        if problems:
            raise DatasetError(dataset.description.name, sorted(problems))
        cases = {
            case_id: {"digest": digests.cases[case_id], "classes": files.foreground()}
            for case_id, files in paths.items()
        }
        index = {"format": _FORMAT, "dataset": plan.dataset_name, "precision": precision, "cases": cases}
        with _writing(target):
            atomic_write_text(target / _index_name(digests.whole), json.dumps(index, indent=1), durable=False)
        return cls(target, digest=digests.whole)

    @property
    def folder(self) -> Path:
        """The store's own folder."""
        return self._folder

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The ids of the stored cases, in the dataset's order."""
        return tuple(self._classes)

    @property
    def precision(self) -> StoredPrecision:
        """The requested type of the stored images."""
        return self._precision

    @property
    def num_bytes(self) -> int:
        """Size of the stored images and labels on disk."""
        return sum(path.stat().st_size for case_id in self._classes for path in self._paths(case_id).arrays)

    def classes_of(self, case_id: str) -> tuple[int, ...]:
        """Return the foreground ids in a case.

        Raises:
            BadInputError: If there is no such case.
        """
        if case_id not in self._classes:
            raise BadInputError(f"{self._folder}: there is no case {case_id!r}.{did_you_mean(case_id, self._classes)}")
        return self._classes[case_id]

    def load(self, case_id: str, *, mapped: bool = True) -> StoredCase:
        """Open a case; its arrays are memory-mapped, or else read completely.

        Raises:
            BadInputError: If there is no such case, or its files are damaged.
        """
        self.classes_of(case_id)
        paths = self._paths(case_id)
        mode: Literal["r"] | None = "r" if mapped else None
        try:
            index = json.loads(paths.index.read_text(encoding="utf-8"))
            image, label, flat = (np.load(path, mmap_mode=mode) for path in paths.arrays)
            counts = [(int(class_id), int(count)) for class_id, count in index["places"]]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{self._folder}: case {case_id!r} is damaged ({error}); build it again") from error
        ends = np.cumsum([count for _, count in counts])
        places = {class_id: flat[end - count : end] for (class_id, count), end in zip(counts, ends, strict=True)}
        return StoredCase(case_id=case_id, image=image, label=label, places=places)

    def _paths(self, case_id: str) -> _Paths:
        return _Paths(self._folder, case_id, self._digests[case_id])


def _on_grid(previous: MetaTensor, image: Scan) -> Tensor:
    """Return the label map of a cascade's first stage with the axes of the image."""
    scan = Scan.of(previous)
    name = "the label map of the first stage"
    return aligned(scan.values, scan.geometry, image.geometry, name=name, against="the image has")


def store_bytes(
    fingerprint: Fingerprint,
    plan: Plan,
    *,
    precision: StoredPrecision = "float32",
    case_ids: Sequence[str] | None = None,
) -> int:
    """Compute the size on disk of the stored images and labels of some or all cases from the fingerprint."""
    size = np.dtype(precision).itemsize * (len(plan.channel_names) + (plan.num_previous > 0))
    highest = max((label_id for case in fingerprint.cases for label_id in case.class_voxels), default=0)
    size += _label_type(highest).itemsize
    counted = None if case_ids is None else set(case_ids)
    return sum(
        math.prod(planned_shape(case, plan.orientation, plan.pixdim)) * size
        for case in fingerprint.cases
        if counted is None or case.case_id in counted
    )


def store_name(plan: Plan, *, precision: StoredPrecision = "float32", own: OwnTransforms | None = None) -> str:
    """Return the name of a store's folder: the dataset's name and a key for everything that preprocessing depends on.

    The store is the same for other patches, networks or cases.
    """
    # Settings that change no case, in a plan or in a saved run, do not require another store.
    same = list(zip(preprocessing(plan), preprocessing(as_applied(plan)), strict=True))
    steps = [
        next((applied for planned, applied in same if planned == step), step)
        for step in preprocessing(plan, () if own is None else own.preprocessing)
    ]
    relevant = (_FORMAT, json.dumps(steps, sort_keys=True, default=str), plan.ignore_label, precision)
    key = hashlib.blake2b(repr(relevant).encode(), digest_size=6).hexdigest()
    return f"{quote(plan.dataset_name, safe=' ')}-{key}"


def unstored_cases(
    digests: Digests,
    plan: Plan,
    folder: PathLike,
    *,
    precision: StoredPrecision = "float32",
    own: OwnTransforms | None = None,
) -> tuple[str, ...]:
    """Return the cases that `CaseStore.build` would still preprocess."""
    target = Path(folder) / store_name(plan, precision=precision, own=own)
    return tuple(
        case_id for case_id, digest in digests.cases.items() if not _Paths(target, case_id, digest).is_complete()
    )


class _Paths:
    """The files of one case. The index is written last: a case without it is incomplete."""

    def __init__(self, folder: Path, case_id: str, digest: str) -> None:
        name = "case-" + quote(case_id, safe="")
        self.seed = case_seed(name)
        self.index = folder / f"{name}-{digest}.json"
        self.arrays = tuple(folder / f"{name}-{digest}.{what}.npy" for what in ("image", "label", "places"))

    def foreground(self) -> list[int]:
        """Read the foreground ids of a complete case."""
        places = json.loads(self.index.read_text(encoding="utf-8"))["places"]
        return [class_id for class_id, _ in places if class_id != ANNOTATED]

    def is_complete(self) -> bool:
        """Return whether all files exist with the sizes recorded in the index."""
        try:
            sizes = json.loads(self.index.read_text(encoding="utf-8"))["sizes"]
            return bool(sizes == [path.stat().st_size for path in self.arrays])
        except (OSError, ValueError, KeyError, TypeError):
            return False


def _index_name(digest: str) -> str:
    return f"store-{digest}.json"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise errors of writing to the store as a failed run."""
    try:
        yield
    except OSError as error:
        raise RunFailedError(
            f"{folder}: the preprocessed cases cannot be written ({error.strerror or error}); free some space or "
            "choose another --store, and start again: cases that are stored already are not preprocessed again"
        ) from error


def _write(case: PreprocessedCase, paths: _Paths, plan: Plan, precision: StoredPrecision) -> None:
    if case.label is None:
        name = case.image.meta["filename_or_obj"]
        raise BadInputError(f"{name}: a case without a label cannot be used for training")
    label = case.label.cpu().numpy()
    label = label.astype(_label_type(int(label.max())))
    places = sampled_places(label[0], plan.ignore_label, paths.seed)
    flat = np.concatenate([np.empty(0, dtype=np.int32), *places.values()])
    arrays = (_stored_image(case.image.cpu().numpy(), precision), label, flat)
    for path, array in zip(paths.arrays, arrays, strict=True):
        with atomic_path(path, durable=False) as temporary:
            np.save(temporary, array)
    index = {
        "sizes": [path.stat().st_size for path in paths.arrays],
        "places": [(class_id, len(found)) for class_id, found in places.items()],
    }
    atomic_write_text(paths.index, json.dumps(index), durable=False)


def _stored_image(image: NDArray[np.floating], precision: StoredPrecision) -> NDArray[np.floating]:
    """Return an image in the requested type, or in float32 if its values do not fit: none becomes infinite or 0."""
    highest = float(np.abs(image).max(initial=0.0))
    fits = highest == 0.0 or _LEAST_OF_HALF <= highest <= np.finfo(np.float16).max
    return image.astype(precision if fits else np.float32)


def sampled_places(label: NDArray[np.integer], ignore_label: int | None, seed: int) -> dict[int, NDArray[np.integer]]:
    """Sample the places of each foreground id, in one pass over the label for any number of classes."""
    rng = np.random.default_rng(seed)
    flat = label.ravel()
    inside = np.flatnonzero(flat)
    ids = flat[inside]
    order = np.argsort(ids, kind="stable")
    found, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
    places = {}
    for class_id, start, count in zip(found, starts, counts, strict=True):
        if class_id != ignore_label:
            places[int(class_id)] = _at_most(inside[order[start : start + count]], rng)
    if ignore_label is not None:
        places[ANNOTATED] = _at_most(np.flatnonzero(flat != ignore_label), rng)
    kind = np.int32 if flat.size <= np.iinfo(np.int32).max else np.int64
    return {class_id: chosen.astype(kind) for class_id, chosen in places.items()}


def _at_most(indices: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.integer]:
    return indices if len(indices) <= _PLACES_PER_CLASS else rng.choice(indices, _PLACES_PER_CLASS, replace=False)


def _label_type(largest_id: int) -> np.dtype[np.uint8] | np.dtype[np.int16]:
    return np.dtype(np.uint8) if largest_id <= np.iinfo(np.uint8).max else np.dtype(np.int16)
