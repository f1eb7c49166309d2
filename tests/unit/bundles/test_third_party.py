"""The complete example of docs/zoo.md, installed as a package is: a module and a dist-info folder on the path."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError
from candy_monai.incoming.opening import load_predictor
from candy_monai.recipes.train import train_dataset
from candy_monai.registry import bundle_names, find_bundle

PAGE = Path(__file__).parents[3] / "docs" / "zoo.md"


def _block(language, word):
    text = PAGE.read_text(encoding="utf-8")
    (found,) = [
        code for code in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if word in code
    ]
    return found


@pytest.fixture
def installed(tmp_path, monkeypatch):
    project = tomllib.loads(_block("toml", "entry-points"))["project"]
    folder = tmp_path / "site"
    info = folder / "tiny_unet-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "tiny_unet.py").write_text(_block("python", "BUNDLE ="))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (group, names), *_ = project["entry-points"].items()
    lines = "".join(f"{name} = {target}\n" for name, target in names.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}")
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("tiny_unet", None)


def test_an_installed_package_s_bundle_trains_and_is_predicted_with_by_name(installed, tmp_path):
    assert "tiny_unet" in bundle_names()
    pictures = write_phantom_dataset(tmp_path / "p", num_cases=4, num_dims=2, shape=(40, 44))
    overrides = {"iterations_per_epoch": "1", "batch_size": "2", "patch_shape": "32,32"}
    options = {"num_epochs": 1, "overrides": overrides, "device": "cpu", "out": tmp_path / "out"}
    experiment = train_dataset(pictures, bundle="tiny_unet", on_progress=lambda _message: None, **options)
    described = json.loads((experiment / "experiment.json").read_text())
    assert (described["bundle"], described["network"]["arguments"]["size"]) == ("tiny_unet", "S")
    assert described["padding"]["min_factor"] == [16, 16]
    assert type(load_predictor(experiment).model).__name__ == "BasicUNet"


def test_without_the_package_its_experiments_and_its_name_are_refused():
    with pytest.raises(BadInputError, match="no bundle 'tiny_unet' is installed"):
        find_bundle("tiny_unet")
