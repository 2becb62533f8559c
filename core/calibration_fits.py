"""Fits of calibration curves and of the fused estimator to recorded standards, in the field's three kinds of curve.

All return the curve as the files have it: {"type", "coefficients"} and, for cubics, "knots". Bad input raises a
ValueError that names it. NumPy; never loaded by a worker.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

DEGREE_MAXIMUM = 5
KNOTS_MAXIMUM = 6
SIGMA_FLOOR = 0.04  # of ln V: what a fused estimator's scatter is at least
FUSION_LEVELS = 4
MAD_TO_SIGMA = 1.4826


def check_points(x: Sequence[float], y: Sequence[float], distinct: int = 2) -> tuple[Floats, Floats]:
    """The points as arrays in ascending x; ValueError names the first that is none."""
    if len(x) != len(y):
        raise ValueError(f"{len(x)} values of x and {len(y)} of y: each standard needs both")
    for number, (one, other) in enumerate(zip(x, y, strict=True), 1):
        if not math.isfinite(one) or not math.isfinite(other):
            raise ValueError(f"point {number} is ({one}, {other}), expected two finite numbers")
    found = len(set(x))
    if found < distinct:
        raise ValueError(f"{found} different values of x, this fit needs at least {distinct}")
    order = np.argsort(np.asarray(x, dtype=float), kind="stable")
    return np.asarray(x, dtype=float)[order], np.asarray(y, dtype=float)[order]


def aicc(squares: float, points: int, parameters: int) -> float:
    """Akaike's criterion corrected for few points (Hurvich & Tsai 1989); infinite where it does not exist."""
    if points <= parameters + 1:
        return math.inf
    correction = 2.0 * parameters * (parameters + 1) / (points - parameters - 1)
    return points * math.log(max(squares, np.finfo(float).tiny) / points) + 2.0 * parameters + correction


def fit_polynomial(x: Sequence[float], y: Sequence[float], degree: int | None = None) -> dict[str, Any]:
    """Least squares; without a degree the one from 1 to 5 with the least AICc. Coefficients: highest power first."""
    xs, ys = check_points(x, y)
    distinct = len(np.unique(xs))
    if degree is not None and not 1 <= degree < distinct:
        raise ValueError(f"degree {degree} with {distinct} different x: expected 1 to {distinct - 1}")
    best: tuple[float, Floats] | None = None
    for one in range(1, min(DEGREE_MAXIMUM, distinct - 1) + 1) if degree is None else (degree,):
        coefficients = np.polyfit(xs, ys, one)
        squares = float(np.sum((ys - np.polyval(coefficients, xs)) ** 2))
        score = aicc(squares, len(xs), one + 1)
        if best is None or score < best[0]:
            best = score, coefficients
    assert best is not None
    return {"type": "poly", "coefficients": best[1].tolist()}


def natural_pieces(knots: Floats, values: Floats) -> Floats:
    """(n - 1, 4) coefficients of the natural cubic spline through `values` (n, ...) at the knots."""
    n = len(knots)
    h = np.diff(knots)
    bend = np.zeros_like(values)
    if n > 2:
        matrix = np.diag(2.0 * (h[:-1] + h[1:])) + np.diag(h[1:-1], 1) + np.diag(h[1:-1], -1)
        slopes = np.diff(values, axis=0) / h.reshape(-1, *[1] * (values.ndim - 1))
        bend[1:-1] = np.linalg.solve(matrix, 6.0 * np.diff(slopes, axis=0))
    wide = h.reshape(-1, *[1] * (values.ndim - 1))
    slope = np.diff(values, axis=0) / wide - wide * (2.0 * bend[:-1] + bend[1:]) / 6.0
    return np.stack([values[:-1], slope, bend[:-1] / 2.0, np.diff(bend, axis=0) / (6.0 * wide)], axis=1)


def evaluate_pieces(knots: Floats, pieces: Floats, x: Floats) -> Floats:
    """Piecewise cubics (n - 1, 4, ...) at x; the first and the last go on beyond the knots."""
    at = np.clip(np.searchsorted(knots, x, side="right") - 1, 0, len(knots) - 2)
    u = (x - knots[at]).reshape(-1, *[1] * (pieces.ndim - 2))
    a, b, c, d = (pieces[at, power] for power in range(4))
    result: Floats = a + u * (b + u * (c + u * d))
    return result


def fit_spline(x: Sequence[float], y: Sequence[float], knots: int | None = None) -> dict[str, Any]:
    """Natural cubic regression spline: least squares for the values at knots that are quantiles of x.

    Without a number of knots the one from 2 to 6 with the least AICc."""
    xs, ys = check_points(x, y)
    distinct = len(np.unique(xs))
    if knots is not None and not 2 <= knots <= distinct:
        raise ValueError(f"{knots} knots with {distinct} different x: expected 2 to {distinct}")
    best: tuple[float, Floats, Floats] | None = None
    for one in range(2, min(KNOTS_MAXIMUM, distinct) + 1) if knots is None else (knots,):
        places = np.unique(np.quantile(xs, np.linspace(0.0, 1.0, one)))
        design = evaluate_pieces(places, natural_pieces(places, np.eye(len(places))), xs)
        values = np.asarray(np.linalg.lstsq(design, ys, rcond=None)[0], dtype=float)
        score = aicc(float(np.sum((ys - design @ values) ** 2)), len(xs), len(places))
        if best is None or score < best[0]:
            best = score, places, values
    assert best is not None
    _, places, values = best
    return {"type": "spline", "knots": places.tolist(), "coefficients": natural_pieces(places, values).tolist()}


def fit_akima(x: Sequence[float], y: Sequence[float], knots: int | None = None) -> dict[str, Any]:
    """Akima's interpolation (Akima 1970) through the means of the standards at each x, which are its knots."""
    if knots is not None:
        raise ValueError("an Akima curve goes through every standard: its knots cannot be chosen")
    xs, ys = check_points(x, y)
    places = np.unique(xs)
    values = np.array([ys[xs == place].mean() for place in places])
    h = np.diff(places)
    slopes = np.diff(values) / h
    if len(slopes) == 1:
        slope = np.full(2, slopes[0])
    else:
        before, after = 2.0 * slopes[0] - slopes[1], 2.0 * slopes[-1] - slopes[-2]
        wide = np.concatenate([[2.0 * before - slopes[0], before], slopes, [after, 2.0 * after - slopes[-1]]])
        change = np.abs(np.diff(wide))
        left, right = change[2:], change[:-2]
        total = left + right
        even = total == 0.0
        slope = np.where(
            even, 0.5 * (wide[1:-2] + wide[2:-1]), (left * wide[1:-2] + right * wide[2:-1]) / np.where(even, 1.0, total)
        )
    c = (3.0 * slopes - 2.0 * slope[:-1] - slope[1:]) / h
    d = (slope[:-1] + slope[1:] - 2.0 * slopes) / h**2
    pieces = np.stack([values[:-1], slope[:-1], c, d], axis=1)
    return {"type": "akima", "knots": places.tolist(), "coefficients": pieces.tolist()}


FITS = {"poly": fit_polynomial, "spline": fit_spline, "akima": fit_akima}


def parameters(curve: dict[str, Any]) -> int:
    """How many numbers were fitted."""
    return len(curve["coefficients"]) if curve["type"] == "poly" else len(curve["knots"])


def evaluate(curve: dict[str, Any], x: Sequence[float]) -> Floats:
    """y of a curve, in NumPy."""
    if curve["type"] == "poly":
        return np.asarray(np.polyval(np.asarray(curve["coefficients"], dtype=float), np.asarray(x, dtype=float)))
    knots, pieces = np.asarray(curve["knots"], dtype=float), np.asarray(curve["coefficients"], dtype=float)
    return evaluate_pieces(knots, pieces, np.asarray(x, dtype=float))


def residual_scale(curve: dict[str, Any], x: Sequence[float], y: Sequence[float]) -> float | None:
    """Standard deviation of the standards about the curve, unit of y; None where no standard is left over to tell."""
    free = len(x) - parameters(curve)
    if free < 1:
        return None
    return math.sqrt(float(np.sum((np.asarray(y, dtype=float) - evaluate(curve, x)) ** 2)) / free)


def fit_fusion(
    records: Iterable[tuple[str, float, float]], angles: Sequence[str], sigma_floor: float = SIGMA_FLOOR
) -> dict[str, Any]:
    """The fused estimator's curves from (angle, concentration, reading) of standards measured several times.

    Akima of mean ln V over log10 c, and of ln sigma with sigma = 1.4826 MAD of the replicates, at least `sigma_floor`.
    Blanks (concentration 0) have no logarithm and are left out.
    """
    mean: dict[str, dict[str, Any]] = {}
    log_sigma: dict[str, dict[str, Any]] = {}
    recorded: dict[str, dict[str, list[float]]] = {}
    levels: dict[str, dict[float, list[float]]] = {angle: {} for angle in angles}
    for angle, concentration, reading in records:
        if angle in levels and concentration > 0.0 and reading > 0.0:
            levels[angle].setdefault(math.log10(concentration), []).append(math.log(reading))
    for angle, of_angle in levels.items():
        if len(of_angle) < FUSION_LEVELS:
            raise ValueError(f"{len(of_angle)} concentrations at {angle}°, the estimator needs {FUSION_LEVELS} above 0")
        x = sorted(of_angle)
        y = [float(np.mean(of_angle[one])) for one in x]
        spread = [
            MAD_TO_SIGMA * float(np.median(np.abs(np.subtract(of_angle[one], np.median(of_angle[one]))))) for one in x
        ]
        mean[angle] = fit_akima(x, y)
        log_sigma[angle] = fit_akima(x, [math.log(max(one, sigma_floor)) for one in spread])
        recorded[angle] = {"x": x, "y": y}
    every = [x for of_angle in levels.values() for x in of_angle]
    return {
        "mu_splines": mean,
        "sigma_splines_log": log_sigma,
        "min_logc": min(every),
        "max_logc": max(every),
        "sigma_floor": sigma_floor,
        "recorded_data": {"by_angle": recorded},
    }
