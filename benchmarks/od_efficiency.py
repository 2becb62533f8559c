"""Noise of a reading against what physics allows: `python -m benchmarks.od_efficiency`.

White noise of five codes. B0: all conversions, LED always on. B1: on minus off of the conversions that are kept. B2: B1
with dark level, drift and mains unknown too (Cramér-Rao). Efficiency is the variance's: (bound / noise)^2. The linear
part is what the window's weights give without the rejection of outliers.
"""

from __future__ import annotations

import numpy as np
from stirbar.core.bench import Row
from stirbar.rt.od_arrays import choose_half_cycle

from .od_light import VOLTS_PER_CODE, Light, bound_b0, bound_b1, bound_b2, ours
from .od_report import main

NOISE_V = 5 * VOLTS_PER_CODE
BUDGETS = {0.1: 2.6, 0.2: 2.4, 0.5: 2.35, 1.0: 2.3, 2.0: 2.3, 5.0: 2.3}
RATES_HZ = (774.0, 817.0, 860.0, 903.0, 946.0)
SKIP_S = 70.0


def noise(
    window_s: float, seconds: float, rate_hz: float = 860.0, k: int = 0, seed: int = 1
) -> tuple[float, float, float]:
    """Standard deviation of readings, and its ratios to se_instrument and se_culture."""
    light = Light(np.random.default_rng(seed), seconds, noise_v=NOISE_V)
    out = ours(light, window_s=window_s, rate_hz=rate_hz, half_cycle=k, readings_per_second=min(10.0, 2 / window_s))
    out = out[out["monotonic_ns"] > SKIP_S * 1e9]
    sd = float(out["value"].std())
    culture = float(np.sqrt(np.mean(out["se_culture"].astype(float) ** 2)))
    return sd, sd / float(np.median(out["se_instrument"])), sd / culture


def measure(quick: bool) -> tuple[list[Row], dict]:
    rows, table = [], {}
    length = 0.15 if quick else 1.0
    k = choose_half_cycle(860.0, 50.0)
    for window_s, budget in BUDGETS.items():
        seconds = SKIP_S + length * max(600.0, 1000.0 * window_s)
        sd, instrument, culture = noise(window_s, seconds, seed=round(10 * window_s))
        ratios = [
            bound / sd
            for bound in (bound_b0(NOISE_V, window_s), bound_b1(NOISE_V, window_s, k), bound_b2(NOISE_V, window_s, k))
        ]
        table[window_s] = ratios
        note = (
            f"efficiency {ratios[1] ** 2:.3f} of B1, {ratios[2] ** 2:.3f} of B2; "
            f"noise over se_instrument {instrument:.3f}, over se_culture {culture:.3f}"
        )
        rows.append(Row(f"noise over B0, T = {window_s:g} s, k = {k}", 1 / ratios[0], "", budget, note=note))
    chosen = {}
    for rate_hz in RATES_HZ:
        k = choose_half_cycle(rate_hz, 50.0)
        sd, *_ = noise(1.0, SKIP_S + 600 * length, rate_hz, k, seed=round(rate_hz))
        chosen[rate_hz] = (k, sd / bound_b0(NOISE_V, 1.0, rate_hz))
    worst = max(chosen, key=lambda rate: chosen[rate][1])
    note = ", ".join(f"{rate:g}/s: k {k}, {ratio:.2f}" for rate, (k, ratio) in chosen.items())
    rows.append(Row("noise over B0, T = 1 s, converters 774 to 946/s, worst", chosen[worst][1], "", 2.3, note=note))
    by_k = {k: noise(1.0, SKIP_S + 400 * length, 860.0, k, seed=k)[0] / bound_b0(NOISE_V, 1.0) for k in range(2, 13)}
    return rows, {"by_window": table, "by_k": by_k}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8))
    windows = list(details["by_window"])
    left.semilogx(windows, [1 / ratios[0] for ratios in details["by_window"].values()], "o-", label="noise / B0")
    left.semilogx(windows, [ratios[1] / ratios[0] for ratios in details["by_window"].values()], "--", label="B1 / B0")
    left.semilogx(windows, [ratios[2] / ratios[0] for ratios in details["by_window"].values()], ":", label="B2 / B0")
    left.step(windows, [BUDGETS[window] for window in windows], color="0.7", where="mid", label="goal")
    left.set_xlabel("window, s")
    left.set_ylabel("against the always-on mean")
    ks = np.array(list(details["by_k"]))
    right.plot(ks, list(details["by_k"].values()), "o", label="noise / B0, T = 1 s")
    right.plot(ks, 2 / np.sqrt(1 - 1 / ks), "--", label="B1 / B0 = 2 / √(1 − 1/k)")
    right.set_xlabel("k, conversions in half a cycle of the LED")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-efficiency.png")
