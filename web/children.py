"""Child processes that are kept running, and that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
FIRST_BACK_OFF_S = 0.25
LONGEST_BACK_OFF_S = 8.0
SETTLED_S = 20.0  # after running for so long a child's back-off begins anew

_libc = ctypes.CDLL(None, use_errno=True)


def _die_with(parent: int) -> Callable[[], None]:
    """What a child does first: ask the kernel to be killed when its parent's thread ends, however that ends."""

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)  # the parent had ended before the kernel was asked

    return prepare


def python(module: str, *arguments: str) -> list[str]:
    """The command line of `module.main(arguments)`, by this interpreter, whether stirbar is installed or not."""
    code = f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, *arguments]


class Child:
    """One process, started again with a growing delay when it ends by itself.

    `say` gets a sentence for each such end. What the process writes goes to `log`.

    Synchronization: none; all calls from the main thread, which the kernel watches on the child's behalf.
    """

    def __init__(self, name: str, command: list[str], log: Path, say: Callable[[str], None]) -> None:
        self.name = name
        self.command = command
        self.log = log
        self.restarts = 0
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None
        self._back_off_s = FIRST_BACK_OFF_S
        self._started = 0.0
        self._next_start: float | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process in a session of its own: Ctrl-C is for the parent, which ends the children in order."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
            )
        self._started = time.monotonic()
        self._next_start = None

    def watch(self) -> bool:
        """Start the process again if it ended and its time has come; returns whether it was started now."""
        if self._process is None or self._process.poll() is None:
            return False
        now = time.monotonic()
        if self._next_start is None:
            if now - self._started > SETTLED_S:
                self._back_off_s = FIRST_BACK_OFF_S
            self._next_start = now + self._back_off_s
            self._say(f"{self.name} {self._how_it_ended()}: starting it again in {self._back_off_s:g} s")
            self._back_off_s = min(2.0 * self._back_off_s, LONGEST_BACK_OFF_S)
        if now < self._next_start:
            return False
        self.restarts += 1
        self.start()
        return True

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self, deadline: float) -> bool:
        """Whether the process has ended by `deadline` (monotonic seconds)."""
        if self._process is None:
            return True
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def _how_it_ended(self) -> str:
        assert self._process is not None
        code = self._process.returncode
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        last = self.last_words()
        return f"ended with status {code}" + (f" ({last})" if last else "")

    def last_words(self) -> str:
        """The last line that the process wrote."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 4096))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1].strip()[:300] if lines else ""


def stop_all(children: list[Child], limit_s: float) -> list[str]:
    """Ask all to end by SIGTERM; kill what has not after `limit_s`. Returns the names of those that were killed."""
    for child in children:
        child.signal(signal.SIGCONT)  # one that was stopped could not hear
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + limit_s
    stubborn = [child for child in children if not child.wait(deadline)]
    for child in stubborn:
        child.signal(signal.SIGKILL)
        child.wait(time.monotonic() + limit_s)
    return [child.name for child in stubborn]
