"""A whole sampling thread on the simulated vial of a board, in virtual time: readings, events, trace, replay."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from stirbar.core import events
from stirbar.core.config import load_config
from stirbar.core.profiles import load_profile
from stirbar.core.records import READING_DTYPE, TRACE_DTYPE
from stirbar.core.simulation import PARAMETERS
from stirbar.rt.loop import Loop
from stirbar.rt.replay_arrays import Replay

SECOND = 1_000_000_000
PARAMETER = {parameter.name: parameter.index for parameter in PARAMETERS}
QUIET = {
    "culture_noise_percent": "0",
    "particle_noise_percent": "0",
    "vortex_percent": "0",
    "bubble_rate_hz": "0",
    "oscillator_spread_percent": "0",
}


@dataclass
class SampledRun:
    """Run it piece by piece; times are in seconds since the start."""

    profile: str = "simulated"
    settings: dict[tuple[str, str], str] = field(default_factory=dict)
    simulation: dict[str, str] = field(default_factory=dict)
    trace_s: float = 0.0

    def __post_init__(self) -> None:
        overrides = [("unit", "simulate", "1")]
        overrides += [(section, key, text) for (section, key), text in self.settings.items()]
        overrides += [("simulation", key, text) for key, text in self.simulation.items()]
        self.config = load_config(overrides=overrides)
        self.loop = Loop(self.config, virtual=True, profile=load_profile(self.profile))
        self.start_ns = self.loop.now_ns()
        self.parts: list[np.ndarray] = []
        self.events: list[tuple[float, str, int, float]] = []
        self.items = b""
        self.state: bytes | None = None
        if self.trace_s:
            self.loop.push(0, 1, events.COMMAND_TRACE, 0, 0, self.trace_s)
        self.loop.push(0, 2, events.COMMAND_OD_START, 0, 0, 80.0)

    def set(self, name: str, value: float) -> None:
        """Change a parameter of the vial."""
        assert self.loop.push(0, 3, events.COMMAND_SIMULATION, 0, PARAMETER[name], value)

    def run(self, until_s: float) -> SampledRun:
        now_ns = self.loop.now_ns()
        while now_ns < self.start_ns + until_s * SECOND:
            now_ns += SECOND // 10
            self.loop.run_until(now_ns)
            self.parts += [np.frombuffer(data, READING_DTYPE) for *_, data in self.loop.drain_readings()]
            for time_ns, value, argument, code, source in self.loop.drain_events():
                name = events.describe(code, argument, value, str(source))[0]
                self.events.append(((time_ns - self.start_ns) / SECOND, name, argument, value))
            drained = self.loop.drain_trace(0)
            if drained:
                first, data, snapshots = drained
                if self.state is None and snapshots:
                    self.state = snapshots[0][2]
                    data = data[(snapshots[0][1] - first) * np.dtype(TRACE_DTYPE).itemsize :]
                self.items += data if self.state is not None else b""
        return self

    def readings(self, stream: int = 2, low_s: float = 0.0, high_s: float = 1e9) -> np.ndarray:
        """Readings of a stream between two times."""
        everything = np.concatenate(self.parts)
        time = (everything["monotonic_ns"] - self.start_ns) / SECOND
        return everything[(everything["stream"] == stream) & (time >= low_s) & (time < high_s)]

    def times(self, name: str, argument: int | None = None) -> list[float]:
        """When an event happened."""
        return [time for time, told, number, _ in self.events if told == name and argument in (None, number)]

    def trace(self) -> np.ndarray:
        """Everything that the estimators saw."""
        return np.frombuffer(self.items, TRACE_DTYPE)

    def replayed(self) -> np.ndarray:
        """The readings again, from the trace."""
        replay = Replay(False, self.config)
        replay.restore(self.state)
        return np.frombuffer(replay.feed(self.items), READING_DTYPE)
