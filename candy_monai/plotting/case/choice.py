"""Choose the cases of a validation to draw, the worst, the median and the best, with few in memory at once."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

Case = TypeVar("Case")
Role = Literal["worst", "median", "best"]

MOST_HELD = 8
"""Default number of cases in memory. With more cases, the median is approximated by the nearest one in memory."""


@dataclass(frozen=True, kw_only=True)
class HeldCase(Generic[Case]):
    """A case and its score."""

    score: float
    case: Case = field(repr=False)


class CaseChoice(Generic[Case]):
    """Keeps the worst and the best of the offered cases and some near the median, at least 3 together.

    Memory does not grow with the number of cases.
    """

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._scores: list[float] = []  # ascending
        self._held: list[HeldCase[Case]] = []

    def offer(self, score: float, look: Callable[[], Case | None]) -> None:
        """Keep a case if it is the worst or the best so far, or nearer to the median than one of the kept cases.

        It is looked at only if it is to be kept, and may then be None. A case whose score is NaN is ignored.
        """
        if math.isnan(score):
            return
        bisect.insort(self._scores, score)
        scores = [held.score for held in self._held] + [score]
        leaves = self._least_needed(scores) if len(scores) > self._most else None
        if leaves == len(self._held):
            return
        case = look()
        if case is None:
            return
        if leaves is not None:
            del self._held[leaves]
        self._held.append(HeldCase(score=score, case=case))

    def chosen(self, scores: Sequence[float] = ()) -> dict[Role, HeldCase[Case]]:
        """Return the worst, the case nearest to the median of the scores, and the best, each once."""
        held = sorted(self._held, key=lambda one: one.score)
        found: dict[Role, HeldCase[Case]] = {}
        if held:
            found["worst"] = held[0]
        if len(held) > 2:
            median = statistics.median(scores or self._scores)
            found["median"] = min(held[1:-1], key=lambda one: abs(one.score - median))
        if len(held) > 1:
            found["best"] = held[-1]
        return found

    def _least_needed(self, scores: Sequence[float]) -> int:
        median, needed = statistics.median(self._scores), {scores.index(min(scores)), scores.index(max(scores))}
        others = [index for index in range(len(scores)) if index not in needed]
        return max(others, key=lambda index: abs(scores[index] - median))
