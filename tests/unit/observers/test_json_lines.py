import io
import json
import math
import threading
from pathlib import Path

import pytest

from candy_monai.experiment.events import MessageLogged, RunFinished, RunInterrupted, RunScored, StepFinished
from candy_monai.forecasting.best_score import Forecast
from candy_monai.observers.json_lines import JsonLines
from tests.events import epoch_finished, run_started

FORECAST = Forecast(epoch=7, score=0.7, interval=(0.6, 0.8), reason=None, quantiles=(0.4,) * 5 + (0.7,) * 14)


class _Told:
    """A stream, and what was written into it, each line parsed."""

    def __init__(self, **how):
        self.stream = io.StringIO()
        self.now = 0.0
        self.lines = JsonLines(self.stream, clock=lambda: self.now, **how)

    def receive(self, *events):
        for event in events:
            self.now += 0.4
            self.lines.receive(event)
        return self

    @property
    def content(self):
        return [json.loads(line, parse_constant=_refused) for line in self.stream.getvalue().splitlines()]

    def names(self):
        return [entry["event"] for entry in self.content]


def _refused(constant):
    raise AssertionError(f"{constant} is no JSON")


RUN = (
    run_started(num_macs=math.nan, class_names=("background", "liver\n\u2028{")),
    MessageLogged("[2026-01-01 10:00:00] Warning: careful", "Warning: careful"),
    MessageLogged("[2026-01-01 10:00:00] hello", "hello"),
    *(StepFinished(1, "training", number, 10, 4) for number in range(1, 11)),
    epoch_finished(
        1,
        metrics={"loss": [math.inf], "val dice": [0.5, 0.6], "epoch duration": [2.0]},
        score=0.5,
        best_score=0.5,
        best_epoch=1,
        num_validated=3,
        forecast=FORECAST,
    ),
    RunFinished(epoch=1, best_score=0.5, best_epoch=1),
    RunScored(scores={"dice": 0.4, "dice/liver": math.nan}, num_cases=3, file=Path("runs/validation.json")),
)


def test_every_line_is_one_object_with_its_event_level_and_time():
    told = _Told().receive(*RUN)
    names = told.names()
    assert names[:3] == ["start", "warning", "message"]
    assert names[-3:] == ["epoch", "trained", "scores"]
    assert 1 < names.count("progress") < 10
    for entry in told.content:
        assert {"event", "level", "timestamp"} <= entry.keys()
    assert told.content[0]["multiply_adds"] is None
    assert told.content[0]["class_names"] == ["background", "liver\n\u2028{"]
    assert (told.content[1]["level"], told.content[1]["message"]) == ("warning", "careful")
    assert told.content[-1]["scores"] == {"dice": 0.4, "dice/liver": None}
    assert told.content[-1]["file"] == "runs/validation.json"


def test_an_epoch_has_its_score_its_newest_metrics_and_the_forecast():
    (epoch,) = (entry for entry in _Told().receive(*RUN).content if entry["event"] == "epoch")
    assert (epoch["epoch"], epoch["num_epochs"], epoch["score"], epoch["best_score"], epoch["is_best"]) == (
        1,
        10,
        0.5,
        0.5,
        True,
    )
    assert epoch["metrics"] == {"loss": "inf", "val dice": 0.6, "epoch duration": 2.0}
    assert epoch["forecast"] == {
        "score": 0.7,
        "epoch": 7,
        "interval_80": [0.6, 0.8],
        "chance_of_better": pytest.approx(FORECAST.chance_above(0.5)),
    }
    assert epoch["run_left_s"] == 18.0


def test_progress_has_the_speed_and_the_time_that_is_left():
    last = [entry for entry in _Told().receive(*RUN).content if entry["event"] == "progress"][-1]
    assert last["samples_per_s"] == pytest.approx(10.0)
    assert last["phase_left_s"] == pytest.approx(0.4 * (10 - last["done"]))


def test_before_the_first_score_there_is_no_best_one():
    (epoch,) = _Told().receive(epoch_finished(1, best_score=-math.inf)).content
    assert (epoch["best_score"], epoch["best_epoch"], epoch["forecast"]) == (None, None, None)


def test_quiet_lines_are_warnings_and_results():
    assert _Told(is_quiet=True).receive(*RUN).names() == ["warning", "trained", "scores"]


def test_an_interruption_is_told():
    (entry,) = _Told(is_quiet=True).receive(RunInterrupted(KeyboardInterrupt("by the user"))).content
    assert (entry["event"], entry["type"], entry["message"]) == ("interrupted", "KeyboardInterrupt", "by the user")


def test_lines_of_several_threads_do_not_mix():
    told = _Told()
    threads = [threading.Thread(target=lambda: [told.lines.say("x" * 5000) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told.names() == ["message"] * 200


def test_a_reader_that_is_gone_ends_nothing(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    discarded = []
    monkeypatch.setattr("candy_monai.observers.json_lines.discard_standard_output", lambda: discarded.append(1))
    lines = JsonLines(Closed())
    lines.say("one")
    lines.say("two")
    assert discarded == [1]
