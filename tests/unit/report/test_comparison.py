import json
from datetime import datetime

import pytest

from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.history import History
from candy_monai.report.comparison import (
    compared_runs,
    document_of_comparison,
    paired,
    tables_of_comparison,
    write_comparison,
)
from candy_monai.report.script import read_script
from candy_monai.report.tables import ScoredCase
from tests.pages import made_up_run, validated

NOW = datetime(2026, 1, 1)


@pytest.fixture
def folders(tmp_path):
    made_up_run(tmp_path / "first", settings={"seed": 1})
    made_up_run(tmp_path / "second", settings={"seed": 2}, event=validated(score=0.9), num_epochs=12)
    return [tmp_path / "first", tmp_path / "second"]


def compared(folders):
    return document_of_comparison(compared_runs(folders), now=NOW).content


def scored(*scores):
    return [ScoredCase(case_id=f"c{i}", score=score, classes={"dice": {1: score}}) for i, score in enumerate(scores)]


def test_what_differs_is_named_and_what_does_not_is_not(folders):
    groups = {group["title"]: group["rows"] for group in compared(folders)["differences"]}
    assert groups["settings"] == [["seed", "1", "2"]]
    assert groups["plan"] == groups["dataset"] == []


def test_curves_of_the_same_metric_share_a_figure_with_a_colour_for_each_run(folders):
    content = compared(folders)
    figures = {figure["key"]: figure for figure in content["figures"]}
    score = figures["val score/"]
    assert [one["name"] for one in score["series"]] == ["first", "second"]
    assert [len(one["x"]) for one in score["series"]] == [10, 12]
    assert {one["color"] for one in score["series"]} == {run["color"] for run in content["runs"]}
    assert figures["combined loss/training"]["title"] == "Loss: training"


def test_a_metric_is_overlaid_though_not_every_run_has_its_validation(tmp_path):
    made_up_run(tmp_path / "first")
    metrics = made_up_run(tmp_path / "second")._progress.metrics
    history = History()
    for row in zip(metrics["combined loss"], metrics["val score"], strict=True):
        history.close_epoch(dict(zip(("combined loss", "val score"), row, strict=True)))
    history.save_csv(tmp_path / "second" / "metrics.csv")
    figures = {figure["key"]: figure for figure in compared([tmp_path / "first", tmp_path / "second"])["figures"]}
    assert {key: [one["name"] for one in figure["series"]] for key, figure in figures.items()} == {
        "val score/": ["first", "second"],
        "combined loss/training": ["first", "second"],
    }


def test_of_long_lists_that_differ_only_at_their_end_the_difference_is_shown(tmp_path):
    cases = [f"case_{i:03}" for i in range(40)]
    for name, training in (("first", cases[:-1]), ("second", [*cases[:-2], cases[-1]]), ("third", cases)):
        made_up_run(tmp_path / name, dataset={"name": "Made up", "training": training, "validation": []})
    groups = {group["title"]: group["rows"] for group in compared(sorted(tmp_path.iterdir()))["differences"]}
    assert groups["dataset"] == [
        ["training", "39 entries, not in all: case_038", "39 entries, not in all: case_039",
         "40 entries, not in all: case_038, case_039"],
    ]  # fmt: skip


def test_scores_are_compared_case_by_case_and_wins_counted():
    first, other = scored(0.5, 0.6, 0.7, 0.8), scored(0.6, 0.7, 0.8, 0.8)
    runs, classes, cases = tables_of_comparison(["a", "b"], [(first, {1: "kidney"}), (other, {})])
    assert runs.rows[0] == ["a", 0.65, None, None, 0.0, 1.0]
    assert runs.rows[1][:3] == ["b", 0.725, 0.075]
    assert runs.rows[1][3] == "-0.0046 to +0.1546"
    assert runs.rows[1][4:] == [3.0, 1.0]
    assert classes.rows == [["kidney", 0.65, 0.725, 0.075]]
    assert cases.rows[0] == ["c0", 0.5, 0.6, "b", 0.1]
    assert cases.rows[3] == ["c3", 0.8, 0.8, "the same", 0.0]


def test_classes_are_compared_by_name_though_their_ids_differ():
    first = [ScoredCase(case_id="c", score=0.5, classes={"dice": {1: 0.9, 2: 0.1}})]
    other = [ScoredCase(case_id="c", score=0.5, classes={"dice": {1: 0.2, 2: 0.8, 3: 0.3}})]
    names = [{1: "liver", 2: "spleen"}, {1: "spleen", 2: "liver", 3: "colon"}]
    _, classes, _ = tables_of_comparison(["a", "b"], list(zip([first, other], names, strict=True)))
    assert classes.rows == [["liver", 0.9, 0.8, 0.1], ["spleen", 0.1, 0.2, 0.1], ["colon", None, 0.3, None]]


def test_names_that_differ_only_in_case_are_different_classes_and_pointed_out():
    case = [ScoredCase(case_id="c", score=0.5, classes={"dice": {1: 0.9, 2: 0.1}})]
    _, classes, _ = tables_of_comparison(["a", "b"], [(case, {1: "Liver", 2: "LA"}), (case, {1: "liver", 2: "LA"})])
    assert classes.rows == [["Liver", 0.9, None, None], ["LA", 0.1, 0.1, 0.0], ["liver", None, 0.9, None]]
    assert classes.note.endswith("Attention: Liver and liver differ only in case and count as different classes.")
    both = (case, {1: "La", 2: "LA"})
    assert "Attention" not in tables_of_comparison(["a", "b"], [both, both])[1].note


def test_folds_are_compared_by_their_numbers(tmp_path):
    for fold in (0, 1):
        made_up_run(tmp_path / f"fold_{fold}" / "UNetTrainer" / f"20260101-10-000{fold}")
    runs = compared_runs(sorted(tmp_path.glob("fold_*/*/*")))
    assert [run.name for run in runs] == ["fold_0", "fold_1"]


def test_the_interval_of_a_difference_is_student_s_over_the_pairs():
    from scipy.stats import ttest_rel

    first, other = [0.5, 0.6, 0.9, 0.4], [0.6, 0.65, 0.85, 0.7]
    mean, half = paired(first, other)
    ends = ttest_rel(other, first).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((ends.low, ends.high))


def test_only_cases_that_all_runs_have_scored_are_compared():
    runs, *_, cases = tables_of_comparison(
        ["a", "b"], [(scored(0.5, 0.6, float("nan")), {}), (scored(0.7, 0.7, 0.8, 0.9), {})]
    )
    assert [row[0] for row in cases.rows] == ["c0", "c1"]
    assert "2 cases" in runs.note
    assert tables_of_comparison(["a", "b"], [(scored(0.5), {}), ([], {})]) == []


def test_one_case_has_no_interval():
    runs, *_ = tables_of_comparison(["a", "b"], [(scored(0.5), {}), (scored(0.7), {})])
    assert runs.rows[1][3] == "one case"


def test_scores_of_different_kinds_are_not_mixed(folders):
    final = {
        "foreground_mean": {"Dice": 0.5},
        "metric_per_case": [{"case": "case_000", "metrics": {"1": {"Dice": 0.5}}}],
    }
    (folders[0] / "validation.json").write_text(json.dumps(final))
    notes = compared(folders)["notes"]
    assert notes[0] == "Scores of each run's last validation."
    assert notes[1].startswith("The best weights of second were not scored")
    (folders[1] / "validation.json").write_text(json.dumps(final))
    content = compared(folders)
    assert content["notes"][0].startswith("Scores of the best weights")
    assert [row[0] for row in content["tables"][-1]["rows"]] == ["case_000"]


def test_other_data_and_cases_that_another_run_was_trained_on_are_pointed_out(tmp_path):
    dataset = {"name": "Made up", "digest": "other", "training": ["case_000"], "validation": ["case_001"]}
    made_up_run(tmp_path / "first")
    made_up_run(tmp_path / "second", dataset=dataset)
    notes = " ".join(compared([tmp_path / "first", tmp_path / "second"])["notes"])
    assert "different data" in notes
    assert "another was trained on" in notes


def test_runs_of_one_name_go_by_as_much_of_their_path_as_tells_them_apart(tmp_path):
    for parent in ("a", "b"):
        made_up_run(tmp_path / parent / "run")
    assert [run.name for run in compared_runs([tmp_path / "a/run", tmp_path / "b/run"])] == ["a/run", "b/run"]


def test_images_are_kept_of_each_run_that_has_them(folders, tmp_path):
    page = write_comparison(folders, tmp_path / "c.html").read_text(encoding="utf-8")
    views = read_script(page, "page-views")
    assert [len(own) for own in views] == [3, 3]
    (folders[1] / "report.html").unlink()
    views = read_script(write_comparison(folders, tmp_path / "c.html").read_text(encoding="utf-8"), "page-views")
    assert [len(own) for own in views] == [3, 0]


def test_images_that_make_a_page_too_large_are_left_to_the_runs_own(folders, monkeypatch):
    monkeypatch.setattr("candy_monai.report.comparison.MOST_VIEW_BYTES", 1)
    content = compared(folders)
    assert content["view_note"] == "2 more cases are in the runs' own pages."


def test_less_than_two_runs_or_one_given_twice_is_refused(folders, tmp_path):
    with pytest.raises(BadInputError, match="two runs or more"):
        compared_runs(folders[:1])
    with pytest.raises(BadInputError, match="more than once"):
        compared_runs([*folders, folders[0] / ".." / "first"])
    with pytest.raises(ExperimentError, match="not an experiment folder"):
        compared_runs([folders[0], tmp_path])
