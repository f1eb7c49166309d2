"""Small label maps, as tensors and as files."""

import numpy as np
import torch
from monai.data import MetaTensor

from candy_monai.data.images.writing import save_image


def ids(*rows):
    return torch.tensor([rows])


def blobs(seed, shape=(24, 20, 16), num_classes=3):
    """Return overlapping boxes of ids, different for each seed."""
    rng = np.random.default_rng(seed)
    label = torch.zeros(1, *shape, dtype=torch.int64)
    for index in range(1, num_classes):
        start = rng.integers(0, 6, len(shape))
        label[(0, *(slice(s, s + 7) for s in start))] = index
    return label


def written(folder, cases, suffix=".nii.gz", affine=None):
    affine = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64)) if affine is None else affine
    for case_id, label in cases.items():
        save_image(MetaTensor(label, affine=affine), folder / f"{case_id}{suffix}")
    return folder
