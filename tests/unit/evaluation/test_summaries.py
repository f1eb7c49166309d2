import json
import math

import pytest

from candy_monai.errors import BadInputError
from candy_monai.evaluation.summaries import read_scores

METRICS = {"Dice": 0.5, "HD95": "inf", "IoU": None, "TP": 1, "FP": 0, "FN": 2, "TN": 3, "n_pred": 1, "n_ref": 3}


def entry(case, **metrics):
    return {"case": case, "metrics": {"1": {**METRICS, **metrics}}}


def write(path, *cases, **others):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metric_per_case": list(cases), **others}))
    return path


def test_a_summary_is_read_under_our_names_of_metrics(tmp_path):
    found = read_scores(write(tmp_path / "any.json", entry("a"), class_names={"1": "x"}, definitions={"Dice": "text"}))
    values = found.cases["a"]["1"]
    assert (values["dice"], values["hd95"], math.isnan(values["iou"])) == (0.5, math.inf, True)
    assert (found.metrics, found.classes, found.voxels) == (("dice", "iou", "hd95"), ("1",), {"a": {"1": 3.0}})
    assert (found.class_names, found.definitions) == ({"1": "x"}, {"dice": "text"})


def test_cases_of_nnu_net_go_by_the_names_of_their_references(tmp_path):
    case = {"prediction_file": "/p/la_1.nii.gz", "reference_file": "/r/la_1.nii.gz", "metrics": {"(1, 2)": METRICS}}
    file = write(tmp_path / "summary.json", case, foreground_mean={}, mean={})
    file.write_text(file.read_text().replace("null", "NaN"))
    found = read_scores(tmp_path)
    assert list(found.cases) == ["la_1"]
    assert found.classes == ("(1, 2)",)


def test_a_summary_that_was_written_on_windows_is_read(tmp_path):
    case = {"prediction_file": r"C:\p\la_1.nii.gz", "reference_file": r"C:\r\la_1.nii.gz", "metrics": {"1": METRICS}}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [case]}), encoding="utf-8-sig")
    assert list(read_scores(tmp_path).cases) == ["la_1"]


def test_an_experiment_and_a_cross_validation_are_read_by_their_folders(tmp_path):
    experiments = [tmp_path / "crossval" / f"fold_{fold}" / "UNetTrainer" / f"2025-{fold}" for fold in (0, 1)]
    for fold, experiment in enumerate(experiments):
        write(experiment / "validation.json", entry(f"case_{fold}"))
        (experiment / "experiment.json").write_text("{}")
    assert list(read_scores(experiments[0]).cases) == ["case_0"]
    assert list(read_scores(tmp_path / "crossval").cases) == ["case_0", "case_1"]
    write(experiments[1] / "validation.json", entry("case_0"))
    with pytest.raises(BadInputError, match="case_0 is in another fold, too"):
        read_scores(tmp_path / "crossval")
    for fold, experiment in enumerate(experiments):
        write(experiment / "validation.json", entry(f"case_{fold}"), definitions={"Dice": f"of {fold}"})
    with pytest.raises(BadInputError, match="dice is not the same as in another fold: 'of 1' and 'of 0'"):
        read_scores(tmp_path / "crossval")
    (experiments[1] / "validation.json").unlink()
    with pytest.raises(BadInputError, match="the folds 1 are not finished"):
        read_scores(tmp_path / "crossval")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "holds a list, expected the summary"),
        ("{", "cannot be read as JSON"),
        ("{}", "no summary of an evaluation.*metric_per_case"),
        ('{"metric_per_case": []}', "has no cases"),
        ('{"metric_per_case": [{"metrics": {}}]}', "no summary of an evaluation"),
        ('{"metric_per_case": [{"case": "a", "metrics": {}}, {"case": "a", "metrics": {}}]}', "case a is listed twice"),
        ('{"metric_per_case": [{"case": "a", "metrics": {"1": {"Dice": "much"}}}]}', "no summary of an evaluation"),
    ],
)
def test_a_file_that_is_no_summary_is_refused_by_name(tmp_path, content, message):
    file = tmp_path / "summary.json"
    file.write_text(content)
    with pytest.raises(BadInputError, match=f"summary.json.*{message}"):
        read_scores(file)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [({"Dice": 84.2}, r"dice is 84.2, expected 0 to 1 \(a fraction"), ({"HD95": -1}, "hd95 is -1, expected 0 to inf$")],
)
def test_a_value_that_a_metric_cannot_have_is_refused(tmp_path, metrics, message):
    with pytest.raises(BadInputError, match=rf"any\.json: a, class 1: {message}"):
        read_scores(write(tmp_path / "any.json", entry("a", **metrics)))


def test_a_folder_without_one_says_what_was_expected(tmp_path):
    with pytest.raises(BadInputError, match="holds neither summary.json .* nor validation.json"):
        read_scores(tmp_path)
    with pytest.raises(BadInputError, match="no such file or folder"):
        read_scores(tmp_path / "nowhere")
