"""The spool: what the leader has not committed yet (and, until space is needed, what it has), in files on the unit.

Append-only segments `00000001.seg` of frames: magic, length, CRC-32, then exactly one MQTT payload of `store/<stream>`
(batch header and body). Within one (run, stream) frames lie in the order of their sequence numbers. A closed segment
has a small `.idx` beside it, so that a start reads only the last segment; `positions.json` remembers what was
acknowledged (losing it costs nothing but a question to the leader).

A frame is written with one `write`, so a killed process leaves whole frames; a power cut may leave a torn tail, which
is cut off and reported at the next start. A damaged frame in the middle is skipped and counted. Whatever is missing
for either reason shows as a hole in the sequence numbers and reaches the leader as a gap record.

When it is full, what was acknowledged goes first, then raw conversions, then readings by age (`spool_thin`), and at
last whole segments. A segment is thinned by writing it anew beside itself and renaming it: a power cut leaves the one
or the other. A raw stretch leaves its gap record in its place; a thinned one is a hole between two readings that are
there; of a segment that goes, the gap records are on the disk before it does.

Synchronization: one thread; one process per directory (flock on `lock`). Memory is bounded by the number of segments,
not by their size.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os

from stirbar.bridge.spool_files import FRAME, MAXIMUM_FRAME, Frame, Segment, framed, gap_payload, parse_all
from stirbar.bridge.spool_thin import LEVELS_S, thinned
from stirbar.core.records import KIND_GAP, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stirbar.bridge.spool_files import Key, Position

_READ_BYTES = 64 << 10
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# of the limit, what may be taken by readings thinned to level 1, 2, 3: beyond it the oldest go to the next level
LEVEL_SHARES = (0.30, 0.15, 0.05)


class SpoolFull(OSError):
    """Nothing was written: the disk has no room and no acknowledged segment is left to make some."""


class Spool:
    """See the module. `report(message)` is called for what a person should know: damage, a full disk, data given up.

    `limit_bytes` bounds all segments together. Raises OSError when the directory cannot be used, and when another
    process has it. Counters: `lost` (data given up unacknowledged), `cut_bytes` (torn tail), `damaged` (bytes skipped),
    `full` (appends refused).
    """

    __slots__ = (
        "_dirty",
        "_lock",
        "_position_changes",
        "_read_fd",
        "_read_number",
        "_report",
        "_segments",
        "_write_fd",
        "acknowledged",
        "current_run",
        "cut_bytes",
        "damaged",
        "directory",
        "ends",
        "epoch",
        "full",
        "limit_bytes",
        "lost",
        "segment_bytes",
        "unit_id",
    )

    def __init__(
        self,
        directory: str,
        unit_id: bytes,
        limit_bytes: int,
        report: Callable[[str], None],
        segment_bytes: int = 0,
    ) -> None:
        self.directory = directory
        self.unit_id = unit_id
        self.limit_bytes = limit_bytes
        self.segment_bytes = segment_bytes or min(8 << 20, max(64 << 10, limit_bytes // 64), limit_bytes // 2)
        self.lost = self.cut_bytes = self.damaged = self.full = 0
        self.acknowledged: dict[Key, int] = {}
        self.ends: dict[Key, int] = {}
        self.epoch = 0
        self.current_run = b""
        self._report = report
        self._segments: list[Segment] = []
        self._write_fd = self._read_fd = -1
        self._read_number = 0
        self._dirty = False
        self._position_changes = False
        os.makedirs(directory, mode=0o750, exist_ok=True)
        self._lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise OSError(errno.EBUSY, "another bridge uses this spool", directory) from None
        self._load_positions()
        self._load_segments()

    # Reading what is there

    def _path(self, number: int, kind: str = "seg") -> str:
        return os.path.join(self.directory, f"{number:08d}.{kind}")

    def _load_positions(self) -> None:
        try:
            with open(os.path.join(self.directory, "positions.json"), "rb") as file:
                stored = json.loads(file.read())
            self.acknowledged = {
                (bytes.fromhex(run), int(stream)): int(sequence)
                for run, streams in stored["acknowledged"].items()
                for stream, sequence in streams.items()
            }
            self.epoch = int(stored["epoch"])
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            self.acknowledged = {}
            self._report(f"spool: positions.json is not readable ({error}); the leader will be asked instead")

    def _load_segments(self) -> None:
        for name in os.listdir(self.directory):
            if name.endswith(".new"):  # a power cut while it was written: the old one is still there
                os.unlink(os.path.join(self.directory, name))
        names = sorted(name[:8] for name in os.listdir(self.directory) if name.endswith(".seg") and name[:8].isdigit())
        for name in names:
            segment = Segment(int(name))
            last = name == names[-1]
            if last or not self._load_index(segment):
                self._scan(segment, last)
            self._segments.append(segment)
            for key, intervals in segment.ranges.items():
                self.ends[key] = max([self.ends.get(key, 0)] + [end for _, end, _ in intervals])
        if not self._segments:
            self._segments.append(Segment(1))
        self._write_fd = self._open(self._segments[-1].number)

    def _load_index(self, segment: Segment) -> bool:
        try:
            with open(self._path(segment.number, "idx"), "rb") as file:
                text = file.read()
            return segment.take_index(text, os.path.getsize(self._path(segment.number)))
        except OSError:
            return False

    def _scan(self, segment: Segment, cut_tail: bool) -> None:
        """Learn what a segment holds by reading it; the last segment loses a torn tail."""
        path = self._path(segment.number)
        segment.size = size = os.path.getsize(path)
        damaged_before = self.damaged
        offset = good_end = 0
        while offset < size:
            frames, offset = self._read_segment(segment, offset)
            for frame, end in frames:
                segment.note(frame.header)
                good_end = end
        if cut_tail and good_end < size:
            os.truncate(path, good_end)
            segment.size = good_end
            self.cut_bytes += size - good_end
            self.damaged = damaged_before
            self._report(f"spool: {size - good_end} bytes of a torn write cut off the end of {path}")

    def _read_segment(self, segment: Segment, offset: int) -> tuple[list[tuple[Frame, int]], int]:
        """Whole frames from `offset` on, each with the offset behind it, and where to go on; damage is skipped."""
        if self._read_number != segment.number:
            if self._read_fd >= 0:
                os.close(self._read_fd)
            self._read_number, self._read_fd = 0, -1
            self._read_fd = os.open(self._path(segment.number), os.O_RDONLY | os.O_CLOEXEC)
            self._read_number = segment.number
        size = _READ_BYTES
        while True:
            data = os.pread(self._read_fd, min(size, segment.size - offset), offset)
            at_end = offset + len(data) >= segment.size or not data
            frames, used, skipped = parse_all(data, at_end)
            if used or at_end:
                self.damaged += skipped
                return [(frame, offset + end) for frame, end in frames], offset + used if data else segment.size
            size = MAXIMUM_FRAME + FRAME.size  # a frame longer than the first guess

    # Writing

    def _open(self, number: int) -> int:
        """Open a segment for appending; a new one is in its directory for good when this returns."""
        descriptor = os.open(self._path(number), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._sync_directory()
        return descriptor

    def _sync_directory(self) -> None:
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def append(self, payloads: list[bytes]) -> None:
        """Write payloads (header and body each) in one go; all of them or, with SpoolFull, none.

        They are safe from a crash of this process at once, from a power cut after the next `sync`.
        """
        if not payloads:
            return
        size = sum(len(payload) + FRAME.size for payload in payloads)
        if self._segments[-1].size and self._segments[-1].size + size > self.segment_bytes:
            self._roll()
        while self.size + size > self.limit_bytes and len(self._segments) > 1:
            self._make_room()
        self._write(payloads)

    def _write(self, payloads: list[bytes]) -> None:
        data = b"".join([framed(payload) for payload in payloads])
        segment = self._segments[-1]
        while True:
            try:
                if os.write(self._write_fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                break
            except OSError as error:
                os.ftruncate(self._write_fd, segment.size)
                if error.errno in _FULL and self._evict_acknowledged():
                    continue
                self.full += 1
                raise SpoolFull(error.errno, f"spool in {self.directory}: {error.strerror}") from None
        segment.size += len(data)
        self._dirty = True
        for payload in payloads:
            header, _ = Header.unpack(payload)
            key = (header.run_id, header.stream)
            segment.note(header)
            self.ends[key] = max(self.ends.get(key, 0), header.end_sequence)

    def sync(self) -> bool:
        """Make what was appended survive a power cut; False if nothing was. It may wait for the disk."""
        if not self._dirty:
            return False
        os.fdatasync(self._write_fd)
        self._dirty = False
        return True

    def _roll(self) -> None:
        """Close the open segment, leave its index beside it, open the next."""
        closed = self._segments[-1]
        try:
            descriptor = self._open(closed.number + 1)
        except OSError as error:
            self.full += 1
            raise SpoolFull(error.errno, f"spool in {self.directory}: {error.strerror}") from None
        self.sync()
        os.close(self._write_fd)
        self._write_fd = descriptor
        self._segments.append(Segment(closed.number + 1))
        self._write_index(closed)

    def _write_index(self, segment: Segment) -> None:
        try:
            with open(self._path(segment.number, "idx"), "wb") as file:
                file.write(segment.index())
        except OSError as error:
            self._report(f"spool: no index written ({error.strerror}); the segment will be read at the next start")

    # Giving up space

    @property
    def size(self) -> int:
        """Bytes in all segments."""
        return sum(segment.size for segment in self._segments)

    def _pending_of(self, segment: Segment) -> list[tuple[Key, int, int, int]]:
        """What of a segment is not acknowledged: (key, first, end, gap)."""
        return [
            (key, max(first, self.acknowledged.get(key, 0)), end, gap)
            for key, intervals in segment.ranges.items()
            for first, end, gap in intervals
            if end > self.acknowledged.get(key, 0)
        ]

    def _evict_acknowledged(self) -> bool:
        for segment in self._segments[:-1]:
            if not self._pending_of(segment):
                self._remove(segment)
                return True
        return False

    def _make_room(self) -> None:
        """One step: the oldest acknowledged segment, raw conversions, a level of readings, or the oldest segment."""
        if self._evict_acknowledged():
            return
        closed = self._segments[:-1]
        for segment in closed:
            if segment.has_raw:
                self._rewrite(segment, segment.level)
                return
        for level in range(len(LEVELS_S), 0, -1):
            held = [segment for segment in closed if segment.level == level]
            if held and sum(segment.size for segment in held) > LEVEL_SHARES[level - 1] * self.limit_bytes:
                victim = held[0]
                break
        else:
            victim = min(closed, key=lambda segment: segment.level)  # the oldest of those that are thinned least
        if victim.level < len(LEVELS_S):
            self._rewrite(victim, victim.level + 1)
        else:
            self._drop(victim)

    def _frames(self, segment: Segment) -> Iterator[Frame]:
        offset = 0
        while offset < segment.size:
            frames, offset = self._read_segment(segment, offset)
            yield from (frame for frame, _ in frames)

    def _rewrite(self, segment: Segment, level: int) -> None:
        """Write a segment anew without raw conversions and with readings thinned to a level; a small one before it,
        thinned as far, goes into it."""
        place = self._segments.index(segment)
        before = self._segments[place - 1] if place else None
        if before is not None and (before.level != level or 2 * before.size > self.segment_bytes or before.has_raw):
            before = None
        new = Segment(segment.number)
        new.level, new.rewrites = level, segment.rewrites + 1
        sources = [segment] if before is None else [before, segment]
        frames = (frame for source in sources for frame in self._frames(source))
        given_up = [0]
        path = self._path(segment.number, "new")
        try:
            with open(path, "wb") as file:
                for payload in thinned(frames, level, self.acknowledged, self.unit_id, given_up):
                    new.size += file.write(framed(payload))
                    new.note(Header.unpack(payload)[0])
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self.full += 1
            raise SpoolFull(error.errno, f"spool in {self.directory}: {error.strerror}") from None
        for source in sources:
            new.begin_as(source)
        self._forget_read(segment.number)
        os.replace(path, self._path(segment.number))
        self._sync_directory()
        self._segments[place] = new
        self._write_index(new)
        if before is not None:
            self._remove(before)
        self.lost += given_up[0]
        what = f"readings are thinned to one in {LEVELS_S[level - 1]} s" if level else "raw conversions go"
        self._report(f"spool: full at {self.limit_bytes} bytes: {given_up[0]} unacknowledged data given up, old {what}")

    def _drop(self, victim: Segment) -> None:
        """Give up a whole segment, leaving gap records."""
        pending = self._pending_of(victim)
        count = sum(
            frame.end - max(frame.first, self.acknowledged.get(frame.key, 0))
            for frame in self._frames(victim)
            if frame.kind != KIND_GAP and frame.end > self.acknowledged.get(frame.key, 0)
        )
        self._report(f"spool: full at {self.limit_bytes} bytes: {count} unacknowledged data given up, gaps recorded")
        self._write([gap_payload(self.unit_id, key, first, end, "spool full") for key, first, end, _ in pending])
        self.sync()
        self._remove(victim)
        self.lost += count

    def _remove(self, segment: Segment) -> None:
        self._segments.remove(segment)
        self._forget_read(segment.number)  # an open descriptor would keep the space
        for kind in ("seg", "idx"):
            try:
                os.unlink(self._path(segment.number, kind))
            except FileNotFoundError:
                pass

    def _forget_read(self, number: int) -> None:
        if self._read_number == number:
            os.close(self._read_fd)
            self._read_number, self._read_fd = 0, -1

    # Acknowledgement

    def acknowledge(self, key: Key, through: int) -> None:
        """Everything of `key` below `through` is committed by the leader. May go back, when a leader lost its store."""
        if self.acknowledged.get(key) != through:
            self.acknowledged[key] = through
            self._position_changes = True

    def pending_keys(self) -> list[Key]:
        """Every (run, stream) of which something is not acknowledged."""
        return [key for key, end in self.ends.items() if end > self.acknowledged.get(key, 0)]

    def next_sequence(self, key: Key) -> int:
        """The first sequence number that the spool has not seen of this run and stream."""
        return max(self.ends.get(key, 0), self.acknowledged.get(key, 0))

    def save_positions(self) -> None:
        """Write the acknowledged positions, if they changed; what is gone from spool and worker is forgotten.

        Not synced: an older file costs a question to the leader. A full disk is no error here for the same reason.
        """
        if not self._position_changes:
            return
        held = {key for segment in self._segments for key in segment.ranges}
        for known in (self.acknowledged, self.ends):
            for key in [key for key in known if key not in held and key[0] != self.current_run]:
                del known[key]
        runs: dict[str, dict[int, int]] = {}
        for (run, stream), sequence in self.acknowledged.items():
            runs.setdefault(run.hex(), {})[stream] = sequence
        path = os.path.join(self.directory, "positions.json")
        try:
            with open(path + ".new", "w") as file:
                file.write(json.dumps({"epoch": self.epoch, "acknowledged": runs}))
            os.replace(path + ".new", path)
            self._position_changes = False
        except OSError as error:
            self._report(f"spool: positions not saved ({error.strerror})")

    def follow_epoch(self, epoch: int) -> bool:
        """Take note of a leadership epoch; False when a higher one was seen before."""
        if epoch < self.epoch:
            return False
        if epoch > self.epoch:
            self.epoch = epoch
            self._position_changes = True
        return True

    def forget_epoch(self) -> None:
        """This unit is in another cluster now, whose leaders count from one again."""
        self.epoch = 0
        self._position_changes = True
        self.save_positions()

    def why_missing(self, key: Key, first: int, end: int) -> str:
        """The reason for a hole: what was given up for want of room has left gap records behind everything else."""
        for segment in self._segments:
            for start, stop, gap in segment.ranges.get(key, ()):
                if start < end and stop > first and (gap or segment.level):
                    return "spool full" if gap else "spool full: thinned"
        return "not in the spool any more"

    # Reading for the leader

    def find(self, key: Key, sequence: int) -> Position:
        """Where to begin reading to see all of `key` from `sequence` on; the end of the spool when there is nothing."""
        for segment in self._segments:
            if segment.reaches(key, sequence):
                return (segment.number, segment.rewrites, 0)
        return self.tail

    @property
    def tail(self) -> Position:
        return (self._segments[-1].number, self._segments[-1].rewrites, self._segments[-1].size)

    def read(self, position: Position) -> tuple[list[Frame], Position]:
        """The next frames from `position` on (about 64 KiB of them) and the position behind them; none at the end."""
        number, rewrites, offset = position
        for segment in list(self._segments):
            if segment.number < number:
                continue
            if (segment.number, segment.rewrites) != (number, rewrites):
                offset = 0
            while offset < segment.size:
                try:
                    frames, offset = self._read_segment(segment, offset)
                except OSError as error:
                    self._report(f"spool: {self._path(segment.number)} cannot be read ({error.strerror})")
                    self.damaged += segment.size - offset
                    break
                if frames:
                    return [frame for frame, _ in frames], (segment.number, segment.rewrites, offset)
        return [], self.tail

    def close(self) -> None:
        """Sync, save positions, release the directory."""
        self.sync()
        self.save_positions()
        for descriptor in (self._write_fd, self._read_fd, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._write_fd = self._read_fd = self._lock = -1
