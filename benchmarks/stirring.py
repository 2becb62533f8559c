"""The stirrer against its budgets: noise of the speed, starts on many fans, stalls, and what an edge and a tick cost.

Fans (tests/stirring_twin.py) are drawn with seeds: top speed, dead zone, friction at rest and time constant each by up
to a third about the one that the feed-forward believes, half of them lags and half inertia with drag. Each starts from
rest to 500 rpm at three positions of the rotor, as shipped and with a calibration of itself.
"""

from __future__ import annotations

import copy
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
from stirbar.core.bench import Row, child_environment
from stirbar.rt.control_arrays import CURVE_POINTS, Stirrer, fit_edges

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

from stirring_twin import Bench, FanPlant, LagPlant, rotor_edges

from benchmarks import od_report

STALL = 4  # EVENT_STIR_STALL
JITTER_NS = 50e3


def noise_rpm(runs: int) -> float:
    """Standard deviation of a reading of an ideal rotor at 500 rpm, of a second."""
    speeds = []
    for seed in range(runs):
        stamps = rotor_edges(500, 2, jitter_ns=JITTER_NS, seed=seed)
        speeds.append(fit_edges(stamps, int(stamps[-1]) + 1000)["rpm"])
    return float(np.std(speeds))


def fan(seed: int) -> LagPlant | FanPlant:
    """A fan that is not the one believed."""
    chance = np.random.default_rng(seed)
    by = 1.0 + chance.uniform(-0.33, 0.33, 4)
    if seed % 2:
        return FanPlant(125.0 * by[0], 0.10 * by[1], 0.15 * by[1], 0.008 * by[2], 0.0002 * by[3])
    return LagPlant(50.0 * by[0], 0.10 * by[1], 0.15 * by[1], 0.4 * by[2])


def calibration(plant: LagPlant | FanPlant) -> tuple[list[float], float, float]:
    """What `stirbar calibrations run stirring` measures of it, without error: duties at equal steps of speed."""
    duty = np.linspace(15, 60, 24)
    rpm = []
    for one in duty:
        turning = copy.copy(plant)
        turning.speed_hz = 1.0
        for _ in range(6000):
            turning.step(one / 100, 1e-3)
        rpm.append(turning.speed_hz * 60)
    moves = np.array(rpm) > 30
    steps = np.linspace(np.array(rpm)[moves][0], rpm[-1], CURVE_POINTS)
    return np.interp(steps, np.array(rpm)[moves], duty[moves]).tolist(), float(steps[0]), float(steps[-1])


def starts(seeds: range, calibrated: bool) -> tuple[list[float], list[float]]:
    """For each fan the worst of three positions: seconds until within 1 % for good, and overshoot in percent."""
    settled, over = [], []
    for seed in seeds:
        plant = fan(seed)
        curve = calibration(plant) if calibrated else None
        times, peaks = [], []
        for phase in (0.02, 0.5, 0.98):
            bench = Bench(Stirrer(), copy.copy(plant), phase=phase, jitter_ns=JITTER_NS)
            if curve is not None:
                bench.stirrer.curve(*curve)
            bench.stirrer.target_rpm(500, bench.now_ns)
            trial = bench.run(6)
            times.append(trial.settled_s(500))
            peaks.append(100.0 * (max(trial.rpm) / 500 - 1))
        settled.append(max(times))
        over.append(max(peaks))
    return settled, over


def stall_s(target_rpm: float, seed: int) -> float:
    """Seconds from the moment a rotor is held fast to the event."""
    bench = Bench(Stirrer(), LagPlant(), phase=(0.1 + 0.17 * seed) % 1, seed=seed)
    bench.stirrer.target_rpm(target_rpm, bench.now_ns)
    bench.run(12 + 0.037 * seed)
    before = len(bench.trial.events)
    at = bench.trial.time_s[-1]
    bench.plant.dead = bench.plant.start = 2.0
    bench.plant.speed_hz = 0.0
    trial = bench.run(5)
    return next(time for time, code, _ in trial.events[before:] if code == STALL) - at


def instructions(code: str) -> int:
    """User-space instructions of a Python program."""
    with tempfile.TemporaryDirectory() as directory:
        out = f"{directory}/out"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=child_environment([sys.executable]))
        if done.returncode:
            raise RuntimeError(done.stderr[-300:])
        found = re.search(r"^(?:totals|summary): (\d+)", pathlib.Path(out).read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def cost(setup: str, work: str, few: int, many: int) -> float:
    """Instructions of one item of `work`: two lengths, the lesser of two runs each; the interpreter's start varies."""
    counts = [min(instructions(f"{setup}\n{work.format(n=n)}") for _ in range(2)) for n in (few, many)]
    return (counts[1] - counts[0]) / (many - few)


def costs() -> list[Row]:
    if shutil.which("valgrind") is None:
        return []
    tick = "from stirbar.rt.control_arrays import Stirrer\ns = Stirrer()"
    edge = "import numpy as np\nfrom stirbar.rt.control_arrays import fit_edges\nmade = np.arange(610_000)"
    ticks = "s.ticks(10**10, 10**7, {n})"
    line = "fit_edges(made[:{n}] * 120_000_000 + 10**9, 10**18)"
    running = f"{tick}\ns.duty(30, 10**9)\ns.tick(10**9)\ns.tick(2 * 10**9)"
    return [
        Row("instructions of a tick, off", cost(tick, ticks, 1000, 1_001_000), "", note="one in 10 ms"),
        Row("the same, running, no edge", cost(running, ticks, 1000, 1_001_000), ""),
        Row(
            "instructions of an edge, the tachometer's", cost(edge, line, 10_000, 610_000), "", note="8.3/s at 500 rpm"
        ),
    ]


def measure(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    seeds = range(1 if quick else 40)
    rows = [
        Row("noise of a reading at 500 rpm, 1 s, ideal rotor", noise_rpm(50 if quick else 1000), "rpm", 0.1,
            note="stamps with 50 us of jitter"),
    ]  # fmt: skip
    for name, calibrated in (("as shipped", False), ("calibrated", True)):
        settled, over = starts(seeds, calibrated)
        late = sum(time > 3.0 for time in settled)
        note = f"median {np.median(settled):.2f} s; {late} of {len(settled)} fans later than 3 s"
        rows.append(Row(f"0 to 500 rpm within 1 %, {name}, worst fan", max(settled), "s", 3.0, note=note))
        rows.append(
            Row(
                f"overshoot, {name}, worst fan",
                max(over),
                "%",
                note=f"median {np.median(over):.1f} %, {len(over)} fans",
            )
        )
    for target in (100, 200, 500, 1500):
        limit = max(0.5, 3 * 60 / target)
        worst = max(stall_s(target, seed) for seed in range(1 if quick else 12))
        rows.append(Row(f"stall seen after, at {target} rpm, worst", worst, "s", round(limit + 0.01, 3),
                        note=f"{limit:g} s and a tick, from the moment the rotor stands"))  # fmt: skip
    return rows + ([] if quick else costs()), {}


if __name__ == "__main__":
    od_report.main(__doc__, measure, None)
