"""The progress of prediction on the console: bars for the folder and for the windows of a case, failures, warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typing_extensions import override

from candy_monai.cli.feedback import Feedback
from candy_monai.inference.buffers import MemoryEstimate, in_units
from candy_monai.inference.prediction import PredictionListener
from candy_monai.inference.quality import CaseQuality

MANY_WINDOWS = 16
"""Minimum number of windows for a separate progress bar of a case."""


class PredictionProgress(PredictionListener):
    """Shows bars on a terminal, and a line for each case elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(
            *columns,
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            refresh_per_second=4,
            disable=not self._console.is_terminal,
        )
        self._folder: TaskID | None = None
        self._case: tuple[str, TaskID] | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @override
    def on_started(self, num_cases: int, largest: str | None, needed: MemoryEstimate | None) -> None:
        if needed is not None:
            which = "the case" if num_cases == 1 else f"the largest of {num_cases} cases, {largest},"
            total, least = in_units(needed.total), in_units(needed.without_buffer)
            # What --memory could save, where it could save anything.
            on_disk = (
                f", or {least} with its scores in temporary files (--memory)"
                if needed.buffer and least != total
                else ""
            )
            self._print(f"{which} takes about {total} of memory{on_disk}")
        self._folder = self._bars.add_task("cases", total=num_cases)

    @override
    def on_kept(self, num_cases: int, total: int) -> None:
        self._print(
            f"{num_cases} of {total} cases are skipped: already predicted by the same model from the same images"
        )
        if self._folder is not None:
            self._bars.update(self._folder, completed=num_cases)

    @override
    def on_windows(self, case_id: str, done: int, total: int) -> None:
        if total < MANY_WINDOWS:
            return
        if self._case is None or self._case[0] != case_id:
            self._remove_bar()
            self._case = case_id, self._bars.add_task(case_id, total=total)
        self._bars.update(self._case[1], completed=done)

    @override
    def on_case(self, done: int, total: int, case_id: str, error: Exception | None) -> None:
        if self._case is not None and self._case[0] == case_id:
            self._remove_bar()
        if self._folder is not None:
            self._bars.update(self._folder, completed=done)
        if error is not None:
            self._print(f"[{done}/{total}] {case_id} failed")  # why is said at the end, where it is not overlooked
        elif not self._console.is_terminal:
            self._print(f"[{done}/{total}] {case_id}")

    @override
    def on_quality(self, case_id: str, quality: CaseQuality) -> None:
        for warning in quality.warnings:
            self._print(f"Warning: {case_id}: {warning}")

    @override
    def on_left_over(self, file: Path, reason: str) -> None:
        self._print(f"{file} is from an earlier prediction: {reason}")

    def _remove_bar(self) -> None:
        if self._case is not None:
            self._bars.remove_task(self._case[1])
            self._case = None

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


class PredictionEvents(PredictionListener):
    """Reports predicted cases as events, and as text only files that were left over."""

    def __init__(self, feedback: Feedback) -> None:
        self._feedback = feedback

    @override
    def on_started(self, num_cases: int, largest: str | None, needed: MemoryEstimate | None) -> None:
        self._tell("start", num_cases=num_cases, largest=largest, bytes=None if needed is None else needed.total)

    @override
    def on_kept(self, num_cases: int, total: int) -> None:
        self._tell("kept", num_cases=num_cases, total=total)

    @override
    def on_case(self, done: int, total: int, case_id: str, error: Exception | None) -> None:
        self._tell("case", case=case_id, done=done, total=total, error=None if error is None else str(error))

    @override
    def on_quality(self, case_id: str, quality: CaseQuality) -> None:
        self._tell("quality", case=case_id, **quality.to_dict())
        for warning in quality.warnings:
            self._feedback.say(f"Warning: {case_id}: {warning}")

    @override
    def on_left_over(self, file: Path, reason: str) -> None:
        self._feedback.say(f"Warning: {file} is from an earlier prediction: {reason}")

    def _tell(self, event: str, **facts: Any) -> None:
        if not self._feedback.is_quiet:
            self._feedback.tell(event, **facts)


@contextmanager
def prediction_progress(feedback: Feedback) -> Iterator[PredictionListener]:
    """Yield the listener of a prediction, in the requested format."""
    if not feedback.shows_text:
        yield PredictionEvents(feedback)
        return
    with PredictionProgress() as progress:
        yield progress
