"""A cross-validation of two configurations, trained for a moment, from the choice to label maps and a bundle."""

import json
import shutil
from dataclasses import asdict

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.cli.main import main
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.reading import load_image
from candy_monai.data.pipelines.description import largest_component, without_small_components
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.checkpoints import load_tensors, save_tensors
from candy_monai.experiment.folder import STATE
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.quality import Calibration, QualityModel
from candy_monai.recipes.fold_scores import score_the_rest, summary_of_folds, write_summary
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.out_of_fold import CrossValidation, OutOfFold
from candy_monai.recipes.predict import load_experiments
from candy_monai.recipes.quality import in_words
from candy_monai.recipes.select import select
from candy_monai.recipes.selection import Selection
from candy_monai.recipes.train import train_dataset
from candy_monai.transforms import KeepLargestComponent, RemoveSmallComponents

pytestmark = pytest.mark.slow

TINY = {"filters": "4,8,8", "iterations_per_epoch": "8", "batch_size": "2", "validate_every": "1"}


def _quiet(_message):
    pass


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Return a dataset of overlapping regions: the whole body and its core."""
    folder = write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=4, shape=(20, 22, 16))
    described = json.loads((folder / "dataset.json").read_text())
    described |= {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def trained(phantom, tmp_path_factory):
    """Return the folder of a cross-validation of two folds in each configuration."""
    out = tmp_path_factory.mktemp("out")
    folder = out / "crossval-phantom"
    summaries = {}
    for configuration in ("2d", "3d"):
        runs = {}
        for fold in range(2):
            place = folder / configuration / f"fold_{fold}"
            options = {"configuration": configuration, "fold": fold, "num_folds": 2, "num_epochs": 2, "seed": 1}
            options |= {"overrides": TINY, "device": "cpu", "out": place, "store": out / "store", "no_report": True}
            runs[fold] = train_dataset(phantom, on_progress=_quiet, **options)
        summaries[configuration] = summary_of_folds(runs, NNUNetDataset(phantom).description)
        write_summary(folder / configuration, summaries[configuration])
    write_summary(folder, {"configurations": summaries})
    return folder


@pytest.fixture(scope="module")
def chosen(trained):
    said = []
    return select(trained, device="cpu", on_progress=said.append), said


@pytest.fixture
def crossval(trained, tmp_path):
    """Return a copy that a test may damage."""
    return shutil.copytree(trained, tmp_path / "crossval-phantom")


def test_every_candidate_is_scored_on_every_case_by_the_models_that_did_not_see_it(chosen, trained, phantom):
    selection, _ = chosen
    found = {candidate["name"]: candidate for candidate in selection.candidates}
    assert list(found) == ["2d", "3d", "2d+3d"]
    summary = json.loads((trained / "crossval.json").read_text())["configurations"]
    for name in ("2d", "3d"):  # what the folds themselves scored
        assert found[name]["num_cases"] == 4
        assert found[name]["dice"] == pytest.approx(summary[name]["cases"]["foreground_mean"], abs=1e-9)
        assert found[name]["std"] == pytest.approx(summary[name]["std"], abs=1e-9)
    assert selection.configurations == tuple(max(found.values(), key=lambda each: each["dice"])["configurations"])
    cases = CrossValidation.read(trained)
    number, case_id = next((number, left_out[0]) for number, left_out in cases.left_out.items())
    members = [load_experiments([run], on_progress=_quiet) for run in cases.experiments[number]]
    expected = EnsemblePredictor(members).predict_image(cases.cases[case_id].images[0], probabilities=True)
    with np.load(trained / "out_of_fold" / "2d+3d" / f"{case_id}.npz") as stored:
        assert torch.equal(torch.from_numpy(stored["labels"]), expected.labels.as_tensor()[0])
    out_of_fold = OutOfFold(crossval=cases, candidates={})
    whole, core = expected.probabilities.as_tensor()
    by_thresholds = torch.where(core > 0.7, 2, (whole > 0.2).long())
    assert torch.equal(out_of_fold.labels("2d+3d", case_id, thresholds=(0.2, 0.7)).as_tensor()[0], by_thresholds)


def test_the_same_call_predicts_nothing_anew(chosen, trained):
    said = []
    again = select(trained, device="cpu", on_progress=said.append)
    assert again.to_dict() == chosen[0].to_dict()
    assert [text for text in said if "predict" in text] == [
        f"Fold {number}: all cases are predicted already" for number in range(2)
    ]


def test_a_case_whose_files_changed_is_predicted_anew_and_a_changed_dataset_is_told(
    chosen, crossval, phantom, tmp_path
):
    moved = shutil.copytree(phantom, tmp_path / "moved")
    said = []
    select(crossval, dataset=moved, device="cpu", on_progress=said.append)
    assert said[:2] == [f"Fold {number}: all cases are predicted already" for number in range(2)]
    image = sorted((moved / "imagesTr").iterdir())[0]
    read = nibabel.load(image)
    nibabel.save(nibabel.Nifti1Image(np.asarray(read.dataobj) + 1, read.affine, read.header), image)
    said.clear()
    select(crossval, dataset=moved, device="cpu", on_progress=said.append)
    assert said[0].startswith(f"Warning: {moved}: has changed since the models were trained")
    assert sorted(text.split(": ")[1] for text in said[1:3]) == ["all cases are predicted already", "predicting 1 case"]


def test_prediction_follows_the_choice(chosen, crossval, phantom):
    selection = Selection.read(crossval)
    steps = (largest_component([1, 2]), without_small_components([2], 5.0))
    edited = Selection(**{**vars(selection), "postprocessing": steps, "thresholds": (0.3, 0.6)})
    edited.save()
    image = sorted((phantom / "imagesTr").iterdir())[0]
    said = []
    predictor = load_experiments([crossval], on_progress=said.append)
    assert [member.folder for member in predictor.members] == edited.experiments
    assert len(edited.experiments) == 2 * len(edited.configurations)
    assert said == [f"As chosen in {crossval / 'inference.json'}:", *(f"- {reason}" for reason in edited.reasons)]
    prediction = predictor.predict_image(image, probabilities=True)
    whole, core = prediction.probabilities.as_tensor()
    plain = torch.where(core > 0.6, 2, (whole > 0.3).long())[None]
    plain = MetaTensor(plain, affine=prediction.labels.affine)
    cleaned = KeepLargestComponent(applied_labels=[1, 2], independent=False)(plain)
    cleaned = RemoveSmallComponents(5.0, by_measure=True, applied_labels=[2])(cleaned)
    assert torch.equal(prediction.labels.as_tensor(), cleaned.as_tensor())


def test_the_commands_say_what_was_chosen_and_predict_with_it(chosen, crossval, phantom, tmp_path, capsys):
    assert main(["select", str(crossval), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((crossval / "inference.json").read_text())
    assert main(["select", str(crossval), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Next: candy-monai predict {crossval} {phantom / 'imagesTs'} predictions"
    assert any(line.startswith(f"{chosen[0].scores['name']}, as chosen") for line in lines)
    image = sorted((phantom / "imagesTr").iterdir())[0]
    assert main(["predict", str(crossval), str(image), str(tmp_path / "out"), "--device", "cpu"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["runs"][0]["settings"]["postprocessing"] == list(chosen[0].postprocessing)
    assert len(manifest["runs"][0]["models"]) == len(chosen[0].members)
    assert load_image(tmp_path / "out" / image.name.replace("_0000", ""), is_label=True).any()


def test_folds_that_do_not_belong_together_are_refused_before_anything_is_predicted(crossval):
    shutil.rmtree(crossval / "out_of_fold")
    run = next((crossval / "3d" / "fold_1").glob("*/[0-9]*"))
    description = json.loads((run / "experiment.json").read_text())
    whole = (run / "experiment.json").read_text()
    for entry, value, said in [
        ("digest", "0" * 64, "the dataset's content"),
        ("name", "Other", "the dataset is Other"),
        ("labels", {"background": 0, "other": 1}, "labels is"),
        ("validation", description["dataset"]["validation"][:1], "leave out other cases than those of 2d"),
        ("training", description["dataset"]["validation"], "which are also among its validation cases"),
    ]:
        (run / "experiment.json").write_text(
            json.dumps({**description, "dataset": {**description["dataset"], entry: value}})
        )
        with pytest.raises(ExperimentError, match=said):
            select(crossval, device="cpu", on_progress=_quiet)
    (run / "experiment.json").write_text(whole)
    state = load_tensors(run / STATE)
    save_tensors(run / STATE, {**state, "is_complete": False})
    with pytest.raises(
        ExperimentError, match=r"3d: fold 1 has no finished run.*crossval command trains what is missing"
    ):
        select(crossval, device="cpu", on_progress=_quiet)
    shutil.rmtree(run)
    with pytest.raises(ExperimentError, match=r"3d: fold 1 has no finished run"):
        select(crossval, device="cpu", on_progress=_quiet)
    assert not (crossval / "out_of_fold").exists()


def test_cases_that_a_budget_left_unscored_are_scored_afterwards(crossval, phantom):
    run = next((crossval / "2d" / "fold_0").glob("*/[0-9]*"))
    scores = run / "validation.json"
    whole = json.loads(scores.read_text())
    quality = json.loads((run / "quality.json").read_text())
    (run / "quality.json").write_text(json.dumps({**quality, "calibration": asdict(Calibration())}))
    scores.write_text(json.dumps({**whole, "num_cases": 1, "metric_per_case": whole["metric_per_case"][:1]}))
    said = []
    score_the_rest(run, NNUNetDataset(phantom), TrainOptions(device="cpu"), on_progress=said.append)
    assert json.loads((run / "quality.json").read_text())["calibration"]["num_cases"] == 2
    assert json.loads(scores.read_text())["metric_per_case"] == whole["metric_per_case"]
    score_the_rest(run, NNUNetDataset(phantom), TrainOptions(device="cpu"), on_progress=said.append)
    assert said[0] == f"{run}: scoring all 2 validation cases, of which its budget left time for 1"
    assert said[1:] == [f"{run}: {in_words(QualityModel.load(run, run / 'checkpoint_best.pth').calibration)}"]


def test_without_a_choice_the_folder_of_several_configurations_is_no_model(crossval):
    (crossval / "inference.json").unlink()
    with pytest.raises(
        ExperimentError, match=r"of the configurations 2d, 3d: choose among them with candy-monai select"
    ):
        load_experiments([crossval])
    assert len(load_experiments([crossval / "2d"], on_progress=_quiet).members) == 2


def test_a_folder_that_is_no_cross_validation_is_refused(tmp_path, trained):
    with pytest.raises(ExperimentError, match="expected a folder that candy-monai crossval wrote"):
        select(tmp_path)
    with pytest.raises(BadInputError, match="the dataset no longer exists"):
        select(trained, dataset=tmp_path / "none")
