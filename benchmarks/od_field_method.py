"""The field's present way of measuring optical density, as plain NumPy: what ours is compared with.

One reading each 5 s: LED on, 0.125 s of waiting, 40 single conversions at golden-ratio gaps within 0.85 s, smallest and
largest dropped, a constant and a sine of the nominal mains frequency fitted, one dark batch from the start of the run
subtracted. Written from the description of Pioreactor 26.7 (background job od_reading), unsmoothed. 50 or 60 Hz is
decided at start by Akaike's criterion over ten conversions; the dark batch comes before that and has no sine removed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .od_light import Array, Light

INTERVAL_S = 5.0
SETTLE_S = 0.125
SAMPLES = 40
SPAN_S = 0.85
TUNE_SAMPLES = 10
TUNE_SPAN_S = 0.25
GOLDEN = 0.618034
FITTED = 3  # constant, sine, cosine
# How long one conversion of its converters takes: ADS111x at 128/s; RP2040 (1024 samples; its running mean left out).
CONVERSIONS_S = {"ADS111x": 1 / 128, "RP2040": 2.05e-3}


def sample_times(begin_s: float, count: int, span_s: float, conversion_s: float) -> Array:
    """When the conversions of one batch begin: the gap after number k is span/(count-1) times (k golden) mod 1, or the
    conversion itself where that is longer."""
    gaps = np.maximum(span_s / (count - 1) * (np.arange(1, count) * GOLDEN % 1), conversion_s)
    return begin_s + np.concatenate([[0.0], np.cumsum(gaps)])


def fit_sine(time_s: Array, volts: Array, mains_hz: float) -> tuple[float, float]:
    """Constant of the fit constant + sine + cosine at a known frequency, and the sum of squared residuals."""
    turn = 2 * np.pi * mains_hz * time_s
    design = np.column_stack([np.ones_like(turn), np.sin(turn), np.cos(turn)])
    solution, *_ = np.linalg.lstsq(design, volts, rcond=None)
    return float(solution[0]), float(np.sum((volts - design @ solution) ** 2))


def trim(time_s: Array, volts: Array) -> tuple[Array, Array]:
    """Without one smallest and one largest."""
    keep = np.ones(len(volts), bool)
    keep[[int(np.argmin(volts)), int(np.argmax(volts))]] = False
    return time_s[keep], volts[keep]


class Field(NamedTuple):
    """Readings of a run: when the last conversion of each ended, its value, and the standard error that the spread of
    its samples gives (the field publishes none)."""

    times: Array
    values: Array
    errors: Array


def batch(
    light: Light, begin_s: float, count: int, span_s: float, conversion_s: float, lit: bool
) -> tuple[Array, Array]:
    """Middles of the conversions of one batch, and their volts."""
    start_s = sample_times(begin_s, count, span_s, conversion_s)
    return start_s + 0.5 * conversion_s, light.measure(start_s, start_s + conversion_s, np.full(count, float(lit)))


def reading(time_s: Array, volts: Array, mains_hz: float, dark_v: float) -> tuple[float, float]:
    """Value of one lit batch, and its standard error."""
    time_s, volts = trim(time_s, volts)
    level, squares = fit_sine(time_s, volts, mains_hz)
    return max(level - dark_v, 0.0), float(np.sqrt(squares / (len(volts) - FITTED) / len(volts)))


def field_method(light: Light, converter: str = "ADS111x", mains_hz: float = 0.0) -> Field:
    """Readings of a run. `mains_hz` 0: decided at start."""
    conversion_s = CONVERSIONS_S[converter]
    dark_v = float(np.mean(trim(*batch(light, 0.0, SAMPLES, SPAN_S, conversion_s, lit=False))[1]))
    tune_s, tune_v = batch(light, 1.0 + SETTLE_S, TUNE_SAMPLES, TUNE_SPAN_S, conversion_s, lit=True)
    if not mains_hz:
        mains_hz = min(
            (50.0, 60.0), key=lambda hz: fit_sine(tune_s, tune_v, hz)[1]
        )  # equal counts: AIC is the residual
    times, found = [], []
    for begin_s in np.arange(INTERVAL_S, light.seconds - 1.0, INTERVAL_S):
        time_s, volts = batch(light, begin_s + SETTLE_S, SAMPLES, SPAN_S, conversion_s, lit=True)
        times.append(time_s[-1] + 0.5 * conversion_s)
        found.append(reading(time_s - begin_s, volts, mains_hz, dark_v))
    return Field(np.array(times), *np.array(found).T)
