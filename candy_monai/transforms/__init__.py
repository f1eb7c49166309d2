"""MONAI transforms for cases in which MONAI's own are incorrect or too slow; measurements are in their docstrings.

The inputs and outputs are dictionaries of ``MetaTensor``, as for any MONAI transform; invertible ones have an
``inverse``. They import only PyTorch, MONAI, NumPy and SciPy, so that a bundle can include these modules.
"""

from candy_monai.transforms.degradation import (
    RandBlur,
    RandBlurd,
    RandGamma,
    RandGammad,
    RandLowResolution,
    RandLowResolutiond,
)
from candy_monai.transforms.foreground import (
    CropForegroundIfAny,
    CropForegroundIfAnyd,
    KeepLargestComponent,
    KeepLargestComponentd,
    RemoveSmallComponents,
    RemoveSmallComponentsd,
)
from candy_monai.transforms.normalization import NormalizeForeground, NormalizeForegroundd
from candy_monai.transforms.painting import PaintLabels, PaintLabelsd
from candy_monai.transforms.resampling import ResampleToSpacing, ResampleToSpacingd
from candy_monai.transforms.warping import RandWarp, RandWarpd

__all__ = [
    "CropForegroundIfAny",
    "CropForegroundIfAnyd",
    "KeepLargestComponent",
    "KeepLargestComponentd",
    "NormalizeForeground",
    "NormalizeForegroundd",
    "PaintLabels",
    "PaintLabelsd",
    "RandBlur",
    "RandBlurd",
    "RandGamma",
    "RandGammad",
    "RandLowResolution",
    "RandLowResolutiond",
    "RandWarp",
    "RandWarpd",
    "RemoveSmallComponents",
    "RemoveSmallComponentsd",
    "ResampleToSpacing",
    "ResampleToSpacingd",
]
