"""The average of many quotients fitted to a curve, and the distribution of its best score.

The curve is modelled as a quotient of two polynomials in ``t``, the share of the run. The denominator is
``1 + c t + (c t)**2 / 2! + ...`` up to some degree: it has no pole ahead and runs from a hyperbola to nearly an
exponential. With the numerator the curve can settle, overshoot or drift. For each ``c`` on a grid the numerator is a
linear regression with a normal posterior; degrees and forms are weighted by how well they predict the held-out end of
the curve, and the ``c`` of each by evidence. Draws from the average, with the noise of future epochs, give the
distribution of the run's best score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.special import logsumexp, ndtri

from candy_monai.forecasting.curve import SeenCurve

Array = NDArray[np.float64]

_DRAWS = 400
_PLACES = 96  # future epochs at which curves are drawn; the noise of those between is included
_DEGREES = (1, 2, 5)
_RATES = np.geomspace(0.3, 300.0, 25)  # c: from a nearly straight curve to one that ends in a hundredth of the run
_FAVOUR = (1.0, 3.0, 2.0)  # settles, overshoots, drifts: most runs end lower than extrapolated
_FARTHEST = 0.5  # of the rise so far, times the share of the run that is left


def noise_of(values: Array) -> float:
    """Estimate the noise of neighbouring values, independently of the trend: robustly, from second differences."""
    if len(values) < 3:  # two points always fit a straight line
        return 0.0
    bends = np.diff(values, 2)
    usual = 1.4826 * float(np.median(np.abs(bends)))
    return math.sqrt(float(np.mean(np.minimum(bends**2, (3 * usual) ** 2))) / 6)


@dataclass(frozen=True, kw_only=True)
class _Models:
    """A grid of quotients: for each the degree of ``Q``, its rate ``c``, and the additional term of its numerator.

    The curve is a sum of the functions 1, ``1 / Q`` and, by ``form``: nothing (0, it settles), ``c t / Q`` (1, it
    overshoots), ``t / (1 + t)`` (2, it drifts).
    """

    degree: Array
    rate: Array
    form: NDArray[np.int64]

    @classmethod
    def up_to(cls, degree: int) -> _Models:
        """Return every quotient whose polynomials have at most the given degree."""
        kinds = [(k, 0) for k in _DEGREES if k <= degree]
        kinds += [(k, 1) for k in _DEGREES if 2 <= k <= degree]
        kinds += [(k, 2) for k in _DEGREES if k + 1 <= degree]  # 1 + t is a factor of the denominator
        grid = [(k, rate, form) for k, form in kinds for rate in _RATES]
        degrees, rates, forms = zip(*grid, strict=True)
        return cls(degree=np.array(degrees, float), rate=np.array(rates), form=np.array(forms))

    @property
    def family(self) -> NDArray[np.int64]:
        """The number of each model's combination of degree and form."""
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
    """Each model's weight, and the normal posterior of its coefficients around ``level``."""

    models: _Models
    shares: Array  # (models,)
    means: Array  # (models, 3)
    factors: Array  # (models, 3, 3): times its transpose, the covariance
    level: float
    noise: float


def draw_best(curve: SeenCurve, *, degree: int) -> tuple[Array, Array]:
    """Draw the run's best score and its epoch many times, from the average of all quotients.

    Returns:
        The best scores, none below the best so far or above the largest possible one, and their epochs; the current
        epoch where there is no gain.
    """
    axis, values, now, horizon = curve.axis, curve.values, curve.now, len(curve.axis)
    average = _fitted(axis[curve.epochs.astype(int) - 1], values, degree)
    places = np.unique(np.linspace(now + 1, horizon, min(_PLACES, horizon - now)).round()).astype(int)
    per_place = (horizon - now) / len(places)
    generator = np.random.default_rng(0)
    models = generator.choice(len(average.shares), size=_DRAWS, p=average.shares)
    normal = generator.standard_normal((_DRAWS, 3))
    numerators = average.means[models] + np.einsum("dij,dj->di", average.factors[models], normal)
    curves = average.level + np.einsum("dti,di->dt", average.models.basis(axis[places - 1])[models], numerators)
    # The best of `per_place` epochs' noise, drawn directly as the maximum of that many normal numbers.
    noise = ndtri(generator.uniform(1e-6, 1 - 1e-6, curves.shape) ** (1 / per_place))
    # The noise level is itself estimated from few epochs.
    freedom = len(values) / 2
    size = average.noise * np.sqrt(freedom / generator.chisquare(freedom, (_DRAWS, 1)))
    curves = np.minimum(curves + size * noise, curve.top)
    ahead = curves.max(1)
    return np.maximum(ahead, curve.best), np.where(ahead > curve.best, places[curves.argmax(1)], now)


def _fitted(t: Array, values: Array, degree: int) -> _Average:
    """Average all quotients in two passes, the second with the first one's residuals, outliers and autocorrelation."""
    models = _Models.up_to(degree)
    basis = models.basis(t)
    level = float(np.median(values[-max(3, len(values) // 4) :]))
    rise = max(float(np.ptp(median_filter(values, size=3, mode="nearest"))), 1e-9)
    least_noise = noise = max(noise_of(values), 1e-3 * rise)
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
        residuals = values - (level + shares @ np.einsum("mti,mi->mt", basis, means))
        spread = float(np.median(np.abs(residuals))) / 0.6745
        noise = max(spread, least_noise)
        weights = _weights(residuals, noise)
        # Neighbouring residuals of real curves are correlated; treating them as independent would be overconfident.
        clipped = np.clip(residuals, -3 * noise, 3 * noise)
        alike = float(clipped[1:] @ clipped[:-1]) / max(float(clipped @ clipped), 1e-30)
        likeness = float(np.clip((1 + alike) / (1 - min(alike, 0.9)), 1, 8))
    assert average is not None
    return average


def _weights(residuals: Array, noise: float) -> Array:
    """Return weights that are lower for outliers."""
    return np.asarray(1 / np.maximum(1, np.abs(residuals) / (2.5 * noise)) ** 2)


def _prior(models: _Models, rise: float, farthest: float) -> Array:
    """Return the prior precision of the coefficients, which mainly limits the value at the end of the run."""
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
    """Return the models' weights: of families by their prediction of the held-out end, within each by evidence."""
    logs = np.empty_like(evidence)
    for number in np.unique(family):
        own = family == number
        logs[own] = evidence[own] - float(logsumexp(without_end[own])) + math.log(_FAVOUR[number % 3])
    return np.asarray(np.exp(logs - float(logsumexp(logs))))
