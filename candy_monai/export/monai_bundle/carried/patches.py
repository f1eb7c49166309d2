"""Choose where training patches are cut."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable


class RandCenterd(Randomizable, MapTransform):
    """Choose a foreground voxel for a fraction of the patches, and None, which means anywhere, for the others.

    Args:
        keys: The label map, ``(1, *spatial)`` ids.
        center_key: The key of the voxel, ``(num_dims)`` indices or None, for ``RandWarpd(center_key=...)``.
        foreground_share: The fraction of patches that are centred on a labelled voxel.
        ignore_label: An id that is not foreground.
    """

    def __init__(
        self,
        keys: KeysCollection,
        center_key: str = "center",
        foreground_share: float = 0.33,
        ignore_label: int | None = None,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.center_key = center_key
        self.foreground_share = foreground_share
        self.ignore_label = ignore_label

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with the voxel under ``center_key``."""
        d = dict(data)
        label = d[self.first_key(d)]
        ids = (label.as_tensor() if isinstance(label, MetaTensor) else label)[0]
        d[self.center_key] = None
        if self.R.random_sample() < self.foreground_share:
            mask = ids > 0 if self.ignore_label is None else (ids > 0) & (ids != self.ignore_label)
            labelled = torch.nonzero(mask)
            if len(labelled):
                d[self.center_key] = labelled[int(self.R.randint(len(labelled)))].tolist()
        return d
