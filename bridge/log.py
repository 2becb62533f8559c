"""One line a message on stderr; the standard logging module would cost the bridge two megabytes.

Synchronization: one thread.
"""

from __future__ import annotations

import os
import sys
import time

LEVELS = {"error": 3, "warning": 4, "notice": 5, "info": 6, "debug": 7}  # syslog priorities
REPEAT_S = 60.0
_KEYS_MAXIMUM = 256


class Log:
    """`log(level, text, key)`: messages with the same key appear once a minute, with how many were held back.

    Under systemd a line starts with its priority (`<4>`), which the journal takes off; elsewhere with the level's name.
    """

    __slots__ = ("_held", "_journal", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._journal = "JOURNAL_STREAM" in os.environ
        self._held: dict[str, tuple[float, int]] = {}

    def __call__(self, level: str, text: str, key: str = "") -> None:
        if key:
            now = time.monotonic()
            last, held = self._held.get(key, (-REPEAT_S, 0))
            if now - last < REPEAT_S:
                self._held[key] = (last, held + 1)
                return
            if len(self._held) >= _KEYS_MAXIMUM:
                self._held.clear()
            self._held[key] = (now, 0)
            if held:
                text += f" ({held} more like this since the last line)"
        mark = f"<{LEVELS[level]}>" if self._journal else f"{level}: "
        try:
            sys.stderr.write(f"{mark}{self.name}: {text}\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads: the bridge outlives its terminal
            pass
