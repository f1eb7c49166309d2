import math
from datetime import datetime

import pytest
from filelock import FileLock

from candy_monai.columns import EPOCH_DURATION, SCORE
from candy_monai.experiment.description import read_description
from candy_monai.experiment.summary import summary_of
from candy_monai.forecasting.best_score import Forecast
from candy_monai.report.progress import (
    RunProgress,
    forecast_of,
    progress_of_event,
    progress_of_folder,
    status_of,
    tiles_of,
)
from tests.events import epoch_finished
from tests.pages import made_up_folder
from tests.toys import small_trainer

NOW = datetime(2026, 1, 1, 12, 0)
FORECAST = Forecast(
    epoch=8, score=0.9, interval=(0.8, 0.95), reason=None, quantiles=tuple(0.8 + 0.01 * i for i in range(19))
)


def of_folder(folder):
    return progress_of_folder(folder, read_description(folder))


def tiles(progress, final=None):
    return {tile["label"]: (tile["value"], tile["detail"]) for tile in tiles_of(progress, final, now=NOW)}


def test_a_finished_run_has_as_many_epochs_as_it_had(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(3, save_preview=False, early_stop_tolerance=None)
    found = of_folder(trainer.experiment_folder())
    assert (found.state, found.epoch, found.num_epochs) == ("finished", 3, 3)
    assert len(found.metrics[SCORE]) == 3
    assert found.best_score == max(found.metrics[SCORE])


def test_a_run_of_an_earlier_version_is_read_from_its_metrics(tmp_path):
    folder = made_up_folder(tmp_path / "run")
    (folder / "metrics.csv").write_text("epoch,val score,epoch duration\n1,0.25,2.0\n2,0.75,\n3,,4.0\n")
    found = of_folder(folder)
    assert (found.state, found.epoch, found.num_epochs) == ("interrupted", 3, 10)
    assert (found.best_score, found.best_epoch) == (0.75, 2)
    assert "without a message" in found.reason


@pytest.mark.parametrize(
    ("line", "state", "reason"),
    [
        ("Interrupted in epoch 3: SIGTERM", "interrupted", "SIGTERM"),
        ("Interrupted in epoch 3: KeyboardInterrupt", "interrupted", "KeyboardInterrupt"),
        ("Interrupted in epoch 3: RuntimeError: out of memory", "failed", "RuntimeError: out of memory"),
    ],
)
def test_how_a_run_ended_is_read_from_its_log(tmp_path, line, state, reason):
    folder = made_up_folder(tmp_path / "run")
    with (folder / "logs.txt").open("a") as log:
        log.write(f"[2026-01-01 10:00:03] {line}\n[2026-01-01 10:00:03] To resume this run: ...\n")
    found = of_folder(folder)
    assert (found.state, found.reason) == (state, reason)


def test_a_run_that_goes_on_holds_its_folder(tmp_path):
    folder = made_up_folder(tmp_path / "run")
    with FileLock(folder / ".lock"):
        assert of_folder(folder).state == "running"
    assert of_folder(folder).state == "interrupted"


def test_a_run_that_was_taken_up_after_a_failure_has_not_failed(tmp_path):
    folder = made_up_folder(tmp_path / "run")
    with (folder / "logs.txt").open("a") as log:
        log.write("[2026-01-01 10:00:03] Interrupted in epoch 3: RuntimeError: x\n")
        log.write("[2026-01-01 11:00:00] Experiment run in there\n")
    assert of_folder(folder).state == "interrupted"


def test_the_first_words_of_a_run_that_goes_on_are_score_epochs_time_and_forecast():
    event = epoch_finished(
        4,
        num_epochs=10,
        metrics={SCORE: [0.5, 0.6, 0.7, 0.8], EPOCH_DURATION: [60.0] * 4},
        score=0.8,
        best_score=0.8,
        best_epoch=4,
        forecast=FORECAST,
        num_validated=9,
        standard_error=0.01,
    )
    shown = tiles(progress_of_event(event))
    assert shown["Best score"] == ("0.8000", "at epoch 4, mean of 9 cases (±\u00a00.0231)")
    assert shown["Epochs"][0] == "4 of 10"
    assert shown["Time left"] == ("6 min", "ends about Thu 12:06, 4 min so far")
    assert shown["Forecast"][0] == "0.9000"
    assert forecast_of(progress_of_event(event)) == {
        "from": 4, "to": 10, "best": 0.8, "score": 0.9, "low": 0.8, "high": 0.95, "epoch": 8,
    }  # fmt: skip


def test_a_finished_run_has_no_time_left_and_no_forecast():
    progress = RunProgress(
        state="finished", epoch=4, num_epochs=4, metrics={EPOCH_DURATION: [60.0, math.nan]}, forecast=FORECAST
    )
    final = {
        "foreground_mean": {"Dice": 0.875},
        "num_cases": 5,
        "num_validation_cases": 9,
        "dice_interval_95": [0.8, 0.9],
        "metric_per_case": [{"case": "a", "metrics": {}}],
    }
    shown = tiles(progress, summary_of(final, source="s"))
    detail = "Dice of the best weights on 5 of 9 cases; 95 % interval 0.8000 to 0.9000"
    assert shown["Final score"] == ("0.8750", detail)
    assert shown["Epochs"][0] == "4 of 4"
    assert shown["Time"][0] == "1 min"
    assert not {"Time left", "Forecast"} & set(shown)
    assert forecast_of(progress) is None


def test_a_run_that_time_ends_says_about_how_many_epochs_it_will_have():
    event = epoch_finished(2, num_epochs=7, has_time_limit=True, metrics={EPOCH_DURATION: [1.0, 1.0]})
    assert tiles(progress_of_event(event))["Epochs"][0] == "2 of about 7"


def test_a_forecast_that_abstains_says_why():
    none = Forecast(epoch=0, score=math.nan, interval=None, reason="the curve is flat")
    event = epoch_finished(2, num_epochs=7, forecast=none)
    assert tiles(progress_of_event(event))["Forecast"] == ("none", "the curve is flat")


def test_the_state_is_a_sentence():
    assert status_of(RunProgress(state="failed", reason="x"))["words"].startswith("has failed")


def test_without_a_state_a_run_is_not_said_to_go_on_and_one_whose_log_ends_well_is_finished(tmp_path):
    folder = made_up_folder(tmp_path / "run")
    (folder / "metrics.csv").write_text("epoch,val score,epoch duration\n1,0.25,2.0\n2,0.75,3.0\n")
    assert status_of(of_folder(folder))["words"] == "was interrupted, and cannot be continued"
    with (folder / "logs.txt").open("a") as log:
        log.write("[2026-01-01 10:00:02] Best validation score 0.7500 at epoch 2\n")
    assert of_folder(folder).state == "finished"
    with (folder / "logs.txt").open("a") as log:
        log.write("[2026-01-01 11:00:00] Experiment run in somewhere\n")
    assert of_folder(folder).state == "interrupted"


@pytest.mark.parametrize(
    "content", [None, 'epoch,"', "epoch,val score\n1,0.5,7,8\n2,x\n", "epoch,val score\n1,0,5\n", "\0" * 200_000]
)
def test_epochs_that_cannot_be_read_are_not_said_to_be_none(tmp_path, content):
    folder = made_up_folder(tmp_path / "run")
    if content is not None:
        (folder / "metrics.csv").write_text(content)
    found = tiles(of_folder(folder))
    assert found["Epochs"] == ("unknown", "neither state.pt nor metrics.csv can be read")


def test_a_run_without_foreseeable_end_has_no_day_of_its_end():
    progress = RunProgress(state="running", epoch=1, num_epochs=10**12, metrics={EPOCH_DURATION: [20.0]})
    assert tiles(progress)["Time left"][1] == "20 s so far"


def test_a_page_of_a_run_that_goes_on_says_when_it_is_out_of_date(tmp_path):
    short, long = ([2.0, 1.0], [100.0, 1000.0, math.nan])
    for durations, seconds in ((short, 600.0), (long, 3000.0)):
        status = status_of(RunProgress(state="running", metrics={EPOCH_DURATION: durations}))
        assert status["stale_after_s"] == seconds
    assert "stale_after_s" not in status_of(RunProgress(state="running"))  # the first epoch may take any time
    assert "stale_after_s" not in status_of(RunProgress(state="finished", metrics={EPOCH_DURATION: short}))
