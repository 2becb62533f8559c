"""An I2C bus as commands and detection see it: combined transfers over /dev/i2c-N, each of bounded length.

The worker's own transfers are compiled (pyx/); this is for looking around while it does not run.

Synchronization: none; one thread at a time. Other programs' transfers go between ours, never within one.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from array import array

I2C_RETRIES = 0x0701
I2C_TIMEOUT = 0x0702  # in 10 ms
I2C_RDWR = 0x0707
READ = 0x0001
MESSAGE = "HHHP"  # struct i2c_msg: address, flags, length, pointer
ABSENT = (errno.ENXIO, errno.EREMOTEIO, errno.ENODEV)  # what drivers say when nobody acknowledges
HELD = (errno.ETIMEDOUT,)
REMEDY = "write dtparam=i2c_arm=on into /boot/firmware/config.txt and start the Pi again"


class BusError(OSError):
    """The bus cannot be used at all; the message says what to do."""


class I2cBus:
    """`/dev/i2c-<number>` with a time-out; `transfers` and `busy_s` are for the bench. Raises BusError."""

    __slots__ = ("descriptor", "number", "path")

    def __init__(self, number: int = 1, timeout_ms: int = 20) -> None:
        self.number = number
        self.path = f"/dev/i2c-{number}"
        try:
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise BusError(f"there is no {self.path}; {REMEDY}") from None
        except PermissionError:
            raise BusError(f"{self.path}: not permitted; add this user to the group i2c and log in again") from None
        except OSError as error:
            raise BusError(f"{self.path}: {error.strerror}; {REMEDY}") from None
        fcntl.ioctl(self.descriptor, I2C_RETRIES, 0)
        fcntl.ioctl(self.descriptor, I2C_TIMEOUT, max(1, timeout_ms // 10))

    def transfer(self, address: int, data: bytes = b"", length: int = 0) -> bytes:
        """Write `data`, then read `length` bytes, without a stop between; OSError as the driver gives it."""
        out, back = array("B", data), array("B", bytes(length))
        messages = []
        if data or not length:
            messages += [address, 0, len(out), out.buffer_info()[0]]
        if length:
            messages += [address, READ, length, back.buffer_info()[0]]
        count = len(messages) // 4
        packed = array("B", struct.pack("@" + MESSAGE * count, *messages))
        fcntl.ioctl(self.descriptor, I2C_RDWR, struct.pack("@PI", packed.buffer_info()[0], count))
        return back.tobytes()

    def read_register(self, address: int, register: int, length: int = 2) -> bytes:
        return self.transfer(address, bytes((register,)), length)

    def read_word(self, address: int, register: int) -> int:
        """A 16-bit register, high byte first."""
        return int.from_bytes(self.read_register(address, register), "big")

    def write_word(self, address: int, register: int, value: int) -> None:
        self.transfer(address, bytes((register, value >> 8 & 0xFF, value & 0xFF)))

    def adapter(self) -> str:
        """The adapter's name, empty where the kernel does not say."""
        try:
            with open(f"/sys/class/i2c-dev/i2c-{self.number}/name", encoding="ascii", errors="replace") as file:
                return file.read().strip()
        except OSError:
            return ""

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> I2cBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
