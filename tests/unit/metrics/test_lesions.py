import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.metrics.lesions import LESION_METRICS, LesionRule, lesion_metrics

BRATS = LesionRule.of("brats,dilation=1,least_mm3=3")


def boxes(*corners, shape=(24, 24)):
    """Return a mask of boxes, each by its first corner and its size along every axis."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for corner, size in corners:
        mask[tuple(slice(first, first + length) for first, length in zip(corner, size, strict=True))] = True
    return mask


def scattered(seed, shape=(20, 20, 16)):
    """Return two maps of many lesions, some in both, split, joined, missed or made up."""
    draw = np.random.RandomState(seed)
    prediction, reference = np.zeros(shape, bool), np.zeros(shape, bool)
    for _ in range(14):
        at, size = draw.randint(0, 13, 3), draw.randint(1, 5, 3)
        there = tuple(slice(a, a + s) for a, s in zip(at, size, strict=True))
        moved = tuple(slice(a, a + s) for a, s in zip(at + draw.randint(0, 2, 3), size, strict=True))
        kind = draw.randint(0, 4)
        reference[there] |= kind != 1
        prediction[moved] |= kind != 2
    return torch.from_numpy(prediction), torch.from_numpy(reference)


def test_probabilities_are_no_masks_of_lesions():
    mask = boxes(((1, 1), (4, 4)))
    with pytest.raises(BadInputError, match="the prediction holds fractions"):
        lesion_metrics(mask * 0.4, mask)
    with pytest.raises(BadInputError, match="a positive number for each axis"):
        lesion_metrics(mask, mask, spacing_mm=(1.0,))
    with pytest.raises(BadInputError, match="unknown lesion metric 'lesion_f2'; expected any of lesion_f1"):
        lesion_metrics(mask, mask, ["lesion_f2"])
    with pytest.raises(BadInputError, match="the reference holds 2 ids, such as 1 and 2"):
        lesion_metrics(mask, mask + boxes(((2, 2), (1, 1))).byte())


def test_lesions_are_matched_one_to_one_by_their_intersection_over_union():
    reference = boxes(((1, 1), (4, 4)), ((10, 10), (4, 4)), ((18, 18), (2, 2)))
    prediction = boxes(((1, 1), (4, 3)), ((10, 13), (4, 4)), ((18, 1), (2, 2)))  # found, shifted too far, made up
    found = lesion_metrics(prediction, reference)
    assert found == {
        "lesion_f1": pytest.approx(2 / 6),
        "lesion_recall": pytest.approx(1 / 3),
        "lesion_precision": pytest.approx(1 / 3),
        "lesion_false_positives": 2.0,
        "lesion_dice": pytest.approx(24 / 28 / 5),
        "lesion_matched_dice": pytest.approx(24 / 28),
    }
    assert lesion_metrics(prediction, reference, rule=LesionRule(iou=0.1))["lesion_recall"] == pytest.approx(2 / 3)


def test_an_overlap_of_just_the_threshold_is_a_match_and_the_best_pair_comes_first():
    reference = boxes(((0, 0), (2, 6)))
    prediction = boxes(((0, 0), (2, 3)), ((0, 4), (2, 2)))
    found = lesion_metrics(prediction, reference, rule=LesionRule(iou=0.5))
    assert (found["lesion_recall"], found["lesion_false_positives"]) == (1.0, 1.0)
    assert found["lesion_matched_dice"] == pytest.approx(2 * 6 / 18)


def test_lesions_that_touch_at_a_corner_are_one_unless_faces_alone_connect():
    both = boxes(((2, 2), (2, 2)), ((4, 4), (2, 2)))
    alone = boxes(((2, 2), (2, 2)))
    assert lesion_metrics(alone, both)["lesion_recall"] == 1.0  # half of the one lesion
    assert lesion_metrics(alone, both, rule=LesionRule(connectivity="faces"))["lesion_recall"] == 0.5


@pytest.mark.parametrize("rule", [LesionRule(), LesionRule.of("brats")])
def test_what_is_undefined_is_nan_and_no_false_positive_is_a_number(rule):
    empty, one = boxes(), boxes(((5, 5), (9, 9)))
    neither = lesion_metrics(empty, empty, rule=rule)
    assert neither.pop("lesion_false_positives") == 0.0
    assert all(map(math.isnan, neither.values()))
    missed = lesion_metrics(empty, one, rule=rule)
    assert (missed["lesion_f1"], missed["lesion_recall"], missed["lesion_dice"]) == (0.0, 0.0, 0.0)
    assert math.isnan(missed["lesion_precision"])
    assert math.isnan(missed["lesion_matched_dice"])
    made_up = lesion_metrics(one, empty, rule=rule)
    assert (made_up["lesion_precision"], made_up["lesion_dice"], made_up["lesion_false_positives"]) == (0.0, 0.0, 1.0)
    assert math.isnan(made_up["lesion_recall"])


def test_lesions_of_the_reference_that_are_too_small_count_for_nothing_nor_does_what_hits_them():
    reference = boxes(((1, 1), (4, 4)), ((10, 10), (1, 2)), ((20, 20), (1, 1)))
    prediction = boxes(((1, 1), (4, 4)), ((10, 10), (1, 2)))
    rule = LesionRule(least_mm3=8.0)
    found = lesion_metrics(prediction, reference, rule=rule, spacing_mm=(2.0, 2.0))
    assert (found["lesion_f1"], found["lesion_false_positives"]) == (1.0, 0.0)
    kept = lesion_metrics(prediction, reference, rule=rule, spacing_mm=(3.0, 3.0))
    assert kept["lesion_recall"] == pytest.approx(2 / 3)


# tp, fp, fn, rq and sq_dsc of panoptica 2.1.7: ConnectedComponentsInstanceApproximator, NaiveThresholdMatching.
PANOPTICA = {
    0: (2, 4, 7, 0.266666667, 0.75),
    1: (0, 4, 7, 0.0, 0.0),
    2: (3, 6, 6, 0.333333333, 0.805555556),
    3: (4, 4, 3, 0.533333333, 0.767993367),
    4: (0, 6, 6, 0.0, 0.0),
    5: (1, 7, 8, 0.117647059, 1.0),
}


@pytest.mark.parametrize("seed", range(6))
def test_matched_by_iou_the_numbers_are_panoptica_s(seed):
    prediction, reference = scattered(seed)
    found = lesion_metrics(prediction, reference)
    tp, fp, fn, rq, sq_dice = PANOPTICA[seed]
    assert found["lesion_false_positives"] == fp
    assert found["lesion_recall"] == pytest.approx(tp / (tp + fn))
    assert found["lesion_precision"] == pytest.approx(tp / (tp + fp))
    assert found["lesion_f1"] == pytest.approx(rq)
    assert found["lesion_matched_dice"] == pytest.approx(sq_dice if tp else math.nan, nan_ok=True)  # there 0 of nothing


@pytest.mark.parametrize("seed", range(6))
def test_panoptica_itself_says_the_same(seed):
    panoptica = pytest.importorskip("panoptica")
    prediction, reference = scattered(seed)
    evaluator = panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(),
        instance_matcher=panoptica.NaiveThresholdMatching(),
    )
    result = evaluator.evaluate(prediction.numpy().astype(np.uint8), reference.numpy().astype(np.uint8))["ungrouped"]
    found = lesion_metrics(prediction, reference)
    assert found["lesion_false_positives"] == result.fp
    assert found["lesion_f1"] == pytest.approx(result.rq)
    assert found["lesion_matched_dice"] == pytest.approx(result.sq_dsc if result.tp else math.nan, nan_ok=True)


@pytest.mark.parametrize("seed", range(20))
def test_matched_by_dilation_the_numbers_are_those_of_brats(seed):
    prediction, reference = scattered(seed)
    hits, false, missed, dice = brats(prediction.numpy(), reference.numpy(), dilation=1, least=3)
    found = lesion_metrics(prediction, reference, rule=BRATS)
    assert found["lesion_false_positives"] == false
    assert found["lesion_recall"] == pytest.approx(hits / (hits + missed))
    assert found["lesion_dice"] == pytest.approx(dice)


def brats(prediction, reference, *, dilation, least):
    """Compute lesion by lesion what the BraTS challenges of 2023 published (TP, FP, FN, lesion-wise Dice)."""
    all_around, edges = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 2)
    components, num_components = ndimage.label(prediction, all_around)
    joined, num_lesions = ndimage.label(ndimage.binary_dilation(reference, edges, iterations=dilation), all_around)
    touched, hits, missed, scores = set(), 0, 0, []
    for number in range(1, num_lesions + 1):
        lesion = reference & (joined == number)
        around = ndimage.binary_dilation(lesion, edges, iterations=dilation)
        touching = set(np.unique(components[around])) - {0}
        touched |= touching
        if lesion.sum() <= least:
            continue
        predicted = np.isin(components, list(touching))
        hits, missed = hits + bool(touching), missed + (not touching)
        scores.append(2 * (predicted & lesion).sum() / (predicted.sum() + lesion.sum()))
    false = num_components - len(touched)
    return hits, false, missed, sum(scores) / (len(scores) + false)


def test_dilation_at_the_border_of_the_image_is_as_in_the_middle():
    at_border, shifted = boxes(((0, 0), (3, 3)), ((0, 5), (3, 3))), boxes(((9, 9), (3, 3)), ((9, 14), (3, 3)))
    one, other = boxes(((0, 0), (3, 3))), boxes(((9, 9), (3, 3)))
    rule = LesionRule(matching="dilation", dilation=1)
    assert lesion_metrics(one, at_border, rule=rule) == lesion_metrics(other, shifted, rule=rule)
    assert lesion_metrics(one, at_border, rule=rule)["lesion_recall"] == 1.0  # both are one, joined by the dilation


@pytest.mark.parametrize("name", LESION_METRICS)
def test_only_what_was_asked_for_is_returned(name):
    assert list(lesion_metrics(boxes(), boxes(), [name])) == [name]


def test_a_rule_is_read_from_text_and_says_what_it_is():
    assert LesionRule.of("panoptica") == LesionRule()
    assert LesionRule.of("iou=0.1, connectivity=faces") == LesionRule(iou=0.1, connectivity="faces")
    assert LesionRule.of("brats,dilation=1,least_mm3=2") == LesionRule(matching="dilation", dilation=1, least_mm3=2.0)
    assert "at least 0.1" in str(LesionRule(iou=0.1))
    assert "dilation of 3 voxels" in str(LesionRule.of("brats"))
    assert "larger than 50 mm3" in str(LesionRule.of("brats"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bratz", "unknown rule 'bratz'.*Did you mean 'brats'"),
        ("iou=much", "iou must be a number, got 'much'"),
        ("iou=0", "above 0 and at most 1"),
        ("dilation=0", "at least 1 voxel"),
        ("matching=distance", "one of iou, dilation"),
        ("connectivity=18", "one of full, faces"),
        ("least_mm3=-1", "0 or more"),
        ("iou=0.1,brats", "unknown rule 'brats'"),
        ("iou=0.1,iou=0.2", "iou is given twice"),
        ("brats,iou=0.1", "iou has no effect in 'brats,iou=0.1', which matches by dilation; .*begin with panoptica"),
        ("dilation=2", "dilation has no effect in 'dilation=2', which matches by iou; .*begin with brats"),
    ],
)
def test_a_rule_that_is_none_is_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        LesionRule.of(text)
