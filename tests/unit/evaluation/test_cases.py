import json
import math

from candy_monai.evaluation.cases import CaseScores


def test_the_mean_is_over_classes_of_their_means_over_cases_and_leaves_absent_ones_out():
    scores = CaseScores(dice={"a": (1.0, math.nan), "b": (0.5, 0.25)})
    assert scores.mean == (0.75 + 0.25) / 2


def test_no_case_has_no_mean():
    assert math.isnan(CaseScores(dice={}).mean)


def test_the_summary_is_nnu_net_s_with_null_for_what_was_not_measured(tmp_path):
    CaseScores(dice={"a": (1.0, math.nan)}).save(tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["foreground_mean"] == {"Dice": 1.0}
    assert summary["mean"] == {"1": {"Dice": 1.0}, "2": {"Dice": None}}
    assert summary["metric_per_case"] == [{"case": "a", "metrics": {"1": {"Dice": 1.0}, "2": {"Dice": None}}}]
