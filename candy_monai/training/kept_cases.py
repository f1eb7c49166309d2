"""The cases that a validation keeps: the scores of all, and images of the worst, the median and the best."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence

from torch import Tensor

from candy_monai.aliases import Metrics, Scalar
from candy_monai.experiment.events import Validated, ValidatedCase, ViewedCase
from candy_monai.experiment.history import as_float, read_numbers
from candy_monai.plotting.case.choice import CaseChoice
from candy_monai.plotting.case.views import CaseView
from candy_monai.processes import Processes

MOST_VIEWS = 12
"""Maximum number of reduced images in memory."""


class KeptCases:
    """Keeps the scores of all cases, and reduced images of a few, so that memory does not grow with the images.

    Values on a GPU are read once, at the end.
    """

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._scores: list[float] = []
        self._metrics: list[dict[str, Scalar]] = []
        self._choice = CaseChoice[tuple[int, CaseView]](MOST_VIEWS)

    def add(self, case_id: str, score: float, metrics: Metrics, look: Callable[[], CaseView | None]) -> None:
        """Add one case; its id may be empty, its score NaN.

        ``look`` returns its reduced image, and is called only if that may be needed.
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

        def placed() -> tuple[int, CaseView] | None:
            view = None
            with contextlib.suppress(Exception):  # a case is validated even if its image cannot be reduced
                view = look()
            return None if view is None else (place, view)

        self._choice.offer(score, placed)

    def gathered(self, processes: Processes) -> Validated:
        """Return the cases of all processes, and the images of this process's chosen cases."""
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
        return [
            ViewedCase(
                case_id=ids[place],
                score=held.score,
                role=role,
                rank=known.index(held.score) + 1,
                num_cases=len(known),
                view=view,
            )
            for role, held in self._choice.chosen(known).items()
            for place, view in (held.case,)
        ]
