"""What ten degrees less around the unit do to a reading: `python -m benchmarks.od_temperature`.

The simulated vial with a reference photodiode whose light has a temperature coefficient of its own (1000 ppm/°C beyond
the signal's). The LED follows the air; nothing grows. Without a reference, with it (`unity`), and with the coefficient
learned from one warm-up of the LED (`regressed`). An hour of virtual time each.
"""

from __future__ import annotations

import tempfile

import numpy as np
from stirbar.core import records
from stirbar.core.bench import Row
from stirbar.core.commands import Commands
from stirbar.core.config import load_config, parse_overrides
from stirbar.core.twin import Twin

from .od_report import main

EXCESS_PPM = 1000
DEGREES = -10.0
AMBIENT_DEGC = 26
SETTINGS = (
    "unit.simulate=1",
    "simulation.growth_rate_maximum_per_hour=0.0001",
    "simulation.biomass_od=0.5",
    f"simulation.reference_excess_ppm_per_degc={EXCESS_PPM}",
    "simulation.seed=2",
)


def means(twin: Twin, seconds: int) -> tuple[float, float]:
    """Means of the value and of the signal in volts, of the photodiode at channel 2."""
    found = [
        (fields[3], fields[8])
        for topic, _, payload in twin.run(seconds)
        if topic == b"reading/od2"
        for fields in records.READING.iter_unpack(payload)
    ]
    value, signal = np.array(found).mean(axis=0)
    return float(value), float(signal)


def coefficients(mode: str, hours: float) -> tuple[float, float]:
    """ppm/°C of the value and of the signal, ten degrees apart."""
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
        after = means(twin, 60)
    value, signal = (1e6 * np.log(b / a) / DEGREES for a, b in zip(before, after, strict=True))
    return float(value), float(signal)


def measure(quick: bool) -> tuple[list[Row], dict]:
    hours = 0.5 if quick else 1.0
    plain, light = coefficients("unity", hours)
    learned, _ = coefficients("regressed", hours)
    return [
        Row("temperature coefficient, light alone", light, "ppm/°C", note="the LED's own, mostly"),
        Row("temperature coefficient, divided by the reference", plain, "ppm/°C", note=f"{EXCESS_PPM} put in"),
        Row("temperature coefficient, learned in one warm-up", learned, "ppm/°C"),
    ], {}


if __name__ == "__main__":
    main(__doc__, measure, None)
