"""The oscilloscope's view: raw conversions of a unit as volts over time, per channel, and their spectrum.

Trace items (docs/protocol.md) come in order. Each channel has its own converter: a conversion's time follows from the
last clock and period of its channel, its volts from the last gain, which the unit describes and a trace repeats when
the converter is set up anew. The spectrum is taken of each light phase on its own, because the step between on and off
would hide everything else.
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

    `channels` are those of the unit's description. A channel whose clock or gain is not known is left out.
    """
    trace = np.frombuffer(items, TRACE_DTYPE) if isinstance(items, bytes | bytearray | memoryview) else items
    known = {int(one["channel"]) - 1: one for one in channels if "channel" in one}
    scaled = {}
    for channel in np.unique(trace["channel"][trace["kind"] == TRACE_CONVERSION]).tolist():
        scale = _scale(trace[trace["channel"] == channel], known.get(channel, {}).get("volts_per_code"))
        if scale is not None:
            scaled[channel] = scale
    end = max((int(t[-1]) for t, _, _ in scaled.values()), default=0)
    found, spectra = [], []
    for channel, (times, every, phases) in scaled.items():
        recent = times > end - int(seconds * 1e9)
        t, v, phase = times[recent], every[recent], phases[recent]
        rate_hz, stride = _rate(t)
        name = known.get(channel, {})
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


def _scale(trace: Array, volts_per_code: float | None) -> tuple[Array, Array, Array] | None:
    """Times (int64 ns), volts and phases of one channel's conversions; None when clock or gain are not known."""
    kinds = trace["kind"]
    where = np.flatnonzero(kinds == TRACE_CONVERSION)
    clocks = np.flatnonzero(kinds == TRACE_CLOCK)
    clocks = clocks[np.isin(clocks + 1, np.flatnonzero(kinds == TRACE_PERIOD))]  # the period follows its clock
    gains = np.flatnonzero(kinds == TRACE_GAIN)
    if not len(clocks) or (volts_per_code is None and not len(gains)):
        return None
    latest = np.maximum(np.searchsorted(clocks, where) - 1, 0)  # what came before the first clock is extrapolated
    clock = trace[clocks[latest]]
    period_ns = trace["value"][clocks[latest] + 1].copy().view(np.float64)
    index = trace["index"][where].astype(np.int64)
    steps = (index - clock["index"].astype(np.int64) + 2**31) % 2**32 - 2**31  # the index wraps at 32 bits
    times = clock["value"] + np.rint(steps * period_ns).astype(np.int64)
    gain = np.full(len(where), np.nan if volts_per_code is None else volts_per_code)
    if len(gains):
        position = np.searchsorted(gains, where) - 1
        told = trace["value"][gains].copy().view(np.float64)
        gain = np.where(position >= 0, told[np.maximum(position, 0)], told[0] if volts_per_code is None else gain)
    return times, trace["value"][where] * gain, trace["phase"][where]


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
