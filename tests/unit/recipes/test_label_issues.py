"""Errors in the labels of a dataset, by what was not trained on the case."""

from __future__ import annotations

import json
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.cli.main import main
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError
from candy_monai.experiment.description import DatasetRecord
from candy_monai.recipes import label_issues
from candy_monai.recipes.label_issues import find_label_issues


class Knowing:
    """Stands in for a predictor that knows the labels as they were."""

    plan = None

    def __init__(self, labels):
        self.labels = labels

    def predict_image(self, files, *, probabilities):
        ids = self.labels[files[0].name.removesuffix("_0000.nii.gz")]
        one_hot = torch.nn.functional.one_hot(ids[0], 3).movedim(-1, 0).float()
        return SimpleNamespace(labels=MetaTensor(ids), probabilities=MetaTensor(one_hot))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return a dataset with an error in one label, and make two folds of it that know better."""
    folder = write_phantom_dataset(tmp_path / "d", num_cases=4, shape=(24, 24, 16))
    dataset = NNUNetDataset(folder)
    labels = {case_id: dataset.read(index)[1].values for index, case_id in enumerate(dataset.case_ids)}
    broken = dataset.cases[2].label
    image = nibabel.load(broken)
    values = np.asarray(image.dataobj).copy()
    values[:] = 0
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), broken)
    folds = {"0": dataset.case_ids[1:], "1": (dataset.case_ids[0], *dataset.case_ids[2:])}
    records = {
        name: DatasetRecord(folder=str(folder), digest="d", training=training) for name, training in folds.items()
    }
    monkeypatch.setattr(label_issues, "experiment_folders", lambda given, on_progress: list(given))
    monkeypatch.setattr(label_issues, "_record_of", lambda run: records[str(run)])
    monkeypatch.setattr(label_issues, "load_experiments", lambda *_, **__: Knowing(labels))
    return SimpleNamespace(dataset=dataset, records=records, labels=labels)


def test_a_label_that_lacks_everything_comes_first_with_pictures_and_json(runs, tmp_path, capsys):
    runs.records["0"] = DatasetRecord(folder=str(runs.dataset.folder), digest="d", training=(runs.dataset.case_ids[0],))
    out = tmp_path / "out"
    assert main(["label-issues", "0", "1", str(out), "--pictures", "1"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((out / "label_issues.json").read_text())
    case_id = runs.dataset.case_ids[2]
    assert {issue["case"] for issue in content["issues"]} == {case_id}
    assert [entry["case"] for entry in content["cases"]] == [case_id]
    assert (content["num_cases"], content["left_out"], content["unit"]) == (4 - 1, [runs.dataset.case_ids[0]], "ml")
    assert [path.name for path in out.glob("*.png")] == [f"01 {case_id}.png"]
    assert f"{case_id}  background" in printed
    assert "1 case is left out" in printed


def test_once_a_label_is_mended_its_picture_is_gone_and_no_other_file_is(runs, tmp_path):
    runs.records["0"] = DatasetRecord(folder=str(runs.dataset.folder), digest="d", training=(runs.dataset.case_ids[0],))
    out = tmp_path / "out"
    (found,) = {issue.case_id for issue in find_label_issues(["0", "1"], out, on_progress=lambda _: None).issues}
    assert list(out.glob("01 *.png")) == [out / f"01 {found}.png"]
    (out / "mine.png").touch()
    label = runs.dataset.cases[2].label
    image = nibabel.load(label)
    nibabel.save(nibabel.Nifti1Image(runs.labels[found][0].numpy().astype(np.uint8), image.affine), label)
    assert find_label_issues(["0", "1"], out, on_progress=lambda _: None).issues == ()
    assert [path.name for path in out.glob("*.png")] == ["mine.png"]


def test_cases_that_every_run_was_trained_on_are_left_out_and_all_of_them_refused(runs, tmp_path):
    found = find_label_issues(["0", "1"], tmp_path / "out", on_progress=lambda _: None)
    assert found.num_cases == 2
    assert found.left_out == runs.dataset.case_ids[2:]
    runs.records["0"] = DatasetRecord(folder=str(runs.dataset.folder), digest="d", training=runs.dataset.case_ids)
    with pytest.raises(BadInputError, match="every case of .* was trained on"):
        find_label_issues(["0"], tmp_path / "out", on_progress=lambda _: None)


def test_a_dataset_that_lacks_cases_or_was_changed_is_no_silent_stand_in(runs, tmp_path):
    said = []
    find_label_issues(["0", "1"], tmp_path / "out", on_progress=said.append)
    assert said[0].startswith(f"Warning: {runs.dataset.folder}: has changed since the models were trained")
    runs.records["1"] = DatasetRecord(folder=str(runs.dataset.folder), digest="d", training=("gone",))
    with pytest.raises(BadInputError, match="lacks the cases gone, with which the models were trained"):
        find_label_issues(["0", "1"], tmp_path / "out", on_progress=lambda _: None)


def test_runs_on_different_datasets_are_refused(runs, tmp_path):
    runs.records["1"] = DatasetRecord(folder=str(runs.dataset.folder), digest="other", training=())
    with pytest.raises(BadInputError, match="1: was trained on another dataset than 0"):
        find_label_issues(["0", "1"], tmp_path / "out", on_progress=lambda _: None)
