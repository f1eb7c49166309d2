import dataclasses
import json

import pytest
import torch

from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.plan import Region
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.checkpoints import load_weights
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.starting import StartingExperiment
from candy_monai.recipes.train import train_dataset

TINY = {"filters": "4,8,8", "iterations_per_epoch": "3", "batch_size": "2", "validate_every": "1"}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=6, shape=(24, 26, 16))


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("out")


@pytest.fixture(scope="module")
def experiment(phantom, out):
    return train_dataset(phantom, num_epochs=1, seed=3, overrides=TINY, device="cpu", out=out, on_progress=_quiet)


def _quiet(_message):
    pass


def _trained(phantom, out, **options):
    short = {"iterations_per_epoch": "1", "batch_size": "2", "learning_rate": "1e-12", "weight_decay": "0"}
    overrides = short | options.pop("overrides", {})
    told = []
    folder = train_dataset(
        phantom, num_epochs=1, device="cpu", out=out, overrides=overrides, on_progress=told.append, **options
    )
    return folder, told


@pytest.mark.filterwarnings("error:UNetTrainer:DeprecationWarning")
def test_a_run_takes_over_the_network_of_the_experiment_that_it_starts_from_and_says_so(phantom, experiment, out):
    folder, told = _trained(phantom, out, init_from=experiment)
    plans = [json.loads((run / "experiment.json").read_text())["plan"] for run in (experiment, folder)]
    for name in ("filters", "kernel_sizes", "strides"):
        assert plans[0][name] == plans[1][name]
    log = (folder / "logs.txt").read_text()
    assert any("Network adopted" in line and "filters 4,8,8 instead of" in line for line in told)
    assert "Network adopted" in log
    assert "Starting from" in log
    assert "randomly initialised" not in log
    before, after = (load_weights(run / "checkpoint_best.pth") for run in (experiment, folder))
    assert all(torch.allclose(after[name], value, atol=1e-6) for name, value in before.items())
    assert not [line for line in told if line.startswith("Warning: ") and "validation cases were trained on" in line]


def test_validation_cases_that_the_weights_were_trained_on_are_warned_of(phantom, experiment, out):
    _, told = _trained(phantom, out, init_from=experiment, fold=1)
    assert [line for line in told if "validation cases were trained on" in line]


def test_channels_and_classes_that_mean_something_else_are_warned_of(experiment):
    start = StartingExperiment.of(TrainOptions(init_from=experiment), None)
    assert not start.warnings(start.plan, (), digest="")
    region = tuple(Region(name=name, ids=(number,), paints=number) for number, name in enumerate("abc", start=1))
    changes = {
        "the channels of": {"channel_names": ("another",)},
        "the normalisations of": {"normalization": (ChannelNormalization(scheme="rescale_to_0_1"),)},
        "the classes of": {"class_names": ("background", "one", "other")},
        "and here are regions": {"regions": region},
    }
    for said, change in changes.items():
        made = dataclasses.replace(start.plan, **change)
        (warning,) = start.warnings(made, (), digest="")
        assert said in warning


@pytest.mark.slow
def test_what_the_user_fixes_stays_and_weights_that_then_fit_nowhere_are_refused(phantom, experiment, out):
    with pytest.raises(SettingsError, match="every network level"):
        _trained(phantom, out, init_from=experiment, overrides={"filters": "4,8,8,8"})
    folder, _ = _trained(phantom, out, init_from=experiment, overrides={"filters": "4,8,16"})
    assert json.loads((folder / "experiment.json").read_text())["plan"]["filters"] == [4, 8, 16]
    assert "of other shapes randomly initialised" in (folder / "logs.txt").read_text()


@pytest.mark.filterwarnings("error:.*bundle:DeprecationWarning")
def test_another_architecture_is_refused_with_the_bundle_to_choose(phantom, experiment, out, tmp_path):
    described = json.loads((experiment / "experiment.json").read_text()) | {"bundle": "cmunext"}
    (tmp_path / "experiment.json").write_text(json.dumps(described))
    (tmp_path / "checkpoint_best.pth").write_bytes((experiment / "checkpoint_best.pth").read_bytes())
    with pytest.raises(BadInputError, match="give --bundle cmunext"):
        _trained(phantom, out, init_from=tmp_path)


def test_weights_that_cannot_be_read_are_refused_before_the_dataset_is_looked_at(tmp_path):
    with pytest.raises(BadInputError, match=r"nowhere\.pth"):
        train_dataset(tmp_path / "no dataset", init_from=tmp_path / "nowhere.pth", out=tmp_path, on_progress=_quiet)


@pytest.mark.slow
def test_a_network_for_slices_is_taken_over_for_slices(phantom, out):
    flat, _ = _trained(phantom, out, configuration="2d", overrides={"filters": "4,8,8"})
    folder, _ = _trained(phantom, out, init_from=flat)
    assert json.loads((folder / "experiment.json").read_text())["network"]["slice_axis"] is not None
    assert "randomly initialised" not in (folder / "logs.txt").read_text()
    with pytest.raises(SettingsError, match="give --configuration 2d"):
        _trained(phantom, out, init_from=flat, configuration="3d")


def test_the_options_reach_the_folds_of_a_cross_validation():
    options = TrainOptions(init_from="weights.pth", freeze=("encoder.*",), warm_up=7)
    again = TrainOptions.from_json(options.to_json())
    assert (again.init_from, tuple(again.freeze), again.warm_up) == ("weights.pth", ("encoder.*",), 7)


def test_freezing_random_weights_is_refused():
    with pytest.raises(SettingsError, match=r"freeze 'encoder\.\*' without init_from"):
        TrainOptions(freeze=("encoder.*",))


def test_another_spacing_than_that_of_the_weights_is_warned_of(experiment):
    start = StartingExperiment.of(TrainOptions(init_from=experiment), None)
    plan = start.plan
    for factor, is_told in ((1.0, False), (1.05, False), (2.0, True), (0.5, True)):
        made = dataclasses.replace(plan, spacing_mm=(plan.spacing_mm[0] * factor, *plan.spacing_mm[1:]))
        told = [each for each in start.warnings(made, (), digest="") if "spacing" in each]
        assert bool(told) == is_told
        assert not told or f"here it is {plan.spacing_mm[0] * factor:g}" in told[0]
