"""Light for the OD chain, and the chain's slow, obvious NumPy twin.

`Bench` makes the conversions of one or more photodiodes under a chopped LED, as a converter of its own rate would see
them; the functions below it repeat the chain's formulas with whole arrays, as docs/optical-density.md writes them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from stirbar.rt.od_arrays import OdChain, classify

VOLTS_PER_CODE = 1.024 / 32768
ON, OFF, EDGE = 1, 0, 2


class Record(NamedTuple):
    """Conversions of one channel, and where their clock begins."""

    index: np.ndarray
    code: np.ndarray
    phase: np.ndarray
    clipped: np.ndarray
    middle_s: np.ndarray
    t0_ns: int
    period_ns: float


class Bench:
    """An LED chopped every k conversions of a master converter at `rate_hz`, for `seconds`, from `start_s` on."""

    def __init__(self, seconds: float, rate_hz: float = 860.0, k: int = 5, start_s: float = 100.0, seed: int = 1):
        self.seconds, self.rate_hz, self.k, self.start_s = seconds, rate_hz, k, start_s
        self.rng = np.random.default_rng(seed)
        count = int(seconds * rate_hz / k)
        edge_s = start_s + (np.arange(count) + 1) * k / rate_hz + 80e-6  # the thread writes after it has read
        self.edges_ns = np.column_stack([edge_s * 1e9 - 20000, edge_s * 1e9 + 20000]).astype(np.int64)
        self.levels = (np.arange(count) + 1) % 2

    def record(
        self,
        level_v: float = 0.1,
        noise_v: float = 5 * VOLTS_PER_CODE,
        rate_hz: float | None = None,
        hum: dict[float, float] | None = None,
        ambient_v: float = 0.002,
        light=None,
        shine=None,
        chopped: bool = True,
        spikes=None,
    ) -> Record:
        """Conversions of one photodiode.

        `hum` maps Hz to volts; `light(t)` adds volts to every conversion, `shine(t)` multiplies the LED's light,
        `spikes(rng, n)` adds volts to the lit conversions. An unchopped record has the LED always on.
        """
        rate_hz = rate_hz or self.rate_hz
        n = int(self.seconds * rate_hz)
        end_s = self.start_s + (np.arange(n) + 1) / rate_hz
        middle_s = end_s - 0.5 / rate_hz
        end_ns = np.round(end_s * 1e9).astype(np.int64)
        phase = (
            classify(self.edges_ns, self.levels, end_ns - round(1e9 / rate_hz), end_ns)
            if chopped
            else np.full(n, ON, dtype=np.uint8)
        )
        volts = ambient_v + noise_v * self.rng.standard_normal(n)
        lit = level_v * (shine(middle_s) if shine else np.ones(n))
        if spikes:
            lit = lit + spikes(self.rng, n)
        volts += np.where(phase == ON, lit, np.where(phase == EDGE, 0.5 * lit, 0.0))
        for hz, amplitude in (hum or {}).items():
            volts += amplitude * np.cos(2 * np.pi * hz * middle_s + self.rng.uniform(0, 2 * np.pi))
        if light:
            volts += light(middle_s)
        code = np.clip(np.round(volts / VOLTS_PER_CODE), -32768, 32767).astype(np.int32)
        clipped = ((code == 32767) | (code == -32768)).astype(np.uint8)
        return Record(np.arange(n, dtype=np.uint32), code, phase, clipped, middle_s, int(end_ns[0]), 1e9 / rate_hz)


def run(chain: OdChain, records: list[Record], block: int = 86) -> np.ndarray:
    """Push records (channel 0, 1, ...) in order of time, a clock model each `block` conversions."""
    for channel in range(len(records)):
        chain.gain(channel, VOLTS_PER_CODE)
    channels = np.concatenate([np.full(len(r.index), c, dtype=np.uint8) for c, r in enumerate(records)])
    times = np.concatenate([r.middle_s + 0.5e-9 * r.period_ns for r in records])
    order = np.argsort(times, kind="stable")
    index, code, phase, clipped = (
        np.concatenate([getattr(r, name) for r in records])[order] for name in ("index", "code", "phase", "clipped")
    )
    channels = channels[order]
    readings = []
    for begin in range(0, len(order), block):
        for channel, record in enumerate(records):
            mine = np.flatnonzero(channels[begin : begin + block] == channel)
            if len(mine):
                first = int(index[begin + mine[0]])
                chain.clock(channel, first, record.t0_ns + round(first * record.period_ns), record.period_ns)
        part = slice(begin, begin + block)
        readings.append(chain.push(channels[part], index[part], code[part], phase[part], clipped[part]))
    return np.concatenate(readings)


def always_on_bound(noise_v: float, rate_hz: float, window_s: float) -> float:
    """B0: standard deviation of the mean of all conversions of the window, the LED always on."""
    quantised = np.hypot(noise_v, VOLTS_PER_CODE / np.sqrt(12))
    return float(quantised / np.sqrt(rate_hz * window_s))
