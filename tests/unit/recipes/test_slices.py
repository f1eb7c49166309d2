"""A 2-D network for volumes, from a plan to files."""

from __future__ import annotations

import json

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

import candy_monai
from candy_monai.data.images.reading import load_image
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import SettingsError
from candy_monai.incoming.opening import load_predictor
from candy_monai.inference.inferers import SlicesInferer, WindowInferer
from candy_monai.nn.deep_supervision import main_output
from candy_monai.nn.slicewise import Slicewise
from candy_monai.recipes.train import train_dataset
from tests.toys import SmallTrainer, loaders

TINY = {"filters": "4,8,8", "iterations_per_epoch": "3", "batch_size": "2", "validate_every": "1"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Return a dataset of volumes with thick slices."""
    folder = tmp_path_factory.mktemp("data") / "phantom"
    return write_phantom_dataset(folder, num_cases=6, shape=(40, 36, 16), spacing_mm=(1.0, 1.0, 5.0))


def _trained(phantom, out, **options):
    options = {"num_epochs": 2, "seed": 3, "overrides": TINY, "device": "cpu", "out": out} | options
    return train_dataset(phantom, on_progress=lambda _: None, **options)


@pytest.fixture(scope="module")
def experiment(phantom, tmp_path_factory):
    return _trained(phantom, tmp_path_factory.mktemp("out"))


def test_thick_slices_train_a_2d_network_and_the_experiment_says_so(experiment):
    description = json.loads((experiment / "experiment.json").read_text())
    assert description["plan"]["slice_axis"] == description["network"]["slice_axis"] == 2
    assert description["network"]["arguments"]["num_dims"] == 2
    predictor = load_predictor(experiment)
    assert isinstance(predictor.model, Slicewise)
    assert predictor.num_dims == 3
    assert (experiment / "validation.json").exists()


def test_predictions_lie_on_the_grid_of_the_file(experiment, phantom):
    predictor = load_predictor(experiment)
    file = sorted((phantom / "imagesTr").iterdir())[0]
    predicted, image = predictor.predict(file), load_image(file)
    assert predicted.shape == (1, *image.shape[1:])
    assert torch.allclose(predicted.affine, image.affine)


@pytest.mark.parametrize("size", [(40, 36, 7), (8, 8, 3), (90, 70, 2)])
def test_the_inferer_gives_each_slice_what_the_window_inferer_gives_the_picture(experiment, size):
    predictor = load_predictor(experiment)
    inferer, network = predictor._inferer, predictor.model.network
    assert isinstance(inferer, SlicesInferer)
    volume = torch.randn(1, 1, *size)
    with torch.inference_mode():
        together = inferer(volume, predictor.model)
        for index in range(size[2]):
            window = inferer._windows(size).roi_size[:2]
            alone = WindowInferer(window)(
                volume[..., index], lambda pictures: main_output(network(pictures), num_dims=2)
            )
            torch.testing.assert_close(together[..., index], alone, atol=1e-4, rtol=1e-4)
    assert torch.equal(inferer.labels(volume, predictor.model), together.argmax(1, keepdim=True))


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(phantom, experiment, tmp_path):
    whole = _trained(phantom, tmp_path / "whole", num_epochs=2)
    half = _trained(phantom, tmp_path / "half", num_epochs=1)
    assert candy_monai.resume_training(half, num_epochs=2, schedule="restart", device="cpu", on_progress=lambda _: None)
    assert json.loads((half / "experiment.json").read_text())["network"]["slice_axis"] == 2
    assert (whole / "validation.json").exists()


def test_a_2d_and_a_3d_network_predict_together(phantom, experiment, tmp_path):
    other = _trained(phantom, tmp_path / "out", configuration="3d")
    assert json.loads((other / "experiment.json").read_text())["plan"]["slice_axis"] is None
    both = candy_monai.EnsemblePredictor([load_predictor(experiment), load_predictor(other)])
    file = sorted((phantom / "imagesTr").iterdir())[0]
    assert both.predict(file).shape == load_image(file).shape


@pytest.mark.slow
def test_a_bundle_for_pictures_trains_on_slices_of_volumes(phantom, tmp_path):
    overrides = {name: value for name, value in TINY.items() if name != "filters"}
    folder = _trained(phantom, tmp_path, bundle="cmunext", configuration="2d", num_epochs=1, overrides=overrides)
    file = sorted((phantom / "imagesTr").iterdir())[0]
    assert load_predictor(folder).predict(file).shape == load_image(file).shape


def test_a_trainer_of_ones_own_builds_its_network_for_slices(tmp_path):
    seen = []

    class Own(SmallTrainer):
        num_classes = 2
        slice_axis = 2

        def build_network(self, example_shape):
            seen.append(example_shape)
            return DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 4])

    data = [(torch.randn(1, 16, 16, 3), torch.randint(0, 2, (1, 16, 16, 3))) for _ in range(4)]
    trainer = Own(tmp_path, *loaders(data), console=False)
    trainer.train(1, save_preview=False)
    assert seen == [(1, 16, 16)]
    network = DynUNet(2, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 4, 4])
    predictor = candy_monai.Predictor(trainer.experiment_folder(), network=network)
    assert predictor.predict(torch.randn(1, 16, 16, 5)).shape[-3:] == (16, 16, 5)


def test_a_network_of_ones_own_is_for_volumes_unless_slices_are_asked_for(phantom, tmp_path):
    class Own(SmallTrainer):
        def build_network(self, example_shape):
            return nn.Conv3d(1, self.num_classes, 1)

    folder = _trained(phantom, tmp_path, trainer=Own, num_epochs=1, overrides={"iterations_per_epoch": "2"})
    assert json.loads((folder / "experiment.json").read_text())["plan"]["slice_axis"] is None
    with pytest.raises(SettingsError, match=r"3-D convolutions.*--configuration 3d"):
        _trained(phantom, tmp_path, trainer=Own, num_epochs=1, configuration="2d", overrides={})


def test_pictures_have_no_slices(tmp_path):
    class Own(SmallTrainer):
        slice_axis = 2

    data = [(torch.randn(1, 16, 16), torch.randint(0, 2, (1, 16, 16))) for _ in range(2)]
    with pytest.raises(
        SettingsError, match=r"slice_axis is 2, and the first training image has the shape \(1, 16, 16\)"
    ):
        Own(tmp_path, *loaders(data), console=False).train(1)


def test_a_run_says_that_it_takes_slices_and_how_to_have_it_otherwise(phantom, tmp_path):
    said = []
    train_dataset(phantom, num_epochs=1, overrides=TINY, device="cpu", out=tmp_path, on_progress=said.append)
    assert "Configuration 2d: a 2-D network on slices across axis 2 (--configuration 3d for a 3-D one)" in said


def test_a_plan_of_another_configuration_than_asked_for_is_refused(phantom, experiment, tmp_path):
    with pytest.raises(SettingsError, match="a plan for the configuration 2d, but --configuration is 3d"):
        _trained(phantom, tmp_path, plan=experiment, configuration="3d", overrides={})
