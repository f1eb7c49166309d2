"""What Windows and macOS do otherwise than Linux, simulated: open files, spawned workers, functions that they lack."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

import candy_monai
from candy_monai import NNUNetDataset, load_predictor, train_dataset, write_phantom_dataset
from candy_monai.experiment.folder import LOCK
from tests.crashes import Crash, crashing
from tests.toys import SmallTrainer, small_trainer
from tests.windows import behave_like_windows

POSIX_ONLY = re.compile(r"^\s*(import|from) (fcntl|grp|posix|pty|pwd|resource|syslog|termios|tty)\b", re.MULTILINE)
PACKAGES = [Path(candy_monai.__file__).parent, Path(candy_monai.__file__).parents[1] / "bundles"]


@pytest.fixture
def on_windows(monkeypatch):
    if not sys.platform.startswith("linux"):
        pytest.skip("finds open files in /proc")
    behave_like_windows(monkeypatch, but_for={LOCK})  # which is removed on POSIX alone


def test_the_simulation_refuses_what_windows_refuses(on_windows, tmp_path):
    (tmp_path / "open.txt").write_text("a")
    (tmp_path / "other.txt").write_text("b")
    with (tmp_path / "open.txt").open():
        for refused in (
            lambda: (tmp_path / "other.txt").replace(tmp_path / "open.txt"),
            (tmp_path / "open.txt").unlink,
            lambda: os.rename(tmp_path, tmp_path.with_name("moved")),
        ):
            with pytest.raises(PermissionError):
                refused()
    (tmp_path / "other.txt").replace(tmp_path / "open.txt")
    assert not hasattr(os, "fork")


def test_no_module_is_imported_that_windows_lacks():
    modules = [module for package in PACKAGES for module in package.rglob("*.py")]
    assert len(modules) > 100
    assert [module for module in modules if POSIX_ONLY.search(module.read_text(encoding="utf-8"))] == []


def test_a_run_saves_and_goes_on_without_moving_or_removing_a_file_that_it_holds_open(on_windows, tmp_path):
    halted = crashing(small_trainer(tmp_path), step=3)
    with pytest.raises(Crash):
        halted.train(2, num_checkpoints=2, seed=0)
    folder = halted.experiment_folder()
    small_trainer(tmp_path).resume(folder.name)
    assert {"state.pt", "checkpoint_best.pth", "metrics.csv", "report.html"} <= {path.name for path in folder.iterdir()}
    assert LOCK not in os.listdir(folder)


@pytest.mark.slow
def test_a_dataset_is_trained_on_and_predicted_without_moving_a_file_that_is_open(on_windows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_phantom_dataset("phantom", num_cases=4, num_test_cases=1, num_dims=2, shape=(32, 32))
    overrides = {"iterations_per_epoch": 2, "filters": (4, 8, 8), "batch_size": 1}
    options = {"num_epochs": 1, "seed": 0, "device": "cpu", "overrides": overrides, "on_progress": lambda line: None}
    experiment = train_dataset(folder, **options)
    load_predictor(experiment).predict_to_files(folder / "imagesTs", "predictions")
    again = train_dataset(folder, **options)  # from the store of the first
    scores = [json.loads((run / "validation.json").read_text())["foreground_mean"] for run in (experiment, again)]
    assert scores[0] == scores[1]
    assert len(list(Path("predictions").glob("*.png"))) == 1


@pytest.mark.slow
def test_workers_that_are_spawned_load_what_forked_ones_do(tmp_path):
    folder = write_phantom_dataset(tmp_path / "phantom", num_cases=3, num_test_cases=0, num_dims=2, shape=(24, 24))
    dataset = NNUNetDataset(folder)
    weights = []
    for context in ("fork", "spawn"):
        train = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=1, multiprocessing_context=context)
        trainer = SmallTrainer(tmp_path / context, train, DataLoader(dataset), console=False)
        trainer.num_classes = 3
        trainer.train(1, seed=0, save_preview=False, save_report=False)
        weights.append(torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
