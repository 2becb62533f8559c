"""A real guard in a process of its own, and processes that take its outputs, for tests on a board."""

from __future__ import annotations

import mmap
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pytest
from running import wait_for
from stirbar.core.guard_command import program

SOURCES = sorted((pathlib.Path(__file__).parents[1] / "pyx" / "guard").glob("*.c"))
LINES = {"heating": 18, "alt_media": 16, "stirring": 17}

# A process that takes the outputs as the worker does and then obeys its standard input: `arm PUMP MILLISECONDS` writes
# a deadline.
WORKER = """
import mmap, os, sys
from stirbar.core import guard
from stirbar.rt.outputs_arrays import OutputLines
import time

given = guard.connect(sys.argv[1])
page = mmap.mmap(given.heartbeat, 4096)
page[4:16] = bytes(12)
PUMPS = ("media", "alt_media", "waste")
outputs = OutputLines()
for name, fd in given.lines.items():
    outputs.add_line(name, fd, 5_000_000)
for name, fds in given.pwms.items():
    outputs.add_kernel(name, *fds, 4_000_000)
beats = 0
print("ready", flush=True)
for line in sys.stdin:
    what, *words = line.split()
    if what == "duty":
        outputs.duty(words[0], float(words[1]), time.monotonic_ns())
    elif what == "beat":
        beats += 1
        page[:4] = beats.to_bytes(4, sys.byteorder)
    elif what == "arm":
        at = 4 + 4 * PUMPS.index(words[0])
        deadline = (time.monotonic_ns() // 1_000_000 + int(words[1])) % 2**32 or 1
        page[at:at + 4] = deadline.to_bytes(4, sys.byteorder)
    elif what == "disarm":
        at = 4 + 4 * PUMPS.index(words[0])
        page[at:at + 4] = bytes(4)
    elif what == "wake":
        os.eventfd_write(given.wake, 1)
    elif what == "close":
        os.close(given.connection)
    elif what == "say":
        os.write(given.connection, b"hello")
    print("done", flush=True)
"""


def compiled_guard(directory: pathlib.Path, where: str) -> str:
    """The guard's program: the installed one; linked dynamically for a board that is interposed at system calls."""
    if where != "fake":
        return program()
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the guard")
    target = directory / "stirbar-guard"
    subprocess.run([compiler, "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", target, *SOURCES], check=True)
    return str(target)


class RunningGuard:
    """A guard with its socket in a directory of its own. `errors()` is what it said."""

    def __init__(self, executable: str, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="sg", dir="/tmp"))
        self.path = str(self.directory / "guard")
        self._log = open(self.directory / "stderr", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [executable, f"--socket={self.path}", *arguments],
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            env=os.environ | (environment or {}),
        )
        self.workers: list[OutputUser] = []

    def errors(self) -> str:
        return (self.directory / "stderr").read_text()

    def wait_said(self, pattern: str, seconds: float = 10.0) -> re.Match[str]:
        """Wait until it said something."""
        return wait_for(lambda: re.search(pattern, self.errors()), seconds, f"'{pattern}' of the guard")

    def ready(self) -> RunningGuard:
        self.wait_said("workers connect at")
        return self

    def worker(self) -> OutputUser:
        """A process that has taken the outputs."""
        self.workers.append(OutputUser(self.path))
        return self.workers[-1]

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(10)
        self._log.close()
        shutil.rmtree(self.directory, ignore_errors=True)


class Heart(threading.Thread):
    """Beats for this process every 0.1 s until stopped, as the actuator thread does, with all pumps armed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(daemon=True)
        self._page = mmap.mmap(descriptor, 4096)
        self._stopped = threading.Event()
        self._arm()
        self.start()

    def _arm(self) -> None:
        deadline = (time.monotonic_ns() // 1_000_000 + 30_000) % 2**32 or 1
        self._page[4:16] = 3 * deadline.to_bytes(4, sys.byteorder)

    def run(self) -> None:
        beats = 0
        while not self._stopped.wait(0.1):
            beats += 1
            self._page[:4] = beats.to_bytes(4, sys.byteorder)
            self._arm()

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._page.close()


class OutputUser:
    """See WORKER. `said` is its answer to being started."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.said = self.process.stdout.readline()

    def error(self) -> str:
        """Why it did not get the outputs."""
        assert self.said == "", self.said
        return self.process.communicate(timeout=10)[1].splitlines()[-1]

    def do(self, command: str) -> None:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n", self.process.communicate(timeout=10)[1]

    def kill(self) -> float:
        """SIGKILL; returns when, time.monotonic()."""
        at = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        return at

    def __del__(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()
