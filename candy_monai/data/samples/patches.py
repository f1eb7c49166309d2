"""Datasets of random training patches and of whole cases, read from a store.

Every random number is a function of the seed and the sample's index, so that any number of workers, forked or spawned,
and a resumed run produce the same samples. The augmentation is described in ``candy_monai.data.pipelines``.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from monai.data import get_track_meta, set_track_meta
from monai.transforms import Randomizable, Transform
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from candy_monai.data.pipelines.building import Pipeline, build_pipeline
from candy_monai.data.pipelines.description import CENTER, IMAGE, LABEL, PREVIOUS, Entry, augmentation, cutting
from candy_monai.data.planning.plan import Plan
from candy_monai.data.samples.store import ANNOTATED, CaseStore, StoredCase
from candy_monai.data.sampling import DrawOrder, PatchDraw, PositionedSampler
from candy_monai.errors import BadInputError
from candy_monai.label_ids import holds_whole_numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IN_MEMORY_BYTES = 256 << 20
_OPEN_CASES = 64  # a memory-mapped case holds three file descriptors


class Sample(TypedDict):
    """A patch or a case: image ``(C, *spatial)`` float32, label ``(1, *spatial)`` int64, and the id of the case."""

    image: Tensor
    label: Tensor
    case_id: str


class PatchDataset(Dataset[Sample]):
    """Random patches of a plan's shape, one for each index from 0, without an upper limit.

    Indices visit the cases in passes, each in a new random order. The plan's ``foreground_share`` of the patches is
    centred on a voxel of the case's foreground, of a uniformly drawn class; the others are anywhere. The share holds
    for any range of indices, and for the patches of each case with foreground. Volumes smaller than the patch are
    centred and padded: images by 0, labels by the ignore label or else the background.

    Args:
        store: The preprocessed cases.
        case_ids: The cases to use, for example those of a fold.
        plan: Contains the patch shape, the foreground share and the default augmentation.
        seed: Seed of all random numbers.
        augmentation: Transforms that cut a patch from a case and augment it, in MONAI's config language or built;
            ``None`` for those of the plan, an empty list to cut only.
        trust: Build any callable in the augmentation, instead of known transforms only.

    Raises:
        BadInputError: If a case is not in the store, or none is given.
        SettingsError: If the augmentation cannot be built.
    """

    follows_position = True

    def __init__(
        self,
        store: CaseStore,
        case_ids: Sequence[str],
        plan: Plan,
        *,
        seed: int,
        augmentation: Sequence[Entry] | Pipeline | None = None,
        trust: bool = False,
    ) -> None:
        self._cases = _CaseCache(store, case_ids)
        self._case_ids = tuple(case_ids)
        self._shape, self._has_previous = plan.patch_shape, plan.num_previous > 0
        self._seed = seed
        self.augmentation = _pipeline(augmentation, plan, trust=trust)
        self._random = _random_transforms(self.augmentation)
        self._order = DrawOrder(
            case_ids,
            [bool(store.classes_of(case_id)) for case_id in case_ids],
            foreground_share=plan.foreground_share,
            seed=seed,
        )

    def __len__(self) -> int:
        """Return the number of cases, which is the number of indices in a pass."""
        return len(self._case_ids)

    @override
    def __getitem__(self, index: int) -> Sample:
        drawn = self.draw(index)
        case = self._cases[drawn.case_id]
        rng = np.random.default_rng([self._seed, index])
        center = self._center(case, drawn.on_foreground, rng)
        # MONAI draws from a RandomState; seeding PCG64 takes a tenth of the time of its own Mersenne twister.
        state = np.random.RandomState(np.random.PCG64(rng.integers(1 << 32, size=4)))
        for part in self._random:
            part.R = state
        with untracked(), self.augmentation.applied_to(f"a patch of {drawn.case_id}"):
            changed = self.augmentation({**self._parts_of(case), LABEL: case.label, CENTER: center})
        if not isinstance(changed, Mapping) or not {IMAGE, LABEL} <= set(changed):
            found = f"the keys {', '.join(map(str, changed))}" if isinstance(changed, Mapping) else "several samples"
            raise BadInputError(
                f"the augmentation returned {found}, expected one sample with the keys {IMAGE} and {LABEL}: leave out "
                "transforms that delete these keys, and crops, since RandWarpd cuts the patch"
            )
        image, label = changed[IMAGE], changed[LABEL]
        self._check(image, label)
        return {"image": image.float(), "label": label.long(), "case_id": drawn.case_id}

    def _parts_of(self, case: StoredCase) -> dict[str, NDArray[np.floating]]:
        """Return the image, and the label map of a cascade's first stage, which is not augmented as intensities are."""
        return {IMAGE: case.image[:-1], PREVIOUS: case.image[-1:]} if self._has_previous else {IMAGE: case.image}

    def draw(self, index: int) -> PatchDraw:
        """Return the case of a sample and whether it is on foreground, without cutting it."""
        return self._order.draw(index)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for workers: without the random states, which each sample sets."""
        for part in self._random:
            part.__dict__.pop("R", None)
        return self.__dict__

    def _check(self, image: Tensor, label: Tensor) -> None:
        """Check the shape and the label values after the user's own transforms."""
        if tuple(image.shape[1:]) != self._shape or tuple(label.shape) != (1, *self._shape):
            raise BadInputError(
                f"the augmentation returned an image of shape {tuple(image.shape)} and a label of shape "
                f"{tuple(label.shape)}, expected the plan's patch shape {self._shape}: leave out transforms that "
                "change it"
            )
        if not holds_whole_numbers(label):
            raise BadInputError(
                "the augmentation returned label values that are not whole numbers: interpolate labels with nearest "
                'neighbour, in MONAI with mode=("bilinear", "nearest") for image and label'
            )

    def _center(self, case: StoredCase, on_foreground: bool, rng: np.random.Generator) -> NDArray[np.int64] | None:
        """Draw the voxel at the centre of a patch; None for a patch anywhere."""
        places = None
        if on_foreground:
            classes = [class_id for class_id in case.places if class_id != ANNOTATED]
            places = case.places[classes[int(rng.integers(len(classes)))]]
        elif len(case.places.get(ANNOTATED, ())):
            places = case.places[ANNOTATED]
        if places is None:
            return None
        return np.array(np.unravel_index(int(places[int(rng.integers(len(places)))]), case.label.shape[1:]))


class StoredCases(Dataset[Sample]):
    """Whole preprocessed cases, for validation.

    Raises:
        BadInputError: If a case is not in the store, or none is given.
    """

    def __init__(self, store: CaseStore, case_ids: Sequence[str]) -> None:
        self._cases = _CaseCache(store, case_ids)
        self._case_ids = tuple(case_ids)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The ids of the cases in order."""
        return self._case_ids

    def __len__(self) -> int:
        return len(self._case_ids)

    @override
    def __getitem__(self, index: int) -> Sample:
        case_id = self._case_ids[index]
        case = self._cases[case_id]
        return {
            "image": torch.from_numpy(np.array(case.image, dtype=np.float32)),
            "label": torch.from_numpy(np.array(case.label, dtype=np.int64)),
            "case_id": case_id,
        }


class EpochSampler(PositionedSampler):
    """Sampler of consecutive indices: epoch ``e`` of ``n`` samples has ``e * n`` to ``e * n + n - 1``.

    With a dataset whose samples depend only on the index, epochs differ and each can be repeated.

    Args:
        num_samples: Number of samples in an epoch.
    """

    @override
    def indices(self, epoch: int) -> Sequence[int]:
        return range(epoch * self._num_samples, (epoch + 1) * self._num_samples)


def _pipeline(chosen: Sequence[Entry] | Pipeline | None, plan: Plan, *, trust: bool) -> Pipeline:
    if isinstance(chosen, Pipeline):
        return chosen
    entries = augmentation(plan) if chosen is None else chosen or cutting(plan)
    return build_pipeline(entries, name="augmentation", trust=trust)


def _random_transforms(value: object) -> tuple[Randomizable, ...]:
    """Return all random transforms in a pipeline, including nested ones. They share one state, unlike MONAI's."""
    if isinstance(value, list | tuple):
        return tuple(part for entry in value for part in _random_transforms(entry))
    if isinstance(value, dict):
        return _random_transforms(list(value.values()))
    nested = _random_transforms(vars(value)) if isinstance(value, Transform) else ()
    return (value, *nested) if isinstance(value, Randomizable) else nested


class _CaseCache:
    """A cache of cases: those of a small store in memory, else the recently used ones as memory maps."""

    def __init__(self, store: CaseStore, case_ids: Sequence[str]) -> None:
        if not case_ids:
            raise BadInputError("no case was given; expected at least one")
        for case_id in case_ids:
            store.classes_of(case_id)  # raises an error if it is unknown
        self._store = store
        self._mapped = store.num_bytes > _IN_MEMORY_BYTES
        self._opened: OrderedDict[str, StoredCase] = OrderedDict()

    def __getitem__(self, case_id: str) -> StoredCase:
        if case_id in self._opened:
            self._opened.move_to_end(case_id)
            return self._opened[case_id]
        case = self._store.load(case_id, mapped=self._mapped)
        self._opened[case_id] = case
        if self._mapped and len(self._opened) > _OPEN_CASES:
            self._opened.popitem(last=False)
        return case

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for workers: without the arrays, since each worker opens the files itself."""
        return self.__dict__ | {"_opened": OrderedDict()}


class _TrackMetaFlag(threading.local):
    """A replacement for MONAI's global flag of ``set_track_meta``, with a value for each thread."""

    def __init__(self, otherwise: bool) -> None:
        self._otherwise = otherwise
        self.is_off = False

    def __bool__(self) -> bool:
        return self._otherwise and not self.is_off


_lock = threading.Lock()
_users = 0


@contextmanager
def untracked() -> Iterator[None]:
    """Make MONAI's transforms return plain tensors within this block, in this thread only.

    MONAI's own switch, ``set_track_meta``, applies to the whole process: a transform in another thread would lose its
    affine and the data for its inverse. A patch takes a third less time without metadata, which is not needed.
    """
    global _users
    with _lock:
        switch = get_track_meta()
        if not isinstance(switch, _TrackMetaFlag):
            switch = _TrackMetaFlag(bool(switch))
            set_track_meta(switch)
            _users = 0
        _users += 1
    was_off, switch.is_off = switch.is_off, True
    try:
        yield
    finally:
        switch.is_off = was_off
        with _lock:
            _users -= 1
            if _users == 0 and get_track_meta() is switch:
                set_track_meta(switch._otherwise)
