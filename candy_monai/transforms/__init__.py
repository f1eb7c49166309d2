"""MONAI transforms for what MONAI's own do not do right or fast enough; each says what was measured.

Dictionaries of ``MetaTensor`` enter and leave, as with any transform of MONAI's; those that can be undone have an
``inverse``. They import only PyTorch, MONAI, NumPy and SciPy, so that a bundle can carry these modules along.
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
