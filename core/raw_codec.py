"""Trace items as compact columns: what a raw chunk (header kind 5) and a recording hold. Lossless, order-preserving.

A run of 16-byte trace items (`records.TRACE`) is taken apart into columns that are each easy to predict:

- the four small fields (kind, channel, phase, flags) as one byte into a table of the combinations that occur;
- the index as the error of a straight line through the last two of the same kind and channel;
- the value by kind: a conversion's code as the error of a prediction from earlier codes of the same channel, light
  phase and phase before; times as the error of a straight line; floating-point values as XOR with the one before.

Errors are zig-zag coded (small magnitude, small number) and written as byte planes, lowest first. The lowest plane of
the codes is noise: matching strings in it is wasted time and costs bits, so it is only Huffman coded; the rest goes
through plain deflate.

Layout, little-endian: CRC-32 of all that follows (u32), count of items (u32), length of the first stream (u32), the
first zlib stream (columns), the second (lowest plane of the codes). All prediction is in integers modulo 2^64: the same
bytes on every machine, and any bit pattern survives.

Synchronization: pure functions, safe from any thread. Standard library only (the bridge loads this).
"""

from __future__ import annotations

import struct
import zlib

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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

MAXIMUM_ITEMS = 1 << 20  # of one chunk: 20 minutes at full rate; bounds what a hostile chunk can make us allocate

_PREFIX = struct.Struct("<III")
_COLUMNS = struct.Struct("<BHI")  # predictor, combinations, conversions
_SMALL = struct.Struct("<BBBB")
_MASK = (1 << 64) - 1
_INDEX_MASK = (1 << 32) - 1
_TIMES = (TRACE_CLOCK, TRACE_EDGE, TRACE_TICK)
_FLOATS = (TRACE_PERIOD, TRACE_GAIN, TRACE_COMMAND)
_JUMP = 512  # LSB: beyond it a code is no noise around the mean
_PREDICTOR_SHIFTS = (0, 2, 4)  # 0: the code before; else a running mean over about 2^shift codes


def encode(items: bytes | bytearray | memoryview) -> bytes:
    """Compress packed trace items. Raises ValueError when the length is no multiple of 16 or beyond MAXIMUM_ITEMS."""
    if len(items) % TRACE.size:
        raise ValueError(f"trace of {len(items)} bytes is no multiple of {TRACE.size}")
    count = len(items) // TRACE.size
    if count > MAXIMUM_ITEMS:
        raise ValueError(f"trace of {count} items in one chunk, at most {MAXIMUM_ITEMS}: split it")
    table: dict[tuple[int, int, int, int], int] = {}
    combinations = bytearray()
    wide_combinations: list[int] = []
    indices: list[int] = []
    others: list[int] = []
    codes: list[tuple[int, int]] = []
    phases: dict[int, int] = {}
    index_line: dict[tuple[int, int], tuple[int, int]] = {}
    value_line: dict[tuple[int, int], tuple[int, int]] = {}
    for kind, channel, phase, flags, index, value in TRACE.iter_unpack(items):
        number = table.setdefault((kind, channel, phase, flags), len(table))
        wide_combinations.append(number)
        key = (kind, channel)
        before, step = index_line.get(key, (0, 0))
        indices.append(_zigzag(index - before - step, 32))
        index_line[key] = (index, index - before)
        if kind == TRACE_CONVERSION:
            codes.append((_context(channel, phase, phases), value))
        else:
            others.append(_other_error(kind, key, value & _MASK, value_line))
    shift = min(_PREDICTOR_SHIFTS, key=lambda candidate: _cost(codes[:2048], candidate))
    errors = list(_code_errors(codes, shift))
    width = 1 if len(table) <= 256 else 4
    if width == 1:
        combinations += bytes(wide_combinations)
    else:
        combinations += struct.pack(f"<{count}I", *wide_combinations)
    columns = bytearray(_COLUMNS.pack(shift, min(len(table), 0xFFFF), len(codes)))
    if len(table) > 0xFFFF:
        raise ValueError(f"trace with {len(table)} different kinds of items: this is no trace")
    for small in table:
        columns += _SMALL.pack(*small)
    columns += combinations
    columns += _planes(indices, 0)
    columns += _planes(others, 0)
    columns += _planes(errors, 1)
    first = zlib.compress(bytes(columns), 6)
    noise = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_HUFFMAN_ONLY)
    second = noise.compress(bytes([error & 0xFF for error in errors])) + noise.flush()
    body = _PREFIX.pack(0, count, len(first))[4:] + first + second
    return zlib.crc32(body).to_bytes(4, "little") + body


def decode(chunk: bytes) -> bytes:
    """The packed trace items of a chunk, exactly as they were. Raises ValueError, saying what is wrong."""
    if len(chunk) < _PREFIX.size:
        raise ValueError(f"raw chunk of {len(chunk)} bytes, expected at least {_PREFIX.size}")
    crc, count, length = _PREFIX.unpack_from(chunk)
    if zlib.crc32(memoryview(chunk)[4:]) != crc:
        raise ValueError("raw chunk is damaged: its CRC-32 does not agree")
    if count > MAXIMUM_ITEMS or length > len(chunk) - _PREFIX.size:
        raise ValueError(f"raw chunk announces {count} items and a column stream of {length} bytes: out of bounds")
    reader = _Reader(_inflate(chunk[_PREFIX.size : _PREFIX.size + length], count * 32 + 0x100000))
    shift, combinations, conversions = _COLUMNS.unpack(reader.take(_COLUMNS.size))
    if conversions > count or shift not in _PREDICTOR_SHIFTS:
        raise ValueError(f"raw chunk of {count} items announces {conversions} conversions, predictor {shift}")
    table = [_SMALL.unpack(reader.take(_SMALL.size)) for _ in range(combinations)]
    numbers: Iterable[int]
    numbers = reader.take(count) if combinations <= 256 else struct.unpack(f"<{count}I", reader.take(4 * count))
    indices = reader.planes(count, None)
    others = reader.planes(count - conversions, None)
    noise = _inflate(chunk[_PREFIX.size + length :], conversions)
    if len(noise) != conversions:
        raise ValueError(f"raw chunk of {conversions} conversions holds {len(noise)}")
    errors = reader.planes(conversions, noise)
    try:
        return _assemble(shift, table, numbers, indices, others, errors)
    except IndexError:
        raise ValueError("raw chunk names a combination of fields that its table lacks") from None


def _assemble(
    shift: int,
    table: list[tuple[int, ...]],
    numbers: Iterable[int],
    indices: list[int],
    others: list[int],
    errors: list[int],
) -> bytes:
    """Undo the predictions, item by item."""
    out = bytearray()
    pack = TRACE.pack
    index_line: dict[tuple[int, int], tuple[int, int]] = {}
    value_line: dict[tuple[int, int], tuple[int, int]] = {}
    means: dict[int, int] = {}
    phases: dict[int, int] = {}
    next_other = iter(others)
    next_error = iter(errors)
    for number, coded in zip(numbers, indices, strict=True):
        kind, channel, phase, flags = table[number]
        key = (kind, channel)
        before, step = index_line.get(key, (0, 0))
        index = (before + step + _unzigzag(coded)) & _INDEX_MASK
        index_line[key] = (index, index - before)
        if kind == TRACE_CONVERSION:
            error = next(next_error, None)
            if error is None:
                raise IndexError
            context = _context(channel, phase, phases)
            mean = means.get(context, 0)
            value = _signed((mean >> shift) + _unzigzag(error))
            means[context] = _follow(mean, value, shift, context in means)
        else:
            other = next(next_other, None)
            if other is None:
                raise IndexError
            value = _other_value(kind, key, other, value_line)
        out += pack(kind, channel, phase, flags, index, value)
    return bytes(out)


def _context(channel: int, phase: int, phases: dict[int, int]) -> int:
    """Which earlier codes resemble this one: same channel, same light, same light before (edges rise or fall).

    `phases` holds the last phase of each channel and is brought up to date.
    """
    before = phases.get(channel, 0)
    phases[channel] = phase
    return channel << 16 | before << 8 | phase


def _follow(mean: int, value: int, shift: int, started: bool) -> int:
    """The scaled running mean behind the prediction `mean >> shift`; the first code and every jump start it afresh."""
    error = value - (mean >> shift)
    return mean + error if started and -_JUMP < error < _JUMP else value << shift


def _code_errors(codes: list[tuple[int, int]], shift: int) -> Iterable[int]:
    means: dict[int, int] = {}
    for key, value in codes:
        mean = means.get(key, 0)
        yield _zigzag(value - (mean >> shift), 64)
        means[key] = _follow(mean, value, shift, key in means)


def _cost(codes: list[tuple[int, int]], shift: int) -> int:
    """About how many bits the errors take."""
    return sum(error.bit_length() for error in _code_errors(codes, shift))


def _other_error(kind: int, key: tuple[int, int], bits: int, line: dict[tuple[int, int], tuple[int, int]]) -> int:
    """Coded error of a value that is no conversion; `bits` is its pattern of 64."""
    before, step = line.get(key, (0, 0))
    line[key] = (bits, bits - before)
    if kind in _TIMES:
        return _zigzag(bits - before - step, 64)
    return bits ^ before


def _other_value(kind: int, key: tuple[int, int], coded: int, line: dict[tuple[int, int], tuple[int, int]]) -> int:
    before, step = line.get(key, (0, 0))
    bits = (before + step + _unzigzag(coded)) & _MASK if kind in _TIMES else coded ^ before
    line[key] = (bits, bits - before)
    return _signed(bits)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _zigzag(error: int, bits: int) -> int:
    """Fold a difference modulo 2^bits: 0, -1, 1, -2, … become 0, 1, 2, 3, …"""
    half = 1 << (bits - 1)
    error = ((error + half) & ((half << 1) - 1)) - half
    return error << 1 if error >= 0 else (-error << 1) - 1


def _unzigzag(coded: int) -> int:
    return -((coded + 1) >> 1) if coded & 1 else coded >> 1


def _planes(values: list[int], skip: int) -> bytes:
    """Byte planes from number `skip` up, as many as the largest value needs, behind one byte: how many in all."""
    planes = max(skip, (max(values, default=0).bit_length() + 7) // 8)
    out = bytearray((planes,))
    for plane in range(skip, planes):
        place = 8 * plane
        out += bytes([value >> place & 0xFF for value in values])
    return bytes(out)


def _inflate(data: bytes, maximum: int) -> bytes:
    """Decompress one whole zlib stream of at most `maximum` bytes."""
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, maximum + 1)
    except zlib.error as error:
        raise ValueError(f"raw chunk does not decompress: {error}") from None
    if len(out) > maximum or not stream.eof or stream.unused_data:
        raise ValueError(f"raw chunk's stream is not one whole stream of at most {maximum} bytes")
    return out


class _Reader:
    """Takes the columns off the decompressed stream. Synchronization: one thread."""

    __slots__ = ("data", "position")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, size: int) -> bytes:
        out = self.data[self.position : self.position + size]
        if len(out) != size:
            raise ValueError(f"raw chunk's columns end after {len(self.data)} bytes, {size} more expected")
        self.position += size
        return out

    def planes(self, count: int, lowest: bytes | None) -> list[int]:
        """Put the planes of one column together; `lowest` is plane 0 where that is kept elsewhere."""
        planes = self.take(1)[0]
        if planes > 8:
            raise ValueError(f"raw chunk announces {planes} byte planes, at most 8")
        values = list(lowest) if lowest is not None else [0] * count
        for plane in range(0 if lowest is None else 1, planes):
            place = 8 * plane
            values = [value | byte << place for value, byte in zip(values, self.take(count), strict=True)]
        return values
