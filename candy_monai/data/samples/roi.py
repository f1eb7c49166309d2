"""Crops around the foreground of another dataset's cases: one at its centre, or random ones.

For the user's own datasets; a planned run cuts its patches from a store (``samples.patches``), which reads only the
patch of a case. The position of a crop is determined from the item itself, so it is correct for any transforms of the
wrapped dataset; the inspection determines the crop's size and which cases have foreground.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.boxes import bounding_box
from candy_monai.data.datasets.bases import PairTransform, SupervisedDataset
from candy_monai.data.datasets.files import DerivedDataset
from candy_monai.data.inspection.fingerprint import CaseFingerprint, Fingerprint
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.topology import rounded_up
from candy_monai.data.sampling import DrawOrder, PatchDraw, SeededIndex
from candy_monai.data.values import join_reprs, plain_tensor
from candy_monai.errors import BadInputError
from candy_monai.transforms.warping import cut, start_anywhere, start_around

if TYPE_CHECKING:
    from numpy.typing import NDArray


def statistical_foreground_shape(inspection: Fingerprint, *, percentile: float = 0.95) -> Shape:
    """Return a shape that contains the foreground of most cases, computed separately for each axis.

    Args:
        inspection: The result of ``inspect``; cases without foreground are ignored.
        percentile: The share of cases whose foreground fits, 0 to 1.

    Raises:
        BadInputError: If no case has foreground, or the percentile is out of range.
    """
    if not 0 <= percentile <= 1:
        raise BadInputError(f"percentile must be a share from 0 to 1, got {percentile}")
    shapes = [case.foreground_shape for case in inspection.cases if case.foreground_shape is not None]
    if not shapes:
        raise BadInputError("no case has foreground to derive the shape of the crops from; give roi_shape")
    return tuple(math.ceil(size) for size in np.percentile(shapes, 100 * percentile, axis=0))


class ROIDataset(DerivedDataset):
    """One crop of a fixed shape from each case, around the centre of its foreground.

    The crop stays within the case if the case is large enough; smaller cases are centred and padded, images by 0,
    labels by the ignore label or else the background. Without foreground, it is the case's centre. Affines follow.

    Args:
        base: The dataset to crop from, whose transforms apply first.
        inspection: The result of ``inspect`` for it, or for a dataset that includes its cases; ``None`` inspects it.
        roi_shape: The crop's shape; ``None`` for ``statistical_foreground_shape``.
        percentile: For that shape.
        min_factor: The shape is rounded up to multiples of this along each axis; 1 leaves it unchanged.
        ignore_label: Voxels of this id are not foreground and pad labels; ``None`` for the inspection's.
        transform: Applied to the crop's image and label together.

    Raises:
        BadInputError: If the inspection lacks a case, or the shape does not fit the dataset.
    """

    def __init__(
        self,
        base: SupervisedDataset,
        inspection: Fingerprint | None = None,
        *,
        roi_shape: Sequence[int] | None = None,
        percentile: float = 0.95,
        min_factor: int = 1,
        ignore_label: int | None = None,
        transform: PairTransform | None = None,
    ) -> None:
        super().__init__(base, transform=transform)
        inspection = inspect(base) if inspection is None else inspection
        self._inspected = {case.case_id: case for case in inspection.cases}
        missing = [case_id for case_id in base.case_ids if case_id not in self._inspected]
        if missing:
            raise BadInputError(f"the inspection lacks the cases {join_reprs(missing)}; inspect this dataset again")
        self._ignore_label = inspection.ignore_label if ignore_label is None else ignore_label
        counted = self._ignore_label != inspection.ignore_label and any(
            self._ignore_label in case.class_voxels for case in inspection.cases
        )
        if roi_shape is None and counted:
            raise BadInputError(
                f"the inspection counted the ignored id {self._ignore_label} as foreground; give roi_shape"
            )
        self._shape_is_given = roi_shape is not None
        if roi_shape is None:
            roi_shape = statistical_foreground_shape(inspection, percentile=percentile)
        if min_factor < 1 or any(size < 1 for size in roi_shape):
            raise BadInputError(f"roi_shape {tuple(roi_shape)} and min_factor {min_factor} must be 1 or more")
        self._roi_shape = rounded_up(tuple(roi_shape), (min_factor,) * len(roi_shape))
        if len(self._roi_shape) != inspection.num_dims:
            raise BadInputError(f"roi_shape has {len(self._roi_shape)} axes, the cases have {inspection.num_dims}")

    def roi_shape(self) -> Shape:
        """Return the spatial shape of every crop."""
        return self._roi_shape

    @override
    def load(self, idx: int) -> tuple[MetaTensor, MetaTensor]:
        image, label = self._item(idx)
        ids = _ids(label)
        box = bounding_box(self._foreground(ids))
        centre = [size // 2 for size in ids.shape] if box is None else [(s.start + s.stop) // 2 for s in box]
        return self._cropped(image, label, start_around(centre, ids.shape, self._roi_shape))

    def _item(self, idx: int) -> tuple[Tensor, Tensor]:
        image, label = self._base[idx]
        inspected, found = self._inspected[self._case_ids[idx]].shape, tuple(label.shape[1:])
        if not self._shape_is_given and inspected != found:
            raise BadInputError(
                f"{self._case_ids[idx]}: the dataset's transforms change its shape from {inspected} to {found}, so the "
                "foreground size of the inspection does not apply; give roi_shape"
            )
        return image, label

    def _foreground(self, ids: NDArray[np.integer]) -> NDArray[np.bool_]:
        return ids > 0 if self._ignore_label is None else (ids > 0) & (ids != self._ignore_label)

    def _cropped(self, image: Tensor, label: Tensor, start: NDArray[np.int64]) -> tuple[MetaTensor, MetaTensor]:
        fill = 0 if self._ignore_label is None else self._ignore_label
        return _cut(image, start, self._roi_shape, fill=0.0), _cut(label, start, self._roi_shape, fill=fill)


class RandomROIDataset(ROIDataset):
    """Random crops of a fixed shape, an exact share of them centred on a voxel of a uniformly chosen class.

    A crop is a function of seed, epoch and index, for any sampler, batch size and number of workers. A trainer sets the
    epoch; in a loop of your own call ``set_epoch``, or every epoch has the same crops. Indices beyond the length are
    valid, too, so an ``EpochSampler`` may have any number of samples.

    Random transforms, including those of the wrapped dataset, are seeded for each crop if they have MONAI's
    ``set_random_state``, as a `JointTransform` has.

    The other arguments are those of `ROIDataset`. Centres may be taken from the inspection's ``class_places``; with an
    ignore label, crops off the foreground are centred on a voxel of another id.

    Args:
        foreground_share: The share of crops centred on foreground, 0 to 1.
        patches_per_case: Crops of each case in an epoch.
        seed: Seed of all random numbers.

    Raises:
        BadInputError: If the inspection lacks a case, or an option is out of range.
    """

    def __init__(
        self,
        base: SupervisedDataset,
        inspection: Fingerprint | None = None,
        *,
        roi_shape: Sequence[int] | None = None,
        percentile: float = 0.95,
        min_factor: int = 1,
        ignore_label: int | None = None,
        transform: PairTransform | None = None,
        foreground_share: float = 0.33,
        patches_per_case: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(
            base,
            inspection,
            roi_shape=roi_shape,
            percentile=percentile,
            min_factor=min_factor,
            ignore_label=ignore_label,
            transform=transform,
        )
        if not 0 <= foreground_share <= 1:
            raise BadInputError(f"foreground_share must be from 0 to 1, got {foreground_share}")
        if patches_per_case < 1:
            raise BadInputError(f"patches_per_case must be 1 or more, got {patches_per_case}")
        self._foreground_share = foreground_share
        self._patches_per_case = patches_per_case
        self._seed = seed
        self._start_anew()

    def __len__(self) -> int:
        """Return the number of crops in an epoch."""
        return len(self._case_ids) * self._patches_per_case

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the crops of one epoch."""
        return (self[index] for index in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch for the indices, from 0, also for running workers."""
        self._epoch.fill_(epoch)

    def draw(self, index: int) -> PatchDraw:
        """Return the case of a crop in this epoch and whether it is on foreground, without cutting it."""
        return self._order.draw(self._number(index))

    @override
    def load(self, idx: int) -> tuple[MetaTensor, MetaTensor]:
        return self._drawn(idx, np.random.default_rng([self._seed, self._number(idx)]))

    @override
    def __getitem__(self, idx: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self._seed, self._number(idx)])
        image, label = self._drawn(idx, rng)
        seed = getattr(self._transform, "set_random_state", None)
        if seed is not None:
            seed(seed=int(rng.integers(1 << 32)))
        return self._transformed(image, label)

    def _number(self, index: int) -> int:
        if index < 0:
            raise IndexError(f"a crop's index is 0 or more, got {index}")
        return int(self._epoch) * len(self) + index

    def _drawn(self, index: int, rng: np.random.Generator) -> tuple[MetaTensor, MetaTensor]:
        drawn = self.draw(index)
        seed = int(rng.integers(1 << 32))
        image, label = self._item(SeededIndex(self._case_ids.index(drawn.case_id), seed))
        ids = _ids(label)
        centre = self._centre(self._inspected[drawn.case_id], ids, drawn.on_foreground, rng)
        if centre is None:
            start = start_anywhere(ids.shape, self._roi_shape, rng)
        else:
            start = start_around(centre, ids.shape, self._roi_shape)
        image, label = self._cropped(image, label, start)
        for tensor in (image, label):
            tensor.meta["case_id"] = drawn.case_id
        return image, label

    def _centre(
        self, case: CaseFingerprint, ids: NDArray[np.integer], on_foreground: bool, rng: np.random.Generator
    ) -> NDArray[np.int64] | None:
        if not on_foreground:
            return None if self._ignore_label is None else _any_voxel(ids != self._ignore_label, rng)
        wanted = self._classes(case)
        chosen = wanted[int(rng.integers(len(wanted)))]
        places = case.class_places.get(chosen)
        if places:
            place = places[int(rng.integers(len(places)))]
            if all(p < size for p, size in zip(place, ids.shape, strict=True)) and ids[place] == chosen:
                return np.array(place)
        found = _any_voxel(ids == chosen, rng)  # a transform may have moved the class, or removed it
        return _any_voxel(self._foreground(ids), rng) if found is None else found

    def _classes(self, case: CaseFingerprint) -> list[int]:
        return sorted(index for index in case.class_voxels if index not in (0, self._ignore_label))

    @override
    def _around(self, base: SupervisedDataset) -> Self:
        new = super()._around(base)
        new._start_anew()
        return new

    def _start_anew(self) -> None:
        self._order = DrawOrder(
            self._case_ids,
            [bool(self._classes(self._inspected[case_id])) for case_id in self._case_ids],
            foreground_share=self._foreground_share,
            seed=self._seed,
        )
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]


def _any_voxel(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64] | None:
    found = np.flatnonzero(mask)
    return np.array(np.unravel_index(found[rng.integers(len(found))], mask.shape)) if len(found) else None


def _ids(label: Tensor) -> NDArray[np.integer]:
    return plain_tensor(label)[0].detach().cpu().numpy()


def _cut(tensor: Tensor, start: NDArray[np.int64], shape: Shape, *, fill: float) -> MetaTensor:
    box = cut(plain_tensor(tensor).detach(), start, shape, fill=fill)
    if not isinstance(tensor, MetaTensor):
        return MetaTensor(box)
    affine = tensor.affine.detach().clone()
    rank = min(len(start), len(affine) - 1)
    affine[:-1, -1] += affine[:-1, :rank] @ torch.as_tensor(start[:rank], dtype=affine.dtype, device=affine.device)
    return MetaTensor(box, meta={**copy.deepcopy(tensor.meta), "affine": affine})
