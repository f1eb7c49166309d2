from pathlib import Path

import pytest
import torch
from PIL import Image

import candy_monai.plotting.charts.curves
from candy_monai.experiment.events import Preview, RunFinished, RunInterrupted
from candy_monai.observers.pictures import CurvesObserver, PictureNames, PreviewObserver, ThrottledObserver
from tests.events import epoch_finished, run_started

pytestmark = pytest.mark.usefixtures("curves")


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
    observer.draw(_epoch({"progress": [1.0], **{f"metric {letter}": [1.0] for letter in "abc"}}))
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


@pytest.mark.parametrize("name", ["aux", "NUL", "com1", "con.1", "lpt9 "])
def test_a_metric_called_like_a_device_of_windows_has_a_picture_there_too(name):
    assert PictureNames().of(name) == f"_{name.strip()}.png"


def test_a_name_that_only_begins_like_a_device_is_kept():
    assert PictureNames().of("aux loss") == "aux loss.png"


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


class _Drawing(ThrottledObserver):
    def __init__(self, clock):
        super().__init__(interval_s=30, clock=clock)
        self.drawn = []

    def draw(self, event):
        self.drawn.append(event.epoch)


def _after(times, last_event):
    now = [0.0]
    observer = _Drawing(lambda: now[0])
    for epoch, now[0] in enumerate(times, start=1):
        observer.receive(epoch_finished(epoch))
    if last_event is not None:
        observer.receive(last_event)
    return observer.drawn


def test_an_epoch_is_drawn_only_after_the_interval():
    assert _after([0, 10, 29, 31, 40, 62], None) == [4, 6]


def test_the_last_epoch_is_always_drawn_and_never_twice():
    finished = RunFinished(epoch=3, best_score=0.0, best_epoch=0)
    assert _after([31, 32, 33], finished) == [1, 3]
    assert _after([31], finished) == [1]


def test_what_takes_long_is_drawn_less_often():
    now = [0.0]

    class Slow(_Drawing):
        def draw(self, event):
            super().draw(event)
            now[0] += 2.0

    observer = Slow(lambda: now[0])
    for epoch, at in enumerate([30, 61, 129, 131], start=1):
        now[0] = at
        observer.receive(epoch_finished(epoch))
    assert observer.drawn == [1, 4]


def test_an_interrupted_run_draws_its_last_epoch_too():
    assert _after([31, 32], RunInterrupted(KeyboardInterrupt())) == [1, 2]


def test_an_epoch_without_a_preview_does_not_hide_the_one_before():
    preview = Preview(image=torch.zeros(1, 2, 2), label=torch.zeros(1, 2, 2), output=torch.zeros(1, 2, 2))
    saved = []
    observer = PreviewObserver(saved.append, interval_s=0)
    observer.receive(epoch_finished(1))
    assert saved == []
    observer.receive(epoch_finished(2, preview=preview))
    observer.receive(epoch_finished(3))
    observer.receive(RunFinished(epoch=3, best_score=0.0, best_epoch=0))
    assert saved == [preview]


def test_the_classes_of_a_metric_share_a_picture(tmp_path):
    observer = CurvesObserver(interval_s=0)
    observer.receive(
        run_started(folder=tmp_path, class_names=("background", *(f"organ {index}" for index in range(117))))
    )
    observer.draw(_epoch({"val dice": [0.5, 0.6], **{f"val dice organ {index}": [0.5, 0.6] for index in range(117)}}))
    assert {path.name for path in tmp_path.iterdir()} == {"progress.png", "val dice.png", "val dice by class.png"}
