"""Ctrl-C, SIGTERM and SIGUSR1 during a run: they ask for an orderly end, and a second Ctrl-C does not wait for it."""

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


class Interrupted(KeyboardInterrupt, SystemExit):
    """A run was asked to end, has finished its step and is saved. Its text is the signal's name.

    A script that catches ``KeyboardInterrupt`` goes on. One that does not ends without a traceback, with the status 130
    that shells know for Ctrl-C; a notebook stays as it is.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.code = 130


def is_ctrl_c(error: BaseException) -> bool:
    """Return whether a user at the keyboard ended something, rather than a signal of the system or an error."""
    return isinstance(error, KeyboardInterrupt) and not str(error).startswith(("SIGTERM", "SIGUSR1"))


def how_to_resume(trainer: type, folder: Path, *, is_planned: bool, bundle: str | None) -> str:
    """Return what to type to go on with a run that was interrupted.

    Args:
        trainer: The trainer's class.
        folder: The experiment folder.
        is_planned: Whether the command line can find the run's data again.
        bundle: The bundle that the trainer is of; None for one of the user's own.
    """
    if not is_planned:
        return (
            f"To go on with this run, call in the same script, instead of train():\n    trainer.resume({folder.name!r})"
        )
    command = ["candy-monai", "resume", str(folder)]
    if bundle is None:
        files = (member.__code__.co_filename for member in vars(trainer).values() if isinstance(member, FunctionType))
        command += ["--trainer", f"{next(files, 'FILE')}:{trainer.__name__}"]
    return f"To go on with this run: {shlex.join(command)}"


def _signals() -> list[signal.Signals]:
    """Return the signals that ask for an end: SIGUSR1 where it would end the program, or asks for an end already."""
    chosen = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        handler = signal.getsignal(signal.SIGUSR1)
        if handler is signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), StopRequest):
            chosen.append(signal.SIGUSR1)
    return chosen


def outlive_signals(_worker: int = 0) -> None:
    """Return with a loader's worker outliving what SLURM sends to every process: the run needs it to finish its step.

    Called in the worker, as ``worker_init_fn``. A worker that is still there when its run ends is sent SIGTERM twice,
    by the loader and by Python, and the second ends it.
    """
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        return

    def once(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, once)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


class StopRequest:
    """Remembers that a signal asked the run to end.

    Signals are received by the main thread only; in any other, a run is not stopped by them. SIGUSR1, by which SLURM
    can announce that the time is up, is left to whoever received it before.
    """

    def __init__(self) -> None:
        self._received: str | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receive signals; whoever received them before does so again afterwards."""
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
        """Whether the run should end at the next good moment."""
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
            raise Interrupted("a second Ctrl-C; the last saved state is whole")
        self.ask(signal.Signals(number).name)


class PromptStop(StopRequest):
    """Ends a command at once where no run remembers the request: while data are prepared, or a run is scored."""

    @override
    def _receive(self, number: int, _frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number).name)
