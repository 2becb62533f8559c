"""Hours for which the OD LED was lit, over all runs of the unit: a LED ages with them (IS-32).

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import os

from stirbar.core.ini import write_atomically

WRITE_PERIOD_NS = 60_000_000_000


class LedHours:
    """The hours at full intensity, in `<directory>/led_hours`: one number. What a crash loses is a minute at most."""

    __slots__ = ("_before_h", "_path", "_write_at_ns", "_written_h", "hours")

    def __init__(self, directory: str, now_ns: int) -> None:
        self._path = os.path.join(directory, "led_hours")
        self._write_at_ns = now_ns + WRITE_PERIOD_NS
        try:
            with open(self._path) as file:
                self._before_h = float(file.read())
        except FileNotFoundError:
            self._before_h = 0.0
        except ValueError:
            raise ValueError(f"{self._path} holds no number; write the LED's hours into it, or remove it") from None
        self.hours = self._written_h = self._before_h

    def update(self, seconds: float, now_ns: int) -> None:
        """Take the seconds of this run, at full intensity; on disk once a minute."""
        self.hours = self._before_h + seconds / 3600.0
        if now_ns >= self._write_at_ns and self.hours != self._written_h:
            self._write_at_ns = now_ns + WRITE_PERIOD_NS
            self._written_h = self.hours
            write_atomically(self._path, f"{self.hours:.5f}\n")
