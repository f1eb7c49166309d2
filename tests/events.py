"""Events of a run, with a value for everything that a test does not care about."""

from __future__ import annotations

from pathlib import Path

from candy_monai.experiment.events import EpochFinished, RunStarted


def epoch_finished(epoch=1, **facts):
    """Return the event of a finished epoch."""
    defaults = {
        "num_epochs": 10,
        "metrics": {},
        "score": None,
        "best_score": 0.0,
        "best_epoch": 0,
        "early_stop_tolerance": None,
        "preview": None,
    }
    return EpochFinished(epoch=epoch, **{**defaults, **facts})


def run_started(**facts):
    """Return the event of a run's start."""
    defaults = {
        "experiment_id": "20251101-14-a3f2",
        "folder": Path("f"),
        "trainer": "MyTrainer",
        "model": "UNet",
        "note": "",
        "num_params": 10,
        "num_macs": 20.0,
        "num_epochs": 5,
        "early_stop_tolerance": None,
    }
    return RunStarted(**{**defaults, **facts})
