import numpy as np
import pytest

from candy_monai import forecast
from candy_monai.forecasting.curve import seen_curve
from candy_monai.forecasting.references import MOST_REFERENCES, checked_references, gain_by_references


def late(seed: int, *, start: float = 0.5, end: float = 0.8, epochs: int = 40) -> np.ndarray:
    """Return a Dice that is next to nothing until a share of the run is over and then rises to its end."""
    generator = np.random.default_rng(seed)
    t = np.arange(1, epochs + 1) / epochs
    rise = np.clip((t - start) / 0.3, 0, 1)
    return 0.05 + 0.02 * t + (end - 0.07) * rise + 0.004 * generator.standard_normal(epochs)


def error(scores: np.ndarray, now: int, **arguments) -> float:
    return abs(forecast(scores[:now], len(scores), score_range=(0, 1), **arguments).score - scores.max())


FOLDS = [late(seed, end=end) for seed, end in enumerate((0.78, 0.81, 0.8, 0.76))]
TARGET = late(9, end=0.79)


def test_a_late_rise_that_earlier_curves_had_is_foretold():
    assert error(TARGET, 12) > 0.6
    assert error(TARGET, 12, references=FOLDS) < 0.1


def test_the_interval_holds_the_end_that_earlier_curves_had_and_not_the_whole_range():
    low, high = forecast(TARGET[:12], 40, score_range=(0, 1), references=FOLDS).interval
    assert low <= TARGET.max() <= high
    assert high - low < 0.6


def test_a_flat_curve_is_foretold_by_others_that_were_flat_until_then():
    scores = np.where(np.arange(40) < 15, 0.0, TARGET)
    folds = [np.where(np.arange(40) < 15, 0.0, fold) for fold in FOLDS]
    assert "flat" in forecast(scores[:12], 40, score_range=(0, 1)).reason
    result = forecast(scores[:12], 40, score_range=(0, 1), references=folds)
    assert result.reason is None
    assert result.score == pytest.approx(0.79, abs=0.1)
    assert result.epoch > 20


def test_a_flat_curve_stays_unknown_where_earlier_curves_do_not_foretell_one_another():
    takes_off = np.where(np.arange(40) < 15, 0.0, FOLDS[0])
    others = [takes_off, 0.05 * takes_off, takes_off, 0.05 * takes_off]
    assert "flat" in forecast(np.zeros(12), 40, score_range=(0, 1), references=others).reason


def test_curves_that_do_not_foretell_one_another_hardly_change_the_forecast():
    generator = np.random.default_rng(0)
    walks = [np.clip(0.4 + 0.05 * generator.standard_normal(40).cumsum(), 0, 1) for _ in range(8)]
    scores = 0.8 * (1 - np.exp(-np.arange(1, 41) / 8)) + 0.01 * generator.standard_normal(40)
    alone = forecast(scores[:15], 40, score_range=(0, 1))
    joined = forecast(scores[:15], 40, score_range=(0, 1), references=walks)
    assert joined.by_references < 0.5
    assert joined.score == pytest.approx(alone.score, abs=0.03)


def test_curves_that_are_nothing_like_it_have_less_say_than_those_that_are():
    alike, unlike = FOLDS, [late(seed, start=0.0, end=0.8) for seed in range(4)]
    shares = [forecast(TARGET[:12], 40, score_range=(0, 1), references=refs).by_references for refs in (alike, unlike)]
    assert shares[0] > 0.8
    assert shares[1] < shares[0]


def test_runs_with_the_same_settings_are_believed_more_readily_than_a_few_with_others():
    shares = {
        (count, same): forecast(TARGET[:12], 40, references=FOLDS[:count], same_settings=same).by_references
        for count in (2, 3, 4)
        for same in (False, True)
    }
    assert all(shares[count, False] < shares[count, True] for count in (2, 3, 4))
    assert shares[3, True] > 0.9


def test_few_curves_that_are_not_like_it_have_no_say_if_they_have_other_settings():
    rising = [late(seed, start=0.0, end=0.8) for seed in range(3)]  # they have risen by the time; this one has not
    assert forecast(TARGET[:12], 40, references=rising).by_references < 0.1


def test_without_references_none_have_a_share():
    assert forecast(TARGET[:12], 40).by_references == 0


def test_references_may_be_of_another_length_and_have_gaps():
    longer = [late(seed, end=0.8, epochs=80) for seed in range(4)]
    for curve in longer:
        curve[::3] = np.nan
    assert error(TARGET, 12, references=longer) < 0.15


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_unit_of_the_score_does_not_matter(scale):
    bounds = {"score_range": (None, None)}
    expected = forecast(TARGET[:12], 40, references=FOLDS, **bounds)
    scaled = forecast(scale * TARGET[:12], 40, references=[scale * fold for fold in FOLDS], **bounds)
    assert scaled.score / scale == pytest.approx(expected.score, rel=1e-6)
    assert scaled.by_references == pytest.approx(expected.by_references, rel=1e-6)


def test_a_score_of_zero_is_no_loss_where_earlier_scores_are_above_zero():
    folds = [np.where(np.arange(40) < 15, 0.0, fold) for fold in FOLDS]
    assert forecast(np.zeros(12), 40, references=folds).score > 0.5


def test_nothing_is_foretold_above_the_largest_score():
    result = forecast(TARGET[:12], 40, score_range=(0, 0.82), references=FOLDS)
    assert max(result.interval[1], *result.quantiles) <= 0.82


def test_the_quantiles_rise_and_the_forecast_lies_in_its_interval():
    for now in range(6, 40, 3):
        result = forecast(TARGET[:now], 40, score_range=(0, 1), references=FOLDS)
        assert (np.diff(result.quantiles) >= -1e-12).all()
        assert TARGET[:now].max() <= result.interval[0] <= result.score <= result.interval[1]
        assert result.interval[0] < result.interval[1]
        assert now <= result.epoch <= 40


def test_the_fewer_references_there_are_the_less_they_are_believed_and_one_is_not():
    rises = 0.8 * (1 - np.exp(-np.arange(1, 41) / 12))
    curves = rises + 0.01 * np.random.default_rng(0).standard_normal((5, 40))
    results = [forecast(curves[0, :12], 40, references=curves[1 : 1 + count]) for count in range(5)]
    shares = [result.by_references for result in results]
    assert shares[:2] == [0, 0]
    assert 0 < shares[2] < shares[3] < shares[4]
    assert results[1] == results[0]


def test_no_gain_is_read_off_curves_of_which_none_has_moved():
    curve = seen_curve(np.zeros(12), 40, score_range=(0, 1))
    assert gain_by_references(curve, [np.zeros(40), np.zeros(40)]) is None


def test_a_reference_with_too_few_scores_is_refused_by_its_place():
    with pytest.raises(ValueError, match=r"references\[1\] has 2 finite scores, expected at least 3"):
        forecast(TARGET[:12], 40, references=[FOLDS[0], [0.1, np.nan, 0.2]])


def test_references_out_of_the_range_of_scores_are_refused():
    with pytest.raises(ValueError, match="score_range"):
        forecast(TARGET[:12], 40, score_range=(0, 1), references=[100 * FOLDS[0]])


def test_of_very_many_references_the_first_ones_are_taken():
    assert len(checked_references([FOLDS[0]] * (MOST_REFERENCES + 5))) == MOST_REFERENCES
