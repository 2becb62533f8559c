"""What a reading does when the culture is halved: `python -m benchmarks.od_step`.

The level falls to half at one moment (a dilution, mixed at once). A window that began after it is right; one that holds
it follows the larger part. Time is from the step to the first reading after which all are within one percent.
"""

from __future__ import annotations

import numpy as np
from stirbar.core.bench import Row

from .od_field_method import field_method
from .od_light import Light, ours
from .od_report import main

STEP_S = 60.0137
WINDOWS_S = (0.2, 1.0, 5.0)


def halved(t: np.ndarray) -> np.ndarray:
    return np.where(t < STEP_S, 1.0, 0.5)


def settled_s(times: np.ndarray, values: np.ndarray, level: float) -> float:
    """From the step to the first reading from which on all are within one percent."""
    wrong = times[(times > STEP_S) & (abs(values - level) > 0.01 * level)]
    return float(times[times > wrong[-1]][0] - STEP_S) if len(wrong) else float(times[times > STEP_S][0] - STEP_S)


def measure(quick: bool) -> tuple[list[Row], dict]:
    rows, curves = [], {}
    for window_s in WINDOWS_S:
        found = []
        for seed in range(3 if quick else 12):
            light = Light(np.random.default_rng(seed), 100.0, noise_v=1e-4, shine=halved)
            out = ours(light, window_s=window_s)
            times, values = out["monotonic_ns"] * 1e-9, out["value"]
            found.append(settled_s(times, values, 0.05))
            curves[f"ours, T = {window_s:g} s"] = (times - STEP_S, values / 0.1)
        rows.append(Row(f"halved culture to 1 %, T = {window_s:g} s", float(np.median(found)), "s", window_s + 0.2,
                        note=f"{min(found):.2f} to {max(found):.2f} s"))  # fmt: skip
    light = Light(np.random.default_rng(1), 100.0, noise_v=1e-4, shine=halved)
    times, values = field_method(light)
    curves["the field's, unsmoothed"] = (times - STEP_S, values / 0.1)
    rows.append(Row("halved culture to 1 %, the field's, unsmoothed", settled_s(times, values, 0.05), "s",
                    note="its usual smoothing takes about 25 s"))  # fmt: skip
    return rows, {"curves": curves}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.6))
    for name, (times, values) in details["curves"].items():
        axes.plot(times, values, marker="." if name.startswith("ours") else "o", ms=4, lw=0.8, label=name)
    axes.set_xlim(-2, 12)
    axes.set_xlabel("seconds from the dilution")
    axes.set_ylabel("reading / level before")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-step.png")
