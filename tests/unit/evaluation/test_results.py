import json
import math
from dataclasses import replace

import pytest

from candy_monai.errors import BadInputError
from candy_monai.evaluation.results import EvalCase, EvalResult, interval

NAN = math.nan


def case(case_id, *dice, **values):
    counts = {"TP": 1, "FP": 0, "FN": 2, "TN": 3, "n_pred": 1, "n_ref": 3}
    return EvalCase(
        case_id=case_id,
        classes={index: {"dice": value} for index, value in enumerate(dice, start=1)},
        counts=dict.fromkeys(range(1, len(dice) + 1), counts),
        values=values,
    )


def result(*cases):
    return EvalResult(cases=cases)


def test_the_mean_is_over_classes_of_their_means_over_cases_and_leaves_absent_ones_out():
    found = result(case("a", 1.0, NAN), case("b", 0.5, 0.25))
    assert found.class_means == {1: {"dice": 0.75}, 2: {"dice": 0.25}}
    assert found.mean_metrics == {"dice": (0.75 + 0.25) / 2}


def test_a_case_s_metric_is_the_mean_of_the_classes_that_it_has():
    assert case("a", 1.0, NAN, 0.5, volume=3.0).metrics == {"dice": 0.75, "volume": 3.0}


def test_a_case_s_metric_leaves_out_the_background_as_the_means_do():
    one, other = (replace(case("a", 0.25), classes={0: {"dice": 0.75}, 1: {"dice": dice}}) for dice in (0.25, 0.5))
    assert one.metrics == {"dice": 0.25}
    assert result(one, replace(other, case_id="b")).metrics == {"dice": [0.25, 0.5]}


def test_no_case_has_no_mean():
    assert result().mean_metrics == {}
    assert interval(result()) is None
    assert len(result()) == 0


def test_ties_return_distinct_cases_in_their_order():
    found = result(case("a", 0.5), case("b", 0.5), case("c", 0.9), case("d", 0.5))
    assert [entry.case_id for entry in found.min_n("dice", 3)] == ["a", "b", "d"]
    assert [entry.case_id for entry in found.max_n("dice", 2)] == ["c", "a"]
    assert (found.min("dice").case_id, found.max("dice").case_id) == ("a", "c")


def test_a_case_without_a_value_is_neither_best_nor_worst():
    found = result(case("a", NAN), case("b", 0.5))
    assert [entry.case_id for entry in found.min_n("dice", 5)] == ["b"]
    with pytest.raises(BadInputError, match="no case has a value"):
        result(case("a", NAN)).max("dice")


def test_a_metric_that_was_not_measured_is_named():
    with pytest.raises(BadInputError, match="'dise' was not measured.*Did you mean 'dice'"):
        result(case("a", 0.5)).min("dise")


def test_cases_come_by_index_by_slice_and_in_order():
    found = result(case("a", 0.5), case("b", 0.7))
    assert found[1].case_id == "b"
    assert [entry.case_id for entry in found[:1]] == ["a"]
    assert [entry.case_id for entry in found] == ["a", "b"]
    assert found.metrics == {"dice": [0.5, 0.7]}


def test_the_summary_is_nnu_net_s_with_null_for_what_was_not_measured(tmp_path):
    result(case("a", 1.0, NAN)).save(tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = {"TP": 1, "FP": 0, "FN": 2, "TN": 3, "n_pred": 1, "n_ref": 3}
    assert summary["foreground_mean"] == {"Dice": 1.0, **counts}
    assert summary["mean"] == {"1": {"Dice": 1.0, **counts}, "2": {"Dice": None, **counts}}
    (entry,) = summary["metric_per_case"]
    assert entry["case"] == "a"
    assert entry["metrics"]["2"] == {"Dice": None, **counts}
    assert "values" not in entry


def test_the_user_s_own_metrics_have_a_place_in_the_summary():
    summary = result(case("a", 1.0, volume=3.0), case("b", 1.0, volume=math.inf)).to_dict()
    assert summary["mean_values"] == {"volume": "inf"}
    assert [entry["values"] for entry in summary["metric_per_case"]] == [{"volume": 3.0}, {"volume": "inf"}]


def test_the_table_has_a_line_for_each_class_and_says_what_was_not_measured():
    text = result(case("a", 1.0, NAN, volume=3.0), case("b", 0.5, NAN, volume=4.0)).table({1: "[organ]"})
    assert text.splitlines() == [
        "class      cases    dice",
        "1 [organ]      2  0.7500",
        "2              2       -",
        "mean           2  0.7500",
        "volume: mean 3.5000 of 2 cases",
    ]
    assert str(result(case("a", 1.0))).splitlines()[-1].startswith("mean")


def test_values_that_are_none_or_infinite_are_counted_and_the_mean_of_the_others_is_noted():
    cases = (case("a", 1.0, NAN), case("b", math.inf, NAN), case("c", 3.0, NAN))
    nowhere = dict.fromkeys(cases[0].counts[2], 0)
    found = result(*(replace(each, counts={**each.counts, 2: nowhere}) for each in cases))
    assert found.undefined == {"dice": 3}
    assert found.infinite == {"dice": 1}
    assert found.notes() == [
        "dice: 1 of 3 values are infinite, of classes that only one of the two maps contains; the mean of the others "
        "is 2.0000"
    ]
    assert result(case("a", 1.0)).notes() == []


def test_predictions_and_references_without_a_class_in_common_are_noted():
    found = case("a", 0.0, 0.0)
    counts = {1: {**found.counts[1], "n_pred": 0}, 2: {**found.counts[2], "n_ref": 0}}
    assert result(replace(found, counts=counts)).notes() == [
        "no class is in both: the predictions hold 2, the references 1; do they have the same ids?"
    ]


def test_a_ratio_of_nothing_of_a_class_that_is_there_is_noted():
    found = result(case("a", 1.0), case("b", NAN))
    assert found.notes() == [
        "dice: 1 of 2 values are undefined though one of the two maps contains the class, and are left out of the mean"
    ]


def test_an_interval_leaves_out_the_background_and_ends_where_there_can_be_no_score():
    cases = [
        replace(case(name, dice), classes={0: {"dice": 1.0}, 1: {"dice": dice}})
        for name, dice in (("a", 0.2), ("b", 0.9))
    ]
    assert interval(result(*cases)) == (0.0, 1.0)


def test_the_statistics_hold_each_class_and_the_mean_over_classes_with_their_cases():
    found = result(case("a", 1.0, NAN), case("b", 0.5, 0.2), case("c", 0.6, 0.4))
    statistics = found.statistics()
    assert list(statistics) == [1, 2, None]
    assert (statistics[2]["dice"].num_cases, statistics[2]["dice"].undefined) == (2, 1)
    overall = statistics[None]["dice"]
    assert overall.mean == found.mean_metrics["dice"]
    assert overall.interval[0] < overall.mean < overall.interval[1]
    assert interval(found) == overall.interval
    drawn = found.statistics(method="bootstrap")[None]["dice"].interval
    assert drawn[0] < overall.mean < drawn[1]
    entry = found.to_dict()["statistics"]
    assert entry["interval"] == {"method": "t", "confidence": 0.95}
    assert entry["mean"]["1"]["Dice"]["mean"] == found.class_means[1]["dice"]
    assert entry["foreground_mean"]["Dice"]["num_cases"] == 3


def test_intervals_stand_beside_the_means_of_the_table_when_asked():
    lines = result(case("a", 1.0), case("b", 0.5), case("c", 0.75)).table(intervals="t").splitlines()
    assert lines[1].split(maxsplit=2)[2] == "0.7500 [0.1290, 1.0000]"
    assert lines[-1] == "[ ]: 95 % interval of the mean over cases, by Student's t"
    assert "[-]" in result(case("a", 1.0)).table(intervals="t")


def test_there_is_a_row_of_csv_for_each_case_and_class_and_for_the_user_s_own_metrics(tmp_path):
    found = EvalResult(
        cases=(case("a", 1.0, NAN, volume=3.0), case("b", math.inf, 0.5)), class_names={1: "organ, left"}
    )
    assert found.rows()[1]["class"] == 2
    found.save_csv(tmp_path / "new" / "cases.csv")
    assert (tmp_path / "new" / "cases.csv").read_text().splitlines() == [
        "case,class,name,dice,TP,FP,FN,TN,n_pred,n_ref,volume",
        'a,1,"organ, left",1.0,1,0,2,3,1,3,',
        "a,2,,,1,0,2,3,1,3,",
        "a,,,,,,,,,,3.0",
        'b,1,"organ, left",inf,1,0,2,3,1,3,',
        "b,2,,0.5,1,0,2,3,1,3,",
    ]
