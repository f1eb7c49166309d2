"""A run on the console: messages, a progress bar, and a table of metrics after each epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table
from rich.text import Text
from typing_extensions import override

from candy_monai.columns import worth_listing
from candy_monai.experiment.events import (
    EpochFinished,
    Event,
    MessageLogged,
    RunFinished,
    RunInterrupted,
    RunStarted,
    StepFinished,
)
from candy_monai.experiment.score_prediction import chance_as_text, duration_as_text, seconds_until
from candy_monai.files import discard_standard_output
from candy_monai.forecasting.best_score import Forecast
from candy_monai.metrics.interval import half_width
from candy_monai.observers.base import Observer
from candy_monai.observers.pace import Pace


class Screen(Console):
    """Standard output, which its reader may close, as in ``python train.py | head``."""

    @override
    def on_broken_pipe(self) -> None:
        """Stop printing, where rich would end the program."""
        self.quiet = True
        discard_standard_output()


class ConsoleObserver(Observer):
    """Prints a run on the terminal. The progress bar is only shown on an interactive terminal."""

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Screen()
        self._pace = Pace(clock=clock)
        self._bar: Progress | None = None
        self._shown = (0, "")
        self._class_names: tuple[str, ...] = ()

    @override
    def receive(self, event: Event) -> None:
        try:
            super().receive(event)
        except BrokenPipeError:  # of a version of rich that leaves it to its caller
            self._console.quiet = True
            discard_standard_output()

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._class_names = event.class_names
        self._print(size_of_model(event))

    @override
    def on_step_finished(self, event: StepFinished) -> None:
        if not self._console.is_terminal:
            return
        self._pace.step(event)
        if self._bar is None or self._shown != (event.epoch, event.phase):
            self._restart_bar(event)
        assert self._bar is not None
        texts = {"speed": self._pace.speed(), "outlook": self._pace.outlook()}
        self._bar.update(self._bar.task_ids[0], completed=event.done, **texts)  # type: ignore[arg-type]

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        self._stop_bar()
        self._pace.epoch(event)
        self._console.print(epoch_table(event, class_names=self._class_names))

    @override
    def on_message_logged(self, event: MessageLogged) -> None:
        self._print(event.line)

    @override
    def on_run_interrupted(self, event: RunInterrupted) -> None:
        self._stop_bar()

    @override
    def on_run_finished(self, event: RunFinished) -> None:
        self._stop_bar()

    @override
    def close(self) -> None:
        self._stop_bar()

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)  # Text: brackets in a message are no markup

    def _restart_bar(self, event: StepFinished) -> None:
        self._stop_bar()
        in_one_line = Column(no_wrap=True, overflow="ellipsis")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}", markup=False, table_column=in_one_line),
            TextColumn("{task.fields[outlook]}", markup=False, table_column=in_one_line.copy()),
        )
        self._bar = Progress(*columns, console=self._console, transient=True, refresh_per_second=4)
        self._bar.add_task(self._pace.title(), total=event.total, speed="", outlook="")
        self._bar.start()
        self._shown = (event.epoch, event.phase)

    def _stop_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.stop()


def size_of_model(event: RunStarted) -> str:
    """Return one line about the network: its name, its parameters and, if they could be counted, its operations."""
    size = f"{event.num_params / 1e6:.2f} M" if event.num_params >= 1e5 else f"{event.num_params:,}"
    work = "" if math.isnan(event.num_macs) else f", {event.num_macs / 1e9:.2f} G multiply-adds for one example"
    return f"{event.model}: {size} parameters{work}"


def epoch_table(event: EpochFinished, *, class_names: Sequence[str] = ()) -> Table:
    """Return a table of the metrics of an epoch, titled with its number, the best score so far and the forecast."""
    goes_on = event.epoch < event.num_epochs
    title = f"Epoch {event.epoch} of {'about ' if event.has_time_limit and goes_on else ''}{event.num_epochs}"
    if event.best_epoch:
        title += f" · best val score {event.best_score:.4f} at epoch {event.best_epoch}"
    if event.num_validated is not None and event.score is not None:
        half = half_width(event.standard_error, event.num_validated)
        error = f" ± {half:.4f}" if math.isfinite(half) else ""
        title += f" · this one {event.score:.4f}{error} on {event.num_validated} case{'s'[: event.num_validated != 1]}"
    if event.forecast is not None and event.forecast.reason is None and goes_on:
        title += f" · {_expected(event, event.forecast)}"
    return metrics_table(event.metrics, title=title, class_names=class_names)


def _expected(event: EpochFinished, forecast: Forecast) -> str:
    """Return the probability and, if expected, the epoch of a better score, and the end of the run."""

    def until(epoch: int) -> str:
        seconds = seconds_until(epoch, event.epoch, event.metrics)
        return f" in {duration_as_text(seconds)}" if seconds else ""

    chance = f"chance of a better one {chance_as_text(forecast.chance_above(event.best_score))}"
    if forecast.score > event.best_score:
        chance += f": {forecast.score:.4f} expected at epoch {forecast.epoch}{until(forecast.epoch)}"
    return f"{chance} · the run ends at epoch {event.num_epochs}{until(event.num_epochs)}"


def metrics_table(metrics: Mapping[str, Sequence[float]], *, title: str = "", class_names: Sequence[str] = ()) -> Table:
    """Return a table of every metric's last value, its span over all epochs, and its change since the last epoch.

    NaN stands for missing values. Of many classes, only what `columns.worth_listing` says is listed.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("Metric", overflow="fold")  # cut on a narrow screen, a number would lose its exponent
    for heading in ("Mean Value", "Span", "Diff"):
        table.add_column(heading, justify="right", overflow="fold")
    listed, left_out = worth_listing(metrics, class_names)
    table.caption = f"{left_out}; all are in metrics.csv" if left_out else None
    for name in listed:
        values = metrics[name]
        known = [value for value in values if not math.isnan(value)]
        if not known:
            continue
        span = f"[{_number(min(known))}, {_number(max(known))}]"
        change = values[-1] - values[-2] if len(values) > 1 else math.nan
        diff = "" if math.isnan(change) else f"{'-' if change < 0 else '+'}{_number(abs(change))}"
        table.add_row(*map(Text, (name, _number(values[-1]), span, diff)))
    return table


def _number(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"
