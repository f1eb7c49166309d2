"""In which order samples visit the cases, and which of them are centred on foreground.

Owns arithmetic alone: it opens no case, and every number follows from a seed and the sample's index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ORDER_STREAM = 1  # keeps the order of cases apart from the samples' own numbers
_PHASE_STREAM = 2


@dataclass(frozen=True, kw_only=True)
class PatchDraw:
    """What a sample's index stands for.

    Attributes:
        case_id: The case that it is cut from.
        on_foreground: Whether it is centred on a labelled voxel.
    """

    case_id: str
    on_foreground: bool


class DrawOrder:
    """Cases in passes: each pass visits every case once, in an order of its own.

    A share of the visits is on foreground. It is spread evenly: it holds over any stretch of indices, and over the
    visits to each case that has foreground.

    Args:
        case_ids: The cases.
        has_foreground: For each of them, whether it can be centred on foreground.
        foreground_share: Share of visits on foreground, 0 to 1; cases with foreground make up for those without.
        seed: Seeds the orders.
    """

    def __init__(
        self, case_ids: Sequence[str], has_foreground: Sequence[bool], *, foreground_share: float, seed: int
    ) -> None:
        self._case_ids = tuple(case_ids)
        self._seed = seed
        labelled = np.array(has_foreground, dtype=bool)
        share = min(1.0, foreground_share * len(labelled) / max(1, labelled.sum()))
        self._shares = np.where(labelled, share, 0.0)
        self._phases = np.zeros(len(labelled))
        ranks = np.random.default_rng([seed, 0, _PHASE_STREAM]).permutation(int(labelled.sum()))
        self._phases[labelled] = ranks / max(1, len(ranks))
        self._pass: tuple[int, NDArray[np.int64], NDArray[np.bool_]] | None = None

    def draw(self, index: int) -> PatchDraw:
        """Return which case a sample comes from and how.

        Raises:
            IndexError: If the index is negative; there is no largest one.
        """
        if index < 0:
            raise IndexError(f"a sample's index is 0 or more, got {index}")
        number, position = divmod(index, len(self._case_ids))
        if self._pass is None or self._pass[0] != number:
            self._pass = (number, *self._ordered(number))
        _, order, on_foreground = self._pass
        return PatchDraw(case_id=self._case_ids[order[position]], on_foreground=bool(on_foreground[position]))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what a worker can work out again."""
        return self.__dict__ | {"_pass": None}

    def _ordered(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return a pass: its cases in order, and which of them are centred on foreground."""
        rng = np.random.default_rng([self._seed, number, _ORDER_STREAM])
        # A case's turn comes whenever its own running share passes a whole number; phases differ from case to case.
        turns = np.floor((number + 1) * self._shares + self._phases) > np.floor(number * self._shares + self._phases)
        count, positions = int(turns.sum()), np.arange(len(turns))
        offset = rng.random()
        chosen = np.floor((positions + 1) * count / len(turns) + offset) > np.floor(
            positions * count / len(turns) + offset
        )
        order = np.empty(len(turns), dtype=np.int64)
        order[chosen] = rng.permutation(np.flatnonzero(turns))
        order[~chosen] = rng.permutation(np.flatnonzero(~turns))
        return order, chosen
