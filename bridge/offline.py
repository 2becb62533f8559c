"""The unit's board tells that the leader cannot be reached: the bridge knows, the worker has the LED.

Synchronization: one thread.
"""

from __future__ import annotations

import os

from stirbar.core.vitals import read_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.bridge.worker_link import WorkerLink

NO_NETWORK, NO_BROKER = 1, 2  # the field's error codes
OFFLINE_S = 30.0  # shorter outages are of no interest to who stands at the board
RENEW_S = 20.0
LEASE_S = 60.0  # the worker forgets it after this, should the bridge end meanwhile
INTERFACES = "/sys/class/net"


class OfflineSign:
    """`step` is called often: it reports the fault to the worker while it lasts, and its end."""

    def __init__(self, link: WorkerLink, interfaces: str = INTERFACES) -> None:
        self._link = link
        self._interfaces = interfaces
        self._since: float | None = None
        self._told = 0  # the code in force at the worker, as far as it took it; 0: none
        self._again_at = 0.0

    def step(self, online: bool, now: float) -> None:
        if online:
            self._since = None
            if self._told and self._report(self._told, 0.0, now):
                self._told = 0
            return
        if self._since is None:
            self._since = now
            self._again_at = now + OFFLINE_S
        if now < self._again_at:
            return
        self._again_at = now + RENEW_S
        code = NO_BROKER if network_is_up(self._interfaces) else NO_NETWORK
        if self._told not in (0, code):
            self._report(self._told, 0.0, now)
        if self._report(code, LEASE_S, now):
            self._told = code

    def _report(self, code: int, seconds: float, now: float) -> bool:
        return self._link.ask({"command": "fault", "code": code, "seconds": seconds}, _ignore, now)


def network_is_up(directory: str = INTERFACES) -> bool:
    """Whether any interface but the loopback has a link."""
    try:
        names = os.listdir(directory)
    except OSError:
        return True  # not known: then it is the broker that is not reached
    return any(read_text(os.path.join(directory, name, "operstate")) == "up" for name in names if name != "lo")


def _ignore(answer: dict[str, object], frames: list[bytes]) -> None:
    """A worker that does not take it has no LED to blink, or is older than the command."""
