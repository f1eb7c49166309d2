"""A cascade of two networks, trained for a moment, from its first stage to label maps."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

import candy_monai
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.reading import load_image
from candy_monai.data.planning.files import read_plan
from candy_monai.data.samples.patches import PatchDataset
from candy_monai.data.samples.store import CaseStore
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment.checkpoints import load_tensors, save_tensors
from candy_monai.export.exporting import export_experiments
from candy_monai.inference.predictor import Predictor
from candy_monai.nn.previous_stage import WithPreviousStage
from candy_monai.recipes.cascade import FirstStage
from candy_monai.recipes.train import train_dataset

pytestmark = pytest.mark.slow

TINY = {"filters": "4,8,8", "iterations_per_epoch": "6", "batch_size": "2", "patch_shape": "16,16,8"}


def _quiet(_message):
    pass


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=4, shape=(36, 34, 20))


def _trained(phantom, out, **options):
    options = {"num_epochs": 1, "num_folds": 2, "seed": 3, "overrides": TINY, "device": "cpu"} | options
    store = out.parent / "store"
    return train_dataset(phantom, on_progress=_quiet, out=out, store=store, no_report=True, **options)


@pytest.fixture(scope="module")
def first(phantom, tmp_path_factory):
    """Return a cross-validation of the first stage."""
    folder = tmp_path_factory.mktemp("out") / "lowres"
    for fold in range(2):
        _trained(phantom, folder / f"fold_{fold}", configuration="3d_lowres", fold=fold)
    return folder


@pytest.fixture(scope="module")
def second(phantom, first):
    """Return the experiment of the second stage on the first fold."""
    return _trained(phantom, first.parent / "cascade", configuration="3d_cascade", previous=first)


def test_the_network_gets_a_channel_for_each_class_of_the_first_stage(second):
    description = json.loads((second / "experiment.json").read_text())
    assert (description["plan"]["num_previous"], description["plan"]["full_spacing_mm"]) == (2, None)
    assert description["network"]["example_shape"][0] == 2  # the image, and the ids of the first stage
    assert description["network"]["arguments"]["in_channels"] == 3
    predictor = Predictor(second)
    assert isinstance(predictor.model, WithPreviousStage)
    assert (predictor.num_channels, predictor.channel_names) == (1, ("phantom contrast 1",))


def test_a_case_is_prepared_for_prediction_as_it_was_stored(phantom, first, second):
    # The fold's own model of the first stage predicted the validation cases, for the store and now.
    described = json.loads((second / "experiment.json").read_text())
    dataset, plan = NNUNetDataset(phantom), read_plan(second)
    (store,) = {path.parent for path in (first.parent / "store").rglob("store-*.json")} - {
        path.parent
        for path in (first.parent / "store").rglob("store-*.json")
        if len(CaseStore(path.parent).load(dataset.case_ids[0]).image) == 1
    }
    predictor = Predictor(second)
    case_id = described["dataset"]["validation"][0]
    case = next(case for case in dataset.cases if case.case_id == case_id)
    prepared = predictor.prepare(case_id, load_image(case.images[0])).cases[0].image.as_tensor()
    stored = torch.from_numpy(np.array(CaseStore(store).load(case_id).image))
    assert torch.equal(prepared, stored)
    assert set(prepared[1].unique().tolist()) <= {0.0, 1.0, 2.0}
    assert prepared[1].any()
    patches = PatchDataset(CaseStore(store), dataset.case_ids, plan, seed=0)
    for index in range(40):  # noise and blur change intensities alone
        ids = patches[index]["image"][1]
        assert set(ids.unique().tolist()) <= {0.0, 1.0, 2.0}


def test_the_second_stage_predicts_by_itself_wherever_its_folder_is(phantom, first, second, tmp_path):
    moved = shutil.copytree(second, tmp_path / "elsewhere")
    image = sorted((phantom / "imagesTr").iterdir())[0]
    labels = Predictor(moved).predict(image)
    assert labels.shape == (1, *load_image(image).shape[1:])
    alone = [Predictor(each).predict_image(image, probabilities=True).probabilities for each in (moved, second)]
    both = candy_monai.EnsemblePredictor([Predictor(moved), Predictor(second)])
    assert torch.equal(both.predict(image), labels)
    assert torch.equal(alone[0], alone[1])
    # Other weights of the first stage change the prediction: it is used.
    file = moved / "previous" / "checkpoint_best.pth"
    weights = load_tensors(file)
    save_tensors(file, {name: torch.randn_like(value) for name, value in weights.items()})
    assert not torch.equal(Predictor(moved).predict_image(image, probabilities=True).probabilities, alone[0])
    shutil.rmtree(moved / "previous")
    with pytest.raises(ExperimentError, match="previous"):
        Predictor(moved)


def test_the_manifest_names_the_models_of_both_stages(phantom, second, tmp_path):
    Predictor(second).predict_to_files(sorted((phantom / "imagesTr").iterdir())[0], tmp_path)
    (run,) = json.loads((tmp_path / "manifest.json").read_text())["runs"]
    (model,) = run["models"]
    (before,) = model["previous"]
    assert before["weights_sha256"] != model["weights_sha256"]


def test_a_run_of_the_second_stage_is_resumed(phantom, first, second, tmp_path):
    half = shutil.copytree(second, tmp_path / "UNetTrainer" / second.name)
    store = {"store": first.parent / "store", "device": "cpu", "on_progress": _quiet}
    candy_monai.resume_training(half, num_epochs=2, schedule="restart", **store)
    assert len((half / "metrics.csv").read_text().splitlines()) == 3


def test_a_run_is_not_resumed_with_another_first_stage_than_it_began_with(phantom, first, second, tmp_path):
    half = shutil.copytree(second, tmp_path / "UNetTrainer" / second.name)
    described = json.loads((half / "experiment.json").read_text())

    def resume(found, **options):
        (half / "experiment.json").write_text(json.dumps({**described, "previous": {**described["previous"], **found}}))
        options |= {"store": first.parent / "store", "device": "cpu", "num_epochs": 2, "schedule": "restart"}
        candy_monai.resume_training(half, on_progress=_quiet, **options)

    with pytest.raises(BadInputError, match="gone: the first stage of the cascade no longer exists.* with --previous"):
        resume({"folder": str(tmp_path / "gone")})
    with pytest.raises(BadInputError, match="the weights of this first stage are not those with which .* began"):
        resume({"folder": str(tmp_path / "gone"), "weights": "others"}, previous=first)
    resume({"folder": str(tmp_path / "gone")}, previous=first)  # the same one at another place
    assert len((half / "metrics.csv").read_text().splitlines()) == 3


def test_a_memory_limit_of_an_ensemble_applies_to_the_first_stages(second):
    both = candy_monai.EnsemblePredictor([Predictor(second), Predictor(second)], memory=1 << 40)
    assert {member.previous.memory for member in both.members} == {1 << 40}
    assert Predictor(second, memory=1 << 30).previous.memory == 1 << 30


def test_a_plan_of_a_second_stage_needs_a_first_stage_and_its_weights_start_no_other_network(phantom, second, tmp_path):
    with pytest.raises(SettingsError, match="the configuration 3d_cascade needs a first stage"):
        _trained(phantom, tmp_path / "out", plan=second, overrides={})
    edited = json.loads((second / "experiment.json").read_text())["plan"] | {"num_previous": 7}
    (tmp_path / "plan.json").write_text(json.dumps(edited))
    with pytest.raises(BadInputError, match="its num_previous is 7, the dataset's 2"):
        _trained(phantom, tmp_path / "out", plan=tmp_path / "plan.json", overrides={})
    with pytest.raises(BadInputError, match="the second stage of a cascade, whose first layer also reads"):
        _trained(phantom, tmp_path / "out", init_from=second)


def test_other_folds_are_refused_before_anything_is_predicted(phantom, first, tmp_path):
    said = []
    options = {"num_folds": 4, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": said.append}
    with pytest.raises(BadInputError, match="none of its folds left out exactly phantom_"):
        train_dataset(phantom, configuration="3d_cascade", previous=first, **options)
    assert not [line for line in said if line.startswith("First stage")]


def test_no_target_of_export_holds_a_cascade(second, tmp_path):
    for target, out in (("onnx", "model.onnx"), ("monai-bundle", "bundle")):
        with pytest.raises(BadInputError, match="second stage of a cascade.*export the first stage alone, .*previous"):
            export_experiments(second, tmp_path / out, to=target, on_progress=_quiet)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "the configuration 3d_cascade needs a first stage: give --previous"),
        ({"previous": "nowhere"}, "nowhere: not a cross-validation"),
        (
            {"configuration": "3d", "previous": "first"},
            "--previous is the first stage of a cascade, and --configuration",
        ),
        ({"configuration": "auto", "previous": "first"}, "--previous is for the second stage of a cascade"),
        ({"previous": "first", "init_from": "x"}, "give --previous or --init-from, not both"),
        ({"previous": "first", "num_folds": 4}, "none of its folds left out exactly phantom_"),
        ({"previous": "first", "fold": "all"}, "give --fold with a number instead of all"),
    ],
)
def test_a_first_stage_that_does_not_fit_is_refused(phantom, first, tmp_path, options, said):
    options = {"configuration": "3d_cascade", **options}
    if options.get("previous") == "first":
        options["previous"] = first
    with pytest.raises(BadInputError, match=said):
        _trained(phantom, tmp_path / "out", **options)
    assert not list(tmp_path.rglob("experiment.json"))
    assert not list(tmp_path.rglob("case-*"))  # nothing was preprocessed


def test_own_augmentation_which_would_not_know_the_label_map_is_refused(phantom, first, tmp_path):
    own = tmp_path / "own.json"
    own.write_text('[{"_target_": "monai.transforms.RandFlipd", "keys": ["image", "label"], "prob": 1.0}]')
    with pytest.raises(SettingsError, match="cannot be trained, since it takes no preprocessing or augmentation"):
        _trained(phantom, tmp_path / "out", configuration="3d_cascade", previous=first, transforms=own)


def test_a_first_stage_of_other_classes_or_cases_is_refused(phantom, first, tmp_path):
    other = shutil.copytree(phantom, tmp_path / "phantom")
    described = json.loads((other / "dataset.json").read_text())
    described["labels"] = {"background": 0, "whole": 1, "inner": 2}
    (other / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(
        BadInputError, match="cannot be the first stage of a cascade for .*, since it has other classes"
    ):
        _trained(other, tmp_path / "out", configuration="3d_cascade", previous=first)
    more = write_phantom_dataset(tmp_path / "more", num_cases=5, shape=(36, 34, 20))
    plan = candy_monai.plan(candy_monai.inspect(more), configuration="3d_cascade", overrides=TINY)
    with pytest.raises(BadInputError, match="no fold left out phantom_004"):
        FirstStage.open(first, NNUNetDataset(more), plan)
