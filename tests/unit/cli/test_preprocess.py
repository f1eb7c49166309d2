from __future__ import annotations

from pathlib import Path

import torch

from candy_monai.cli.main import main
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.rules import plan
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.recipes import prepare
from candy_monai.recipes.options import TrainOptions
from candy_monai_bundles.unet import UNetTrainer


def test_the_plan_and_the_store_are_shown_and_every_option_is_passed_on(tmp_path, monkeypatch, capsys):
    dataset = write_phantom_dataset(tmp_path / "Dataset001_Phantom", num_cases=2, num_test_cases=0)
    seen = {}

    class Prepared:
        plan = plan(inspect(dataset))
        store_folder = Path("store/Phantom-key")

    def prepare_dataset(folder, options, *, on_progress, **keywords):
        seen.update(dataset=folder, options=options, **keywords)
        on_progress("Preprocessing 2 cases")
        return Prepared()

    monkeypatch.setattr(prepare, "prepare_dataset", prepare_dataset)
    options = ["--store", "s", "--out", "o", "--set", "a=1", "--device", "cpu", "--plan", "p", "--jobs", "3"]
    (tmp_path / "own.json").write_text('{"preprocessing": [{"_target_": "ScaleIntensityd", "keys": "image"}]}')
    options += ["--transforms", str(tmp_path / "own.json")]
    assert main(["preprocess", "data", *options]) == 0
    given = {"overrides": {"a": "1"}, "network_args": {}, "store": Path("s"), "out": Path("o")}
    assert seen.pop("processes").world_size == 1
    assert seen == {
        "dataset": Path("data"),
        "options": TrainOptions(
            fold="all", device="cpu", transforms=tmp_path / "own.json", plan=Path("p"), jobs=3, **given
        ),
        "own": OwnTransforms(preprocessing=[{"_target_": "ScaleIntensityd", "keys": "image"}]),
        "device": torch.device("cpu"),
        "trainer": UNetTrainer,
    }
    shown = capsys.readouterr()
    assert shown.out.startswith("Preprocessing 2 cases\n")
    assert "patch_shape" in shown.out
    assert shown.out.endswith(f"Store: store/Phantom-key\nNext: candy-monai train data {' '.join(options)}\n")
