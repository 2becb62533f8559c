"""A cluster for benchmarks: broker, store and ingest of a leader in this process, worker and bridge as children."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from types import TracebackType

from stirbar.bridge.broker import Broker
from stirbar.bridge.ingest import Ingest
from stirbar.bridge.store import Store, open_store
from stirbar.core import identity
from stirbar.core.bench import BenchError, child_environment

START_LIMIT_S = 20.0
STOP_LIMIT_S = 10.0
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
MAINS = {"worker": "stirbar.core.worker", "bridge": "stirbar.bridge.command"}
MEMORY_FIELDS = {"Rss": "rss", "Pss": "pss", "Anonymous": "anonymous"}


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, user and system, all threads."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                if int(file.read().rsplit(")", 1)[1].split()[1]) == pid:
                    found.append(int(name))
        except OSError:
            continue  # it has just ended
    return sorted(found)


def memory_mb(pid: int) -> dict[str, float]:
    """RSS, PSS and anonymous memory of a process, in units of 1000 kB as the kernel prints them."""
    found = {}
    with open(f"/proc/{pid}/smaps_rollup") as file:
        for line in file:
            name, _, rest = line.partition(":")
            if name in MEMORY_FIELDS:
                found[MEMORY_FIELDS[name]] = int(rest.split()[0]) / 1000.0
    return found


def same_program(pid: int) -> int:
    """How many other processes run the same executable: they share pages with it, which lowers its PSS."""
    program = os.readlink(f"/proc/{pid}/exe")
    others = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != pid:
            try:
                others += os.readlink(f"/proc/{name}/exe") == program
            except OSError:
                continue
    return others


def make_certificate(directory: pathlib.Path) -> tuple[str, str, str]:
    """A throw-away certificate for 127.0.0.1 that is its own CA: (CA, certificate, key). Raises BenchError."""
    if shutil.which("openssl") is None:
        raise BenchError(
            "openssl is not installed, which makes the certificate: `sudo apt install openssl`, or --no-tls"
        )
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=127.0.0.1",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"openssl failed: {done.stderr.strip()[-200:]}")
    return str(certificate), str(certificate), str(key)


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = START_LIMIT_S) -> None:
    """Wait until it holds. Raises BenchError with what was waited for."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{what} did not happen within {limit_s:g} s")
        time.sleep(0.02)


class Cluster:
    """A context manager; `python` is the interpreter of worker and bridge (a command's beginning)."""

    def __init__(self, python: list[str] | None = None, tls: bool = False) -> None:
        self.python = python or [sys.executable]
        self.tls = tls
        self.unit = "bench"
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Cluster:
        self._temporary = tempfile.TemporaryDirectory(prefix="stirbar-bench-")
        self.directory = pathlib.Path(self._temporary.name)
        self.address = f"ipc://{self.directory}/w"
        self.log = self.directory / "log"
        unit_directory = self.directory / "data"
        unit_directory.mkdir()
        self.unit_id = identity.unit_id(str(unit_directory))
        leader = self.directory / "leader"
        leader.mkdir()
        tls = make_certificate(self.directory) if self.tls else None
        self.broker = Broker(leader, tls=tls, log=lambda line: None)
        self.store: Store | None = None
        self.ingest: Ingest | None = None
        try:
            self.broker.start()
            self.database = leader / "store.sqlite"
            self.store = open_store(self.database)
            self.ingest = Ingest(
                self.store,
                host="127.0.0.1",
                port=self.broker.port,
                username=self.broker.username,
                password=self.broker.password,
                topic_root="pioreactor",
                data_root="stirbar",
                tls=tls[0] if tls else None,
                log=lambda *_: None,  # type: ignore[arg-type]
            )
            self.ingest.start()
            wait_for(lambda: bool(self.heard()["connected"]), "the ingest's connection to the broker")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        password_file = unit_directory / "mqtt_password"
        self.broker.issue(self.unit, self.unit_id, password_file)
        self.options = [
            f"unit.name={self.unit}",
            f"unit.data_directory={unit_directory}",
            f"unit.runtime_directory={self.directory}",
            f"worker.config.address={self.address}",
            "unit.simulate=1",
            "mqtt.broker_address=127.0.0.1",
            f"mqtt.broker_port={self.broker.port}",
            f"mqtt.username={self.unit}",
            f"mqtt.password_file={password_file}",
            f"mqtt.use_tls={int(self.tls)}",
            f"mqtt.ca_file={tls[0] if tls else ''}",
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.ingest is not None:
            self.ingest.stop()
        if self.store is not None:
            self.store.close()
        self.broker.stop()
        self._temporary.cleanup()

    def heard(self) -> dict[str, int]:
        """The ingest's counters."""
        assert self.ingest is not None
        return self.ingest.counters()

    def stored(self) -> dict[str, int]:
        """The store's counters."""
        assert self.store is not None
        return self.store.counters()

    def run(self, command: str, *options: str) -> subprocess.Popen[bytes]:
        """Start `stirbar <command>` for the unit; it ends with the cluster."""
        arguments = [*self.python, "-c", f"import sys; from {MAINS[command]} import main; sys.exit(main(sys.argv[1:]))"]
        for option in [*self.options, *options]:
            arguments += ["--set", option]
        with open(self.log, "ab") as log:
            process = subprocess.Popen(arguments, stdout=log, stderr=log, env=child_environment(self.python))
        self._processes.append(process)
        return process

    def check(self, process: subprocess.Popen[bytes]) -> None:
        """Raises BenchError with its last words when a process has ended."""
        if process.poll() is not None:
            words = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
            raise BenchError(f"a process ended with status {process.returncode}: {words[0]}")

    def until_stored(self, count: int = 1, limit_s: float = START_LIMIT_S) -> None:
        """Wait until so many readings are in the store."""

        def there() -> bool:
            for process in self._processes:
                self.check(process)
            return self.stored()["readings"] >= count

        wait_for(there, f"the storing of {count} readings", limit_s)
