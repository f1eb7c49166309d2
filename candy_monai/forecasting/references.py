"""Forecast a run's best score from earlier curves of the same task.

For each of them the gain over its best score at the same share of its length is known. The forecast is the mean of
these gains, weighted by how similar each curve was to this run so far. Its weight relative to the forecast from the
run's own scores depends on its error on the references themselves, each of which is predicted from the others: curves
that do not predict each other have hardly any weight. Runs with the settings of this one get a higher weight than runs
with others, of which a few may agree by chance.
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
"""The minimum number of finite scores of a reference."""
MOST_REFERENCES = 40

_PLACES = 12  # positions at which the known parts of two curves are compared
_BY_RANGE = 0.8  # weight of the log ratio of two ranges so far, relative to a distance of one range
_LEAST_RANGE = 0.05  # of the usual whole range: smaller ranges are noise
_FLOOR = 1e-6  # minimum of a weight, so that the most similar of dissimilar references are still used
_TRUST_SHARPNESS = 3.0
_PRIOR = 1.0  # prior number of references with the same error as a forecast of no gain
_LEAST_ERROR = 0.01  # of the range
_ENOUGH = 3  # references: two may predict each other by chance, one cannot be tested at all
_WIDTH = 1.6  # standard deviations, in mean errors
_NEARLY_CERTAIN = 0.1
_EPS = 1e-9


@dataclass(frozen=True, kw_only=True)
class _Belief:
    """How much references are trusted.

    Attributes:
        slope: The change of a run's gain per unit that it is ahead of a reference: 0 for the same gain, -1 for the same
            final score.
        least_norm: In usual ranges: the minimum range relative to which a reference's error is measured. The smaller it
            is, the larger is the penalty for predicting a rise of a run that does not learn.
        least_trust: Below it the trust is 0; at 0.5 the error of the references is that of a forecast of no gain.
        alike: The minimum sum of weights for full trust.
    """

    slope: float
    least_norm: float
    least_trust: float
    alike: float


_SAME_SETTINGS = _Belief(slope=-0.5, least_norm=1.0, least_trust=0.15, alike=_EPS)
_OTHER_SETTINGS = _Belief(slope=0.0, least_norm=0.1, least_trust=0.5, alike=2.0)


@dataclass(frozen=True, kw_only=True)
class ReferenceGain:
    """The gain over the best score so far predicted by references, in the unit of the score; below 0 means no gain."""

    middle: float  # its median
    spread: float  # its standard deviation
    trust: float  # the weight of the references in a forecast, 0 to 1
    room: float  # the distance to the largest possible score
    when: float  # the time of the best score of the references, as a share of their lengths

    def quantiles(self, levels: Sequence[float] | Array) -> Array:
        """Return the gain's quantiles at ``levels`` between 0 and 1."""
        return np.clip(self.middle + self.spread * ndtri(np.asarray(levels)), 0.0, self.room)

    def interval(self) -> tuple[float, float]:
        """Return the interval that contains four in five gains, and 0 unless a gain is nearly certain."""
        none = float(ndtr(-self.middle / self.spread))
        low, high = (0.1, 0.9) if none < _NEARLY_CERTAIN else (0.0, 0.8)
        ends = self.quantiles((none + (1 - none) * low if low else _EPS, none + (1 - none) * high))
        return (float(ends[0]) if low else 0.0), float(ends[1])


def checked_references(references: Sequence[ArrayLike]) -> list[Array]:
    """Return the newest references, which come first, as arrays; raise if one has too few scores."""
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
    """Predict the gain over the best score so far from the gains of earlier curves at the same share of their lengths.

    References hold the scores from the first epoch to the last, maybe of runs with the same settings. None if the
    scores of neither the run nor any reference have changed.
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
    # Rows: this run, then each reference, which is excluded from its own prediction.
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
    """The known part of a reference at the run's current share of its length."""

    path: Array  # its best score so far, at some positions up to there
    gain: float  # the later gain over this score
    seen: float  # the range of its scores up to there
    whole: float  # the range of all its scores
    when: float  # the time of its best score, as a share of its length

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
    """Return the similarity of each curve (rows) to each reference (columns), 0 to 1; 0 to itself."""
    scales = np.sqrt(ranges[:, None] * ranges[None, 1:])
    apart = (((paths[:, None] - paths[None, 1:]) / scales[..., None]) ** 2).mean(-1)
    apart += (_BY_RANGE * np.log(ranges[:, None] / ranges[None, 1:])) ** 2
    weights = np.exp(-0.5 * apart) + _FLOOR
    np.fill_diagonal(weights[1:], 0.0)
    return np.asarray(weights)
