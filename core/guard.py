"""The worker's side of the guard, the process that holds the lines of everything that heats, pumps or stirs.

    guard = connect(socket_path(config))
    guard.lines["stirring"], guard.pwms["media"], guard.heartbeat

The guard is a C program (pyx/guard/), started by `stirbar guard`. It begins with one message: what it hands
over, one line each in the order of the descriptors that come with it (docs/determinism.md).

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import errno
import os

from stirbar.rt.loop import guard_connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config

GREETING = "stirbar-guard 3"
REFUSED = "refused "
ANSWER_MS = 2000
PWM_DESCRIPTORS = 3  # period, duty_cycle, enable

REMEDIES = {
    errno.ENOENT: "start it with `stirbar guard`",
    errno.ECONNREFUSED: "it has ended; start it with `stirbar guard`",
    errno.EACCES: "run the worker as the guard's user, or in its group",
    errno.EAGAIN: "it did not answer; see its log",
}


class GuardError(Exception):
    """One sentence: why there are no outputs, and what to do."""


class Guard:
    """What the guard gave: as long as `connection` is open, the outputs are this process's.

    `lines` maps a device to the descriptor of its GPIO line's request, `pwms` one to the descriptors of its kernel PWM
    channel (period, duty_cycle, enable); `heartbeat` is the page that the loop counts its ticks into and writes its
    pumps' deadlines, `watch` the one in which the guard says that it lives, `wake` the eventfd that makes it look at
    the deadlines at once.
    """

    __slots__ = ("connection", "heartbeat", "lines", "pwms", "wake", "watch")

    def __init__(self, connection: int) -> None:
        self.connection = connection
        self.heartbeat = self.watch = self.wake = -1
        self.lines: dict[str, int] = {}
        self.pwms: dict[str, tuple[int, int, int]] = {}

    def close(self) -> None:
        """Give the outputs back: the guard switches them off."""
        descriptors = [self.connection, self.heartbeat, self.watch, self.wake, *self.lines.values()]
        for attributes in self.pwms.values():
            descriptors += attributes
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)
        self.connection = self.heartbeat = self.watch = self.wake = -1
        self.lines.clear()
        self.pwms.clear()


def socket_path(config: Config) -> str:
    """Where the guard of this unit listens."""
    from stirbar.core.paths import runtime_directory

    return os.path.join(runtime_directory(config), "guard")


def connect(path: str) -> Guard:
    """Take the outputs from the guard at a path. Raises GuardError."""
    try:
        connection, text, descriptors = guard_connect(os.fsencode(path), ANSWER_MS)
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0, "see its log")
        raise GuardError(f"no guard at {path} ({os.strerror(error.errno or 0)}): {remedy}") from None
    guard = Guard(connection)
    greeting, *given = text.decode(errors="replace").splitlines()
    if greeting != GREETING:
        for descriptor in (connection, *descriptors):
            os.close(descriptor)
        if greeting.startswith(REFUSED):
            raise GuardError(f"the guard at {path} refused: {greeting[len(REFUSED) :]}")
        raise GuardError(f"the guard at {path} is of another version ('{greeting}'): restart it")
    for line in given:
        kind, _, name = line.partition(" ")
        if kind == "line":
            guard.lines[name] = descriptors.pop(0)
        elif kind == "pwm":
            guard.pwms[name] = (descriptors.pop(0), descriptors.pop(0), descriptors.pop(0))
        elif kind == "watch":
            guard.watch = descriptors.pop(0)
        elif kind == "wake":
            guard.wake = descriptors.pop(0)
        else:
            guard.heartbeat = descriptors.pop(0)
    return guard
