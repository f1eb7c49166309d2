"""Calls the trainer's ``save_preview`` with the case to look at. Draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished, Preview
from candy_monai.observers.throttle import ThrottledObserver


class PreviewObserver(ThrottledObserver):
    """Has the preview of the newest validated epoch drawn.

    Args:
        save: Draws and writes one preview.
        interval_s: Seconds between two previews at least.
    """

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
