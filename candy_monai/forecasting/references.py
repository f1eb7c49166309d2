"""What earlier curves of the same task say of a run's best score.

At the same share of its length each of them had a best score so far, and a gain came after it. A few rules make a gain
of theirs into one of this run: from all of them or above all from those that looked like it so far, carried over as it
was, or less the further this run is ahead. Each rule is tried on the references themselves, each of which the others
foretell, and counts the more, the less it erred there. So does the whole beside the forecast from the run's own scores:
curves that do not foretell one another have hardly a say.
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
_SLOPES = (0.0, -0.5, -1.0)
"""By how much less is gained for each unit that a curve is ahead: 0 carries the gain over, -1 the end."""
_RULE_SHARPNESS, _TRUST_SHARPNESS = 2.0, 4.0
_OWN_ERROR = 0.9
"""The error of the forecast from the own scores, as a share of that of the best so far."""
_PRIOR = 1.0  # references that each rule has erred on as that forecast does, before any is looked at
_LEAST_ERROR = 0.01  # of the range
_LEAST_NORM = 0.02  # of the usual range, for errors that are counted in a reference's own
_ENOUGH = 4  # references: fewer may foretell one another by chance, one cannot be tried at all
_LEAST_TRUST = 0.25  # below it, nothing is left of it
_WIDTH = 1.6  # standard deviations, in mean errors
_NEARLY_CERTAIN = 0.1
_EPS = 1e-9


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


def gain_by_references(curve: SeenCurve, references: Sequence[Array]) -> ReferenceGain | None:
    """Foretell the gain over the best score so far from the gains of earlier curves at the same share of their lengths.

    Args:
        curve: What is known of the run.
        references: The scores of each earlier run, from its first epoch to its last.

    Returns:
        None where neither the run nor any reference has moved.
    """
    share = curve.now / curve.horizon
    known = [_Known.of(values, share) for values in references]
    whole = np.array([k.whole for k in known])
    usual = max(float(np.median(whole)), curve.range)
    if not usual > 0:
        return None
    paths = np.array([_path(curve.epochs / curve.horizon, curve.values, share), *(k.path for k in known)])
    ranges = np.array([curve.range, *(k.seen for k in known)]) + _LEAST_RANGE * usual
    gains = np.array([k.gain for k in known])
    # Rows: this run, then each reference, which does not count for itself.
    weights = _weights(paths, ranges)
    suggested = _suggested(paths[:, -1], ranges, gains)
    sums = np.maximum(weights.sum(1, keepdims=True), 1e-30)
    foretold = np.stack([(weights * gain).sum(1) for gain in suggested], axis=1) / sums
    foretold = np.clip(foretold, 0.0, np.maximum(curve.top - paths[:, -1], 0.0)[:, None])
    alike, norm = weights[0], np.maximum(whole, _LEAST_NORM * usual)
    total, known_error = float(alike.sum()), float(alike @ (gains / norm)) * _OWN_ERROR
    typical = known_error / total + _LEAST_ERROR

    def error_of(each: Array) -> Array:
        return np.asarray(
            (alike @ (np.abs(each - gains[:, None]) / norm[:, None]) + _PRIOR * typical) / (total + _PRIOR)
        )

    says = error_of(foretold[1:]) ** -_RULE_SHARPNESS
    says /= says.sum()
    error = float(error_of((foretold[1:] @ says)[:, None])[0])
    own_error = (known_error + _PRIOR * typical) / (total + _PRIOR)
    trust = 1 / (1 + (error / own_error) ** _TRUST_SHARPNESS)
    enough = min(1.0, (len(known) - 1) / (_ENOUGH - 1)) ** 2
    return ReferenceGain(
        middle=float(foretold[0] @ says),
        spread=_WIDTH * max(error, _LEAST_ERROR) * usual,
        trust=enough * max(0.0, trust - _LEAST_TRUST) / (1 - _LEAST_TRUST),
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


def _suggested(bests: Array, ranges: Array, gains: Array) -> list[Array]:
    """Return the gain of each curve (rows) that the gain of each reference (columns) suggests, by each rule."""
    ahead, alike = bests[:, None] - bests[None, 1:], ranges[:, None] / ranges[None, 1:]
    by_place = [np.maximum(gains[None] + slope * ahead, 0.0) for slope in _SLOPES]
    return [*by_place, gains[None] * alike]
