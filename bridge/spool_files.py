"""The spool's files: frames of one MQTT payload each, and what is remembered of a segment of them."""

from __future__ import annotations

import json
import struct
import zlib

from stirbar.core.records import KIND_GAP, STREAM_IDS, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    Key = tuple[bytes, int]  # run id, stream
    Position = tuple[int, int, int]  # segment number, how often it was rewritten, offset

MAGIC = b"SPL1"
MAXIMUM_FRAME = 4 << 20  # bytes; a longer length field is damage
FRAME = struct.Struct("<4sII")
RAW_STREAMS = (STREAM_IDS["raw"], STREAM_IDS["edges"])
NO_BOOT = bytes(16)


def framed(payload: bytes) -> bytes:
    """A payload as it stands in a segment."""
    return FRAME.pack(MAGIC, len(payload), zlib.crc32(payload)) + payload


class Frame:
    """One stored payload with its header parsed; `body_at` is where the body begins.

    Synchronization: immutable by convention.
    """

    __slots__ = ("body_at", "end", "first", "header", "key", "kind", "payload")

    def __init__(self, header: Header, body_at: int, payload: bytes) -> None:
        self.header = header
        self.body_at = body_at
        self.payload = payload
        self.key: Key = (header.run_id, header.stream)
        self.kind = header.kind
        self.first = header.first_sequence
        self.end = header.end_sequence


class Segment:
    """`ranges`: per (run, stream) the intervals of sequence numbers inside, in order of writing: [first, end, gap].

    `gap` is 1 where the interval is only announced as lost, 0 where its data are here (where the segment was thinned or
    damaged, some of them). `level` says how far it was thinned, `rewrites` how often since the start.
    """

    __slots__ = ("level", "number", "ranges", "rewrites", "size")

    def __init__(self, number: int) -> None:
        self.number = number
        self.size = self.level = self.rewrites = 0
        self.ranges: dict[Key, list[list[int]]] = {}

    def note(self, header: Header) -> None:
        intervals = self.ranges.setdefault((header.run_id, header.stream), [])
        first, end, gap = header.first_sequence, header.end_sequence, int(header.kind == KIND_GAP)
        last = intervals[-1] if intervals else None
        if last is not None and last[2] == gap and last[0] <= first and (first <= last[1] or not gap):
            last[1] = max(end, last[1])
        else:
            intervals.append([first, end, gap])

    def begin_as(self, source: Segment) -> None:
        """Let intervals begin where those of a segment did of which this is what was left: the hole before the first
        datum is known then."""
        for key, intervals in source.ranges.items():
            first = min((begin for begin, _, gap in intervals if not gap), default=None)
            own = next((one for one in self.ranges.get(key, ()) if not one[2]), None)
            if first is not None and own is not None:
                own[0] = min(first, own[0])

    def reaches(self, key: Key, sequence: int) -> bool:
        return any(end > sequence for _, end, _ in self.ranges.get(key, ()))

    @property
    def has_raw(self) -> bool:
        return any(
            key[1] in RAW_STREAMS and not gap for key, intervals in self.ranges.items() for _, _, gap in intervals
        )

    def index(self) -> bytes:
        """What the `.idx` beside a closed segment says."""
        ranges: dict[str, dict[int, list[list[int]]]] = {}
        for (run, stream), intervals in self.ranges.items():
            ranges.setdefault(run.hex(), {})[stream] = intervals
        return json.dumps({"size": self.size, "level": self.level, "ranges": ranges}).encode()

    def take_index(self, text: bytes, size: int) -> bool:
        """Take over what an `.idx` says; False when it is not of a segment of this size, or not understood."""
        try:
            stored = json.loads(text)
            if stored["size"] != size:
                return False
            self.ranges = {
                (bytes.fromhex(run), int(stream)): [[int(first), int(end), int(gap)] for first, end, gap in intervals]
                for run, streams in stored["ranges"].items()
                for stream, intervals in streams.items()
            }
            self.level = int(stored.get("level", 0))
        except (ValueError, TypeError, KeyError, AttributeError):
            self.ranges, self.level = {}, 0
            return False
        self.size = size
        return True


def gap_payload(unit_id: bytes, key: Key, first: int, end: int, reason: str) -> bytes:
    """The payload that says: [first, end) of this run and stream does not exist any more, because of `reason`."""
    header = Header(KIND_GAP, key[1], 0, end - first, first, unit_id, key[0], NO_BOOT, 0, 0, 0, "")
    return header.pack() + json.dumps({"reason": reason}).encode()


def _parse(data: bytes, place: int) -> tuple[Frame | None, int]:
    """The frame at `place` and the offset behind it, or None and the offset up to which data would be needed.

    That offset is within the data when there is no frame here, whatever follows.
    """
    start = place + FRAME.size
    if start > len(data):
        return None, start
    magic, length, crc = FRAME.unpack_from(data, place)
    if magic != MAGIC or length > MAXIMUM_FRAME:
        return None, place
    if start + length > len(data):
        return None, start + length
    payload = data[start : start + length]
    if zlib.crc32(payload) != crc:
        return None, place
    try:
        header, body_at = Header.unpack(payload)
    except ValueError:
        return None, place
    return Frame(header, body_at, payload), start + length


def parse_all(data: bytes, at_end: bool) -> tuple[list[tuple[Frame, int]], int, int]:
    """All whole frames of `data`, how much of it was used, and how many bytes of that were damage.

    At the end of a segment everything is used; elsewhere a frame that reaches beyond the data waits for the next read.
    """
    frames: list[tuple[Frame, int]] = []
    place = skipped = 0
    while place < len(data):
        frame, end = _parse(data, place)
        if frame is not None:
            frames.append((frame, end))
            place = end
            continue
        if end > len(data) and not at_end:
            break
        start = data.find(MAGIC, place + 1)
        if start < 0:
            start = len(data) if at_end else max(place + 1, len(data) - len(MAGIC) + 1)
        skipped += start - place
        place = start
    return frames, place, skipped
