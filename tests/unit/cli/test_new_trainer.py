import subprocess
import sys
from pathlib import Path

import pytest

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.recipes.trainers import find_trainer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_has_the_class_and_its_own_name(here, capsys):
    assert main(["new-trainer", "MyTrainer"]) == 0
    assert find_trainer(own="my_trainer.py:MyTrainer").__name__ == "MyTrainer"
    assert "--trainer my_trainer.py:MyTrainer" in (here / "my_trainer.py").read_text()
    assert "Next: candy-monai train DATASET --trainer my_trainer.py:MyTrainer" in capsys.readouterr().out


def test_the_file_can_be_written_elsewhere(here):
    assert main(["new-trainer", "MyTrainer", "--out", "ideas/first.py"]) == 0
    assert "--trainer first.py:MyTrainer" in (here / "ideas" / "first.py").read_text()


def test_a_file_that_begins_with_a_dash_is_named_as_a_file(here, capsys):
    assert main(["new-trainer", "MyTrainer", "--out", "./-first.py"]) == 0
    assert "--trainer ./-first.py:MyTrainer" in capsys.readouterr().out


def test_a_file_that_exists_is_left_as_it_is(here, capsys):
    (here / "my_trainer.py").write_text("mine")
    assert main(["new-trainer", "MyTrainer"]) == 2
    assert (here / "my_trainer.py").read_text() == "mine"
    assert capsys.readouterr().err.startswith("candy-monai: error: my_trainer.py already exists")


def test_a_bad_name_writes_nothing(here, capsys):
    assert main(["new-trainer", "my trainer"]) == 2
    assert "Did you mean 'MyTrainer'" in capsys.readouterr().err
    assert list(here.iterdir()) == []


def test_the_file_is_written_as_ours_are(here):
    main(["new-trainer", "MyTrainer"])
    config = [
        "--config",
        str(ROOT / "pyproject.toml"),
        "--config",
        "lint.per-file-ignores={'test_*'=['D']}",
        "my_trainer.py",
    ]
    subprocess.run([sys.executable, "-m", "ruff", "check", *config], check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", *config], check=True)


@pytest.mark.slow
def test_the_types_of_the_file_hold(here):
    main(["new-trainer", "MyTrainer"])
    strict = ["--strict", "--config-file", str(ROOT / "setup.cfg"), str(here / "my_trainer.py")]
    subprocess.run([sys.executable, "-m", "mypy", *strict], check=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("num_dims", [2, 3])
def test_the_trainer_trains_and_predicts_as_it_is(here, num_dims):
    shape = (40, 40) if num_dims == 2 else (32, 32, 16)
    write_phantom_dataset("Dataset001_Phantom", num_cases=5, num_test_cases=1, num_dims=num_dims, shape=shape)
    main(["new-trainer", "MyTrainer"])
    own = ["--trainer", "my_trainer.py:MyTrainer"]
    quick = ["--epochs", "1", "--set", "iterations_per_epoch=2", "--set", "batch_size=2", "--device", "cpu"]
    assert main(["train", "Dataset001_Phantom", *own, *quick]) == 0
    (run,) = (here / "experiments" / "MyTrainer").iterdir()
    assert main(["predict", str(run), "Dataset001_Phantom/imagesTs", "out", *own, "--device", "cpu"]) == 0
    assert len(list((here / "out").glob("phantom_*"))) == 1
