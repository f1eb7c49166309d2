"""Quotients of two polynomials: fitting, derivative and bounds.

Coefficients are in ascending powers of ``x`` everywhere, as in ``numpy.polynomial``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.polynomial import Polynomial, polynomial
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import lsq_linear

Coefficients = NDArray[np.float64]

_REWEIGHTINGS = 6


def quotient_regression(
    x: ArrayLike, y: ArrayLike, degree_p: int, degree_q: int, *, until: float | None = None
) -> tuple[Coefficients, Coefficients]:
    """Fit ``y = P(x) / Q(x)`` by least squares, without a pole between the first ``x`` and the last.

    The equation ``P(x) - y Q(x) = 0`` is solved on an axis scaled to 0 .. 1 and reweighted by the last ``1 / Q``, so
    that its error becomes that of the quotient (Sanathanan and Koerner, 1963). If noise puts a root of ``Q`` into the
    interval, the fit is repeated with ``Q`` increasing in every power.

    Args:
        x: Positions; points where either value is not finite are left out.
        y: The values, of the same number.
        degree_p: Degree of the numerator, at least 0.
        degree_q: Degree of the denominator, at least 0.
        until: Exclude poles up to here, too, if it is beyond the last ``x``.

    Returns:
        The coefficients of ``P`` and ``Q`` in ascending powers; ``Q`` is 1 at the first ``x``.

    Raises:
        ValueError: If a degree is negative, the lengths differ, or fewer points than coefficients are left.
    """
    all_places, all_values = _line(x), _line(y)
    if degree_p < 0 or degree_q < 0:
        raise ValueError(f"degrees must not be negative, got {degree_p} and {degree_q}")
    if all_places.shape != all_values.shape:
        raise ValueError(f"x and y differ in length: {len(all_places)} and {len(all_values)}")
    finite = np.isfinite(all_places) & np.isfinite(all_values)
    places, values = all_places[finite], all_values[finite]
    count, given = degree_p + degree_q + 1, len(np.unique(places))
    if given < count:
        raise ValueError(f"{count} coefficients need {count} finite points at distinct x, got {given}")
    start, stop = float(places.min()), float(places.max())
    span = (stop if until is None else max(stop, until)) - start or 1.0
    # Shifting the values by a constant adds a multiple of Q to P, for which the degree of P must be sufficient.
    level = float(values.mean()) if degree_p >= degree_q else 0.0
    size = float(np.abs(values - level).max()) or 1.0
    t, z = (places - start) / span, (values - level) / size
    p, q = _fit(t, z, degree_p, degree_q, np.full(degree_q, -np.inf))
    if _has_root(q, 0.0, 1.0):
        p, q = _fit(t, z, degree_p, degree_q, np.zeros(degree_q))
    p = np.asarray(polynomial.polyadd(size * p, level * q), dtype=np.float64)
    to_t = Polynomial([-start / span, 1 / span])
    return _composed(p, to_t), _composed(q, to_t)


def quotient_derivative(
    p: Sequence[float] | Coefficients, q: Sequence[float] | Coefficients
) -> tuple[Coefficients, Coefficients]:
    """Differentiate ``P / Q``.

    Args:
        p: Coefficients of the numerator, ascending.
        q: Coefficients of the denominator, ascending.

    Returns:
        Numerator ``P' Q - P Q'`` and denominator ``Q ** 2``, ascending.
    """
    numerator = polynomial.polysub(
        polynomial.polymul(polynomial.polyder(p), q), polynomial.polymul(p, polynomial.polyder(q))
    )
    return np.asarray(numerator, dtype=np.float64), np.asarray(polynomial.polymul(q, q), dtype=np.float64)


def quotient_bounds(
    p: Sequence[float] | Coefficients, q: Sequence[float] | Coefficients, lower: float, upper: float
) -> tuple[float, float]:
    """Return the smallest and the largest value of ``P / Q`` between two positions.

    Args:
        p: Coefficients of the numerator, ascending.
        q: Coefficients of the denominator, ascending.
        lower: First position.
        upper: Last position, not before the first.

    Raises:
        ValueError: If the positions are in the wrong order, or the quotient has a pole between them.
    """
    if not lower <= upper:
        raise ValueError(f"expected lower <= upper, got {lower} and {upper}")
    if _has_root(np.asarray(q, dtype=np.float64), lower, upper):
        raise ValueError(f"the quotient has a pole between {lower} and {upper}: it has no bounds there")
    turning = _real_roots(quotient_derivative(p, q)[0])
    places = np.array([lower, upper, *turning[(turning > lower) & (turning < upper)]])
    values = polynomial.polyval(places, p) / polynomial.polyval(places, q)
    return float(values.min()), float(values.max())


def _line(values: ArrayLike) -> Coefficients:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _fit(
    t: Coefficients, z: Coefficients, degree_p: int, degree_q: int, q_from: Coefficients
) -> tuple[Coefficients, Coefficients]:
    """Solve for the coefficients on the scaled axis, those of ``Q`` from ``q_from`` upwards, its first fixed at 1."""
    powers = polynomial.polyvander(t, max(degree_p, degree_q))
    system = np.hstack([powers[:, : degree_p + 1], -z[:, None] * powers[:, 1 : degree_q + 1]])
    bounded = bool(np.isfinite(q_from).any())
    bounds = (np.concatenate([np.full(degree_p + 1, -np.inf), q_from]), np.inf)
    q = np.ones(1)
    solution = np.zeros(system.shape[1])
    for _ in range(_REWEIGHTINGS if degree_q else 1):
        values = polynomial.polyval(t, q)
        weight = 1 / np.maximum(np.abs(values), 1e-6 * np.abs(values).max())
        left, right = system * weight[:, None], z * weight
        solution = lsq_linear(left, right, bounds).x if bounded else np.linalg.lstsq(left, right, rcond=None)[0]
        q = np.concatenate([[1.0], solution[degree_p + 1 :]])
    return solution[: degree_p + 1], q


def _composed(coefficients: Coefficients, inner: Polynomial) -> Coefficients:
    composed = Polynomial(coefficients)(inner)
    return np.asarray(getattr(composed, "coef", [composed]), dtype=np.float64)


def _real_roots(coefficients: Coefficients) -> Coefficients:
    coefficients = np.trim_zeros(np.asarray(coefficients, dtype=np.float64), "b")
    if len(coefficients) < 2:
        return np.empty(0)
    roots = polynomial.polyroots(coefficients)
    return np.asarray(roots.real[np.abs(roots.imag) <= 1e-9 * np.maximum(1, np.abs(roots))])


def _has_root(coefficients: Coefficients, lower: float, upper: float) -> bool:
    roots = _real_roots(coefficients)
    ends = polynomial.polyval(np.array([lower, upper]), coefficients)
    return bool(((roots >= lower) & (roots <= upper)).any() or ends.prod() <= 0)
