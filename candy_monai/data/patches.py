"""Training patches from a store: which case, where, and the same ones for any number of workers.

Owns the choice of patches. Every random number is a function of the seed and the sample's index, so that workers,
forked or spawned, and a resumed run produce the same samples. How patches are changed is in
``candy_monai.data.transforms``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.augmentation import Augmentation
from candy_monai.data.draws import DrawOrder, PatchDraw, start_anywhere, start_around
from candy_monai.data.planning import Plan
from candy_monai.data.sampling import PositionedSampler
from candy_monai.data.store import ANNOTATED, CaseStore, StoredCase
from candy_monai.data.transforms import JointTransform
from candy_monai.data.warping import source_box
from candy_monai.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_IN_MEMORY_BYTES = 256 << 20
_OPEN_CASES = 64  # a mapped case holds three file descriptors


class Sample(TypedDict):
    """One patch or one case: image ``(C, *spatial)`` float32, label ``(1, *spatial)`` int64, and the case's id."""

    image: Tensor
    label: Tensor
    case_id: str


class PatchDataset(Dataset[Sample]):
    """Patches of a plan's shape; an index of 0 or more names a sample, without end.

    Cases come in passes: each pass visits every case once, in an order of its own. A share of the visits is centred on
    a voxel of an evenly chosen class of the case, the rest lies anywhere. Both are spread evenly: the share holds over
    any stretch of indices, and over the visits to each case that has foreground. Volumes smaller than the patch are
    centred and padded: images by 0, labels by the ignore label or else the background.

    Args:
        store: The preprocessed cases.
        case_ids: Those to use, for example a fold's.
        plan: Shape, share, ignore label, and what the augmentation may do.
        seed: Seeds everything.
        augment: Whether to apply the default augmentation, or one of your own choice.
        transform: Applied last, seeded for each sample.

    Raises:
        BadInputError: If a case is not in the store, or there is none.
    """

    follows_position = True

    def __init__(
        self,
        store: CaseStore,
        case_ids: Sequence[str],
        plan: Plan,
        *,
        seed: int,
        augment: bool | Augmentation = True,
        transform: JointTransform | None = None,
    ) -> None:
        self._cases = _Cases(store, case_ids)
        self._case_ids = tuple(case_ids)
        self._shape = plan.patch_shape
        self._padding_label = 0 if plan.ignore_label is None else plan.ignore_label
        self._seed = seed
        self._augmentation = (
            augment if isinstance(augment, Augmentation) else Augmentation.for_plan(plan) if augment else None
        )
        self._transform = transform
        self._order = DrawOrder(
            case_ids,
            [bool(store.classes_of(case_id)) for case_id in case_ids],
            foreground_share=plan.foreground_share,
            seed=seed,
        )

    def __len__(self) -> int:
        """Return the number of cases: the indices of one pass."""
        return len(self._case_ids)

    @override
    def __getitem__(self, index: int) -> Sample:
        drawn = self.draw(index)
        rng = np.random.default_rng([self._seed, index])
        case = self._cases[drawn.case_id]
        start = self._start(case, drawn.on_foreground, rng)
        image, label = self._cut(case, start, rng)
        if self._augmentation is not None:
            image, label = self._augmentation.mirror(image, label, rng)
            image = self._augmentation.change_intensities(image, rng)
        if self._transform is not None:
            self._transform.set_random_state(int(rng.integers(1 << 32)))
            image, label = self._transform(image, label)
        return {"image": image, "label": label, "case_id": drawn.case_id}

    def draw(self, index: int) -> PatchDraw:
        """Return which case a sample comes from and how, without cutting it."""
        return self._order.draw(index)

    def _start(self, case: StoredCase, on_foreground: bool, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the patch's first voxel in the case; negative where the case is smaller than the patch."""
        volume = tuple(case.label.shape[1:])
        places = None
        if on_foreground:
            classes = [class_id for class_id in case.places if class_id != ANNOTATED]
            places = case.places[classes[int(rng.integers(len(classes)))]]
        elif len(case.places.get(ANNOTATED, ())):
            places = case.places[ANNOTATED]
        if places is None:
            return start_anywhere(volume, self._shape, rng)
        centre = np.unravel_index(int(places[int(rng.integers(len(places)))]), volume)
        return start_around(np.array(centre), volume, self._shape)

    def _cut(self, case: StoredCase, start: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        augmentation = self._augmentation
        matrix = None if augmentation is None else augmentation.draw_matrix(rng)
        displacement = None if augmentation is None else augmentation.draw_displacement(self._shape, rng)
        if augmentation is None or (matrix is None and displacement is None):
            return self._box(case, start, self._shape)
        matrix = np.eye(len(self._shape)) if matrix is None else matrix
        centre = start + (np.array(self._shape) - 1) / 2
        corner, shape = source_box(
            matrix, centre, self._shape, coarse_axis=augmentation.coarse_axis, displacement=displacement
        )
        image, label = self._box(case, corner, shape)
        return augmentation.warp(image, label, matrix, list(centre - corner), self._shape, displacement=displacement)

    def _box(self, case: StoredCase, start: NDArray[np.int64], shape: Shape) -> tuple[Tensor, Tensor]:
        image = cut(case.image, start, shape, fill=0.0, dtype=np.float32)
        label = cut(case.label, start, shape, fill=self._padding_label, dtype=np.int64)
        return torch.from_numpy(image), torch.from_numpy(label)


class StoredCases(Dataset[Sample]):
    """Whole preprocessed cases, for validation.

    Args:
        store: The preprocessed cases.
        case_ids: Those to use.

    Raises:
        BadInputError: If a case is not in the store, or there is none.
    """

    def __init__(self, store: CaseStore, case_ids: Sequence[str]) -> None:
        self._cases = _Cases(store, case_ids)
        self._case_ids = tuple(case_ids)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The cases in order."""
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
    """Name the samples of an epoch: epoch ``e`` of ``n`` samples has the indices ``e * n`` to ``e * n + n - 1``.

    With a dataset whose samples depend on the index alone, no two epochs are alike and each can be repeated.

    Args:
        num_samples: Samples in an epoch.
    """

    @override
    def indices(self, epoch: int) -> Sequence[int]:
        return range(epoch * self._num_samples, (epoch + 1) * self._num_samples)


def cut(
    array: NDArray[np.generic], start: Sequence[int] | NDArray[np.int64], shape: Shape, *, fill: float, dtype: type
) -> NDArray[Any]:
    """Copy a box out of an array, which is read nowhere else; whatever lies outside is filled.

    Args:
        array: ``(C, *spatial)``.
        start: The box's first voxel; may be negative.
        shape: The box's shape; may reach beyond the array.
        fill: The value outside.
        dtype: Type of the copy.
    """
    stops = [first + size for first, size in zip(start, shape, strict=True)]
    inside = tuple(
        slice(max(first, 0), max(0, min(stop, limit)))
        for first, stop, limit in zip(start, stops, array.shape[1:], strict=True)
    )
    found = array[(slice(None), *inside)]
    if found.shape[1:] == tuple(shape):
        return np.array(found, dtype=dtype, order="C")
    box: NDArray[Any] = np.full((len(array), *shape), fill, dtype=dtype)
    if found.size:
        target = tuple(slice(side.start - first, side.stop - first) for side, first in zip(inside, start, strict=True))
        box[(slice(None), *target)] = found
    return box


class _Cases:
    """Opened cases: small stores whole in memory, else the recently used ones mapped from disk."""

    def __init__(self, store: CaseStore, case_ids: Sequence[str]) -> None:
        if not case_ids:
            raise BadInputError("no case was named; give at least one")
        for case_id in case_ids:
            store.classes_of(case_id)  # says so where it is unknown
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
        """Send a worker the folder, not the arrays."""
        return self.__dict__ | {"_opened": OrderedDict()}
