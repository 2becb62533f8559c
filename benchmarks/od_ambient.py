"""What other light leaves in a reading: `python -m benchmarks.od_ambient`.

Slow light of 20 mV (a fifth of the signal) from 0.1 to 5 Hz, on converters of 774 to 946 conversions a second, the
mains known or not; the worst of them. Steps of other light, at ten places in the chop period: the largest mean change
of readings of one age since the step. What is left is found by measuring the same noise with and without the light.
The field's method sees the same light. Boards whose microcontroller smooths its own readings have rows of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from stirbar.core.bench import Row

from .od_field_method import CONVERSIONS_S, field_method
from .od_light import (
    LOOKS_DISCARDED,
    LOOKS_HALF_CYCLE,
    LOOKS_HZ,
    RATE_HZ,
    SMOOTHED_S,
    VOLTS_PER_CODE,
    Array,
    Light,
    at_windows,
    rms,
    smoothed,
)
from .od_report import main

NOISE_V = 5 * VOLTS_PER_CODE
AMBIENT_V, DARK_V = 0.02, 0.04
SLOW_HZ = (0.1, 1.0, 2.0, 3.3, 5.0)
CONVERTERS_HZ = np.arange(774.0, 947.0, 21.5)
RATES = [(10.0, 0.2), (10.0, 0.5), (10.0, 1.0)]
BUDGET_DB = -40.0
SECONDS, SKIP_S = 25.0, 8.0
STEP_CODES = (1600, 32, 22, 16, 10)
STEP_RATES = [(10.0, 0.2), (10.0, 1.0)]
STEP_EVERY_S, STEPS, STEP_BUDGET_SE, AGE_S = 2.6, 40, 0.2, 0.1
CHOP_S = 10 / RATE_HZ  # of k = 5
SMOOTHED_HZ = (0.01, 0.03, 0.1)
SMOOTHED_WINDOW_S, SMOOTHED_SECONDS, SMOOTHED_SKIP_S = 5.0, 600.0, 100.0
SEED = 3


def slow(hz: float, volts: float, seconds: float = SECONDS) -> Light:
    return Light(np.random.default_rng(SEED), seconds, noise_v=NOISE_V, tones={hz: volts}, dark_v=DARK_V)


def left_db(plus: Array, minus: Array) -> float:
    """Half the difference that the sign of the light makes, over the light."""
    count = min(len(plus), len(minus))
    return float(20 * np.log10(rms(0.5 * (plus[-count:] - minus[-count:])) / (AMBIENT_V / np.sqrt(2))))


def slow_rows(quick: bool) -> list[Row]:
    worst: dict[tuple[float, float], tuple[float, str]] = {}
    for hz in SLOW_HZ:
        for rate_hz in CONVERTERS_HZ[:: 8 if quick else 1]:
            for mains_hz in (0.0, 50.0, 60.0):
                plus, minus = (
                    at_windows(slow(hz, volts), RATES, SKIP_S, rate_hz=rate_hz, mains_hz=mains_hz)
                    for volts in (AMBIENT_V, -AMBIENT_V)
                )
                where = f"{rate_hz:g}/s, mains {f'{mains_hz:g} Hz' if mains_hz else 'unknown'}"
                for (_, window_s), a, b in zip(RATES, plus, minus, strict=True):
                    found = (left_db(a["value"], b["value"]), where)
                    worst[window_s, hz] = max(worst.get((window_s, hz), found), found)
    rows = []
    for _, window_s in RATES:
        found = {hz: worst[window_s, hz] for hz in SLOW_HZ}
        note = ", ".join(f"{hz:g} Hz: {decibel:.0f} dB" for hz, (decibel, _) in found.items())
        decibel, where = max(found.values())
        rows.append(Row(f"light of 0.1 to 5 Hz, T = {window_s:g} s, worst", decibel, "dB", BUDGET_DB,
                        note=f"{note}; worst at {where}"))  # fmt: skip
    for converter in CONVERSIONS_S:
        field = {
            hz: left_db(*(field_method(slow(hz, volts, 60.0), converter).values for volts in (AMBIENT_V, -AMBIENT_V)))
            for hz in SLOW_HZ
        }
        note = ", ".join(f"{hz:g} Hz: {decibel:.0f} dB" for hz, decibel in field.items())
        rows.append(
            Row(f"light of 0.1 to 5 Hz, the field's ({converter}), worst", max(field.values()), "dB", note=note)
        )
    return rows


class Change(NamedTuple):
    """Of readings after a step, in standard errors."""

    mean: float
    spread: float


def stepping(volts: float, place: float, steps: int) -> Light:
    """Light that steps up and down at one place of the chop period."""
    half_s = round(STEP_EVERY_S / CHOP_S) * CHOP_S
    at = [(SKIP_S + n * half_s + place * CHOP_S, volts * (-1) ** n) for n in range(steps)]
    return Light(np.random.default_rng(SEED), at[-1][0] + half_s, noise_v=NOISE_V, steps=at)


def step_changes(codes: int, place: float, steps: int) -> dict[float, Change]:
    """The largest mean change of readings of an age since the step, and the largest spread, by window."""
    light = stepping(codes * VOLTS_PER_CODE, place, steps)
    pairs = [at_windows(one, STEP_RATES, SKIP_S, half_cycle=5) for one in (light, stepping(0.0, place, steps))]
    half_s = round(STEP_EVERY_S / CHOP_S) * CHOP_S
    found = {}
    for (_, window_s), out, quiet in zip(STEP_RATES, *pairs, strict=True):
        change = (out["value"] - quiet["value"]) / np.median(quiet["se_instrument"])
        turns = (out["monotonic_ns"] * 1e-9 - SKIP_S - place * CHOP_S) / half_s
        since = (turns - np.floor(turns)) * half_s
        ages = []
        for odd in (0, 1):
            for age in np.arange(0.5 * AGE_S, window_s + AGE_S, AGE_S):
                mine = change[(np.floor(turns) % 2 == odd) & (np.abs(since - age) < 0.5 * AGE_S)]
                if len(mine) > 5:
                    ages.append(Change(float(mine.mean()), float(mine.std())))
        found[window_s] = Change(max((one.mean for one in ages), key=abs), max(one.spread for one in ages))
    return found


def step_rows(quick: bool) -> list[Row]:
    rows = []
    for codes in STEP_CODES[:: 4 if quick else 1]:
        places = [
            step_changes(codes, place, 14 if quick else STEPS) for place in np.arange(0, 1, 0.5 if quick else 0.1)
        ]
        for _, window_s in STEP_RATES:
            mean = max(abs(found[window_s].mean) for found in places)
            spread = max(found[window_s].spread for found in places)
            rows.append(Row(f"step of {codes} codes, T = {window_s:g} s, worst", mean, "SE", STEP_BUDGET_SE,
                            note=f"mean change; spread {spread:.2f} SE"))  # fmt: skip
        one = [(50.0, codes * VOLTS_PER_CODE)]
        after, quiet = (
            field_method(Light(np.random.default_rng(SEED), 200.0, noise_v=NOISE_V, steps=steps)) for steps in (one, [])
        )
        change = (after.values - quiet.values)[quiet.times > 55.0].mean() / quiet.values.std()
        rows.append(Row(f"step of {codes} codes, the field's", float(change), "of its SE", note="until the next start"))
    return rows


def smoothed_rows(quick: bool) -> list[Row]:
    """Boards with a microcontroller's converter (IS-24)."""
    seconds = SMOOTHED_SECONDS * (0.4 if quick else 4.0)
    out = smoothed(Light(np.random.default_rng(SEED), seconds, noise_v=NOISE_V), window_s=SMOOTHED_WINDOW_S)
    out = out[out["monotonic_ns"] > 1e9 * SMOOTHED_SKIP_S]
    sd = float(out["value"].std())
    always = NOISE_V * np.sqrt(SMOOTHED_S / SMOOTHED_WINDOW_S)
    board = f"microcontroller's converter, T = {SMOOTHED_WINDOW_S:g} s"
    note = (
        f"of the always-on mean of its own means of 1024 samples; chop {LOOKS_HZ / 2 / LOOKS_HALF_CYCLE:.2f} Hz, "
        f"k {LOOKS_HALF_CYCLE}, d {LOOKS_DISCARDED}"
    )
    field = field_method(Light(np.random.default_rng(SEED), seconds, noise_v=NOISE_V), "RP2040").values
    looks = "the running mean makes looks alike, which the chain does not know"
    rows = [
        Row(f"{board}: noise over B0", sd / always, "", note=note),
        Row(f"{board}: noise over B0, the field's", float(field.std()) / always, "", note="one reading in 5 s"),
        Row(f"{board}: noise over se_instrument", sd / rms(out["se_instrument"]), "", note=looks),
        Row(f"{board}: noise over se_culture", sd / rms(out["se_culture"]), ""),
    ]
    ours, fields = {}, {}
    for hz in SMOOTHED_HZ:
        lights = [slow(hz, volts, 200.0 if quick else SMOOTHED_SECONDS) for volts in (AMBIENT_V, -AMBIENT_V)]
        ends = [smoothed(light, window_s=SMOOTHED_WINDOW_S) for light in lights]
        late = [one["value"][one["monotonic_ns"] > 1e9 * SMOOTHED_SKIP_S] for one in ends]
        ours[hz] = left_db(*late)
        fields[hz] = left_db(*(field_method(light, "RP2040").values for light in lights))
    for whose, found in (("", ours), (", the field's", fields)):
        note = ", ".join(f"{hz:g} Hz: {decibel:.0f} dB" for hz, decibel in found.items())
        rows.append(Row(f"{board}: light up to 0.1 Hz, worst{whose}", max(found.values()), "dB", note=note))
    return rows


def measure(quick: bool) -> tuple[list[Row], dict]:
    return [*slow_rows(quick), *step_rows(quick), *smoothed_rows(quick)], {}


if __name__ == "__main__":
    main(__doc__, measure, None)
