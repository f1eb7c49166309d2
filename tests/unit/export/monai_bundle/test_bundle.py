"""Bundles of every kind of experiment: they label as the experiment does, and name MONAI's classes and their own."""

import dataclasses
import errno
import json
import sys
import warnings

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow

from candy_monai.data.images.reading import load_image
from candy_monai.data.pipelines.description import filled_holes, largest_component, without_small_components
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.export.exporting import export_experiments
from candy_monai.export.monai_bundle import bundle as bundle_module
from candy_monai.export.monai_bundle import export_monai_bundle
from candy_monai.export.monai_bundle.parity import run_inference
from candy_monai.incoming.monai_bundle import load_bundle
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.predictor import experiment_predictor as load_predictor
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai_bundles.unet import UNetTrainer
from tests.bundles import (
    PLANS,
    bundle_plan,
    equal_share,
    predict_by_bundle,
    read_array,
    train_experiment,
    write_case,
    write_training_cases,
)
from tests.check_bundle import check_files, targets
from tests.plans import PLAN
from tests.toys import Squares, small_trainer

_QUICK = ("slices", "regions")


@pytest.fixture(
    scope="module",
    params=[name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PLANS],
)
def experiment(request, tmp_path_factory, _few_threads):
    return train_experiment(tmp_path_factory.mktemp("run"), PLANS[request.param])


def test_a_bundle_labels_an_image_as_the_experiment_does(experiment, tmp_path, monkeypatch):
    predictor = load_predictor(experiment)
    files = write_case(tmp_path / "dataset" / "imagesTs", predictor.plan)
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    check_files(bundle)
    written = predict_by_bundle(bundle, monkeypatch, tmp_path / "dataset")
    assert written.name.partition(".")[0] == "case"
    expected = predictor.predict([str(file) for file in files]).as_tensor()[0].numpy()
    found = read_array(written)
    assert found.shape == expected.shape
    if predictor.plan.num_classes == 1:  # MONAI brings the probability back to the file's grid, and we the logit
        probability = np.asarray(predictor.predict_image(str(files[0]), probabilities=True).probabilities)[-1]
        found = np.where(abs(probability - 0.5) < 0.1, expected, found)
    assert equal_share(found, expected) > 0.995
    if written.suffix != ".png":
        assert np.allclose(nibabel.load(written).affine, nibabel.load(files[0]).affine)
    opened = load_bundle(bundle).predict([str(file) for file in files]).as_tensor()[0].numpy()
    if predictor.plan.num_classes == 1:
        opened = np.where(abs(probability - 0.5) < 0.1, expected, opened)
    assert equal_share(opened, expected) > 0.999


def test_a_portable_bundle_names_monais_classes_alone_and_comes_near(experiment, tmp_path, monkeypatch):
    predictor = load_predictor(experiment)
    files = write_case(tmp_path / "dataset" / "imagesTs", predictor.plan)
    bundle = export_monai_bundle([experiment], tmp_path / "bundle", portable=True)
    check_files(bundle)
    assert not (bundle / "scripts").exists()
    assert {name.partition(".")[0] for name in targets(bundle)} == {"monai", "torch"}
    written = predict_by_bundle(bundle, monkeypatch, tmp_path / "dataset")
    expected = predictor.predict([str(file) for file in files]).as_tensor()[0].numpy()
    # How near is measured at the export and on real data: a network that learned nothing follows every difference.
    assert read_array(written).shape == expected.shape
    assert set(np.unique(read_array(written))) <= {0, 1, 2}
    assert read_array(written).any()
    opened = load_bundle(bundle, trust=True).predict([str(file) for file in files])[0].numpy()
    assert equal_share(opened, read_array(written)) > 0.99


_SAME_SPACING = bundle_plan(resampling="none", spacing_mm=(1.0, 1.3, 2.9), median_shape=(21, 18, 11))


def _one_step_experiment(folder, plan, settings=None):
    experiment = train_experiment(folder, plan)
    path = experiment / "experiment.json"
    description = json.loads(path.read_text())
    description["settings"] |= settings or {}
    path.write_text(json.dumps(description))
    return experiment


@pytest.mark.slow
@pytest.mark.parametrize("amp", [None, "bf16"])
def test_monais_inferer_alone_labels_as_the_experiment_where_it_is_measured_to(amp, tmp_path, monkeypatch):
    experiment = _one_step_experiment(tmp_path / "run", _SAME_SPACING, {"amp": amp})
    files = write_case(tmp_path / "dataset" / "imagesTs", _SAME_SPACING)
    monkeypatch.setattr(bundle_module, "_validation_files", lambda _: {"case": files})
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    assert not {name for name in targets(bundle, "inference") if name.partition(".")[0] not in ("monai", "torch")}
    assert "uses only MONAI's own classes" in (bundle / "docs" / "README.md").read_text()
    dataset = tmp_path / "dataset"
    run_inference(bundle, dataset, dataset / "out")
    predictor = load_predictor(experiment)
    expected = predictor.predict([str(file) for file in files]).as_tensor()[0].numpy()
    assert equal_share(read_array(dataset / "out" / "case.nii.gz"), expected) >= 0.999
    opened = load_bundle(bundle).predict([str(file) for file in files]).as_tensor()[0].numpy()
    assert equal_share(opened, expected) >= 0.999


def _other_spacing(folder):
    """Write a case of another spacing than `_SAME_SPACING`."""
    (file,) = write_case(folder, _SAME_SPACING)
    image = nibabel.load(file)
    affine = image.affine @ np.diag([1.5, 1.4, 0.7, 1.0])
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(dtype=np.float32), affine), file)
    return file


def test_a_case_of_another_spacing_than_all_that_were_trained_on_is_resampled_as_by_the_experiment(
    tmp_path, monkeypatch
):
    experiment = train_experiment(tmp_path / "run", _SAME_SPACING)
    file = _other_spacing(tmp_path / "dataset" / "imagesTs")
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    written = predict_by_bundle(bundle, monkeypatch, tmp_path / "dataset")
    expected = load_predictor(experiment).predict(str(file)).as_tensor()[0].numpy()
    assert equal_share(read_array(written), expected) > 0.995


def test_monai_alone_tells_of_a_case_of_another_spacing(tmp_path, monkeypatch):
    experiment = train_experiment(tmp_path / "run", _SAME_SPACING)
    file = _other_spacing(tmp_path / "other" / "imagesTs")
    write_case(tmp_path / "same" / "imagesTs", _SAME_SPACING)
    bundle = export_monai_bundle([experiment], tmp_path / "bundle", portable=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        predict_by_bundle(bundle, monkeypatch, tmp_path / "same")
    assert not [each for each in told if "another spacing" in str(each.message)]
    with pytest.warns(UserWarning, match=r"case_0000\.nii\.gz: has another spacing than .* \[1\.0, 1\.3, 2\.9\] mm"):
        written = predict_by_bundle(bundle, monkeypatch, tmp_path / "other")
    expected = load_predictor(experiment).predict(str(file)).as_tensor()[0].numpy()
    assert read_array(written).shape == expected.shape
    assert "with a warning" in (bundle / "docs" / "README.md").read_text()
    # Opened by candy_monai it is resampled as by the experiment, and then padded.
    image = load_image(file)
    by_experiment, by_bundle = (
        each.preprocessor.apply(image).image for each in (load_predictor(experiment), load_bundle(bundle))
    )
    assert torch.allclose(by_bundle[(slice(None), *map(slice, by_experiment.shape[1:]))], by_experiment, atol=1e-5)


def test_weights_are_chosen_and_a_bundle_is_replaced_when_told_to(tmp_path):
    experiment = train_experiment(tmp_path / "run", PLANS["volumes"])
    last = experiment / "checkpoint_latest.pth"
    saved = {name: value + 1 for name, value in torch.load(last, weights_only=True).items()}
    torch.save(saved, last)
    out = tmp_path / "bundle"
    export_experiments(experiment, out, to="monai-bundle")
    with pytest.raises(BadInputError, match="or replace the bundle that it holds with --overwrite"):
        export_experiments(experiment, out, to="monai-bundle")
    (out / "of the old one").write_text("")
    best = torch.load(out / "models" / "model.pt", weights_only=True)
    assert not torch.equal(best[name := next(iter(best))], saved[name])
    export_experiments(experiment, out, to="monai-bundle", checkpoint="latest", overwrite=True)
    assert not (out / "of the old one").exists()
    latest = torch.load(out / "models" / "model.pt", weights_only=True)
    assert latest.keys() == best.keys()
    assert all(torch.equal(value, saved[name]) for name, value in latest.items())
    assert "holds the weights `latest`" in (out / "docs" / "README.md").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.txt").write_text("mine")
    with pytest.raises(BadInputError, match="not a MONAI Bundle"):
        export_experiments(experiment, tmp_path / "mine", to="monai-bundle", overwrite=True)
    assert (tmp_path / "mine" / "mine.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("portable", [False, True])
def test_a_bundle_trains_and_scores(experiment, portable, tmp_path, monkeypatch):
    plan = load_predictor(experiment).plan
    data = tmp_path / "dataset"
    write_training_cases(data, plan)
    bundle = export_monai_bundle([experiment], tmp_path / "bundle", portable=portable)
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(bundle)
    for names in (["train"], ["train", "evaluate"]):
        workflow = ConfigWorkflow(
            workflow_type="train",
            config_file=[str(bundle / "configs" / f"{name}.json") for name in names],
            logging_file=False,
            bundle_root=str(bundle),
            dataset_dir=str(data),
            epochs=1,
            **{"train#dataloader#num_workers": 0},
        )
        workflow.initialize()
        assert workflow.check_properties() == []
        workflow.run()
        workflow.finalize()
        metrics = workflow.parser.get_parsed_content("validate#evaluator").state.metrics
        assert 0 <= metrics["val_mean_dice"] <= 1
    assert (bundle / "eval" / "metrics.csv").is_file()
    for name in [name for name in sys.modules if name.partition(".")[0] == "scripts"]:
        del sys.modules[name]


def test_training_without_a_case_that_is_not_held_out_ends_in_one_error(experiment, tmp_path):
    plan = load_predictor(experiment).plan
    write_training_cases(tmp_path / "dataset", plan)
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    parser["dataset_dir"], parser["validation_cases"] = str(tmp_path / "dataset"), ["0case", "1case", "2case"]
    with pytest.raises(SystemExit, match=r"dataset/labelsTr: found 3 cases, and none is left to train on: add cases"):
        parser.get_parsed_content("train#dataset")
    again = ConfigParser()
    again.read_config(bundle / "configs" / "train.json")
    again["dataset_dir"], again["validation_cases"] = str(tmp_path / "dataset"), ["0case"]
    assert again.get_parsed_content("training_cases") == ["1case", "2case"]


@pytest.mark.parametrize("amp", [None, "bf16"])
def test_training_is_in_the_experiment_s_precision_on_a_gpu(amp, tmp_path):
    experiment = _one_step_experiment(tmp_path / "run", _SAME_SPACING, {"amp": amp})
    bundle = export_monai_bundle([experiment], tmp_path / "bundle")
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.json")
    for device in ("cpu", "cuda:0"):
        parser["device"] = f"$torch.device('{device}')"
        parser.parse()
        assert parser.get_parsed_content("train#trainer#amp") is (amp is not None and device != "cpu")
    if amp is not None:
        assert parser.get_parsed_content("train#trainer#amp_kwargs") == {"dtype": torch.bfloat16}


@pytest.mark.slow
def test_several_experiments_become_one_network_that_averages_them(tmp_path, monkeypatch):
    experiments = [train_experiment(tmp_path / str(seed), PLANS["volumes"], seed) for seed in (1, 2)]
    files = write_case(tmp_path / "dataset" / "imagesTs", PLANS["volumes"])
    steps = [largest_component([1]), without_small_components([1, 2], 20.0), filled_holes(2)]
    bundle = export_monai_bundle(experiments, tmp_path / "bundle", postprocessing=steps)
    check_files(bundle)
    written = predict_by_bundle(bundle, monkeypatch, tmp_path / "dataset")
    members = [load_predictor(experiment) for experiment in experiments]
    together = EnsemblePredictor(members, postprocessing=steps)
    expected = together.predict([str(file) for file in files]).as_tensor()[0].numpy()
    assert equal_share(read_array(written), expected) > 0.995


def test_experiments_that_prepare_images_otherwise_are_no_ensemble(tmp_path):
    other = dataclasses.replace(PLANS["volumes"], spacing_mm=(2.0, 2.0, 2.0))
    experiments = [train_experiment(tmp_path / "a", PLANS["volumes"]), train_experiment(tmp_path / "b", other)]
    with pytest.raises(BadInputError, match="its preprocessing differs from that of"):
        export_monai_bundle(experiments, tmp_path / "bundle")
    with pytest.raises(BadInputError, match="no network that averages"):
        export_monai_bundle([experiments[0]] * 2, tmp_path / "bundle", portable=True)
    assert not (tmp_path / "bundle").exists()


def test_a_folder_that_holds_something_is_not_written_to(tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("mine")
    with pytest.raises(BadInputError, match="is not empty"):
        export_monai_bundle([tmp_path / "run"], tmp_path / "bundle")


@pytest.mark.parametrize("name", ["save_tensors", "write_readme"])
def test_on_a_full_disk_the_bundle_is_named(experiment, tmp_path, monkeypatch, name):
    def full(path, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(bundle_module, name, full)
    with pytest.raises(OSError, match="No space left") as caught:
        export_monai_bundle([experiment], tmp_path / "bundle")
    assert caught.value.filename == str(tmp_path / "bundle")


def test_an_experiment_without_a_plan_is_refused(tmp_path):
    trainer = small_trainer(tmp_path, Squares(2, size=(16, 16)), cls=UNetTrainer)
    trainer.num_classes, trainer.filters = 2, (4, 4, 4)
    trainer.train(1, save_preview=False)
    with pytest.raises(ExperimentError, match="without a plan"):
        export_monai_bundle([trainer.experiment_folder()], tmp_path / "bundle")


class _OwnNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 3, 1)

    def forward(self, x):
        return self.layer(x)


class _OwnTrainer(SegmentationTrainer):
    def build_network(self, example_shape):
        return _OwnNetwork()


def test_a_trainer_of_ones_own_is_refused_by_name(tmp_path):
    experiment = train_experiment(tmp_path / "run", dataclasses.replace(PLAN, deep_supervision=False), cls=_OwnTrainer)
    with pytest.raises(ExperimentError, match="_OwnTrainer"):
        export_monai_bundle([experiment], tmp_path / "bundle")


def test_regions_beside_an_ignore_label_have_no_portable_loss(tmp_path):
    plan = dataclasses.replace(PLANS["regions"], ignore_label=3)
    with pytest.raises(ExperimentError, match="MONAI has no loss"):
        export_monai_bundle([train_experiment(tmp_path / "run", plan)], tmp_path / "bundle", portable=True)
    assert not (tmp_path / "bundle").exists()


def test_metadata_names_channels_and_the_ids_of_label_maps(tmp_path):
    bundle = export_monai_bundle([train_experiment(tmp_path / "run", PLANS["regions"])], tmp_path / "bundle")
    content = json.loads((bundle / "configs" / "metadata.json").read_text())
    formats = content["network_data_format"]
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "whole", "2": "core"}
    assert formats["outputs"]["pred"]["num_channels"] == 2
    assert formats["inputs"]["image"]["spatial_shape"] == ["8*n"] * 3
    assert formats["inputs"]["image"]["channel_def"] == {"0": "MRI"}
