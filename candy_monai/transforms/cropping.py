"""MONAI's crop to the foreground, for images that may have none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import CropForeground, CropForegroundd
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
