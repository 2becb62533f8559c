"""A command at a terminal of its own, as a person has it: it asks, and is answered."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import subprocess
import termios
import time

from running import stirbar_environment

ANSWER_LIMIT_S = 60.0


class Terminal:
    """Runs a command; `said` is all that it has shown."""

    def __init__(self, command: list[str]) -> None:
        self._ours, theirs = pty.openpty()
        self.said = ""
        self._process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=stirbar_environment(), start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(theirs)

    def until(self, text: str) -> str:
        """Wait until it has shown this."""
        deadline = time.monotonic() + ANSWER_LIMIT_S
        while text not in self.said:
            assert select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))[0], self.said
            try:
                self.said += os.read(self._ours, 4096).decode()
            except OSError:  # it has ended
                raise AssertionError(f"no {text!r} in: {self.said}") from None
        return self.said

    def answer(self, text: str) -> None:
        """Type a line."""
        os.write(self._ours, text.encode() + b"\n")

    def end(self) -> int:
        """Its status."""
        status = self._process.wait(ANSWER_LIMIT_S)
        os.close(self._ours)
        return status
