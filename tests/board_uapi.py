"""GPIO lines (uAPI v2) and I2C transfers by plain system calls, for tests on a board."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import struct
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

INPUT, OUTPUT, RISING, FALLING, PULL_UP, PULL_DOWN = 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 8, 1 << 9
ACTIVE_LOW, REALTIME = 1 << 1, 1 << 11
GET_CHIPINFO, GET_LINEINFO, GET_LINE = 0x8044B401, 0xC100B405, 0xC250B407
SET_CONFIG, GET_VALUES, SET_VALUES = 0xC110B40D, 0xC010B40E, 0xC010B40F
I2C_RETRIES, I2C_TIMEOUT, I2C_SLAVE, I2C_FUNCS, I2C_RDWR, I2C_SMBUS = 0x701, 0x702, 0x703, 0x705, 0x707, 0x720
EVENT_BYTES = 48


class Event(NamedTuple):
    """An edge of a requested input line."""

    stamp_ns: int
    id: int  # 1 rising, 2 falling
    offset: int
    number: int  # among all of the request
    line_number: int


def config(flags: int, values: int | None = None) -> bytes:
    """struct gpio_v2_line_config with flags for all lines and, for outputs, their values."""
    text = struct.pack("=QI20x", flags, 0 if values is None else 1)
    if values is not None:
        text += struct.pack("=IIQQ", 2, 0, values, (1 << 64) - 1)
    return text.ljust(272, b"\0")


class Lines:
    """Requested lines; their descriptor is `fd`."""

    def __init__(
        self, offsets: list[int] | int, flags: int, values: int | None = None, room: int = 0, consumer: bytes = b"test"
    ) -> None:
        offsets = [offsets] if isinstance(offsets, int) else offsets
        request = bytearray(struct.pack(f"={len(offsets)}I", *offsets).ljust(256, b"\0"))
        request += consumer.ljust(32, b"\0") + config(flags, values)
        request += struct.pack("=II20xi", len(offsets), room, 0)
        chip = os.open("/dev/gpiochip0", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(chip, GET_LINE, request)
        finally:
            os.close(chip)
        self.fd = struct.unpack_from("=i", request, 588)[0]

    @classmethod
    def of(cls, fd: int) -> Lines:
        """Lines whose descriptor came from elsewhere."""
        lines = cls.__new__(cls)
        lines.fd = fd
        return lines

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self.fd)

    def get(self, mask: int = 1) -> int:
        """The lines' values, as bits."""
        values = bytearray(struct.pack("=QQ", 0, mask))
        fcntl.ioctl(self.fd, GET_VALUES, values)
        return struct.unpack("=QQ", values)[0]

    def set(self, bits: int, mask: int = 1) -> None:
        """Sets the lines of the mask."""
        fcntl.ioctl(self.fd, SET_VALUES, struct.pack("=QQ", bits, mask))

    def configure(self, flags: int, values: int | None = None) -> None:
        """Other flags, values of outputs."""
        fcntl.ioctl(self.fd, SET_CONFIG, config(flags, values))

    def wait(self, seconds: float) -> bool:
        """Whether an event waits, at the latest after so long."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def events(self, count: int = 1 << 30, seconds: float = 5.0) -> list[Event]:
        """Events as they come, until there are `count` or `seconds` have passed."""
        found: list[Event] = []
        end = time.monotonic() + seconds
        while len(found) < count and (left := end - time.monotonic()) > 0:
            if self.wait(left):
                data = os.read(self.fd, EVENT_BYTES * 64)
                found += [Event(*struct.unpack_from("=QIIII", data, at)) for at in range(0, len(data), EVENT_BYTES)]
        return found


class _Message(ctypes.Structure):
    _fields_ = [
        ("address", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("length", ctypes.c_uint16),
        ("data", ctypes.c_void_p),
    ]


class I2c:
    """The bus of a board."""

    def __init__(self, number: int = 1) -> None:
        self.fd = os.open(f"/dev/i2c-{number}", os.O_RDWR | os.O_CLOEXEC)

    def __enter__(self) -> I2c:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def transfer(self, *messages: tuple[int, bytes | int]) -> list[bytes]:
        """One combined transfer of (address, bytes to write | number to read); what was read."""
        buffers = []
        array = (_Message * len(messages))()
        for i, (address, what) in enumerate(messages):
            length = what if isinstance(what, int) else len(what)
            buffers.append(ctypes.create_string_buffer(max(length, 1)))
            if isinstance(what, bytes):
                ctypes.memmove(buffers[-1], what, length)
            array[i] = _Message(address, int(isinstance(what, int)), length, ctypes.addressof(buffers[-1]))
        fcntl.ioctl(self.fd, I2C_RDWR, struct.pack("@PI4x", ctypes.addressof(array), len(messages)))
        return [buffer.raw[:what] for buffer, (_, what) in zip(buffers, messages, strict=True) if isinstance(what, int)]

    def put(self, address: int, register: int, value: int) -> None:
        """Writes a 16-bit register, high byte first."""
        self.transfer((address, bytes((register, value >> 8, value & 0xFF))))

    def get(self, address: int, register: int) -> int:
        """Reads a 16-bit register, high byte first."""
        return int.from_bytes(self.transfer((address, bytes((register,))), (address, 2))[0], "big")

    def set_timeout(self, tens_of_ms: int) -> None:
        """The adapter's time-out, for everyone."""
        fcntl.ioctl(self.fd, I2C_TIMEOUT, tens_of_ms)

    def quick(self, address: int) -> None:
        """SMBus quick write: whether somebody acknowledges."""
        fcntl.ioctl(self.fd, I2C_SLAVE, address)
        fcntl.ioctl(self.fd, I2C_SMBUS, struct.pack("@BBI8x", 0, 0, 0))


def raises(number: int) -> Any:
    """The system call that fails with this errno."""
    return pytest.raises(OSError, match=rf"\[Errno {number}\]")


def wait_for(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """The condition's first true value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)
    return value
