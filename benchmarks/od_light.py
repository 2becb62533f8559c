"""Light on a photodiode in continuous time, and what two ways of measuring make of it.

`Light` is the truth: the same object is measured by our chain (`ours`: the LED chopped, every conversion used) and by
the field's present method (`benchmarks.od_field_method`). A conversion is the mean of the light over its own time.
Volts, seconds, hertz.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from stirbar.rt.od_arrays import OdChain, choose_half_cycle, classify

Array = NDArray[np.float64]

RATE_HZ = 860.0
VOLTS_PER_CODE = 1.024 / 32768
LED_WRITE_S = 80e-6  # from a conversion's end to the light's edge: the thread reads, then writes
EDGE_JITTER_NS = 20_000
CLOCK_BLOCK = 86


class Light:
    """Scattered light of `level_v` while the LED is on, over a dark level, with disturbances.

    `tones`: {Hz: V} added lit or dark (hum, or a lamp's flicker), phases drawn from `rng`; `steps`: (time, volts) of
    ambient light; bubbles come `bubble_hz` times a second, last `bubble_s` and add `bubble_share` of the lit light;
    `spike_share` of all conversions have `bubble_share` more. `noise_v` is the standard deviation of one conversion of
    1/860 s; of a longer one it is as much, or less by the root of the time with `noise_is_light` (white light noise).
    `shine(t)` multiplies the lit light.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        seconds: float,
        *,
        level_v: float = 0.1,
        dark_v: float = 0.015,
        noise_v: float = 1e-3,
        noise_is_light: bool = False,
        tones: dict[float, float] | None = None,
        steps: list[tuple[float, float]] | None = None,
        bubble_hz: float = 0.0,
        bubble_s: float = 0.04,
        bubble_share: float = 0.3,
        spike_share: float = 0.0,
        shine=None,
    ) -> None:
        self.rng, self.seconds = rng, seconds
        self.level_v, self.dark_v, self.noise_v, self.noise_is_light = level_v, dark_v, noise_v, noise_is_light
        self.tones = [(hz, volts, rng.uniform(0, 2 * np.pi)) for hz, volts in (tones or {}).items()]
        self.bubble_share, self.spike_share, self.shine = bubble_share, spike_share, shine
        begins = np.sort(rng.uniform(0, seconds, rng.poisson(bubble_hz * seconds)))
        self.bubbles = _integral(begins, begins + bubble_s)
        self.steps = [(_integral(np.array([at]), np.array([1e12])), volts) for at, volts in (steps or [])]

    def measure(self, start_s: Array, end_s: Array, lit: Array) -> Array:
        """Conversions over [start, end), the LED on for the share `lit` of each."""
        duration_s = end_s - start_s
        middle_s = 0.5 * (start_s + end_s)
        level = self.level_v * (1 + self.bubble_share * _share(self.bubbles, start_s, end_s))
        if self.spike_share:
            level = level * (1 + self.bubble_share * (self.rng.random(len(start_s)) < self.spike_share))
        if self.shine is not None:
            level = level * self.shine(middle_s)
        volts = self.dark_v + lit * level
        for hz, amplitude, phase in self.tones:
            volts += amplitude * np.cos(2 * np.pi * hz * middle_s + phase) * np.sinc(hz * duration_s)
        for integral, amplitude in self.steps:
            volts += amplitude * _share(integral, start_s, end_s)
        sigma = self.noise_v / np.sqrt(duration_s * RATE_HZ) if self.noise_is_light else self.noise_v
        return volts + sigma * self.rng.standard_normal(len(start_s))


def _integral(begins: Array, ends: Array) -> tuple[Array, Array]:
    """Times and integral of the indicator of a union of intervals that begin in order."""
    times, total = [-1e9], [0.0]
    for begin, end in zip(begins, ends, strict=True):
        begin = max(begin, times[-1])
        if end > begin:
            times += [begin, end]
            total += [total[-1], total[-1] + end - begin]
    return np.array([*times, times[-1] + 1e9]), np.array([*total, total[-1]])


def _share(integral: tuple[Array, Array], start_s: Array, end_s: Array) -> Array:
    return (np.interp(end_s, *integral) - np.interp(start_s, *integral)) / (end_s - start_s)


def ours(
    light: Light,
    *,
    window_s: float = 1.0,
    readings_per_second: float = 10.0,
    rate_hz: float = RATE_HZ,
    half_cycle: int = 0,
    mains_hz: float = 50.0,
) -> NDArray[np.void]:
    """Readings of our chain (records.READING_DTYPE), the LED chopped each `half_cycle` conversions (0: chosen)."""
    k = half_cycle or choose_half_cycle(rate_hz, mains_hz)
    count = int(light.seconds * rate_hz)
    number = np.arange(count)
    start_s, end_s = number / rate_hz, (number + 1) / rate_hz
    on = (number // k) % 2 == 0
    edge = (number % k == 0) & (number > 0)
    before = LED_WRITE_S * rate_hz  # share of a straddling conversion under the light before
    lit = np.where(edge, np.where(on, 1 - before, before), on.astype(float))
    volts = light.measure(start_s, end_s, lit)
    end_ns = np.round(end_s * 1e9).astype(np.int64)
    edges_ns = np.round((np.arange(k, count, k) / rate_hz + LED_WRITE_S) * 1e9).astype(np.int64)
    levels = np.array([on[index] for index in range(k, count, k)]).astype(int)
    phase = classify(
        np.column_stack([edges_ns - EDGE_JITTER_NS, edges_ns + EDGE_JITTER_NS]),
        levels,
        end_ns - round(1e9 / rate_hz),
        end_ns,
    )
    phase[:k] = 2  # before the first edge nobody knows the light
    code = np.clip(np.round(volts / VOLTS_PER_CODE), -32768, 32767).astype(np.int32)
    chain = OdChain(["signal"], window_s=window_s, readings_per_second=readings_per_second)
    chain.gain(0, VOLTS_PER_CODE)
    period_ns = 1e9 / rate_hz
    out = []
    for begin in range(0, count, CLOCK_BLOCK):
        chain.clock(0, begin, int(end_ns[begin]), period_ns)
        part = slice(begin, begin + CLOCK_BLOCK)
        length = len(number[part])
        out.append(chain.push(np.zeros(length, np.uint8), number[part].astype(np.uint32), code[part], phase[part]))
    return np.concatenate(out)


def quantised(noise_v: float) -> float:
    """Standard deviation of a conversion with the rounding to codes."""
    return float(np.hypot(noise_v, VOLTS_PER_CODE / np.sqrt(12)))


def bound_b0(noise_v: float, window_s: float, rate_hz: float = RATE_HZ) -> float:
    """B0: the mean of all conversions of a window with the LED always on (IS, bounds)."""
    return quantised(noise_v) / np.sqrt(rate_hz * window_s)


def bound_b1(noise_v: float, window_s: float, k: int, discarded: int = 1, rate_hz: float = RATE_HZ) -> float:
    """B1: on minus off from the conversions that are kept (IS, bounds)."""
    return bound_b0(noise_v, window_s, rate_hz) * 2 / np.sqrt(1 - discarded / k)


def bound_b2(
    noise_v: float, window_s: float, k: int, mains_hz: float = 50.0, harmonics: int = 4, rate_hz: float = RATE_HZ
) -> float:
    """B2: B1 with dark level, drift, and mains (frequency and harmonics) unknown: the Cramér-Rao bound of the linear
    model whose columns are those unknowns; the frequency's is taken for either phase."""
    number = np.arange(round(window_s * rate_hz / (2 * k)) * 2 * k)
    kept = number % k != 0
    time_s = (number / rate_hz - 0.5 * window_s)[kept]
    on = ((number // k) % 2 == 0)[kept]
    turn = 2 * np.pi * mains_hz * time_s
    columns = [on, np.ones_like(time_s), time_s]
    columns += [wave(h * turn) for h in range(1, harmonics + 1) for wave in (np.cos, np.sin)]
    columns += [time_s * np.cos(turn), time_s * np.sin(turn)]
    design = np.column_stack([column / np.linalg.norm(column) for column in columns])
    inverse = np.linalg.pinv(design.T @ design)
    return float(quantised(noise_v) * np.sqrt(inverse[0, 0]) / np.linalg.norm(columns[0]))
