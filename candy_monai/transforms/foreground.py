"""MONAI's transforms of the foreground where they fail or are slow: the crop to it, and its largest component."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
import torch
from monai.data import MetaTensor, get_track_meta
from monai.transforms import (
    CropForeground,
    CropForegroundd,
    KeepLargestConnectedComponent,
    KeepLargestConnectedComponentd,
)
from monai.utils import convert_to_tensor
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray


class CropForegroundIfAny(CropForeground):
    """MONAI's ``CropForeground``, which keeps an image without foreground whole instead of cropping it to nothing.

    Arguments and results are those of ``CropForeground``; an image of zeros is one that a scanner did write.
    """

    def compute_bounding_box(self, img: Tensor) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """Return the first voxel of the box and its end."""
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
    """MONAI's ``KeepLargestConnectedComponent``, which needs no scikit-image for a map of label ids.

    The arguments are those of MONAI's, which looks for the parts of each class in the whole map; this one in the
    class's bounding box. Of equally large parts the first one is kept. One-hot maps, several parts a class and unions
    of classes are left to MONAI's.
    """

    def __call__(self, img: Any) -> Any:
        """Return the map ``(C, *spatial)`` with everything 0 but the largest part of each class; the input stays."""
        is_onehot = len(img) > 1 if self.is_onehot is None else self.is_onehot
        if is_onehot or not self.independent or self.num_components != 1:
            return super().__call__(img)
        kept: Tensor = convert_to_tensor(img, track_meta=get_track_meta()).clone()
        ids = kept.cpu().numpy().astype(np.int32)[0]
        touching = scipy.ndimage.generate_binary_structure(ids.ndim, self.connectivity or ids.ndim)
        for label, box in enumerate(scipy.ndimage.find_objects(ids), start=1):
            if box is None or (self.applied_labels is not None and label not in self.applied_labels):
                continue
            parts, count = scipy.ndimage.label(ids[box] == label, structure=touching)
            if count > 1:
                largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
                others = torch.from_numpy((parts > 0) & (parts != largest))
                kept[0][box].masked_fill_(others.to(kept.device), 0)
        return kept


class KeepLargestComponentd(KeepLargestConnectedComponentd):
    """Dictionary form of `KeepLargestComponent`: arguments are those of MONAI's ``KeepLargestConnectedComponentd``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        cleaner = KeepLargestComponent()
        cleaner.__dict__.update(vars(self)["converter"].__dict__)  # built by MONAI from the arguments
        self.converter = cleaner
