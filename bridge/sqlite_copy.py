"""Backups of a SQLite store, made while it is written; restoring one; giving free pages back."""

from __future__ import annotations

import fcntl
import os
import pathlib
import sqlite3
import time
from contextlib import contextmanager

from stirbar.bridge.sqlite_check import check, check_version, open_to_read
from stirbar.bridge.store import StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STEP_PAGES = 256  # 1 MiB: what is copied between two pauses
BEGUN = ".part"  # a copy that is not verified yet


def back_up(
    source: pathlib.Path,
    target: pathlib.Path,
    megabytes_per_s: float = 0.0,
    pause: Callable[[float], object] = time.sleep,
) -> dict[str, int]:
    """Copy a store, checked, to a new file that needs no other beside it; returns what `check` counts.

    One snapshot: everything that was committed before the call is in it. A read transaction holds it, because
    SQLite's backup starts over whenever somebody else commits, and a leader commits every second. Until the end the
    write-ahead log cannot be reset and grows by what is written meanwhile.

    Raises StoreError. A copy that was not finished or not in order is removed.
    """
    if target.exists():
        raise StoreError(f"{target} exists already: name a new file, or move that one away")
    begun = target.with_name(target.name + BEGUN)
    reader = open_to_read(source)
    try:
        check_version(reader, source)
        begun.unlink(missing_ok=True)
        # readable by its owner only, as the store is
        os.close(os.open(begun, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        writer = sqlite3.connect(begun, isolation_level=None)
        try:
            _copy(reader, writer, megabytes_per_s, pause)
            writer.execute("PRAGMA journal_mode = DELETE")
        finally:
            writer.close()
        counts = check(begun)
        _settle(begun, target)
        return counts
    except (sqlite3.Error, OSError) as error:
        raise StoreError(f"{source} cannot be copied to {target}: {error}") from None
    finally:
        reader.close()
        begun.unlink(missing_ok=True)


def _copy(
    reader: sqlite3.Connection, writer: sqlite3.Connection, megabytes_per_s: float, pause: Callable[[float], object]
) -> None:
    (page_bytes,) = reader.execute("PRAGMA page_size").fetchone()
    reader.execute("BEGIN")
    reader.execute("SELECT 1 FROM sqlite_master").fetchone()  # from here on the snapshot stands
    start = time.monotonic()

    def keep_pace(status: int, remaining: int, total: int) -> None:
        if megabytes_per_s > 0.0:
            due_s = (total - remaining) * page_bytes / (megabytes_per_s * 1e6)
            if (ahead_s := due_s - (time.monotonic() - start)) > 0.0:
                pause(ahead_s)

    reader.backup(writer, pages=STEP_PAGES, progress=keep_pace)


def _settle(begun: pathlib.Path, target: pathlib.Path) -> None:
    """Give a finished file its name, so that a power cut leaves either the whole of it or nothing."""
    with begun.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(begun, target)
    _sync_directory(target.parent)


def _sync_directory(directory: pathlib.Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def no_leader(path: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a store, as its leader does. Raises StoreError when a leader has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise StoreError(f"{path} is in use by a running leader: stop it first") from None
    finally:
        os.close(descriptor)


def restore(backup: pathlib.Path, path: pathlib.Path) -> tuple[dict[str, int], pathlib.Path | None]:
    """Put a checked copy of a backup in the place of a store; returns its counts and where the old one is now.

    Raises StoreError, with everything as it was: a leader runs, or the backup is damaged, newer or something else.
    """
    with no_leader(path):
        fresh = path.with_name(path.name + ".restored")
        fresh.unlink(missing_ok=True)
        counts = back_up(backup, fresh)
        aside = None
        if path.exists():
            aside = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%d-%H%M%S')}")
            if aside.exists():
                fresh.unlink()
                raise StoreError(f"{aside} exists already: try again in a second")
            _move_aside(path, aside)
        _settle(fresh, path)
        return counts, aside


def _move_aside(path: pathlib.Path, aside: pathlib.Path) -> None:
    """Nothing of the old store may stay beside the new one: a write-ahead log of another file would spoil it."""
    for suffix in ("", "-wal", "-shm"):
        part = pathlib.Path(f"{path}{suffix}")
        if part.exists():
            os.replace(part, f"{aside}{suffix}")
    _sync_directory(path.parent)


def vacuum(path: pathlib.Path) -> tuple[int, int]:
    """Write a store anew without its free pages; returns its bytes before and after. Raises StoreError."""
    open_to_read(path).close()
    with no_leader(path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            check_version(connection, path)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            before = path.stat().st_size
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise StoreError(f"{path} cannot be written anew: {error}; VACUUM needs as much room again") from None
        finally:
            connection.close()
        return before, path.stat().st_size
