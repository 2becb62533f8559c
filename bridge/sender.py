"""From the spool to the leader: where to go on, how much may be on the way, and what has arrived.

Everything stored is read back from the spool, in the order of writing. After each connect the unit asks from where; a
`from` of the leader leads the reader back, and what it has already sent of other streams is skipped. The leader's
`through` (after its commit) opens the window: no more than WINDOW_BYTES are ever on the way, because a broker drops
silently what a slow subscriber does not fetch.

With `acknowledge = broker` there is no dialogue: the broker's PUBACK counts.

Synchronization: one thread.
"""

from __future__ import annotations

import json
from collections import deque

from stirbar.bridge.leader_time import LeaderTime
from stirbar.bridge.leaders import parse_leaders
from stirbar.bridge.packing import pack_readings
from stirbar.bridge.spool_files import gap_payload
from stirbar.core.records import KIND_GAP, KIND_READINGS, STREAMS, parse_batch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.bridge.leaders import Leaders
    from stirbar.bridge.log import Log
    from stirbar.bridge.spool import Spool
    from stirbar.bridge.spool_files import Frame, Key, Position
    from stirbar.bridge.topics import UnitTopics
    from stirbar.core.records import Header

    Publish = Callable[[str, bytes, int], int]
    _Message = tuple[Key, int, int, Header, bytes]  # stream, end, data inside, header and body

WINDOW_BYTES = 512 << 10
MESSAGE_BYTES = 64 << 10  # contiguous frames are joined up to here when catching up
HEADER_BYTES = 98
ASK_FIRST_S = 2.0
ASK_MAXIMUM_S = 30.0
STALL_S = 10.0  # nothing committed for so long although something is on the way: ask again
SILENT_S = 30.0  # a leader that answers nothing for so long is looked for elsewhere
REWIND_QUIET_S = 3.0  # the same hole, reported again while the answer to it is on the way


class _InFlight:
    """A message that is on the way. Synchronization: one thread."""

    __slots__ = ("end", "key", "mid", "size")

    def __init__(self, key: Key, end: int, size: int, mid: int) -> None:
        self.key = key
        self.end = end
        self.size = size
        self.mid = mid


class Sender:
    """`publish(topic, payload, qos)` returns a message number, 0 when offline.

    Counters: `sent` messages, `sent_data`, `rewinds`, `asks`, `gaps` announced (data), `stale_epochs`, `malformed`.
    """

    def __init__(
        self,
        spool: Spool,
        topics: UnitTopics,
        unit: str,
        end_to_end: bool,
        publish: Publish,
        log: Log,
        leaders: Leaders | None = None,
    ) -> None:
        self.answered = False
        self.leader_time = LeaderTime()
        self.sent = self.sent_data = self.rewinds = self.asks = self.gaps = self.stale_epochs = self.malformed = 0
        self._spool = spool
        self._topics = topics
        self._unit = unit
        self._end_to_end = end_to_end
        self._publish = publish
        self._log = log
        self._leaders = leaders
        self._online = False
        self._stale = False  # an older leader has spoken in this connection
        self._unanswered_since = 0.0
        self._next: dict[Key, int] = {}  # per stream: what comes next on this connection
        self._position: Position = (0, 0, 0)
        self._on_way: deque[_InFlight] = deque()
        self._on_way_bytes = 0
        self._acked_mids: set[int] = set()
        self._progress_at = 0.0
        self._ask_at = 0.0
        self._ask_delay_s = ASK_FIRST_S
        self._rewound: dict[Key, tuple[int, float]] = {}

    def online(self, now: float) -> None:
        """A new connection: nothing is known to be on the way, the leader is asked from where."""
        self._online = True
        self._stale = False
        self._unanswered_since = now
        self.leader_time.forget()
        self._forget_on_way()
        self._next = {}
        self._rewound = {}
        self.answered = not self._end_to_end
        self._ask_delay_s = ASK_FIRST_S
        self._ask_at = now
        self._progress_at = now
        self._seek()

    def offline(self) -> None:
        self._online = False
        self._forget_on_way()

    def _forget_on_way(self) -> None:
        self._on_way.clear()
        self._on_way_bytes = 0
        self._acked_mids.clear()

    def _start_of(self, key: Key) -> int:
        return self._next.get(key, self._spool.acknowledged.get(key, 0))

    def _seek(self) -> None:
        """Put the reader where the oldest thing not yet sent is."""
        places = [self._spool.find(key, self._start_of(key)) for key in self._spool.ends]
        self._position = min(places, default=self._spool.tail)

    # Asking

    @property
    def due(self) -> float:
        """When `step` is wanted although nothing happened."""
        return self._ask_at if self._online and not self.answered else self._progress_at + STALL_S

    def _ask(self, now: float) -> None:
        """About all that the spool has: a leader that is new may lack what another one had acknowledged."""
        runs: dict[str, list[int]] = {}
        for run, stream in self._spool.ends:
            runs.setdefault(run.hex(), []).append(stream)
        question = {"unit": self._unit, "runs": runs, "epoch": self._spool.epoch}
        self._publish(self._topics.ask, json.dumps(question, separators=(",", ":")).encode(), 1)
        self.asks += 1
        self._ask_at = now + self._ask_delay_s
        self._ask_delay_s = min(2 * self._ask_delay_s, ASK_MAXIMUM_S)

    def on_ack(self, payload: bytes, now: float) -> None:
        """A message on the `ack` topic."""
        try:
            document = json.loads(payload)
            epoch = document.get("epoch", 0)
            through = _positions(document.get("through"))
            origin = _positions(document["from"]) if document.get("from") is not None else None
            if isinstance(epoch, bool) or not isinstance(epoch, int):
                raise ValueError("epoch is no whole number")
            sent_s = document.get("t")
            if isinstance(sent_s, bool) or not isinstance(sent_s, int | float | None):
                raise ValueError("t is no Unix time in seconds")
            leaders = document.get("leaders")
            if leaders is not None:
                parse_leaders(leaders)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            self.malformed += 1
            self._log("warning", f"message on {self._topics.ack} not understood, dropped: {error}", "ack")
            return
        if not self._spool.follow_epoch(epoch):
            self.stale_epochs += 1
            self._stale = True
            self._log("warning", f"acknowledgement of an older leader (epoch {epoch}) refused", "epoch")
            return
        if sent_s is not None:
            self.leader_time.note(sent_s, now)
        if self._leaders is not None and leaders is not None:
            self._leaders.learn(leaders)
        if not self._end_to_end:
            return
        for key, sequence in through.items():
            if sequence > self._spool.acknowledged.get(key, 0):
                self._spool.acknowledge(key, sequence)
                self._progress_at = now
        self._clear_committed()
        if origin is not None:
            self._go_on_from(origin, now)

    def _clear_committed(self) -> None:
        known = self._spool.acknowledged
        if any(message.end <= known.get(message.key, 0) for message in self._on_way):
            self._on_way = deque(message for message in self._on_way if message.end > known.get(message.key, 0))
            self._on_way_bytes = sum(message.size for message in self._on_way)

    def _go_on_from(self, origin: dict[Key, int], now: float) -> None:
        first_answer = not self.answered
        self.answered = True
        moved = first_answer
        for key, sequence in origin.items():
            if not first_answer:
                before, at = self._rewound.get(key, (-1, 0.0))
                if sequence == self._start_of(key) or (before == sequence and now - at < REWIND_QUIET_S):
                    continue
                self.rewinds += 1
                self._rewound[key] = (sequence, now)
            moved = True
            self._next[key] = sequence
            self._spool.acknowledge(key, sequence)
            self._on_way = deque(message for message in self._on_way if message.key != key)
        self._on_way_bytes = sum(message.size for message in self._on_way)
        self._progress_at = now
        if moved:
            self._seek()

    def on_puback(self, mid: int) -> None:
        """The broker has a message; with `acknowledge = broker` that is enough, in the order of sending."""
        if self._end_to_end:
            return
        self._acked_mids.add(mid)
        while self._on_way and self._on_way[0].mid in self._acked_mids:
            message = self._on_way.popleft()
            self._acked_mids.discard(message.mid)
            self._on_way_bytes -= message.size
            self._spool.acknowledge(message.key, max(message.end, self._spool.acknowledged.get(message.key, 0)))
        if not self._on_way:
            self._acked_mids.clear()

    def misled(self, now: float) -> str:
        """Why the leader is not here, where we are connected; nothing while it may be."""
        if not self._online or self.answered:
            return ""
        if self._stale:
            return "an older leader answers here"
        if now - self._unanswered_since > SILENT_S:
            return f"no leader has answered here for {SILENT_S:g} s"
        return ""

    # Sending

    def step(self, now: float) -> None:
        """Send what the window allows; ask, when the leader is silent."""
        if not self._online:
            return
        if self.answered and self._end_to_end and self._on_way and now - self._progress_at > STALL_S:
            self._log("warning", "the leader acknowledges nothing; asking it from where to go on", "stall")
            self.answered = False
            self._unanswered_since = now
            self._ask_delay_s = ASK_FIRST_S
            self._ask_at = now
            self._forget_on_way()
        if not self.answered:
            if now >= self._ask_at:
                self._ask(now)
            return
        while self._on_way_bytes < WINDOW_BYTES:
            frames, position = self._spool.read(self._position)
            if not frames:
                self._position = position
                return
            if not self._on_way:
                self._progress_at = now
            for key, end, count, header, body in self._prepare(frames):
                payload = pack_readings(header, body) if self._end_to_end else header.pack() + body
                mid = self._publish(self._topics.store[key[1]], payload, 1)
                if not mid:
                    return
                self.sent += 1
                self.sent_data += count
                size = len(header.experiment) + len(body) + HEADER_BYTES  # unpacked: that is what the leader must hold
                self._on_way.append(_InFlight(key, end, size, mid))
                self._on_way_bytes += size
                self._next[key] = end
            self._position = position

    def _prepare(self, frames: list[Frame]) -> list[_Message]:
        """Messages from frames. What was sent is skipped."""
        messages: list[_Message] = []
        starts: dict[Key, int] = {}
        runs: dict[Key, list[Frame]] = {}
        for frame in frames:
            key = frame.key
            start = starts.get(key, self._start_of(key))
            if frame.end <= start or key[1] not in STREAMS:
                continue
            held = runs.get(key)
            if held and not _joins(held, frame):
                messages.append(_join(held))
                held = None
            if frame.first > start:
                if held:
                    messages.append(_join(held))
                    held = None
                self.gaps += frame.first - start
                reason = self._spool.why_missing(key, start, frame.first)
                header, body = parse_batch(gap_payload(self._spool.unit_id, key, start, frame.first, reason))
                messages.append((key, frame.first, 0, header, body))
            elif frame.first < start:
                frame = _trim(frame, start)
            runs[key] = [*held, frame] if held else [frame]
            starts[key] = frame.end
        return messages + [_join(held) for held in runs.values()]


def _joins(held: list[Frame], frame: Frame) -> bool:
    last = held[-1].header
    return (
        frame.kind == KIND_READINGS == last.kind
        and held[-1].end == frame.first
        and last.experiment == frame.header.experiment
        and last.boot_id == frame.header.boot_id
        and sum(len(one.payload) for one in held) + len(frame.payload) <= MESSAGE_BYTES
    )


def _join(held: list[Frame]) -> _Message:
    first, last = held[0], held[-1]
    count = 0 if first.kind == KIND_GAP else last.end - first.first
    header = last.header
    header.first_sequence = first.first
    header.count = last.end - first.first
    return first.key, last.end, count, header, b"".join([frame.payload[frame.body_at :] for frame in held])


def _trim(frame: Frame, start: int) -> Frame:
    """The frame without what lies before `start`; raw chunks stay whole (the leader stores by key)."""
    header = frame.header
    if frame.kind not in (KIND_READINGS, KIND_GAP):
        return frame
    body = frame.payload[frame.body_at + (start - frame.first) * header.record_size :]
    header.count = frame.end - start
    header.first_sequence = start
    packed = header.pack()
    return type(frame)(header, len(packed), packed + body)


def _positions(document: object) -> dict[Key, int]:
    """`{run_id: {stream: sequence}}` as {(run id, stream): sequence}; ValueError for anything else."""
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ValueError("runs are no JSON object")
    found: dict[Key, int] = {}
    for run, streams in document.items():
        run_id = bytes.fromhex(run)
        if len(run_id) != 16 or not isinstance(streams, dict):
            raise ValueError(f"run {run[:40]!r} is not understood")
        for stream, sequence in streams.items():
            if isinstance(sequence, bool) or not isinstance(sequence, int) or sequence < 0:
                raise ValueError(f"sequence {sequence!r} of stream {stream!r} is not understood")
            found[(run_id, int(stream))] = sequence
    return found
