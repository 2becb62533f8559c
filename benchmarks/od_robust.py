"""Bias and noise when bubbles cross the light: `python -m benchmarks.od_robust`.

One-sided outliers on the lit conversions, alone and in runs as bubbles make them. Each figure is the difference to,
or the ratio with, the same windows without them, the noise being the same; the unit (SE) is the standard deviation of
those. The field's method (40 conversions, smallest and largest dropped) sees the same light.
"""

from __future__ import annotations

import numpy as np
from stirbar.core.bench import Row

from .od_field_method import field_method
from .od_light import Array, Light, at_windows
from .od_report import main

NOISE_V = 1e-3
LEVEL_V = 0.1
# share of conversions, height in sigma, length of a run in seconds (0: single conversions), budgets of bias and noise
CASES = (
    (0.05, 4.0, 0.0, 0.7, None),
    (0.05, 6.0, 0.0, 0.1, 1.1),
    (0.05, 6.0, 0.014, 0.1, 1.1),
    (0.25, 10.0, 0.0, 0.1, 2.0),
    (0.25, 10.0, 0.014, 0.1, 2.0),
    (0.10, 40.0, 0.023, None, None),
    (0.02, 1.0, 0.1, None, None),
)
RATES = [(5.0, 0.2), (2.0, 0.5), (1.0, 1.0), (0.2, 5.0)]
WINDOWS_S = [window_s for _, window_s in RATES]
SKIP_S = 75.0
HEIGHTS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 25.0, 40.0)
SEED = 1
FIELDS = "the field's"


def light_for(share: float, sigmas: float, run_s: float, seconds: float) -> Light:
    relative = sigmas * NOISE_V / LEVEL_V
    rng = np.random.default_rng(SEED)
    if run_s:  # runs may overlap: so many cover the share
        hz = -np.log1p(-share) / run_s
        return Light(rng, seconds, noise_v=NOISE_V, bubble_hz=hz, bubble_s=run_s, bubble_share=relative)
    return Light(rng, seconds, noise_v=NOISE_V, spike_share=share, bubble_share=relative)


def values(share: float, sigmas: float, run_s: float, seconds: float) -> dict[str, Array]:
    """Errors of independent readings of each way of measuring."""
    found = at_windows(light_for(share, sigmas, run_s, seconds), RATES, SKIP_S)
    times, field, _ = field_method(light_for(share, sigmas, run_s, seconds))
    ours = {name(window_s): out["value"] - LEVEL_V for window_s, out in zip(WINDOWS_S, found, strict=True)}
    return {**ours, FIELDS: field[times > SKIP_S] - LEVEL_V}


def name(window_s: float) -> str:
    return f"T = {window_s:g} s"


def compared(dirty: Array, clean: Array) -> tuple[float, float, float]:
    """Bias in standard deviations of the clean readings, two standard errors of that, and the noise over theirs."""
    count = min(len(dirty), len(clean))
    change = dirty[-count:] - clean[-count:]
    spread = clean.std()
    return float(change.mean() / spread), float(2 * change.std() / spread / np.sqrt(count)), float(dirty.std() / spread)


def measure(quick: bool) -> tuple[list[Row], dict]:
    seconds = 135.0 if quick else 2075.0
    clean = values(0.0, 0.0, 0.0, seconds)
    rows = []
    for share, sigmas, run_s, bias_limit, noise_limit in CASES:
        what = f"{share:.0%} at {sigmas:g} σ" + (f" in runs of {1000 * run_s:g} ms" if run_s else "")
        dirty = values(share, sigmas, run_s, seconds)
        found = {key: compared(dirty[key], clean[key]) for key in clean}
        field_bias, field_sure, field_noise = found.pop(FIELDS)
        partly = "; conversions that a run covers in part are less high and hide" if run_s else ""
        bias = "; ".join(f"{key}: {one[0]:+.3f} ± {one[1]:.3f}" for key, one in found.items())
        noise = "; ".join(f"{key}: {one[2]:.3f}" for key, one in found.items())
        rows += [
            Row(
                f"bias, {what}, worst T",
                max(abs(one[0]) for one in found.values()),
                "SE",
                bias_limit,
                note=bias + partly,
            ),
            Row(f"bias, {what}, {FIELDS}", abs(field_bias), "of its SE", note=f"{field_bias:+.3f} ± {field_sure:.3f}"),
            Row(f"noise, {what}, worst T", max(one[2] for one in found.values()), "of clean", noise_limit, note=noise),
            Row(f"noise, {what}, {FIELDS}", field_noise, "of clean"),
        ]
    heights = {sigmas: values(0.05, sigmas, 0.0, 0.25 * seconds + SKIP_S) for sigmas in HEIGHTS[:: 5 if quick else 1]}
    return rows, {"heights": heights}


def plot(details: dict, path: str) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8))
    heights = details["heights"]
    for key, label, style in (
        (name(1.0), "ours, T = 1 s", "o-"),
        (name(5.0), "ours, T = 5 s", "s-"),
        (FIELDS, "the field's", "o--"),
    ):
        percent = {sigmas: 100 * found[key] / LEVEL_V for sigmas, found in heights.items()}
        left.plot(
            list(percent),
            [errors.mean() - percent[0.0].mean() for errors in percent.values()],
            style,
            ms=4,
            label=label,
        )
        right.plot(list(percent), [errors.std() for errors in percent.values()], style, ms=4, label=label)
    left.plot(list(heights), [5 * sigmas * NOISE_V / LEVEL_V for sigmas in heights], ":", color="0.5", label="a mean")
    left.set_ylabel("bias, % of the level")
    right.set_ylabel("noise of a reading, % of the level")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xlabel("height of the outliers, σ of a conversion")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    left.set_title("5 % of the lit conversions", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main(__doc__, measure, plot, "od-robust.png")
