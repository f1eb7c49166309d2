"""How far a run has come and what its best score is. Decides nothing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(kw_only=True)
class Progress:
    """How far a run has come.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps made.
        batch: Batches of the current epoch that were trained on; 0 between two epochs.
        learning_rate: The current epoch's first learning rate; NaN between two epochs.
        epoch_s: Seconds that the current epoch took before it was interrupted.
        total_s: Seconds that all finished epochs took, saving them included.
        best_score: The best finite validation score so far; minus infinity before the first.
        best_epoch: The epoch of ``best_score``, counted from 1; 0 before the first.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    learning_rate: float = math.nan
    epoch_s: float = 0.0
    total_s: float = 0.0
    best_score: float = -math.inf
    best_epoch: int = 0

    def offer(self, score: float, *, epoch: int) -> bool:
        """Take ``score`` as the best if it is finite and better than the best so far, and say whether it was."""
        if not math.isfinite(score) or score <= self.best_score:
            return False
        self.best_score, self.best_epoch = score, epoch
        return True

    def state_dict(self) -> dict[str, float]:
        """Return all fields."""
        return dataclasses.asdict(self)

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Replace all fields."""
        for field in dataclasses.fields(self):
            kind = int if isinstance(field.default, int) else float
            setattr(self, field.name, kind(state[field.name]))
