"""How much of a tone of other light or hum is left in a reading: `python -m benchmarks.od_rejection`.

A tone of 0.1 V beside a level of 0.1 V, noise of a third of a code; what is left is the standard deviation of the
readings over the tone's own (0 dB: all of it), our own noise included (the floor of the figure). Ours at T = 0.2, 1
and 5 s, the field's with either converter; nobody is told the mains. Ambient light slower than the readings counts as
far as it moves them. Hum with its harmonics, at every converter rate: `benchmarks.od_mains`.
"""

from __future__ import annotations

import numpy as np
from stirbar.core.bench import Row

from .od_field_method import CONVERSIONS_S, field_method
from .od_light import VOLTS_PER_CODE, Light, ours
from .od_report import main

TONE_V = 0.1
SECONDS, SKIP_S = 60.0, 20.0
WINDOWS_S = (0.2, 1.0, 5.0)
MARKED_HZ = (50.0, 60.0, 100.0, 120.0)
NEAR_HZ = (0.1, 1.0)  # beside each of them


def light_for(hz: float, seed: int) -> Light:
    return Light(np.random.default_rng(seed), SECONDS, noise_v=VOLTS_PER_CODE / 3, tones={hz: TONE_V}, dark_v=0.12)


def left_db(values: np.ndarray) -> float:
    return float(20 * np.log10(max(np.std(values) / (TONE_V / np.sqrt(2)), 1e-9)))


def ours_db(hz: float, window_s: float, seed: int = 1) -> float:
    out = ours(light_for(hz, seed), window_s=window_s)
    return left_db(out["value"][out["monotonic_ns"] > SKIP_S * 1e9])


def frequencies(quick: bool) -> np.ndarray:
    """0.02 to 425 Hz, the marked ones and what is near them included."""
    near = (0.0,) if quick else (-NEAR_HZ[1], -NEAR_HZ[0], 0.0, *NEAR_HZ)
    beside = [hz + off for hz in MARKED_HZ for off in near]
    return np.unique([*np.geomspace(0.02, 425.0, 8 if quick else 90), *beside])


def curves(quick: bool) -> dict[str, list[tuple[float, float]]]:
    """What is left against frequency, of each way of measuring."""
    found: dict[str, list[tuple[float, float]]] = {}
    for number, hz in enumerate(frequencies(quick)):
        for window_s in WINDOWS_S:
            found.setdefault(f"ours, T = {window_s:g} s", []).append((hz, ours_db(hz, window_s, seed=number)))
        for converter in CONVERSIONS_S:
            _, values, _ = field_method(light_for(hz, number), converter)
            found.setdefault(f"the field's, {converter}", []).append((hz, left_db(values)))
    return found


def measure(quick: bool) -> tuple[list[Row], dict]:
    found = curves(quick)
    rows = []
    for window_s, budget in ((0.2, -40.0), (1.0, -40.0), (5.0, None)):
        slow = [left for hz, left in found[f"ours, T = {window_s:g} s"] if hz <= 5.0]
        rows.append(Row(f"ambient light up to 5 Hz, T = {window_s:g} s, worst", max(slow), "dB", budget))
    for converter in CONVERSIONS_S:
        slow = [left for hz, left in found[f"the field's, {converter}"] if hz <= 5.0]
        rows.append(Row(f"ambient light up to 5 Hz, the field's ({converter}), worst", max(slow), "dB"))
    return rows, {"curves": found}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.8))
    for name, points in details["curves"].items():
        axes.semilogx(*zip(*points, strict=True), lw=1.2, label=name, ls="--" if name.startswith("the") else "-")
    for hz in MARKED_HZ:
        axes.axvline(hz, color="0.85", lw=0.8, zorder=0)
    axes.set_xlabel("frequency of the other light, Hz")
    axes.set_ylabel("what is left of it in a reading, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-rejection.png")
