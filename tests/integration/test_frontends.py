"""A frontend that hangs, raises or lies changes nothing about a run's weights, and its time by less than 2 %."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import pytest
import torch

from candy_monai.experiment.history import load_metrics
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.choice import find_frontend
from candy_monai.frontends.delivery import Delivery
from tests.toys import Squares, small_trainer

NUM_EPOCHS = 12


class _Hanging(Frontend):
    release = threading.Event()

    def on_experiment_created(self, *arguments):
        self.release.wait(300)


class _HangingLater(Frontend):
    release = threading.Event()

    def on_experiment_updated(self, *arguments):
        self.release.wait(300)


class _Raising(Frontend):
    def on_experiment_created(self, *arguments):
        raise ConnectionError("no route to host")

    def on_experiment_updated(self, *arguments):
        raise SystemExit(1)

    def on_experiment_completed(self, *arguments):
        raise KeyboardInterrupt


class _Lying(Frontend):
    def on_experiment_updated(self, experiment_id, epoch, metrics, early_stop_tolerance):
        for values in metrics.values():
            values[:] = [1e9] * len(values)
        metrics["val score"] = None
        return {"stop": True}


@pytest.fixture
def spent(monkeypatch):
    """Return a list that takes the seconds that the run's own thread spends on its frontend."""
    seconds = []

    def timed(method):
        def call(self, *arguments):
            started = time.perf_counter()
            method(self, *arguments)
            seconds.append(time.perf_counter() - started)

        return call

    for name in ("receive", "close"):
        monkeypatch.setattr(Delivery, name, timed(getattr(Delivery, name)))
    yield seconds
    for frontend in (_Hanging, _HangingLater):
        frontend.release.set()


def _trained(folder, frontend):
    trainer = small_trainer(folder, Squares(64, size=(64, 64)))
    if frontend is not None:
        trainer.set_frontend(frontend)
    started = time.perf_counter()
    trainer.train(NUM_EPOCHS, seed=5, early_stop_tolerance=None, save_preview=False)
    duration_s = time.perf_counter() - started
    weights = torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True)
    return weights, trainer.metrics()["val score"], duration_s


def duration_of(folder):
    """Return the seconds of all epochs of the run in a folder."""
    (metrics,) = folder.glob("*/*/metrics.csv")
    return sum(load_metrics(metrics)["epoch duration"])


@pytest.mark.slow
@pytest.mark.parametrize("frontend", [_Hanging, _HangingLater, _Raising, _Lying])
def test_a_frontend_that_hangs_raises_or_lies_costs_less_than_2_percent_and_changes_no_bit(tmp_path, spent, frontend):
    plain, plain_scores, _ = _trained(tmp_path / "plain", None)
    weights, scores, duration_s = _trained(tmp_path / "watched", frontend)
    assert all(torch.equal(weights[name], plain[name]) for name in plain)
    assert scores == plain_scores
    assert 0 < sum(spent) < 0.02 * duration_s


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_dashboard_of_ours_costs_less_than_2_percent_and_changes_no_bit(tmp_path, spent, name, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    plain, plain_scores, _ = _trained(tmp_path / "plain", None)
    weights, scores, _ = _trained(tmp_path / "watched", find_frontend(name))
    assert all(torch.equal(weights[key], plain[key]) for key in plain)
    assert scores == plain_scores
    *told, closed_s = spent  # what is told in the end is waited for: for a second, in a run as short as this
    assert sum(told) < 0.02 * duration_of(tmp_path / "watched")
    assert closed_s < 1.5


def test_the_frontend_of_the_docs_tells_what_happens(capsys):
    text = (Path(__file__).parents[2] / "docs" / "frontends.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "class " in block)
    names = {}
    exec(compile(code, "frontends.md", "exec"), names)
    frontend = names["PrintFrontend"]({"my_address": "here"})
    frontend.on_experiment_created("a", "MyTrainer", "UNet", "", 1.0, 1.0, 10, None)
    frontend.on_experiment_updated("a", 1, {"combined loss": [0.5]}, None)
    frontend.on_experiment_completed("a")
    assert capsys.readouterr().out == "a: MyTrainer trains UNet for 10 epochs\na: epoch 1, loss 0.500\na: done\n"
