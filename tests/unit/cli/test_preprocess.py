from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch

from candy_monai.cli.main import main
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.rules import plan
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.recipes import prepare
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.train import Parts
from candy_monai_bundles.unet import UNetTrainer


def test_the_plan_and_the_store_are_shown_and_every_option_is_passed_on(tmp_path, monkeypatch, capsys):
    dataset = write_phantom_dataset(tmp_path / "Dataset001_Phantom", num_cases=2, num_test_cases=0)
    seen = {}

    class Prepared:
        plan = plan(inspect(dataset))
        store = SimpleNamespace(folder=Path("store/Phantom-key"))

    def prepare_dataset(folder, options, *, on_progress, **keywords):
        seen.update(dataset=folder, options=options, **keywords)
        on_progress("Preprocessing 2 cases")
        return Prepared()

    monkeypatch.setattr(prepare, "prepare_dataset", prepare_dataset)
    (tmp_path / "plan.json").write_text(json.dumps(Prepared.plan.to_dict()))
    options = ["--store", "s", "--out", "o", "--set", "batch_size=1", "--device", "cpu", "--jobs", "3"]
    options += ["--plan", str(tmp_path / "plan.json")]
    (tmp_path / "own.json").write_text('{"preprocessing": [{"_target_": "ScaleIntensityd", "keys": "image"}]}')
    options += ["--transforms", str(tmp_path / "own.json")]
    assert main(["preprocess", "data", *options]) == 0
    given = {"overrides": {"batch_size": "1"}, "network_args": {}, "store": Path("s"), "out": Path("o")}
    given |= {"plan": tmp_path / "plan.json"}
    assert seen.pop("processes").world_size == 1
    assert seen == {
        "dataset": Path("data"),
        "options": TrainOptions(fold="all", device="cpu", transforms=tmp_path / "own.json", jobs=3, **given),
        "own": OwnTransforms(preprocessing=[{"_target_": "ScaleIntensityd", "keys": "image"}]),
        "device": torch.device("cpu"),
        "trainer": UNetTrainer,
    }
    shown = capsys.readouterr()
    assert shown.out.startswith("Preprocessing 2 cases\n")
    assert "patch_shape" in shown.out
    assert shown.out.endswith(f"Store: store/Phantom-key\nNext: candy-monai train data {' '.join(options)}\n")


def test_training_uses_the_cases_that_were_stored_with_the_transforms_of_its_own_trainer(tmp_path, capsys):
    dataset = write_phantom_dataset(tmp_path / "phantom", num_cases=3, num_dims=2)
    (tmp_path / "mine.py").write_text(
        "from candy_monai_bundles.unet import UNetTrainer\n"
        "from candy_monai import SegmentationOptions\n"
        "class Mine(UNetTrainer):\n"
        "    options = SegmentationOptions(preprocessing=[{'_target_': 'ScaleIntensityd', 'keys': 'image'}])\n"
    )
    typed = [str(dataset), "--trainer", f"{tmp_path / 'mine.py'}:Mine", "--out", str(tmp_path / "out")]
    assert main(["preprocess", *typed, "--device", "cpu"]) == 0
    assert "Preprocessing 3 cases" in capsys.readouterr().out
    parts = Parts.of(options := TrainOptions(trainer=typed[2], out=tmp_path / "out"))
    said = []
    prepare.prepare_dataset(
        dataset, options, own=parts.own, trainer=parts.trainer, device=torch.device("cpu"), on_progress=said.append
    )
    assert any(text.startswith("All 3 cases are preprocessed already") for text in said)
