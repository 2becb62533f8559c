"""The light path the slow, obvious way: the light integrated step by step, the fit by SciPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares


def periodic_light(tau_ns: float, half_ns: float, at_ns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light at times from an edge to on, -half..half, after it has been chopped for ever: 1 is the LED's level."""
    last = np.exp(-half_ns / tau_ns)
    lit = 1.0 - np.exp(-np.maximum(at_ns, 0.0) / tau_ns) / (1.0 + last)
    dark = np.exp(-(np.minimum(at_ns, 0.0) + half_ns) / tau_ns) / (1.0 + last)
    return np.where(at_ns >= 0.0, lit, dark)


def share(lag_ns: float, aperture_ns: float, half_ns: float, tau_ns: float, points: int = 20001) -> float:
    """Mean of the light over a conversion that begins `lag_ns` after the edge, by the trapezoidal rule."""
    times = lag_ns + np.linspace(0.0, aperture_ns, points)
    return float(np.trapezoid(periodic_light(tau_ns, half_ns, times), times) / aperture_ns)


def fit(
    lag_ns: NDArray[np.int64], codes: NDArray[np.int32], on: NDArray[np.uint8], aperture_ns: float, half_ns: float
) -> float:
    """Time constant of all conversions at once, ns: level, step and log tau by least squares."""

    def expected(log_tau: float) -> NDArray[np.float64]:
        tau = np.exp(log_tau)
        last = np.exp(-half_ns / tau)
        c = 1.0 / (1.0 + last)
        lag = lag_ns.astype(float)
        after = 1.0 - c * tau / aperture_ns * np.exp(-np.maximum(lag, 0.0) / tau) * (1.0 - np.exp(-aperture_ns / tau))
        seen = np.clip(lag + aperture_ns, 0.0, None)
        before = c * tau * (np.exp(-(np.minimum(lag, 0.0) + half_ns) / tau) - last)
        across = (before + seen - c * tau * (1.0 - np.exp(-seen / tau))) / aperture_ns
        grows = np.where(lag >= 0.0, after, across)
        return np.where(on == 1, grows, 1.0 - grows)

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(x[0] + x[1] * expected(x[2]) - codes)

    starts = [least_squares(residuals, [codes.min(), np.ptp(codes), np.log(t)]) for t in (1e5, 1e6, 1e7)]
    return float(np.exp(min(starts, key=lambda found: found.cost).x[2]))
