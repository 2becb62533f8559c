"""What a reading does when the culture is halved: `python -m benchmarks.od_step`.

The level falls to half at one moment (a dilution, mixed at once), drawn uniformly over the field's 5 s for each run. A
window that began after it is right; one that holds it follows the larger part. A reading's time is the end of its last
conversion, for either method; counted is from the step to the first reading after which all are within one percent.
Smaller steps: how far the first reading is off whose window began after the step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from stirbar.core.bench import Row

from .od_field_method import INTERVAL_S, field_method
from .od_light import Array, Light, at_windows, ours
from .od_report import main

STEP_FROM_S, SECONDS = 60.0, 90.0
NOISE_V, LEVEL_V = 1e-4, 0.1
WINDOWS_S = (0.2, 1.0, 5.0)
SMALL = (0.5, 0.05, 0.01, 0.005, 0.002)
SMALL_RATES = [(20.0, 0.1), (20.0, 0.2), (20.0, 1.0), (2.0, 5.0)]
NEXT_S = 0.03  # two chop periods: no window of a reading that is later by its length holds the step
FIELDS = "the field's, unsmoothed"
LIMITS_S = {f"ours, T = {window_s:g} s": window_s + 0.2 for window_s in WINDOWS_S}  # the grid and the chop (IS-31)
Curve = tuple[Array, Array]


def halved(step_s: float, left: float = 0.5) -> Callable[[Array], Array]:
    return lambda t: np.where(t < step_s, 1.0, left)


def light_for(seed: int, left: float = 0.5) -> tuple[Light, float]:
    """A culture that is diluted once, and when."""
    step_s = STEP_FROM_S + np.random.default_rng((seed, 1)).uniform(0.0, INTERVAL_S)
    return Light(np.random.default_rng(seed), SECONDS, noise_v=NOISE_V, shine=halved(step_s, left)), step_s


def settled_s(times: Array, values: Array) -> float:
    """From the step (time 0) to the first reading from which on all are within one percent of half the level."""
    wrong = times[(times > 0) & (abs(values - 0.5) > 0.005)]
    return float(times[times > (wrong[-1] if len(wrong) else 0.0)][0])


def curves(seed: int) -> dict[str, Curve]:
    """Times from the step and values over the level before it, of each way of measuring."""
    found = {}
    for window_s in WINDOWS_S:
        light, step_s = light_for(seed)
        out = ours(light, window_s=window_s)
        found[f"ours, T = {window_s:g} s"] = (out["monotonic_ns"] * 1e-9 - step_s, out["value"] / LEVEL_V)
    return {**found, FIELDS: field_curve(seed)}


def field_curve(seed: int) -> Curve:
    light, step_s = light_for(seed)
    times, values, _ = field_method(light)
    return times - step_s, values / LEVEL_V


def first_errors(share: float, seeds: int) -> dict[float, list[float]]:
    """Error of the first reading whose window began after a step down by `share`, in standard errors, by window."""
    found: dict[float, list[float]] = {window_s: [] for _, window_s in SMALL_RATES}
    for seed in range(seeds):
        light, step_s = light_for(seed, 1.0 - share)
        for (_, window_s), out in zip(SMALL_RATES, at_windows(light, SMALL_RATES, 20.0), strict=True):
            error = (out["value"] - LEVEL_V * (1.0 - share)) / np.median(out["se_instrument"])
            found[window_s].append(float(error[out["monotonic_ns"] * 1e-9 > step_s + window_s + NEXT_S][0]))
    return found


def measure(quick: bool) -> tuple[list[Row], dict]:
    rows, runs = [], [curves(seed) for seed in range(2 if quick else 40)]
    for name in runs[0]:
        found = [settled_s(*run[name]) for run in runs]
        note = f"median; {min(found):.2f} to {max(found):.2f} s in {len(found)} runs"
        if name == FIELDS:
            note += "; its usual smoothing takes about 25 s"
        rows.append(Row(f"halved culture to 1 %, {name}", float(np.median(found)), "s", LIMITS_S.get(name), note=note))
    errors = {share: first_errors(share, 1 if quick else 6) for share in SMALL}
    for _, window_s in SMALL_RATES:
        worst = {share: max(errors[share][window_s], key=abs) for share in SMALL}
        note = ", ".join(f"{share:.1%}: {error:+.1f}" for share, error in worst.items())
        rows.append(Row(f"first reading after a step down, T = {window_s:g} s, worst", max(map(abs, worst.values())),
                        "SE", note=f"{note}; of {len(SMALL) * len(errors[0.5][window_s])} readings"))  # fmt: skip
    return rows, {"curves": runs[0]}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    for name, (times, values) in details["curves"].items():
        axes.plot(
            times, values, marker="." if name.startswith("ours") else "o", ms=4, lw=0.8, ds="steps-post", label=name
        )
    axes.set_xlim(-6, 12)
    axes.set_xlabel("seconds from the dilution; a reading stands where its last conversion ended")
    axes.set_ylabel("reading / level before")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-step.png")
