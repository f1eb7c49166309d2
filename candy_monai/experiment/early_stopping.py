"""Decides when a run has stopped getting better. Knows epochs and scores, nothing else."""

from __future__ import annotations

from collections.abc import Mapping


class EarlyStopping:
    """Stop after a number of validated epochs without a better validation score.

    Args:
        tolerance: How many epochs in a row may pass without improvement; None never stops.
    """

    def __init__(self, tolerance: int | None) -> None:
        self.tolerance = tolerance
        self.num_stale_epochs = 0

    def update(self, *, improved: bool) -> None:
        """Count one more validated epoch.

        Args:
            improved: Whether the epoch's validation score is the best so far.
        """
        self.num_stale_epochs = 0 if improved else self.num_stale_epochs + 1

    @property
    def triggered(self) -> bool:
        """Whether the run should stop now."""
        return self.tolerance is not None and self.num_stale_epochs >= self.tolerance

    @property
    def remaining(self) -> int | None:
        """How many more epochs may pass without improvement; None for any number."""
        return None if self.tolerance is None else self.tolerance - self.num_stale_epochs

    def state_dict(self) -> dict[str, int]:
        """Return the count."""
        return {"num_stale_epochs": self.num_stale_epochs}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue from a saved count."""
        self.num_stale_epochs = state["num_stale_epochs"]
