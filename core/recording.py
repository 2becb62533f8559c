"""Recordings: what the estimators of a worker saw, on disk, and the same readings again from it.

A recording is one file, or a directory of numbered ones (segments, oldest first) that `stirbar record` keeps within a
size. A file holds a JSON header and then frames, each with its length and CRC-32. A frame is a batch as on the wire
(docs/protocol.md): raw chunks (kind 5) and snapshots of the estimators' state (kind 3). Each segment begins every
stream with a snapshot and can be read alone; one that was cut mid-write is read up to its last whole frame.

core/recorder.py writes them.
"""

from __future__ import annotations

import json
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

    def __init__(self, volts_per_code: float = 0.0, index0: int = 0, t0_ns: int = 0, period_ns: float = 0.0) -> None:
        self.volts_per_code = volts_per_code
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

    def as_list(self) -> list[float]:
        return [self.volts_per_code, self.index0, self.t0_ns, self.period_ns]


class TraceState:
    """Clock model and gain of every channel at some place in a trace.

    Synchronization: one thread.
    """

    def __init__(self, description: dict[str, Any]) -> None:
        """From a recording's header: its `trace_state`, else what the unit says of its channels."""
        self.channels = {number: ChannelState() for number in range(1, 5)}
        for channel in description.get("channels", ()):
            self.channels[channel["channel"]].volts_per_code = channel.get("volts_per_code") or 0.0
        for number, values in description.get("trace_state", {}).items():
            self.channels[int(number)] = ChannelState(*values)

    def feed(self, items: bytes) -> None:
        """Go past these packed trace items."""
        for match in _KINDS_OF_STATE.finditer(items[:: records.TRACE.size]):
            self.item(items, match.start())

    def item(self, items: bytes, place: int) -> None:
        kind, channel, _, _, index, value = records.TRACE.unpack_from(items, place * records.TRACE.size)
        self.channels[channel + 1].take(kind, index, value)

    def as_header(self) -> dict[str, list[float]]:
        return {str(number): state.as_list() for number, state in self.channels.items()}


# --- files ------------------------------------------------------------------------------------------------------------


class Segment:
    """One file, memory-mapped. `header` is the worker's description and more; `frames` says where the whole frames lie;
    `missing_bytes` how much behind them could not be read (a recording cut mid-write).

    Raises RecordingError for what is no recording.

    Synchronization: reading is safe from any thread.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, "rb") as file:
            self.size = os.fstat(file.fileno()).st_size
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self.size else b""
        if self.data[: len(MAGIC)] != MAGIC:
            raise RecordingError(f"{path} is no stirbar recording (and no CSV with time_s,channel,volts,led_on)")
        frames = list(self._scan(len(MAGIC)))
        if not frames:
            raise RecordingError(f"{path} is cut within its header: nothing to replay")
        self.header: dict[str, Any] = json.loads(self.data[frames[0][0] : frames[0][1]])
        self.frames = frames[1:]
        self.missing_bytes = self.size - frames[-1][1]

    def _scan(self, offset: int) -> Iterator[tuple[int, int]]:
        """Where whole frames begin and end, up to the first that is not."""
        view = memoryview(self.data)
        while offset + FRAME.size <= self.size:
            length, checksum = FRAME.unpack_from(view, offset)
            offset += FRAME.size
            if length > FRAME_MAXIMUM or offset + length > self.size:
                return
            if zlib.crc32(view[offset : offset + length]) != checksum:
                return
            yield offset, offset + length
            offset += length

    def batches(self) -> Iterator[tuple[Header, memoryview]]:
        """Headers of kind 3 or 5 with what follows them, not decoded."""
        view = memoryview(self.data)
        for start, end in self.frames:
            header, body = Header.unpack(view[start:end])
            yield header, view[start + body : end]


class Recording:
    """A recording, opened for reading: a file, or a directory of segments.

    `header` is the first segment's. What a damaged tail lost is in `missing_bytes`; what was dropped to stay within a
    size, before the first segment, in `dropped_bytes`.

    Synchronization: reading is safe from any thread.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.segments = [Segment(name) for name in segment_paths(path)]
        if not self.segments:
            raise RecordingError(f"{path} holds no segment (*{SUFFIX}) of a recording")
        self.header = self.segments[0].header
        self.dropped_bytes = int(self.header.get("dropped_bytes", 0))

    @property
    def missing_bytes(self) -> int:
        """Bytes at the ends of segments that are no whole frame."""
        return sum(segment.missing_bytes for segment in self.segments)

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
        first clock model its first one holds.
        """
        raw = records.STREAM_IDS["raw"]
        for segment in self.segments:
            state = TraceState(segment.header)
            for header, body in segment.batches():
                if header.stream != raw or header.kind != records.KIND_RAW_CHUNK:
                    continue
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


def _decoded(header: Header, body: memoryview) -> tuple[Header, bytes]:
    if header.kind != records.KIND_RAW_CHUNK:
        return header, bytes(body)
    header.kind = records.KIND_TRACE
    return header, raw_codec.decode(bytes(body))


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
    recording = Recording(path)
    yield from _replay_batches(iter(recording), recording.header, config)
    for segment in recording.segments:
        if segment.missing_bytes:
            print(
                f"stirbar replay: the last {segment.missing_bytes} bytes of {segment.path} are no whole frame; "
                "replayed what is before",
                file=sys.stderr,
            )


def _replay_batches(
    batches: Iterator[tuple[Header, bytes]], header: dict[str, Any] | None, config: Any
) -> Iterator[dict[str, Any]]:
    from stirbar.rt.replay_arrays import Replay

    machines: dict[tuple[bytes, int], Replay] = {}
    warned = False
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
            continue
        for reading in records.READING.iter_unpack(machine.feed(body)):
            yield dict(zip(records.READING_FIELDS, reading, strict=True))


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
