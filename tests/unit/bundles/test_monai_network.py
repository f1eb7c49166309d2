import json

import pytest
import torch

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import ExperimentError, SettingsError
from candy_monai.incoming.opening import load_predictor
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.resume import resume_training
from candy_monai.recipes.train import train_dataset
from candy_monai.recipes.trainers import chosen_trainer
from candy_monai_bundles.monai_network import MONAIPredictor, MONAITrainer, build_monai_network, divisor_of
from tests.toys import Squares, loaders

TINY = {"network": "SegResNet", "network_args": {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}}
REG_UNET = {"num_channel_initial": 4, "depth": 1, "concat_skip": True}
SMALL_VIT = {"patch_size": 16, "hidden_size": 12, "mlp_dim": 12, "num_layers": 1, "num_heads": 1}
PLAN = {"iterations_per_epoch": "2", "batch_size": "2", "patch_shape": "32,32"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("d") / "p", num_cases=4, num_dims=2, shape=(40, 44))


@pytest.fixture(scope="module")
def experiment(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return train_dataset(
        pictures, num_epochs=1, seed=0, overrides=PLAN, device="cpu", out=out, on_progress=_quiet, **TINY
    )


def _quiet(_message):
    pass


def _chosen(**options):
    return chosen_trainer(TrainOptions(**options))


def test_the_folder_alone_tells_which_network_it_is(experiment):
    described = json.loads((experiment / "experiment.json").read_text())
    assert (described["bundle"], described["trainer"]) == ("monai", "MONAITrainer")
    assert described["network"]["arguments"]["network"] == "SegResNet"
    assert described["plan"]["strides"] == [[1, 1], [2, 2], [2, 2]]  # what this network divides by
    predictor = load_predictor(experiment)
    assert type(predictor) is MONAIPredictor
    assert type(predictor.model).__name__ == "SegResNet"
    assert predictor.logits(torch.randn(1, 37, 41)).shape == (3, 37, 41)


def test_a_run_is_resumed_from_its_folder_alone(experiment):
    assert resume_training(experiment, num_epochs=2, schedule="restart", device="cpu", on_progress=_quiet) == experiment
    assert json.loads((experiment / "experiment.json").read_text())["network"]["arguments"]["network"] == "SegResNet"


@pytest.mark.parametrize(
    "change",
    [{"network": "system"}, {"network": "DynUNet"}, {"network_args": {"no": 1}}],
    ids=["class", "other", "name"],
)
def test_a_folder_that_names_what_monai_has_not_is_refused_with_the_file(experiment, tmp_path, change):
    described = json.loads((experiment / "experiment.json").read_text())
    described["network"]["arguments"] |= change
    (tmp_path / "experiment.json").write_text(json.dumps(described))
    (tmp_path / "checkpoint_best.pth").write_bytes((experiment / "checkpoint_best.pth").read_bytes())
    with pytest.raises(ExperimentError, match=r"experiment\.json: bundle 'monai' cannot build"):
        load_predictor(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"network": "SegResNett"}, "no network of this name. Did you mean 'SegResNet'"),
        ({"network": "nn"}, "no network of this name"),
        ({"network": "SegResNet", "network_args": {"init_filterz": 1}}, r"'init_filters'\?\nSegResNet\(spatial_dims"),
        ({"network": "SegResNet", "network_args": {"in_channels": 1}}, "is set from the dataset"),
        ({"network": "SegResNet", "network_args": {"norm": "foo"}}, r"(?s)Unsupported option 'FOO'.*SegResNet\("),
        ({"network": "UNet"}, r"(?s)'channels' and 'strides'.*UNet\(spatial_dims"),
        ({"network": "Classifier"}, r"Classifier\(in_shape"),
        ({"network": "ViT", "network_args": SMALL_VIT}, "for each voxel of 2-D images"),
        ({"network": "RegUNet", "network_args": REG_UNET | {"out_activation": "softmax"}}, "returns probabilities"),
        ({"bundle": "monai"}, "no network is named: .*--network NAME"),
        ({"bundle": "cmunext", "network": "UNet"}, "not both"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work_starts(tmp_path, options, words):
    with pytest.raises(SettingsError, match=words):
        train_dataset(tmp_path / "no dataset", out=tmp_path / "out", **options)


def test_a_dataset_that_does_not_suit_the_network_is_refused_before_it_is_preprocessed(tmp_path):
    volumes = write_phantom_dataset(tmp_path / "v", num_cases=3, shape=(24, 24, 16))
    with pytest.raises(SettingsError, match="--network Quicknat: must return 3 logits for each voxel of 3-D images"):
        train_dataset(volumes, network="Quicknat", device="cpu", out=tmp_path / "out", on_progress=_quiet)
    assert not list((tmp_path / "out").rglob("*.npy"))


@pytest.mark.parametrize(
    ("network", "arguments", "num_dims", "divisor"),
    [
        ("SegResNet", {}, 2, 8),
        ("UNet", {"channels": [4, 8, 8], "strides": [2, 2]}, 3, 4),
        ("BasicUNet", {"features": [4, 4, 4, 4, 4, 4]}, 2, 1),
        ("VNet", {}, 2, 16),
        pytest.param("SwinUNETR", {"feature_size": 12}, 3, 32, marks=pytest.mark.slow),
        pytest.param("UNETR", {"hidden_size": 48, "mlp_dim": 48}, 2, 16, marks=pytest.mark.slow),
    ],
)
def test_what_a_network_divides_by_is_found_by_trying(network, arguments, num_dims, divisor):
    assert divisor_of(network, json.dumps(arguments), num_dims, 1, 2) == divisor


def test_lists_of_a_file_build_what_tuples_built():
    given = {"network": "SegResNet", "num_dims": 2, "in_channels": 1, "out_channels": 2}
    built = [
        build_monai_network(**given, network_args={"norm": norm, "blocks_down": [1, 1], "blocks_up": [1]})
        for norm in (("group", {"num_groups": 4}), ["group", {"num_groups": 4}])
    ]
    assert repr(built[0]) == repr(built[1])


def test_weights_are_never_downloaded_to_be_overwritten_by_a_prediction(monkeypatch):
    seen = {}
    monkeypatch.setattr(
        "candy_monai_bundles.monai_network.nets.FlexibleUNet",
        type("FlexibleUNet", (torch.nn.Module,), {"__init__": _remembering(seen)}),
    )
    build_monai_network(
        network="FlexibleUNet", network_args={"pretrained": True}, num_dims=2, in_channels=1, out_channels=2
    )
    assert seen["pretrained"] is False


def _remembering(seen):
    def init(self, in_channels, out_channels, spatial_dims, pretrained=False):
        torch.nn.Module.__init__(self)
        seen["pretrained"] = pretrained

    return init


def test_it_trains_from_python_without_a_plan(tmp_path):
    cls = MONAITrainer.with_network(TINY)
    trainer = cls(tmp_path, *loaders(Squares(2, size=(14, 19))), console=False)
    trainer.train(1, save_preview=False)
    assert load_predictor(trainer.experiment_folder()).logits(torch.randn(1, 14, 19)).shape == (1, 14, 19)


@pytest.mark.slow
def test_a_network_that_takes_one_size_alone_predicts_in_windows_of_it(tmp_path):
    small = {"hidden_size": 12, "mlp_dim": 12, "num_heads": 1, "feature_size": 4}
    cls = MONAITrainer.with_network({"network": "UNETR", "network_args": small})
    trainer = cls(tmp_path, *loaders(Squares(2, size=(14, 35))), console=False)
    trainer.train(1, save_preview=False)
    described = json.loads((trainer.experiment_folder() / "experiment.json").read_text())
    assert described["network"]["arguments"]["image_size"] == described["inferer"]["roi_size"] == [16, 48]
    assert load_predictor(trainer.experiment_folder()).logits(torch.randn(1, 33, 70)).shape == (1, 33, 70)


def test_the_command_line_reads_arguments_as_python_does(pictures, tmp_path, capsys):
    arguments = ["--network", "SegResNet", "--network-args", "init_filters=8", "--network-args", "blocks_down=1,1"]
    arguments += ["--network-args", "blocks_up=(1,)", "--network-args", "upsample_mode=deconv"]
    overrides = [word for key, value in PLAN.items() for word in ("--set", f"{key}={value}")]
    assert main(["inspect", str(pictures), *arguments, *overrides, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["strides"] == [[1, 1], [2, 2]]
    out = ["--out", str(tmp_path), "--device", "cpu"]
    assert main(["preprocess", str(pictures), *arguments, *overrides, *out]) == 0
    assert main(["train", str(pictures), *arguments, *overrides, *out, "--epochs", "1"]) == 0
    assert "preprocessed already" in capsys.readouterr().out
    (experiment,) = (path.parent for path in tmp_path.glob("MONAITrainer/*/experiment.json"))
    assert load_predictor(experiment).description.network.arguments["network_args"]["upsample_mode"] == "deconv"


def test_what_is_given_twice_or_without_a_value_names_the_option(pictures, capsys):
    assert main(["train", str(pictures), "--network-args", "size"]) == 2
    assert "--network-args 'size': expected KEY=VALUE" in capsys.readouterr().err
