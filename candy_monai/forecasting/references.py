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
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from candy_monai.forecasting.curve import SeenCurve

Array = NDArray[np.float64]

LEAST_SCORES = 3
"""Finite scores that a reference must have."""
MOST_REFERENCES = 40

_PLACES = 12  # at which the seen parts of two curves are compared
_NEAR, _FAR = 0.25, 1.0
"""How unlike a curve may be for its gain to count: in ranges seen so far."""
_SLOPES = (0.0, -0.5, -1.0)
"""By how much less is gained for each unit that a curve is ahead: 0 carries the gain over, -1 the end."""
_BY_RANGE = 0.8  # of the logarithm of the quotient of two ranges, against a distance of one range
_LEAST_RANGE = 0.05  # of the usual whole range: what is smaller is noise
_SHARPNESS, _TRUST_SHARPNESS = 4.0, 4.0
_OWN_ERROR = 0.9
"""The error of the forecast from the own scores, as a share of that of the best so far."""
_PRIOR = 1.0  # references that each rule has erred on as the best so far does, before any is looked at
_LEAST_ERROR = 0.01  # of the range
_LEAST_NORM = 0.02  # of the usual range, for errors that are counted in a reference's own
_WIDTH = 1.3
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
    gains, count = np.array([k.gain for k in known]), len(known)
    # Rows: this run, then each reference, which does not count for itself.
    distances = _distances(paths, ranges)
    foretold = np.stack(
        [
            _foretold(_weights(distances, reach), slope, paths[:, -1], gains)
            for reach, slope in product((_NEAR, _FAR), _SLOPES)
        ],
        axis=1,
    )
    room = curve.top - curve.best
    foretold = np.clip(foretold, 0.0, np.maximum(curve.top - paths[:, -1], 0.0)[:, None])
    alike = _weights(distances, _FAR)[0]
    alike = alike / alike.max()
    norm = np.maximum(whole, _LEAST_NORM * usual)
    misses = np.abs(foretold[1:] - gains[:, None]) if count > 1 else np.repeat(gains[:, None], foretold.shape[1], 1)
    total = alike.sum() + _PRIOR
    own = _OWN_ERROR * float(alike @ (gains / norm)) / alike.sum()
    prior = _PRIOR * (own + _LEAST_ERROR)
    errors = (alike @ (misses / norm[:, None]) + prior) / total
    says = errors**-_SHARPNESS
    says /= says.sum()
    whole_error = (float(alike @ (np.abs(misses @ says) / norm)) + prior) / total
    own_error = (own * alike.sum() + prior) / total
    trust = 1 / (1 + (whole_error / own_error) ** _TRUST_SHARPNESS)
    spread = _WIDTH * max(whole_error * usual, _LEAST_ERROR * usual)
    when = float(alike @ [k.when for k in known]) / alike.sum()
    return ReferenceGain(middle=float(foretold[0] @ says), spread=spread, trust=trust, room=room, when=when)


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


def _distances(paths: Array, ranges: Array) -> Array:
    """Return how unlike each curve (rows) is to each reference (columns); inf to itself."""
    scales = np.sqrt(ranges[:, None] * ranges[None, 1:])
    apart = ((paths[:, None] - paths[None, 1:]) / scales[..., None]) ** 2
    distances = apart.mean(-1) + (_BY_RANGE * np.log(ranges[:, None] / ranges[None, 1:])) ** 2
    np.fill_diagonal(distances[1:], np.inf)
    return np.asarray(distances)


def _weights(distances: Array, reach: float) -> Array:
    return np.exp(-0.5 * distances / reach**2) + np.where(np.isfinite(distances), 1e-6, 0.0)


def _foretold(weights: Array, slope: float, bests: Array, gains: Array) -> Array:
    """Return each curve's gain (rows) as the weighted median of the references' gains."""
    suggested = np.maximum(gains[None] + slope * (bests[:, None] - bests[None, 1:]), 0.0)
    order = np.argsort(suggested, axis=1)
    values, parts = np.take_along_axis(suggested, order, 1), np.take_along_axis(weights, order, 1)
    parts = parts / np.maximum(parts.sum(1, keepdims=True), 1e-30)
    middles = np.cumsum(parts, axis=1) - parts / 2
    return np.array([np.interp(0.5, at, value) for at, value in zip(middles, values, strict=True)])
