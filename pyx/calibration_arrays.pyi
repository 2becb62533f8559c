"""Calibration curves and the fused estimate on NumPy arrays; see docs/calibration.md. Not loaded by the worker.

Synchronization: none; an object belongs to one thread at a time.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

INSIDE: int
BELOW: int
ABOVE: int
BEYOND: int
PIECES: int
COEFFICIENTS: int
CURVE_BYTES: int
FUSION_BYTES: int

class Curve:
    """One calibration curve. `data`: {"type": poly, spline or akima, "coefficients", "knots", "domain": [low, high],
    "ir_led_intensity", "residual"}. ValueError for what cannot be inverted on its domain."""

    def __init__(self, data: dict[str, Any]) -> None: ...
    @property
    def turns(self) -> NDArray[np.float64]:
        """(n, 2): x and y of the domain's ends and of the extrema within it."""

    def at(self, x: ArrayLike) -> NDArray[np.float64]:
        """(…, 3): y, slope and second derivative."""

    def inverse(self, y: ArrayLike, previous: float = ...) -> tuple[NDArray[np.float64], NDArray[np.intc]]:
        """x of each y in turn, and INSIDE, BELOW, ABOVE or BEYOND; each is the next one's `previous`."""

    def error(self, error_y: float, x: float) -> float:
        """Standard error of x from that of y."""

class FusedEstimator:
    """One concentration from several angles. `data` as in `stirbar.core.calibrations` (`fusion`)."""

    def __init__(self, data: dict[str, Any]) -> None: ...
    def cost(self, log_values: Sequence[float], log_concentration: float) -> float:
        """J, which the estimate minimises."""

    def estimate(
        self,
        log_values: Sequence[float],
        errors: Sequence[float] | None = None,
        culture: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """concentration, log_concentration, its standard errors (error, culture, model), edge: -1, 0 or 1, disagree."""

class ReferenceRegression:
    """One photodiode against the reference, second by second; `given` is a stored coefficient, NaN learns it."""

    def __init__(self, given: float = ...) -> None: ...
    def push(
        self, signal_v: ArrayLike, reference_v: ArrayLike, reference_se: ArrayLike, usable: ArrayLike | None = None
    ) -> NDArray[np.float64]:
        """Means of consecutive seconds; returns the values that they make (`ref_normalization = regressed`)."""

    def light(self) -> None:
        """The LED's drive is changed here."""

    def give(self, coefficient: float) -> None: ...
    @property
    def coefficient(self) -> float:
        """In force."""

    @property
    def learned(self) -> float:
        """NaN until a stretch was clear enough; shrunk towards 0 by how well it is known."""

    @property
    def learned_se(self) -> float: ...
    @property
    def stretches(self) -> int:
        """How many were clear enough."""
