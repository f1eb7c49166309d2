"""MONAI's largest connected component, by SciPy alone and class by class in the class's own box."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from monai.config import KeysCollection
from monai.data import get_track_meta
from monai.transforms import KeepLargestConnectedComponent, MapTransform
from monai.utils import convert_to_tensor
from torch import Tensor


class KeepLargestComponent(KeepLargestConnectedComponent):
    """MONAI's ``KeepLargestConnectedComponent``, which needs no scikit-image for a map of label ids.

    MONAI's looks for the parts of each class in the whole map; this one in the class's bounding box. Of equally large
    parts the first one is kept. One-hot maps, several parts a class and unions of classes are left to MONAI's.

    Args:
        applied_labels: The ids to look at; None for all but 0.
        is_onehot: Whether each channel is a mask; None for so where there are several.
        independent: False to take the ids for one foreground.
        connectivity: 1 for voxels that share a face, up to the number of axes for those that touch by a corner, as
            None does.
        num_components: How many parts of each class to keep.
    """

    def __init__(
        self,
        applied_labels: Sequence[int] | int | None = None,
        is_onehot: bool | None = None,
        independent: bool = True,
        connectivity: int | None = None,
        num_components: int = 1,
    ) -> None:
        super().__init__(applied_labels, is_onehot, independent, connectivity, num_components)

    def __call__(self, img: Any) -> Any:
        """Return the map ``(C, *spatial)`` with everything 0 but the largest part of each class; the input stays."""
        is_onehot = len(img) > 1 if self.is_onehot is None else self.is_onehot
        if is_onehot or not self.independent or self.num_components != 1:
            return super().__call__(img)
        kept: Tensor = convert_to_tensor(img, track_meta=get_track_meta()).clone()
        ids = kept.cpu().numpy().astype(np.int32)[0]
        applied = None if self.applied_labels is None else set(self.applied_labels)
        touching = scipy.ndimage.generate_binary_structure(ids.ndim, self.connectivity or ids.ndim)
        for label, box in enumerate(scipy.ndimage.find_objects(ids), start=1):
            if box is None or (applied is not None and label not in applied):
                continue
            parts, count = scipy.ndimage.label(ids[box] == label, structure=touching)
            if count > 1:
                largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
                others = torch.from_numpy((parts > 0) & (parts != largest))
                kept[0][box].masked_fill_(others.to(kept.device), 0)
        return kept


class KeepLargestComponentd(MapTransform):
    """Dictionary form of `KeepLargestComponent`.

    Args:
        keys: The label maps.
        applied_labels: The ids to look at; None for all but 0.
        is_onehot: Whether each channel is a mask; None for so where there are several.
        independent: False to take the ids for one foreground.
        connectivity: See `KeepLargestComponent`.
        num_components: How many parts of each class to keep.
        allow_missing_keys: Whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        applied_labels: Sequence[int] | int | None = None,
        is_onehot: bool | None = None,
        independent: bool = True,
        connectivity: int | None = None,
        num_components: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.converter = KeepLargestComponent(applied_labels, is_onehot, independent, connectivity, num_components)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with those of the keys cleaned."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.converter(d[key])
        return d
