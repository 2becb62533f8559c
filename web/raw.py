"""The oscilloscope's view: raw conversions of a unit as volts over time, per channel, and their spectrum.

Trace items (docs/protocol.md) come in order; a conversion's time is that of the last clock item before it, its volts
follow from the last gain of its channel. The spectrum is taken of each light phase on its own, because the step between
on and off would hide everything else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from stirbar.core.records import TRACE_CLOCK, TRACE_CONVERSION, TRACE_DTYPE, TRACE_GAIN, TRACE_PERIOD

SEGMENT = 1024  # conversions in one periodogram; longer traces are averaged
MINIMUM_SEGMENT = 32
PHASES = {0: "off", 1: "on", 2: "edge"}

Array = np.ndarray[Any, np.dtype[Any]]


def view(items: bytes | Array, channels: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """`{channels: [...], spectrum: [...]}` of docs/http-api.md from packed trace items, the last `seconds` of them.

    Conversions before the first clock or gain are left out: neither their time nor their volts are known.
    """
    trace = np.frombuffer(items, TRACE_DTYPE) if isinstance(items, bytes | bytearray | memoryview) else items
    angles = {int(one["channel"]) - 1: one for one in channels if "channel" in one}
    times, volts, conversions = _scale(trace)
    found, spectra = [], []
    if len(times):
        recent = times > times[-1] - int(seconds * 1e9)
        times, volts, conversions = times[recent], volts[recent], conversions[recent]
    for channel in np.unique(conversions["channel"]).tolist():
        chosen = conversions["channel"] == channel
        t, v, phase = times[chosen], volts[chosen], conversions["phase"][chosen]
        rate_hz, stride = _rate(t)
        name = angles.get(channel, {})
        found.append(
            {
                "channel": channel + 1,
                "stream": f"od{channel + 1}",
                "angle": name.get("angle", 0),
                "name": name.get("name", f"od{channel + 1}"),
                "rate_hz": rate_hz,
                "t_ns": t.tolist(),
                "volts": v.tolist(),
                "phase": phase.tolist(),
            }
        )
        for number in (0, 1):
            line = spectrum(t, v, phase == number, stride)
            if line is not None:
                spectra.append(
                    {"channel": channel + 1, "phase": PHASES[number], "hz": line[0].tolist(), "volts": line[1].tolist()}
                )
    return {"channels": found, "spectrum": spectra}


def _scale(trace: Array) -> tuple[Array, Array, Array]:
    """Times (int64 ns), volts and items of the conversions whose clock and gain are known."""
    kinds = trace["kind"]
    position = np.arange(len(trace))
    is_conversion = kinds == TRACE_CONVERSION
    clocks = np.flatnonzero(kinds == TRACE_CLOCK)
    clocks = clocks[np.isin(clocks + 1, np.flatnonzero(kinds == TRACE_PERIOD))]  # the period follows its clock
    where = np.flatnonzero(is_conversion)
    if not len(clocks) or not len(where):
        return np.empty(0, np.int64), np.empty(0), trace[:0]
    latest = np.searchsorted(clocks, where) - 1
    latest = np.maximum(latest, 0)  # the clock of a block may come behind its first conversions
    clock = trace[clocks[latest]]
    period = trace["value"][clocks[latest] + 1].copy().view(np.float64)
    index = trace["index"][where].astype(np.int64)
    steps = (index - clock["index"].astype(np.int64) + 2**31) % 2**32 - 2**31  # the index wraps at 32 bits
    times = clock["value"] + np.rint(steps * period).astype(np.int64)
    gain = np.full(len(where), np.nan)
    for channel in np.unique(trace["channel"][where]).tolist():
        mine = trace["channel"][where] == channel
        gains = position[(kinds == TRACE_GAIN) & (trace["channel"] == channel)]
        if len(gains):
            at = np.maximum(np.searchsorted(gains, where[mine]) - 1, 0)
            gain[mine] = trace["value"][gains[at]].copy().view(np.float64)
    known = np.isfinite(gain) & np.isfinite(period)
    items = trace[where[known]]
    return times[known], items["value"] * gain[known], items


def _rate(t: Array) -> tuple[float, float]:
    """Conversions a second of a channel while it is converted, and the time between two of them in ns."""
    if len(t) < 2:
        return 0.0, 0.0
    stride = float(np.median(np.diff(t)))
    return (1e9 / stride if stride > 0 else 0.0), stride


def spectrum(t: Array, volts: Array, chosen: Array, stride_ns: float) -> tuple[Array, Array] | None:
    """Amplitude spectrum (Hz, volts) of the chosen conversions on their common grid, or None when they are too few.

    The grid has the channel's pace; conversions of the other phase and missing ones count as zero. With a Hann window,
    and divided by the window's sum over those that are there, the height at a sine's frequency is its amplitude. The
    chopping leaves images of each line at multiples of the chop frequency from it: gaps cannot be told from signal.
    """
    if stride_ns <= 0 or chosen.sum() < MINIMUM_SEGMENT // 2:
        return None
    slot = np.rint((t - t[0]) / stride_ns).astype(np.int64)
    length = int(slot[-1]) + 1
    size = min(SEGMENT, 1 << (length.bit_length() - 1))
    if size < MINIMUM_SEGMENT or length > 64 * len(t):
        return None
    signal, weight = np.zeros(length), np.zeros(length)
    signal[slot[chosen]] = volts[chosen]
    weight[slot[chosen]] = 1.0
    window = 0.5 - 0.5 * np.cos(2.0 * np.pi * (np.arange(size) + 0.5) / size)
    power, count = np.zeros(size // 2 + 1), 0
    for start in range(0, length - size + 1, size // 2):
        present = window * weight[start : start + size]
        total = present.sum()
        if total < 0.1 * window.sum():
            continue
        part = signal[start : start + size]
        centred = present * (part - (present * part).sum() / total)
        power += np.abs(2.0 * np.fft.rfft(centred) / total) ** 2
        count += 1
    if not count:
        return None
    hz = np.fft.rfftfreq(size, stride_ns * 1e-9)
    return hz[1:], np.sqrt(power[1:] / count)
