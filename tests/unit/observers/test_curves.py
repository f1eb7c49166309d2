from pathlib import Path

import pytest
from PIL import Image

import candy_monai.plotting.charts.curves
from candy_monai.observers.curves import CurvesObserver, PictureNames
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


def test_metrics_of_any_names_have_a_picture_each_beside_the_overview(observer, tmp_path):
    names = [
        "progress",
        "a/b",
        "a:b",
        "a_b",
        "x" * 300,
        "x" * 301,
        "...",
        "",
        "-v",
        "Dice",
        "dice",
        "Größe",
        "a." * 120,
    ]
    observer.draw(_epoch({name: [float(index)] for index, name in enumerate(names)}))
    pictures = {path.name.casefold() for path in tmp_path.iterdir()}
    assert len(pictures) == len(names) + 1
    assert "progress.png" in pictures


def test_a_metric_called_like_the_overview_does_not_take_its_place(observer, tmp_path):
    observer.draw(_epoch({"progress": [1.0], **{f"metric {index}": [1.0] for index in range(3)}}))
    width, height = Image.open(tmp_path / "progress.png").size
    (own,) = tmp_path.glob("progress (*).png")
    assert Image.open(own).size[0] < width
    assert Image.open(own).size[1] < height


def test_a_metric_keeps_the_name_of_its_picture():
    names = PictureNames()
    given = ["val score", "a/b", "a/b", "Größe", "-rf"]
    assert [names.of(name) for name in given] == ["val score.png", "a_b.png", "a_b.png", "Größe.png", "_-rf.png"]
    assert names.of("a:b").startswith("a_b (")
    assert names.of("input (preview)") != "input (preview).png"


def test_a_curve_that_cannot_be_drawn_does_not_keep_the_others_from_it(observer, tmp_path, monkeypatch):
    drawn = candy_monai.plotting.charts.curves.curve_figure
    monkeypatch.setattr(
        candy_monai.plotting.charts.curves,
        "curve_figure",
        lambda name, values: 1 / 0 if name == "bad" else drawn(name, values),
    )
    with pytest.raises(ZeroDivisionError):
        observer.draw(_epoch({"bad": [1.0], "good": [1.0]}))
    assert (tmp_path / "good.png").exists()
