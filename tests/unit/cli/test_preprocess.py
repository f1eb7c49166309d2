from __future__ import annotations

from pathlib import Path

from candy_monai.cli.main import main
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.plan import plan
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.recipes import prepare


def test_the_plan_and_the_store_are_shown_and_every_option_is_passed_on(tmp_path, monkeypatch, capsys):
    dataset = write_phantom_dataset(tmp_path / "Dataset001_Phantom", num_cases=2, num_test_cases=0)
    seen = {}

    class Prepared:
        plan = plan(inspect(dataset))
        store_folder = Path("store/Phantom-key")
        warnings = ("label 3 never occurs",)

    def prepare_dataset(folder, *, on_progress, **options):
        seen.update(dataset=folder, **options)
        on_progress("Preprocessing 2 cases")
        return Prepared()

    monkeypatch.setattr(prepare, "prepare_dataset", prepare_dataset)
    options = ["--store", "s", "--out", "o", "--set", "a=1", "--device", "cpu", "--plan", "p", "--jobs", "3"]
    (tmp_path / "own.json").write_text('{"preprocessing": [{"_target_": "ScaleIntensityd", "keys": "image"}]}')
    options += ["--transforms", str(tmp_path / "own.json")]
    assert main(["preprocess", "data", *options]) == 0
    assert seen == {
        "dataset": Path("data"),
        "overrides": {"a": "1"},
        "store": Path("s"),
        "out": Path("o"),
        "device": "cpu",
        "precision": "float32",
        "own": OwnTransforms(preprocessing=[{"_target_": "ScaleIntensityd", "keys": "image"}]),
        "plan_from": Path("p"),
        "jobs": 3,
    }
    shown = capsys.readouterr()
    assert shown.out.startswith("Preprocessing 2 cases\n")
    assert "patch_shape" in shown.out
    assert shown.out.endswith("Store: store/Phantom-key\n")
    assert shown.err == "candy-monai: warning: label 3 never occurs\n"
