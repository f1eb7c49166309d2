"""Datasets in memory, as far as inspection needs one."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from monai.data import MetaTensor

from candy_monai.data.datasets.nnunet_description import NNUNetCase
from candy_monai.data.images.reading import Scan


class MemoryDataset:
    """Cases in memory; their files exist only where a test writes them."""

    def __init__(self, cases, *, channel_names=("MRI",), labels=None, ignore_label=None, region_order=None, files=None):
        self._cases = cases
        self.cases = tuple(
            NNUNetCase(case_id=case_id, images=tuple((files or {}).get(case_id, ())), label=None) for case_id in cases
        )
        self.description = SimpleNamespace(
            name="Memory",
            channel_names=channel_names,
            labels=labels or {"background": 0, "organ": 1},
            ignore_label=ignore_label,
            regions_class_order=region_order,
            has_regions=region_order is not None,
        )

    def read(self, idx):
        return tuple(Scan.of(tensor) for tensor in self._cases[self.cases[idx].case_id])


def case(image, label, affine=None):
    image = torch.as_tensor(image, dtype=torch.float32)
    affine = torch.eye(4, dtype=torch.float64) if affine is None else torch.as_tensor(affine, dtype=torch.float64)
    return MetaTensor(image, affine=affine), MetaTensor(torch.as_tensor(label, dtype=torch.int64), affine=affine)


def ramp_case():
    """Return intensities 1 .. 24 with ids 1 on the first two voxels and 2 on the third."""
    label = torch.zeros(1, 2, 3, 4)
    label[0, 0, 0, :3] = torch.tensor([1.0, 1.0, 2.0])
    return case(torch.arange(1.0, 25.0).view(1, 2, 3, 4), label)
