"""Write the report page of a run after each epoch and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.experiment.events import EpochFinished, RunFinished, RunInterrupted, RunStarted, Validated
from candy_monai.observers.base import Observer
from candy_monai.report.document import REPORT, RunFacts, document_of_folder, document_of_run
from candy_monai.report.page import write_page
from candy_monai.report.progress import RunProgress, best_of, progress_of_event, progress_of_folder, with_kept
from candy_monai.report.script import as_script
from candy_monai.report.viewing import NOTHING, encoded_case, kept_of, read_kept

MOST_SHARE = 0.02
"""Maximum share of a run's time for encoding images; those of the last validation are always encoded."""


class ReportObserver(Observer):
    """Writes ``report.html`` into the run's folder.

    The numbers of each epoch are written at once. The images of the viewer take longer to encode; they are updated as
    often as takes a fiftieth of the time.
    """

    name = "writing the report"

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._facts: RunFacts | None = None
        self._progress = RunProgress(state="running")
        self._kept, self._views = NOTHING, "[]"
        self._unpacked: tuple[int, Validated] | None = None
        self._not_before = clock()

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._facts = RunFacts.of(event.folder)
        self._kept, views = read_kept(event.folder / REPORT)  # of a run that goes on
        self._views = as_script(views)
        progress = progress_of_folder(event.folder, self._facts.description)
        self._progress = replace(with_kept(progress, self._kept), state="running", reason="")
        self._write()

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        progress = progress_of_event(event)
        if event.forecast is None:  # an epoch that was not validated
            progress = replace(progress, forecast=self._progress.forecast)
        if progress.num_validated is None and progress.best_epoch == self._progress.best_epoch:
            before = self._progress
            progress = replace(progress, num_validated=before.num_validated, standard_error=before.standard_error)
        self._progress = progress
        if event.validated is not None:
            self._unpacked = event.epoch, event.validated
            self._kept = kept_of(event.validated, event.epoch)
        self._kept = {**self._kept, "best": best_of(progress)}
        if self._clock() >= self._not_before:
            self._pack()
        self._write()

    @override
    def on_run_finished(self, event: RunFinished) -> None:
        self._pack()
        self._progress = replace(self._progress, state="finished", epoch=event.epoch, num_epochs=event.epoch)
        self._write()

    @override
    def on_run_interrupted(self, event: RunInterrupted) -> None:
        self._pack()
        error = event.error
        is_asked = isinstance(error, KeyboardInterrupt | SystemExit)
        kind = "" if is_asked else type(error).__name__
        reason = ": ".join(filter(None, (kind, str(error))))
        self._progress = replace(self._progress, state="interrupted" if is_asked else "failed", reason=reason)
        self._write()

    def _pack(self) -> None:
        """Encode the images of the last validation."""
        if self._unpacked is None or self._facts is None:
            return
        (epoch, validated), self._unpacked = self._unpacked, None
        if not validated.views:  # of a trainer of the user's own, whose outputs may be anything
            return
        started = self._clock()
        names = self._facts.class_names
        self._views = as_script([encoded_case(case, names, epoch=epoch) for case in validated.views])
        ended = self._clock()
        self._not_before = ended + (ended - started) / MOST_SHARE

    def _write(self) -> None:
        if self._facts is not None:
            document = document_of_run(self._facts, self._progress, self._kept, self._views, now=datetime.now())
            write_page(document, self._facts.folder / REPORT)


def write_report(folder: PathLike, *, to: PathLike | None = None) -> Path:
    """Write the page of a run from its folder, and return its path.

    Args:
        folder: The experiment folder, also of an earlier version.
        to: The file; None for ``report.html`` in the folder.

    Raises:
        ExperimentError: If the folder is no experiment, or ``experiment.json`` is damaged.
    """
    folder = Path(folder)
    document = document_of_folder(folder, now=datetime.now())
    return write_page(document, folder / REPORT if to is None else Path(to))


def write_report_safely(folder: Path, log: Callable[[str], None]) -> None:
    """Write the page of a run as `write_report` does; an error is logged and does not end the run."""
    try:
        write_report(folder)
    except Exception as error:
        log(f"{ReportObserver.name} failed: {type(error).__name__}: {error}")
