from pathlib import Path

import pytest

from candy_monai.observers.curves import CurvesObserver
from tests.events import epoch_finished, run_started


@pytest.fixture
def observer(tmp_path):
    observer = CurvesObserver(interval_s=0)
    observer.receive(run_started(folder=tmp_path))
    return observer


def _epoch(metrics):
    epoch = len(next(iter(metrics.values())))
    return epoch_finished(epoch, metrics=metrics)


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
