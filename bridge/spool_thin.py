"""What is left of old spooled data when there is no room: no raw conversions, and one reading in so many seconds.

Pure: frames in, payloads out. Within one (run, stream) the order stays that of the sequence numbers.
"""

from __future__ import annotations

import struct

from stirbar.bridge.spool_files import RAW_STREAMS, gap_payload
from stirbar.core.records import KIND_GAP, KIND_READINGS, READING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stirbar.bridge.spool_files import Frame, Key
    from stirbar.core.records import Header

LEVELS_S = (10, 60, 900)  # as the leader's roll-ups
_TIMES = struct.Struct(f"<8xq{READING.size - 16}x")  # monotonic_ns of each reading


class _Kept:
    """The newest reading of a stretch of time, so far."""

    __slots__ = ("bucket", "header", "record", "sequence")

    def __init__(self, bucket: object, header: Header, sequence: int, record: bytes) -> None:
        self.bucket = bucket
        self.header = header
        self.sequence = sequence
        self.record = record

    def payload(self) -> bytes:
        self.header.first_sequence, self.header.count = self.sequence, 1
        return self.header.pack() + self.record


def thinned(
    frames: Iterable[Frame], level: int, acknowledged: dict[Key, int], unit_id: bytes, given_up: list[int]
) -> Iterator[bytes]:
    """The payloads that remain of frames; `given_up[0]` counts what was not acknowledged and is left out.

    Of each stream the newest reading of every LEVELS_S[level - 1] seconds stays, and so the last of all: what is left
    out shows as a hole before it. Raw conversions of one stream become one gap. Acknowledged data are not kept.
    """
    raw: dict[Key, list[int]] = {}
    kept: dict[Key, _Kept] = {}
    for frame in frames:
        start = acknowledged.get(frame.key, 0)
        if frame.end <= start:
            continue
        if frame.kind != KIND_GAP and frame.key[1] in RAW_STREAMS:
            span = raw.setdefault(frame.key, [max(frame.first, start), frame.end])
            span[1] = frame.end
            given_up[0] += frame.end - max(frame.first, start)
        elif level and frame.kind == KIND_READINGS and frame.header.record_size == READING.size:
            yield from _thin(frame, LEVELS_S[level - 1] * 1_000_000_000, start, kept, given_up)
        else:
            held = kept.pop(frame.key, None)
            if held is not None:
                yield held.payload()
            yield frame.payload
    for held in kept.values():
        yield held.payload()
    for key, (first, end) in raw.items():
        yield gap_payload(unit_id, key, first, end, "spool full")


def _thin(frame: Frame, width_ns: int, start: int, kept: dict[Key, _Kept], given_up: list[int]) -> Iterator[bytes]:
    """Readings of one frame: whenever a new stretch begins, the last one of the stretch before it is put out."""
    body = memoryview(frame.payload)[frame.body_at :]
    held = kept.get(frame.key)
    header = frame.header
    for sequence, (time_ns,) in enumerate(_TIMES.iter_unpack(body), frame.first):
        if sequence < start or (held is not None and sequence <= held.sequence):
            continue
        bucket = (time_ns // width_ns, header.experiment, header.boot_id)
        if held is not None:
            if held.bucket != bucket:
                yield held.payload()
            else:
                given_up[0] += 1
        at = (sequence - frame.first) * READING.size
        held = _Kept(bucket, header, sequence, bytes(body[at : at + READING.size]))
    if held is not None:
        kept[frame.key] = held
