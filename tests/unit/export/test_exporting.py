"""What leaves an experiment: compared with it on real files, and written whole or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from PIL import Image
from torch import nn

from candy_monai.cli.main import main
from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.errors import BadInputError, ExperimentError, RunFailedError, SettingsError
from candy_monai.export.exporting import export_experiments as export
from candy_monai.inference.inferers import WindowInferer
from candy_monai.inference.predictor import Predictor, experiment_predictor
from candy_monai.nn.padding import Pad3d
from candy_monai_bundles.unet import UNetTrainer
from tests.plans import PLAN
from tests.toys import SmallTrainer, Squares, small_trainer

TRAINERS = """
from tests.unit.export.test_exporting import Noisy, Several
from tests.toys import SmallTrainer


class Mine(SmallTrainer):
    pass


class OfSeveral(SmallTrainer):
    def build_network(self, example_shape):
        return Several(super().build_network(example_shape))


class OfNoise(SmallTrainer):
    def build_network(self, example_shape):
        return Noisy(super().build_network(example_shape))
"""


class Several(nn.Module):
    """Returns a coarser output, too."""

    def __init__(self, network):
        super().__init__()
        self.inner = network

    def forward(self, x):
        logits = self.inner(x)
        return [logits, logits[:, :, ::2, ::2]]


class Noisy(nn.Module):
    """Returns another result each time."""

    def __init__(self, network):
        super().__init__()
        self.inner = network

    def forward(self, x):
        return self.inner(x) + torch.rand_like(x)


class _OfSeveral(SmallTrainer):
    def build_network(self, example_shape):
        return Several(super().build_network(example_shape))


class _OfNoise(SmallTrainer):
    def build_network(self, example_shape):
        return Noisy(super().build_network(example_shape))


def _trained(folder, cls=SmallTrainer):
    trainer = small_trainer(folder, Squares(2, size=(14, 16)), cls=cls)
    trainer.train(1, save_preview=False)
    return trainer.experiment_folder()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return _trained(tmp_path_factory.mktemp("run"))


@pytest.fixture
def options(tmp_path):
    (tmp_path / "mine.py").write_text(TRAINERS)
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (30, 20), dtype=np.uint8)).save(images / f"{name}_0000.png")
    return {"trainer": f"{tmp_path / 'mine.py'}:Mine", "images": images, "on_progress": lambda _: None}


def test_torchscript_runs_without_the_experiment_and_its_json_says_how_to_use_it(experiment, options, tmp_path):
    file = export(experiment, tmp_path / "out", to="torchscript", **options)
    assert file == tmp_path / "out" / "model.ts"
    images = torch.randn(3, 1, 18, 25)
    network = Predictor(experiment, network=SmallTrainer("unused", None, None).build_network((1, 14, 16))).model
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(file)(images), network(images))
    use = json.loads((tmp_path / "out" / "model.ts.json").read_text())
    assert use["input"]["shape"] == ["batch", 1, "1*n", "1*n"]
    assert use["output"]["activation"] == "sigmoid"
    assert {compared["case"] for compared in use["parity"]["compared"]} == {"a", "b"}
    assert len({tuple(compared["shape"]) for compared in use["parity"]["compared"]}) == 2


def test_the_json_is_enough_to_predict_as_the_experiment_does(tmp_path):
    plan = dataclasses.replace(
        PLAN,
        normalization=(ChannelNormalization(scheme="zscore"),),
        filters=(4, 4, 4),
        kernel_sizes=((3, 3, 3),) * 3,
        strides=((1, 1, 1), (2, 2, 2), (2, 2, 2)),
    )
    trainer = small_trainer(tmp_path / "runs", Squares(2, size=plan.patch_shape, num_classes=3), cls=UNetTrainer)
    trainer.use_plan(plan)
    trainer.train(1, save_preview=False)
    images = tmp_path / "images"
    images.mkdir()
    for name, shape in (("small", (9, 6, 4)), ("large", (21, 18, 11))):
        values = np.random.default_rng(4).normal(size=shape).cumsum(0).astype(np.float32)
        values[:2] = 0
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.0, 1.3, 2.9, 1.0])), images / f"{name}_0000.nii.gz")
    run = trainer.experiment_folder()
    file = export(run, tmp_path / "net.ts", to="torchscript", images=images, on_progress=lambda _: None)
    parser = ConfigParser(json.loads((tmp_path / "net.ts.json").read_text()))
    before = Compose(parser.get_parsed_content("preprocessing#steps"))
    after = Compose(parser.get_parsed_content("postprocessing#steps"))
    window, module, whole = parser["window"], torch.jit.load(file), []
    windows = SlidingWindowInferer(window["size"], overlap=window["overlap"], mode=window["mode"])
    for image in sorted(images.iterdir()):
        case = before({"image": str(image)})
        inputs = case["image"].as_tensor()[None]
        by = window["sizes_are_multiples_of"]
        padding = [width for size, by in zip(inputs.shape[:1:-1], by[::-1], strict=True) for width in (0, -size % by)]
        padded = torch.nn.functional.pad(inputs, padding)
        whole.append(padded[0, 0].numel() <= window["whole_up_to_voxels"])
        with torch.no_grad():
            logits = module(padded) if whole[-1] else windows(inputs, module)
        logits = logits[0][(slice(None), *map(slice, inputs.shape[2:]))]
        given = {"meta": case["image"].meta, "applied_operations": case["image"].applied_operations}
        labels = after({**case, "pred": MetaTensor(logits, **given)})["pred"]
        expected = experiment_predictor(run).predict(image)
        assert labels.shape == expected.shape
        assert (labels.as_tensor() == expected.as_tensor()).float().mean() > 0.999
    assert whole == [False, True]


class Padding(SmallTrainer):
    """Pads to other multiples than its plan."""

    def build_padding_module(self):
        return Pad3d((8, 3, 1))


def test_the_padding_of_a_planned_trainer_decides_the_sizes_that_are_exported(tmp_path):
    plan = dataclasses.replace(PLAN, patch_shape=(10, 8, 8))
    trainer = small_trainer(tmp_path / "runs", Squares(2, size=(10, 8, 8), num_classes=3), cls=Padding)
    trainer.use_plan(plan)
    trainer.train(1, save_preview=False)
    (tmp_path / "mine.py").write_text(
        "from tests.unit.export.test_exporting import Padding as Base\n\nclass Padding(Base): ...\n"
    )
    values = np.random.default_rng(0).normal(size=(20, 20, 20)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a_0000.nii.gz")
    given = {"trainer": f"{tmp_path / 'mine.py'}:Padding", "images": tmp_path / "a_0000.nii.gz"}
    export(trainer.experiment_folder(), tmp_path / "net.ts", to="torchscript", on_progress=lambda _: None, **given)
    use = json.loads((tmp_path / "net.ts.json").read_text())
    assert use["input"]["shape"] == ["batch", 1, "8*n", "6*n", "2*n"]
    assert use["window"]["size"] == [16, 12, 8]
    assert use["window"]["whole_up_to_voxels"] == 2 * 10 * 8 * 8
    assert use["window"]["padding"]["to_multiples_of"] == [8, 3, 1]
    assert "pads windows of 10 x 8 x 8 to `size`" in use["window"]["note"]
    assert [compared["shape"][2:] for compared in use["parity"]["compared"]] == [[16, 12, 8], [24, 18, 6]]


class OneSize(SmallTrainer):
    """Has a network that takes images of one size, and validates in windows of it."""

    inferer = WindowInferer((14, 16), overlap=0.25, mode="constant")

    def build_network(self, example_shape):
        return OfOneSize(super().build_network(example_shape), example_shape[1:])


class OfOneSize(nn.Module):
    """Has a weight for each pixel."""

    def __init__(self, network, size):
        super().__init__()
        self.inner, self.weight = network, nn.Parameter(torch.ones(*size))

    def forward(self, x):
        return self.inner(x) * self.weight


@pytest.mark.parametrize("to", ["torchscript", "onnx", "pt2"])
def test_a_network_that_takes_one_size_is_exported_for_it(to, options, tmp_path):
    options["trainer"] = f"{tmp_path / 'mine.py'}:OneSize"
    (tmp_path / "mine.py").write_text(
        "from tests.unit.export.test_exporting import OneSize as Base\n\n\nclass OneSize(Base):\n    pass\n"
    )
    file = export(_trained(tmp_path / "runs", OneSize), tmp_path / "out", to=to, **options)
    use = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert use["input"]["shape"] == ["batch", 1, 14, 16]
    assert "images of 14 x 16 along its fixed axes only" in use["input"]["fixed_size"]
    window = use["window"]
    assert (window["size"], window["overlap"], window["mode"]) == ([14, 16], 0.25, "constant")
    assert {tuple(compared["shape"][2:]) for compared in use["parity"]["compared"]} == {(14, 16)}


def test_a_file_can_be_named_and_nothing_but_the_network_and_its_json_is_left(experiment, options, tmp_path):
    export(experiment, tmp_path / "out" / "mine.ts", to="torchscript", **options)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["mine.ts", "mine.ts.json"]
    with pytest.raises(SettingsError, match=r"mine\.onnx: expected a folder, or a file that ends in \.ts"):
        export(experiment, tmp_path / "mine.onnx", to="torchscript", **options)


def test_what_is_there_is_replaced_only_when_asked(experiment, options, tmp_path):
    (tmp_path / "mine.ts").write_text("precious")
    with pytest.raises(BadInputError, match=r"mine\.ts: already exists.*--overwrite"):
        export(experiment, tmp_path / "mine.ts", to="torchscript", **options)
    assert (tmp_path / "mine.ts").read_text() == "precious"
    export(experiment, tmp_path / "mine.ts", to="torchscript", overwrite=True, **options)
    torch.jit.load(tmp_path / "mine.ts")


def test_of_several_outputs_the_one_at_full_resolution_is_exported(options, tmp_path):
    run = _trained(tmp_path / "runs", _OfSeveral)
    options["trainer"] = options["trainer"].replace("Mine", "OfSeveral")
    module = torch.jit.load(export(run, tmp_path / "out", to="torchscript", **options))
    assert module(torch.zeros(1, 1, 14, 16)).shape == (1, 1, 14, 16)


def test_a_network_that_differs_is_not_kept(options, tmp_path):
    run = _trained(tmp_path / "runs", _OfNoise)
    options["trainer"] = options["trainer"].replace("Mine", "OfNoise")
    with pytest.raises(RunFailedError, match=r"torchscript: differs from the experiment and was discarded: on a of"):
        export(run, tmp_path / "out", to="torchscript", **options)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".export-*"))


def test_a_network_that_its_runtime_cannot_run_is_not_kept(experiment, options, tmp_path, monkeypatch):
    monkeypatch.setattr("candy_monai.export.torchscript.torch.jit.load", lambda *_, **__: nn.Conv2d(3, 1, 1))
    with pytest.raises(RunFailedError, match=r"fails on a of shape \(1, 1, .* and was discarded \(RuntimeError: "):
        export(experiment, tmp_path / "out", to="torchscript", **options)
    assert not (tmp_path / "out").exists()


def test_several_experiments_are_no_single_network(experiment, options, tmp_path):
    with pytest.raises(BadInputError, match="onnx holds one network, and 2 experiments were given.*monai-bundle"):
        export([experiment, experiment], tmp_path / "out", to="onnx", **options)


def test_without_its_dataset_an_experiment_asks_for_images(experiment, options, tmp_path):
    with pytest.raises(ExperimentError, match=r"compared on real cases.*--images"):
        export(experiment, tmp_path / "out", to="pt2", **{**options, "images": None})


def test_an_option_that_a_target_does_not_have_is_refused(experiment, options, tmp_path):
    with pytest.raises(SettingsError, match="--portable applies to monai-bundle"):
        export(experiment, tmp_path / "out", to="onnx", portable=True, **options)


def test_slicer_refuses_what_was_trained_without_a_plan(experiment, options, tmp_path):
    with pytest.raises(BadInputError, match="trained without a plan"):
        export(experiment, tmp_path / "out", to="slicer", **options)


def test_the_command_names_the_file_and_ends_well(experiment, options, tmp_path, capsys):
    words = [
        "export",
        str(experiment),
        str(tmp_path / "out"),
        "--to",
        "torchscript",
        "--images",
        str(options["images"]),
    ]
    assert main([*words, "--trainer", options["trainer"]]) == 0
    assert f"Exported: {tmp_path / 'out' / 'model.ts'}" in capsys.readouterr().out
    assert main(words) == 2


def test_on_a_full_disk_the_command_names_the_file(experiment, options, tmp_path, capsys, monkeypatch):
    def full(_path, _content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    words = ["export", str(experiment), str(tmp_path / "out"), "--to", "torchscript", "--images"]
    assert main([*words, str(options["images"]), "--trainer", options["trainer"]]) == 1
    assert f"{tmp_path / 'out' / 'model.ts'}: cannot be written, the disk is full" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_formats_of_torch_export_take_any_size_that_the_network_takes(experiment, options, tmp_path, to):
    file = export(experiment, tmp_path / "out", to=to, **options)
    use = json.loads(file.with_name(f"{file.name}.json").read_text())
    assert use["input"]["shape"] == ["batch", 1, "1*n", "1*n"]
    assert use["input"]["fixed_size"] is None
    assert all(compared["max_difference"] < 1e-4 for compared in use["parity"]["compared"])
