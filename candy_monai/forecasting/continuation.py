"""Extrapolate a curve with hardly any noise: smooth families are fitted, and weighted by their fit.

Scores whose residuals are tiny relative to their range determine their continuation. The corrections learned from real,
noisy runs do not apply to such curves, so that `candy_monai.forecasting.best_score` blends in this fit, with a weight
that increases as the residuals decrease; at the noise of real runs it is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import ndtri, softmax
from scipy.stats import chi2

from candy_monai.forecasting.curve import SeenCurve

Array = NDArray[np.float64]

NOISE_FULLY_TRUSTED, NOISE_NOT_TRUSTED = 0.0001, 0.001
"""In ranges of the scores: with residuals up to the first the fit has weight 1, from the second on weight 0."""
_ROUNDING = 1e-9
_LEAST_NOISE = 1e-6
_LEAST_ERROR = 2e-4  # in ranges of the scores: the minimum error of a continuation
_LEAST_POINTS = 6
_SPARE_POINTS = 2  # more scores than coefficients
_NOISE_LEVEL = 0.05  # one-sided confidence level for the noise: few residuals may be small by chance
_WORTH_REFINING = 0.05  # of the range: the residuals of the best fit on a grid
_WORTH_FITTING = 0.0015  # of the range: the noise estimated from differences
_HELD_OUT = 0.25


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """The best future score according to the fits."""

    score: float  # including the effect of the noise of those epochs
    error: float  # its standard error, above 0
    epoch: int  # of this value
    trust: float  # the weight of the fit in a forecast, 0 to 1

    def quantiles(self, levels: Array) -> Array:
        """Return the score's quantiles at ``levels`` between 0 and 1."""
        return np.asarray(self.score + self.error * ndtri(levels))


@dataclass(frozen=True, kw_only=True)
class _Family:
    """A sum of functions of the position, some of which depend on a few shape parameters, all given as logarithms."""

    functions: Callable[[Array, Array], list[Array]]
    grids: tuple[Array, ...]

    def basis(self, t: Array, shape: Array) -> Array:
        """Return the functions' values (places, functions) at positions ``t``, 1 at the last score."""
        columns = [np.ones_like(t), *self.functions(t, np.exp(shape))]
        return np.nan_to_num(np.stack(columns, axis=1), posinf=1e30, neginf=-1e30)


_RATES = np.log(np.geomspace(0.5, 30, 24))
_FEW_RATES = _RATES[::3]
_FAMILIES = (
    _Family(functions=lambda t, s: [np.exp(-s[0] * t)], grids=(_RATES,)),  # saturates
    _Family(functions=lambda t, s: [np.exp(-s[0] * t), t * np.exp(-s[0] * t)], grids=(_RATES,)),  # peaks, overshoots
    _Family(functions=lambda t, s: [np.exp(-s[0] * t), t], grids=(_RATES,)),  # drifts
    _Family(functions=lambda t, s: [np.exp(-s[0] * t), np.exp(-(s[0] + s[1]) * t)], grids=(_FEW_RATES, _FEW_RATES)),
    _Family(functions=lambda t, s: [t, t**2], grids=()),
    _Family(functions=lambda t, s: [np.log(t + s[0])], grids=(np.log(np.geomspace(1e-4, 3, 12)),)),
    _Family(  # a power law
        functions=lambda t, s: [((s[0] + t) / (s[0] + 1)) ** -s[1]],
        grids=(np.log(np.geomspace(1e-5, 3, 9)), np.log(np.geomspace(0.1, 4, 6))),
    ),
    _Family(  # an S: the logistic function
        functions=lambda t, s: [1 / (1 + s[1] * np.exp(-s[0] * t))],
        grids=(_FEW_RATES, np.log(np.geomspace(0.1, 1000, 8))),
    ),
    _Family(  # a stretched exponential
        functions=lambda t, s: [np.exp(-((s[0] * t) ** s[1]))], grids=(_FEW_RATES, np.log(np.geomspace(0.3, 3, 6)))
    ),
    _Family(  # a bell
        functions=lambda t, s: [np.exp(-(((t - s[0]) / s[1]) ** 2))],
        grids=(np.log(np.geomspace(0.3, 3, 8)), np.log(np.geomspace(0.3, 3, 6))),
    ),
    _Family(  # a quotient of quadratic polynomials: no pole, since all coefficients of the denominator are positive
        functions=lambda t, s: [f / (1 + s[0] * t + s[1] * t**2) for f in (np.ones_like(t), t)],
        grids=(np.log(np.geomspace(1e-3, 100, 6)), np.log(np.geomspace(1e-3, 1000, 7))),
    ),
)


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """A family's fit: its residuals' standard deviation, its curve, and the covariance of its parameters."""

    noise: float
    coefficients: int
    curve: Array  # at all places
    jacobian: Array  # (places, coefficients)
    covariance: Array  # in units of the noise's variance

    def weight(self, count: int) -> float:
        """Return the logarithm of the evidence, by the Bayesian information criterion."""
        return -count * math.log(max(self.noise, _LEAST_NOISE)) - 0.5 * self.coefficients * math.log(count)


def continuation(curve: SeenCurve) -> Continuation | None:
    """Extrapolate scores by smooth families, over epochs and sums of learning rates; None if none fits."""
    epochs, values, now = curve.epochs, curve.values, curve.now
    size, count = curve.range, len(values)
    # All families fit a jump or a few steps between constant scores, which is uninformative.
    moves = np.count_nonzero(np.abs(np.diff(values)) > _ROUNDING * size)
    if count < _LEAST_POINTS or moves < _LEAST_POINTS - 1 or moves < 0.5 * count:
        return None
    # The rise of the first few scores is not relevant for how well a fit describes the others.
    later = max(float(np.ptp(values[count // 4 :])) / size, _ROUNDING)
    if _shown_noise(epochs, values) > _WORTH_FITTING * later * size:
        return None  # nearly all real runs: the fits would take time without effect
    seen = epochs.astype(int) - 1
    plain = np.arange(1, curve.horizon + 1) / curve.horizon
    axes = [plain] if np.allclose(curve.axis, plain) else [plain, curve.axis]
    level = float(values[-1])
    scaled = (values - level) / size
    fits = [fit for axis in axes for fit in _fits(axis / axis[seen[-1]], seen, scaled)]
    if not fits:
        return None
    shares = softmax(np.array([fit.weight(count) for fit in fits]))
    noise = math.sqrt(sum(s * _upper(f, count) ** 2 for s, f in zip(shares, fits, strict=True)))
    trust = _trust(noise / later)
    if not trust:
        return None
    mean = np.asarray(sum(s * f.curve for s, f in zip(shares, fits, strict=True)))[now:]
    at = int(mean.argmax())
    near = int((mean >= mean[at] - noise).sum())
    extra = noise * float(ndtri(0.5 ** (1 / near))) if noise > _LEAST_NOISE else 0.0
    tops = np.array([fit.curve[now:].max() for fit in fits])
    gradients = [fit.jacobian[now + at] for fit in fits]
    errors = np.array([g @ f.covariance @ g for g, f in zip(gradients, fits, strict=True)]) * noise**2
    variance = float(shares @ (errors + (tops - mean[at]) ** 2)) + noise**2 + _LEAST_ERROR**2
    variance += _held_out_error(axes, seen, scaled, now) ** 2
    return Continuation(
        score=level + size * (float(mean[at]) + extra),
        error=size * math.sqrt(variance),
        epoch=now + 1 + at,
        trust=trust,
    )


def _shown_noise(epochs: Array, values: Array) -> float:
    """Return the noise estimated from high-order differences, which are nearly 0 for a smooth curve; 0 if unknown."""
    if len(values) < 8 or np.ptp(np.diff(epochs)):
        return 0.0
    sizes = [float(np.median(np.abs(np.diff(values, k)))) / math.sqrt(math.comb(2 * k, k)) for k in (4, 6)]
    return min(sizes) / 0.6745


def _trust(noise: float) -> float:
    """Return the weight of fits with such residuals in the forecast, which falls smoothly from 1 to 0."""
    span = math.log(NOISE_NOT_TRUSTED / NOISE_FULLY_TRUSTED)
    share = min(max(math.log(NOISE_NOT_TRUSTED / max(noise, 1e-30)) / span, 0.0), 1.0)
    return share**2 * (3 - 2 * share)


def _upper(fit: _Fit, count: int) -> float:
    """Return the upper confidence limit of the noise: few residuals may be small by chance."""
    spare = count - fit.coefficients
    return fit.noise * math.sqrt(spare / float(chi2.ppf(_NOISE_LEVEL, spare)))


def _held_out_error(axes: list[Array], seen: NDArray[np.int64], scaled: Array, now: int) -> float:
    """Return the error at the last scores of a fit to those before; 0 if there is no such fit.

    The error is scaled down if the step ahead is smaller than the held-out one.
    """
    kept = len(seen) - max(1, int(_HELD_OUT * len(seen)))
    fits = [f for axis in axes for f in _fits(axis / axis[seen[-1]], seen[:kept], scaled[:kept])]
    if not fits:
        return 0.0
    best = max(fits, key=lambda fit: fit.weight(kept))
    error = float(np.abs(best.curve[seen[kept:]] - scaled[kept:]).max())
    ahead, held = len(axes[0]) / now, (seen[-1] + 1) / (seen[kept - 1] + 1)
    return error * min(1.0, math.log(ahead) / math.log(held))


def _fits(t: Array, seen: NDArray[np.int64], scaled: Array) -> list[_Fit]:
    """Fit each family for which there are enough scores, and return those that are close to them."""
    found = []
    for family in _FAMILIES:
        coefficients = family.basis(t[:1], np.zeros(2)).shape[1] + len(family.grids)
        if len(scaled) >= coefficients + _SPARE_POINTS:
            fit = _fitted(family, t, seen, scaled, coefficients)
            if fit is not None:
                found.append(fit)
    return found


def _fitted(family: _Family, t: Array, seen: NDArray[np.int64], scaled: Array, coefficients: int) -> _Fit | None:
    """Fit by variable projection: shape parameters by search, the rest by linear regression at each step."""
    places = t[seen]

    def residuals(shape: Array) -> Array:
        basis = family.basis(places, shape)
        return np.asarray(basis @ np.linalg.lstsq(basis, scaled, rcond=None)[0] - scaled)

    spare = len(scaled) - coefficients
    starts = [np.array(shape) for shape in product(*family.grids)]
    bases = np.stack([family.basis(places, shape) for shape in starts])
    orthogonal = np.linalg.qr(bases)[0]
    left = scaled - np.einsum("gti,gi->gt", orthogonal, np.einsum("gti,t->gi", orthogonal, scaled))
    sizes = np.sqrt((left**2).sum(1) / spare)
    start = int(sizes.argmin())
    if sizes[start] > _WORTH_REFINING:
        return None
    low = np.array([grid[0] for grid in family.grids]) - 0.1
    high = np.array([grid[-1] for grid in family.grids]) + 0.1
    shape = starts[start]
    if family.grids:
        shape = least_squares(residuals, shape, bounds=(low, high), xtol=1e-12, ftol=1e-12, gtol=1e-15, max_nfev=60).x
    noise = math.sqrt(float((residuals(shape) ** 2).sum()) / spare)
    basis = family.basis(t, shape)
    weights = np.linalg.lstsq(basis[seen], scaled, rcond=None)[0]
    step = 1e-5
    bends = [
        (family.basis(t, shape + step * unit) - family.basis(t, shape - step * unit)) @ weights / (2 * step)
        for unit in np.eye(len(shape))
    ]
    jacobian = np.column_stack([basis, *bends])
    own = jacobian[seen]
    return _Fit(
        noise=noise,
        coefficients=coefficients,
        curve=basis @ weights,
        jacobian=jacobian,
        covariance=np.linalg.pinv(own.T @ own, rcond=1e-14, hermitian=True),
    )
