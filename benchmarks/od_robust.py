"""Bias and noise when bubbles cross the light: `python -m benchmarks.od_robust`.

One-sided outliers on the lit conversions, alone and in runs as bubbles make them; figures in units of the noise of the
same windows without them. The field's method (40 conversions, smallest and largest dropped) sees the same light.
"""

from __future__ import annotations

import numpy as np
from stirbar.core.bench import Row

from .od_field_method import field_method
from .od_light import Light, ours
from .od_report import main

NOISE_V = 1e-3
LEVEL_V = 0.1
# share of conversions, height in sigma, length of a run in seconds (0: single conversions), budgets of bias and noise
CASES = (
    (0.05, 4.0, 0.0, 0.7, None),
    (0.05, 6.0, 0.0, 0.1, 1.1),
    (0.05, 6.0, 0.005, 0.1, 1.1),
    (0.25, 10.0, 0.0, 0.1, 2.0),
    (0.25, 10.0, 0.02, 0.1, 2.0),
    (0.10, 40.0, 0.04, None, None),
)
WINDOWS_S = (0.2, 1.0, 5.0)


def light_for(share: float, sigmas: float, run_s: float, seconds: float, seed: int) -> Light:
    relative = sigmas * NOISE_V / LEVEL_V
    rng = np.random.default_rng(seed)
    if run_s:
        return Light(rng, seconds, noise_v=NOISE_V, bubble_hz=share / run_s, bubble_s=run_s, bubble_share=relative)
    return Light(rng, seconds, noise_v=NOISE_V, spike_share=share, bubble_share=relative)


def values(light: Light, window_s: float) -> np.ndarray:
    out = ours(light, window_s=window_s, readings_per_second=1 / window_s)
    return np.asarray(out["value"][out["monotonic_ns"] > 70e9] - LEVEL_V)


def measure(quick: bool) -> tuple[list[Row], dict]:
    seconds = 170.0 if quick else 1070.0
    rows, table = [], {}
    clean = {window_s: values(light_for(0.0, 0.0, 0.0, seconds, 1), window_s).std() for window_s in WINDOWS_S}
    for number, (share, sigmas, run_s, bias_limit, noise_limit) in enumerate(CASES):
        what = f"{share:.0%} at {sigmas:g} σ" + (f" in runs of {1000 * run_s:g} ms" if run_s else "")
        _, field = field_method(light_for(share, sigmas, run_s, seconds, number))
        field_bias = (field.mean() - LEVEL_V) / (NOISE_V / np.sqrt(40))
        for window_s in WINDOWS_S:
            found = values(light_for(share, sigmas, run_s, seconds, number), window_s)
            bias, spread = found.mean() / clean[window_s], found.std() / clean[window_s]
            sure = 2 * spread / np.sqrt(len(found))
            table[what, window_s] = (bias, spread)
            rows.append(Row(f"bias, {what}, T = {window_s:g} s", abs(bias), "SE", bias_limit,
                            note=f"{bias:+.3f} ± {sure:.2f}; the field's {field_bias:+.1f} of its own"))  # fmt: skip
            rows.append(Row(f"noise, {what}, T = {window_s:g} s", spread, "of clean", noise_limit))
    return rows, {"table": {f"{what}, T = {window_s:g} s": pair for (what, window_s), pair in table.items()}}


if __name__ == "__main__":
    main(__doc__, measure, None)
