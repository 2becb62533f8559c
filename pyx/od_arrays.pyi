"""The loop's own OD estimators on NumPy arrays; see docs/optical-density.md. Never loaded by the worker.

Synchronization: none; an object belongs to one thread at a time. Channels are 0..3; phases are 0 off, 1 on, 2 edge.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

STATE_BYTES: int

def choose_half_cycle(
    rate_hz: float,
    mains_hz: float = 0.0,
    rpm: float = 0.0,
    low: int = ...,
    high: int = ...,
    discard: int = 1,
    aperture: float = 1.0,
    pwm_hz: float = 0.0,
) -> int:
    """Conversions in half a chop cycle, k in low..high, with the least `chop_cost`. 0 stands for unknown.

    `discard` of each half-cycle are not used; `aperture` is the share of the time in which the converter integrates.
    """

def chop_cost(
    rate_hz: float,
    k: int,
    mains_hz: float = 0.0,
    rpm: float = 0.0,
    discard: int = 1,
    aperture: float = 1.0,
    pwm_hz: float = 0.0,
) -> float:
    """Variance against an always-on mean, times what mains, stirrer, PWM and ambient light add (IS-16, 17, 19, 30)."""

def chop_gain(frequency_hz: float, rate_hz: float, k: int, discard: int = 1, aperture: float = 1.0) -> float:
    """|response| of one on half-cycle minus the mean of its off neighbours to a sinusoid."""

def chop_price(
    rate_hz: float, k: int, window_s: float = 1.0, mains_hz: float = 50.0, discarded: int = 1
) -> dict[str, float]:
    """What a light that is chopped every `k` conversions costs a window: `noise_over_b0` of the chain, the bounds
    `b1_over_b0` and `b2_over_b0`, the efficiencies (of variances) against both, and `freedom`, the degrees of freedom
    of `se_culture` (pyx/od_price.pxd). Raises ValueError for values out of their bounds."""

def chop_rejection_db(
    frequency_hz: float, rate_hz: float, k: int, window_s: float, discard: int = 1, aperture: float = 1.0
) -> float:
    """What is left of ambient light that varies at a frequency in the mean over a window, as 20 log10 of its share."""

def classify(
    edges_ns: ArrayLike,
    levels: ArrayLike,
    starts_ns: ArrayLike,
    ends_ns: ArrayLike,
    guard_ns: int = 30000,
    settle_ns: int = 0,
) -> NDArray[np.uint8]:
    """Phase of each conversion [start, end]. `edges_ns` (n, 2): before and after each write; `levels` (n,): 1 on."""

def tukey_mean(values: ArrayLike, scale: float, start: float = ...) -> tuple[float, float]:
    """Tukey's biweight (4.685) with a given scale, from `start` or the median: mean, share of weight left."""

def median(values: ArrayLike) -> float: ...
def winsorised_scale(values: ArrayLike, centre: float, start: float) -> float:
    """Standard deviation with deviations cut at 2.5 of it, four turns from `start`."""

def culture_density(means: Iterable[float], block_s: float = 1.0) -> tuple[float, float, float]:
    """Spectral density near zero (unit^2 s), slope (unit/s) and its standard error, of at most the last 60 means."""

class ConverterClock:
    """A line through a converter's ready stamps. Times in ns."""

    def __init__(self, rate_hz: float) -> None: ...
    def push(self, index: ArrayLike, ready_ns: ArrayLike) -> bool: ...
    def end_ns(self, index: int) -> int: ...
    @property
    def next_ns(self) -> int: ...
    @property
    def rate_hz(self) -> float: ...
    @property
    def period_ns(self) -> float: ...
    @property
    def jitter_ns(self) -> float: ...
    @property
    def locked(self) -> bool: ...
    @property
    def relocks(self) -> int: ...

class MainsTracker:
    """Mains hum of one photodiode: frequency, phasors, subtraction. `forced_hz` 0 finds out whether it is 50 or 60."""

    def __init__(self, forced_hz: float = 0.0) -> None: ...
    def push(self, values: ArrayLike, learn: ArrayLike, period_ns: float) -> NDArray[np.float64]:
        """Volts at equal distances; learns where `learn` is 1 (LED off). Returns them without the hum."""

    @property
    def frequency_hz(self) -> float: ...
    @property
    def nominal_hz(self) -> float: ...
    @property
    def deviation_hz(self) -> float: ...
    @property
    def locked(self) -> bool: ...
    @property
    def decided(self) -> bool: ...
    @property
    def amplitudes(self) -> list[float]: ...

class OdChain:
    """The whole chain, as the sampling thread runs it: conversions in, readings out.

    `roles`: "signal", "reference" or "unused" for each channel. `slower`: (readings a second, window in s) of up to
    three more rates. `correlation`: of neighbouring conversions' noise, 0 but for a running mean. ValueError for what
    is out of bounds.
    """

    def __init__(
        self,
        roles: Sequence[Literal["signal", "reference", "unused"]],
        angles: Sequence[int] = ...,
        window_s: float = 1.0,
        readings_per_second: float = 10.0,
        mains_hz: float = 0.0,
        normalization: Literal["unity", "classic", "regressed"] = "unity",
        slower: Sequence[tuple[float, float]] = (),
        correlation: float = 0.0,
    ) -> None: ...
    def clock(self, channel: int, index0: int, t0_ns: int, period_ns: float) -> None:
        """Clock model from here on: conversion `index0` ended at `t0_ns`, one each `period_ns`."""

    def gain(self, channel: int, volts_per_code: float) -> None: ...
    def blank(self, channel: int, value: float) -> None:
        """Subtract `value` from here on; NaN subtracts nothing."""

    def turn(self, turn_s: float) -> None:
        """Time of a turn of the stirrer from here on; 0 when it does not turn."""

    def led(self, intensity_percent: float) -> None: ...
    def push(
        self, channel: ArrayLike, index: ArrayLike, code: ArrayLike, phase: ArrayLike, clipped: ArrayLike | None = None
    ) -> NDArray[Any]:
        """Conversions in order; the readings they made, as an array of `READING_DTYPE`."""

    def state(self) -> bytes:
        """All of the chain's memory, STATE_BYTES long; `restore` goes on from it bit by bit."""

    def restore(self, state: bytes) -> None: ...
    def inspect(self, channel: int = 0) -> dict[str, Any]:
        """What the chain holds: differences, weights, scales (volts), mains, counters."""
