"""The records on the wire, once for all rooms: the layouts of `pyx/types.pxd`, as struct formats and NumPy dtypes.

Only the standard library is imported here; the dtypes are plain lists that `numpy.dtype()` accepts, so that the worker
and the bridge know the layout without loading NumPy.
"""

from __future__ import annotations

import struct

RECORD_VERSION = 1

STREAMS: dict[int, str] = {
    1: "od1",
    2: "od2",
    3: "od3",
    4: "od4",
    5: "od_fused",
    8: "rpm",
    9: "temperature",
    10: "liquid",
    11: "volume",
    12: "turns",
    13: "growth_rate",
    14: "od_filtered",
    16: "event",
    17: "status",
    18: "raw",
    19: "edges",
    20: "vitals",
}
STREAMS.update({32 + i: f"od{i % 4 + 1}_rate{i // 4 + 1}" for i in range(12)})
STREAMS.update({44 + channel: f"modulation{channel + 1}" for channel in range(4)})
STREAM_IDS: dict[str, int] = {name: number for number, name in STREAMS.items()}
READING_STREAMS: tuple[int, ...] = (1, 2, 3, 4, 5, *range(8, 15), *range(32, 48))
STREAM_UNITS: dict[int, str] = {1: "AU", 2: "AU", 3: "AU", 4: "AU", 5: "AU", 8: "rpm", 9: "°C", 10: "°C", 11: "mL"}
STREAM_UNITS |= {12: "µs", 13: "1/h", 14: ""}
STREAM_UNITS.update(dict.fromkeys(range(32, 44), "AU"))
STREAM_UNITS.update(dict.fromkeys(range(44, 48), "%"))

FLAGS: dict[str, int] = {
    name: 1 << bit
    for bit, name in enumerate(
        (
            "saturated",
            "dark",
            "bubbles",
            "dosing",
            "ambient_step",
            "warming",
            "stirring_off",
            "gap",
            "uncalibrated",
            "stale_reference",
            "unchopped",
            "stalled",
            "sensor_lost",
            "simulated",
            "blanked",
            "mains_unlocked",
            "below_curve",
            "above_curve",
            "unobserved",
        )
    )
}

READING_DTYPE: list[tuple[str, str]] = [
    ("sequence", "<u8"),
    ("monotonic_ns", "<i8"),
    ("wall_ns", "<i8"),
    ("value", "<f8"),
    ("se_instrument", "<f4"),
    ("se_culture", "<f4"),
    ("window_s", "<f4"),
    ("noise_bandwidth_hz", "<f4"),
    ("signal_v", "<f4"),
    ("reference_v", "<f4"),
    ("ambient_v", "<f4"),
    ("blank", "<f4"),
    ("used", "<u4"),
    ("rejected", "<u4"),
    ("flags", "<u4"),
    ("experiment", "<u4"),
    ("stream", "<u2"),
    ("angle", "<u2"),
    ("half_cycle", "<u2"),
    ("version", "<u2"),
]
READING = struct.Struct("<QqqdffffffffIIIIHHHH")
READING_FIELDS: tuple[str, ...] = tuple(name for name, _ in READING_DTYPE)

TRACE_DTYPE: list[tuple[str, str]] = [
    ("kind", "u1"),
    ("channel", "u1"),
    ("phase", "u1"),
    ("flags", "u1"),
    ("index", "<u4"),
    ("value", "<i8"),
]
TRACE = struct.Struct("<BBBBIq")

TRACE_CONVERSION, TRACE_CLOCK, TRACE_PERIOD, TRACE_GAIN = 1, 2, 3, 4
TRACE_EDGE, TRACE_COMMAND, TRACE_TICK, TRACE_SNAPSHOT, TRACE_CURVE = 5, 6, 7, 8, 9
TRACE_TURN, TRACE_TEMPERATURE, TRACE_DOSE = 10, 11, 12

KIND_READINGS, KIND_TRACE, KIND_SNAPSHOT, KIND_JSON, KIND_RAW_CHUNK, KIND_GAP = 1, 2, 3, 4, 5, 6
KIND_PACKED_READINGS = 7

_HEADER = struct.Struct("<4sHHHHIQ16s16s16sqqqH")
MAGIC = b"STB1"


class Header:
    """The header of a batch: whose records follow, of which stream, and when the clocks were compared.

    `unit_id`, `run_id` and `boot_id` are 16 raw bytes. The three clock fields were read together by the host thread
    when the batch was made: CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC and CLOCK_REALTIME, in nanoseconds.

    Synchronization: none required; instances are not shared between threads.
    """

    __slots__ = (
        "boot_id",
        "count",
        "experiment",
        "first_sequence",
        "kind",
        "monotonic_ns",
        "raw_ns",
        "realtime_ns",
        "record_size",
        "run_id",
        "stream",
        "unit_id",
    )

    def __init__(
        self,
        kind: int,
        stream: int,
        record_size: int,
        count: int,
        first_sequence: int,
        unit_id: bytes,
        run_id: bytes,
        boot_id: bytes,
        raw_ns: int,
        monotonic_ns: int,
        realtime_ns: int,
        experiment: str,
    ) -> None:
        self.kind = kind
        self.stream = stream
        self.record_size = record_size
        self.count = count
        self.first_sequence = first_sequence
        self.unit_id = unit_id
        self.run_id = run_id
        self.boot_id = boot_id
        self.raw_ns = raw_ns
        self.monotonic_ns = monotonic_ns
        self.realtime_ns = realtime_ns
        self.experiment = experiment

    @property
    def end_sequence(self) -> int:
        """One past the last sequence number in the batch."""
        return self.first_sequence + self.count

    def pack(self) -> bytes:
        name = self.experiment.encode()
        return (
            _HEADER.pack(
                MAGIC,
                RECORD_VERSION,
                self.kind,
                self.stream,
                self.record_size,
                self.count,
                self.first_sequence,
                self.unit_id,
                self.run_id,
                self.boot_id,
                self.raw_ns,
                self.monotonic_ns,
                self.realtime_ns,
                len(name),
            )
            + name
        )

    @classmethod
    def unpack(cls, data: bytes | memoryview, offset: int = 0) -> tuple[Header, int]:
        """Parse a header at `offset`; return it and the offset behind it.

        Raises ValueError, with what is wrong, for anything that is not a header of this version.
        """
        data = bytes(data[offset : offset + _HEADER.size + 65535])
        if len(data) < _HEADER.size:
            raise ValueError(f"batch header of {len(data)} bytes, expected at least {_HEADER.size}")
        (magic, version, kind, stream, size, count, first, unit, run, boot, raw, mono, real, length) = (
            _HEADER.unpack_from(data)
        )
        if magic != MAGIC:
            raise ValueError(f"batch header starts with {magic!r}, expected {MAGIC!r}")
        if version != RECORD_VERSION:
            raise ValueError(f"batch of record version {version}, this stirbar reads version {RECORD_VERSION}")
        if len(data) < _HEADER.size + length:
            raise ValueError(f"batch header cut short: experiment name of {length} bytes announced")
        try:
            experiment = data[_HEADER.size : _HEADER.size + length].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"experiment name in the batch header is not UTF-8: {error}") from None
        header = cls(kind, stream, size, count, first, unit, run, boot, raw, mono, real, experiment)
        return header, offset + _HEADER.size + length


def parse_batch(data: bytes) -> tuple[Header, bytes]:
    """Split `header + records` (one spool frame, one MQTT payload) into its header and its records.

    Raises ValueError when the length of the records does not agree with the header.
    """
    header, offset = Header.unpack(data)
    body = data[offset:]
    if header.record_size and len(body) != header.record_size * header.count:
        raise ValueError(
            f"batch of {header.count} records of {header.record_size} bytes announced, {len(body)} bytes came"
        )
    return header, body
