"""The first step of preprocessing where we build it: our readers instead of MONAI's, or a case that is read already."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from candy_monai.data.images.reading import read_channels
from candy_monai.data.pipelines.description import LABEL


class LoadCased(MapTransform):
    """Load the files of a case, channel first, as `load_image` does; what is a tensor already stays as it is.

    Args:
        keys: Where the files stand: a path, or a list of paths, a channel each. Under ``label`` stand label ids.
        allow_missing_keys: Whether a key may be missing.
        stock: Further arguments of MONAI's ``LoadImaged``, which our readers do without.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **stock: object) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with tensors ``(C, *spatial)`` in place of the files of the keys.

        Raises:
            ImageReadError: If a file does not decode, or the grids of the channels cover other places.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            if not isinstance(d[key], torch.Tensor):
                paths = [d[key]] if isinstance(d[key], str | Path) else d[key]
                d[key] = read_channels(paths, is_label=key == LABEL).tensor()
        return d
