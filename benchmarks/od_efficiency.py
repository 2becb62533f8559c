"""Noise of a reading against what physics allows: `python -m benchmarks.od_efficiency`.

White noise of five codes. B0: all conversions, LED always on. B1: on minus off of the conversions that are kept. B2: B1
with dark level, drift and mains unknown too (Cramér-Rao). Efficiency is the variance's: (bound / noise)^2. The linear
part is what the window's weights give without the rejection of outliers: computed for each converter and mains, and, in
plain NumPy on the same conversions, beside the noise of the readings. The field's method sees the same noise for 5 s.
"""

from __future__ import annotations

import numpy as np
from stirbar.core.bench import Row
from stirbar.rt.od_arrays import choose_half_cycle, chop_price

from tests.od_twin import null_weights

from .od_field_method import CONVERSIONS_S, INTERVAL_S, SAMPLES, field_method
from .od_light import RATE_HZ, VOLTS_PER_CODE, Light, at_windows, bound_b0, bounds, conversions
from .od_report import main

NOISE_V = 5 * VOLTS_PER_CODE
MAINS_HZ = 50.0
RATES = [(10.0, 0.1), (10.0, 0.2), (10.0, 0.5), (10.0, 1.0)]
SLOW_RATES = [(2.0, 2.0), (1.0, 5.0), (0.2, 20.0)]
FITTED_S = 1.5  # longer windows are sums of one second's blocks
BUDGETS = {0.1: 2.6, 0.2: 2.4, 0.5: 2.35, 1.0: 2.3, 2.0: 2.3, 5.0: 2.3, 20.0: 2.3}
LINEAR_LIMIT, ROBUST_LIMIT = 0.97, 0.93
ROBUST_SHARE = 0.98  # of the linear efficiency in what the chain publishes (pyx/od_price.pxd)
CONVERTERS_HZ = (774.0, 817.0, 860.0, 903.0, 946.0)
FINE_HZ = np.arange(774.0, 947.0, 4.3)
MAINS_SPAN_HZ = (49.5, 50.0, 50.5, 59.5, 60.0, 60.5)
SECONDS, QUICK_SECONDS, SKIP_S = 4000.0, 160.0, 70.0
RUNS = 8


def light_for(seconds: float, seed: int) -> Light:
    return Light(np.random.default_rng(seed), seconds, noise_v=NOISE_V)


def length_s(quick: bool) -> float:
    return QUICK_SECONDS if quick else SECONDS


def linear(light: Light, windows_s: list[float], k: int, rate_hz: float = RATE_HZ) -> list[float]:
    """Variances of the window's weights over plain means, one window at each chop period, without rejection."""
    code, _, _ = conversions(light, rate_hz, k)
    periods = code[: len(code) // (2 * k) * 2 * k].reshape(-1, 2 * k) * VOLTS_PER_CODE
    lit, dark = periods[:, 1:k].mean(axis=1), periods[:, k + 1 :].mean(axis=1)
    difference = lit[1:] - 0.5 * (dark[:-1] + dark[1:])
    found = []
    for window_s in windows_s:
        count = max(1, round(window_s * rate_hz / (2 * k)))
        fitted = window_s <= FITTED_S
        weights = null_weights(count, 2 * k / rate_hz, MAINS_HZ) if fitted else np.full(count, 1 / count)
        found.append(float(np.convolve(difference, weights, mode="valid").var()))
    return found


def exact_linear(window_s: float, k: int, rate_hz: float = RATE_HZ) -> float:
    """Noise of the window's weights in white noise, over B0, as a formula."""
    return float(chop_price(rate_hz, k, window_s, MAINS_HZ)["noise_over_b0"] * np.sqrt(ROBUST_SHARE))


def efficiencies(
    rates: list[tuple[float, float]], k: int, seconds: float, runs: int, rate_hz: float = RATE_HZ
) -> list[tuple[float, float]]:
    """By window: the linear part's variance over that of the readings, and the readings' noise over se_instrument."""
    windows_s = [window_s for _, window_s in rates]
    plain, seen, error = (np.zeros(len(rates)) for _ in range(3))
    for seed in range(runs):
        found = at_windows(light_for(seconds, seed), rates, SKIP_S, half_cycle=k, rate_hz=rate_hz)
        plain += linear(light_for(seconds, seed), windows_s, k, rate_hz)
        for number, out in enumerate(found):
            out = out[out["monotonic_ns"] > 1e9 * (SKIP_S + 2 * windows_s[number])]
            seen[number] += out["value"].var()
            error[number] += np.mean(np.square(out["se_instrument"], dtype=float))
    return [(p / s, float(np.sqrt(s / e))) for p, s, e in zip(plain, seen, error, strict=True)]


def window_rows(quick: bool, k: int) -> tuple[list[Row], dict[float, tuple[float, float, float]]]:
    """Noise by window, and with it B1 and B2, all over B0.

    Noise is the linear part's, exact, times the ratio of both on the same conversions, so that chance has no part in it
    but for what the rejection adds.
    """
    rows, robust, table = [], [], {}
    for rates in (RATES, SLOW_RATES):
        for (rate, window_s), (efficiency, error) in zip(
            rates, efficiencies(rates, k, length_s(quick), 1 if quick else RUNS), strict=True
        ):
            noise = exact_linear(window_s, k) / np.sqrt(efficiency)
            b1, b2 = bounds(window_s, k)
            note = (
                f"{rate:g} readings/s; efficiency {(b1 / noise) ** 2:.3f} of B1, {(b2 / noise) ** 2:.3f} of B2; "
                f"noise over se_instrument {error:.3f}"
            )
            rows.append(Row(f"noise over B0, T = {window_s:g} s, k = {k}", noise, "", BUDGETS[window_s], note=note))
            robust.append(Row(f"robust part of linear, T = {window_s:g} s", efficiency, "", ROBUST_LIMIT, at_least=True,
                              note="the same conversions"))  # fmt: skip
            table[window_s] = (noise, b1, b2)
    return rows + robust, table


def linear_rows() -> list[Row]:
    """The weights alone, wherever converter and mains are."""
    rows = []
    for _, window_s in RATES:
        prices = {
            (rate_hz, mains_hz): chop_price(
                rate_hz, choose_half_cycle(rate_hz, round(mains_hz, -1)), window_s, mains_hz
            )
            for rate_hz in FINE_HZ
            for mains_hz in MAINS_SPAN_HZ
        }
        worst = min(prices, key=lambda one: prices[one]["efficiency_b2"])
        rows.append(Row(f"linear part of B2, T = {window_s:g} s, converters 774 to 946/s, worst",
                        prices[worst]["efficiency_b2"] / ROBUST_SHARE, "", LINEAR_LIMIT, at_least=True,
                        note=f"computed from the weights; worst at {worst[0]:.0f}/s, {worst[1]:g} Hz"))  # fmt: skip
    return rows


def noise_at(rate_hz: float, k: int, quick: bool) -> float:
    """Of 1 s, over B0."""
    [(efficiency, _)] = efficiencies(RATES[-1:], k, length_s(quick), 1, rate_hz)
    return float(exact_linear(1.0, k, rate_hz) / np.sqrt(efficiency))


def measure(quick: bool) -> tuple[list[Row], dict]:
    k = choose_half_cycle(RATE_HZ)
    rows, table = window_rows(quick, k)
    rows += linear_rows()
    chosen = {}
    for rate_hz in CONVERTERS_HZ:
        for mains_hz in (50.0, 60.0):
            best = choose_half_cycle(rate_hz, mains_hz)
            chosen[rate_hz, best] = noise_at(rate_hz, best, quick)
    note = ", ".join(f"{rate:g}/s, k {k}: {ratio:.2f}" for (rate, k), ratio in chosen.items())
    rows.append(Row("noise over B0, T = 1 s, converters 774 to 946/s, worst", max(chosen.values()), "", 2.3, note=note))
    for converter in CONVERSIONS_S:
        values = field_method(light_for(length_s(quick), 1), converter).values
        noise = float(values.std()) / bound_b0(NOISE_V, INTERVAL_S)
        rows.append(Row(f"noise over B0, T = {INTERVAL_S:g} s, the field's ({converter})", noise, "",
                        note=f"{SAMPLES} of the {RATE_HZ * INTERVAL_S:.0f} conversions"))  # fmt: skip
    by_k = {k: noise_at(RATE_HZ, k, quick) for k in range(2, 13, 5 if quick else 1)}
    return rows, {"by_window": table, "by_k": by_k}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8))
    windows = list(details["by_window"])
    for column, (style, label) in enumerate((("o-", "noise / B0"), ("--", "B1 / B0"), (":", "B2 / B0"))):
        left.semilogx(windows, [found[column] for found in details["by_window"].values()], style, label=label)
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
