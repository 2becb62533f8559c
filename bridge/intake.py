"""From the worker's telemetry to the spool: every datum once, in order, holes filled from the worker's history.

One cursor per stream: the next sequence number that the spool needs. What comes at the cursor is taken; what comes
before it is a duplicate; what comes behind it shows a hole, and the stream is then asked for with `resend` until it has
caught up. What the worker does not remember any more becomes a gap record.

Synchronization: one thread.
"""

from __future__ import annotations

from stirbar.bridge.spool import SpoolFull
from stirbar.bridge.spool_files import NO_BOOT
from stirbar.core import raw_codec
from stirbar.core.records import (
    KIND_GAP,
    KIND_JSON,
    KIND_RAW_CHUNK,
    KIND_READINGS,
    KIND_TRACE,
    READING_STREAMS,
    STREAM_IDS,
    STREAMS,
    Header,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.bridge.log import Log
    from stirbar.bridge.spool import Spool
    from stirbar.bridge.worker_link import WorkerLink

EVENT, VITALS, RAW, EDGES = (STREAM_IDS[name] for name in ("event", "vitals", "raw", "edges"))
RESEND_BYTES = 256 << 10  # of one answer: what the bridge holds at a time
PENDING_BYTES = 1 << 20  # more than this is written before the block is due
RETRY_S = 1.0
FULL_RETRY_S = 5.0
GIVE_UP_AFTER = 5  # refused or unanswered resends in a row
RAW_CHUNK_ITEMS = 6000  # a chunk is this long or RAW_CHUNK_S, whichever comes first
RAW_CHUNK_S = 5.0
FRAME_BYTES = {KIND_READINGS: 64 << 10, KIND_TRACE: 128 << 10}  # of records in one frame, before compression


class Intake:
    """Counters: `taken` data, `duplicates`, `holes` seen, `refilled` data, `gaps` (data lost before they came here)."""

    def __init__(self, spool: Spool, link: WorkerLink, log: Log, with_raw: bool) -> None:
        self.run_id = b""
        self.full = False
        self.taken = self.duplicates = self.holes = self.refilled = self.gaps = 0
        self._streams = (*READING_STREAMS, EVENT, VITALS, *((RAW, EDGES) if with_raw else ()))
        self._spool = spool
        self._link = link
        self._log = log
        self._unit_id = spool.unit_id
        self._cursors: dict[int, int] = {}
        self._known_ends: dict[int, int] = {}  # from the worker's status
        self._pending: dict[int, list[tuple[Header, bytes]]] = {}
        self._pending_bytes = 0
        self._behind: dict[int, int] = {}  # stream: failures so far
        self._asked = False
        self._ask_at = 0.0
        self._raw_due = 0.0

    def begin_run(self, run_id: bytes) -> None:
        """Another run of the worker: what is known to be missing of the last one is lost, then start over."""
        self.end_run()
        self.run_id = self._spool.current_run = run_id
        self._cursors = {stream: self._spool.next_sequence((run_id, stream)) for stream in self._streams}
        self._known_ends = {}
        self._behind = dict.fromkeys(self._streams, 0)
        self._asked = False

    def end_run(self) -> None:
        """The run is over: write what is pending, and a gap for what its status promised but never came."""
        for stream, end in self._known_ends.items():
            if end > self._cursors.get(stream, end):
                self._gap(stream, end, "worker ended before it was sent")
        self._behind = {}
        self._raw_due = 0.0
        held = sum(header.count for batches in self._pending.values() for header, _ in batches)
        if not self.flush(0.0):
            self.gaps += held
            self._log("error", f"{held} data of an ended run are lost: they could not be written")

    def take(self, header: Header, body: bytes) -> None:
        """A batch from the telemetry socket."""
        cursor = self._cursors.get(header.stream)
        if cursor is None:
            return
        if header.first_sequence > cursor:
            if self._behind.get(header.stream, 0) < GIVE_UP_AFTER:
                if header.stream not in self._behind:
                    self.holes += 1
                    self._behind[header.stream] = 0
                return
            self._gap(header.stream, header.first_sequence, "not in the worker's history")
        self._accept(header, body)

    def _accept(self, header: Header, body: bytes) -> int:
        """Take what is new of a batch that begins at or before the cursor; returns how many data that is."""
        cursor = self._cursors[header.stream]
        if header.end_sequence <= cursor:
            self.duplicates += header.count
            return 0
        skip = cursor - header.first_sequence
        if skip:
            self.duplicates += skip
            header.first_sequence = cursor
            header.count -= skip
            body = body[skip * header.record_size :]
        if header.stream == VITALS and body.endswith(b"}"):
            body = body[:-1] + b', "spool_bytes": %d}' % self._spool.size  # the bridge's own part of them
        self._pending.setdefault(header.stream, []).append((header, body))
        self._pending_bytes += len(body) + 100
        self._cursors[header.stream] = header.end_sequence
        self.taken += header.count
        return header.count

    def _gap(self, stream: int, end: int, reason: str) -> None:
        first = self._cursors[stream]
        header = Header(KIND_GAP, stream, 0, end - first, first, self._unit_id, self.run_id, NO_BOOT, 0, 0, 0, "")
        self._pending.setdefault(stream, []).append((header, b'{"reason":"' + reason.encode() + b'"}'))
        self._cursors[stream] = end
        self._behind.pop(stream, None)
        self.gaps += end - first
        self._log("warning", f"{end - first} data of {STREAMS[stream]} are lost: {reason}", f"gap {stream}")

    def status(self, sequences: dict[str, object]) -> None:
        """The worker's heartbeat says how far each stream is: a hole at the end of a stream shows only here.

        Judged by the heartbeat before this one, so that what is on its way is no hole.
        """
        for stream, end in self._known_ends.items():
            if end > self._cursors.get(stream, end) and stream not in self._behind:
                self.holes += 1
                self._behind[stream] = 0
        for name, value in sequences.items():
            stream = STREAM_IDS.get(name, 0)
            if stream in self._cursors and isinstance(value, int) and not isinstance(value, bool):
                self._known_ends[stream] = value

    # Catching up

    def step(self, now: float) -> None:
        """Ask for what is missing, one request at a time."""
        if self._asked or not self._behind or now < self._ask_at:
            return
        stream = next(iter(self._behind))
        cursor = self._cursors[stream]
        run_id = self.run_id

        def replied(answer: dict[str, object], frames: list[bytes]) -> None:
            if run_id == self.run_id:
                self._asked = False
                self._resent(stream, cursor, answer, frames, now)

        body: dict[str, object] = {"command": "resend", "stream": STREAMS[stream], "from_sequence": cursor}
        self._asked = self._link.ask({**body, "limit": RESEND_BYTES}, replied, now)
        if not self._asked:
            self._ask_at = now + RETRY_S

    def _resent(self, stream: int, asked_from: int, answer: dict[str, object], frames: list[bytes], now: float) -> None:
        result = answer.get("result")
        if not answer.get("ok") or not isinstance(result, dict):
            failures = self._behind.pop(stream, 0) + 1
            self._behind[stream] = failures  # last in line
            self._ask_at = now + RETRY_S
            if failures == GIVE_UP_AFTER:
                self._log("warning", f"worker does not resend {STREAMS[stream]}: {answer.get('error')}", "resend")
            return
        for packed, body in zip(frames[::2], frames[1::2], strict=False):
            try:
                header, _ = Header.unpack(packed)
            except ValueError:
                continue
            if header.run_id != self.run_id or header.stream != stream:
                continue
            if header.first_sequence > self._cursors[stream]:
                self._gap(stream, header.first_sequence, "not in the worker's history")
            self.refilled += self._accept(header, body)
        end = _integer(result.get("available_end", result.get("end")))
        if not frames and end > self._cursors[stream]:
            self._gap(stream, end, "not in the worker's history")
        if self._cursors[stream] >= end or self._cursors[stream] == asked_from:
            self._behind.pop(stream, None)
        else:
            self._behind[stream] = 0
        if self._pending_bytes > PENDING_BYTES:
            self.flush(now)

    # Writing

    def flush(self, now: float) -> bool:
        """Write what is pending to the spool, as few frames as possible; False when the disk is full."""
        payloads: list[bytes] = []
        raw_due = now >= self._raw_due
        for stream, batches in self._pending.items():
            if stream in (RAW, EDGES):
                items = sum(header.count for header, _ in batches)
                if not raw_due and items < RAW_CHUNK_ITEMS and self._pending_bytes < PENDING_BYTES:
                    continue
            payloads += merge(batches)
            batches.clear()
        if raw_due:
            self._raw_due = now + RAW_CHUNK_S
        self._pending_bytes = sum(len(body) + 100 for batches in self._pending.values() for _, body in batches)
        try:
            self._spool.append(payloads)
            if payloads and self.full:
                self.full = False
                self._log("notice", "spool: there is room again")
        except SpoolFull as error:
            self._refused(error, now)
            return False
        return True

    def _refused(self, error: SpoolFull, now: float) -> None:
        """The disk is full: forget what is pending; the worker remembers it until there is room, or a gap says so."""
        self.full = True
        self._pending.clear()
        self._pending_bytes = 0
        self._log("error", f"{error}; readings stay in the worker's memory until there is room", "full")
        for stream in self._streams:
            self._cursors[stream] = self._spool.next_sequence((self.run_id, stream))
            self._behind.setdefault(stream, 0)
        self._ask_at = now + FULL_RETRY_S


def merge(batches: list[tuple[Header, bytes]]) -> list[bytes]:
    """Payloads of contiguous batches, as few as may be: readings are joined, trace items become one raw chunk.

    All batches are of one stream, in order; a change of kind, experiment or boot begins another payload.
    """
    payloads: list[bytes] = []
    place = 0
    while place < len(batches):
        head, body = batches[place]
        bodies = [body]
        end = head.end_sequence
        place += 1
        room = FRAME_BYTES.get(head.kind, 0) - len(body)
        if room > 0:
            while place < len(batches):
                following, body = batches[place]
                if (
                    following.kind != head.kind
                    or following.first_sequence != end
                    or following.experiment != head.experiment
                    or following.boot_id != head.boot_id
                    or following.run_id != head.run_id
                    or len(body) > room
                ):
                    break
                room -= len(body)
                bodies.append(body)
                end = following.end_sequence
                head.raw_ns, head.monotonic_ns = following.raw_ns, following.monotonic_ns
                head.realtime_ns = following.realtime_ns
                place += 1
        head.count = end - head.first_sequence
        joined = b"".join(bodies)
        if head.kind == KIND_TRACE:
            joined = raw_codec.encode(joined)
            head.kind, head.record_size = KIND_RAW_CHUNK, 0
        elif head.kind not in (KIND_READINGS, KIND_JSON, KIND_GAP):
            continue
        payloads.append(head.pack() + joined)
    return payloads


def _integer(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
