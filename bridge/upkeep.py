"""What a leader does for its store beside the ingest: backups on schedule, and retention.

A backup is a process of its own (`stirbar db backup --gently`), so that neither ingest nor page waits for it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from stirbar.bridge.db_command import backup_name
from stirbar.bridge.sqlite_copy import BEGUN
from stirbar.bridge.store import StoreError, StoreUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.bridge.store import Store

HOUR_S, DAY_S = 3600.0, 86400.0
FIRST_S = 600.0  # after the start: first the units come back
RETRY_S = HOUR_S  # after a backup that failed
RETENTION_S = HOUR_S  # between two looks for what is too old
BREATH_S = 0.05  # between two batches: the ingest commits in between
ROOM_BYTES = 256 << 20  # what a backup leaves free on its disk


class Settings:
    """[leader.config]: 0 for a number of hours or days turns that off."""

    __slots__ = ("database", "directory", "interval_hours", "keep", "raw_days", "readings_days")

    def __init__(
        self,
        database: Path,
        directory: Path,
        interval_hours: float = 24.0,
        keep: int = 7,
        readings_days: float = 0.0,
        raw_days: float = 0.0,
    ) -> None:
        self.database = database
        self.directory = directory
        self.interval_hours = interval_hours
        self.keep = keep
        self.readings_days = readings_days
        self.raw_days = raw_days


class Upkeep:
    """`start()` runs the thread, `stop()` ends it, and a backup that is being made.

    Synchronization: `start` and `stop` from one thread; the rest is the upkeep thread's.
    """

    def __init__(self, store: Store, settings: Settings, say: Callable[[str], None]) -> None:
        self._store = store
        self._settings = settings
        self._say = say
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed = 0.0  # when a backup last did

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        wait_s = FIRST_S
        while not self._ended.wait(wait_s):
            now = time.time()
            if self.backup_due(now) <= now:
                self.back_up(now)
            self.thin(now)
            wait_s = min(RETENTION_S, max(1.0, self.backup_due(time.time()) - time.time()))

    # Backups

    def backups(self) -> list[Path]:
        """Those that are whole, oldest first."""
        return sorted(self._settings.directory.glob(f"{self._settings.database.stem}-????????-??????Z.sqlite"))

    def backup_due(self, now: float) -> float:
        """When the next backup is to be made; the last one is known over restarts."""
        if not self._settings.interval_hours:
            return float("inf")
        found = self.backups()
        # a copy from the future, by a clock that was wrong, must not put the next one off for ever
        last = min(found[-1].stat().st_mtime, now) if found else 0.0
        return max(last + self._settings.interval_hours * HOUR_S, self._failed + RETRY_S)

    def back_up(self, now: float) -> None:
        """Make a backup, then let go of the oldest; a failure is an event on the page."""
        try:
            line = self._made(self._settings.directory / backup_name(self._settings.database, now))
            if self._ended.is_set():
                return
            for old in self.backups()[: -self._settings.keep]:
                old.unlink()
        except (StoreError, OSError) as error:
            self._failed = now
            self._tell("error", "backup_failed", f"no backup of the store was made: {error}")
            return
        self._failed = 0.0
        self._tell("info", "backup_made", f"backup of the store: {line}")

    def _made(self, target: Path) -> str:
        """Raises StoreError with what the command says."""
        directory = self._settings.directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in directory.glob(f"{self._settings.database.stem}-*{BEGUN}*"):
            left.unlink()
        needed = self._settings.database.stat().st_size + ROOM_BYTES
        free = shutil.disk_usage(directory).free
        if free < needed:
            raise StoreError(
                f"{directory} has {free >> 20} MiB free, {needed >> 20} MiB are needed: make room, or name another "
                "[leader.config] backup_directory"
            )
        command = [sys.executable, "-m", "stirbar.bridge.db_command", "backup", "--gently"]
        words = ["--from", str(self._settings.database), "--to", str(target)]
        with subprocess.Popen(
            [*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ) as process:
            while True:
                try:
                    out, errors = process.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    if self._ended.is_set():
                        process.terminate()
        if process.returncode and not self._ended.is_set():
            raise StoreError(errors.strip()[-500:] or f"the command ended with {process.returncode}")
        return out.strip()

    # Retention

    def thin(self, now: float) -> None:
        """Take away what is older than it is to be kept, in small batches."""
        try:
            readings = self._thin_readings(now - self._settings.readings_days * DAY_S)
            self._drop_vitals(now - self._settings.readings_days * DAY_S)
            chunks = self._drop_raw(now - self._settings.raw_days * DAY_S)
        except StoreUnavailable as error:
            self._say(f"retention waits for the next hour: {error}")
            return
        if readings:
            text = f"{readings} readings older than {self._settings.readings_days:g} days are kept as roll-ups only now"
            self._tell("info", "readings_thinned", text)
        if chunks:
            self._tell(
                "info", "raw_removed", f"{chunks} raw chunks older than {self._settings.raw_days:g} days removed"
            )

    def _thin_readings(self, before_s: float) -> int:
        count = 0
        if self._settings.readings_days:
            for series in self._store.aged_series(before_s):
                while not self._ended.is_set() and (taken := self._store.thin(series, before_s)):
                    count += taken
                    self._ended.wait(BREATH_S)
        return count

    def _drop_vitals(self, before_s: float) -> None:
        if self._settings.readings_days:
            while not self._ended.is_set() and self._store.drop_vitals(before_s):
                self._ended.wait(BREATH_S)

    def _drop_raw(self, before_s: float) -> int:
        count = 0
        if self._settings.raw_days:
            while not self._ended.is_set() and (taken := self._store.drop_raw(before_s)):
                count += taken
                self._ended.wait(BREATH_S)
        return count

    def _tell(self, level: str, code: str, text: str) -> None:
        self._say(text)
        self._store.add_event(None, level, "leader", code, text)
