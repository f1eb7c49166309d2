"""Has the case to look at drawn."""

from __future__ import annotations

from typing_extensions import override

from candy_monai.experiment.events import EpochFinished
from candy_monai.observers.throttle import ThrottledObserver


class PreviewObserver(ThrottledObserver):
    """Has the preview of the newest validated epoch drawn.

    Args:
        interval_s: Seconds between two previews at least.
    """

    name = "drawing the preview"

    def __init__(self, *, interval_s: float = 30.0) -> None:
        super().__init__(interval_s=interval_s)

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        if event.preview is not None:
            super().on_epoch_finished(event)

    @override
    def draw(self, event: EpochFinished) -> None:
        if event.preview is not None:
            event.preview.draw()
