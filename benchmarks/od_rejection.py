"""How much of a tone of other light or hum is left in a reading: `python -m benchmarks.od_rejection`.

A tone of 0.1 V beside a level of 0.1 V, noise of a third of a code; what is left is the standard deviation of the
readings over the tone's own (0 dB: all of it), our own noise included (the floor of the figure). Ours at T = 0.2, 1 and
5 s, the field's with either converter. Ambient light slower than the readings counts as far as it moves them.
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
MAINS_OFFSETS_HZ = (-0.5, -0.2, 0.0, 0.3)
RATES_HZ = (774.0, 812.0, 860.0, 903.0, 946.0)


def light_for(hz: float, seed: int) -> Light:
    return Light(np.random.default_rng(seed), SECONDS, noise_v=VOLTS_PER_CODE / 3, tones={hz: TONE_V}, dark_v=0.12)


def left_db(values: np.ndarray) -> float:
    return float(20 * np.log10(max(np.std(values) / (TONE_V / np.sqrt(2)), 1e-9)))


def ours_db(hz: float, window_s: float, rate_hz: float = 860.0, mains_hz: float = 50.0, seed: int = 1) -> float:
    out = ours(light_for(hz, seed), window_s=window_s, rate_hz=rate_hz, mains_hz=mains_hz)
    return left_db(out["value"][out["monotonic_ns"] > SKIP_S * 1e9])


def curves(points: int) -> dict[str, list[tuple[float, float]]]:
    """Rejection against frequency, 0.02 to 425 Hz."""
    frequencies = np.geomspace(0.02, 425.0, points)
    found: dict[str, list[tuple[float, float]]] = {}
    for number, hz in enumerate(frequencies):
        for window_s in WINDOWS_S:
            found.setdefault(f"ours, T = {window_s:g} s", []).append((hz, ours_db(hz, window_s, seed=number)))
        for converter in CONVERSIONS_S:
            _, values = field_method(light_for(hz, number), converter, 50.0)
            found.setdefault(f"the field's, {converter}", []).append((hz, left_db(values)))
    return found


def worst_mains(quick: bool) -> tuple[float, str]:
    """The worst of 50 and 60 Hz ± 0.5, harmonics 1 and 2, converters 774 to 946 a second, T = 1 s, k for that mains."""
    worst, where = -200.0, ""
    for rate_hz in RATES_HZ[::4] if quick else RATES_HZ:
        for nominal in (50.0, 60.0):
            for offset in MAINS_OFFSETS_HZ[::3] if quick else MAINS_OFFSETS_HZ:
                for harmonic in (1, 2):
                    left = ours_db(harmonic * (nominal + offset), 1.0, rate_hz, nominal)
                    if left > worst:
                        worst, where = left, f"{harmonic * (nominal + offset):g} Hz at {rate_hz:g}/s"
    return worst, where


def measure(quick: bool) -> tuple[list[Row], dict]:
    found = curves(12 if quick else 90)
    rows = []
    for window_s, budget in ((0.2, -40.0), (1.0, -40.0), (5.0, None)):
        slow = [left for hz, left in found[f"ours, T = {window_s:g} s"] if hz <= 5.0]
        rows.append(Row(f"ambient light up to 5 Hz, T = {window_s:g} s, worst", max(slow), "dB", budget))
    worst, where = worst_mains(quick)
    rows.append(
        Row("mains, T = 1 s, worst", worst, "dB", -80.0, note=f"{where}; one harmonic alone, our noise included")
    )
    for converter in CONVERSIONS_S:
        slow = [left for hz, left in found[f"the field's, {converter}"] if hz <= 5.0]
        rows.append(Row(f"ambient light up to 5 Hz, the field's ({converter}), worst", max(slow), "dB"))
    return rows, {"curves": found}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 4.8))
    for name, points in details["curves"].items():
        axes.semilogx(*zip(*points, strict=True), lw=1.2, label=name, ls="--" if name.startswith("the") else "-")
    for hz in (50, 60, 100, 120):
        axes.axvline(hz, color="0.85", lw=0.8, zorder=0)
    axes.set_xlabel("frequency of the other light, Hz")
    axes.set_ylabel("what is left of it in a reading, dB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-rejection.png")
