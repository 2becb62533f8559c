"""`stirbar demo` in a process of its own, for the tests that watch it, kill its parts, and count afterwards."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import time

from stirbar.web.children import python

ROOT = pathlib.Path(__file__).parents[1]
LINK = re.compile(r"(http://127\.0\.0\.1:\d+)/login\?token=(\S+)")
BROKER = "mosquitto"


def wait_for(condition, deadline_s=20.0):
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def processes_in(directory):
    """Pids and command lines of what runs with this directory in its command line or as its own."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                place = os.readlink(entry / "cwd")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if (str(directory) in line or place.startswith(str(directory))) and state != "Z":
                found[int(entry.name)] = line
    return found


class Demo:
    """One `stirbar demo` in a process of its own."""

    def __init__(self, directory, *arguments):
        self.directory = directory
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "build" / "view")}
        environment.pop("DISPLAY", None)
        self.process = subprocess.Popen(
            [*python("stirbar.web.demo"), "--keep", str(directory), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=environment,
        )
        self.said = []
        self.address = self.token = None

    def wait_for_link(self):
        for line in self.process.stderr:
            self.said.append(line)
            if match := LINK.search(line):
                self.address, self.token = match.groups()
                return self
        raise AssertionError("".join(self.said))

    def pids(self):
        pids = json.loads((self.directory / "processes.json").read_text())
        brokers = [pid for pid, line in processes_in(self.directory).items() if BROKER in line]
        return pids | {BROKER: brokers[0] if brokers else None}

    def finish(self, deadline_s=60):
        out, err = self.process.communicate(timeout=deadline_s)
        self.said.append(err)
        account = json.loads(out.splitlines()[-1]) if out else None
        return self.process.returncode, account, "".join(self.said)

    def close(self):
        """End the demo, whatever state it is in, and what a killed one could not tidy up."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        for file in self.directory.glob("unit*/unit_config.ini"):
            runtime = re.search(r"^runtime_directory = (/tmp/stirbar-\S+)$", file.read_text(), re.MULTILINE)
            shutil.rmtree(runtime[1], ignore_errors=True)
