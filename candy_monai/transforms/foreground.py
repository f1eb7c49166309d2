"""Foreground transforms of MONAI, fixed or faster: the crop to it, its largest component and small components."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import (
    CropForeground,
    CropForegroundd,
    KeepLargestConnectedComponent,
    KeepLargestConnectedComponentd,
    MapTransform,
    Transform,
)
from monai.utils import convert_to_tensor
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CropForegroundIfAny(CropForeground):
    """MONAI's ``CropForeground``, but an image without foreground is kept instead of cropped to nothing.

    Arguments and results are those of ``CropForeground``; scanners do produce images of zeros.
    """

    def compute_bounding_box(self, img: Tensor) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Return the start and the end of the box in voxels."""
        start, end = super().compute_bounding_box(img)
        if np.all(end > start):
            return start, end
        shape = img.peek_pending_shape() if isinstance(img, MetaTensor) else img.shape[1:]
        return np.zeros(len(shape), dtype=np.int64), np.array([int(size) for size in shape])


class CropForegroundIfAnyd(CropForegroundd):
    """Dictionary form of `CropForegroundIfAny`: the arguments are those of MONAI's ``CropForegroundd``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        guarded = CropForegroundIfAny()
        guarded.__dict__.update(vars(self)["cropper"].__dict__)  # built by MONAI from the arguments
        self.cropper = guarded


class KeepLargestComponent(KeepLargestConnectedComponent):
    """MONAI's ``KeepLargestConnectedComponent``, without scikit-image for a map of label ids.

    The arguments are those of MONAI's, which searches the components of each class in the whole map; this one in the
    bounding box of the class. Of components of the same size the first one is kept. One-hot maps and several components
    per class are handled by MONAI's.
    """

    def __call__(self, img: Any) -> Any:
        """Return the map ``(C, *spatial)`` with only the largest component of each class; the input is not modified.

        With ``independent=False`` the union of the classes has one largest component.
        """
        is_onehot = len(img) > 1 if self.is_onehot is None else self.is_onehot
        if is_onehot or self.num_components != 1:
            return super().__call__(img)
        kept: Tensor = convert_to_tensor(img, track_meta=get_track_meta()).clone()
        for box, parts, count in _parts_of(kept, self.applied_labels, self.connectivity, together=not self.independent):
            if count > 1:
                largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
                _remove(kept, box, (parts > 0) & (parts != largest))
        return kept


class KeepLargestComponentd(KeepLargestConnectedComponentd):
    """Dictionary form of `KeepLargestComponent`: arguments are those of MONAI's ``KeepLargestConnectedComponentd``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cleaner = KeepLargestComponent()
        cleaner.__dict__.update(vars(self)["converter"].__dict__)  # built by MONAI from the arguments
        self.converter = cleaner


class RemoveSmallComponents(Transform):
    """Set connected components of classes in a map of label ids to 0 if they are smaller than a given size.

    MONAI's ``RemoveSmallObjects`` does this for masks, and for all classes of a map together
    (``independent_channels=False``); in a map of several ids it would treat each class as one object. This transform
    also supports single classes, and needs no scikit-image.

    Args:
        min_size: The minimum size of a component that is kept, in voxels.
        connectivity: As for MONAI's ``KeepLargestConnectedComponent``: None for voxels that share a face, an edge or a
            corner, 1 for a face.
        by_measure: Whether ``min_size`` is in the units of the spacing instead, such as mm³, if the map has one.
        applied_labels: The classes whose components are checked; None for all.
        independent: Whether components are those of each class, or of the union of the classes.
    """

    def __init__(
        self,
        min_size: float,
        connectivity: int | None = None,
        by_measure: bool = False,
        applied_labels: Sequence[int] | None = None,
        independent: bool = True,
    ) -> None:
        self.min_size = min_size
        self.connectivity = connectivity
        self.by_measure = by_measure
        self.applied_labels = None if applied_labels is None else tuple(applied_labels)
        self.independent = independent

    def __call__(self, img: Any) -> Tensor:
        """Return the map ``(1, *spatial)`` without these components; the input is not modified."""
        kept: Tensor = convert_to_tensor(img, track_meta=get_track_meta()).clone()
        least = self.min_size
        if self.by_measure and isinstance(img, MetaTensor):
            # Rounding of an affine must not remove a component of exactly this size.
            least = math.ceil(self.min_size / float(np.prod(img.pixdim.numpy())) - 1e-6)
        for box, parts, _ in _parts_of(kept, self.applied_labels, self.connectivity, together=not self.independent):
            is_small = np.bincount(parts.ravel()) < least
            is_small[0] = False
            if is_small.any():
                _remove(kept, box, is_small[parts])
        return kept


class RemoveSmallComponentsd(MapTransform):
    """Dictionary form of `RemoveSmallComponents`, whose options it has."""

    def __init__(
        self,
        keys: KeysCollection,
        min_size: float,
        connectivity: int | None = None,
        by_measure: bool = False,
        applied_labels: Sequence[int] | None = None,
        independent: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = RemoveSmallComponents(min_size, connectivity, by_measure, applied_labels, independent)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with the keys' maps replaced by maps without small components."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.converter(d[key])
        return d


def _parts_of(
    labels: Tensor, classes: Sequence[int] | None, connectivity: int | None, *, together: bool
) -> Iterator[tuple[tuple[slice, ...], NDArray[np.integer], int]]:
    """Yield the box of each class in a map ``(1, *spatial)``, its components, numbered from 1, and their number."""
    ids = labels.cpu().numpy().astype(np.int32)[0]
    touching = scipy.ndimage.generate_binary_structure(ids.ndim, connectivity or ids.ndim)
    if together:
        ids = (ids > 0 if classes is None else np.isin(ids, classes)).astype(np.int32)
    for label, box in enumerate(scipy.ndimage.find_objects(ids), start=1):
        if box is not None and (together or classes is None or label in classes):
            parts, count = scipy.ndimage.label(ids[box] == label, structure=touching)
            yield box, parts, count


def _remove(labels: Tensor, box: tuple[slice, ...], where: NDArray[np.bool_]) -> None:
    labels[0][box].masked_fill_(torch.from_numpy(where).to(labels.device), 0)
