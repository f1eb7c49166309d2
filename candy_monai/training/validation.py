"""Collects the cases of one validation: their scores, their metrics and the one to look at. Runs no network."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from torch import Tensor

from candy_monai.experiment.events import Preview


class ValidationCases:
    """Averages scores over cases and keeps the tensors of the worst case only, so memory does not grow with the cases.

    The worst case is the one worth looking at: it says what the model still gets wrong.
    """

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._worst: tuple[float, Tensor, Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, score: float, image: Tensor, label: Tensor, output: Tensor) -> None:
        """Take one case.

        Args:
            score: Higher is better; NaN if the case has none.
            image: ``(C, *spatial)``.
            label: ``(1, *spatial)``.
            output: What ``validate_case`` returned for it.
        """
        self._scores.append(score)
        if self._worst is None or score < self._worst[0] or math.isnan(self._worst[0]):
            self._worst = (score, image, label, output.detach())

    @property
    def scores(self) -> list[float]:
        """The score of each case."""
        return list(self._scores)

    def preview(self) -> Preview | None:
        """Return the worst case on the CPU; None before the first case."""
        if self._worst is None:
            return None
        _, image, label, output = self._worst
        return Preview(image=image.cpu(), label=label.cpu(), output=output.cpu())


def mean_score(parts: Sequence[Sequence[float]]) -> float:
    """Return the mean over all cases of all parts that have a score; NaN if none has."""
    known = [score for part in parts for score in part if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else math.nan


def certainty(parts: Sequence[Sequence[float]]) -> tuple[int, float]:
    """Return of how many cases `mean_score` is the mean, and its standard error; NaN for fewer than two cases."""
    known = [score for part in parts for score in part if not math.isnan(score)]
    if len(known) < 2 or not all(map(math.isfinite, known)):
        return len(known), math.nan
    return len(known), statistics.stdev(known) / math.sqrt(len(known))


def mean_of_cases(num_cases: int, standard_error: float) -> str:
    """Return in words what a score rests on."""
    if num_cases == 1:
        return "of one case only"
    error = f" (standard error {standard_error:.4f})" if math.isfinite(standard_error) else ""
    return f"the mean of {num_cases} cases{error}"
