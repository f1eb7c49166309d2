"""The metrics of a run as pictures: one curve a metric and ``progress.png``. Computes no metric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, RunStarted
from candy_monai.observers.throttle import ThrottledObserver


class CurvesObserver(ThrottledObserver):
    """Draws ``progress.png`` and ``<metric>.png``; a curve whose values did not change is not drawn again."""

    name = "drawing the curves"
    _folder: Path | None = None

    @override
    def on_run_started(self, event: RunStarted) -> None:
        self._folder = event.folder
        self._drawn: dict[str, Sequence[float]] = {}

    @override
    def draw(self, event: EpochFinished) -> None:
        from candy_monai.plotting.curves import curve_figure, progress_figure
        from candy_monai.plotting.figures import save_figure

        if self._folder is None:
            return
        progress = progress_figure(event.metrics, forecast=event.forecast, num_epochs=event.num_epochs)
        save_figure(progress, self._folder / "progress.png")
        for name, values in event.metrics.items():
            if self._drawn.get(name) != values:
                save_figure(curve_figure(name, values), self._folder / f"{_file_name(name)}.png")
                self._drawn[name] = values


def _file_name(metric: str) -> str:
    """Return the metric's name without what a file name must not hold."""
    return "".join("_" if sign in '/\\:*?"<>|' or ord(sign) < 32 else sign for sign in metric).strip(". ") or "_"
