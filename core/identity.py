"""Who a unit is: a UUID for ever, a random number for each run, and the kernel's boot id."""

from __future__ import annotations

import os


def unit_id(directory: str) -> bytes:
    """The unit's id, 16 bytes, from `<directory>/unit_id`; made there at first use.

    Raises ValueError when the file does not hold 32 hex digits: an id is never replaced silently, because it is part of
    the key of every reading.
    """
    path = os.path.join(directory, "unit_id")
    try:
        with open(path) as file:
            text = file.read().strip()
    except FileNotFoundError:
        text = _create(path)
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != 16:
        raise ValueError(
            f"{path} should hold 32 hex digits, found {text[:40]!r}; restore it from a backup or remove it"
        )
    return value


def _create(path: str) -> str:
    """Write a new id so that two starters at once agree on one."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w") as file:
        file.write(os.urandom(16).hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)
    with open(path) as file:
        return file.read().strip()


def run_id() -> bytes:
    """A new random id for one start of a worker, 16 bytes."""
    return os.urandom(16)


def boot_id() -> bytes:
    """The kernel's boot id, 16 bytes; zeros where the system does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return bytes.fromhex(file.read().strip().replace("-", ""))
    except (OSError, ValueError):
        return bytes(16)
