"""What a block on its way into a store is worth: is it whole, what of it is new, what does a chart need of it.

Pure: no database, no clock. Every implementation of `stirbar.bridge.store.Store` builds on it.
"""

from __future__ import annotations

import json
import math
import zlib
from bisect import bisect_right

from stirbar.core.records import (
    FLAGS,
    KIND_GAP,
    KIND_JSON,
    KIND_RAW_CHUNK,
    KIND_READINGS,
    READING,
    READING_FIELDS,
    READING_STREAMS,
    RECORD_VERSION,
    STREAM_IDS,
    STREAMS,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from stirbar.core.records import Header

SEQUENCE_BITS = 40  # 35 years of one converter at full rate; a store packs series and sequence into one integer
SEQUENCE_END = 1 << SEQUENCE_BITS
TIME_END_NS = 1 << 62  # the year 2116; differences of two such times fit 64 bits
ROLLUP_LEVELS_S = (10, 60, 900)
EVENT_STREAM = STREAM_IDS["event"]
VITALS_STREAM = STREAM_IDS["vitals"]
RAW_STREAMS = (STREAM_IDS["raw"], STREAM_IDS["edges"])
LEVELS = ("debug", "info", "notice", "warning", "error")
WALL_TOLERANCE_NS = 2_000_000_000  # a unit's wall clock that differs by more from the leader's is not believed
CLOCK_CORRECTED = 1 << 31  # in a reading's flags, set by the leader: wall_ns is by its clock and monotonic_ns
STORED_FLAGS = {**FLAGS, "clock_corrected": CLOCK_CORRECTED}
TEXT_LIMIT = 4000  # characters of an event's message that are kept in its own column

_SEQUENCE, _MONOTONIC, _WALL, _STREAM, _ANGLE, _VERSION = (
    READING_FIELDS.index(name) for name in ("sequence", "monotonic_ns", "wall_ns", "stream", "angle", "version")
)


def rollup_level(width_s: float) -> int:
    """The roll-up from which bins of about this length are made; 0: from the readings.

    A bin is a whole number of buckets. Of the levels whose bins are not more than half as long again as asked for, the
    coarsest: it has the fewest rows.
    """
    return max((one for one in ROLLUP_LEVELS_S if 0.7 * one <= width_s <= one or width_s >= 1.5 * one), default=0)


class Coverage:
    """The sequence numbers of one stream of one run that are accounted for, as sorted, disjoint, half-open spans.

    `kept` are the beginnings of those that the database has. Synchronization: one thread at a time.
    """

    __slots__ = ("kept", "spans")

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        self.spans: list[tuple[int, int]] = sorted(spans)
        self.kept = self.beginnings

    @property
    def beginnings(self) -> list[int]:
        return [first for first, _ in self.spans]

    @property
    def mark(self) -> int:
        """Everything below it is accounted for."""
        return self.spans[0][1] if self.spans and self.spans[0][0] == 0 else 0

    def missing(self, first: int, end: int) -> list[tuple[int, int]]:
        """The parts of [first, end) that are not covered."""
        out = []
        for start, stop in self.spans[max(0, bisect_right(self.spans, (first, SEQUENCE_END)) - 1) :]:
            if start >= end:
                break
            if start > first:
                out.append((first, start))
            first = max(first, stop)
        if first < end:
            out.append((first, end))
        return out

    def add(self, first: int, end: int) -> None:
        """Cover [first, end) too."""
        if first >= end:
            return
        low = max(0, bisect_right(self.spans, (first, SEQUENCE_END)) - 1)
        if low < len(self.spans) and self.spans[low][1] < first:
            low += 1
        high = low
        while high < len(self.spans) and self.spans[high][0] <= end:
            first = min(first, self.spans[high][0])
            end = max(end, self.spans[high][1])
            high += 1
        self.spans[low:high] = [(first, end)]


def check_block(header: Header, payload: bytes) -> list[Any]:
    """What a block holds, once it is sure that it can be stored: records, events, the chunk or the gap's reason.

    The list has one entry per sequence number for readings (tuples in the order of READING_FIELDS) and events (dicts),
    one entry (bytes, str) for chunks and gaps. Raises ValueError with what is wrong.
    """
    check_header(header)
    check = _CHECKS.get(header.kind)
    if check is None:
        raise ValueError(f"block of kind {header.kind} does not belong into a store")
    return check(header, payload)


def check_header(header: Header) -> None:
    """Raises ValueError for a header whose numbers no store could keep."""
    if header.stream not in STREAMS:
        raise ValueError(f"block of unknown stream {header.stream}")
    if header.count == 0 or header.end_sequence > SEQUENCE_END:
        raise ValueError(f"block of sequence {header.first_sequence} and count {header.count}: out of range")
    if not 0 <= header.realtime_ns < TIME_END_NS or not 0 <= header.monotonic_ns < TIME_END_NS:
        raise ValueError(f"block made at {header.realtime_ns} ns, monotonic {header.monotonic_ns} ns: out of range")
    if not -TIME_END_NS < header.raw_ns < TIME_END_NS:
        raise ValueError(f"block made at {header.raw_ns} ns of the raw clock: out of range")


def _check_readings(header: Header, payload: bytes) -> list[Any]:
    if header.stream not in READING_STREAMS:
        raise ValueError(f"readings in stream {STREAMS[header.stream]}")
    if header.record_size != READING.size or len(payload) != header.count * READING.size:
        raise ValueError(
            f"{header.count} readings of {header.record_size} bytes announced, expected {READING.size} bytes each; "
            f"{len(payload)} bytes came"
        )
    records = list(READING.iter_unpack(payload))
    sequence = header.first_sequence
    for record in records:
        if record[_SEQUENCE] != sequence or record[_STREAM] != header.stream or record[_VERSION] != RECORD_VERSION:
            raise ValueError(
                f"reading with sequence {record[_SEQUENCE]}, stream {record[_STREAM]}, version {record[_VERSION]}; "
                f"expected {sequence}, {header.stream}, {RECORD_VERSION}"
            )
        if not 0 <= record[_WALL] < TIME_END_NS or not 0 <= record[_MONOTONIC] < TIME_END_NS:
            raise ValueError(f"reading at {record[_WALL]} ns, monotonic {record[_MONOTONIC]} ns: out of range")
        sequence += 1
    return records


def _check_events(header: Header, payload: bytes) -> list[Any]:
    if header.stream not in (EVENT_STREAM, VITALS_STREAM):
        raise ValueError(f"JSON in stream {STREAMS[header.stream]}: only events and vitals are stored as JSON")
    parsed = parse_json(payload)
    events = parsed if isinstance(parsed, list) else [parsed]
    if len(events) != header.count or not all(isinstance(event, dict) for event in events):
        raise ValueError(f"{header.count} events announced, the JSON holds {len(events)} things")
    for event in events:
        wall_ns = event.get("wall_ns", header.realtime_ns)
        if not isinstance(wall_ns, int) or isinstance(wall_ns, bool) or not 0 <= wall_ns < TIME_END_NS:
            raise ValueError(f"event at {wall_ns!r} ns: out of range")
    return events


def _check_chunk(header: Header, payload: bytes) -> list[Any]:
    if header.stream not in RAW_STREAMS:
        raise ValueError(f"raw chunk in stream {STREAMS[header.stream]}")
    if len(payload) < 8 or int.from_bytes(payload[:4], "little") != zlib.crc32(memoryview(payload)[4:]):
        raise ValueError("raw chunk is damaged: its CRC-32 does not agree")
    if int.from_bytes(payload[4:8], "little") != header.count:
        raise ValueError(f"raw chunk of {header.count} items announced, it holds another number")
    return [payload]


def _check_gap(header: Header, payload: bytes) -> list[Any]:
    reason = parse_json(payload)
    if not isinstance(reason, dict) or not isinstance(reason.get("reason"), str):
        raise ValueError("gap without a reason")
    return [plain(reason["reason"])]


_CHECKS = {
    KIND_READINGS: _check_readings,
    KIND_JSON: _check_events,
    KIND_RAW_CHUNK: _check_chunk,
    KIND_GAP: _check_gap,
}


def parse_json(payload: bytes) -> Any:
    """Parse JSON in UTF-8; ValueError for anything else, nesting that exhausts the stack included."""
    try:
        return json.loads(payload)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def plain(value: object) -> str:
    """Any value as text that a database takes: lone surrogates and NULs replaced, at most TEXT_LIMIT characters."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    return text[:TEXT_LIMIT].replace("\0", "�").encode("utf-8", "replace").decode()


class Bucket:
    """Finite values (count, low, high, total) and place of the readings of one stretch of wall time."""

    __slots__ = ("count", "first_sequence", "high", "last_sequence", "low", "total")

    def __init__(self, sequence: int) -> None:
        self.count = 0
        self.low = math.inf
        self.high = -math.inf
        self.total = 0.0
        self.first_sequence = sequence
        self.last_sequence = sequence

    def add(self, value: float, sequence: int) -> None:
        if math.isfinite(value):
            self.count += 1
            self.total += value
            if value < self.low:
                self.low = value
            if value > self.high:
                self.high = value
        self.first_sequence = min(self.first_sequence, sequence)
        self.last_sequence = max(self.last_sequence, sequence)

    def merge(self, other: Bucket) -> None:
        self.count += other.count
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)
        self.first_sequence = min(self.first_sequence, other.first_sequence)
        self.last_sequence = max(self.last_sequence, other.last_sequence)
