from pathlib import Path

import pytest

from candy_monai.experiment.events import EpochFinished, RunStarted
from candy_monai.observers.curves import CurvesObserver


@pytest.fixture
def observer(tmp_path):
    observer = CurvesObserver(interval_s=0)
    observer.receive(
        RunStarted(
            experiment_id="x",
            folder=tmp_path,
            trainer="T",
            model="M",
            note="",
            num_params=1,
            num_macs=1,
            num_epochs=3,
            early_stop_tolerance=None,
        )
    )
    return observer


def _epoch(metrics):
    epoch = len(next(iter(metrics.values())))
    return EpochFinished(
        epoch=epoch,
        num_epochs=3,
        metrics=metrics,
        score=None,
        best_score=0.0,
        best_epoch=0,
        early_stop_tolerance=None,
        preview=None,
    )


def test_every_metric_gets_a_picture_and_the_run_one(observer, tmp_path):
    observer.draw(_epoch({"combined loss": [1.0], "val score": [0.5]}))
    assert {path.name for path in tmp_path.iterdir()} == {"progress.png", "combined loss.png", "val score.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_a_curve_that_did_not_change_is_not_drawn_again(observer, tmp_path):
    observer.draw(_epoch({"loss": [1.0], "dice": [0.5]}))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    observer.draw(_epoch({"loss": [1.0], "dice": [0.6]}))
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"dice.png", "progress.png"}


@pytest.mark.parametrize("name", ["dice/left", "a:b", "..", "loss\n2"])
def test_a_metric_of_any_name_stays_inside_the_folder(observer, tmp_path, name):
    observer.draw(_epoch({name: [1.0]}))
    assert len(list(tmp_path.iterdir())) == 2
    assert Path(tmp_path).parent.joinpath("left.png").exists() is False
