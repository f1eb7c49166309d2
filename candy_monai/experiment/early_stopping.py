"""Early stopping: by epochs without a better score, or by the forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Tolerance = int | Literal["forecast"] | None

FORECAST_PATIENCE = 3
"""Number of consecutive epochs without an expected gain, since a single forecast may be wrong by chance."""

_ROUNDING = 1e-9


def is_hopeless(chance: float | None, confidence: float) -> bool:
    """Return whether a gain of this probability is excluded with this confidence; False if it is unknown (None)."""
    return chance is not None and 1 - chance >= confidence - _ROUNDING


class EarlyStopping:
    """Stops after a number of validated epochs without a better score, or without the expectation of one.

    Args:
        tolerance: Number of consecutive epochs without improvement before stopping; ``"forecast"`` stops when no
            improvement is expected; None never stops.
        confidence: With ``"forecast"``: the required confidence of the forecast.
        margin: With ``"forecast"``: improvements below this fraction of the range of the scores so far are ignored.
    """

    def __init__(self, tolerance: Tolerance, *, confidence: float = 0.9, margin: float = 0.01) -> None:
        self._by_forecast = tolerance == "forecast"
        self.tolerance = FORECAST_PATIENCE if tolerance == "forecast" else tolerance
        self.confidence = confidence
        self.margin = margin
        self.num_stale_epochs = 0

    def update(self, *, improved: bool, chance: float | None = None) -> None:
        """Count one more validated epoch, whose score may be the best so far.

        ``chance`` is the probability that a later epoch exceeds it by more than the margin; None if unknown.
        """
        stale = is_hopeless(chance, self.confidence) if self._by_forecast else not improved
        self.num_stale_epochs = self.num_stale_epochs + 1 if stale else 0

    @property
    def triggered(self) -> bool:
        """Whether the run should stop now."""
        return self.tolerance is not None and self.num_stale_epochs >= self.tolerance

    @property
    def reason(self) -> str:
        """The reason for stopping, once the run stops."""
        if self._by_forecast:
            return (
                f"the forecast is {self.confidence:.0%} sure that no later epoch beats the best score by more than "
                f"{self.margin:.1%} of the range of the scores so far"
            )
        return f"the validation score has not improved for {self.tolerance} epochs"

    @property
    def remaining(self) -> int | None:
        """Number of further epochs without improvement before stopping; None for any number."""
        return None if self.tolerance is None else self.tolerance - self.num_stale_epochs

    def state_dict(self) -> dict[str, int]:
        """Return the count."""
        return {"num_stale_epochs": self.num_stale_epochs}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a saved count."""
        self.num_stale_epochs = state["num_stale_epochs"]
