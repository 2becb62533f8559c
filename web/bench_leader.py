"""`stirbar bench leader`: one real leader, and as many simulated bridges as are asked for, on this machine.

The leader is the process that users run, with its mosquitto, its store and its page; the units are in processes of
their own (`stirbar.bridge.bench_units`), each with a connection, an account and an ACL of its own, and somebody
listens to the live events of all units. What was stored is counted in the store, after the leader has ended.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from stirbar.bridge.bench_cluster import children_of, cpu_s, memory_mb, wait_for
from stirbar.bridge.bench_units import EXPERIMENT, OD2
from stirbar.bridge.credentials import Credentials
from stirbar.bridge.store import open_store
from stirbar.core.bench import BenchError, Result, Row, child_environment, parser_for, positive
from stirbar.core.leader_client import Leader, LeaderUnreachable
from stirbar.web.tokens import Tokens

START_LIMIT_S, STOP_LIMIT_S = 30.0, 60.0
LAG_LIMIT_S = 2.0  # p99: a block waits for the next commit, one a second, and no longer than one more
GENERATORS = 2
PAGE_UNITS = 48  # what the overview shows at a time
LEADER = "import sys; from stirbar.web.command import main; sys.exit(main(sys.argv[1:]))"


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


class BenchLeader:
    """A context manager: `stirbar leader` in a directory of its own, or with the store of `url`.

    Synchronization: one thread.
    """

    def __init__(self, units: int, url: str = "", settings: tuple[str, ...] = ()) -> None:
        self.url = url
        self.settings = settings
        self.units = {f"unit{number:04d}": os.urandom(16) for number in range(1, units + 1)}

    def __enter__(self) -> BenchLeader:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stirbar-bench-")))
            home = self.directory / "leader"
            home.mkdir(mode=0o700)
            self.passwords = Credentials(home / "credentials").admit_all(self.units)
            self.token = Tokens(home).create("bench", "read")
            self.log = self.directory / "log"
            self.broker_port, self.page_port = free_port(), free_port()
            self.address = f"http://127.0.0.1:{self.page_port}"
            self.process = self._start(home)
            stack.callback(self._kill)
            with Leader(self.address, token=self.token) as client:
                wait_for(lambda: self._well(client), "the leader's start", START_LIMIT_S)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self, home: Path) -> subprocess.Popen[bytes]:
        settings = [
            f"leader.config.data_directory={home}",
            f"unit.data_directory={self.directory / 'unit'}",
            f"unit.runtime_directory={self.directory / 'run'}",
            f"mqtt.broker_port={self.broker_port}",
            f"web.config.port={self.page_port}",
            "leader.config.backup_interval_hours=0",
            *([f"leader.config.database={self.url}"] if self.url else []),
            *self.settings,
        ]
        command = [sys.executable, "-c", LEADER] + [part for one in settings for part in ("--set", one)]
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.directory, env=child_environment([sys.executable])
            )

    def _well(self, client: Leader) -> bool:
        if self.process.poll() is not None:
            words = self.log.read_text(errors="replace").strip().splitlines()[-1:] or ["no word"]
            raise BenchError(f"the leader ended with status {self.process.returncode}: {words[0]}")
        try:
            self.broker_pid = int(client.health()["broker"]["pid"])
        except (LeaderUnreachable, OSError):
            return False
        return True

    def health(self) -> dict[str, Any]:
        """The leader's counters now."""
        with Leader(self.address, token=self.token) as client:
            return client.health()

    def stop(self) -> None:
        """End the leader in good order. Raises BenchError."""
        self.process.terminate()
        if self.process.wait(STOP_LIMIT_S):
            raise BenchError(f"the leader ended with status {self.process.returncode}")

    def _kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def count(self, runs: dict[str, list[Any]]) -> tuple[int, int]:
        """Of the store, after the end: readings, and how many of what was sent are not accounted for there."""
        store = open_store(self.url or self.directory / "leader" / "stirbar.sqlite")
        try:
            stored = sum(1 for _ in store.csv_rows(EXPERIMENT)) - 1
            missing = sum(
                max(0, sent - store.high_water(bytes.fromhex(unit), bytes.fromhex(run)).get(OD2, 0))
                for unit, (run, sent) in runs.items()
            )
        finally:
            store.close()
        return stored, missing


class Listener:
    """Hears the live events of some units (all, for none named) in a thread, and how old each reading was, in ms."""

    def __init__(self, leader: BenchLeader, units: list[str]) -> None:
        self.ages_ms: list[float] = []
        self.bytes = self.dropped = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", leader.page_port, timeout=30.0)
        path = "/api/live" + (f"?units={','.join(units)}" if units else "")
        self._connection.request("GET", path, headers={"Authorization": f"Bearer {leader.token}"})
        self._answer = self._connection.getresponse()
        if self._answer.status != 200:
            raise BenchError(f"the leader's live events: status {self._answer.status}")
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def _hear(self) -> None:
        kind = b""
        for line in self._answer:
            self.bytes += len(line)
            if line.startswith(b"event: "):
                kind = line[7:].strip()
            elif kind == b"reading" and line.startswith(b"data: "):
                self.ages_ms.append(1e3 * (time.time() - json.loads(line[6:])["t"]))
            elif kind == b"dropped" and line.startswith(b"data: "):
                self.dropped += json.loads(line[6:])["count"]

    def close(self) -> None:
        """Wait for the end of the events, which is that of the leader."""
        self._thread.join(5.0)
        self._connection.close()


class Generators:
    """The processes of the simulated units; `wait` returns what they sent. A context manager."""

    def __init__(self, leader: BenchLeader, seconds: float, rate: int, processes: int = GENERATORS) -> None:
        every = [[name, identity.hex(), leader.passwords[name]] for name, identity in leader.units.items()]
        command = [sys.executable, "-m", "stirbar.bridge.bench_units"]
        self.processes: list[subprocess.Popen[str]] = []
        for place in range(min(processes, len(every))):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=leader.directory,
                env=child_environment(command),
            )  # fmt: skip
            self.processes.append(process)
            asked = {"port": leader.broker_port, "units": every[place::processes], "seconds": seconds, "rate": rate}
            self._say(process, json.dumps(asked))

    def __enter__(self) -> Generators:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def _say(self, process: subprocess.Popen[str], line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def _line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"the simulated units ended with status {process.wait()}")
        return line

    def connected(self) -> None:
        """Until every unit has a connection."""
        for process in self.processes:
            self._line(process)

    def go(self) -> None:
        for process in self.processes:
            self._say(process, "go")

    def wait(self) -> list[dict[str, Any]]:
        """Until all is sent and acknowledged."""
        return [json.loads(self._line(process)) for process in self.processes]

    def cpu_s(self) -> float:
        return sum(cpu_s(process.pid) for process in self.processes)


def percentile(values: list[float], share: float) -> float:
    """Of sorted values; NaN of none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def measure(leader: BenchLeader, seconds: float, rate: int) -> dict[str, Any]:
    """Let the units run, and return what they sent, what it cost and what was heard."""
    pids = {"leader": leader.process.pid, "broker": leader.broker_pid}
    ingests = {f"ingest {pid}": pid for pid in children_of(leader.process.pid) if pid != leader.broker_pid}
    pids |= ingests
    with Generators(leader, seconds, rate) as generators:
        generators.connected()
        everything, page = Listener(leader, []), Listener(leader, list(leader.units)[:PAGE_UNITS])
        before = {name: cpu_s(pid) for name, pid in pids.items()} | {"units": generators.cpu_s()}
        begun = time.monotonic()
        generators.go()
        time.sleep(seconds)
        elapsed = time.monotonic() - begun
        cpu = {name: (cpu_s(pid) - before[name]) / elapsed for name, pid in pids.items()}
        cpu["units"] = (generators.cpu_s() - before["units"]) / elapsed
        memory = {name: memory_mb(pid) for name, pid in pids.items()}
        sent = generators.wait()
        health = leader.health()
    leader.stop()
    for listener in (everything, page):
        listener.close()
    runs = {unit: run for one in sent for unit, run in one["runs"].items()}
    stored, missing = leader.count(runs)
    return {
        "cpu": cpu,
        "memory": memory,
        "ingests_cpu": sorted(cpu[name] for name in ingests),
        "stored": stored,
        "missing": missing,
        "health": health,
        "live_ms": sorted(everything.ages_ms),
        "live_dropped": everything.dropped,
        "live_bytes_per_s": everything.bytes / elapsed,
        "page_ms": sorted(page.ages_ms),
        "lags_s": sorted(lag for one in sent for lag in one["lags_s"]),
        "late_s": max(one["late_s"] for one in sent),
        **{name: sum(one[name] for one in sent) for name in ("published", "acknowledged", "rewinds")},
        "connections_lost": sum(one["connections_lost"] for one in sent),
    }


def rows_of(found: dict[str, Any]) -> list[Row]:
    """What a person wants to know of a run."""
    cpu, memory, health = found["cpu"], found["memory"], found["health"]
    lags, live, page = found["lags_s"], found["live_ms"], found["page_ms"]
    lost = found["published"] - found["stored"]
    sent_again = f"blocks sent again: {found['rewinds']} times; the store left out {health['store']['duplicates']}"
    return [
        Row("readings published", found["published"], ""),
        Row("readings in the store, counted after the end", found["stored"], "", note=sent_again),
        Row("readings lost", max(lost, found["missing"]), "", 0.0, note="by count, and by the marks of each run"),
        Row("readings stored twice", max(0, -lost), "", 0.0),
        Row("connections lost", found["connections_lost"], "", 0.0),
        Row("publish to acknowledged commit, p50", percentile(lags, 0.5), "s"),
        Row("publish to acknowledged commit, p99", percentile(lags, 0.99), "s", LAG_LIMIT_S),
        Row("publish to live event, p50", percentile(live, 0.5), "ms", note=f"{len(live)} readings of all units"),
        Row("publish to live event, p99", percentile(live, 0.99), "ms"),
        Row(f"the same of a page that shows {PAGE_UNITS} units, p99", percentile(page, 0.99), "ms"),
        Row(
            "live events dropped", found["live_dropped"] + health["live"]["events_dropped"], "", 0.0,
            note=f"{found['live_bytes_per_s'] / 1e6:.2f} MB/s to who hears all units",
        ),
        Row("messages dropped by the broker", health["ingest"]["broker_dropped"], "", 0.0),
        Row("CPU of the leader", 100.0 * cpu["leader"], "% of a core", 100.0, note="store, ingest, page"),
        *([Row("CPU of the ingest processes", 100.0 * sum(found["ingests_cpu"]), "% of a core", note=", ".join(
            f"{100.0 * one:.1f}" for one in found["ingests_cpu"]))] if found["ingests_cpu"] else []),
        Row("CPU of mosquitto", 100.0 * cpu["broker"], "% of a core"),
        Row(
            "CPU of the simulated units", 100.0 * cpu["units"], "% of a core",
            note=f"not the leader's; at worst {1e3 * found['late_s']:.0f} ms behind their plan",
        ),
        Row("memory of the leader, RSS", memory["leader"]["rss"], "MB", note=f"PSS {memory['leader']['pss']:.1f} MB"),
        Row("memory of mosquitto, RSS", memory["broker"]["rss"], "MB", note=f"PSS {memory['broker']['pss']:.1f} MB"),
    ]  # fmt: skip


def bench_leader(argv: list[str]) -> Result:
    """See the module."""
    parser = parser_for("leader", "Units' readings into one leader: what is stored, how late, at what cost.")
    parser.add_argument("--units", type=int, default=1000, help="simulated bridges (1000)")
    parser.add_argument("--seconds", type=positive, default=60.0, help="how long they measure (60)")
    parser.add_argument("--rate", type=int, default=1, help="readings a second of a unit (1)")
    parser.add_argument("--store", default="", metavar="URL", help="an empty PostgreSQL database (default: SQLite)")
    parser.add_argument("--ingests", type=int, default=0, help="processes that share the storing (0; needs --store)")
    arguments = parser.parse_args(argv)
    if min(arguments.units, arguments.rate) < 1:
        raise BenchError("--units and --rate are at least 1")
    settings = (f"leader.config.ingest_processes={arguments.ingests}",)
    with BenchLeader(arguments.units, arguments.store, settings) as leader:
        found = measure(leader, arguments.seconds, arguments.rate)
    kind = "PostgreSQL" if arguments.store else "SQLite"
    kind += f", {arguments.ingests} ingest processes" if arguments.ingests else ""
    conditions = (
        f"{arguments.units} units, {arguments.rate} reading(s)/s each and a status, {arguments.seconds:g} s; {kind}; "
        f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} CPUs"
    )
    details = {name: value for name, value in found.items() if not isinstance(value, list)}
    return Result("leader", rows_of(found), conditions, details)
