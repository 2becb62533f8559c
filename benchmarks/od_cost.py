"""What a second of light costs: `python -m benchmarks.od_cost`.

Instructions, as the difference of two runs under callgrind that push more and less of the same light, which is made
before: the whole chain with readings at 10/s of 1 s windows, and the field's method in NumPy, one reading in 5 s.
`push MINUTES HUM` and `field READINGS` are what callgrind runs. Nothing is measured without valgrind.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
from stirbar.core.bench import Row, child_environment
from stirbar.rt.od_arrays import OdChain

from .od_field_method import CONVERSIONS_S, INTERVAL_S, SAMPLES, SPAN_S, batch, reading
from .od_light import RATE_HZ, VOLTS_PER_CODE, Light, conversions
from .od_report import main

ROOT = pathlib.Path(__file__).parents[1]
MINUTE_S = 60.0
HUM_HZ, HUM_CODES = 50.1, 20.0
HALF_CYCLE = 5
READINGS = 200


def instructions(*arguments: str) -> int:
    """Of a process that does so much."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", "benchmarks.od_cost",
         *arguments],
        capture_output=True, text=True, cwd=ROOT, check=True,
        env=child_environment([sys.executable]) | {"OPENBLAS_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


def push_minutes(minutes: int, hum_codes: float) -> None:
    """The same minute of light so many times through one chain."""
    tones = {h * HUM_HZ: hum_codes * VOLTS_PER_CODE / h for h in range(1, 7)} if hum_codes else {}
    light = Light(np.random.default_rng(1), MINUTE_S, noise_v=5 * VOLTS_PER_CODE, tones=tones)
    code, phase, end_ns = conversions(light, RATE_HZ, HALF_CYCLE)
    whole = len(code) // (2 * HALF_CYCLE) * 2 * HALF_CYCLE
    number, channel = np.arange(whole, dtype=np.uint32), np.zeros(whole, np.uint8)
    phase[:HALF_CYCLE] = phase[2 * HALF_CYCLE : 3 * HALF_CYCLE]  # as in the minutes that follow
    chain = OdChain(["signal"])
    chain.gain(0, VOLTS_PER_CODE)
    chain.clock(0, 0, int(end_ns[0]), 1e9 / RATE_HZ)
    for minute in range(minutes):
        chain.push(channel, number + np.uint32(minute * whole), code[:whole], phase[:whole])


def field_readings(count: int) -> None:
    """The same batch so many times through the field's arithmetic."""
    conversion_s = CONVERSIONS_S["ADS111x"]
    time_s, volts = batch(Light(np.random.default_rng(1), 10.0), 5.0, SAMPLES, SPAN_S, conversion_s, lit=True)
    for _ in range(count):
        reading(time_s, volts, 50.0, 0.015)


def measure(quick: bool) -> tuple[list[Row], dict]:
    if not shutil.which("valgrind"):
        return [Row("instructions of a second of light", float("nan"), "", note="valgrind is not installed")], {}
    rows = []
    more = 2 if quick else 6
    for words, codes in (("without hum", 0.0), (f"with six harmonics of hum, {HUM_CODES:g} codes", HUM_CODES)):
        pushed = instructions("push", str(more), str(codes)) - instructions("push", "1", str(codes))
        each = pushed / ((more - 1) * MINUTE_S * RATE_HZ)
        rows.append(Row(f"a second of light, ours, {words}", 1e-3 * each * RATE_HZ, "thousand instructions",
                        note=f"{each:.0f} each of {RATE_HZ:g} conversions; ten readings"))  # fmt: skip
    each = (instructions("field", str(2 * READINGS)) - instructions("field", str(READINGS))) / READINGS
    rows.append(Row("a second of light, the field's in NumPy", 1e-3 * each / INTERVAL_S, "thousand instructions",
                    note=f"{each / SAMPLES:.0f} each of {SAMPLES} samples in {INTERVAL_S:g} s, interpreter and NumPy "
                    "included; a fifth of a reading"))  # fmt: skip
    return rows, {}


if __name__ == "__main__":
    if sys.argv[1:2] == ["push"]:
        push_minutes(int(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1:2] == ["field"]:
        field_readings(int(sys.argv[2]))
    else:
        main(__doc__, measure, None)
