"""The metrics of a run as pictures: one curve a metric and ``progress.png``. Computes no metric."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, RunStarted
from candy_monai.observers.throttle import ThrottledObserver

OVERVIEW = "progress.png"
_MOST_BYTES = 100


class CurvesObserver(ThrottledObserver):
    """Draws ``progress.png`` and ``<metric>.png``; a curve whose values did not change is not drawn again."""

    name = "drawing the curves"
    _folder: Path | None = None

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._folder = event.folder
        self._drawn: dict[str, Sequence[float]] = {}
        self._names = PictureNames()

    @override
    def draw(self, event: EpochFinished) -> None:
        from candy_monai.plotting.canvas.figures import save_figure
        from candy_monai.plotting.charts.curves import curve_figure, progress_figure

        if self._folder is None:
            return
        progress = progress_figure(event.metrics, forecast=event.forecast, num_epochs=event.num_epochs)
        save_figure(progress, self._folder / OVERVIEW)
        failure: Exception | None = None
        for name, values in event.metrics.items():
            if self._drawn.get(name) == values:
                continue
            try:
                save_figure(curve_figure(name, values), self._folder / self._names.of(name))
            except Exception as error:  # the others are drawn all the same
                failure = error
            self._drawn[name] = values
        if failure is not None:
            raise failure


class PictureNames:
    """Names the pictures of metrics: each its own, whatever the metric is called."""

    def __init__(self) -> None:
        self._by_metric: dict[str, str] = {}
        self._taken = {_compared(Path(OVERVIEW).stem)}

    def of(self, metric: str) -> str:
        """Return the metric's name without what a file name must not hold, shortened, and not that of another file."""
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
    stem = f"_{allowed}" if allowed.startswith("-") else allowed  # else programs would take it for an option
    return stem.encode()[:_MOST_BYTES].decode(errors="ignore").rstrip(". ") or "_"


def _compared(stem: str) -> str:
    """Return the form in which two names are the same to some file system."""
    return unicodedata.normalize("NFC", stem).casefold()
