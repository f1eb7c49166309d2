"""The first step of preprocessing where we build it: our readers instead of MONAI's, or a case that is read already."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from candy_monai.data.images.reading import read_scan
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
            ImageReadError: If a file does not decode.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            if not isinstance(d[key], torch.Tensor):
                d[key] = _loaded(d[key], is_label=key == LABEL)
        return d


def _loaded(files: str | Path | Sequence[str | Path], *, is_label: bool) -> MetaTensor:
    paths = [files] if isinstance(files, str | Path) else list(files)
    parts = [read_scan(path, is_label=is_label).tensor() for path in paths]
    if len(parts) == 1:
        return parts[0]
    return MetaTensor(torch.cat([part.as_tensor() for part in parts]), meta=parts[0].meta)
