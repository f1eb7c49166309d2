"""Draw the pictures in a run's folder at intervals: the curves of its metrics, and the preview of a case."""

from __future__ import annotations

import hashlib
import re
import time
import unicodedata
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from candy_monai.columns import by_class
from candy_monai.experiment.events import EpochFinished, Preview, RunFinished, RunInterrupted, RunStarted
from candy_monai.observers.base import Observer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERVIEW = "progress.png"
MAX_SHARE = 0.02
_MOST_BYTES = 100
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\.|$)", re.IGNORECASE)


class ThrottledObserver(Observer):
    """Calls ``draw`` at most once in ``interval_s``, and for the last epoch in any case.

    Slow drawing is done less often: it takes at most one fiftieth of the time, since on a small machine it slows down
    the training.
    """

    def __init__(self, *, interval_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._not_before = clock() + interval_s
        self._waiting: EpochFinished | None = None

    def draw(self, event: EpochFinished) -> None:
        """Draw the state after this epoch."""
        raise NotImplementedError

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        self._waiting = event
        if self._clock() >= self._not_before:
            self._draw_waiting()

    @override
    def on_run_finished(self, event: RunFinished) -> None:
        self._draw_waiting()

    @override
    def on_run_interrupted(self, event: RunInterrupted) -> None:
        self._draw_waiting()

    def _draw_waiting(self) -> None:
        if self._waiting is not None:
            event, self._waiting = self._waiting, None
            started = self._clock()
            try:
                self.draw(event)
            finally:
                duration = self._clock() - started
                self._not_before = started + max(self._interval_s, duration / MAX_SHARE)


class CurvesObserver(ThrottledObserver):
    """Draws ``progress.png`` and ``<metric>.png``; a curve whose values did not change is not drawn again.

    The classes of a metric share a figure, ``<metric> by class.png``.
    """

    name = "drawing the curves"
    _folder: Path | None = None

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._folder = event.folder
        self._drawn: dict[str, list[Sequence[float]]] = {}
        self._names = PictureNames()
        self._class_names = event.class_names

    @override
    def draw(self, event: EpochFinished) -> None:
        from candy_monai.plotting.canvas.figures import save_figure
        from candy_monai.plotting.charts.curves import class_figure, curve_figure, progress_figure

        if self._folder is None:
            return
        metrics, classes = event.metrics, by_class(event.metrics, self._class_names)
        progress = progress_figure(metrics, classes=classes, forecast=event.forecast, num_epochs=event.num_epochs)
        save_figure(progress, self._folder / OVERVIEW)
        shared = {column for members in classes.values() for column in members}
        figures: list[tuple[str, list[str], Callable[[], Figure]]] = [
            (name, [name], partial(curve_figure, name, values))
            for name, values in metrics.items()
            if name not in shared
        ]
        for name, members in classes.items():
            curves = {class_name: metrics[column] for column, class_name in members.items()}
            figures.append((f"{name} by class", list(members), partial(class_figure, name, curves)))
        failure: Exception | None = None
        for name, columns, figure in figures:
            values = [metrics[column] for column in columns]
            if self._drawn.get(name) == values:
                continue
            try:
                save_figure(figure(), self._folder / self._names.of(name))
            except Exception as error:  # the others are drawn all the same
                failure = error
            self._drawn[name] = values
        if failure is not None:
            raise failure


class PictureNames:
    """Chooses unique file names for the figures of metrics, whatever their names."""

    def __init__(self) -> None:
        self._by_metric: dict[str, str] = {}
        self._taken = {_compared(Path(OVERVIEW).stem)}

    def of(self, metric: str) -> str:
        """Return a valid, shortened and unique file name for a metric."""
        if metric not in self._by_metric:
            stem = _as_stem(metric)
            if _compared(stem) in self._taken or stem.endswith("(preview)"):
                stem = f"{stem} ({hashlib.sha256(metric.encode(errors='surrogatepass')).hexdigest()[:8]})"
            self._taken.add(_compared(stem))
            self._by_metric[metric] = f"{stem}.png"
        return self._by_metric[metric]


def _as_stem(metric: str) -> str:
    text = metric.encode(errors="replace").decode()
    allowed = "".join("_" if sign in '/\\:*?"<>|' or not sign.isprintable() else sign for sign in text).strip(". ")
    # Else programs would take the first for an option, and Windows the second for a device, whatever its suffix.
    stem = f"_{allowed}" if allowed.startswith("-") or _DEVICE.match(allowed) else allowed
    return stem.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip(". ") or "_"


def _compared(stem: str) -> str:
    """Return a form that is equal for names that some file system treats as the same."""
    return unicodedata.normalize("NFC", stem).casefold()


class PreviewObserver(ThrottledObserver):
    """Draws the preview of the latest validated epoch."""

    name = "drawing the preview"

    def __init__(self, save: Callable[[Preview], None], *, interval_s: float = 30.0) -> None:
        super().__init__(interval_s=interval_s)
        self._save = save

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        if event.preview is not None:
            super().on_epoch_finished(event)

    @override
    def draw(self, event: EpochFinished) -> None:
        if event.preview is not None:
            self._save(event.preview)
