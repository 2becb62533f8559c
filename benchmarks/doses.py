"""How much more or less comes in than was asked for? `python -m benchmarks.doses`

A thousand doses of 0.05 to 1 mL, by each of the three pumps in turn, in virtual time with threads that wake as late as
they do on this machine, against the volume that the simulated pumps have really moved. The pumps are as their
calibration says, so that what is left is timing. And the account: what the loop says it moved, against the same truth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from stirbar.core import events
from stirbar.core.bench import Row
from stirbar.core.bench_virtual import measured_lateness, worker_config
from stirbar.core.jobs import ACTUATORS
from stirbar.rt.loop import Loop

from .od_report import main

DOSES, QUICK_DOSES = 1000, 60
SHUT_OFF_S = 0.01  # reference figure of pump shut-off: 10 ms
FLOW_ML_PER_S = 0.5
LOOK_NS = 50_000_000
LATENESS_S, QUICK_LATENESS_S = 20.0, 3.0


class Pumping:
    """A loop in virtual time, its commands and what they did."""

    def __init__(self, late_ns: list[int]) -> None:
        settings = {
            "simulation": {"pump_spread_percent": "0", "pump_ml_per_s": f"{FLOW_ML_PER_S}"},
            "dosing_automation.config": {
                "minimum_interval_s": "0",
                "inflow_without_evidence_ml": "0",
                "pause_between_subdoses_seconds": "0",
            },
        }
        overrides = [(section, key, text) for section, keys in settings.items() for key, text in keys.items()]
        self.loop = Loop(worker_config(None, overrides), virtual=True)
        self.loop.wake_late(late_ns)
        self.number = 0
        for pump in range(3):
            self.send(events.COMMAND_PUMP, pump, FLOW_ML_PER_S)

    def send(self, code: int, channel: int, value: float) -> None:
        self.number += 1
        assert self.loop.push(ACTUATORS, self.number, code, channel, 0, value)
        self.run()

    def run(self) -> list[tuple[int, float, int, int, int]]:
        self.loop.run_until(self.loop.now_ns() + LOOK_NS)
        found = self.loop.drain_events()
        refused = [event for event in found if event[3] == events.EVENT_COMMAND_REFUSED]
        assert not refused, refused
        return found

    def dose(self, pump: int, ml: float) -> tuple[float, float]:
        """(moved, accounted) in mL."""
        self.send(events.COMMAND_VOLUME, 0, 10.0)
        before = self.loop.simulated_truth()["pumped_ml"][pump]
        self.send(events.COMMAND_DOSE_ML, pump, ml)
        accounted = 0.0
        while self.loop.dosing():
            accounted += sum(event[1] for event in self.run() if event[3] == events.EVENT_DOSE_STEP)
        self.loop.drain_readings()
        self.loop.simulated_orders()
        moved = (self.loop.simulated_truth()["pumped_ml"][pump] - before) % 2**32
        return moved, accounted


def measure(quick: bool) -> tuple[list[Row], dict[str, Any]]:
    late_ns = measured_lateness(worker_config(), QUICK_LATENESS_S if quick else LATENESS_S)
    rng = np.random.default_rng(4)
    pumping = Pumping(late_ns)
    asked = rng.uniform(0.05, 1.0, QUICK_DOSES if quick else DOSES)
    done = np.array([pumping.dose(number % 3, ml) for number, ml in enumerate(asked)])
    error_ul = 1e3 * (done[:, 0] - asked)
    account_ul = 1e3 * (done[:, 1] - done[:, 0])
    limit_ul = 1e3 * SHUT_OFF_S * FLOW_ML_PER_S
    p50, p99 = (late_ns[len(late_ns) * part // 100] / 1e3 for part in (50, 99))
    note = f"{len(asked)} doses at {FLOW_ML_PER_S} mL/s; wake-ups late by {p50:.0f} µs (p50), {p99:.0f} (p99)"
    rows = [
        Row("dose, error: median", float(np.median(np.abs(error_ul))), "µL", note=note),
        Row("dose, error: p99", float(np.quantile(np.abs(error_ul), 0.99)), "µL"),
        Row("dose, error: largest", float(np.max(np.abs(error_ul))), "µL", limit_ul, note="10 ms of the pump's flow"),
        Row("dose, error in all", 100 * float(np.sum(error_ul) / np.sum(1e3 * asked)), "%"),
        Row("dose, the account against what was moved: largest", float(np.max(np.abs(account_ul))), "µL", limit_ul),
    ]
    return rows, {}


if __name__ == "__main__":
    main(__doc__, measure, None)
