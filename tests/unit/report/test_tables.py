import math

import pytest

from candy_monai.errors import BadInputError
from candy_monai.experiment.summary import summary_of
from candy_monai.report.tables import ScoredCase, scored_cases, table_of_cases, table_of_classes

_FIRST = {
    "0": {"Dice": 1.0},
    "1": {"Dice": 0.5, "HD95": "inf", "TP": 3, "n_ref": 4},
    "2": {"Dice": None},
}
_SECOND = {"1": {"Dice": 0.75, "HD95": 2.0}, "2": {"Dice": 0.25, "HD95": 4.0}}
SUMMARY = {
    "metric_per_case": [
        {"case": "a", "metrics": _FIRST},
        {"prediction_file": "b.nii.gz", "metrics": _SECOND, "values": {"mine": 7.0}},
    ]
}
NAMES = {1: "kidney", 2: "tumour"}


def columns(table):
    return [column.name for column in table.columns]


def test_cases_of_a_summary_are_ranked_by_the_mean_of_their_foreground():
    first, second = scored_cases(summary_of(SUMMARY, source="s"))
    assert (first.case_id, first.score) == ("a", 0.5)
    assert (second.case_id, second.score) == ("b", 0.5)
    assert first.classes["HD95"] == {1: math.inf}
    assert second.metrics == {"Dice": 0.5, "HD95": 3.0, "mine": 7.0}


def test_a_table_of_cases_has_a_column_for_each_metric_and_each_class():
    table = table_of_cases(scored_cases(summary_of(SUMMARY, source="s")), NAMES)
    assert columns(table) == ["case", "mean Dice", "mean HD95", "mine", "kidney", "tumour"]
    assert table.rows == [["a", 0.5, "∞", None, 0.5, None], ["b", 0.5, 3.0, 7.0, 0.75, 0.25]]
    assert [column.better for column in table.columns] == [None, "higher", "lower", None, "higher", "higher"]


def test_of_many_classes_a_case_names_its_worst():
    values = {i: i / 100 for i in range(1, 31)}
    case = ScoredCase(case_id="a", score=0.5, metrics={"dice": 0.5}, classes={"dice": values})
    table = table_of_cases([case], {1: "the smallest"})
    assert columns(table) == ["case", "mean dice", "worst class", "its dice"]
    assert table.rows == [["a", 0.5, "the smallest", 0.01]]


def test_a_score_that_is_no_metric_has_a_column_of_its_own():
    table = table_of_cases([ScoredCase(case_id="a", score=-0.5, metrics={"dice": 0.75})], {})
    assert columns(table) == ["case", "score", "dice"]
    assert table.rows == [["a", -0.5, 0.75]]


def test_a_table_of_classes_has_means_and_the_worst_case():
    table = table_of_classes(scored_cases(summary_of(SUMMARY, source="s")), NAMES)
    assert columns(table) == ["class", "cases", "Dice", "HD95", "least Dice", "in case"]
    assert table.rows[1:] == [["kidney", 2.0, 0.625, "∞", 0.5, "a"], ["tumour", 1.0, 0.25, 4.0, 0.25, "b"]]


def test_cases_without_classes_make_no_table_of_classes():
    assert table_of_classes([ScoredCase(case_id="a", score=0.5)], {}) is None


def test_scores_of_what_is_no_class_id_are_refused():
    with pytest.raises(BadInputError, match=r"the case a has scores of the class '\(1, 2\)', expected its id"):
        scored_cases(summary_of({"metric_per_case": [{"case": "a", "metrics": {"(1, 2)": {}}}]}, source="s"))
