from __future__ import annotations

import pytest
import torch

from candy_monai.nn.losses import DiceBCELossWithLogits
from candy_monai.nn.regions import RegionLoss, paint_regions, region_masks

WHOLE, CORE = (1, 2, 3), (2, 3)
LABELS = torch.tensor([[[[0, 1], [2, 4]]]])


def test_a_mask_is_one_where_the_label_is_one_of_the_regions_ids():
    masks = region_masks(LABELS, [WHOLE, CORE])
    assert masks.tolist() == [[[[0, 1], [1, 0]], [[0, 0], [1, 0]]]]


def test_ignored_voxels_keep_their_id_in_every_mask():
    masks = region_masks(LABELS, [WHOLE, CORE], ignore_index=4)
    assert masks[0, :, 1, 1].tolist() == [4, 4]


def test_later_regions_are_painted_over_earlier_ones():
    logits = torch.tensor([[[[1.0, 1.0, -1.0, -1.0]], [[-1.0, 1.0, 1.0, -1.0]]]])
    assert paint_regions(logits, (5, 7)).tolist() == [[[[5, 7, 7, 0]]]]


def test_as_many_channels_as_regions_are_needed():
    with pytest.raises(ValueError, match="expected 2 regions"):
        paint_regions(torch.zeros(1, 3, 2, 2), (1, 2))


def test_the_loss_of_ids_is_the_criterions_loss_of_the_masks():
    logits = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    criterion = DiceBCELossWithLogits(2)
    loss, parts = RegionLoss(criterion, [WHOLE, CORE])(logits, LABELS)
    expected, _ = criterion(logits, torch.tensor([[[[0, 1], [1, 0]], [[0, 0], [1, 0]]]]))
    assert loss == expected
    assert set(parts) == {"soft dice", "bce loss"}


def test_ignored_voxels_change_no_loss():
    criterion = RegionLoss(DiceBCELossWithLogits(2, ignore_index=4), [WHOLE, CORE], ignore_index=4)
    logits = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[..., 1, 1] = 9.0
    assert criterion(logits, LABELS)[0] == criterion(other, LABELS)[0]


def test_perfect_logits_cost_next_to_nothing():
    masks = region_masks(LABELS, [WHOLE, CORE]).float()
    loss, _ = RegionLoss(DiceBCELossWithLogits(2), [WHOLE, CORE])(40 * masks - 20, LABELS)
    assert loss < 1e-4
