import json
import math

import pytest

from candy_monai.errors import BadInputError
from candy_monai.experiment.summary import read_summary, summary_of

METRICS = {"Dice": 0.5, "HD95": "inf", "IoU": None, "TP": 1, "n_pred": 1, "n_ref": 3}


def test_a_case_has_its_metrics_by_class_without_the_counts(tmp_path):
    content = {
        "foreground_mean": {"Dice": 0.5},
        "class_names": {"1": "liver"},
        "definitions": {"Dice": "text"},
        "metric_per_case": [{"case": "a", "metrics": {"1": METRICS}, "values": {"mine": 2}}],
    }
    (tmp_path / "s.json").write_text(json.dumps(content))
    found = read_summary(tmp_path / "s.json")
    (case,) = found.cases
    assert (case.case_id, case.voxels, case.values) == ("a", {"1": 3.0}, {"mine": 2.0})
    values = case.classes["1"]
    assert (values["Dice"], values["HD95"], math.isnan(values["IoU"]), len(values)) == (0.5, math.inf, True, 3)
    assert (found.dice, found.class_names, found.definitions) == (0.5, {"1": "liver"}, {"Dice": "text"})


def test_a_case_without_an_id_goes_by_its_reference_or_else_by_its_prediction():
    entries = [
        {"prediction_file": "/p/x.nii.gz", "reference_file": "/r/a.b.nii.gz", "metrics": {}},
        {"prediction_file": "/p/c.nii.gz", "reference_file": None, "metrics": {}},
    ]
    assert [case.case_id for case in summary_of({"metric_per_case": entries}, source="s").cases] == ["a.b", "c"]


@pytest.mark.parametrize("means", [None, {}, 3, {"Dice": None}, {"Dice": math.nan}, {"Dice": "inf"}])
def test_a_summary_without_a_mean_dice_has_none(means):
    content = {"foreground_mean": means, "metric_per_case": [{"case": "a", "metrics": {}}]}
    assert summary_of(content, source="s").dice is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("3", "holds a int, expected the summary"),
        ("{}", "no summary of an evaluation"),
        ('{"metric_per_case": [3]}', "no summary of an evaluation"),
        ('{"metric_per_case": []}', "has no cases"),
        ('{"metric_per_case": [{"case": "a", "metrics": {"1": {"Dice": "x"}}}]}', "no summary of an evaluation"),
        ('{"metric_per_case": [{"case": "a", "metrics": {}}, {"case": "a", "metrics": {}}]}', "a is listed twice"),
    ],
)
def test_what_is_no_summary_is_refused_with_its_file(tmp_path, text, message):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(BadInputError, match=f"s.json: .*{message}"):
        read_summary(tmp_path / "s.json")
