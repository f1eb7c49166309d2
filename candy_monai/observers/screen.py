"""Choose the observer that displays a run: in a notebook, on the terminal, or one chosen by a program."""

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
    """Passes on only the warnings of a run."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn

    @override
    def on_message_logged(self, event: MessageLogged) -> None:
        if event.text.startswith(WARNING):
            self._warn(event.text.removeprefix(WARNING))


def screen_observer() -> Observer:
    """Return the observer that displays a run: below the cell in a notebook, otherwise on standard output."""
    return _chosen.get() or (NotebookObserver() if Console().is_jupyter else ConsoleObserver())


@contextmanager
def shown_by(observer: Observer) -> Iterator[None]:
    """Yield while this observer displays the runs that are started."""
    token = _chosen.set(observer)
    try:
        yield
    finally:
        _chosen.reset(token)
