import io
import math

import pytest
from rich.console import Console

from candy_monai.experiment.events import MessageLogged, StepFinished
from candy_monai.forecasting.best_score import Forecast
from candy_monai.observers.console import ConsoleObserver, epoch_table, metrics_table
from tests.events import epoch_finished, run_started


def _shown(*events, terminal=False):
    text = io.StringIO()
    observer = ConsoleObserver(Console(file=text, width=100, force_terminal=terminal))
    for event in events:
        observer.receive(event)
    observer.close()
    return text.getvalue()


def _epoch(metrics):
    return epoch_finished(2, num_epochs=9, metrics=metrics, best_score=0.5, best_epoch=1)


def test_the_table_shows_the_last_value_the_span_over_all_epochs_and_the_change():
    shown = _shown(_epoch({"combined loss": [0.3156, 0.1821, 0.2431]}))
    row = next(line for line in shown.splitlines() if "combined loss" in line)
    assert row.replace("│", "").split() == ["combined", "loss", "0.2431", "[0.1821,", "0.3156]", "+0.0610"]


def test_the_first_epoch_has_no_change():
    row = next(line for line in _shown(_epoch({"loss": [0.5]})).splitlines() if "loss" in line)
    assert row.replace("│", "").split() == ["loss", "0.5000", "[0.5000,", "0.5000]"]


def test_a_metric_that_was_never_measured_has_no_row():
    assert metrics_table({"dice 3": [math.nan], "loss": [1.0]}).row_count == 1


def test_very_small_and_very_large_numbers_keep_their_digits():
    shown = _shown(_epoch({"learning rate": [1.25e-05], "loss": [1.5e7]}))
    assert "1.250e-05" in shown
    assert "1.500e+07" in shown


def test_names_and_numbers_are_not_cut_on_a_narrow_screen():
    text = io.StringIO()
    metrics = {"learning rate": [2e-2, 9.876e-9], "hausdorff_distance_95": [0.5, 1.234e7]}
    Console(file=text, width=40).print(metrics_table(metrics))
    columns = zip(*(line[1:-1].split("│") for line in text.getvalue().splitlines() if line[0] == "│"), strict=True)
    names, last, spans, changes = ("".join("".join(cells).split()) for cells in columns)
    assert names == "learningratehausdorff_distance_95"
    assert last == "9.876e-091.234e+07"
    assert spans == "[9.876e-09,0.0200][0.5000,1.234e+07]"
    assert changes == "-0.0200+1.234e+07"


@pytest.mark.parametrize(
    ("score", "reason", "said"),
    [
        (
            0.6,
            None,
            " · chance of a better one 65 %: 0.6000 expected at epoch 7 in 10 s · the run ends at epoch 9 in 14 s",
        ),
        (0.5, None, " · chance of a better one 65 % · the run ends at epoch 9 in 14 s"),
        (0.5, "the curve is flat", ""),
    ],
)
def test_the_title_of_the_table_says_what_is_forecast(score, reason, said):
    expected = Forecast(
        epoch=7, score=score, interval=None, reason=reason, quantiles=() if reason else (0.5,) * 7 + (0.7,) * 12
    )
    metrics = {"epoch duration": [2.0, 2.0]}
    event = epoch_finished(2, num_epochs=9, metrics=metrics, best_score=0.5, best_epoch=1, forecast=expected)
    assert epoch_table(event).title == f"Epoch 2 of 9 · best val score 0.5000 at epoch 1{said}"


def test_a_run_that_ends_by_the_clock_has_about_so_many_epochs_until_its_last():
    facts = {"num_epochs": 9, "has_time_limit": True}
    assert epoch_table(epoch_finished(3, **facts)).title == "Epoch 3 of about 9"
    assert epoch_table(epoch_finished(9, **facts)).title == "Epoch 9 of 9"


@pytest.mark.parametrize(
    ("count", "error", "said"), [(1, math.nan, "0.4000 on 1 case"), (8, 0.03, "0.4000 ± 0.0709 on 8 cases")]
)
def test_the_title_says_on_how_many_cases_a_score_rests_and_how_sure_it_is(count, error, said):
    event = epoch_finished(2, num_epochs=9, score=0.4, num_validated=count, standard_error=error)
    assert epoch_table(event).title == f"Epoch 2 of 9 · this one {said}"


def test_a_message_with_brackets_is_shown_verbatim():
    assert "[bold] 100% [/nonsense]" in _shown(MessageLogged("[bold] 100% [/nonsense]"))


def test_metric_names_with_brackets_are_shown_verbatim():
    assert "dice [left]" in _shown(_epoch({"dice [left]": [0.5]}))


def test_there_is_no_progress_bar_in_a_file():
    assert _shown(StepFinished(1, "training", 1, 10)) == ""


def test_the_progress_bar_moves_on_a_terminal():
    shown = _shown(StepFinished(1, "training", 3, 10), terminal=True)
    assert "Epoch 1 training" in shown
    assert "3/10" in shown


def test_the_progress_bar_shows_the_speed_and_the_end_of_the_run_on_one_line_of_a_narrow_screen():
    now, shown = [0.0], io.StringIO()
    observer = ConsoleObserver(Console(file=io.StringIO(), force_terminal=True), clock=lambda: now[0])
    observer.receive(_epoch({"epoch duration": [20.0, 20.0]}))
    for step in range(1, 4):
        now[0] += 0.5
        observer.receive(StepFinished(3, "training", step, 10, 4))
    assert observer._bar is not None
    Console(file=shown, width=100).print(observer._bar.get_renderable())
    observer.close()
    (line,) = shown.getvalue().splitlines()
    assert "Epoch 3 of 9 training" in line
    assert "3/10 8 samples/s, 4 s left the run ends in 2 min 18 s" in line


def test_the_start_says_what_is_trained():
    started = run_started(num_params=1_500_000, num_macs=math.nan)
    assert _shown(started).strip() == "UNet: 1.50 M parameters"


def test_of_many_classes_the_table_lists_the_worst_and_says_so():
    names = [f"organ {index}" for index in range(117)]
    table = metrics_table({f"val dice {name}": [index / 117] for index, name in enumerate(names)}, class_names=names)
    assert table.row_count == 5
    assert "lowest of 117 classes of val dice; all are in metrics.csv" in str(table.caption)
