"""Are both standard errors right? `python -m benchmarks.od_errors`

What readings scatter, over the error that they carry: 1 is right, more is an error too small. `se_instrument` against
the difference of two converters that see the same light; `se_culture` against all of it. White noise,
Ornstein-Uhlenbeck noise of the density (IS-27: 20, 60 and 120 ms), a vortex that turns with the stirrer, bubbles. The
field publishes no error; what stands for it is the spread of a batch's 38 samples about the fit, over the root of 38.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from stirbar.core.bench import Row

from .od_field_method import field_method
from .od_light import RATE_HZ, VOLTS_PER_CODE, Array, Light, at_windows, rms
from .od_report import main

NOISE_V = 5 * VOLTS_PER_CODE
CULTURE = 0.003  # standard deviation of the density as the light sees it
TURN_HZ = 8.33
WINDOWS_S = (0.1, 0.2, 1.0, 5.0)
RATES = [(10.0, 1.0), (5.0, 0.2), (10.0, 0.1), (0.2, 5.0)]
TAUS_S = (0.02, 0.06, 0.12)
SECONDS, QUICK_SECONDS, SKIP_S = 3370.0, 200.0, 170.0
LIMIT_PERCENT = 10.0
FIELDS = "the field's"


class Case(NamedTuple):
    """A culture that flickers by `shine`, and what else is in the light."""

    shine: Callable[[Array], Array] | None = None
    turn_s: float = 0.0
    spike_share: float = 0.0


def ornstein_uhlenbeck(count: int, tau_s: float, rng: np.random.Generator) -> Array:
    """Unit variance at RATE_HZ, exact: chunks of a geometric series."""
    decay = np.exp(-1 / RATE_HZ / tau_s)
    kicks = np.sqrt(1 - decay**2) * rng.standard_normal(count)
    powers = decay ** np.arange(64)
    mixing = np.tril(decay ** np.abs(np.subtract.outer(np.arange(64), np.arange(64))))
    out, last = np.empty(count), 0.0
    for begin in range(0, count, 64):
        part = kicks[begin : begin + 64]
        out[begin : begin + 64] = mixing[: len(part), : len(part)] @ part + last * decay * powers[: len(part)]
        last = out[min(begin + 63, count - 1)]
    return out


def following(noise: Array) -> Callable[[Array], Array]:
    grid = np.arange(len(noise)) / RATE_HZ
    return lambda t: 1 + np.interp(t, grid, noise)


def cases(seconds: float) -> dict[str, Case]:
    count, rng = int(seconds * RATE_HZ), np.random.default_rng(5)
    turn = 2 * np.pi * np.cumsum(TURN_HZ * (1 + 0.01 * ornstein_uhlenbeck(count, 1.2, rng))) / RATE_HZ
    vortex = following(CULTURE * np.cos(turn) + 2 / 3 * CULTURE * np.cos(2 * turn + 1))
    return {
        "white noise": Case(),
        **{
            f"culture of τ {1000 * tau_s:g} ms": Case(following(CULTURE * ornstein_uhlenbeck(count, tau_s, rng)))
            for tau_s in TAUS_S
        },
        "vortex": Case(vortex),
        "vortex, whole turns": Case(vortex, turn_s=1 / TURN_HZ),
        "bubbles, 5 % at 6 σ": Case(spike_share=0.05),
    }


class Scatter(NamedTuple):
    """Of readings over their errors, and the culture's part: scatter of all over that of the light alone."""

    instrument: float
    culture: float
    times: float


def light_for(case: Case, seconds: float, seed: int) -> Light:
    height = 6 * NOISE_V / 0.1
    return Light(
        np.random.default_rng(seed),
        seconds,
        noise_v=NOISE_V,
        shine=case.shine,
        spike_share=case.spike_share,
        bubble_share=height,
    )


def scatter(a: Array, b: Array, instrument: NDArray[np.floating], culture: NDArray[np.floating]) -> Scatter:
    """Of two runs with the same culture and different noise."""
    count = min(len(a), len(b))
    light_v = float((a[-count:] - b[-count:]).std() / np.sqrt(2))
    all_v = float(np.sqrt((a.var() + b.var()) / 2))
    return Scatter(light_v / rms(instrument), all_v / rms(culture), all_v / light_v)


def measured(case: Case, seconds: float) -> dict[float | str, Scatter]:
    """By window, and the field's."""
    runs = [at_windows(light_for(case, seconds, seed), RATES, SKIP_S, turn_s=case.turn_s) for seed in (1, 2)]
    found: dict[float | str, Scatter] = {}
    for (_, window_s), a, b in zip(RATES, *runs, strict=True):
        found[window_s] = scatter(a["value"], b["value"], a["se_instrument"], a["se_culture"])
    first, second = (field_method(light_for(case, seconds, seed)) for seed in (1, 2))
    found[FIELDS] = scatter(first.values, second.values, first.errors, first.errors)
    return found


def measure(quick: bool) -> tuple[list[Row], dict]:
    seconds = QUICK_SECONDS if quick else SECONDS
    table = {name: measured(case, seconds) for name, case in cases(seconds).items()}
    rows = []
    for name, found in table.items():
        for which in ("culture", "instrument"):
            ratios = {window_s: getattr(found[window_s], which) for window_s in WINDOWS_S}
            worst = max(ratios, key=lambda window_s: abs(ratios[window_s] - 1))
            note = "noise over it " + ", ".join(
                f"T = {window_s:g} s: {ratio:.3f}" for window_s, ratio in ratios.items()
            )
            if which == "culture":
                note += f"; its noise is {found[1.0].times:.1f} times the light's at 1 s"
            rows.append(
                Row(f"se_{which} off by, {name}, worst T", 100 * abs(ratios[worst] - 1), "%",
                    LIMIT_PERCENT if which == "culture" else None, note=note)
            )  # fmt: skip
        field = found[FIELDS].culture
        what = f"spread of the samples off by, {name}, {FIELDS}"
        rows.append(Row(what, 100 * abs(field - 1), "%", note=f"noise over it {field:.3f}"))
    return rows, {"table": table}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    table = details["table"]
    place = np.arange(len(table))
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True)
    for panel, which in zip(axes, ("instrument", "culture"), strict=True):
        for number, window_s in enumerate(WINDOWS_S):
            ratios = [getattr(found[window_s], which) for found in table.values()]
            panel.plot(ratios, place + 0.12 * (number - 1.5), "o", ms=4, label=f"T = {window_s:g} s")
        panel.axvspan(0.9, 1.1, color="0.9", zorder=0)
        panel.set_xlabel(f"noise / se_{which}")
        panel.grid(axis="x", alpha=0.3)
    axes[1].plot([found[FIELDS].culture for found in table.values()], place, "x", color="k", label=FIELDS)
    axes[0].set_yticks(place, list(table))
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-errors.png")
