"""Recordings: what the estimators of a worker saw, in a file, and the same readings again from it.

A file holds a JSON header and then frames, each with its length and CRC-32. A frame is a batch as on the wire
(docs/protocol.md): raw chunks (kind 5) and snapshots of the estimators' state (kind 3). A recording can begin at any
snapshot; one that was cut mid-write is read up to its last whole frame.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
import zlib

from stirbar.core import raw_codec, records
from stirbar.core.config import ConfigError, add_config_options, config_from_arguments
from stirbar.core.records import Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    from stirbar.core.client import Worker

MAGIC = b"STBREC01"
FRAME = struct.Struct("<II")  # length, CRC-32
FRAME_MAXIMUM = 64 << 20
CHUNK_ITEMS = 8192  # about 5 s of two photodiodes
LEASE_S = 30.0
TRACE_STREAMS = (records.STREAM_IDS["raw"], records.STREAM_IDS["edges"])


class RecordingError(Exception):
    """A file that is no recording, or cannot be replayed; one sentence that says why."""


# --- the file ---------------------------------------------------------------------------------------------------------


class Writer:
    """Writes a recording. Frames reach the disk at least every `sync_s` seconds."""

    def __init__(self, file: BinaryIO, header: dict[str, Any], sync_s: float = 5.0) -> None:
        self.file = file
        self.sync_s = sync_s
        self.items = 0
        self._synced = time.monotonic()
        file.write(MAGIC)
        self._frame(json.dumps(header).encode())

    def _frame(self, body: bytes) -> None:
        self.file.write(FRAME.pack(len(body), zlib.crc32(body)) + body)
        if time.monotonic() - self._synced > self.sync_s:
            self.file.flush()
            os.fsync(self.file.fileno())
            self._synced = time.monotonic()

    def snapshot(self, header: Header, state: bytes) -> None:
        """The estimators' state; items from `header.first_sequence` on follow it."""
        self._frame(header.pack() + state)

    def trace(self, header: Header, items: bytes) -> None:
        """A run of trace items, `header.first_sequence` the first of them."""
        self.items += len(items) // records.TRACE.size
        chunk = Header.unpack(header.pack())[0]
        chunk.kind, chunk.record_size = records.KIND_RAW_CHUNK, 0
        chunk.count = len(items) // records.TRACE.size
        self._frame(chunk.pack() + raw_codec.encode(items))


class Reader:
    """Reads a recording. `header` is the worker's description; `missing_bytes` says, after iteration, how much of the
    end could not be read (a recording cut mid-write)."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.file = file
        self.missing_bytes = 0
        if file.read(len(MAGIC)) != MAGIC:
            raise RecordingError(f"{name} is no stirbar recording (and no CSV with time_s,channel,volts,led_on)")
        first = self._frame()
        if first is None:
            raise RecordingError(f"{name} is cut within its header: nothing to replay")
        self.header: dict[str, Any] = json.loads(first)

    def _frame(self) -> bytes | None:
        """The next whole frame, or None at the end."""
        start = self.file.tell()
        prefix = self.file.read(FRAME.size)
        if len(prefix) == FRAME.size:
            length, checksum = FRAME.unpack(prefix)
            body = self.file.read(length) if length <= FRAME_MAXIMUM else b""
            if len(body) == length and zlib.crc32(body) == checksum:
                return body
        if prefix:
            self.file.seek(0, os.SEEK_END)
            self.missing_bytes = self.file.tell() - start
        return None

    def __iter__(self) -> Iterator[tuple[Header, bytes]]:
        """Batches in the order of recording: (header of kind 2 or 3, trace items or state)."""
        while (frame := self._frame()) is not None:
            header, offset = Header.unpack(frame)
            if header.kind == records.KIND_RAW_CHUNK:
                header.kind = records.KIND_TRACE
                yield header, raw_codec.decode(frame[offset:])
            else:
                yield header, frame[offset:]


# --- recording --------------------------------------------------------------------------------------------------------


class _Assembler:
    """Orders one trace stream: starts at a snapshot, gathers items into chunks, and starts anew after a hole."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.snapshots: dict[int, tuple[Header, bytes]] = {}
        self.next_sequence = -1  # -1: waiting for a snapshot
        self.header: Header | None = None
        self.items = bytearray()
        self.holes = 0

    def snapshot(self, header: Header, state: bytes) -> None:
        self.snapshots[header.first_sequence] = (header, state)

    def trace(self, header: Header, items: bytes) -> None:
        if self.next_sequence >= 0 and header.first_sequence != self.next_sequence:
            self.flush()
            self.holes += 1
            self.next_sequence = -1
        for sequence in sorted(self.snapshots):
            if sequence >= header.end_sequence:
                break
            snapshot, state = self.snapshots.pop(sequence)
            if sequence < header.first_sequence:
                continue
            self.flush()
            if self.next_sequence >= 0:
                self._append(header, items, max(self.next_sequence, header.first_sequence), sequence)
                self.flush()
            self.writer.snapshot(snapshot, state)
            self.next_sequence = sequence
        if self.next_sequence >= 0:
            self._append(header, items, max(self.next_sequence, header.first_sequence), header.end_sequence)

    def _append(self, header: Header, items: bytes, first: int, end: int) -> None:
        if first >= end:
            return
        if not self.items:
            self.header = Header.unpack(header.pack())[0]
            self.header.first_sequence = first
        size = records.TRACE.size
        self.items += items[(first - header.first_sequence) * size : (end - header.first_sequence) * size]
        self.next_sequence = end
        if len(self.items) >= CHUNK_ITEMS * size:
            self.flush()

    def flush(self) -> None:
        if self.items and self.header is not None:
            self.writer.trace(self.header, bytes(self.items))
            self.items.clear()


def record(worker: Worker, path: str, seconds: float | None = None) -> dict[str, Any]:
    """Record a worker's trace to a new file until `seconds` have passed or the caller interrupts.

    Returns what was written: items, holes, bytes. The file is not replaced when it exists (FileExistsError).
    """
    description = worker.describe()
    end = None if seconds is None else time.monotonic() + seconds
    holes = 0
    with open(path, "xb") as file:
        writer = Writer(file, {**description, "recorded_at": time.time(), "config": worker.command("config")["config"]})
        assemblers = {stream: _Assembler(writer) for stream in TRACE_STREAMS}
        leased = 0.0
        stream = worker.batches("trace/", "snapshot/", timeout_s=0.5, idle=True)
        try:
            for batch in stream:
                now = time.monotonic()
                if end is not None and now >= end:
                    break
                if now - leased > LEASE_S / 2:
                    worker.command("raw", seconds=LEASE_S)
                    leased = now
                if batch is None:
                    continue
                _, header, payload = batch
                if header.kind == records.KIND_SNAPSHOT:
                    assemblers[header.stream].snapshot(header, payload)
                else:
                    assemblers[header.stream].trace(header, payload)
        except KeyboardInterrupt:
            pass
        finally:
            for assembler in assemblers.values():
                assembler.flush()
                holes += assembler.holes
            file.flush()
            os.fsync(file.fileno())
    return {"file": path, "items": writer.items, "holes": holes, "bytes": os.path.getsize(path)}


# --- replay -----------------------------------------------------------------------------------------------------------


def replay(path: str, config: Any = None) -> Iterator[dict[str, Any]]:
    """The readings of a recording or CSV, in order, as dictionaries of the reading's fields.

    For the same build on the same architecture they are bit-identical to the live ones, but for `sequence`, `wall_ns`
    and `experiment`, which the estimators do not know. Raises RecordingError.
    """
    with open(path, "rb") as file:
        if file.peek(len(MAGIC))[: len(MAGIC)] != MAGIC:
            from stirbar.core.trace_csv import trace_of_csv

            yield from _replay_batches(trace_of_csv(path), None, config)
            return
        reader = Reader(file, path)
        yield from _replay_batches(iter(reader), reader.header, config)
        if reader.missing_bytes:
            print(
                f"stirbar replay: the last {reader.missing_bytes} bytes of {path} are no whole frame; replayed what is "
                "before",
                file=sys.stderr,
            )


def _replay_batches(
    batches: Iterator[tuple[Header, bytes]], header: dict[str, Any] | None, config: Any
) -> Iterator[dict[str, Any]]:
    from stirbar.rt.replay_arrays import Replay

    machines: dict[int, Replay] = {}
    for batch, body in batches:
        machine = machines.get(batch.stream)
        if machine is None:
            machine = machines[batch.stream] = Replay(batch.stream == records.STREAM_IDS["edges"], config)
            if header is not None and header["build_id"] != machine.build_id():
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


# --- commands ---------------------------------------------------------------------------------------------------------


def record_main(argv: list[str]) -> int:
    """`stirbar record`"""
    import argparse

    from stirbar.core.client import CommandRefused, Worker, WorkerUnreachable

    parser = argparse.ArgumentParser(prog="stirbar record", description="Write a worker's raw conversions to a file.")
    parser.add_argument("--unit", help="name of the unit (default: that of the config)")
    parser.add_argument("--out", required=True, help="file to write; must not exist")
    parser.add_argument("--seconds", type=float, help="stop after so long (default: at Ctrl-C)")
    parser.add_argument("--address", help="base address of the worker's sockets")
    add_config_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.unit:
        arguments.set = [*(arguments.set or []), f"unit.name={arguments.unit}"]
    try:
        with Worker(arguments.address, config=config_from_arguments(arguments)) as worker:
            done = record(worker, arguments.out, arguments.seconds)
    except FileExistsError:
        print(f"stirbar record: {arguments.out} exists and is not overwritten; name another file", file=sys.stderr)
        return 1
    except (ConfigError, WorkerUnreachable, CommandRefused, ValueError, OSError) as error:
        print(f"stirbar record: {error}", file=sys.stderr)
        return 1
    print(f"{done['items']} items, {done['bytes']} bytes, {done['holes']} holes in {done['file']}")
    return 0


def replay_main(argv: list[str]) -> int:
    """`stirbar replay`"""
    import argparse

    from stirbar.core.status import flag_names

    parser = argparse.ArgumentParser(prog="stirbar replay", description="Repeat the readings of a recording or a CSV.")
    parser.add_argument("file", help="recording, or CSV with the columns time_s,channel,volts,led_on")
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
