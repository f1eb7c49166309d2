"""A run in a notebook: one display that is replaced in place, so that it does not grow with the epochs.

A notebook keeps all output of a cell: a table for each epoch and a widget for each bar would fill pages, also in the
saved file. Everything that is not shown is in ``logs.txt``.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, MessageLogged, RunStarted, StepFinished
from candy_monai.observers.base import Observer
from candy_monai.observers.console import epoch_table, size_of_model
from candy_monai.observers.pace import Pace

NUM_FIRST_MESSAGES = 5
NUM_LAST_MESSAGES = 6
REFRESH_S = 0.5
_WIDTH = 100
_STYLE = "overflow-x:auto;line-height:normal;font-family:Menlo,Consolas,monospace;font-size:small;margin:0 0 .5em"

Show = Callable[[dict[str, str]], None]
"""Shows text by its MIME type, replacing the previous output."""


class NotebookObserver(Observer):
    """Shows the first and the latest messages of a run, the table of the latest epoch, and the progress.

    ``show`` displays it, by default below the running cell; during steps at most twice per second.
    """

    def __init__(self, show: Show | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._show = _below_the_cell() if show is None else show
        self._clock = clock
        self._pace = Pace(clock=clock)
        self._messages: list[str] = []
        self._table: Table | None = None
        self._step: StepFinished | None = None
        self._shown_at = 0.0
        self._class_names: tuple[str, ...] = ()

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._class_names = event.class_names
        self._messages.append(size_of_model(event))
        self._refresh()

    @override
    def on_step_finished(self, event: StepFinished) -> None:
        self._step = event
        self._pace.step(event)
        self._refresh_if_due()

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        self._pace.epoch(event)
        self._table, self._step = epoch_table(event, class_names=self._class_names), None
        self._refresh()

    @override
    def on_message_logged(self, event: MessageLogged) -> None:
        self._messages.append(event.line)
        if self._step is None:
            self._refresh()
        else:  # the next steps will show it
            self._refresh_if_due()

    @override
    def close(self) -> None:
        self._step = None
        self._refresh()

    def _refresh_if_due(self) -> None:
        if self._clock() - self._shown_at >= REFRESH_S:
            self._refresh()

    def _refresh(self) -> None:
        self._shown_at = self._clock()
        bar = None if self._step is None else _bar(self._step, self._pace)
        texts, pages = zip(
            _rendered(self._chosen_messages(), "pre-wrap"),  # messages may be broken into lines, tables may not
            _rendered(filter(None, (self._table, bar)), "pre"),
            strict=True,
        )
        self._show({"text/plain": "".join(texts), "text/html": "".join(pages)})

    def _chosen_messages(self) -> Iterator[Text]:
        yield from map(Text, self._messages[:NUM_FIRST_MESSAGES])
        rest = self._messages[NUM_FIRST_MESSAGES:]
        if len(rest) > NUM_LAST_MESSAGES:
            yield Text(f"... {len(rest) - NUM_LAST_MESSAGES} more in logs.txt", style="dim")
        yield from map(Text, rest[-NUM_LAST_MESSAGES:])


def _rendered(parts: Iterable[RenderableType], white_space: str) -> tuple[str, str]:
    """Return text as it is and as HTML."""
    console = Console(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False)
    console.print(Group(*parts), soft_wrap=True)
    code = f'<pre style="white-space:{white_space};{_STYLE}">{{code}}</pre>'
    return console.export_text(clear=False), console.export_html(inline_styles=True, code_format=code)


def _bar(event: StepFinished, pace: Pace) -> Group:
    bar = Table.grid(padding=(0, 1))
    total = "?" if event.total is None else str(event.total)
    bar.add_row(
        pace.title(),
        ProgressBar(total=event.total, completed=event.done, width=20),
        f"{event.done}/{total}",
        pace.speed(),
    )
    return Group(bar, *filter(None, [pace.outlook()]))


def _below_the_cell() -> Show:
    from IPython.display import DisplayHandle

    handle, is_new = DisplayHandle(), True

    def show(text: dict[str, str]) -> None:
        nonlocal is_new
        (handle.display if is_new else handle.update)(text, raw=True)
        is_new = False

    return show
