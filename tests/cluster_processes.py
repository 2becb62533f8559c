"""A leader and units of other machines as real processes, each with files of its own; they meet by TLS only."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

from mosquitto import free_port
from running import stirbar_environment, wait_for

CLI = [sys.executable, "-m", "stirbar.core.cli"]


class Machine:
    """A directory with a config.ini that stands for a machine, and the processes that run there; `inside` puts them
    into a network namespace."""

    inside: tuple[str, ...] = ()

    def __init__(self, directory: pathlib.Path, name: str, settings: dict[str, dict[str, object]]) -> None:
        self.name = name
        self.directory = directory
        self.data = directory / "data"
        self.config = directory / "config.ini"
        directory.mkdir()
        own = {"name": name, "data_directory": self.data, "runtime_directory": directory / "run"}
        text = ""
        for section, keys in ({"unit": own} | settings).items():
            text += f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items()) + "\n"
        self.config.write_text(text)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def command(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a stirbar command to its end."""
        return subprocess.run(
            [*self.inside, *CLI, *words, "--config", str(self.config)],
            input=text,
            capture_output=True,
            text=True,
            env=stirbar_environment(),
            timeout=60,
        )

    def cluster(self, *words: str, text: str = "") -> str:
        """`stirbar cluster`, which must succeed; its standard output."""
        done = self.command("cluster", *words, text=text)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def refused(self, *words: str, text: str = "") -> str:
        """`stirbar cluster`, which must fail with one sentence."""
        done = self.command("cluster", *words, text=text)
        assert done.returncode == 1 and not done.stdout and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
        return done.stderr.removeprefix("stirbar cluster: ").strip()

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Run a stirbar command until `stop`."""
        with open(self.log(words[0]), "ab") as log:
            process = subprocess.Popen(
                [*self.inside, *CLI, *words, "--config", str(self.config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=stirbar_environment(), start_new_session=True,
            )  # fmt: skip
        self.processes[words[0]] = process
        return process

    def log(self, command: str) -> pathlib.Path:
        return self.directory / f"{command}.log"

    def kill(self, command: str) -> None:
        """SIGKILL, as when the power goes."""
        process = self.processes.pop(command)
        process.kill()
        process.wait()

    def stop(self, command: str) -> None:
        process = self.processes.pop(command)
        process.terminate()
        try:
            assert process.wait(30) == 0, self.log(command).read_text()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()

    def close(self) -> None:
        for command in reversed(list(self.processes)):
            self.stop(command)


class LeaderMachine(Machine):
    """A leader that is reached from other machines; `worker` says whether it is a unit as well."""

    def __init__(
        self, directory: pathlib.Path, worker: bool = False, address: str = "127.0.0.1", **more: dict[str, object]
    ) -> None:
        self.page_port, self.tls_port, self.local_port = free_port(), free_port(), free_port()
        settings: dict[str, dict[str, object]] = {
            "cluster.topology": {"leader_hostname": "leader", "leader_address": address},
            "cluster.inventory": {"leader": int(worker)},
            "mqtt": {"broker_port": self.local_port},
            "leader.config": {"broker_bind": "0.0.0.0", "broker_tls_port": self.tls_port},
            "web.config": {"bind": "0.0.0.0", "port": self.page_port},
        }
        super().__init__(directory, "leader", settings | more)

    said = 0  # so much of the log is of lives before this one

    def run(self) -> None:
        self.said = len(self.log("leader").read_text()) if self.log("leader").exists() else 0
        self.start("leader")
        wait_for(self._says_page, 30.0, f"the page; {self.log('leader').read_text()}")

    def _says_page(self) -> bool:
        assert self.processes["leader"].poll() is None, self.log("leader").read_text()
        return "page: https://" in self.log("leader").read_text()[self.said :]

    def units(self) -> dict[str, dict[str, object]]:
        return {one["unit"]: one for one in json.loads(self.cluster("list", "--json"))}


def new_unit(directory: pathlib.Path, name: str) -> Machine:
    """A machine that is in no cluster yet, with a simulated vial."""
    return Machine(directory / name, name, {"unit": {
        "name": name, "data_directory": directory / name / "data", "runtime_directory": directory / name / "r",
        "simulate": 1,
    }})  # fmt: skip


def command_lines() -> str:
    """The command lines and environments of all processes that can be seen."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            for name in ("cmdline", "environ"):
                try:
                    found.append((entry / name).read_bytes().decode(errors="replace"))
                except OSError:
                    continue
    return "\n".join(found)
