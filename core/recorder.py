"""Writes recordings: one file, or for ever a directory of segments of which the oldest are dropped.

A frame reaches the operating system as a whole when its chunk is full or CHUNK_S old, and the disk at least every few
seconds: what a killed recorder loses is the chunk that was open, what a power cut loses is that and the seconds since
the last sync. Whatever follows starts in a new segment.

Synchronization: one thread.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
import zlib

from stirbar.core import raw_codec, records
from stirbar.core.recording import FRAME, MAGIC, SUFFIX, RecordingError, Segment, TraceState, segment_paths
from stirbar.core.records import Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CHUNK_ITEMS = 8192  # about 5 s of two photodiodes at full rate
CHUNK_S = 8.0  # then a chunk is written however little is in it
SNAPSHOT_PERIOD_S = 600.0  # a snapshot is as large as ten seconds of raw data
SYNC_S = 5.0
SEGMENTS = 16  # that a limited recording is made of
SEGMENT_BYTES_MAXIMUM = 64 << 20
TRACE_STREAMS = (records.STREAM_IDS["raw"], records.STREAM_IDS["edges"])


class RecorderError(Exception):
    """Why nothing can be recorded, and what to do; one sentence."""


class SegmentWriter:
    """One file of a recording. The file must not exist (FileExistsError)."""

    def __init__(self, path: str, header: dict[str, Any]) -> None:
        self.path = path
        self.bytes = 0
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._synced, self._synced_bytes = time.monotonic(), 0
        try:
            self._append(MAGIC)
            self.frame(json.dumps(header).encode())
            self.sync()
            self._sync_directory()
        except OSError:
            os.close(self._file)
            os.unlink(path)
            raise

    def frame(self, body: bytes) -> None:
        """Append one frame, whole or not at all (OSError)."""
        self._append(FRAME.pack(len(body), zlib.crc32(body)) + body)

    def _append(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError:
            os.ftruncate(self._file, self.bytes)
            os.lseek(self._file, self.bytes, os.SEEK_SET)
            raise
        self.bytes += written

    def sync_old(self) -> None:
        """Sync what was written when the last sync is SYNC_S ago."""
        if self._synced_bytes != self.bytes and time.monotonic() - self._synced >= SYNC_S:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._file)
        self._synced, self._synced_bytes = time.monotonic(), self.bytes

    def _sync_directory(self) -> None:
        """Otherwise a power cut may leave the file without its name."""
        directory = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        self.sync()
        os.close(self._file)


class Assembler:
    """Orders one trace stream: begins at a snapshot, gathers items into chunks, and begins anew after a hole or when a
    new segment waits."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.writer: SegmentWriter | None = None
        self.snapshots: dict[int, tuple[Header, bytes]] = {}
        self.next_sequence = -1  # -1: waiting for a snapshot
        self.header: Header | None = None
        self.items = bytearray()
        self.opened_at_s = 0.0  # this machine's time of the first item gathered
        self.holes = 0
        self.snapshot_at_s = 0.0

    def snapshot(self, header: Header, state: bytes) -> None:
        self.snapshots[header.first_sequence] = (header, state)

    def trace(self, header: Header, items: bytes) -> None:
        """A run of trace items, `header.first_sequence` the first of them."""
        if self.next_sequence >= 0 and header.first_sequence != self.next_sequence:
            self.hole()
        for sequence in sorted(self.snapshots):
            if sequence >= header.end_sequence:
                break
            snapshot, state = self.snapshots.pop(sequence)
            if sequence >= header.first_sequence and self._is_wanted(snapshot):
                if self.next_sequence >= 0:
                    self._gather(header, items, max(self.next_sequence, header.first_sequence), sequence)
                    self.flush()
                self._begin(snapshot, state)
        if self.next_sequence >= 0:
            self._gather(header, items, max(self.next_sequence, header.first_sequence), header.end_sequence)

    def hole(self) -> None:
        """What comes next does not follow on what came."""
        self.flush()
        self.holes += 1
        self.next_sequence = -1
        self.recorder.trace_state.forget()

    def _is_wanted(self, snapshot: Header) -> bool:
        return (
            self.next_sequence < 0
            or self.writer is not self.recorder.newest
            or snapshot.monotonic_ns * 1e-9 - self.snapshot_at_s >= SNAPSHOT_PERIOD_S
        )

    def _begin(self, header: Header, state: bytes) -> None:
        self.writer = self.recorder.newest
        if self.recorder.write(self.writer, header.pack() + state):
            self.next_sequence = header.first_sequence
            self.snapshot_at_s = header.monotonic_ns * 1e-9

    def _gather(self, header: Header, items: bytes, first: int, end: int) -> None:
        if first >= end:
            return
        if not self.items:
            self.header = Header.unpack(header.pack())[0]
            self.header.first_sequence = first
            self.opened_at_s = time.monotonic()
        size = records.TRACE.size
        self.items += items[(first - header.first_sequence) * size : (end - header.first_sequence) * size]
        self.next_sequence = end
        if len(self.items) >= CHUNK_ITEMS * size:
            self.flush()

    def flush_old(self, monotonic_ns: int | None) -> None:
        """Write what was gathered when it is CHUNK_S old on the worker's clock, or, where that is silent, on ours."""
        if not self.items or self.header is None:
            return
        if monotonic_ns is None:
            age_s = time.monotonic() - self.opened_at_s
        else:
            age_s = (monotonic_ns - self.header.monotonic_ns) * 1e-9
        if age_s >= self.recorder.chunk_s:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered."""
        if not self.items or self.header is None or self.writer is None:
            return
        items = bytes(self.items)
        self.items.clear()
        self.header.kind, self.header.record_size = records.KIND_RAW_CHUNK, 0
        self.header.count = len(items) // records.TRACE.size
        if self.recorder.write(self.writer, self.header.pack() + raw_codec.encode(items)):
            self.recorder.items += self.header.count
            if self.header.stream == records.STREAM_IDS["raw"]:
                self.recorder.trace_state.feed(items)
        else:
            self.next_sequence = -1


class Recorder:
    """Takes a worker's trace and snapshot messages, and writes them.

    `path` is a new file; with `keep_bytes` it is a directory, made if it is not there, whose segments take at most so
    much: the oldest are deleted, and the segments that are left say how much that was. `description` is what the worker
    says of itself, with its config.

    Raises RecorderError when another recorder writes there.
    """

    def __init__(
        self, path: str, description: dict[str, Any], keep_bytes: int = 0, *, chunk_s: float = CHUNK_S
    ) -> None:
        self.path = path
        self.keep_bytes = keep_bytes
        self.chunk_s = chunk_s
        self.items = 0
        self.lost_frames = 0  # that the disk did not take
        self.dropped_bytes = 0  # by this recorder and those before it
        self.failure = ""
        self.trace_state = TraceState(description)
        self._description = description
        self._number = 0
        self._has_dropped = False
        self._is_told = True  # the newest header says what was dropped, and who is recorded
        self._older: list[tuple[str, int]] = []  # paths and sizes, oldest first
        self._segment_bytes = min(keep_bytes // SEGMENTS, SEGMENT_BYTES_MAXIMUM)
        self._lock = self._take(path) if keep_bytes else -1
        self._writers: list[SegmentWriter] = []
        self._run = b""
        self.assemblers = {stream: Assembler(self) for stream in TRACE_STREAMS}
        self._open()

    def _take(self, path: str) -> int:
        os.makedirs(path, mode=0o750, exist_ok=True)
        lock = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise RecorderError(f"another recorder writes to {path}; stop it, or name another directory") from None
        for name in segment_paths(path):
            self._older.append((name, os.path.getsize(name)))
            self._number = int(os.path.basename(name)[: -len(SUFFIX)])
            try:
                with Segment(name) as segment:
                    self.dropped_bytes = int(segment.header.get("dropped_bytes", 0))
            except RecordingError:
                continue  # cut as it was opened
        return lock

    @property
    def newest(self) -> SegmentWriter:
        """The segment in which streams begin."""
        return self._writers[-1]

    def _open(self) -> None:
        room = self._segment_bytes * 3 // 2  # a segment and what it may grow beyond, so that its header stays true
        while self.keep_bytes and self._total() + room > self.keep_bytes and self._drop_oldest():
            pass
        self._number += 1
        path = os.path.join(self.path, f"{self._number:08d}{SUFFIX}") if self.keep_bytes else self.path
        header = {
            **self._description,
            "recorded_at": time.time(),
            "segment": self._number,
            "dropped_bytes": self.dropped_bytes,
            "trace_state": self.trace_state.as_header(),
        }
        self._writers.append(SegmentWriter(path, header))
        self._is_told = True

    def _open_next(self) -> None:
        """Open a segment; what the disk refuses is tried again, with the next message."""
        try:
            self._open()
        except OSError as error:
            self._failed(self.path, error)
            if error.errno == errno.ENOSPC:
                self._drop_oldest()

    def _failed(self, path: str, error: OSError) -> None:
        self.failure = f"{path}: {os.strerror(error.errno or errno.EIO)}"

    def message(self, header: Header, payload: bytes) -> None:
        """A trace or snapshot message of the worker; another run of it begins a new segment."""
        if header.run_id != self._run:
            if self._run:
                for assembler in self.assemblers.values():
                    assembler.hole()
                    assembler.snapshots.clear()
            self._run = header.run_id
        if header.kind == records.KIND_SNAPSHOT:
            self.assemblers[header.stream].snapshot(header, payload)
        elif header.kind == records.KIND_TRACE:
            self.assemblers[header.stream].trace(header, payload)
            self._finish_old(header.monotonic_ns)
            if self.keep_bytes:
                self._rotate()

    def idle(self) -> None:
        """No message comes: what is old goes to the disk all the same."""
        self._finish_old(None)

    def _finish_old(self, monotonic_ns: int | None) -> None:
        for assembler in self.assemblers.values():
            assembler.flush_old(monotonic_ns)
        for writer in self._writers:
            try:
                writer.sync_old()
            except OSError as error:
                self._failed(writer.path, error)

    def describe(self, description: dict[str, Any]) -> None:
        """The worker says something new of itself (it was started anew): from here on in a new segment."""
        self._description = description
        self.trace_state = TraceState(description)
        if self.keep_bytes:
            self._is_told = False
            self._open_next()

    def write(self, writer: SegmentWriter, body: bytes) -> bool:
        """Append a frame; False, and counted, when the disk does not take it even after the oldest segment is gone."""
        for _ in range(2):
            try:
                writer.frame(body)
            except OSError as error:
                self._failed(writer.path, error)
                if error.errno != errno.ENOSPC or not self._drop_oldest():
                    break
            else:
                self.failure = ""
                return True
        self.lost_frames += 1
        if not self.keep_bytes:
            raise OSError(errno.EIO, self.failure)
        return False

    def _rotate(self) -> None:
        """Close segments that no stream needs any more; open one when the newest is full, or its header no longer says
        what was dropped; drop the oldest."""
        used = {id(assembler.writer) for assembler in self.assemblers.values()}
        for writer in self._writers[:-1]:
            if id(writer) not in used:
                writer.close()
                self._writers.remove(writer)
                self._older.append((writer.path, writer.bytes))
        while self._total() > self.keep_bytes and self._drop_oldest():
            pass
        if (self.newest.bytes >= self._segment_bytes or not self._is_told) and len(self._writers) == 1:
            self._open_next()

    def _total(self) -> int:
        return sum(size for _, size in self._older) + sum(writer.bytes for writer in self._writers)

    def _drop_oldest(self) -> bool:
        """Delete the oldest segment that is finished; False when there is none."""
        if not self._older:
            return False
        path, size = self._older.pop(0)
        os.unlink(path)
        if not self._has_dropped:
            print(
                f"stirbar record: {self.path} has reached its {self.keep_bytes / 1e6:g} MB; the oldest segment "
                f"({os.path.basename(path)}) was dropped, and so will be others",
                file=sys.stderr,
            )
        self._has_dropped, self._is_told = True, False
        self.dropped_bytes += size
        return True

    def flush(self) -> None:
        """Write what was gathered so far."""
        for assembler in self.assemblers.values():
            assembler.flush()

    def close(self) -> None:
        """Write and sync everything."""
        self.flush()
        for writer in self._writers:
            writer.close()
        if self._lock >= 0:
            os.close(self._lock)

    def summary(self) -> dict[str, Any]:
        """What was written: items, bytes, holes, what was lost or dropped."""
        return {
            "path": self.path,
            "items": self.items,
            "bytes": self._total(),
            "holes": sum(assembler.holes for assembler in self.assemblers.values()),
            "lost_frames": self.lost_frames,
            "dropped_bytes": self.dropped_bytes,
        }
