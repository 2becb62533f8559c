"""What ten degrees less around the unit do to a reading: `python -m benchmarks.od_temperature`.

The simulated vial with a reference photodiode whose light has a temperature coefficient of its own (1000 ppm/°C beyond
the signal's). The LED follows the air; nothing grows. Without a reference, with it (`unity`), and with the coefficient
learned from one warm-up of the LED (`regressed`). An hour of virtual time each. The field divides by its reference too:
its method measures the light that both photodiodes had before and after.
"""

from __future__ import annotations

import tempfile
from typing import NamedTuple

import numpy as np
from stirbar.core import records
from stirbar.core.bench import Row
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin

from .od_field_method import field_method
from .od_light import Light
from .od_report import main

EXCESS_PPM = 1000
DEGREES = -10.0
AMBIENT_DEGC = 26
FIELD_S = 600.0
SETTINGS = (
    "unit.simulate=1",
    "simulation.growth_rate_maximum_per_hour=0.0001",
    "simulation.biomass_od=0.5",
    f"simulation.reference_excess_ppm_per_degc={EXCESS_PPM}",
    "simulation.seed=2",
)


class Means(NamedTuple):
    """Of a minute's readings of the photodiode at channel 2."""

    value: float
    signal_v: float
    reference_v: float


def means(twin: Twin, seconds: int) -> Means:
    found = [
        fields
        for topic, _, payload in twin.run(seconds)
        if topic == b"reading/od2"
        for fields in records.READING.iter_unpack(payload)
    ]
    return Means(*(float(np.mean([fields[place(name)] for fields in found])) for name in Means._fields))


def place(name: str) -> int:
    return [field for field, *_ in records.READING_DTYPE].index(name)


def warmed(mode: str, hours: float) -> tuple[Means, Means]:
    """Ten degrees apart."""
    with tempfile.TemporaryDirectory() as directory:
        overrides = parse_overrides([*SETTINGS, f"od_reading.config.ref_normalization={mode}"])
        twin = Twin(load_config(overrides=overrides), directory)
        for _ in twin.run(140):
            pass
        before = means(twin, 60)
        change = {"command": "simulate", "set": {"ambient_temperature_degc": AMBIENT_DEGC}}
        Commands(twin.host).handle(change, lambda *_: None)
        for _ in twin.run(hours * 3600):
            pass
        return before, means(twin, 60)


def coefficient(before: float, after: float) -> float:
    """ppm/°C."""
    return float(1e6 * np.log(after / before) / DEGREES)


def field_coefficient(before: Means, after: Means, runs: int) -> tuple[float, float]:
    """The field's way on the same light: signal over reference, each by its own method; and what chance leaves."""
    found = []
    for seed in range(runs):
        ratios = []
        for number, (signal_v, reference_v) in enumerate((before[1:], after[1:])):
            signal, reference = (
                field_method(
                    Light(np.random.default_rng((seed, number, which)), FIELD_S, level_v=level_v)
                ).values.mean()
                for which, level_v in enumerate((signal_v, reference_v))
            )
            ratios.append(signal / reference)
        found.append(coefficient(ratios[0], ratios[1]))
    return float(np.mean(found)), float(np.std(found))


def measure(quick: bool) -> tuple[list[Row], dict]:
    hours = 0.05 if quick else 1.0
    before, after = warmed("unity", hours)
    learned = warmed("regressed", hours)
    field, chance = field_coefficient(before, after, 3 if quick else 30)
    return [
        Row("temperature coefficient, light alone", coefficient(before.signal_v, after.signal_v), "ppm/°C",
            note="the LED's own, mostly"),
        Row("temperature coefficient, divided by the reference", coefficient(before.value, after.value), "ppm/°C",
            note=f"{EXCESS_PPM} put in"),
        Row("temperature coefficient, learned in one warm-up", coefficient(learned[0].value, learned[1].value),
            "ppm/°C"),
        Row("temperature coefficient, the field's, divided by the reference", field, "ppm/°C",
            note=f"the same light of both photodiodes, ten minutes before and after; ± {chance:.0f} in one such run"),
    ], {}  # fmt: skip


if __name__ == "__main__":
    main(__doc__, measure, None)
