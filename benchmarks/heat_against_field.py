"""Holding 37 degC: ours beside the field's way, which switches the heater off for more than half of the time to look.

Both on the same simulated vials (tests/heat_plant.py: 24 units whose coupling, losses, heater, volume and room differ
as units do). The field's loop, as its documentation and source have it: cycles of 200 s, in each the heater off for 21
samples 5 s apart; then a PD controller changes the duty (2.6 and 4.6 %/K, at most 25 %). Its inference of the liquid
from the cooling board is a regression on its own hardware; here it is given the liquid's true temperature instead, so
that its error is what its control costs, at best. The same measured once more with ours given the truth.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import numpy as np
from stirbar.core.bench import Row

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests"))

from heat_plant import Plant, Run

from benchmarks import od_report

TARGET_DEGC = 37.0
HOURS = 4
NEAR_DEGC = 0.5
CYCLE_S, SAMPLES, BETWEEN_S = 200, 21, 5
KP, KD, MOST = 2.6, 4.6, 25.0


def ours(seed: int) -> np.ndarray:
    """The liquid, second by second."""
    run = Run(Plant(seed), TARGET_DEGC)
    run.run(HOURS * 3600)
    table: np.ndarray = run.table()
    return table


def field(seed: int) -> np.ndarray:
    """The liquid, second by second, by the field's method with a perfect inference."""
    plant = Plant(seed)
    duty, error = 0.0, 0.0
    liquid = []
    for second in range(HOURS * 3600):
        within = second % CYCLE_S
        plant.run(0.0 if within < SAMPLES * BETWEEN_S else duty)
        if within == SAMPLES * BETWEEN_S - 1:
            now = TARGET_DEGC - plant.liquid_degc
            change = KP * now + (KD * (now - error) if second > CYCLE_S else 0.0)
            error = now
            duty = min(100.0, max(0.0, duty + min(MOST, max(-MOST, change))))
        liquid.append(plant.liquid_degc)
    return np.array(liquid)


def settled_min(liquid: np.ndarray, about: float) -> float:
    """Minutes until it stays within NEAR_DEGC of what it ends at; the whole run where it never does."""
    away = np.nonzero(np.abs(liquid - about) > NEAR_DEGC)[0]
    return float(away[-1] + 1) / 60 if len(away) else 0.0


def measure(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    seeds = range(4 if quick else 24)
    tables = [ours(seed) for seed in seeds]
    our_liquid = [table[:, 2] for table in tables]
    field_liquid = [field(seed) for seed in seeds]
    last = slice(-3600, None)
    rows = []
    for name, runs in (("ours", our_liquid), ("the field's, with a perfect inference", field_liquid)):
        settling = [settled_min(liquid, float(np.mean(liquid[last]))) for liquid in runs]
        ripple = [float(np.std(liquid[last])) for liquid in runs]
        swing = [float(np.ptp(liquid[last])) for liquid in runs]
        over = [float(np.max(liquid) - max(TARGET_DEGC, float(np.mean(liquid[last])))) for liquid in runs]
        reached = sum(abs(float(np.mean(liquid[last])) - TARGET_DEGC) < 1.5 for liquid in runs)
        spread = f"worst {max(settling):.0f} min; {reached} of {len(runs)} vials come near {TARGET_DEGC:g} °C"
        rows += [
            Row(
                f"until it stays within {NEAR_DEGC} °C, {name}, median", float(np.median(settling)), "min", note=spread
            ),
            Row(
                f"ripple of the liquid in the last hour, {name}",
                float(np.mean(ripple)),
                "°C",
                note="standard deviation",
            ),
            Row(f"highest less lowest in that hour, {name}", float(np.mean(swing)), "°C"),
            Row(f"overshoot, {name}, worst", max(over), "°C"),
        ]
    errors = np.array([float(np.mean(table[last, 3] - table[last, 2])) for table in tables])
    warmer = [float(np.mean(table[last, 1] - table[last, 2])) for table in tables]
    claimed = np.array([float(np.mean(table[last, 4])) for table in tables])
    rows += [
        Row("error of our estimate of the liquid, rms over units", float(np.sqrt(np.mean(errors**2))), "°C",
            note=f"largest {np.max(np.abs(errors)):.2f} °C; the board alone is {np.mean(warmer):.1f} °C warmer"),
        Row("the same over the standard error that it says", float(np.sqrt(np.mean((errors / claimed) ** 2))), "",
            note="1: the standard error is right"),
    ]  # fmt: skip
    return rows, {"ours": our_liquid[0], "field": field_liquid[0], "board": tables[0][:, 1]}


def plot(details: dict[str, Any], path: str) -> None:
    from matplotlib import pyplot

    hours = np.arange(HOURS * 3600) / 3600
    figure, axes = pyplot.subplots(figsize=(8, 4))
    axes.plot(hours, details["board"], color="#bbbbbb", lw=0.8, label="heater board, ours")
    axes.plot(hours, details["field"], color="#d55e00", lw=1, label="liquid, the field's way with a perfect inference")
    axes.plot(hours, details["ours"], color="#0072b2", lw=1.4, label="liquid, ours")
    axes.axhline(TARGET_DEGC, color="black", lw=0.6, ls=":")
    axes.set_xlabel("hours")
    axes.set_ylabel("°C")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    od_report.main(__doc__, measure, plot, "heat-against-field.png")
