from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.metrics import compute_dice, compute_iou
from torch.nn.functional import one_hot

from candy_monai.metrics import overlap
from candy_monai.metrics.overlap import dice_per_class, dice_per_region, iou_per_class, labels_from_logits, mean_dice

NAN = float("nan")


def case(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([rows])


def hot(ids: torch.Tensor, num_classes: int) -> torch.Tensor:
    return one_hot(ids[:, 0].long(), num_classes).movedim(-1, 1)


def close(result: torch.Tensor, expected: list) -> bool:
    return np.allclose(result.numpy(), np.array(expected), atol=1e-6, equal_nan=True)


def test_dice_and_iou_by_hand():
    prediction, reference = case([[1, 1, 0, 2]]), case([[1, 0, 0, 2]])
    assert close(dice_per_class(prediction, reference, 3), [2 * 1 / (2 + 1), 1.0])
    assert close(iou_per_class(prediction, reference, 3), [1 / 2, 1.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">i4", np.uint64, np.float32])
def test_arrays_are_measured_as_tensors_are(dtype):
    prediction, reference = case([[1, 1, 0, 2]]), case([[1, 0, 0, 2]])
    arrays = [ids.numpy().astype(dtype) for ids in (prediction, reference)]
    for measure in (dice_per_class, iou_per_class, mean_dice):
        expected = measure(prediction, reference, 3)
        assert torch.equal(measure(*arrays, 3), expected)
        assert torch.equal(measure(prediction, arrays[1], 3, ignore_index=7), expected)
    assert torch.equal(dice_per_region(*arrays, [[1, 2]]), dice_per_region(prediction, reference, [[1, 2]]))
    logits = hot(prediction[None], 3)
    assert torch.equal(labels_from_logits(logits.numpy(), num_classes=3), labels_from_logits(logits, num_classes=3))


def test_a_class_absent_from_both_is_nan_and_left_out_of_the_mean():
    prediction, reference = case([[1, 1, 0, 0]]), case([[1, 0, 0, 0]])
    assert close(dice_per_class(prediction, reference, 3), [2 / 3, NAN])
    assert mean_dice(prediction, reference, 3).item() == pytest.approx(2 / 3)


def test_a_class_in_only_one_of_the_two_scores_zero():
    assert close(dice_per_class(case([[1, 0]]), case([[0, 2]]), 3), [0.0, 0.0])


def test_a_case_without_any_foreground_has_no_score():
    empty = case([[0, 0]])
    assert math.isnan(mean_dice(empty, empty, 3).item())


def test_the_background_is_scored_only_when_asked():
    prediction, reference = case([[0, 0, 1]]), case([[0, 1, 1]])
    assert close(dice_per_class(prediction, reference, 2), [2 / 3])
    assert close(dice_per_class(prediction, reference, 2, include_background=True), [2 / 3, 2 / 3])


def test_one_class_means_a_binary_task():
    assert close(dice_per_class(case([[1, 1, 0]]).bool(), case([[1, 0, 0]]), 1), [2 / 3])


@pytest.mark.parametrize("ignore", [-1, 2, 255])
def test_ignored_voxels_count_neither_for_nor_against(ignore):
    prediction, reference = case([[1, 0, 1, 1]]), case([[1, 0, ignore, ignore]])
    assert close(dice_per_class(prediction, reference, 2, ignore_index=ignore), [1.0])


MEASURES = [dice_per_class, iou_per_class, mean_dice, lambda p, r, n, **o: dice_per_region(p, r, [range(1, n)], **o)]


@pytest.mark.parametrize("measure", MEASURES[:3])
@pytest.mark.parametrize("which", [0, 1])
def test_an_id_that_is_no_class_is_refused(measure, which):
    maps = [case([[1, 9]]), case([[1, 1]])]
    with pytest.raises(ValueError, match=r"holds the label id 9, but with num_classes=2 .*num_classes=10"):
        measure(maps[which], maps[1 - which], 2)


def test_without_the_check_an_id_that_is_no_class_matches_nothing():
    assert close(dice_per_class(case([[1, 9]]), case([[1, 9]]), 2, check_ids=False), [1.0])
    assert close(dice_per_class(case([[1, 1]]), case([[1, 9]]), 2, check_ids=False), [2 / 3])


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("value", [0.99, NAN, -1.0])
def test_probabilities_and_other_values_that_are_no_ids_are_refused(measure, value):
    maps = [case([[0, 1]]) * value, case([[0, 1]])]
    for one, other in (maps, reversed(maps)):
        with pytest.raises(ValueError, match=r"holds (fractions|NaN|-1)"):
            measure(one, other, 2)


def test_255_in_a_byte_is_not_the_ignored_minus_1():
    reference = case([[1, 255, 0]]).to(torch.uint8)
    found = dice_per_class(reference, reference, 256, ignore_index=-1)
    assert close(found[[0, 254]], [1.0, 1.0])
    assert close(dice_per_region(reference, reference, [[1, 255]], ignore_index=-1), [1.0])


@given(seed=st.integers(0, 2**16), num_classes=st.integers(2, 6), dims=st.sampled_from([2, 3]))
@settings(max_examples=25)
def test_batches_agree_with_monai_wherever_monai_has_a_score(seed, num_classes, dims):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 1, 4, 5, 3)[: 2 + dims]
    prediction, reference = (torch.randint(0, num_classes, shape, generator=generator) for _ in range(2))
    theirs = hot(prediction, num_classes), hot(reference, num_classes)
    for ours, monais in ((dice_per_class, compute_dice), (iou_per_class, compute_iou)):
        result = ours(prediction, reference, num_classes, include_background=True)
        expected = monais(*theirs, include_background=True, ignore_empty=True)
        scored = ~expected.isnan()  # MONAI gives no score wherever the reference lacks the class
        assert torch.allclose(result[scored], expected[scored].float(), atol=1e-6)


def test_a_batch_scores_each_case_as_if_alone():
    prediction, reference = (torch.randint(0, 4, (3, 1, 4, 4, 4)) for _ in range(2))
    alone = [dice_per_class(p, r, 4) for p, r in zip(prediction, reference, strict=True)]
    assert torch.equal(dice_per_class(prediction, reference, 4), torch.stack(alone))
    assert mean_dice(prediction, reference, 4).shape == (3,)


@pytest.mark.parametrize(
    ("shape", "batched", "expected"),
    [
        ((1, 4, 4), None, (2,)),
        ((1, 4, 4, 4), None, (2,)),
        ((2, 1, 4, 4), None, (2, 2)),
        ((2, 1, 4, 4, 4), None, (2, 2)),
        ((1, 1, 4, 4), None, (1, 2)),
        ((1, 1, 4, 4), False, (2,)),
    ],
)
def test_cases_and_batches_are_told_apart(shape, batched, expected):
    ids = torch.ones(shape, dtype=torch.uint8)
    assert dice_per_class(ids, ids, 3, batched=batched).shape == expected


def test_counting_in_pieces_changes_nothing(monkeypatch):
    prediction, reference = (torch.randint(0, 4, (2, 1, 7, 9)) for _ in range(2))
    whole = dice_per_class(prediction, reference, 4)
    monkeypatch.setattr(overlap, "_COUNTED_AT_ONCE", 10)
    assert torch.equal(dice_per_class(prediction, reference, 4), whole)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32])
def test_ids_of_any_number_type_and_meta_tensors_score_the_same(dtype):
    ids = torch.randint(0, 200, (1, 6, 6))
    result = dice_per_class(MetaTensor(ids.to(dtype)), ids, 200)
    assert type(result) is torch.Tensor
    assert torch.equal(result.nan_to_num(-1), dice_per_class(ids, ids, 200).nan_to_num(-1))


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4, 4), (2, 4, 4)])
def test_shapes_that_are_no_label_ids_are_refused(shape):
    with pytest.raises(ValueError, match="label ids"):
        dice_per_class(torch.zeros(shape), torch.zeros(shape), 2)


def test_prediction_and_reference_of_different_shapes_are_refused_naming_both():
    with pytest.raises(ValueError, match=r"\(1, 4, 4\) and \(1, 4, 5\)"):
        dice_per_class(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), 2)


def test_one_logit_is_foreground_above_zero():
    logits = torch.tensor([[[[-0.1, 0.0, 0.2, 3.0]]]])
    assert labels_from_logits(logits, num_classes=1).tolist() == [[[[0, 0, 1, 1]]]]


def test_several_logits_are_the_largest_channel():
    logits = torch.tensor([[[[5.0, -1.0]], [[4.0, -2.0]], [[6.0, -3.0]]]])
    assert labels_from_logits(logits, num_classes=3).tolist() == [[[[2, 0]]]]


def test_a_single_case_has_its_channels_first():
    assert labels_from_logits(torch.zeros(3, 4, 5), num_classes=3, channel_dim=0).shape == (1, 4, 5)


def test_perfect_logits_score_one():
    ids = torch.randint(0, 3, (2, 1, 5, 5))
    predicted = labels_from_logits(hot(ids, 3).float() * 8 - 4, num_classes=3)
    assert dice_per_class(predicted, ids, 3, include_background=True).nanmean().item() == 1.0


def test_more_ids_than_a_byte_holds_are_kept():
    logits = torch.zeros(1, 300, 1, 1)
    logits[:, 299] = 1
    assert labels_from_logits(logits, num_classes=300).item() == 299


def test_logits_with_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="expected 3 channels"):
        labels_from_logits(torch.zeros(1, 2, 4, 4), num_classes=3)


def test_the_dice_of_a_region_is_that_of_the_union_of_its_ids():
    reference = torch.tensor([[0, 1, 2, 2]])[None]
    prediction = torch.tensor([[0, 2, 2, 0]])[None]
    whole, core = dice_per_region(prediction, reference, [(1, 2), (2,)])
    assert float(whole) == pytest.approx(2 * 2 / (2 + 3))  # 2 in both, 2 predicted, 3 referenced
    assert float(core) == pytest.approx(2 * 1 / (2 + 2))


def test_an_id_that_the_labels_type_cannot_hold_is_in_no_voxel():
    ids = torch.tensor([[[0, 1, 1]]], dtype=torch.uint8)
    (score,) = dice_per_region(ids, ids, [(257,)])  # 257 wraps to 1 in a byte
    assert score.isnan()


def test_ignored_voxels_count_in_no_region_and_an_absent_region_has_no_score():
    reference = torch.tensor([[[0, 1, 3, 3]]])
    prediction = torch.tensor([[[0, 1, 1, 1]]])
    whole, core = dice_per_region(prediction, reference, [(1, 2), (2,)], ignore_index=3)
    assert whole == 1
    assert core.isnan()
