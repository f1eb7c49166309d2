import json

import pytest
import torch

from candy_monai.cli.main import main
from candy_monai.errors import BadInputError
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.report.evaluation import write_cross_validation, write_evaluation
from candy_monai.report.script import read_script
from tests.pages import made_up_run


def content(page):
    return read_script(page.read_text(encoding="utf-8"), "page-data")


def final(*cases):
    scores = [{"case": case, "metrics": {"1": {"Dice": dice}}} for case, dice in cases]
    mean = sum(dice for _, dice in cases) / len(cases)
    return json.dumps({"foreground_mean": {"Dice": mean}, "class_names": {"1": "kidney"}, "metric_per_case": scores})


@pytest.fixture
def folds(tmp_path):
    folder = tmp_path / "crossval-Made up"
    for fold, cases in enumerate(([("a", 0.5), ("b", 0.75)], [("c", 1.0)])):
        run = folder / f"fold_{fold}" / "UNetTrainer" / "20261101-10-aaaa"
        made_up_run(run)
        (run / "validation.json").write_text(final(*cases))
    return folder


def test_an_evaluation_has_a_page_with_its_cases_classes_and_notes(tmp_path):
    reference = torch.zeros(1, 4, 4, dtype=torch.int64)
    reference[0, :2] = 1
    result = Evaluator("dice", class_names={1: "kidney"}).evaluate(
        {"a": reference, "b": reference}, {"a": reference, "b": reference.roll(1, 1)}
    )
    page = write_evaluation(
        result.to_dict(), tmp_path / "p.html", title="mine", notes=["left out: c"], names={1: "kidney"}
    )
    found = content(page)
    assert found["tables"][0]["rows"] == [["a", 1.0], ["b", 0.5]]
    assert found["tables"][0]["note"] == "left out: c."
    assert found["tables"][1]["rows"][0][:3] == ["kidney", 2.0, 0.75]
    assert found["tiles"][0]["value"] == "0.7500"


def test_the_mean_on_the_page_is_that_of_the_summary_where_a_case_lacks_a_class(tmp_path):
    both, one = torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 4, 4, dtype=torch.int64)
    both[0, 0], both[0, 1], one[0, 0] = 1, 2, 1
    result = Evaluator("dice").evaluate({"a": both * (both != 2), "b": one}, {"a": both, "b": one})
    summary = result.to_dict()
    assert summary["foreground_mean"]["Dice"] == 0.5  # class 1 has 1.0 on average, class 2, of one case, 0.0
    page = write_evaluation(summary, tmp_path / "p.html", title="mine", names={1: "kidney", 2: "tumor"})
    assert content(page)["tiles"][0]["value"] == "0.5000"  # the mean of the cases is 0.75


def test_evaluate_writes_a_page_beside_its_table(tmp_path, capsys):
    import nibabel as nib
    import numpy as np

    for name in ("predictions", "labels"):
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(np.eye(4, dtype=np.uint8)[..., None], np.eye(4)), tmp_path / name / "a.nii.gz")
    page = tmp_path / "new" / "page.html"
    assert main(["evaluate", str(tmp_path / "predictions"), str(tmp_path / "labels"), "--page", str(page)]) == 0
    assert content(page)["tables"][0]["rows"][0][0] == "a"
    assert f"Page: {page}" in capsys.readouterr().out


def test_a_cross_validation_has_a_page_with_the_cases_of_all_folds(folds):
    found = content(write_cross_validation(folds))
    assert [row[:5] for row in found["folds"]["rows"]] == [
        ["fold 0", "finished", 10.0, 2.0, 0.625],
        ["fold 1", "finished", 10.0, 1.0, 1.0],
    ]
    assert [row[:3] for row in found["tables"][0]["rows"]] == [
        ["a", "fold 0", 0.5],
        ["b", "fold 0", 0.75],
        ["c", "fold 1", 1.0],
    ]
    assert found["tiles"][0]["value"] == "0.7500"
    assert [one["name"] for one in found["figures"][0]["series"]] == ["fold 0", "fold 1"]


def test_folds_that_are_not_scored_yet_are_named_and_not_mixed_in(folds):
    (folds / "fold_1" / "UNetTrainer" / "20261101-10-aaaa" / "validation.json").unlink()
    table = content(write_cross_validation(folds))["tables"][0]
    assert [row[0] for row in table["rows"]] == ["a", "b"]
    assert table["note"].endswith("Those of fold 1 are not scored yet.")


def test_report_of_a_cross_validation_writes_its_page(folds, capsys):
    assert main(["report", str(folds)]) == 0
    assert (folds / "crossval.html").is_file()


def test_a_folder_without_folds_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="no cross-validation"):
        write_cross_validation(tmp_path)
