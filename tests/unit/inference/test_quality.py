"""What is said of a prediction without a reference."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.special import expit, logit

from candy_monai.errors import ExperimentError
from candy_monai.inference.expected_overlap import ExpectedOverlap
from candy_monai.inference.quality import Calibration, QualityModel, judge
from candy_monai.inference.typical_inputs import TypicalInputs

INPUTS = TypicalInputs(
    spacing_mm=(),
    shape=((4.0, 4.0), (4.0, 4.0)),
    intensities={"MRI": ((0.0, 0.0), (0.0, 0.5), (0.0, 0.5), (0.0, 0.5), (1.0, 1.0))},
    has_empty_cases=False,
    classes={},
)
LIKE_TRAINING = torch.zeros(1, 4, 4).index_fill_(2, torch.tensor([3]), 1.0)
LABELS = MetaTensor(torch.zeros(1, 4, 4, dtype=torch.uint8), meta={"is_picture": True})


def _overlap(probability, *, is_empty=False):
    """Return the overlap of 16 voxels, of which half are of the class with a probability."""
    foreground = torch.zeros(4, 4)
    foreground[:2] = 0.2 if is_empty else probability
    overlap = ExpectedOverlap()
    overlap.add(torch.stack([1 - foreground, foreground]), are_probabilities=True)
    return overlap


def _model(**changes):
    calibration = Calibration(num_cases=9, typical_error=0.05, median_dice=0.9)
    return QualityModel(calibration=dataclasses.replace(calibration, **changes), inputs=INPUTS)


def test_a_fit_recovers_what_the_true_dice_depends_on_and_rises_with_everything():
    rng = np.random.default_rng(0)
    precision, recall = rng.uniform(0.6, 0.99, (2, 200))
    size = rng.uniform(0.2, 1.0, 200)
    expected_dice = 2 * precision * recall / (precision + recall)
    true = expit(0.3 + 0.2 * logit(expected_dice) + 0.8 * logit(precision) + 0.6 * np.log(size))
    fitted = Calibration.fit(list(zip(precision, recall, size, strict=True)), true + rng.normal(0, 0.005, 200))
    slopes = (fitted.dice_slope, fitted.precision_slope, fitted.size_slope)
    assert slopes == pytest.approx((0.2, 0.8, 0.6), abs=0.1)
    estimates = [fitted((value, 0.8, 0.5)) for value in (0.0, 0.2, 0.7, 0.9, 1.0)]
    assert estimates == sorted(set(estimates))
    assert fitted((0.8, 0.7, 0.5)) < fitted((0.8, 0.9, 0.5)) < fitted((0.8, 0.9, 0.9))
    assert fitted.typical_error == pytest.approx(0.004, abs=0.002)
    assert fitted.rank_correlation > 0.98
    assert fitted.median_dice == pytest.approx(float(np.median(true)), abs=0.01)


def test_without_cases_the_estimate_is_the_expected_dice_and_few_cases_draw_it_to_theirs():
    assert Calibration.fit([], [])((0.7, 0.9, 0.1)) == pytest.approx(2 * 0.7 * 0.9 / 1.6)
    one = Calibration.fit([(0.9, 0.9, 1.0)], [0.5])
    assert 0.4 < one((0.9, 0.9, 1.0)) < 0.75
    assert (one.typical_error, one.rank_correlation) == (None, None)


def test_what_contradicts_the_scores_still_keeps_its_order():
    fitted = Calibration.fit([(share, share, share) for share in (0.6, 0.7, 0.8, 0.9)], [0.9, 0.8, 0.7, 0.6])
    assert fitted((0.6, 0.6, 0.6)) < fitted((0.9, 0.9, 0.9))
    assert fitted.rank_correlation < 0


def test_a_sure_prediction_has_no_warning_and_an_unsure_one_says_why():
    sure = judge(_overlap(0.99), LABELS, [_model()], [LIKE_TRAINING])
    assert sure.estimated_dice > 0.95
    assert sure.warnings == ()
    unsure = judge(_overlap(0.51), LABELS, [_model(offset=-1.0)], [LIKE_TRAINING])
    (warning,) = unsure.warnings
    assert warning.startswith(f"its Dice is estimated at {unsure.estimated_dice:.2f} (such estimates are wrong by 0.05")


def test_an_empty_prediction_is_warned_of_only_where_every_training_case_has_a_class():
    overlap = _overlap(0.0, is_empty=True)
    found = judge(overlap, LABELS, [_model()], [LIKE_TRAINING])
    assert found.warnings == ("the prediction has no foreground, but every training case has some",)
    may_be_empty = QualityModel(calibration=Calibration(), inputs=dataclasses.replace(INPUTS, has_empty_cases=True))
    assert judge(overlap, LABELS, [may_be_empty], [LIKE_TRAINING]).warnings == ()


def test_an_output_of_nan_is_warned_of_and_has_no_estimate():
    found = judge(_overlap(math.nan), LABELS, [_model()], [LIKE_TRAINING])
    assert found.to_dict() == {"estimated_dice": None, "warnings": found.warnings}
    assert found.warnings == ("the network's output contains NaN: it has failed on this image",)


def test_members_are_averaged_and_an_image_must_be_unlike_the_training_set_of_each():
    other = QualityModel(
        calibration=Calibration(offset=-1.0, num_cases=9),
        inputs=dataclasses.replace(INPUTS, shape=((40.0, 40.0), (40.0, 40.0))),
    )
    overlap = _overlap(0.8)
    apart = [judge(overlap, LABELS, [model], [LIKE_TRAINING]) for model in (_model(), other)]
    together = judge(overlap, LABELS, [_model(), other], [LIKE_TRAINING, LIKE_TRAINING])
    assert together.estimated_dice == pytest.approx(np.mean([found.estimated_dice for found in apart]))
    assert [len(found.warnings) for found in (*apart, together)] == [0, 1, 0]
    assert apart[1].warnings[0].startswith("unlike the training images: its size after preprocessing is 4 x 4")


def test_what_was_fitted_to_few_cases_estimates_nothing_and_still_warns_of_images_and_empty_predictions():
    few, unlike = _model(num_cases=4), LIKE_TRAINING.repeat(1, 10, 10)
    found = judge(_overlap(0.51), LABELS, [few], [unlike])
    assert (found.estimated_dice, found.typical_error) == (None, None)
    (warning,) = found.warnings
    assert warning.startswith("unlike the training images: its size")
    assert found.to_dict() == {"estimated_dice": None, "warnings": found.warnings}
    empty = judge(_overlap(0.0, is_empty=True), LABELS, [few], [LIKE_TRAINING])
    assert empty.warnings == ("the prediction has no foreground, but every training case has some",)
    enough = _model(num_cases=5, offset=-1.0)
    together = judge(_overlap(0.8), LABELS, [few, enough], [LIKE_TRAINING] * 2)
    assert together.estimated_dice == judge(_overlap(0.8), LABELS, [enough], [LIKE_TRAINING]).estimated_dice


def test_it_is_read_with_the_weights_that_it_was_fitted_to_alone(tmp_path):
    weights = tmp_path / "checkpoint_best.pth"
    weights.write_bytes(b"first")
    assert QualityModel.load(tmp_path, weights) is None
    _model().save(tmp_path, weights)
    assert QualityModel.load(tmp_path, weights) == _model()
    weights.write_bytes(b"second")
    assert QualityModel.load(tmp_path, weights) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 9}', '{"format": 1}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "quality.json").write_text(content)
    with pytest.raises(ExperimentError, match=r"quality.json: cannot be read"):
        QualityModel.load(tmp_path, tmp_path / "quality.json")


@pytest.mark.parametrize("changed", [{"offset": "none"}, {"num_cases": None}, {"median_dice": math.nan}], ids=str)
def test_a_file_without_numbers_is_named_before_anything_is_predicted(tmp_path, changed):
    weights = tmp_path / "checkpoint_best.pth"
    weights.write_bytes(b"first")
    _model().save(tmp_path, weights)
    content = json.loads((tmp_path / "quality.json").read_text())
    content["calibration"] |= changed
    (tmp_path / "quality.json").write_text(json.dumps(content))
    with pytest.raises(ExperimentError, match=r"quality.json: cannot be read \(calibration is .*expected numbers"):
        QualityModel.load(tmp_path, weights)
