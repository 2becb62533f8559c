"""A calibration of the stirrer: which duty gives which speed. Measured on a running worker, and made ready for it.

Files are of the field's kind `simple_stirring` (x: DC %, y: RPM). What the worker gets is the curve turned round: the
duty at sixteen equal steps of speed (pyx/feed_forward.pxd). Never loaded by a worker.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from stirbar.core.calibration_fits import evaluate, fit_polynomial

if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.core.client import Worker

    Document = dict[str, Any]

POINTS = 16  # FORWARD_POINTS
GRID = 2001
STANDSTILL_RPM = 30.0
LEAST_DUTIES = 3
NOMINAL_VOLTAGE = 5.0


def table_of(curve: Document, duties: list[float], name: str) -> Document:
    """`low_rpm`, `high_rpm` and the `duty_percent` at sixteen equal steps between them, over the duties measured.

    Raises ValueError where the speed does not rise with the duty, or there is no range.
    """
    if len(set(duties)) < 2:
        raise ValueError(
            f"calibration '{name}' has no recorded_data, so the range in which it holds is not known; measure it anew "
            "with `stirbar calibrations run stirring`"
        )
    low, high = max(0.0, min(duties)), min(100.0, max(duties))
    duty = np.linspace(low, high, GRID)
    rpm = evaluate(curve, duty.tolist())
    falling = np.flatnonzero(np.diff(rpm) <= 0.0)
    if len(falling):
        at = duty[falling[0]]
        raise ValueError(
            f"calibration '{name}' does not rise at a duty of {at:.1f} % ({rpm[falling[0]]:.0f} rpm): no duty can be "
            "told from a speed; measure it anew, or fit it with a lower degree"
        )
    turning = rpm > 0.0
    if rpm[-1] < 1.0 + rpm[turning][0] if turning.any() else True:
        raise ValueError(f"calibration '{name}' gives no speed between {low:g} and {high:g} %: measure it anew")
    steps = np.linspace(float(rpm[turning][0]), float(rpm[-1]), POINTS)
    return {
        "low_rpm": float(steps[0]),
        "high_rpm": float(steps[-1]),
        "duty_percent": np.interp(steps, rpm[turning], duty[turning]).tolist(),
    }


def sweep(low_percent: float, high_percent: float, points: int) -> list[float]:
    """Duties down, up and down again: what sticks or slips shows as a difference of the ways."""
    down = np.linspace(high_percent, low_percent, points).tolist()
    return [*down, *down[::-1], *down]


def measure(
    worker: Worker,
    wait: Callable[[float], object],
    duties: list[float],
    settle_s: float = 2.0,
    measure_s: int = 2,
    say: Callable[[str], object] = lambda text: None,
) -> tuple[list[float], list[float]]:
    """Run the stirrer at each duty; returns the duties at which it turned, and the speeds. It is left as it was found.

    Raises ValueError where it turned at fewer than three of them.
    """
    before = worker.settings()
    state, target = before["stirring", "$state"], before["stirring", "target_rpm"]
    duty_before = before["stirring", "duty_cycle"]
    x: list[float] = []
    y: list[float] = []
    try:
        for duty in duties:
            worker.set("stirring", "duty_cycle", duty)
            if not x and state != "ready":
                worker.start("stirring")
            wait(settle_s)
            speeds = []
            for _ in range(measure_s):
                wait(1.0)
                reading = worker.latest("rpm")
                speeds.append(0.0 if reading is None else float(reading["value"]))
            rpm = float(np.mean(speeds))
            say(f"{duty:6.2f} % {rpm:8.1f} rpm" + ("" if rpm > STANDSTILL_RPM else ": does not turn, left out"))
            if rpm > STANDSTILL_RPM:
                x.append(duty)
                y.append(rpm)
    finally:
        if target is not None:
            worker.set("stirring", "target_rpm", target)
        else:
            worker.set("stirring", "duty_cycle", duty_before)
        if state != "ready":
            worker.stop("stirring")
    if len(set(x)) < LEAST_DUTIES:
        raise ValueError(
            f"the stirrer turned at {len(set(x))} of {len(set(duties))} duties, {LEAST_DUTIES} are needed: check the "
            "stir bar, the fan and its cable, or choose higher duties (--low, --high)"
        )
    return x, y


def hysteresis_rpm(x: list[float], y: list[float]) -> float:
    """The largest difference of two speeds at one duty."""
    by_duty: dict[float, list[float]] = {}
    for duty, rpm in zip(x, y, strict=True):
        by_duty.setdefault(duty, []).append(rpm)
    return max(max(speeds) - min(speeds) for speeds in by_duty.values())


def document(name: str, unit: str, x: list[float], y: list[float], pwm_hz: float, voltage: float) -> Document:
    """The calibration as the field writes it: the polynomial of least AICc."""
    return {
        "calibration_type": "simple_stirring",
        "calibration_name": name,
        "calibrated_on_pioreactor_unit": unit,
        "created_at": datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        "curve_data_": fit_polynomial(x, y),
        "x": "DC %",
        "y": "RPM",
        "recorded_data": {"x": x, "y": y},
        "pwm_hz": pwm_hz,
        "voltage": voltage,
    }
