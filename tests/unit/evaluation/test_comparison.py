import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from candy_monai.errors import BadInputError
from candy_monai.evaluation.comparison import compare_evaluations, holm
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.evaluation.results import EvalCase, EvalResult

NAN, INF = math.nan, math.inf
COUNTS = {"TP": 1, "FP": 1, "FN": 1, "TN": 9, "n_pred": 2, "n_ref": 2}


def result(values, *, metric="dice", counts=COUNTS, names=None, definitions=None):
    """Return an evaluation of ``case_0``, ``case_1`` and so on, each with a value for each class."""
    rows = [row if isinstance(row, tuple) else (row,) for row in values]
    return EvalResult(
        cases=tuple(
            EvalCase(
                case_id=f"case_{number}",
                classes={index: {metric: value} for index, value in enumerate(row, start=1)},
                counts=dict.fromkeys(range(1, len(row) + 1), counts),
                values={},
            )
            for number, row in enumerate(rows)
        ),
        class_names=names or {},
        definitions=definitions or {},
    )


def drawn(seed, shift=0.0, num_cases=20):
    return (np.random.default_rng(seed).beta(8, 3, num_cases) - shift).tolist()


def test_the_differences_and_the_test_are_scipy_s():
    first, second = drawn(0), drawn(1, shift=0.1)
    found = compare_evaluations({"a": result(first), "b": result(second)})
    (difference,) = found.metrics[0].differences
    expected = stats.ttest_rel(first, second).confidence_interval()
    assert difference.statistics.mean == pytest.approx(np.mean(np.subtract(first, second)))
    assert difference.statistics.interval == pytest.approx((expected.low, expected.high))
    assert difference.p_value == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert difference.p_corrected == difference.p_value  # of one pair there is nothing to correct
    assert difference.first_better == sum(one > other for one, other in zip(first, second, strict=True))


def test_what_is_said_of_few_pairs_goes_by_those_that_have_a_value():
    rows = [(value, math.nan) for value in drawn(0, num_cases=8)]
    lacking = [(value if number < 4 else math.nan, math.nan) for number, value in enumerate(drawn(1, num_cases=8))]
    notes = compare_evaluations({"a": result(rows), "b": result(lacking)}).notes()
    assert notes[-1] == "dice: with 4 pairs the test cannot be significant at 5 %, whatever the values are"
    assert not any(
        "pairs the test" in note for note in compare_evaluations({"a": result(rows), "b": result(rows)}).notes()
    )


def test_an_evaluation_is_not_compared_with_itself_under_two_names(tmp_path):
    result(drawn(0)).save(tmp_path / "summary.json")
    with pytest.raises(BadInputError, match="is given twice"):
        compare_evaluations({"a": tmp_path, "b": tmp_path / "summary.json"})


def test_cases_are_paired_by_their_ids_whatever_their_order():
    first, second = result(drawn(0)), result(drawn(1))
    turned = EvalResult(cases=second.cases[::-1])
    assert (
        compare_evaluations({"a": first, "b": turned}).metrics == compare_evaluations({"a": first, "b": second}).metrics
    )


def test_p_values_are_corrected_by_holm_over_all_pairs_of_a_metric():
    methods = {name: result(drawn(seed, shift)) for name, seed, shift in (("a", 0, 0), ("b", 1, 0.05), ("c", 2, 0.3))}
    found = compare_evaluations(methods).metrics[0].differences
    assert [(d.first, d.second) for d in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [d.p_corrected for d in found] == holm([d.p_value for d in found])
    assert found[1].p_corrected > found[1].p_value


def test_holm_multiplies_by_the_tests_that_are_left_and_never_decreases():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, NAN, 0.01]) == pytest.approx([0.04, NAN, 0.02], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_methods_are_ranked_in_each_case_and_class_and_then_averaged():
    a, b = result([(0.9, 0.1), (0.9, 0.1), (0.9, 0.9)]), result([(0.8, 0.2), (0.8, 0.2), (0.9, 0.8)])
    found = compare_evaluations({"a": a, "b": b})
    # a: 1, 2, 1, 2, 1.5, 1; its mean Dice is lower in the first two cases by nothing, and higher in the last.
    assert [method.mean_rank for method in found.metrics[0].methods] == pytest.approx([8.5 / 6, 9.5 / 6])
    assert found.ranking == (("a", pytest.approx(8.5 / 6)), ("b", pytest.approx(9.5 / 6)))
    assert [each.methods[0].mean_rank for each in found.by_class] == pytest.approx([3.5 / 3, 5 / 3])


def test_of_a_distance_the_lower_one_is_better_and_an_infinite_one_the_worst():
    first, second = [1.0, 2.0, 3.0, INF, INF, 1.0, 1.5], [2.0, 4.0, 2.5, 9.0, INF, 3.0, 4.5]
    found = compare_evaluations({"a": result(first, metric="hd95"), "b": result(second, metric="hd95")})
    (difference,) = found.metrics[0].differences
    assert (difference.first_better, difference.equal, difference.second_better) == (4, 1, 2)
    assert difference.infinite == 2
    assert difference.statistics.mean == pytest.approx(np.mean([-1.0, -2.0, 0.5, -2.0, -3.0]))
    expected = stats.wilcoxon([-1.0, -2.0, 0.5, 99.0, 0.0, -2.0, -3.0]).pvalue
    assert difference.p_value == pytest.approx(expected)
    assert any("infinite" in note for note in found.notes())


def test_what_one_method_lacks_is_left_out_for_all_and_counted():
    found = compare_evaluations({"a": result([(0.5, NAN), (0.7, NAN)]), "b": result([(0.5, 0.0), (0.6, NAN)])})
    assert found.metrics[0].undefined == 1
    assert found.metrics[0].methods[1].statistics.mean == pytest.approx(0.55)
    assert [each.num_cases for each in found.by_class] == [2, 0]
    assert any(note.startswith("dice: 1 value of a case and class is left out") for note in found.notes())
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_patient_s_cases_count_once():
    first, second = drawn(0, num_cases=8), drawn(1, num_cases=8)
    patients = {f"case_{number}": str(number // 2) for number in range(8)}
    found = compare_evaluations({"a": result(first), "b": result(second)}, groups=patients)
    assert (found.num_units, len(found.case_ids)) == (4, 8)
    means = [np.reshape(values, (4, 2)).mean(1) for values in (first, second)]
    (difference,) = found.metrics[0].differences
    assert difference.p_value == pytest.approx(stats.wilcoxon(*means).pvalue)
    assert "4 groups" in found.table()
    assert "rank: among the methods, in each group and class; 1 is best" in found.table()
    with pytest.raises(BadInputError, match="groups: no group for"):
        compare_evaluations({"a": result(first), "b": result(second)}, groups=r"patient(\d+)")


def test_equal_methods_do_not_differ():
    found = compare_evaluations({"a": result(drawn(0)), "b": result(drawn(0))})
    (difference,) = found.metrics[0].differences
    assert (difference.p_value, difference.equal, difference.statistics.interval) == (1.0, 20, None)
    assert [rank for _, rank in found.ranking] == [1.5, 1.5]


def test_unequal_cases_are_refused_by_method_and_case_unless_the_common_ones_are_asked_for():
    first, second = result(drawn(0, num_cases=4)), result(drawn(1, num_cases=3))
    with pytest.raises(BadInputError, match=r"b \(evaluation 2\) lacks 1 case: case_3(.|\n)*common=True"):
        compare_evaluations({"a": first, "b": second})
    found = compare_evaluations({"a": first, "b": second}, common=True)
    assert (found.case_ids, found.left_out) == (("case_0", "case_1", "case_2"), ("case_3",))
    assert found.notes()[-2:] == [
        "left out, not in all evaluations: case_3",
        "dice: with 3 pairs the test cannot be significant at 5 %, whatever the values are",
    ]
    stranger = EvalResult(
        cases=tuple(EvalCase(case_id="x", classes=c.classes, counts=c.counts, values={}) for c in first[:1])
    )
    with pytest.raises(BadInputError, match="no case that all evaluations have: a has case_0; b has x"):
        compare_evaluations({"a": first, "b": stranger}, common=True)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (result([(0.5, 0.5)]), "different classes: a has 1, b has 1, 2"),
        (result([0.5], names={1: "kidney"}), "class 1 is 'liver' for a and 'kidney' for b"),
        (result([0.5], counts={**COUNTS, "n_ref": 3}), "case_0: class 1 has 2 voxels in the reference of a and 3"),
        (result([0.5], metric="hd95"), "no metric that all evaluations have: a has dice; b has hd95"),
        (result([0.5], definitions={"Dice": "another"}), "dice is not the same for a and b: 'one' and 'another'"),
    ],
)
def test_evaluations_of_other_things_are_refused(second, message):
    first = result([0.5], names={1: "liver"}, definitions={"Dice": "one"})
    with pytest.raises(BadInputError, match=message):
        compare_evaluations({"a": first, "b": second})


@pytest.mark.parametrize(
    ("metrics", "message"),
    [(["hd95"], "hd95 was not measured by all"), (["dise"], "Did you mean 'dice'")],
)
def test_metrics_that_cannot_be_compared_are_refused(metrics, message):
    with pytest.raises(BadInputError, match=message):
        compare_evaluations({"a": result([0.5]), "b": result([0.4])}, metrics=metrics)


def test_a_volume_has_no_better_value_and_is_not_compared_by():
    maps = [torch.randint(0, 2, (1, 6, 6), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    first, second = (Evaluator("dice", "volume_ml", "hd95").evaluate(m, maps[2]) for m in maps[:2])
    assert [each.metric for each in compare_evaluations([first, second]).metrics] == ["dice", "hd95"]
    with pytest.raises(BadInputError, match="volume_ml cannot be ranked, since neither higher nor lower is better"):
        compare_evaluations([first, second], metrics=["volume_ml"])


def test_fewer_than_two_or_the_same_twice_are_refused(tmp_path):
    result([0.5]).save(tmp_path / "summary.json")
    with pytest.raises(BadInputError, match="two evaluations or more"):
        compare_evaluations([tmp_path])
    with pytest.raises(BadInputError, match="is given twice"):
        compare_evaluations([tmp_path, tmp_path / "summary.json"])


def test_two_summaries_in_one_folder_are_two_evaluations(tmp_path):
    for seed, name in enumerate(("summary", "validation")):
        result(drawn(seed)).save(tmp_path / f"{name}.json")
    found = compare_evaluations([tmp_path / "summary.json", tmp_path / "validation.json"])
    assert found.names == ("summary", "validation")


def test_evaluations_are_named_by_the_shortest_ends_of_their_paths(tmp_path):
    for name in ("one/x", "two/x", "two/y"):
        result([0.5]).save(tmp_path / name / "summary.json")
    found = compare_evaluations([tmp_path / "one" / "x", tmp_path / "two" / "x" / "summary.json"])
    assert found.names == ("one/x", "two/x")
    assert compare_evaluations([tmp_path / "two" / "x", tmp_path / "two" / "y"]).names == ("x", "y")


def test_everything_shown_is_in_the_json_too(tmp_path):
    found = compare_evaluations({"a": result(drawn(0)), "b": result(drawn(1))}, method="bootstrap")
    found.save(tmp_path / "new" / "comparison.json")
    written = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert written == found.to_dict()
    assert written["interval"] == {"method": "bootstrap", "confidence": 0.95}
    assert {"case", "difference", "p_value", "rank", "dice"} <= written["definitions"].keys()
    (each,) = written["metrics"]
    text = found.table(classes=True)
    for value in (each["methods"][0]["mean"], each["differences"][0]["mean"], written["ranking"][0]["mean_rank"]):
        assert f"{value:.2f}" in text
    assert "by the bootstrap" in text
    assert "class 1" in text
