"""Bundles of real data run where candy_monai is not installed, and label as the experiment does there."""

import functools
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.export.monai_bundle import export_monai_bundle
from candy_monai.export.monai_bundle.parity import equal_foreground
from candy_monai.inference.predictor import experiment_predictor
from candy_monai.recipes.train import train_dataset
from tests.check_bundle import (
    BareMonai,
    check_description,
    check_files,
    check_inference,
    check_properties,
    check_torchscript,
    check_training,
)

pytestmark = [pytest.mark.slow, pytest.mark.realdata]

SCHEMA = Path(__file__).parents[1] / "schemas" / "meta_schema_20240725.json"
NUM_CASES = 3

# Networks of the size that a budget of minutes chooses, trained until they label something.
PLANS = {
    "Dataset004_Hippocampus": {"filters": "8,16,32", "patch_shape": "32,32,32"},
    "Dataset121_DRIVE": {"filters": "8,16,32,64", "patch_shape": "96,96"},
    "Dataset056_PICAI2ch": {"filters": "8,16,32,64", "patch_shape": "96,96,1"},
    "Dataset063_SCTSpinalCord": {"filters": "8,16,32", "patch_shape": "32,32,32"},
}
SHORT = {"iterations_per_epoch": "60", "batch_size": "2", "num_validation_cases": "1"}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return BareMonai(tmp_path_factory.mktemp("bare") / "environment")


@pytest.fixture(scope="module")
def trained(real_dataset, tmp_path_factory):
    """Return a function from a dataset's name to its folder and an experiment, which is trained once."""
    out = tmp_path_factory.mktemp("experiments")

    @functools.cache
    def experiment_of(name):
        dataset = real_dataset(name)
        return dataset, train_dataset(
            dataset,
            num_epochs=1,
            seed=0,
            num_folds=20 if name == "Dataset004_Hippocampus" else 5,
            configuration="2d" if name == "Dataset056_PICAI2ch" else "auto",
            overrides=SHORT | PLANS[name],
            device="cpu",
            out=out,
            on_progress=lambda _message: None,
        )

    return experiment_of


def _held_out(experiment, dataset, folder):
    """Write a dataset of cases that were not trained on, to predict and, as new ones, to train on; return their ids.

    Under its own id each would be held out by the bundle as it was by the experiment, and none would be left.
    """
    validation = experiment_predictor(experiment).description.dataset.validation[:NUM_CASES]
    cases = [case for case in NNUNetDataset(dataset).cases if case.case_id in validation]
    for name in ("imagesTr", "imagesTs", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in cases:
        for file in case.images:
            shutil.copyfile(file, folder / "imagesTr" / f"new_{file.name}")
            shutil.copyfile(file, folder / "imagesTs" / file.name)
        shutil.copyfile(case.label, folder / "labelsTr" / f"new_{case.label.name}")
    return [case.case_id for case in cases]


def _least_share(bundle, experiment, bare, data, work):
    written = check_inference(bundle, bare, data, work / "by_bundle")
    experiment_predictor(experiment).predict_to_files(data / "imagesTs", work / "by_experiment")
    shares = []
    for path in written:
        expected = work / "by_experiment" / path.name
        shares.append(equal_foreground(expected, path))
        if path.name.endswith(".nii.gz"):
            assert np.allclose(nibabel.load(path).affine, nibabel.load(expected).affine)
            assert nibabel.load(path).shape == nibabel.load(expected).shape
    return min(share for share in shares if share is not None)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", PLANS)
def test_a_bundle_of_real_data_passes_every_check(name, trained, bare, tmp_path):
    dataset, experiment = trained(name)
    cases = _held_out(experiment, dataset, tmp_path / "data")
    bundle = export_monai_bundle([experiment], tmp_path / "bundle_segmentation")
    check_files(bundle)
    assert "voxels have the id" in (bundle / "docs" / "README.md").read_text()
    check_description(bundle, bare, SCHEMA)
    assert _least_share(bundle, experiment, bare, tmp_path / "data", tmp_path) >= 0.995
    check_torchscript(bundle, bare, tmp_path)
    if len(cases) > 1:  # one to train on, one to hold out
        check_properties(bundle, bare, tmp_path / "data")
    if name == "Dataset004_Hippocampus":  # slices are trained on in the portable bundle's test
        check_training(bundle, bare, tmp_path / "data", tmp_path, by_two=True)


@pytest.mark.timeout(3600)
def test_a_portable_bundle_trains_and_predicts(trained, bare, tmp_path):
    dataset, experiment = trained("Dataset056_PICAI2ch")
    _held_out(experiment, dataset, tmp_path / "data")
    bundle = export_monai_bundle([experiment], tmp_path / "bundle_segmentation", portable=True)
    check_files(bundle)
    check_inference(bundle, bare, tmp_path / "data", tmp_path / "by_bundle")
    check_training(bundle, bare, tmp_path / "data", tmp_path)


def test_monai_label_finds_what_it_looks_for(trained, tmp_path):
    bundle_task = pytest.importorskip("monailabel.tasks.infer.bundle")
    _, experiment = trained("Dataset004_Hippocampus")
    bundle = export_monai_bundle([experiment], tmp_path / "bundle_segmentation")
    task = bundle_task.BundleInferTask(path=str(bundle), conf={})
    assert task.is_valid()
    assert task.labels == {"anterior": 1, "posterior": 2}
    on_cpu = {"device": "cpu"}
    assert task.pre_transforms(on_cpu)
    assert list(task.inferer(on_cpu).roi_size) == list(experiment_predictor(experiment).plan.patch_shape)
    assert [type(step).__name__ for step in task.post_transforms(on_cpu)][-1] == "Restored"
