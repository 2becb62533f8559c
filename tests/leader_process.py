"""A real `stirbar leader` in a process of its own, with a broker that lets units of the tests in."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys

from stirbar.bridge.broker import Broker
from stirbar.core.leader_client import Leader
from stirbar.web.tokens import Tokens

from .mqtt_unit import MqttUnit
from .running import stirbar_environment, wait_for

START_S = 20.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class PatientUnit(MqttUnit):
    """A unit that refuses, as a worker does, what is not a whole command."""

    def _answer(self, body):
        try:
            return super()._answer(body)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            return {"ok": False, "error": {"message": repr(error), "field": "", "limit": None, "remedy": ""}}


class LeaderProcess:
    """A leader with one unit, `vial1`, and a token that may everything."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.directory = directory / "leader"
        self.directory.mkdir(mode=0o700)
        self.broker = Broker(directory)
        password = directory / "vial1.password"
        username = self.broker.issue("vial1", b"\1" * 16, password)
        self.broker.start()
        (directory / "leader.password").write_text(self.broker.password + "\n")
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.token = Tokens(self.directory).create("fuzz", "admin")
        settings = {
            "leader.config.data_directory": self.directory,
            "leader.config.broker": "external",
            "mqtt.broker_address": "127.0.0.1",
            "mqtt.broker_port": self.broker.port,
            "mqtt.username": self.broker.username,
            "mqtt.password_file": directory / "leader.password",
            "web.config.port": self.port,
        }
        self.errors = directory / "leader.stderr"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stirbar.core.cli", "leader"]
                + [part for name, value in settings.items() for part in ("--set", f"{name}={value}")],
                env=stirbar_environment(), cwd=directory, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
        self.unit = PatientUnit("vial1", self.broker.port, username, password.read_text().strip(), b"\1" * 16)
        self.unit.status()
        with Leader(self.address, token=self.token) as leader:
            wait_for(lambda: self._knows_the_unit(leader), START_S, "a leader that knows its unit")

    def _knows_the_unit(self, leader: Leader) -> bool:
        assert self.process.poll() is None, self.errors.read_text()
        try:
            return bool(leader.units())
        except ConnectionError:
            return False

    def memory_kb(self) -> int:
        """What the leader holds in memory now (RSS)."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    def stop(self) -> None:
        """End it all; the leader must have ended by itself with status 0 and no traceback."""
        try:
            self.unit.close()
            self.process.terminate()
            status = self.process.wait(15)
            assert status == 0 and "Traceback" not in self.errors.read_text(), self.errors.read_text()[-2000:]
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self.broker.stop()
