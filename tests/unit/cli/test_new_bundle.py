import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_package_names_its_bundle(here, capsys):
    assert main(["new-bundle", "my_network"]) == 0
    assert sorted(path.name for path in (here / "my_network").iterdir()) == [
        "my_network.py",
        "pyproject.toml",
        "test_my_network.py",
    ]
    project = tomllib.loads((here / "my_network" / "pyproject.toml").read_text())["project"]
    assert project["name"] == "my-network"
    assert project["entry-points"]["candy_monai.bundles"] == {"my_network": "my_network:BUNDLE"}
    assert (
        "Next: pip install -e my_network\nThen: candy-monai train DATASET --bundle my_network"
        in capsys.readouterr().out
    )


def test_a_folder_with_anything_in_it_is_left_as_it_is(here, capsys):
    (here / "my_network").mkdir()
    (here / "my_network" / "notes.txt").write_text("mine")
    assert main(["new-bundle", "my_network"]) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [path.name for path in (here / "my_network").iterdir()] == ["notes.txt"]


def test_a_folder_of_another_name_that_is_empty_is_taken(here):
    (here / "work").mkdir()
    assert main(["new-bundle", "my_network", "--out", "work"]) == 0
    assert (here / "work" / "my_network.py").exists()


@pytest.mark.parametrize(("name", "said"), [("MyNetwork", "Did you mean 'my_network'"), ("unet", "already installed")])
def test_a_bad_name_writes_nothing(here, capsys, name, said):
    assert main(["new-bundle", name]) == 2
    assert said in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_the_package_is_written_as_ours_are(here):
    main(["new-bundle", "my_network"])
    config = [
        "--config",
        str(ROOT / "pyproject.toml"),
        "--config",
        "lint.per-file-ignores={'test_*'=['D']}",
        "my_network",
    ]
    subprocess.run([sys.executable, "-m", "ruff", "check", *config], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", *config], check=True)


@pytest.mark.slow
def test_the_types_of_the_package_hold(here):
    main(["new-bundle", "my_network"])
    strict = ["--strict", "--config-file", str(ROOT / "setup.cfg"), str(here / "my_network" / "my_network.py")]
    subprocess.run([sys.executable, "-m", "mypy", *strict], check=True, cwd=ROOT)


@pytest.mark.slow
def test_the_installed_bundle_passes_its_test_trains_and_predicts_by_its_name(here):
    main(["new-bundle", "my_network"])
    python = [sys.executable, "-m"]
    install = [*python, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", "installed"]
    subprocess.run([*install, "./my_network"], check=True)
    path = os.pathsep.join([str(here / "installed"), str(ROOT), str(ROOT / "bundles")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def run(*words):
        subprocess.run([*python, *words], check=True, env=environment)

    run("pytest", "-q", "-p", "no:cacheprovider", "my_network/test_my_network.py")
    write_phantom_dataset("Dataset001_Phantom", num_cases=5, num_test_cases=1, num_dims=2, shape=(40, 40))
    quick = ["--epochs", "1", "--set", "iterations_per_epoch=2", "--set", "batch_size=2", "--device", "cpu"]
    run("candy_monai", "train", "Dataset001_Phantom", "--bundle", "my_network", "--network-args", "size=S", *quick)
    (experiment,) = (here / "experiments" / "MyNetworkTrainer").iterdir()
    run("candy_monai", "predict", str(experiment), "Dataset001_Phantom/imagesTs", "out", "--device", "cpu")
    assert len(list((here / "out").glob("phantom_*"))) == 1
