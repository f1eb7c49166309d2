"""What earlier curves of the same task say of a run's best score.

At the same share of its length each of them had a best score so far, and a gain came after it. The mean of these gains,
weighed by how much each curve looked like this run so far, is what they suggest. It is tried on the references
themselves, each of which the others foretell, and counts the more beside the forecast from the run's own scores, the
less it erred there: curves that do not foretell one another have hardly a say. Runs with the settings of this one are
believed more readily than runs with others, of which a few may agree by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from candy_monai.forecasting.curve import SeenCurve

Array = NDArray[np.float64]

LEAST_SCORES = 3
"""Finite scores that a reference must have."""
MOST_REFERENCES = 40

_PLACES = 12  # at which the seen parts of two curves are compared
_BY_RANGE = 0.8  # of the logarithm of the quotient of two ranges seen so far, against a distance of one range
_LEAST_RANGE = 0.05  # of the usual whole range: what is smaller is noise
_FLOOR = 1e-6  # of a weight, so that the least unlike of unlike references still say something
_TRUST_SHARPNESS = 3.0
_PRIOR = 1.0  # references on which they have erred as "nothing more comes" does, before any is looked at
_LEAST_ERROR = 0.01  # of the range
_ENOUGH = 3  # references: two may foretell one another by chance, one cannot be tried at all
_WIDTH = 1.6  # standard deviations, in mean errors
_NEARLY_CERTAIN = 0.1
_EPS = 1e-9


@dataclass(frozen=True, kw_only=True)
class _Belief:
    """How readily references are believed.

    Attributes:
        slope: By how much less than a reference a run gains for each unit that it is ahead: 0 carries the gain over,
            -1 the end.
        least_norm: Of the usual range: the least range in which a reference's error is counted. The smaller, the more
            a rise costs that is foretold of a run that stays at nothing.
        least_trust: Below it, nothing is left of the trust; at 0.5 references err as "nothing more comes" does.
        alike: The sum of weights from which on they are believed in full.
    """

    slope: float
    least_norm: float
    least_trust: float
    alike: float


_SAME_SETTINGS = _Belief(slope=-0.5, least_norm=1.0, least_trust=0.15, alike=_EPS)
_OTHER_SETTINGS = _Belief(slope=0.0, least_norm=0.1, least_trust=0.5, alike=2.0)


@dataclass(frozen=True, kw_only=True)
class ReferenceGain:
    """The gain over the best score so far that references suggest, in the unit of the score; below 0 stands for none.

    Attributes:
        middle: Its median.
        spread: Its standard deviation.
        trust: The share that it should have in a forecast, 0 to 1.
        room: What is left to the largest score.
        when: When the best score of the references came, as a share of their lengths.
    """

    middle: float
    spread: float
    trust: float
    room: float
    when: float

    def quantiles(self, levels: Sequence[float] | Array) -> Array:
        """Return the gain's quantiles at ``levels`` between 0 and 1."""
        return np.clip(self.middle + self.spread * ndtri(np.asarray(levels)), 0.0, self.room)

    def interval(self) -> tuple[float, float]:
        """Return where four in five of those gains lie that come, and none unless one is nearly certain."""
        none = float(ndtr(-self.middle / self.spread))
        low, high = (0.1, 0.9) if none < _NEARLY_CERTAIN else (0.0, 0.8)
        ends = self.quantiles((none + (1 - none) * low if low else _EPS, none + (1 - none) * high))
        return (float(ends[0]) if low else 0.0), float(ends[1])


def checked_references(references: Sequence[ArrayLike]) -> list[Array]:
    """Return the newest references, the first ones, as arrays.

    Raises:
        ValueError: If one has too few scores.
    """
    checked = []
    for number, scores in enumerate(references):
        values = np.asarray(scores, dtype=np.float64).ravel()
        if (count := int(np.isfinite(values).sum())) < LEAST_SCORES:
            raise ValueError(
                f"references[{number}] has {count} finite scores, expected at least {LEAST_SCORES}: one for each epoch "
                "of a finished run"
            )
        checked.append(values)
    return checked[:MOST_REFERENCES]


def gain_by_references(
    curve: SeenCurve, references: Sequence[Array], *, same_settings: bool = False
) -> ReferenceGain | None:
    """Foretell the gain over the best score so far from the gains of earlier curves at the same share of their lengths.

    Args:
        curve: What is known of the run.
        references: The scores of each earlier run, from its first epoch to its last.
        same_settings: Whether they have the settings of the run.

    Returns:
        None where neither the run nor any reference has moved.
    """
    belief = _SAME_SETTINGS if same_settings else _OTHER_SETTINGS
    share = curve.now / curve.horizon
    known = [_Known.of(values, share) for values in references]
    whole = np.array([k.whole for k in known])
    usual = max(float(np.median(whole)), curve.range)
    if not usual > 0:
        return None
    paths = np.array([_path(curve.epochs / curve.horizon, curve.values, share), *(k.path for k in known)])
    ranges = np.array([curve.range, *(k.seen for k in known)]) + _LEAST_RANGE * usual
    gains, bests = np.array([k.gain for k in known]), paths[:, -1]
    # Rows: this run, then each reference, which does not count for itself.
    weights = _weights(paths, ranges)
    suggested = np.maximum(gains[None] + belief.slope * (bests[:, None] - bests[None, 1:]), 0.0)
    foretold = (weights * suggested).sum(1) / np.maximum(weights.sum(1), 1e-30)
    foretold = np.clip(foretold, 0.0, np.maximum(curve.top - bests, 0.0))
    alike, norm = weights[0], np.maximum(whole, belief.least_norm * usual)
    total = float(alike.sum())
    typical = float(alike @ (gains / norm)) / total + _LEAST_ERROR

    def error_of(saying: Array) -> float:
        return float((alike @ (np.abs(saying - gains) / norm) + _PRIOR * typical) / (total + _PRIOR))

    error = error_of(foretold[1:])
    trust = 1 / (1 + (error / error_of(np.zeros_like(gains))) ** _TRUST_SHARPNESS)
    trust = max(0.0, trust - belief.least_trust) / (1 - belief.least_trust)
    enough = min(1.0, (len(known) - 1) / (_ENOUGH - 1)) * min(1.0, total / belief.alike)
    return ReferenceGain(
        middle=float(foretold[0]),
        spread=_WIDTH * max(error, _LEAST_ERROR) * usual,
        trust=enough * trust,
        room=curve.top - curve.best,
        when=float(alike @ [k.when for k in known]) / total,
    )


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What is known of a reference at the run's present share of its length.

    Attributes:
        path: Its best score so far, at some places up to there.
        gain: By how much that was beaten later.
        seen: The range of its scores until then.
        whole: That of all of them.
        when: When its best score came, as a share of its length.
    """

    path: Array
    gain: float
    seen: float
    whole: float
    when: float

    @classmethod
    def of(cls, scores: Array, share: float) -> _Known:
        finite = np.flatnonzero(np.isfinite(scores))
        places, values = (finite + 1) / len(scores), scores[finite]
        path = _path(places, values, share)
        seen = values[: max(1, int(np.searchsorted(places, share + _EPS)))]
        return cls(
            path=path,
            gain=float(values.max() - path[-1]),
            seen=float(np.ptp(seen)),
            whole=float(np.ptp(values)),
            when=float(places[values.argmax()]),
        )


def _path(places: Array, values: Array, share: float) -> Array:
    return np.interp(share * np.arange(1, _PLACES + 1) / _PLACES, places, np.maximum.accumulate(values))


def _weights(paths: Array, ranges: Array) -> Array:
    """Return how alike each curve (rows) is to each reference (columns), 0 to 1; 0 to itself."""
    scales = np.sqrt(ranges[:, None] * ranges[None, 1:])
    apart = (((paths[:, None] - paths[None, 1:]) / scales[..., None]) ** 2).mean(-1)
    apart += (_BY_RANGE * np.log(ranges[:, None] / ranges[None, 1:])) ** 2
    weights = np.exp(-0.5 * apart) + _FLOOR
    np.fill_diagonal(weights[1:], 0.0)
    return np.asarray(weights)
