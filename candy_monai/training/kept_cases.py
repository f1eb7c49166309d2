"""What a validation leaves to look at: the scores of all cases, and images of the worst, the median and the best."""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from candy_monai.aliases import Metrics, Scalar
from candy_monai.experiment.events import Validated, ValidatedCase, ViewedCase
from candy_monai.experiment.history import as_float, read_numbers
from candy_monai.plotting.case.views import CaseView
from candy_monai.processes import Processes

MOST_VIEWS = 12
"""Reduced images that are held at once. With more cases the median is the nearest to it of those that are held."""


@dataclass(frozen=True, kw_only=True)
class _Held:
    place: int
    score: float
    view: CaseView = field(repr=False)


class KeptCases:
    """Keeps the scores of all cases, and reduced images of few: memory does not grow with the cases.

    Values on a GPU are read once, at the end.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._scores: list[float] = []
        self._metrics: list[dict[str, Scalar]] = []
        self._held: list[_Held] = []

    def add(self, case_id: str, score: float, metrics: Metrics, look: Callable[[], CaseView | None]) -> None:
        """Add one case.

        Args:
            case_id: Its id; empty if it has none.
            score: Higher is better; NaN if it has none.
            metrics: One number each.
            look: Returns its reduced image; called only if it may be wanted.
        """
        place = len(self._ids)
        self._ids.append(case_id)
        self._scores.append(score)
        self._metrics.append(
            {
                name: value.detach().clone() if isinstance(value, Tensor) else as_float(value)
                for name, value in metrics.items()
            }
        )
        if math.isnan(score) or not self._is_wanted(score):
            return
        view = None
        with contextlib.suppress(Exception):  # what cannot be looked at is validated all the same
            view = look()
        if view is None:
            return
        self._held.append(_Held(place=place, score=score, view=view))
        if len(self._held) > MOST_VIEWS:
            middle = self._median()
            self._held.remove(max(self._between(), key=lambda one: abs(one.score - middle)))

    def gathered(self, processes: Processes) -> Validated:
        """Return the cases of all processes, and those of this one that are to be looked at."""
        numbers = read_numbers([value for metrics in self._metrics for value in metrics.values()])
        own = [
            (case_id, score, {name: next(numbers) for name in metrics})
            for case_id, score, metrics in zip(self._ids, self._scores, self._metrics, strict=True)
        ]
        parts = processes.all_gather(own)
        cases = [
            ValidatedCase(case_id=case_id or f"case {place}", score=score, metrics=metrics)
            for place, (case_id, score, metrics) in enumerate(itertools.chain.from_iterable(parts), start=1)
        ]
        before = sum(map(len, parts[: processes.rank]))
        ids = [case.case_id for case in cases[before : before + len(own)]]
        return Validated(cases=cases, views=self._views(ids, [case.score for case in cases]))

    def _views(self, ids: Sequence[str], scores: Sequence[float]) -> list[ViewedCase]:
        known = sorted(score for score in scores if not math.isnan(score))
        held = sorted(self._held, key=lambda one: one.score)
        if not held:
            return []
        chosen = {"worst": held[0]}
        if len(held) > 2:
            middle = statistics.median(known)
            chosen["median"] = min(held[1:-1], key=lambda one: abs(one.score - middle))
        if len(held) > 1:
            chosen["best"] = held[-1]
        return [
            ViewedCase(
                case_id=ids[one.place],
                score=one.score,
                role=role,
                rank=known.index(one.score) + 1,
                num_cases=len(known),
                view=one.view,
            )
            for role, one in chosen.items()
        ]

    def _is_wanted(self, score: float) -> bool:
        """Return whether a case would be held: it is the worst or best so far, or nearer to the median than another."""
        if len(self._held) < MOST_VIEWS:
            return True
        scores = [one.score for one in self._held]
        if score < min(scores) or score > max(scores):
            return True
        middle = self._median()
        return abs(score - middle) < max(abs(one.score - middle) for one in self._between())

    def _between(self) -> list[_Held]:
        return sorted(self._held, key=lambda one: one.score)[1:-1]

    def _median(self) -> float:
        return statistics.median(score for score in self._scores if not math.isnan(score))
