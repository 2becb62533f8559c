"""Packed readings: what comes out is what went in, and what is damaged is refused."""

from __future__ import annotations

import random
import zlib

import pytest
import units
from stirbar.bridge.packing import COUNT_MAXIMUM, WORTH_BYTES, pack_readings, unpack_readings
from stirbar.core.records import KIND_PACKED_READINGS, KIND_READINGS, READING, parse_batch

ENOUGH = WORTH_BYTES // READING.size + 1


def test_many_are_packed_and_come_out_as_they_went_in() -> None:
    header, body = units.block(5, 700)
    payload = pack_readings(header, body)
    assert header.kind == KIND_READINGS
    assert len(payload) < len(body) / 2
    packed, rest = parse_batch(payload)
    assert packed.kind == KIND_PACKED_READINGS
    assert unpack_readings(packed, rest) == body
    assert packed.pack() == header.pack()


@pytest.mark.parametrize("count", [ENOUGH, 700, 5000])
def test_any_bytes_survive(count: int) -> None:
    header, _ = units.block(0, count)
    body = random.Random(count).randbytes(count * READING.size)
    packed, rest = parse_batch(pack_readings(header, body))
    assert unpack_readings(packed, rest) == body


def test_few_are_sent_as_they_are() -> None:
    header, body = units.block(0, ENOUGH - 1)
    assert pack_readings(header, body) == header.pack() + body
    head, event = units.event(0)
    assert pack_readings(head, event * 1000) == head.pack() + event * 1000


def test_what_is_damaged_is_refused() -> None:
    header, body = units.block(0, 700)
    packed, rest = parse_batch(pack_readings(header, body))
    for wrong in (rest[:-1], rest[:50], b"", b"x" + rest, zlib.compress(bytes(700 * READING.size + 1))):
        with pytest.raises(ValueError, match="packed readings"):
            unpack_readings(packed, wrong)
    for count in (0, 699, 701, COUNT_MAXIMUM + 1):
        packed.count = count
        with pytest.raises(ValueError, match="packed readings"):
            unpack_readings(packed, rest)
