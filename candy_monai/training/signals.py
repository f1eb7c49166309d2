"""Handle Ctrl-C, SIGTERM and SIGUSR1 during a run: they request an orderly end; a second Ctrl-C ends it at once."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, FunctionType

from typing_extensions import override

from candy_monai.text import as_word


class Interrupted(KeyboardInterrupt, SystemExit):
    """Raised when a run was asked to end, has finished its step and is saved. Its text is the name of the signal.

    A script that catches ``KeyboardInterrupt`` continues. Otherwise the script ends without a traceback, with the exit
    status 130 as for Ctrl-C; a notebook keeps running.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.code = 130


def is_ctrl_c(error: BaseException) -> bool:
    """Return whether a user pressed Ctrl-C, as opposed to a signal of the system or an error."""
    return isinstance(error, KeyboardInterrupt) and not str(error).startswith(("SIGTERM", "SIGUSR1"))


def how_to_resume(trainer: type, folder: Path, *, is_planned: bool, bundle: str | None) -> str:
    """Return the command or code to resume an interrupted run.

    Args:
        trainer: The trainer's class.
        folder: The experiment folder.
        is_planned: Whether the command line can find the run's data again.
        bundle: The trainer's bundle; None for a user's own trainer.
    """
    if not is_planned:
        return f"To resume this run, call in the same script, instead of train():\n    trainer.resume({folder.name!r})"
    command = ["candy-monai", "resume", as_word(folder)]
    if bundle is None:
        files = (member.__code__.co_filename for member in vars(trainer).values() if isinstance(member, FunctionType))
        command += ["--trainer", f"{next(files, 'FILE')}:{trainer.__name__}"]
    return f"To resume this run: {shlex.join(command)}"


def _signals() -> list[signal.Signals]:
    """Return the signals that request an end: SIGUSR1 if it would end the program, or already requests an end."""
    chosen = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        handler = signal.getsignal(signal.SIGUSR1)
        if handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), StopRequest):
            chosen.append(signal.SIGUSR1)
    return chosen


def outlive_signals(_worker: int = 0) -> None:
    """Make a loader's worker survive the signals that SLURM sends to every process: the run needs it for its step.

    Called in the worker, as ``worker_init_fn``. A worker that still exists when its run ends is sent SIGTERM twice, by
    the loader and by Python, and the second ends it.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        return

    def once(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class StopRequest:
    """Records that a signal requested the end of the run.

    Only the main thread receives signals; in other threads they do not stop a run. SIGUSR1, with which SLURM can
    announce that the time is up, is left to an existing handler.
    """

    def __init__(self) -> None:
        self._received: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals; the previous handlers are restored afterwards."""
        self._received = None
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._receive) for number in _signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @property
    def is_pending(self) -> bool:
        """Whether the run should end at the next opportunity."""
        return self._received is not None

    def ask(self, reason: str) -> None:
        """Request the end of the run, as a signal would."""
        self._received = reason

    def obey(self) -> None:
        """End the run.

        Raises:
            Interrupted: Always.
        """
        raise Interrupted(self._received or "SIGTERM to another process of the run")

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.is_pending and number == signal.SIGINT:
            raise Interrupted("a second Ctrl-C; the last saved state is intact")
        self.ask(signal.Signals(number).name)


class PromptStop(StopRequest):
    """Ends a command at once while no run handles the request: while data are prepared, or a run is scored."""

    @override
    def _receive(self, number: int, _frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number).name)
