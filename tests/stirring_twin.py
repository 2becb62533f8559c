"""Slow, obvious counterparts of the tachometer's line and of a stirrer: for tests and tuning.

`python tests/stirring_twin.py [rpm ...]` prints the step responses of all plants.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

MS = 1_000_000
SECOND = 1_000_000_000


def line_speed(stamps_ns: np.ndarray, indices: np.ndarray, pulses_per_turn: int = 1) -> tuple[float, float]:
    """Speed in rpm and the residuals' standard deviation in ns of the line through (index, stamp)."""
    t = stamps_ns.astype(float) - float(stamps_ns[0])
    slope, offset = np.polyfit(indices - indices[0], t, 1)
    residuals = t - (offset + slope * (indices - indices[0]))
    return 60e9 / (slope * pulses_per_turn), float(np.std(residuals))


def rotor_edges(
    rpm: float, seconds: float, jitter_ns: float = 0.0, pulses_per_turn: int = 1, seed: int = 1, start_ns: int = SECOND
) -> np.ndarray:
    """Stamps of an ideal rotor, each with Gaussian jitter: int64, shape (n,)."""
    interval = 60e9 / (rpm * pulses_per_turn)
    n = int(seconds * 1e9 / interval)
    noise = np.random.default_rng(seed).normal(0.0, jitter_ns, n)
    return np.rint(start_ns + interval * np.arange(n) + noise).astype(np.int64)


@dataclass
class LagPlant:
    """A fan as a lag: full x (duty - dead) / (1 - dead) turns a second; from rest it needs `start`."""

    full_hz: float = 50.0
    dead: float = 0.10
    start: float = 0.15
    tau_s: float = 0.4
    speed_hz: float = 0.0

    def step(self, duty: float, dt_s: float) -> None:
        wanted = 0.0
        if duty > self.dead and (self.speed_hz > 0.01 or duty >= self.start):
            wanted = self.full_hz * (duty - self.dead) / (1.0 - self.dead)
        self.speed_hz += (wanted - self.speed_hz) * (1.0 - math.exp(-dt_s / self.tau_s))


@dataclass
class FanPlant:
    """Inertia, Coulomb and static friction, viscous and quadratic drag; torque in proportion to duty.

    In units of the acceleration at full duty: top speed is where 1 = coulomb + viscous w + quadratic w^2.
    """

    acceleration_hz_per_s: float = 125.0
    coulomb: float = 0.10
    static: float = 0.15
    viscous_per_hz: float = 0.008
    quadratic_per_hz2: float = 0.0002
    speed_hz: float = 0.0

    def step(self, duty: float, dt_s: float) -> None:
        if self.speed_hz <= 0.0 and duty < self.static:
            return
        drag = self.coulomb + self.viscous_per_hz * self.speed_hz + self.quadratic_per_hz2 * self.speed_hz**2
        self.speed_hz = max(0.0, self.speed_hz + self.acceleration_hz_per_s * (duty - drag) * dt_s)


PLANTS = {
    "nominal": LagPlant(),
    "30 % faster": LagPlant(full_hz=65.0),
    "30 % slower": LagPlant(full_hz=35.0),
    "30 % slower, harder to start": LagPlant(full_hz=35.0, dead=0.13, start=0.195),
    "30 % faster, easier to start": LagPlant(full_hz=65.0, dead=0.07, start=0.105),
    "30 % heavier": LagPlant(tau_s=0.52),
    "30 % lighter": LagPlant(tau_s=0.28),
    "inertia and drag": FanPlant(),
    "more drag": FanPlant(quadratic_per_hz2=0.0004, viscous_per_hz=0.012),
    "less drag": FanPlant(acceleration_hz_per_s=160.0, quadratic_per_hz2=0.0001),
}


@dataclass
class Trial:
    """What a run of controller and plant gave, one row per millisecond or tick."""

    time_s: list[float] = field(default_factory=list)
    rpm: list[float] = field(default_factory=list)
    duty: list[float] = field(default_factory=list)
    events: list[tuple[float, int, float]] = field(default_factory=list)
    readings: list[bytes] = field(default_factory=list)
    turns: list[bytes] = field(default_factory=list)

    def speed(self, begin_s: float, end_s: float = math.inf) -> np.ndarray:
        t = np.array(self.time_s)
        return np.array(self.rpm)[(t >= begin_s) & (t < end_s)]

    def settled_s(self, target: float, part: float = 0.01, begin_s: float = 0.0, end_s: float = math.inf) -> float:
        """Seconds after begin_s from which the true speed stays within part of the target until end_s."""
        t = np.array(self.time_s)
        keep = (t >= begin_s) & (t < end_s)
        outside = np.abs(np.array(self.rpm)[keep] / target - 1.0) > part
        if not outside.any():
            return 0.0
        last = int(np.flatnonzero(outside)[-1])
        times = t[keep]
        return math.inf if last + 1 >= len(times) else float(times[last + 1] - begin_s)


class Bench:
    """A controller on a plant: 1 ms physics, edges where the magnet passes, control ticks on a 10 ms grid."""

    def __init__(
        self,
        stirrer,
        plant,
        *,
        jitter_ns: float = 50e3,
        phase: float = 0.5,
        seed: int = 1,
        pulses_per_turn: int = 1,
        tick_ms: Callable[[], int] | None = None,
        sensor: Callable[[float, np.random.Generator], list[float]] | None = None,
    ) -> None:
        self.stirrer = stirrer
        self.plant = plant
        self.jitter_ns = jitter_ns
        self.random = np.random.default_rng(seed)
        self.pulses = pulses_per_turn
        self.turns = phase / pulses_per_turn
        self.tick_ms = tick_ms or (lambda: 10)
        self.sensor = sensor or (lambda stamp_ns, random: [stamp_ns])
        self.now_ms = 1000
        self.next_tick_ms = 1000
        self.duty = 0.0
        self.pending: list[int] = []
        self.trial = Trial()

    @property
    def now_ns(self) -> int:
        return self.now_ms * MS

    def tick(self) -> None:
        for stamp in sorted(self.pending):
            self.stirrer.edge(stamp)
        self.pending.clear()
        self.duty, event, value = self.stirrer.tick(self.now_ns)
        if event:
            self.trial.events.append((self.now_ms / 1000 - 1, event, value))
        reading = self.stirrer.reading(self.now_ns)
        if reading is not None:
            self.trial.readings.append(reading)
        turns = self.stirrer.turns(self.now_ns)
        if turns is not None:
            self.trial.turns.append(turns)
        self.next_tick_ms += self.tick_ms()

    def edges(self, before: float, after: float) -> Iterator[float]:
        """Stamps of the magnet passages while the angle went from before to after within the last ms."""
        for pulse in range(math.ceil(before * self.pulses), math.ceil(after * self.pulses)):
            yield self.now_ns - MS * (after - pulse / self.pulses) / (after - before)

    def run(self, seconds: float) -> Trial:
        for _ in range(round(seconds * 1000)):
            if self.now_ms >= self.next_tick_ms:
                self.tick()
            self.plant.step(self.duty / 100.0, 1e-3)
            self.now_ms += 1
            after = self.turns + self.plant.speed_hz * 1e-3
            for stamp in self.edges(self.turns, after):
                noisy = stamp + self.random.normal(0.0, self.jitter_ns)
                self.pending += [round(s) for s in self.sensor(noisy, self.random)]
            self.turns = after
            self.trial.time_s.append(self.now_ms / 1000 - 1)
            self.trial.rpm.append(self.plant.speed_hz * 60)
            self.trial.duty.append(self.duty)
        return self.trial


def main(targets: list[float]) -> None:
    """Print, per plant and target, the worst of five rotor positions at the start."""
    from stirbar.rt.control_arrays import Stirrer

    print(f"{'plant':30} {'rpm':>5} {'within 1 % after':>17} {'highest':>8} {'then rms':>9}")
    for (name, plant), target in ((item, target) for target in targets for item in PLANTS.items()):
        settled, peak, held = [], [], []
        seconds = 8 if target >= 200 else 24
        for phase in (0.02, 0.25, 0.5, 0.75, 0.98):
            bench = Bench(Stirrer(), copy.copy(plant), phase=phase)
            bench.stirrer.target_rpm(target, bench.now_ns)
            trial = bench.run(seconds)
            settled.append(trial.settled_s(target))
            peak.append(max(trial.rpm))
            held.append(float(np.sqrt(np.mean((trial.speed(seconds * 3 / 8) / target - 1) ** 2))))
        print(f"{name:30} {target:5.0f} {max(settled):15.2f} s {max(peak):8.0f} {100 * max(held):7.3f} %")


if __name__ == "__main__":
    main([float(text) for text in sys.argv[1:]] or [500.0])
