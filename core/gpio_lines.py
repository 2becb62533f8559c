"""GPIO lines through the kernel's character device (uAPI v2): levels, and edges with the kernel's time stamps.

A claimed line costs no thread and no wake-up: its descriptor becomes readable when an edge comes. lgpio costs 1.1 MB
and 50 wake-ups a second when imported, 1 600 once an edge is claimed (docs/hardware.md).

Synchronization: none; one thread at a time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import sys
import time

GET_LINEINFO = 0xC100B405
GET_LINE = 0xC250B407
GET_VALUES = 0xC010B40E
SET_VALUES = 0xC010B40F

USED = 1 << 0
INPUT = 1 << 2
OUTPUT = 1 << 3
RISING = 1 << 4
FALLING = 1 << 5
PULL_UP = 1 << 8

REQUEST = "=64I32sQI5I240sII5Ii"  # struct gpio_v2_line_request
INFO = "=32s32sIIQ160s4I"  # struct gpio_v2_line_info
EVENT = "=QIIII6I"  # struct gpio_v2_line_event: time, 1 rising or 2 falling, line, two sequence numbers
EVENT_BYTES = struct.calcsize(EVENT)
QUEUE = 256  # edges that the kernel keeps for us


class LineError(OSError):
    """A line cannot be had; the message says which, why and what to do."""


def line_user(chip: str, line: int) -> str:
    """Name of the program that holds a line, empty when it is free. Raises OSError when there is no such line."""
    info = bytearray(struct.pack(INFO, b"", b"", line, 0, 0, b"", 0, 0, 0, 0))
    descriptor = os.open(chip, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, GET_LINEINFO, info)
    finally:
        os.close(descriptor)
    _, consumer, _, _, flags, *_ = struct.unpack(INFO, info)
    name = consumer.split(b"\0", 1)[0].decode(errors="replace")
    return (name or "the kernel") if flags & USED else ""


class Line:
    """One claimed line. `flags` as above; an output begins at 0. Raises LineError."""

    __slots__ = ("_sequence", "descriptor", "lost", "number")

    def __init__(self, chip: str, number: int, flags: int, name: str = "stirbar") -> None:
        self.number = number
        self.lost = 0  # edges that fell out of the kernel's queue
        self._sequence = 0
        offsets = [number] + [0] * 63
        tail = [1, QUEUE if flags & (RISING | FALLING) else 0, 0, 0, 0, 0, 0, -1]
        request = bytearray(struct.pack(REQUEST, *offsets, name.encode()[:31], flags, 0, 0, 0, 0, 0, 0, b"", *tail))
        try:
            descriptor = os.open(chip, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(descriptor, GET_LINE, request)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise LineError(error.errno, _why(chip, number, error)) from None
        self.descriptor: int = struct.unpack(REQUEST, request)[-1]

    def value(self) -> int:
        values = bytearray(struct.pack("=QQ", 0, 1))
        fcntl.ioctl(self.descriptor, GET_VALUES, values)
        return int.from_bytes(values[:8], sys.byteorder) & 1

    def set(self, level: int) -> None:
        fcntl.ioctl(self.descriptor, SET_VALUES, struct.pack("=QQ", level, 1))

    def events(self, timeout_s: float = 0.0) -> list[tuple[int, bool]]:
        """The edges since the last call as (CLOCK_MONOTONIC in ns, rising); waits so long for the first."""
        found: list[tuple[int, bool]] = []
        while select.select([self.descriptor], [], [], 0.0 if found else timeout_s)[0]:
            data = os.read(self.descriptor, EVENT_BYTES * QUEUE)
            for offset in range(0, len(data), EVENT_BYTES):
                stamp, kind, _, _, sequence, *_ = struct.unpack_from(EVENT, data, offset)
                self.lost += max(0, sequence - self._sequence - 1)
                self._sequence = sequence
                found.append((stamp, kind == 1))
        return found

    def collect(self, seconds: float) -> list[tuple[int, bool]]:
        """All edges of a span of time that begins now."""
        self.events()
        found: list[tuple[int, bool]] = []
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0.0:
            found += self.events(left)
        return found

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _why(chip: str, number: int, error: OSError) -> str:
    if error.errno == errno.EBUSY:
        try:
            user = line_user(chip, number)
        except OSError:
            user = ""
        return f"line {number} of {chip} is held by '{user or 'another program'}'; stop it first"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{chip}: not permitted; add this user to the group gpio and log in again"
    if error.errno == errno.EINVAL:
        return f"{chip} has no line {number}, or it cannot be used so; check the hardware profile"
    return f"line {number} of {chip}: {error.strerror}"
