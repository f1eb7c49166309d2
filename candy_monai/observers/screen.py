"""What a run is shown by: below a notebook's cell, on the terminal, or by what a program has chosen instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from typing_extensions import override

from candy_monai.errors import WARNING
from candy_monai.experiment.events import MessageLogged
from candy_monai.observers.base import Observer
from candy_monai.observers.console import ConsoleObserver
from candy_monai.observers.notebook import NotebookObserver

_chosen: ContextVar[Observer | None] = ContextVar("chosen screen", default=None)


class WarningsObserver(Observer):
    """Passes on the warnings of a run, and nothing else."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    @override
    def on_message_logged(self, event: MessageLogged) -> None:
        if event.text.startswith(WARNING):
            self._warn(event.text.removeprefix(WARNING))


def screen_observer() -> Observer:
    """Return what shows a run on this screen: below the cell in a notebook, else on standard output."""
    return _chosen.get() or (NotebookObserver() if Console().is_jupyter else ConsoleObserver())


@contextmanager
def shown_by(observer: Observer) -> Iterator[None]:
    """Yield while the runs that begin are shown by this observer."""
    token = _chosen.set(observer)
    try:
        yield
    finally:
        _chosen.reset(token)
