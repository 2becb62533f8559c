"""The worker's memory of what it sent: the last megabytes of batches, for whoever missed some.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Entry = tuple[int, int, bytes, bytes]  # first sequence, end sequence, header, payload

# One bytes object a batch, because most batches are small: this prefix, header, payload.
_PREFIX = struct.Struct("<QQH")  # first sequence, end sequence, length of the header
# What one batch costs besides its bytes: prefix, bytes object, rounding and two list slots.
ENTRY_OVERHEAD_BYTES = 80


class _Stream:
    """The batches of one stream: entries[start:] are remembered; end is one past the last sequence number added."""

    __slots__ = ("end", "entries", "start")

    def __init__(self) -> None:
        self.start = 0
        self.end = 0
        self.entries: list[bytes | None] = []


class History:
    """Batches of all streams in order of their making, oldest dropped first.

    `limit_bytes` bounds header and payload bytes with the interpreter's overhead. Batches of a stream must be added in
    order of their sequence numbers.
    """

    __slots__ = ("_bytes", "_order", "_start", "_streams", "limit_bytes")

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._bytes = 0
        self._order: list[int] = []  # stream of each batch; the oldest is at _start
        self._start = 0
        self._streams: dict[int, _Stream] = {}

    def add(self, stream: int, first_sequence: int, count: int, header: bytes, payload: bytes) -> None:
        """Remember one batch, and forget the oldest ones beyond the limit."""
        batches = self._streams.setdefault(stream, _Stream())
        batches.end = first_sequence + count
        batches.entries.append(_PREFIX.pack(first_sequence, batches.end, len(header)) + header + payload)
        self._order.append(stream)
        self._bytes += len(header) + len(payload) + ENTRY_OVERHEAD_BYTES
        while self._bytes > self.limit_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        batches = self._streams[self._order[self._start]]
        self._start += 1
        if self._start > 1024 and self._start * 2 > len(self._order):
            del self._order[: self._start]
            self._start = 0
        entry = batches.entries[batches.start]
        assert entry is not None
        self._bytes -= len(entry) - _PREFIX.size + ENTRY_OVERHEAD_BYTES
        batches.entries[batches.start] = None
        batches.start += 1
        if batches.start > 256 and batches.start * 2 > len(batches.entries):
            del batches.entries[: batches.start]
            batches.start = 0

    def available(self, stream: int) -> tuple[int, int]:
        """First sequence number still here, and one past the last ever added; (0, 0) for a stream never seen."""
        batches = self._streams.get(stream)
        if batches is None:
            return 0, 0
        if batches.start == len(batches.entries):
            return batches.end, batches.end
        first = batches.entries[batches.start]
        assert first is not None
        return _PREFIX.unpack_from(first)[0], batches.end

    def since(self, stream: int, from_sequence: int) -> Iterator[Entry]:
        """Batches that hold `from_sequence` or later ones, in order: (first, end, header, payload)."""
        batches = self._streams.get(stream)
        if batches is None:
            return
        low, high = batches.start, len(batches.entries)
        while low < high:
            middle = (low + high) // 2
            entry = batches.entries[middle]
            assert entry is not None
            if _PREFIX.unpack_from(entry)[1] <= from_sequence:
                low = middle + 1
            else:
                high = middle
        for entry in batches.entries[low:]:
            assert entry is not None
            first, end, length = _PREFIX.unpack_from(entry)
            body = _PREFIX.size + length
            yield first, end, entry[_PREFIX.size : body], entry[body:]
