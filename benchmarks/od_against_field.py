"""Our reading beside the field's, of the same light in the same time: `python -m benchmarks.od_against_field`.

Level 0.1 V, dark 15 mV, noise of 1 mV a conversion for either, as in measurements of the field's own code; "light
noise" gives both the same white light instead, of which the field's longer conversions average more. Errors are root
mean squares about the true level, in percent of it; ours is one window of 5 s for each of the field's, and 1 s.
Neither is told the frequency of the mains.
"""

from __future__ import annotations

import numpy as np
from stirbar.core.bench import Row

from .od_field_method import CONVERSIONS_S, field_method
from .od_light import Light, ours
from .od_report import main

SECONDS = 100.0
SKIP_S = 25.0
STEP = {"steps": [(60.003, 0.01)]}
# name: (light, budget of ours over the field's)
SCENARIOS: dict[str, tuple[dict, float | None]] = {
    "white noise": ({}, 0.25),
    "white light noise": ({"noise_is_light": True}, None),
    "hum 50 Hz, 10 mV": ({"tones": {50.0: 0.01}}, None),
    "hum 49.8 Hz, 10 mV": ({"tones": {49.8: 0.01}}, None),
    "hum 60 Hz, 10 mV": ({"tones": {60.0: 0.01}}, None),
    "lamp flicker 100 Hz, 10 mV": ({"tones": {100.0: 0.01}}, 0.05),
    "lamp flicker 120 Hz, 10 mV": ({"tones": {120.0: 0.01}}, 0.05),
    "ambient light +10 mV after start": (STEP, 0.05),
    "bubbles 2/s of 40 ms, +30 %": ({"bubble_hz": 2.0}, 0.05),
    "bubbles 0.2/s of 40 ms, +30 %": ({"bubble_hz": 0.2}, 0.05),
    "spikes, 2 % of conversions +30 %": ({"spike_share": 0.02}, None),
}


OURS_S = (5.0, 1.0)


def errors(options: dict, runs: int, seed: int) -> dict[str, float]:
    """Root mean square error in percent of the level, of each way of measuring."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*CONVERSIONS_S, *map(ours_name, OURS_S))}
    for run in range(runs):
        light = Light(np.random.default_rng((seed, run)), SECONDS, **options)
        for converter in CONVERSIONS_S:
            times, values, _ = field_method(light, converter)
            found[converter].append(values[times > SKIP_S] - light.level_v)
        for window_s in OURS_S:
            out = ours(light, window_s=window_s, readings_per_second=1 / window_s)
            late = out["monotonic_ns"] > SKIP_S * 1e9
            found[ours_name(window_s)].append(out["value"][late] - light.level_v)
    return {name: 1000.0 * float(np.sqrt(np.mean(np.concatenate(part) ** 2))) for name, part in found.items()}


def ours_name(window_s: float) -> str:
    return f"ours, {window_s:g} s"


def measure(quick: bool) -> tuple[list[Row], dict]:
    runs = 1 if quick else 30
    rows, found = [], {}
    for number, (name, (options, budget)) in enumerate(SCENARIOS.items()):
        found[name] = errors(options, runs, number)
        best = found[name][ours_name(5.0)]
        for converter in CONVERSIONS_S:
            field = found[name][converter]
            note = f"field's {field:.3g} %, ours {best:.3g} % (1 s windows: {found[name][ours_name(1.0)]:.3g} %)"
            rows.append(Row(f"error, {name}: ours over the field's ({converter})", best / field, "", budget, note=note))
    return rows, {"errors_percent": found, "runs": runs}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    found = details["errors_percent"]
    place = np.arange(len(found))
    figure, axes = pyplot.subplots(figsize=(9, 4.8))
    labels = {name: f"the field's, {name}" for name in CONVERSIONS_S} | {name: name for name in map(ours_name, OURS_S)}
    for number, (name, label) in enumerate(labels.items()):
        axes.barh(place + 0.2 * (number - 1.5), [errors[name] for errors in found.values()], 0.19, label=label)
    axes.set_yticks(place, list(found))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("root mean square error of a reading, % of the level")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-against-field.png")
