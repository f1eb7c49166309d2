"""The best validation score of a run, foretold from the scores so far.

Owns the forecast and when to abstain. Knows nothing of training: scores in (higher is better), a statement out. Epochs
are counted from 1.

The curve is modelled as a quotient of two polynomials in ``t``, the share of the run. The denominator is
``1 + c t + (c t)**2 / 2! + ...`` up to some degree: it has no pole ahead and runs from a hyperbola to nearly an
exponential. The numerator lets the curve settle, overshoot or drift. For each ``c`` on a grid the numerator is a linear
regression with a normal posterior; degrees and forms are weighed by how well they foretell the held-out end of the
curve, the ``c`` of each by evidence. Draws from the average, with the noise of the epochs to come, give the
distribution of the run's best score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.special import logsumexp, ndtri

Array = NDArray[np.float64]

_LEAST_POINTS = 6
_DRAWS = 400
_PLACES = 96  # epochs ahead at which curves are drawn; the noise of those between is accounted for
_QUANTILES = (0.1, 0.9)
LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))
_DEGREES = (1, 2, 5)
_RATES = np.geomspace(0.3, 300.0, 25)  # c: from a curve that hardly bends to one over in a hundredth of the run
_FAVOUR = (1.0, 3.0, 2.0)  # settles, overshoots, drifts: most runs end lower than their first part promises
_FARTHEST = 0.5  # of what was climbed so far, times the share of the run that is left


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is expected of a run.

    Attributes:
        epoch: When the best score is expected, from now to the horizon; when abstaining, when the best so far came, or
            0 if there is none.
        score: The best score of the whole run, never below the best so far; when abstaining, the best so far, or NaN.
        interval: Where the best score lies with 80 % confidence; None when abstaining.
        reason: Why there is no forecast; None when there is one.
        quantiles: The best score's quantiles at 5 %, 10 % ... 95 %; empty when abstaining.
    """

    epoch: int
    score: float
    interval: tuple[float, float] | None
    reason: str | None
    quantiles: tuple[float, ...] = ()

    def chance_above(self, score: float) -> float:
        """Return the chance that the run's best score exceeds ``score``, as far as the quantiles tell: 0 to 1.

        Args:
            score: Any score; the best so far, for the chance that it is beaten.

        Raises:
            ValueError: If the forecast abstains.
        """
        if not self.quantiles:
            raise ValueError(f"there is no forecast: {self.reason}")
        below = np.interp(score, self.quantiles, LEVELS, left=0.0, right=1.0)
        # Many quantiles are alike where the best is over: all of them are not above it.
        last = int(np.searchsorted(self.quantiles, score, side="right")) - 1
        return float(1 - max(below, LEVELS[last] if last >= 0 else 0.0))


def forecast(
    scores: Sequence[float] | Array,
    horizon: int,
    *,
    degree: int = 5,
    ceiling: float | None = None,
    learning_rates: Sequence[float] | Array | None = None,
    method: Literal["combined", "quotient"] = "combined",
) -> Forecast:
    """Foretell the best score of a run from its scores so far. Takes milliseconds and always says the same.

    Args:
        scores: One score for each epoch from 1 on, higher is better; NaN where there is none.
        horizon: The planned number of epochs.
        degree: Upper bound of the degree of both polynomials, at least 1. There is no forecast before more than
            ``degree`` epochs are over.
        ceiling: The largest score that the metric can have. By default 0 if no score is positive (a negative loss), 1
            if all lie between 0 and 1 (Dice), else none.

    Raises:
        ValueError: If ``horizon`` or ``degree`` is less than 1, or a score exceeds ``ceiling``.
    """
    if horizon < 1 or degree < 1:
        raise ValueError(f"horizon and degree must be at least 1, got {horizon} and {degree}")
    values = np.asarray(scores, dtype=np.float64).ravel()
    finite = np.isfinite(values)
    if not finite.any():
        return Forecast(epoch=0, score=math.nan, interval=None, reason="there is no finite score yet")
    best_epoch = int(np.nanargmax(np.where(finite, values, np.nan))) + 1
    best = float(values[best_epoch - 1])
    top = _ceiling(values[finite], ceiling)
    reason = _why_not(values, finite, horizon, max(_LEAST_POINTS, degree + 1))
    if reason is not None:
        return Forecast(epoch=best_epoch, score=best, interval=None, reason=reason)
    now = len(values)
    epochs = (np.flatnonzero(finite) + 1).astype(np.float64)
    ends, when = _draw(epochs, values[finite], now, horizon, degree, best, top)
    low, score, high = np.quantile(ends, (_QUANTILES[0], 0.5, _QUANTILES[1]))
    quantiles = np.quantile(ends, LEVELS)
    return Forecast(
        epoch=int(np.clip(round(float(np.median(when))), now, horizon)),
        score=float(score),
        interval=(float(low), float(high)),
        reason=None,
        quantiles=tuple(quantiles.tolist()),
    )


def _ceiling(values: Array, ceiling: float | None) -> float:
    if ceiling is not None:
        if values.max() > ceiling:
            raise ValueError(f"a score of {values.max()} exceeds ceiling={ceiling}")
        return ceiling
    if values.max() <= 0:
        return 0.0
    return 1.0 if values.min() >= 0 and values.max() <= 1 else math.inf


def _why_not(values: Array, finite: NDArray[np.bool_], horizon: int, least: int) -> str | None:
    """Say why a forecast would be worth nothing, or None."""
    if len(values) >= horizon:
        return f"no epoch is left: {len(values)} of {horizon} are over"
    if finite.sum() < least:
        return f"too few points: {finite.sum()} finite scores, {least} are needed"
    if finite.mean() < 0.5 or not finite[-3:].any():
        return f"{(~finite).sum()} of {len(values)} scores are not finite"
    seen = values[finite]
    noise, spread = _noise(seen), float(np.ptp(seen))
    if spread <= 1e-6 * max(1e-3, float(np.abs(seen).max())):
        return "the curve is flat"
    third = max(2, len(seen) // 3)
    change = float(np.median(seen[-third:]) - np.median(seen[:third]))
    # A pure noise has a standard deviation equal to the noise that its neighbours' differences show.
    if seen.std() < 1.3 * noise and abs(change) < 2.5 * noise / math.sqrt(third):
        return "the curve is flat: it moves no more than its noise"
    climbed = float(seen.max() - seen[0])
    if climbed < max(3 * noise, 0.1 * spread) and -change > max(3 * noise, 0.3 * spread):
        return "the curve diverges: it has been falling almost from the start"
    return None


def _noise(values: Array) -> float:
    """Estimate the noise of neighbouring values, whatever the trend: robustly, from second differences."""
    bends = np.diff(values, 2)
    usual = 1.4826 * float(np.median(np.abs(bends)))
    return math.sqrt(float(np.mean(np.minimum(bends**2, (3 * usual) ** 2))) / 6)


@dataclass(frozen=True, kw_only=True)
class _Models:
    """A grid of quotients: for each the degree of ``Q``, its rate ``c``, and which further term its numerator has.

    The functions whose sum is the curve are 1, ``1 / Q`` and, by ``form``: nothing (0, it settles), ``c t / Q`` (1, it
    overshoots), ``t / (1 + t)`` (2, it drifts).
    """

    degree: Array
    rate: Array
    form: NDArray[np.int64]

    @classmethod
    def up_to(cls, degree: int) -> _Models:
        """Return every quotient whose polynomials stay within a degree."""
        kinds = [(k, 0) for k in _DEGREES if k <= degree]
        kinds += [(k, 1) for k in _DEGREES if 2 <= k <= degree]
        kinds += [(k, 2) for k in _DEGREES if k + 1 <= degree]  # 1 + t joins the denominator
        grid = [(k, rate, form) for k, form in kinds for rate in _RATES]
        degrees, rates, forms = zip(*grid, strict=True)
        return cls(degree=np.array(degrees, float), rate=np.array(rates), form=np.array(forms))

    @property
    def family(self) -> NDArray[np.int64]:
        """Number the combinations of degree and form."""
        return np.asarray(self.degree * 3 + self.form, dtype=np.int64)

    def basis(self, t: Array) -> Array:
        """Return the three functions' values: (models, places, 3)."""
        reach = self.rate[:, None] * t
        powers = np.arange(max(_DEGREES) + 1)[:, None, None]
        terms = np.cumprod(np.where(powers == 0, 1, reach / np.maximum(powers, 1)), axis=0)
        settled = 1 / np.where(powers <= self.degree[:, None], terms, 0).sum(0)
        further = np.where(self.form[:, None] == 1, reach * settled, t / (1 + t))
        return np.stack([np.ones_like(settled), settled, np.where(self.form[:, None] == 0, 0, further)], axis=-1)


@dataclass(frozen=True, kw_only=True)
class _Average:
    """Each model's share, and the normal posterior of its coefficients around ``level``."""

    models: _Models
    shares: Array  # (models,)
    means: Array  # (models, 3)
    factors: Array  # (models, 3, 3): times its transpose, the covariance
    level: float
    noise: float

    def mean(self, t: Array) -> Array:
        """Return the averaged curve."""
        curves = np.einsum("mti,mi->mt", self.models.basis(t), self.means)
        return np.asarray(self.level + self.shares @ curves)


def _draw(
    epochs: Array, values: Array, now: int, horizon: int, degree: int, best: float, top: float
) -> tuple[Array, Array]:
    """Draw the run's best score and its epoch many times over."""
    average = _fitted(epochs / horizon, values, degree)
    places = np.unique(np.linspace(now + 1, horizon, min(_PLACES, horizon - now)).round())
    per_place = (horizon - now) / len(places)
    generator = np.random.default_rng(0)
    models = generator.choice(len(average.shares), size=_DRAWS, p=average.shares)
    normal = generator.standard_normal((_DRAWS, 3))
    numerators = average.means[models] + np.einsum("dij,dj->di", average.factors[models], normal)
    curves = average.level + np.einsum("dti,di->dt", average.models.basis(places / horizon)[models], numerators)
    # The best of `per_place` epochs' noise at once: the largest of that many normal numbers.
    noise = ndtri(generator.uniform(1e-6, 1 - 1e-6, curves.shape) ** (1 / per_place))
    # The size of the noise is itself known from few epochs only.
    freedom = len(values) / 2
    size = average.noise * np.sqrt(freedom / generator.chisquare(freedom, (_DRAWS, 1)))
    curves = np.minimum(curves + size * noise, top)
    ahead = curves.max(1)
    return np.maximum(ahead, best), np.where(ahead > best, places[curves.argmax(1)], now)


def _fitted(t: Array, values: Array, degree: int) -> _Average:
    """Average all quotients, twice: the second time knowing the residuals, their outliers and how alike they are."""
    models = _Models.up_to(degree)
    basis = models.basis(t)
    level = float(np.median(values[-max(3, len(values) // 4) :]))
    rise = max(float(np.ptp(median_filter(values, size=3, mode="nearest"))), 1e-9)
    least_noise = noise = max(_noise(values), 1e-3 * rise)
    prior = _prior(models, rise, _FARTHEST * (1 - float(t[-1])))
    kept = len(t) - max(2, len(t) // 4)
    weights, likeness = _weights(values - median_filter(values, size=5, mode="nearest"), noise), 1.0
    average: _Average | None = None
    for _ in range(2):
        precision = weights / (likeness * noise**2)
        evidence, means, factors = _posterior(basis, values - level, precision, prior)
        without_end = _posterior(basis[:, :kept], values[:kept] - level, precision[:kept], prior)[0]
        shares = _shares(evidence, without_end, models.family)
        average = _Average(models=models, shares=shares, means=means, factors=factors, level=level, noise=noise)
        residuals = values - average.mean(t)
        spread = float(np.median(np.abs(residuals))) / 0.6745
        noise = max(spread, least_noise)
        weights = _weights(residuals, noise)
        # Neighbouring residuals of real curves are alike; counted as independent they would feign knowledge.
        clipped = np.clip(residuals, -3 * noise, 3 * noise)
        alike = float(clipped[1:] @ clipped[:-1]) / max(float(clipped @ clipped), 1e-30)
        likeness = float(np.clip((1 + alike) / (1 - min(alike, 0.9)), 1, 8))
    assert average is not None
    return average


def _weights(residuals: Array, noise: float) -> Array:
    """Weigh down what is too far off to be noise."""
    return np.asarray(1 / np.maximum(1, np.abs(residuals) / (2.5 * noise)) ** 2)


def _prior(models: _Models, rise: float, farthest: float) -> Array:
    """Return the precision of the coefficients before any score: above all, how far off the end of the run may be."""
    end = models.basis(np.ones(1))[:, 0]
    far = np.einsum("mi,mj->mij", end, end) / (farthest * rise) ** 2
    return np.asarray(far + np.eye(3) / (5 * rise) ** 2)


def _posterior(basis: Array, targets: Array, precision: Array, prior: Array) -> tuple[Array, Array, Array]:
    """Return each model's log evidence, and the mean and covariance factor of its coefficients."""
    weighted = basis * precision[:, None]
    total = prior + weighted.swapaxes(1, 2) @ basis
    right = np.einsum("mti,t->mi", weighted, targets)
    means = np.linalg.solve(total, right[..., None])[..., 0]
    explained = np.einsum("mi,mi->m", right, means)
    evidence = 0.5 * (explained - np.linalg.slogdet(total)[1] + np.linalg.slogdet(prior)[1])
    return evidence, means, np.linalg.inv(np.linalg.cholesky(total)).swapaxes(1, 2)


def _shares(evidence: Array, without_end: Array, family: NDArray[np.int64]) -> Array:
    """Weigh families by their prediction of the held-out end, and the members of each by evidence."""
    logs = np.empty_like(evidence)
    for number in np.unique(family):
        own = family == number
        logs[own] = evidence[own] - float(logsumexp(without_end[own])) + math.log(_FAVOUR[number % 3])
    return np.asarray(np.exp(logs - float(logsumexp(logs))))
