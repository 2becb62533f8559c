"""The raw codec is lossless for any trace, detects damage, and is as small as the noise allows."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stirbar.core import raw_codec
from stirbar.core.records import (
    TRACE,
    TRACE_CLOCK,
    TRACE_COMMAND,
    TRACE_CONVERSION,
    TRACE_EDGE,
    TRACE_GAIN,
    TRACE_PERIOD,
    TRACE_TICK,
)


def bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])


def quiet_trace(conversions: int, sigma_lsb: float, half_cycle: int = 9, seed: int = 2) -> bytes:
    """A chopped photodiode on channel 1 and the reference on channel 0, in turn, a clock model every 86 conversions."""
    rng = random.Random(seed)
    out = bytearray(TRACE.pack(TRACE_GAIN, 0, 0, 0, 0, bits(31.25e-6)))
    out += TRACE.pack(TRACE_GAIN, 1, 0, 0, 0, bits(31.25e-6))
    period_ns = 1e9 / 861.3
    for number in range(conversions):
        if number % 86 == 0:
            out += TRACE.pack(TRACE_CLOCK, 0, 0, 0, number, int(1e12 + number * period_ns + rng.gauss(0, 4000)))
            out += TRACE.pack(TRACE_PERIOD, 0, 0, 0, 0, bits(period_ns * (1 + rng.gauss(0, 1e-7))))
        channel = number & 1
        on = (number // 2 // half_cycle) & 1
        phase = 2 if (number // 2) % half_cycle == 0 else on
        code = round((9000 if channel else 14000) * on + 350 + rng.gauss(0, sigma_lsb))
        out += TRACE.pack(TRACE_CONVERSION, channel, phase, 0, number, code)
    return bytes(out)


items = st.tuples(
    st.one_of(st.integers(1, 8), st.integers(0, 255)),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(0, 255),
    st.one_of(st.integers(0, 2**32 - 1), st.integers(0, 50)),
    st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-40000, 40000)),
)


@given(st.lists(items, max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_trace_comes_back_bit_by_bit(rows: list[tuple[int, ...]]) -> None:
    packed = b"".join(TRACE.pack(*row) for row in rows)
    assert raw_codec.decode(raw_codec.encode(packed)) == packed


def test_more_than_256_combinations_of_small_fields() -> None:
    packed = b"".join(TRACE.pack(TRACE_EDGE, n & 3, 0, n >> 2 & 255, n, n * n) for n in range(1200))
    assert raw_codec.decode(raw_codec.encode(packed)) == packed


@pytest.mark.parametrize("sigma", [8.0, 30.0])
def test_quiet_trace_takes_at_most_1_1_bytes_a_conversion(sigma: float) -> None:
    conversions = 860 * 8
    packed = quiet_trace(conversions, sigma)
    chunk = raw_codec.encode(packed)
    assert raw_codec.decode(chunk) == packed
    assert len(chunk) / conversions <= 1.1


def test_other_streams_are_small_too() -> None:
    rng = random.Random(5)
    rows = []
    for tick in range(1000):
        rows.append(TRACE.pack(TRACE_TICK, 0, 0, 0, 0, 10**13 + tick * 10_000_000 + rng.randrange(60_000)))
        if tick % 8 == 0:
            rows.append(TRACE.pack(TRACE_EDGE, 0, 0, 0, 0, 10**13 + tick * 10_000_000 + rng.randrange(9_000_000)))
        if tick % 100 == 0:
            rows.append(TRACE.pack(TRACE_COMMAND, 0, 0, 0, 7, bits(500.0)))
    packed = b"".join(rows)
    chunk = raw_codec.encode(packed)
    assert raw_codec.decode(chunk) == packed
    assert len(chunk) < len(packed) / 4


def test_damage_is_noticed_wherever_it_is() -> None:
    chunk = raw_codec.encode(quiet_trace(200, 20.0))
    for position in range(0, len(chunk), 7):
        damaged = bytearray(chunk)
        damaged[position] ^= 0x10
        with pytest.raises(ValueError):
            raw_codec.decode(bytes(damaged))
    for length in (0, 3, 11, len(chunk) // 2, len(chunk) - 1):
        with pytest.raises(ValueError):
            raw_codec.decode(chunk[:length])


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_chunk_with_a_good_checksum_does_worse_than_value_error(body: bytes) -> None:
    import zlib

    try:
        raw_codec.decode(zlib.crc32(body).to_bytes(4, "little") + body)
    except ValueError:
        pass


def test_bad_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        raw_codec.encode(b"x" * 17)
    with pytest.raises(ValueError, match="at most"):
        raw_codec.encode(bytes(16 * (raw_codec.MAXIMUM_ITEMS + 1)))
