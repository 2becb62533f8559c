"""A real mosquitto on a free loopback port, started, killed and restarted by the tests themselves."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest


def find_mosquitto() -> str:
    """Path of the broker; skips the test (a failure with STIRBAR_REQUIRE=all) when there is none."""
    found = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if found is None:
        reason = "mosquitto is not installed (apt-get install mosquitto)"
        if os.environ.get("STIRBAR_REQUIRE") == "all":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Mosquitto:
    """A broker process; `kill()` is SIGKILL, `restart()` starts it again on the same port, with nothing remembered."""

    def __init__(self, directory: Path, extra: str = "") -> None:
        self.program = find_mosquitto()
        self.port = free_port()
        self.config = directory / f"mosquitto-{self.port}.conf"
        persistence = "" if "persistence" in extra else "persistence false\n"
        self.config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\n{persistence}log_type none\n{extra}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.restart()

    def restart(self) -> None:
        self.process = subprocess.Popen(
            [self.program, "-c", str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 10
        pause = threading.Event()
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self.process.poll() is None, "mosquitto ended at once"
                pause.wait(0.02)
        raise AssertionError("mosquitto does not listen")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def stop(self) -> None:
        """SIGTERM: what it is to keep is written."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def start_mosquitto(directory: Path, extra: str = "") -> Mosquitto:
    return Mosquitto(directory, extra)
