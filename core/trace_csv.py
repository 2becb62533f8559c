"""Readings from anybody's CSV: a table of (time_s, channel, volts, led_on) as a trace that the estimators take."""

from __future__ import annotations

import itertools
import math
import struct

from stirbar.core import records
from stirbar.core.records import TRACE, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

COLUMNS = ("time_s", "channel", "volts", "led_on")
BLOCK = 86  # conversions for which one clock model is in force, as in the loop
CODE_FULL_SCALE = 1 << 30  # codes are 32 bits here: a CSV's volts are not rounded to a converter's steps
_FLOAT = struct.Struct("<d")
_INT = struct.Struct("<q")


def read_csv(path: str) -> list[tuple[float, int, float, int]]:
    """The rows of the file, checked; raises ValueError naming the line."""
    import csv

    rows: list[tuple[float, int, float, int]] = []
    with open(path, newline="") as file:
        reader = csv.reader(line for line in file if not line.startswith("#"))
        header = [name.strip() for name in next(reader, [])]
        if tuple(header) != COLUMNS:
            raise ValueError(f"{path}: the first line should be {','.join(COLUMNS)}, it is {','.join(header)[:80]}")
        for fields in reader:
            try:
                time_s, volts = float(fields[0]), float(fields[2])
                channel, led_on = int(fields[1]), int(float(fields[3]))
            except (ValueError, IndexError):
                raise ValueError(
                    f"{path}:{reader.line_num}: expected four numbers, found {','.join(fields)[:80]}"
                ) from None
            if not (math.isfinite(time_s) and math.isfinite(volts)) or not 1 <= channel <= 4 or led_on not in (0, 1):
                raise ValueError(
                    f"{path}:{reader.line_num}: channel must be 1 to 4, led_on 0 or 1, time and volts finite"
                )
            rows.append((time_s, channel, volts, led_on))
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def trace_of_csv(path: str) -> Iterator[tuple[Header, bytes]]:
    """The file as trace batches; times per channel must increase.

    A conversion is taken to end at its time and to begin at the one before; the first under a new light is not used.
    """
    rows = read_csv(path)
    scale = max(abs(volts) for _, _, volts, _ in rows) / CODE_FULL_SCALE or 1.0 / CODE_FULL_SCALE
    channels: dict[int, list[tuple[float, float, int]]] = {}
    for time_s, channel, volts, led_on in rows:
        samples = channels.setdefault(channel, [])
        if samples and time_s <= samples[-1][0]:
            raise ValueError(f"{path}: the times of channel {channel} do not increase at {time_s} s")
        samples.append((time_s, volts, led_on))
    periods = {channel: _period_s(samples, path, channel) for channel, samples in channels.items()}
    timed: list[tuple[float, int, bytes]] = []
    for channel, samples in channels.items():
        timed.append((-math.inf, channel, _item(records.TRACE_GAIN, channel, 0, 0, _FLOAT.pack(scale))))
        timed += _channel_items(channel, samples, periods[channel], scale)
    timed.sort(key=lambda entry: entry[0])
    items = b"".join(item for _, _, item in timed)
    count = len(items) // TRACE.size
    nobody = bytes(16)
    stream = records.STREAM_IDS["raw"]
    yield Header(records.KIND_TRACE, stream, TRACE.size, count, 0, nobody, nobody, nobody, 0, 0, 0, ""), items


def _period_s(samples: list[tuple[float, float, int]], path: str, channel: int) -> float:
    steps = sorted(b[0] - a[0] for a, b in itertools.pairwise(samples))
    if not steps:
        raise ValueError(f"{path}: channel {channel} has one row only")
    return steps[len(steps) // 2]


def _item(kind: int, channel: int, phase: int, index: int, value: bytes) -> bytes:
    return struct.pack("<BBBBI", kind, channel - 1, phase, 0, index) + value


def _channel_items(
    channel: int, samples: list[tuple[float, float, int]], period_s: float, scale: float
) -> list[tuple[float, int, bytes]]:
    """Items of one channel with their times: a clock model for each block, and a conversion for each row."""
    items: list[tuple[float, int, bytes]] = []
    start_s = samples[0][0]
    before = samples[0][2]
    for number, (time_s, volts, led_on) in enumerate(samples):
        index = round((time_s - start_s) / period_s)
        if number % BLOCK == 0:
            end = samples[min(number + BLOCK, len(samples)) - 1]
            steps = round((end[0] - time_s) / period_s)
            measured_s = (end[0] - time_s) / steps if steps else period_s
            items.append(
                (time_s, channel, _item(records.TRACE_CLOCK, channel, 0, index, _INT.pack(round(time_s * 1e9))))
            )
            items.append((time_s, channel, _item(records.TRACE_PERIOD, channel, 1, 0, _FLOAT.pack(measured_s * 1e9))))
        phase = led_on if led_on == before else 2
        before = led_on
        code = _INT.pack(round(volts / scale))
        items.append((time_s, channel, _item(records.TRACE_CONVERSION, channel, phase, index, code)))
    return items
