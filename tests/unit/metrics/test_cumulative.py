import math

import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from monai.networks import one_hot

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.metrics.cumulative import OverlapMetric

# Two cases of one row each: classes 1 and 2 in the first, class 1 alone in the second.
PREDICTION = torch.tensor([[1, 1, 2, 0], [1, 0, 0, 0]]).reshape(2, 1, 1, 4)
REFERENCE = torch.tensor([[1, 0, 2, 0], [1, 1, 0, 0]]).reshape(2, 1, 1, 4)
DICE = [[2 / 3, 1.0], [2 / 3, math.nan]]


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("mean", ((2 / 3 + 1) / 2 + 2 / 3) / 2),
        ("mean_batch", [2 / 3, 1.0]),
        ("mean_channel", [(2 / 3 + 1) / 2, 2 / 3]),
        ("none", DICE),
    ],
)
def test_scores_of_batches_are_gathered_and_reduced_as_monai_s_metrics_are(reduction, expected):
    metric = OverlapMetric(3, reduction=reduction)
    assert isinstance(metric, CumulativeIterationMetric)
    metric(PREDICTION[:1], REFERENCE[:1])
    metric(y_pred=PREDICTION[1:], y=REFERENCE[1:])
    assert torch.allclose(metric.aggregate(), torch.tensor(expected), equal_nan=True)


def test_a_reset_forgets_what_was_gathered():
    metric = OverlapMetric(3)
    metric(REFERENCE, 2 - REFERENCE)
    metric.reset()
    with pytest.raises(ValueError, match="nothing to aggregate"):
        metric.aggregate()
    metric(REFERENCE, REFERENCE)
    assert metric.aggregate() == 1


def test_logits_one_hot_codes_and_lists_of_cases_are_understood():
    expected = torch.tensor(DICE)
    codes = one_hot(PREDICTION, 3), one_hot(REFERENCE, 3)
    metric = OverlapMetric(3)
    assert torch.allclose(metric(5 * codes[0] - 1, REFERENCE), expected, equal_nan=True)
    assert torch.allclose(metric(*codes), expected, equal_nan=True)
    decollated = [[MetaTensor(case) for case in code] for code in codes]
    assert torch.allclose(metric(*decollated), expected, equal_nan=True)
    assert len(metric) == 6


def test_the_intersection_over_union_the_background_and_an_ignored_id_can_be_asked_for():
    metric = OverlapMetric(2, measure="iou", include_background=True, ignore_index=9)
    prediction = torch.tensor([1, 1, 0, 0, 1]).reshape(1, 1, 1, 5)
    reference = torch.tensor([1, 0, 0, 0, 9]).reshape(1, 1, 1, 5)
    assert torch.allclose(metric(prediction, reference), torch.tensor([[2 / 3, 1 / 2]]))


def test_where_there_is_nothing_to_measure_the_mean_is_no_number():
    metric = OverlapMetric(2)
    metric(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert math.isnan(metric.aggregate())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 0}, "at least 1"),
        ({"num_classes": 2, "measure": "hd95"}, "'dice' or 'iou'"),
        ({"num_classes": 2, "reduction": "sum"}, "one of mean, mean_batch"),
    ],
)
def test_what_it_cannot_do_is_refused_at_once(options, words):
    with pytest.raises(SettingsError, match=words):
        OverlapMetric(**options)


def test_another_number_of_channels_than_classes_is_refused():
    with pytest.raises(ValueError, match=r"prediction with 1 channel of label ids .*, got shape \(2, 4, 1, 4\)"):
        OverlapMetric(3)(torch.zeros(2, 4, 1, 4), REFERENCE)


def test_nan_is_of_no_class_and_not_the_greatest():
    logits = one_hot(PREDICTION, 3)
    logits[0, 2, 0, 3] = math.nan
    with pytest.raises(BadInputError, match="the prediction contains NaN, which belongs to no class"):
        OverlapMetric(3)(logits, REFERENCE)
