"""What a conversion costs: `python -m benchmarks.od_cost`.

Instructions of the whole chain, readings at 10/s of 1 s windows included, as the difference of two runs under callgrind
(tests/od_figures.py), and the time of one on this machine; beside it the field's method in NumPy, for each of its 40
samples. Nothing is measured without valgrind.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import numpy as np
from stirbar.core.bench import Row, child_environment

from .od_field_method import INTERVAL_S, SAMPLES, field_method
from .od_light import Light, ours
from .od_report import main

ROOT = pathlib.Path(__file__).parents[1]
CONVERSIONS_A_MINUTE = 51_600
LIMIT = 430.0


def instructions(minutes: int, hum_codes: float) -> int:
    """Of a process that pushes so many minutes of conversions through the chain."""
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", sys.executable, "-m", "tests.od_figures",
         "push", str(minutes), "1", str(hum_codes)],
        capture_output=True, text=True, cwd=ROOT, check=True,
        env=child_environment([sys.executable]) | {"OPENBLAS_NUM_THREADS": "1", "PATH": os.environ["PATH"]},
    )  # fmt: skip
    found = re.search(r"Collected : (\d+)", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


def measure(quick: bool) -> tuple[list[Row], dict]:
    rows = []
    if shutil.which("valgrind"):
        more = 2 if quick else 6
        for words, codes in (("without hum", 0.0), ("with six harmonics of hum", 20.0)):
            each = (instructions(more, codes) - instructions(1, codes)) / ((more - 1) * CONVERSIONS_A_MINUTE)
            rows.append(Row(f"a conversion, {words}", each, "instructions", LIMIT))
    light = Light(np.random.default_rng(1), 60.0)
    begun = time.process_time()
    _, values = field_method(light)
    each = (time.process_time() - begun) / (len(values) * SAMPLES)
    rows.append(Row("the field's method in NumPy, each of its samples", 1e9 * each, "ns",
                    note=f"{SAMPLES} of them each {INTERVAL_S:g} s, the making of the light included"))  # fmt: skip
    begun = time.process_time()
    out = ours(light)
    each = (time.process_time() - begun) / CONVERSIONS_A_MINUTE
    rows.append(Row("ours, each conversion", 1e9 * each, "ns",
                    note=f"{len(out)} readings, the making of the light included"))  # fmt: skip
    return rows, {}


if __name__ == "__main__":
    main(__doc__, measure, None)
