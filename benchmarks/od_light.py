"""Light on a photodiode in continuous time, and what our chain makes of it.

`Light` is the truth: the same object is measured by our chain (`ours`: the LED chopped, every conversion used;
`smoothed`: the same behind a microcontroller's running mean) and by the field's present method
(`benchmarks.od_field_method`). A conversion is the mean of the light over its own time. Volts, seconds, hertz.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stirbar.rt.od_arrays import OdChain, choose_half_cycle, chop_price, classify

Array = NDArray[np.float64]

RATE_HZ = 860.0
VOLTS_PER_CODE = 1.024 / 32768
LED_WRITE_S = 80e-6  # from a conversion's end to the light's edge: the thread reads, then writes
EDGE_JITTER_NS = 20_000
CLOCK_BLOCK = 86
OFF, ON, EDGE = 0, 1, 2
# HAT 1.1 and 1.2 (IS-24): four inputs in turn, a running mean of means of 1024 samples, looked at 45 times a second
SMOOTHED_S = 8.192e-3
SMOOTHED_SHARE = 0.25
LOOKS_HZ = 45.0
LOOKS_HALF_CYCLE, LOOKS_DISCARDED = 18, 10  # k and d that the worker chooses there
LOOK_BLOCK = 45


class Light:
    """Scattered light of `level_v` while the LED is on, over a dark level, with disturbances.

    `tones`: {Hz: V} added lit or dark (hum, or a lamp's flicker), phases drawn from `rng`; `steps`: (time, volts) of
    ambient light; bubbles come `bubble_hz` times a second, last `bubble_s` and add `bubble_share` of the lit light;
    `spike_share` of all conversions have `bubble_share` more. `noise_v` is the standard deviation of one conversion of
    1/860 s; of a longer one it is as much, or less by the root of the time with `noise_is_light` (white light noise).
    `shine(t)` multiplies the lit light. The noise has a generator of its own: with the same seed it is the same
    whatever disturbs the light.
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
        shine: Callable[[Array], Array] | None = None,
    ) -> None:
        self.rng, self.noise_rng = rng.spawn(2)
        self.seconds = seconds
        self.level_v, self.dark_v, self.noise_v, self.noise_is_light = level_v, dark_v, noise_v, noise_is_light
        self.tones = [(hz, volts, self.rng.uniform(0, 2 * np.pi)) for hz, volts in (tones or {}).items()]
        self.bubble_share, self.spike_share, self.shine = bubble_share, spike_share, shine
        begins = np.sort(self.rng.uniform(0, seconds, self.rng.poisson(bubble_hz * seconds)))
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
        return volts + sigma * self.noise_rng.standard_normal(len(start_s))


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
    slower: Sequence[tuple[float, float]] = (),
    rate_hz: float = RATE_HZ,
    half_cycle: int = 0,
    mains_hz: float = 0.0,
    turn_s: float = 0.0,
) -> NDArray[np.void]:
    """Readings of our chain (records.READING_DTYPE), the LED chopped each `half_cycle` conversions (0: chosen).

    `mains_hz` is what the chain is told of the mains, as by `local_ac_hz` (0: it finds them by itself).
    """
    code, phase, end_ns = conversions(light, rate_hz, half_cycle or choose_half_cycle(rate_hz, mains_hz))
    chain = OdChain(
        ["signal"], window_s=window_s, readings_per_second=readings_per_second, slower=slower, mains_hz=mains_hz
    )
    if turn_s:
        chain.turn(turn_s)
    return push(chain, code, phase, end_ns, 1e9 / rate_hz, CLOCK_BLOCK)


def conversions(light: Light, rate_hz: float, k: int) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int64]]:
    """Codes, phases and ends of a free-running converter's conversions."""
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
    phase = classify(
        np.column_stack([edges_ns - EDGE_JITTER_NS, edges_ns + EDGE_JITTER_NS]),
        on[k:count:k].astype(int),
        end_ns - round(1e9 / rate_hz),
        end_ns,
    )
    phase[:k] = EDGE  # before the first edge nobody knows the light
    return codes(volts), phase, end_ns


def codes(volts: Array) -> NDArray[np.int32]:
    return np.clip(np.round(volts / VOLTS_PER_CODE), -32768, 32767).astype(np.int32)


def push(
    chain: OdChain,
    code: NDArray[np.int32],
    phase: NDArray[np.uint8],
    end_ns: NDArray[np.int64],
    period_ns: float,
    block: int,
) -> NDArray[np.void]:
    """All conversions through the chain, a clock model each `block` of them."""
    chain.gain(0, VOLTS_PER_CODE)
    number = np.arange(len(code), dtype=np.uint32)
    out = []
    for begin in range(0, len(code), block):
        chain.clock(0, begin, int(end_ns[begin]), period_ns)
        part = slice(begin, begin + block)
        out.append(chain.push(np.zeros(len(number[part]), np.uint8), number[part], code[part], phase[part]))
    return np.concatenate(out)


def smoothed(light: Light, *, window_s: float = 10.0, readings_per_second: float = 1.0) -> NDArray[np.void]:
    """Readings of our chain from a board whose microcontroller keeps a running mean of each input."""
    count = int(light.seconds / SMOOTHED_S)
    start_s = SMOOTHED_S * np.arange(count)
    end_s = start_s + SMOOTHED_S / 4  # the other three inputs have the rest
    looks = int(light.seconds * LOOKS_HZ)
    look_s = (np.arange(looks) + 1) / LOOKS_HZ
    on = (np.arange(looks) // LOOKS_HALF_CYCLE) % 2 == 0
    lit = on[np.minimum((start_s * LOOKS_HZ).astype(int), looks - 1)].astype(float)
    means = running_mean(light.measure(start_s, end_s, lit), SMOOTHED_SHARE)
    seen = np.maximum(np.searchsorted(end_s, look_s, side="right") - 1, 0)
    phase = np.where(np.arange(looks) % LOOKS_HALF_CYCLE < LOOKS_DISCARDED, EDGE, on).astype(np.uint8)
    chain = OdChain(["signal"], window_s=window_s, readings_per_second=readings_per_second)
    end_ns = np.round(1e9 * look_s).astype(np.int64)
    return push(chain, codes(means[seen]), phase, end_ns, 1e9 / LOOKS_HZ, LOOK_BLOCK)


def running_mean(values: Array, share: float) -> Array:
    """y += share (x - y), from the first value on."""
    out, mean = np.empty_like(values), values[0]
    for number, value in enumerate(values):
        mean += share * (value - mean)
        out[number] = mean
    return out


def at_windows(
    light: Light, rates: Sequence[tuple[float, float]], skip_s: float, **options: Any
) -> list[NDArray[np.void]]:
    """Readings after `skip_s` at up to four (readings a second, window) from the same light."""
    (first_hz, first_s), *slower = rates
    out = ours(light, window_s=first_s, readings_per_second=first_hz, slower=slower, **options)
    out = out[out["monotonic_ns"] > 1e9 * skip_s]
    return [out[out["stream"] == stream] for stream in STREAMS[: len(rates)]]


STREAMS = (1, 32, 36, 40)  # od1 and its slower rates


def rms(values: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=float))))


def quantised(noise_v: float) -> float:
    """Standard deviation of a conversion with the rounding to codes."""
    return float(np.hypot(noise_v, VOLTS_PER_CODE / np.sqrt(12)))


def bound_b0(noise_v: float, window_s: float, rate_hz: float = RATE_HZ) -> float:
    """B0: the mean of all conversions of a window with the LED always on (IS, bounds)."""
    return quantised(noise_v) / np.sqrt(rate_hz * window_s)


def bounds(window_s: float, k: int, rate_hz: float = RATE_HZ, mains_hz: float = 50.0) -> tuple[float, float]:
    """B1 and B2 over B0 (IS, bounds); tests/test_od.py holds the second to its least squares."""
    price = chop_price(rate_hz, k, window_s, mains_hz)
    return price["b1_over_b0"], price["b2_over_b0"]
