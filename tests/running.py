"""Real stirbar processes for tests: simulated workers in directories of their own, and waiting with a deadline."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import stirbar
from stirbar import Worker
from stirbar.core.client import WorkerUnreachable

READY_S = 30.0
STOP_S = 15.0


def stirbar_environment() -> dict[str, str]:
    """The environment in which a child process finds this stirbar, and none of the user's own settings."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("STIRBAR_")}
    environment["PYTHONPATH"] = str(pathlib.Path(stirbar.__file__).parents[1])
    return environment


def wait_for(condition, seconds: float, what: str, every_s: float = 0.02):
    """The first true value of condition(); fails, naming what was waited for, when none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every_s)


class RunningWorker:
    """A simulated worker in a process of its own, with directories of its own; `client` is connected to it."""

    def __init__(self, settings: tuple[str, ...], code: str | None, environment: dict[str, str]) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="sb", dir="/tmp"))
        self.address = f"ipc://{self.directory}/run/w"
        arguments = ["worker", "--simulate"]
        for setting in (
            "unit.name=w",
            f"unit.data_directory={self.directory}/data",
            f"unit.runtime_directory={self.directory}/run",
            *settings,
        ):
            arguments += ["--set", setting]
        start = ["-m", "stirbar.core.cli"] if code is None else ["-c", code]
        with open(self.directory / "stderr", "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *start, *arguments],
                env=stirbar_environment() | environment,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self.client = self._connect()

    def _connect(self):
        client = Worker(self.address, timeout_s=10.0)

        def answers() -> bool:
            assert self.process.poll() is None, f"the worker ended at once: {self.errors()}"
            with contextlib.suppress(WorkerUnreachable):
                return bool(client.command("describe", timeout_s=0.5))
            return False

        try:
            wait_for(answers, READY_S, "an answer of the worker")
        except BaseException:
            self.process.kill()
            self.process.wait()
            client.close()
            raise
        return client

    def errors(self) -> str:
        """What the worker wrote to its standard error."""
        return (self.directory / "stderr").read_text(errors="replace")

    def threads(self) -> dict[str, int]:
        """Thread ids of the process by name."""
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
        return {(task / "comm").read_text().strip(): int(task.name) for task in tasks}

    def stop(self, *, check: bool = True) -> None:
        """End the worker; with `check` it must have lost nothing and end by itself with status 0."""
        try:
            if check and self.process.poll() is None:
                counters = self.client.status()["counters"]
                assert counters["ring_drops"] == 0 and counters["trace_drops"] == 0, counters
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            status = self.process.wait(STOP_S)
            assert not check or status == 0, f"the worker ended with status {status}: {self.errors()}"
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.client.close()
            shutil.rmtree(self.directory, ignore_errors=True)
