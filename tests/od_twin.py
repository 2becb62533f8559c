"""Light for the OD chain, and the chain's slow, obvious NumPy twin.

`Bench` makes the conversions of one or more photodiodes under a chopped LED, as a converter of its own rate would see
them; the functions below it repeat the chain's formulas with whole arrays, as docs/optical-density.md writes them.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from stirbar.rt.od_arrays import OdChain, classify

from benchmarks.od_light import EDGE, OFF, ON, VOLTS_PER_CODE, bound_b0


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
    """B0, as the benchmarks have it."""
    return bound_b0(noise_v, window_s, rate_hz)


# --- the twin ---------------------------------------------------------------------------------------------------------

TUKEY_C = 4.685


class Known(NamedTuple):
    """What the chain has carried along before a conversion: scales of differences (None: not yet), of lit and of dark
    conversions, what a difference is expected to be (None: not yet) and the scale of lit conversions about that."""

    scale_v: float | None
    on_scale_v: float
    off_scale_v: float
    centre_v: float | None
    lit_scale_v: float


class Half(NamedTuple):
    phase: int
    first: int
    last: int
    volts: np.ndarray
    middle_ns: int


class Period(NamedTuple):
    """One chop period: an on half-cycle against its off neighbours; known from conversion `known` on."""

    difference_v: float
    middle_ns: int
    on_weight: float
    on_used: int
    on_rejected: int
    off_used: int
    known: int
    ambient_v: float


class Twin(NamedTuple):
    monotonic_ns: int
    value: float
    se: float
    bandwidth_hz: float
    ambient_v: float
    used: int
    rejected: int


def end_ns(record: Record, index: int) -> int:
    return record.t0_ns + int(index * record.period_ns)


def tukey_weights(residual: np.ndarray, scale: float) -> np.ndarray:
    u = residual / (TUKEY_C * scale)
    return np.where(np.abs(u) < 1, (1 - u**2) ** 2, 0.0)


def halves(record: Record) -> list[Half]:
    """Runs of one phase."""
    out = []
    bounds = np.flatnonzero(np.diff(record.phase)) + 1
    for run in np.split(np.arange(len(record.phase)), bounds)[:-1]:
        phase, first, last = int(record.phase[run[0]]), int(run[0]), int(run[-1])
        if phase != EDGE:
            middle = (end_ns(record, first) + end_ns(record, last) - int(record.period_ns)) >> 1
            out.append(Half(phase, first, last, record.code[run] * VOLTS_PER_CODE, middle))
    return out


def lit_mean(volts: np.ndarray, dark_v: float, known: Known) -> tuple[float, float, int]:
    """Mean, weight and rejected conversions of an on half-cycle: two Tukey steps from what is expected."""
    scale = known.on_scale_v

    def step(centre: float, scale: float) -> tuple[float, np.ndarray]:
        w = tukey_weights(volts - centre, scale)
        return (centre + (w * (volts - centre)).sum() / w.sum() if w.sum() > 0 else centre), w

    if scale <= 0:
        return volts.mean(), float(len(volts)), 0
    if known.centre_v is not None and known.lit_scale_v > 0:
        mean, w = step(dark_v + known.centre_v, known.lit_scale_v)
        if w.sum() >= 0.2 * len(volts):
            mean, w = step(mean, scale)
            return mean, max(w.sum(), 0.25), int((w == 0).sum())
    mean, w = step(step(float(np.median(volts)), scale)[0], scale)
    return mean, max(w.sum(), 0.25), int((w == 0).sum())


def periods(half: list[Half], known) -> list[Period]:
    """IS-19: each on half-cycle against the line through its two off neighbours. `known(index)` is what was known."""
    out = []
    for before, on, after in zip(half, half[1:], half[2:], strict=False):
        if (before.phase, on.phase, after.phase) != (OFF, ON, OFF):
            continue
        share = (on.middle_ns - before.middle_ns) / (after.middle_ns - before.middle_ns)
        ambient = before.volts.mean() + share * (after.volts.mean() - before.volts.mean())
        mean, weight, rejected = lit_mean(on.volts, ambient, known(after.last + 1))
        out.append(
            Period(
                mean - ambient,
                on.middle_ns,
                1 / float(np.float32(1 / weight)),
                on.last - on.first + 1,
                rejected,
                after.last - after.first + 1,
                after.last + 1,
                ambient,
            )
        )
    return out


def null_weights(count: int, spacing_s: float, mains_hz: float) -> np.ndarray:
    """Weights of least variance where mains harmonics 1-6 may each have twice the variance of the mean."""
    x = (np.arange(count) - (count - 1) / 2) * spacing_s
    covariance = np.eye(count)
    for h in range(1, 7):
        alias = (h * mains_hz * spacing_s + 0.5) % 1 - 0.5
        if abs(alias) * count >= 1.5:
            column = np.cos(2 * np.pi * h * mains_hz * x)
            covariance += 2 / count * np.outer(column, column)
    weights = np.linalg.solve(covariance, np.ones(count))
    return (weights / weights.sum()).astype(np.float32).astype(float)


def bound_b2(rate_hz: float, k: int, window_s: float, mains_hz: float) -> float:
    """B2 / B0: error of the lit light where dark level, drift and mains (frequency and four harmonics) are unknown."""
    count = round(window_s * rate_hz / (2 * k)) * 2 * k
    number = np.arange(count)[np.arange(count) % k != 0]
    x = (number + 0.5) / count - 0.5
    turn = 2 * np.pi * mains_hz * count / rate_hz * x
    waves = [wave(h * turn) for h in range(1, 5) for wave in (np.cos, np.sin)]
    design = np.column_stack([number // k % 2 == 0, np.ones(len(x)), x, *waves, x * waves[0], x * waves[1]])
    return float(np.sqrt(np.linalg.inv(design.T @ design)[0, 0] * count))


def biweight(values: np.ndarray, weights: np.ndarray, scale: float, start: float) -> tuple[float, np.ndarray]:
    """Tukey's location by Newton's steps until one is below a fifth of the scale; by reweighting where it is flat."""
    level = start
    for _ in range(8):
        w = weights * tukey_weights(values - level, scale)
        if w.sum() <= 0.05 * weights.sum():
            break
        u = (values - level) / (4.685 * scale)
        slope = (weights * np.where(np.abs(u) < 1.0, (1.0 - u**2) * (1.0 - 5.0 * u**2), 0.0)).sum()
        steep = slope > 0.5 * w.sum()
        move = (w * (values - level)).sum() / (slope if steep else w.sum())
        level += move
        if abs(move) < scale * (0.2 if steep else 0.05 / np.sqrt(len(values))):
            break
    return level, w


def mad(values: np.ndarray, centre: float) -> float:
    return float(1.4826 * np.median(np.abs(values - centre)))


def smoothed_spacing_ns(period: list[Period]) -> list[float]:
    """From one chop period to the next, in ns, as known at each: stamps of 128 ns, smoothed over 32."""
    ticks = [p.middle_ns >> 7 for p in period]
    out, spacing = [0.0], None
    for before, now in itertools.pairwise(ticks):
        step = 128.0 * (now - before)
        spacing = step if spacing is None else spacing + (step - spacing) / 32
        out.append(spacing)
    return out


def readings(record: Record, window_s: float, mains_hz: float, known, grid_s: float = 0.1) -> list[Twin]:
    """Readings of one signal channel. `known(index)` is what was known at a conversion; without a scale of differences
    it is the window's own MAD."""
    period = periods(halves(record), known)
    spacing = smoothed_spacing_ns(period)
    ends = np.array([end_ns(record, i) for i in range(len(record.index))])
    step = round(grid_s * 1e9)
    grid = (ends[0] // step + 1) * step
    level: float | None = None
    nulls = np.zeros(0)
    out = []
    while grid <= ends[-1]:
        index = int(np.searchsorted(ends, grid))
        grid += step
        here = sum(p.known <= index for p in period)
        if here < 2:
            continue
        gap_ns = spacing[here - 1]
        wanted = int(window_s * 1e9 / gap_ns + 0.5)
        part = period[max(0, here - wanted) : here]
        if len(nulls) != wanted:
            nulls = null_weights(wanted, gap_ns * 1e-9, mains_hz)
        if len(part) < min(wanted, max(4, int(np.ceil(0.2e9 / gap_ns)))):
            continue
        difference_scale, on_scale, off_scale, _, _ = known(index)
        d = np.array([p.difference_v for p in part])
        weights = nulls if len(part) == wanted else np.ones(len(part))
        start = level if difference_scale is not None and level is not None else float(np.median(d))
        scale = difference_scale if difference_scale is not None else mad(d, start)
        level, w = biweight(d, weights, scale, start)
        off = np.array([p.off_used for p in part])
        shared = (np.append(w, 0) + np.append(0, w)) / 2
        variance = (w**2 / [p.on_weight for p in part]).sum() * on_scale**2
        variance += (shared**2 / np.append(off, off[-1])).sum() * off_scale**2
        out.append(
            Twin(
                int(ends[part[-1].known - 1]),
                level,
                float(np.sqrt(variance) / w.sum()),
                float((w**2).sum() / w.sum() ** 2 / 2 / (gap_ns * 1e-9)),
                float(np.mean([p.ambient_v for p in part])),
                sum(p.on_used - p.on_rejected + p.off_used for p in part),
                sum(p.on_rejected for p in part),
            )
        )
    return out
