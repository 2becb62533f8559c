"""The bridge has the unit's certificate renewed before it ends: by `stirbar cluster renew` in a process of its own,
which brings what the bridge does without (HTTP, openssl) and takes it along again.

Synchronization: one thread.
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.bridge.log import Log

RENEW_DAYS = 60.0
LOOK_S = 6 * 3600.0  # and as often it is tried while the leader cannot be reached
CHILD_LOOK_S = 5.0


class Renewal:
    """`step` is called often. `about_file` is the unit's `cluster/leader.json`; there is none where it did not join."""

    def __init__(self, about_file: str, command: list[str], log: Log) -> None:
        self._about_file = about_file
        self._command = command
        self._log = log
        self._at = 0.0
        self._child = 0

    def step(self, now: float) -> None:
        if now < self._at:
            return
        self._at = now + LOOK_S
        if self._child:
            self._reap(now)
        elif self._is_time():
            # the connection that stands is not disturbed: the new certificate is shown at the next one
            self._child = os.posix_spawn(self._command[0], self._command, os.environ)
            self._at = now + CHILD_LOOK_S

    def _is_time(self) -> bool:
        try:
            with open(self._about_file) as file:
                ends = float(json.load(file)["ends"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            self._log("error", f"{self._about_file} is damaged: join again by a token of the leader", "renewal")
            return False
        return ends - time.time() < RENEW_DAYS * 86400

    def _reap(self, now: float) -> None:
        pid, status = os.waitpid(self._child, os.WNOHANG)
        if not pid:
            self._at = now + CHILD_LOOK_S
            return
        self._child = 0
        if status:
            self._log("warning", f"the certificate is not renewed, trying again in {LOOK_S / 3600:g} h", "renewal")
