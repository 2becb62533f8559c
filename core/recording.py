"""Recordings: what the estimators of a worker saw, on disk, and the same readings again from it.

A recording is one file, or a directory of numbered ones (segments, oldest first) that `stirbar record` keeps within a
size. docs/protocol.md has the format: a JSON header and then frames, each with its length and CRC-32, which hold raw
chunks (kind 5) and snapshots of the estimators' state (kind 3). Each segment begins every stream with a snapshot and
can be read alone. What is damaged or cut is left out, and counted.

core/recorder.py writes them.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import struct
import sys
import zlib

from stirbar.core import raw_codec, records
from stirbar.core.records import Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import numpy

MAGIC = b"STBREC01"
FRAME = struct.Struct("<II")  # length, CRC-32
FRAME_MAXIMUM = 64 << 20
SUFFIX = ".rec"
# A conversion as `Recording.conversions` gives it. Times are those of its end.
CONVERSION_DTYPE: list[tuple[str, str]] = [
    ("monotonic_ns", "<i8"),
    ("wall_ns", "<i8"),
    ("volts", "<f8"),
    ("code", "<i4"),
    ("index", "<u4"),  # of the converter's conversions: a jump says how many were missed
    ("channel", "u1"),  # 1..4
    ("phase", "u1"),  # PHASES
    ("clipped", "u1"),
]
PHASES = ("off", "on", "edge")
_KINDS_OF_STATE = re.compile(bytes((91, records.TRACE_CLOCK, records.TRACE_PERIOD, records.TRACE_GAIN, 93)))
_DOUBLE = struct.Struct("<d")


class RecordingError(Exception):
    """A file that is no recording, or cannot be replayed; one sentence that says why."""


class ChannelState:
    """What a conversion's time and volts follow from; fed with the trace items between the conversions.

    Synchronization: one thread.
    """

    __slots__ = ("index0", "period_ns", "t0_ns", "volts_per_code")

    def __init__(
        self, volts_per_code: float = math.nan, index0: int = 0, t0_ns: int = 0, period_ns: float = 0.0
    ) -> None:
        self.volts_per_code = volts_per_code  # NaN: not known yet
        self.index0 = index0
        self.t0_ns = t0_ns
        self.period_ns = period_ns  # 0: not known yet

    def take(self, kind: int, index: int, value: int) -> None:
        """One item of kind clock, period or gain."""
        if kind == records.TRACE_CLOCK:
            self.index0, self.t0_ns = index, value
        elif kind == records.TRACE_PERIOD:
            self.period_ns = _DOUBLE.unpack(value.to_bytes(8, "little", signed=True))[0]
        else:
            self.volts_per_code = _DOUBLE.unpack(value.to_bytes(8, "little", signed=True))[0]

    def as_list(self) -> list[float | None]:
        volts = None if math.isnan(self.volts_per_code) else self.volts_per_code
        return [volts, self.index0, self.t0_ns, self.period_ns]


class TraceState:
    """Clock model and gain of every channel at some place in a trace.

    Synchronization: one thread.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        """From a recording's header: its `trace_state`, else what the unit says of its channels."""
        self.channels = {number: ChannelState() for number in range(1, 5)}
        self._ranged = set(self.channels)  # whose range follows the light
        for channel in description.get("channels", ()):
            if channel["volts_per_code"] is not None:
                self.channels[channel["channel"]].volts_per_code = channel["volts_per_code"]
                self._ranged.remove(channel["channel"])
        for number, (volts, *clock) in description.get("trace_state", {}).items():
            self.channels[int(number)] = ChannelState(math.nan if volts is None else volts, *clock)

    def forget(self) -> None:
        """Items are missing here: only a range that never changes is still known."""
        for number, state in self.channels.items():
            self.channels[number] = ChannelState(math.nan if number in self._ranged else state.volts_per_code)

    def feed(self, items: bytes) -> None:
        """Go past these packed trace items."""
        for match in _KINDS_OF_STATE.finditer(items[:: records.TRACE.size]):
            self.item(items, match.start())

    def item(self, items: bytes, place: int) -> None:
        kind, channel, _, _, index, value = records.TRACE.unpack_from(items, place * records.TRACE.size)
        self.channels[channel + 1].take(kind, index, value)

    def as_header(self) -> dict[str, list[float | None]]:
        return {str(number): state.as_list() for number, state in self.channels.items()}


# --- files ------------------------------------------------------------------------------------------------------------


class Segment:
    """One file, memory-mapped. `header` is the worker's description and more.

    Opening reads the header only; frames are checked as they are read. Raises RecordingError for what is no recording.

    Synchronization: reading is safe from any thread; close() only when nobody reads.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._data: mmap.mmap | bytes = b""
        self._missing: int | None = None
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            if self.size:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            if self._data[: len(MAGIC)] != MAGIC:
                raise RecordingError(f"{path} is no stirbar recording (and no CSV with time_s,channel,volts,led_on)")
            header = self._frame(len(MAGIC))
            if not header:
                raise RecordingError(f"{path} is cut within its header: nothing to replay")
            self.header = _description(path, header)
        except RecordingError:
            self.close()
            raise
        self._begin = len(MAGIC) + FRAME.size + len(header)

    def _frame(self, offset: int) -> bytes:
        """What the frame at an offset holds; empty when no whole one is there."""
        start = offset + FRAME.size
        if start > self.size:
            return b""
        length, checksum = FRAME.unpack_from(self._data, offset)
        if not 0 < length <= min(FRAME_MAXIMUM, self.size - start):
            return b""
        body = self._data[start : start + length]
        return body if zlib.crc32(body) == checksum else b""

    def batches(self) -> Iterator[tuple[Header, bytes]]:
        """Headers of kind 3 or 5 with what follows them, not decoded. After a damaged frame it goes on at the next."""
        offset, missing = self._begin, 0
        while offset < self.size:
            body = self._frame(offset)
            if body:
                offset += FRAME.size + len(body)
                try:
                    header, start = Header.unpack(body)
                except ValueError:  # whole, but none of ours
                    header = None
                if header is None or header.stream not in records.STREAMS:
                    missing += FRAME.size + len(body)
                else:
                    yield header, body[start:]
            else:
                place = self._data.find(records.MAGIC, offset + FRAME.size + 1)
                after = self.size if place < 0 else place - FRAME.size
                missing += after - offset
                offset = after
        self._missing = missing

    @property
    def missing_bytes(self) -> int:
        """Bytes that are no whole frame; the whole file is read when it was not yet."""
        if self._missing is None:
            for _ in self.batches():
                pass
        return self._missing or 0

    def close(self) -> None:
        """Unmap the file; nothing can be read any more."""
        if not isinstance(self._data, bytes):
            self._data.close()

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Recording:
    """A recording, opened for reading: a file, or a directory of segments; a context manager that closes it.

    `header` is the first segment's. Segments that were cut before anything was in them are left out, and named in
    `unreadable`. What was dropped to stay within a size, before the first segment, is in `dropped_bytes`.

    Synchronization: reading is safe from any thread; close() only when nobody reads.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.segments: list[Segment] = []
        self.unreadable: dict[str, int] = {}  # path: size
        for name in segment_paths(path):
            try:
                self.segments.append(Segment(name))
            except RecordingError:
                if name == path:
                    raise
                self.unreadable[name] = os.path.getsize(name)
        if not self.segments:
            raise RecordingError(f"{path} holds no segment (*{SUFFIX}) of a recording that can be read")
        self.header = self.segments[0].header
        self.dropped_bytes = int(self.segments[-1].header.get("dropped_bytes", 0))

    def close(self) -> None:
        """Unmap the files."""
        for segment in self.segments:
            segment.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def missing_bytes(self) -> int:
        """Bytes of the files that are no whole frame: damaged, or cut mid-write."""
        return sum(self.unreadable.values()) + sum(segment.missing_bytes for segment in self.segments)

    def __iter__(self) -> Iterator[tuple[Header, bytes]]:
        """Batches in the order of recording: (header of kind 2 or 3, trace items or state)."""
        for segment in self.segments:
            for header, body in segment.batches():
                yield _decoded(header, body)

    def conversions(
        self, channel: int | None = None, start_ns: int | None = None, end_ns: int | None = None
    ) -> Iterator[numpy.ndarray]:
        """Every conversion, in blocks: NumPy structured arrays of CONVERSION_DTYPE.

        `channel` is 1..4 or None for all; times are CLOCK_MONOTONIC of the unit, [start_ns, end_ns). Before a channel's
        first clock model its first one holds. Volts are NaN where the range is not known: it follows the light, and the
        recording began, or has a hole, since it last changed.
        """
        raw = records.STREAM_IDS["raw"]
        state, follows = TraceState({}), (b"", 0)
        for segment in self.segments:
            is_first = True
            for header, body in segment.batches():
                if header.stream != raw or header.kind != records.KIND_RAW_CHUNK:
                    continue
                if (header.run_id, header.first_sequence) == follows:
                    pass
                elif is_first:
                    state = TraceState(segment.header)
                else:
                    state.forget()
                is_first, follows = False, (header.run_id, header.end_sequence)
                block = _conversions(_decoded(header, body)[1], state, header.realtime_ns - header.monotonic_ns)
                keep = block["channel"] > 0 if channel is None else block["channel"] == channel
                if start_ns is not None:
                    keep &= block["monotonic_ns"] >= start_ns
                if end_ns is not None:
                    keep &= block["monotonic_ns"] < end_ns
                if keep.any():
                    yield block if keep.all() else block[keep]

    def information(self) -> dict[str, Any]:
        """What there is: segments, bytes, times, streams with their items and holes, what is missing."""
        streams: dict[str, dict[str, Any]] = {}
        expected: dict[tuple[bytes, int], int] = {}
        runs: dict[bytes, None] = {}
        times: list[int] = []
        for segment in self.segments:
            for header, _ in segment.batches():
                runs[header.run_id] = None
                times.append(header.realtime_ns)
                name = records.STREAMS[header.stream]
                stream = streams.setdefault(name, {"items": 0, "holes": 0, "items_missing": 0})
                if header.kind != records.KIND_RAW_CHUNK:
                    continue
                key = (header.run_id, header.stream)
                gap = header.first_sequence - expected.get(key, header.first_sequence)
                stream["holes"] += gap > 0
                stream["items_missing"] += max(gap, 0)
                stream["items"] += header.count
                expected[key] = header.end_sequence
        return {
            "path": self.path,
            "unit": self.header.get("unit"),
            "build_id": self.header.get("build_id"),
            "segments": len(self.segments),
            "bytes": sum(segment.size for segment in self.segments),
            "missing_bytes": self.missing_bytes,
            "unreadable": list(self.unreadable),
            "dropped_bytes": self.dropped_bytes,
            "runs": [run.hex() for run in runs],
            "first_wall_ns": min(times, default=None),
            "last_wall_ns": max(times, default=None),
            "streams": streams,
        }


def segment_paths(path: str) -> list[str]:
    """The files of a recording, oldest first."""
    if not os.path.isdir(path):
        return [path]
    return [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(SUFFIX)]


def _decoded(header: Header, body: bytes) -> tuple[Header, bytes]:
    if header.kind != records.KIND_RAW_CHUNK:
        return header, body
    header.kind = records.KIND_TRACE
    try:
        return header, raw_codec.decode(body)
    except ValueError as error:
        raise RecordingError(f"a chunk of the recording cannot be read: {error}") from None


def _description(path: str, text: bytes) -> dict[str, Any]:
    """The worker's description at the start of a file."""
    try:
        description = json.loads(text)
    except (ValueError, RecursionError):
        description = None
    if not isinstance(description, dict) or not isinstance(description.get("dropped_bytes", 0), int):
        raise RecordingError(f"{path} has no header that can be read: nothing to replay")
    return description


def _conversions(items: bytes, state: TraceState, wall_offset_ns: int) -> numpy.ndarray:
    """The conversions among trace items, timed; `state` goes on to the end of the items."""
    import numpy

    trace = numpy.frombuffer(items, records.TRACE_DTYPE)
    places = [match.start() for match in _KINDS_OF_STATE.finditer(items[:: records.TRACE.size])]
    for place in places:
        if trace["kind"][place] == records.TRACE_PERIOD:
            channel = state.channels[int(trace["channel"][place]) + 1]
            if not channel.period_ns:
                state.item(items, place - 1)
                state.item(items, place)
    number = trace["channel"] + 1
    out = numpy.zeros(len(trace), CONVERSION_DTYPE)
    for start, end in zip([-1, *places], [*places, len(trace)], strict=True):
        if start >= 0:
            state.item(items, start)
        for which, channel in state.channels.items():
            mine = numpy.flatnonzero(number[start + 1 : end] == which) + start + 1
            if mine.size and channel.period_ns:
                steps = (trace["index"][mine] - numpy.uint32(channel.index0)).astype("<i4")
                out["monotonic_ns"][mine] = channel.t0_ns + (steps * channel.period_ns).astype("<i8")
                out["volts"][mine] = trace["value"][mine] * channel.volts_per_code
    out["wall_ns"] = out["monotonic_ns"] + wall_offset_ns
    out["code"] = trace["value"]
    out["index"] = trace["index"]
    out["channel"] = number
    out["phase"] = trace["phase"]
    out["clipped"] = trace["flags"] & 1
    kept: numpy.ndarray = out[(trace["kind"] == records.TRACE_CONVERSION) & (out["monotonic_ns"] != 0)]
    return kept


# --- replay -----------------------------------------------------------------------------------------------------------


def replay(path: str, config: Any = None) -> Iterator[dict[str, Any]]:
    """The readings of a recording or CSV, in order, as dictionaries of the reading's fields.

    For the same build on the same architecture they are bit-identical to the live ones, but for `sequence`, `wall_ns`
    and `experiment`, which the estimators do not know. Raises RecordingError.
    """
    if not os.path.isdir(path):
        with open(path, "rb") as file:
            is_recording = file.read(len(MAGIC)) == MAGIC
        if not is_recording:
            from stirbar.core.trace_csv import trace_of_csv

            yield from _replay_batches(trace_of_csv(path), None, config)
            return
    with Recording(path) as recording:
        yield from _replay_batches(iter(recording), recording.header, config)
        missing = {segment.path: segment.missing_bytes for segment in recording.segments} | recording.unreadable
        for name, size in missing.items():
            if size or name in recording.unreadable:
                print(f"stirbar replay: {size} bytes of {name} are no whole frame; left out", file=sys.stderr)


def _replay_batches(
    batches: Iterator[tuple[Header, bytes]], header: dict[str, Any] | None, config: Any
) -> Iterator[dict[str, Any]]:
    from stirbar.rt.replay_arrays import Replay

    machines: dict[tuple[bytes, int], Replay] = {}
    expected: dict[tuple[bytes, int], int] = {}
    warned = False
    skipped = 0
    for batch, body in batches:
        key = (batch.run_id, batch.stream)
        machine = machines.get(key)
        if machine is None:
            machine = machines[key] = Replay(batch.stream == records.STREAM_IDS["edges"], config)
            if header is not None and header["build_id"] != machine.build_id() and not warned:
                warned = True
                print(
                    f"stirbar replay: recorded by build {header['build_id']}, replayed by {machine.build_id()}: "
                    "readings may differ in the last digits",
                    file=sys.stderr,
                )
        if batch.kind == records.KIND_SNAPSHOT:
            machine.restore(zlib.decompress(body))
            expected[key] = batch.first_sequence
            continue
        if expected.get(key, 0) != batch.first_sequence:
            skipped += batch.count  # the state that these follow on is known again at the next snapshot
            continue
        expected[key] = batch.end_sequence
        for reading in records.READING.iter_unpack(machine.feed(body)):
            yield dict(zip(records.READING_FIELDS, reading, strict=True))
    if skipped:
        print(
            f"stirbar replay: {skipped} items follow on missing ones and are before the next snapshot of the "
            "estimators; left out",
            file=sys.stderr,
        )


def replay_main(argv: list[str]) -> int:
    """`stirbar replay`"""
    import argparse

    from stirbar.core.config import ConfigError, add_config_options, config_from_arguments
    from stirbar.core.status import flag_names

    parser = argparse.ArgumentParser(prog="stirbar replay", description="Repeat the readings of a recording or a CSV.")
    parser.add_argument(
        "file", help="recording (a file or a directory), or CSV with the columns time_s,channel,volts,led_on"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a reading")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    try:
        config = config_from_arguments(arguments)
        if not arguments.json:
            print("time_s,stream,angle,value,se_instrument,flags")
        for reading in replay(arguments.file, config):
            if arguments.json:
                print(json.dumps({key: None if value != value else value for key, value in reading.items()}))
            else:
                names = " ".join(flag_names(reading["flags"]))
                print(
                    f"{reading['monotonic_ns'] / 1e9:.6f},{records.STREAMS[reading['stream']]},{reading['angle']},"
                    f"{reading['value']:.9g},{reading['se_instrument']:.3g},{names}"
                )
    except (ConfigError, RecordingError, ValueError, OSError) as error:
        print(f"stirbar replay: {error}", file=sys.stderr)
        return 1
    return 0
