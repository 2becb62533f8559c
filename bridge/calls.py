"""Commands on their way to units and their replies on the way back: requests of any thread, one thread that sends."""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class CommandTimeout(TimeoutError):
    """The unit did not answer in time; the command has expired and will not be done later."""


class CommandNotSent(ConnectionError):
    """There is no connection to the broker now; the unit has not heard of the command, or not been heard since."""


class Call:
    """One command. Synchronization: `reply` and `unsent` are written by the sending thread before `done` is set."""

    __slots__ = ("correlation", "done", "payload", "reply", "timeout_s", "unit_id", "unsent")

    def __init__(self, unit_id: bytes, request: dict[str, Any], timeout_s: float, epoch: int) -> None:
        self.correlation = secrets.token_bytes(16)
        self.unit_id = unit_id
        # what waits in a socket through an outage is not expired by the broker any more: the unit looks at this
        known = {"id": self.correlation.hex(), "epoch": epoch, "expires_at": time.time() + timeout_s}
        self.payload = json.dumps({**known, **request}).encode()
        self.timeout_s = timeout_s
        self.done = threading.Event()
        self.reply: dict[str, Any] | None = None
        self.unsent = False

    def fail(self) -> None:
        self.unsent = True
        self.done.set()


class Calls:
    """Commands that wait to be sent or answered. `poke` wakes the sending thread.

    Synchronization: `ask` from any thread; the rest from the sending thread.
    """

    def __init__(self, poke: Callable[[], None], epoch: int) -> None:
        self._poke = poke
        self._epoch = epoch
        self._lock = threading.Lock()  # protects the rest
        self._open = False
        self._unsent: deque[Call] = deque()
        self._waiting: dict[bytes, Call] = {}

    def ask(self, unit_id: bytes, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Wait for the unit's reply. Raises CommandTimeout or CommandNotSent."""
        call = Call(unit_id, request, timeout_s, self._epoch)
        with self._lock:
            if not self._open:
                raise CommandNotSent("the leader has no connection to its broker now")
            self._waiting[call.correlation] = call
            self._unsent.append(call)
        self._poke()
        call.done.wait(timeout_s)
        with self._lock:
            self._waiting.pop(call.correlation, None)
        if call.unsent:
            raise CommandNotSent("the leader lost the connection to its broker")
        if call.reply is None:
            raise CommandTimeout(f"unit {unit_id.hex()} did not answer within {timeout_s:g} s")
        return call.reply

    def open(self) -> None:
        """There is a connection."""
        with self._lock:
            self._open = True

    def close(self) -> None:
        """There is none any more: whoever waits hears it at once."""
        with self._lock:
            self._open = False
            waiting = list(self._waiting.values())
            self._unsent.clear()
        for call in waiting:
            call.fail()

    def take(self) -> list[Call]:
        """What is to be sent now; what nobody waits for any more is left out."""
        with self._lock:
            calls = [call for call in self._unsent if call.correlation in self._waiting]
            self._unsent.clear()
        return calls

    def find(self, correlation: bytes | None, unit_id: bytes) -> Call | None:
        """The command that a unit answers, if somebody still waits for it."""
        with self._lock:
            call = self._waiting.get(correlation) if correlation else None
        return call if call is not None and call.unit_id == unit_id else None
