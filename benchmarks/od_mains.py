"""What the hum of the mains leaves in a reading: `python -m benchmarks.od_mains`.

Hum of 200/h codes at harmonics h = 1 to 6 of 50 and of 60 Hz, up to half a hertz off, on converters of 774 to 946
conversions a second, k for that mains; the worst of them. What is left is half the difference that the sign of the
hum makes, the noise being the same: its root mean square in standard errors of the reading, and in dB of the
fundamental. The field's method sees the same hum; its standard error is the spread of its readings without hum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from stirbar.core.bench import Row
from stirbar.rt.od_arrays import choose_half_cycle

from .od_field_method import CONVERSIONS_S, field_method
from .od_light import VOLTS_PER_CODE, Array, Light, at_windows, rms
from .od_report import main

NOISE_V = 5 * VOLTS_PER_CODE
HUM_V = 200 * VOLTS_PER_CODE
HARMONICS = range(1, 7)
OFFSETS_HZ = (-0.5, -0.2, 0.1, 0.5)
CONVERTERS_HZ = np.arange(774.0, 947.0, 21.5)
RATES = [(10.0, 0.1), (10.0, 0.2), (10.0, 0.5), (10.0, 1.0)]
SLOW_RATES = [(2.0, 2.0), (1.0, 5.0)]
BUDGETS_SE = {0.1: 0.5, 0.5: 0.2, 1.0: 0.2, 2.0: 0.2, 5.0: 0.2}  # or -80 dB from 0.5 s on
ENOUGH_DB, ENOUGH_FROM_S = -80.0, 0.5
SECONDS, SKIP_S = 60.0, 25.0
SEED = 3


class Left(NamedTuple):
    """What is left of the hum, and of which."""

    errors: float  # in standard errors
    decibel: float
    where: str


def hum(mains_hz: float, sign: float) -> Light:
    tones = {h * mains_hz: sign * HUM_V / h for h in HARMONICS}
    return Light(np.random.default_rng(SEED), SECONDS, noise_v=NOISE_V, tones=tones)


def left(plus: Array, minus: Array, error_v: float, where: str) -> Left:
    count = min(len(plus), len(minus))
    volts = rms(0.5 * (plus[-count:] - minus[-count:]))
    return Left(volts / error_v, 20 * np.log10(volts / (HUM_V / np.sqrt(2))), where)


def ours_left(nominal_hz: float, offset_hz: float, rate_hz: float) -> dict[float, Left]:
    """By window."""
    k = choose_half_cycle(rate_hz, nominal_hz)
    where = f"{nominal_hz + offset_hz:g} Hz at {rate_hz:g}/s, k {k}"
    found = {}
    for rates in (RATES, SLOW_RATES):
        plus, minus = (
            at_windows(hum(nominal_hz + offset_hz, sign), rates, SKIP_S, rate_hz=rate_hz, half_cycle=k)
            for sign in (1.0, -1.0)
        )
        for (_, window_s), a, b in zip(rates, plus, minus, strict=True):
            found[window_s] = left(a["value"], b["value"], float(np.median(a["se_instrument"])), where)
    return found


def field_left(nominal_hz: float, offset_hz: float, converter: str) -> Left:
    plus, minus, quiet = (field_method(hum(nominal_hz + offset_hz, s), converter).values for s in (1.0, -1.0, 0.0))
    return left(plus, minus, float(quiet.std()), f"{nominal_hz + offset_hz:g} Hz")


def ours_row(what: str, window_s: float, worst: Left) -> Row:
    """In standard errors, or in dB where that is what meets the budget."""
    budget = BUDGETS_SE.get(window_s)
    if budget and worst.errors > budget and window_s >= ENOUGH_FROM_S:
        return Row(what, worst.decibel, "dB", ENOUGH_DB, note=f"{worst.errors:.2g} SE; {worst.where}")
    return Row(what, worst.errors, "SE", budget, note=f"{worst.decibel:.0f} dB; {worst.where}")


def measure(quick: bool) -> tuple[list[Row], dict]:
    rows = []
    step = 8 if quick else 1
    for nominal_hz in (50.0, 60.0):
        offsets = OFFSETS_HZ[::3] if quick else OFFSETS_HZ
        cases = [ours_left(nominal_hz, off, rate) for off in offsets for rate in CONVERTERS_HZ[::step]]
        for window_s in cases[0]:
            worst = max(case[window_s] for case in cases)
            rows.append(ours_row(f"hum {nominal_hz:g} Hz ± 0.5, T = {window_s:g} s, worst", window_s, worst))
        for converter in CONVERSIONS_S:
            worst = max(field_left(nominal_hz, off, converter) for off in offsets)
            rows.append(Row(f"hum {nominal_hz:g} Hz ± 0.5, the field's ({converter}), worst", worst.errors,
                            "of its SE", note=f"{worst.decibel:.0f} dB; {worst.where}"))  # fmt: skip
    return rows, {}


if __name__ == "__main__":
    main(__doc__, measure, None)
