"""Where every prediction contradicts a label."""

from __future__ import annotations

import json

import pytest
import torch

from candy_monai.evaluation.label_issues import Contradictions, LabelIssues

SHAPE = (20, 18, 16)


def _label():
    label = torch.zeros(SHAPE, dtype=torch.int64)
    label[3:10, 3:10, 3:10] = 1
    return label


def _probabilities(ids, sure=0.9, num_classes=3):
    one_hot = torch.nn.functional.one_hot(ids, num_classes).movedim(-1, 0).float()
    return one_hot * (sure - (1 - sure) / (num_classes - 1)) + (1 - sure) / (num_classes - 1)


def _found(label, *predictions, sure=0.9, spacing_mm=(1.0, 1.0, 1.0), **options):
    contradictions = Contradictions(label, **options)
    for ids in predictions:
        contradictions.add(ids, _probabilities(ids, sure))
    return contradictions.issues("a", spacing_mm=spacing_mm)


def test_a_region_that_was_left_out_of_the_label_is_found_with_its_place_and_size():
    truth = _label()
    truth[12:17, 10:15, 9:14] = 2
    (issue,) = _found(_label(), truth, truth)
    assert (issue.label_id, issue.predicted_id, issue.voxels) == (0, 2, 125)
    assert issue.place == (14, 12, 11)
    assert issue.doubt == pytest.approx(0.95)
    assert issue.volume == pytest.approx(0.125)
    assert issue.score == pytest.approx(0.95 * 27 / 1000)  # without the rim


def test_what_one_prediction_confirms_is_no_issue():
    truth = _label()
    truth[12:17, 10:15, 9:14] = 2
    assert _found(_label(), truth, _label()) == []


def test_the_surest_label_among_the_predictions_counts():
    truth = _label()
    truth[12:17, 10:15, 9:14] = 2
    contradictions = Contradictions(_label())
    for sure in (0.9, 0.6):
        contradictions.add(truth, _probabilities(truth, sure))
    (issue,) = contradictions.issues("a", spacing_mm=(1.0, 1.0, 1.0))
    assert issue.doubt == pytest.approx(0.8)


def test_rims_are_left_out():
    truth = torch.zeros(SHAPE, dtype=torch.int64)
    truth[3:11, 3:10, 3:10] = 1  # one voxel further
    assert _found(_label(), truth) == []


def test_regions_of_different_kinds_are_apart_and_ranked_by_doubt_and_size():
    truth = _label()
    truth[3:6, 3:10, 3:10] = 0
    truth[6:10, 3:10, 3:10] = 2
    large, small = _found(_label(), truth)
    assert [(i.label_id, i.predicted_id) for i in (large, small)] == [(1, 2), (1, 0)]
    assert large.score > small.score


def test_the_mask_of_a_region_is_that_region_alone():
    truth = _label()
    truth[12:17, 10:15, 9:14] = 2
    truth[12:15, 2:5, 9:12] = 2
    contradictions = Contradictions(_label())
    contradictions.add(truth, _probabilities(truth))
    large, small = contradictions.issues("a")
    masks = [contradictions.mask_of(issue) for issue in (large, small)]
    assert [int(mask.sum()) for mask in masks] == [large.voxels, small.voxels] == [125, 27]
    assert masks[1][12:15, 2:5, 9:12].all()


def test_ignored_voxels_are_left_alone():
    label = _label()
    truth = _label()
    truth[12:17, 10:15, 9:14] = 2
    label[12:17, 10:15, 9:14] = 9
    assert _found(label, truth, ignore_label=9) == []


def test_overlapping_regions_are_doubted_by_the_channel_that_differs_most():
    label, predicted = _label(), _label()
    predicted[12:17, 10:15, 9:14] = 2
    whole, core = (predicted > 0).float() * 0.8 + 0.1, (predicted == 2).float() * 0.6 + 0.1
    contradictions = Contradictions(label, regions=[(1, 2), (2,)])
    contradictions.add(predicted, torch.stack([whole, core]))
    (issue,) = contradictions.issues("a", spacing_mm=(1.0, 1.0, 1.0))
    assert issue.doubt == pytest.approx(0.9)


def test_pictures_are_counted_in_pixels():
    label = torch.zeros(1, 20, 20, dtype=torch.int64)[0]
    truth = label.clone()
    truth[4:9, 4:9] = 1
    contradictions = Contradictions(label)
    contradictions.add(truth, truth[None].float())  # a single channel
    (issue,) = contradictions.issues("a")
    assert (issue.volume, issue.score) == (25.0, 9.0)


def test_a_volume_of_one_slice_is_as_a_picture():
    label = torch.zeros(20, 20, 1, dtype=torch.int64)
    truth = label.clone()
    truth[4:9, 4:9] = 1
    contradictions = Contradictions(label)
    contradictions.add(truth, truth[None].float())
    (issue,) = contradictions.issues("a", spacing_mm=(1.0, 1.0, 0.5))
    assert issue.score == pytest.approx(9 * 0.5 / 1000)


def test_the_list_is_a_table_and_json():
    truth = _label()
    truth[12:17, 10:15, 9:14] = 2
    issues = _found(_label(), truth)
    found = LabelIssues(issues=tuple(issues), num_cases=3, class_names={0: "background", 2: "tumour"})
    assert found.cases == {"a": issues[0].score}
    _, line, count = found.table().splitlines()
    assert line.split()[:4] == ["a", "background", "tumour", "14,12,11"]
    assert [len(number.partition(".")[2]) for number in line.split()[4:]] == [3, 2, 3]
    assert count == "1 of 1 region, in 1 of 3 cases"
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["issues"][0]["box"] == [[12, 17], [10, 15], [9, 14]]
    assert LabelIssues(issues=(), num_cases=3).table() == "0 of 0 regions, in 0 of 3 cases"
