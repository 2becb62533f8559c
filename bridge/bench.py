"""`stirbar bench footprint`, `bridge`, `ingest`, `latency` and `stopped`: what the way from worker to leader costs."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import zmq
from stirbar.bridge.bench_cluster import Cluster, cpu_s, memory_mb, same_program, wait_for
from stirbar.bridge.store import open_store
from stirbar.core import records
from stirbar.core.bench import BenchError, Result, Row, child_environment, parser_for, positive
from stirbar.core.bench_loop import (
    DISTURBED_RATIO,
    THREADS,
    Bins,
    difference,
    medians,
    ratio_rows,
    stopped,
    undisturbed,
)
from stirbar.core.client import Worker
from stirbar.core.records import KIND_JSON, KIND_READINGS, READING, STREAM_IDS, Header

WORKER_RSS_MB, TOGETHER_PSS_MB, CPU_LIMIT_S = 18.0, 36.0, 2.0
PAGE_LIMIT_MS = 100.0
UNITS_AT_1_HZ = 1000.0
SETTLE_S = 5.0
ONE_DIODE = "od_config.photodiode_channel.1="
SYSTEM_PYTHON = "/usr/bin/python3"
OD2 = STREAM_IDS["od2"]
RECORD = READING.pack(
    0, 0, 0, 0.5, 1e-4, 2e-4, 1.0, 0.7, 0.3, 0.5, 0.1, 0.0, 380, 3, 0, 0, OD2, 90, 8, records.RECORD_VERSION
)


# --- footprint -------------------------------------------------------------------------------------------------------


def make_environment(source: str, directory: str) -> str:
    """A virtual environment of the system's Python with stirbar installed as users do; returns its interpreter."""
    if not os.path.exists(SYSTEM_PYTHON):
        raise BenchError(f"{SYSTEM_PYTHON} does not exist; name an interpreter that has stirbar with --python")
    python = os.path.join(directory, "bin", "python")
    steps = [
        [SYSTEM_PYTHON, "-m", "venv", directory],
        [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", source],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, cwd="/", env=child_environment(step))
        if done.returncode:
            raise BenchError(f"{' '.join(step)} failed: {done.stderr.strip()[-300:]}")
    return python


def measure_footprint(python: str, tls: bool, seconds: float, *options: str) -> dict[str, Any]:
    """Memory of worker and bridge at the end, and their CPU seconds per minute, with a leader that listens."""
    with Cluster([python], tls) as cluster:
        processes = {"worker": cluster.run("worker", *options), "bridge": cluster.run("bridge")}
        cluster.until_stored()
        time.sleep(SETTLE_S)
        before = {name: cpu_s(process.pid) for name, process in processes.items()}
        begun, stored = time.monotonic(), cluster.stored()["readings"]
        time.sleep(seconds)
        for process in processes.values():
            cluster.check(process)
        minutes = (time.monotonic() - begun) / 60.0
        found: dict[str, Any] = {name: memory_mb(process.pid) for name, process in processes.items()}
        for name, process in processes.items():
            found[name]["cpu_s_per_minute"] = (cpu_s(process.pid) - before[name]) / minutes
        found["readings_per_second"] = (cluster.stored()["readings"] - stored) / minutes / 60.0
        found["others"] = same_program(processes["worker"].pid) - 1
    return found


def bench_footprint(argv: list[str]) -> Result:
    """`stirbar bench footprint`"""
    parser = parser_for("footprint", "Memory and CPU of worker and bridge, every job running.")
    parser.add_argument(
        "--seconds", type=positive, default=60.0, help="how long they run before they are measured (60)"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter with stirbar installed (this one)")
    parser.add_argument(
        "--install",
        metavar="SOURCE",
        help=f"make a virtual environment of {SYSTEM_PYTHON}, install this source tree there and use it",
    )
    parser.add_argument("--no-tls", action="store_true", help="connect to the broker without TLS")
    arguments = parser.parse_args(argv)
    tls = not arguments.no_tls
    with tempfile.TemporaryDirectory(prefix="stirbar-bench-") as directory:
        python = arguments.python
        if arguments.install:
            python = make_environment(os.path.abspath(arguments.install), directory)
        usual = measure_footprint(python, tls, arguments.seconds)
        one = measure_footprint(python, tls, arguments.seconds, ONE_DIODE)
    where = f"{SYSTEM_PYTHON} in a new virtual environment" if arguments.install else python
    others = f"others of that Python: {usual['others']}"
    conditions = f"{arguments.seconds:g} s, TLS {'on' if tls else 'off'}, {where}; {others}"
    return Result(
        "footprint", footprint_rows(usual, one), conditions, {"reference_and_one": usual, "one": one, "tls": tls}
    )


def footprint_rows(usual: dict[str, Any], one: dict[str, Any]) -> list[Row]:
    """Memory and CPU of worker and bridge against their budgets."""
    worker, bridge = usual["worker"], usual["bridge"]
    both = {key: worker[key] + bridge[key] for key in worker}
    rss_note = f"anonymous {worker['anonymous']:.1f} MB"
    if worker["rss"] > WORKER_RSS_MB:
        rss_note += "; the interpreter and pyzmq with two open sockets are 15 MB of it, whatever we do"
    return [
        Row("worker, RSS", worker["rss"], "MB", WORKER_RSS_MB, note=rss_note),
        Row("bridge, RSS", bridge["rss"], "MB", note=f"anonymous {bridge['anonymous']:.1f} MB"),
        Row(
            "worker and bridge, PSS",
            both["pss"],
            "MB",
            TOGETHER_PSS_MB,
            note="a board's guard adds 0.98 MB (tests/test_guard.py -k small); PSS counts shared pages by their "
            "sharers, so other Pythons lower it",
        ),
        Row(
            "worker and bridge, CPU a minute, one diode",
            one["worker"]["cpu_s_per_minute"] + one["bridge"]["cpu_s_per_minute"],
            "s",
            CPU_LIMIT_S,
            note=f"worker {one['worker']['cpu_s_per_minute']:.2f} s, "
            f"bridge {one['bridge']['cpu_s_per_minute']:.2f} s; {one['readings_per_second']:.1f} readings/s",
        ),
        Row(
            "worker and bridge, CPU a minute, reference and one diode",
            both["cpu_s_per_minute"],
            "s",
            note=f"worker {worker['cpu_s_per_minute']:.2f} s, bridge {bridge['cpu_s_per_minute']:.2f} s; "
            f"{usual['readings_per_second']:.1f} readings/s",
        ),
    ]


# --- bridge ----------------------------------------------------------------------------------------------------------


class LoudWorker:
    """A worker's two sockets with readings at any rate: what the bridge sees of a worker, without the vial behind it.

    Synchronization: one thread.
    """

    def __init__(self, address: str, unit: str, unit_id: bytes) -> None:
        self.unit, self.unit_id = unit, unit_id
        self.run_id, self.boot_id = os.urandom(16), os.urandom(16)
        self.sent = 0
        self.subscribed = False
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._telemetry = self._context.socket(zmq.XPUB)  # tells when the bridge has subscribed
        self._telemetry.sndhwm = 0
        self._command = self._context.socket(zmq.ROUTER)
        path = address.removeprefix("ipc://")
        os.makedirs(path, exist_ok=True)
        self._telemetry.bind(f"{address}/telemetry")
        self._command.bind(f"{address}/command")

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _header(self, kind: int, stream: int, size: int, count: int, first: int) -> bytes:
        now, real = time.monotonic_ns(), time.time_ns()
        return Header(
            kind, stream, size, count, first, self.unit_id, self.run_id, self.boot_id, now, now, real, "bench"
        ).pack()

    def answer(self) -> None:
        """Reply to what the bridge asks: who this is; nothing else is known here."""
        while self._command.poll(0):
            *envelope, body = self._command.recv_multipart()
            request = json.loads(body)
            result: dict[str, object] = {}
            if request.get("command") == "describe":
                result = {
                    "unit": self.unit,
                    "unit_id": self.unit_id.hex(),
                    "run_id": self.run_id.hex(),
                    "boot_id": self.boot_id.hex(),
                    "experiment": "bench",
                    "channels": [],
                    "jobs": {},
                }
            reply = {"id": request.get("id"), "ok": bool(result), "result": result, "error": {"message": "not known"}}
            self._command.send_multipart([*envelope, json.dumps(reply).encode()])

    def heard(self) -> bool:
        """Whether somebody subscribes now."""
        while self._telemetry.poll(0):
            self.subscribed = self._telemetry.recv()[:1] == b"\x01"
        return self.subscribed

    def read(self) -> None:
        """Publish the next reading."""
        wall = time.time_ns()
        record = READING.pack(self.sent, wall, wall, *READING.unpack(RECORD)[3:])
        packed = self._header(KIND_READINGS, OD2, READING.size, 1, self.sent)
        self._telemetry.send_multipart([b"reading/od2", packed, record])
        self.sent += 1

    def heartbeat(self) -> None:
        """Publish a status, as once a second."""
        body = {
            "unit": self.unit,
            "run_id": self.run_id.hex(),
            "jobs": {},
            "counters": {},
            "sequences": {"od2": self.sent},
        }
        header = self._header(KIND_JSON, STREAM_IDS["status"], 0, 1, 0)
        self._telemetry.send_multipart([b"status", header, json.dumps(body).encode()])

    def play(self, rate_hz: float, seconds: float) -> None:
        """Readings at a rate, in bursts of 20 ms, with heartbeats and answers between."""
        begun = time.monotonic()
        start, beats = self.sent, 0
        while (elapsed := time.monotonic() - begun) < seconds:
            while self.sent - start < rate_hz * elapsed:
                self.read()
            if elapsed >= beats:
                beats += 1
                self.heartbeat()
            self.answer()
            time.sleep(0.02)
        self.heartbeat()


def bench_bridge(argv: list[str]) -> Result:
    """`stirbar bench bridge`"""
    parser = parser_for("bridge", "CPU of the bridge per message, live and stored, up to the leader's acknowledgement.")
    parser.add_argument("--rate", type=positive, default=1000.0, help="messages a second, one reading each (1000)")
    parser.add_argument("--seconds", type=positive, default=20.0, help="measuring time of each rate (20)")
    parser.add_argument("--tls", action="store_true", help="connect to the broker with TLS")
    arguments = parser.parse_args(argv)
    with Cluster(tls=arguments.tls) as cluster:
        worker = LoudWorker(cluster.address, cluster.unit, cluster.unit_id)
        try:
            bridge = cluster.run("bridge")
            wait_for(lambda: worker.heard() or bridge.poll() is not None, "the bridge's subscription")
            cluster.check(bridge)
            usual = play(cluster, worker, bridge.pid, 20.0, arguments.seconds)
            fast = play(cluster, worker, bridge.pid, arguments.rate, arguments.seconds)
            wait_for(lambda: cluster.stored()["readings"] >= worker.sent, "the storing of every reading")
            cluster.check(bridge)
            lost = cluster.stored()["lost"]
        finally:
            worker.close()
    rows = [
        Row("CPU a minute at 20 messages/s", usual["cpu_s"] / usual["seconds"] * 60.0, "s"),
        Row(
            f"CPU of a message at {arguments.rate:g}/s, live and stored",
            1e6 * fast["cpu_s"] / fast["messages"],
            "µs",
            note="from ZeroMQ to the live topic, the spool, the stored block and its acknowledgement",
        ),
        Row("messages a second of one core", fast["messages"] / fast["cpu_s"], "/s"),
        Row(
            "CPU of a second's block at 20 messages/s",
            1e3 * usual["cpu_s"] / usual["seconds"],
            "ms",
            note="everything that the bridge does in a second, its timers included",
        ),
        Row("readings lost", lost, "", 0, note=f"{worker.sent} published"),
    ]
    return Result(
        "bridge",
        rows,
        f"{arguments.seconds:g} s at each rate, TLS {'on' if arguments.tls else 'off'}",
        {"usual": usual, "fast": fast},
    )


def play(cluster: Cluster, worker: LoudWorker, pid: int, rate_hz: float, seconds: float) -> dict[str, float]:
    """Let the worker publish at a rate, and return what the process `pid` spent on it."""
    begun, cpu, sent = time.monotonic(), cpu_s(pid), worker.sent
    worker.play(rate_hz, seconds)
    return {"seconds": time.monotonic() - begun, "cpu_s": cpu_s(pid) - cpu, "messages": worker.sent - sent}


# --- ingest ----------------------------------------------------------------------------------------------------------


def block(unit_id: bytes, run_id: bytes, first: int, count: int, begin_ns: int) -> tuple[Header, bytes]:
    """One second of a stream as a unit stores it."""
    tail = READING.unpack(RECORD)[3:]
    step_ns = 1_000_000_000 // count
    body = b"".join(
        READING.pack(first + i, begin_ns + i * step_ns, begin_ns + i * step_ns, *tail) for i in range(count)
    )
    return Header(
        KIND_READINGS, OD2, READING.size, count, first, unit_id, run_id, bytes(16), 0, 0, begin_ns, "bench"
    ), body


def bench_ingest(argv: list[str]) -> Result:
    """`stirbar bench ingest`"""
    parser = parser_for("ingest", "Readings a second into the leader's store.")
    parser.add_argument("--units", type=int, default=100, help="units (100)")
    parser.add_argument("--seconds", type=int, default=30, help="seconds of readings, one commit each (30)")
    parser.add_argument("--per-second", type=int, default=10, help="readings of a unit in a second, one block (10)")
    arguments = parser.parse_args(argv)
    if min(arguments.units, arguments.seconds, arguments.per_second) < 1:
        raise BenchError("--units, --seconds and --per-second are at least 1")
    units = [(os.urandom(16), os.urandom(16)) for _ in range(arguments.units)]
    start_ns = time.time_ns() // 1_000_000_000 * 1_000_000_000
    with tempfile.TemporaryDirectory(prefix="stirbar-bench-") as directory:
        path = pathlib.Path(directory) / "store.sqlite"
        store = open_store(path)
        empty = path.stat().st_size
        wall_s = used_s = 0.0
        for second in range(arguments.seconds):
            blocks = [
                block(unit, run, second * arguments.per_second, arguments.per_second, start_ns + second * 1_000_000_000)
                for unit, run in units
            ]
            begun, cpu = time.monotonic(), time.process_time()
            for header, body in blocks:
                store.add(header, body)
            store.commit()
            wall_s += time.monotonic() - begun
            used_s += time.process_time() - cpu
        stored = store.counters()["readings"]
        store.close()
        size = path.stat().st_size - empty
    rows = [
        Row(
            "readings of one CPU second",
            stored / used_s,
            "/s",
            UNITS_AT_1_HZ,
            at_least=True,
            note="the budget is 1000 units at 1 Hz; MQTT's share is in `stirbar bench bridge`",
        ),
        Row("readings a second, wall time", stored / wall_s, "/s"),
        Row("CPU of a reading", 1e6 * used_s / stored, "µs"),
        Row("bytes of a reading on disk", size / stored, "B", note="roll-ups and indexes included"),
    ]
    return Result(
        "ingest", rows, f"{arguments.units} units, {stored} readings in {arguments.seconds} commits; SQLite, WAL"
    )


# --- latency ---------------------------------------------------------------------------------------------------------


def bench_latency(argv: list[str]) -> Result:
    """`stirbar bench latency`"""
    parser = parser_for("latency", "From the end of a reading's window to the leader's live listeners.")
    parser.add_argument("--seconds", type=positive, default=30.0, help="measuring time (30)")
    arguments = parser.parse_args(argv)
    delays: dict[str, list[float]] = {}
    lock = threading.Lock()

    def heard(kind: str, unit: str, item: dict[str, Any]) -> None:
        if kind == "reading":
            with lock:
                delays.setdefault(str(item["stream"])[:2], []).append(1e3 * (time.time() - float(item["t"])))

    with Cluster() as cluster:
        cluster.run("worker")
        cluster.run("bridge")
        cluster.until_stored()
        assert cluster.ingest is not None
        end = cluster.ingest.listen(heard)
        time.sleep(arguments.seconds)
        end()
    rows = []
    for name, title in (("od", "optical density"), ("rp", "rpm"), ("te", "temperature")):
        sorted_ms = sorted(delays.get(name, []))
        if not sorted_ms:
            raise BenchError(f"no live reading of {title} came in {arguments.seconds:g} s")
        p50, p99 = sorted_ms[len(sorted_ms) // 2], sorted_ms[min(len(sorted_ms) - 1, int(0.99 * len(sorted_ms)))]
        rows.append(
            Row(
                f"{title}: end of window to the leader's listeners, p99",
                p99,
                "ms",
                PAGE_LIMIT_MS if name == "od" else None,
                note=f"median {p50:.1f} ms of {len(sorted_ms)}; the browser's part is not in it",
            )
        )
    return Result("latency", rows, f"{arguments.seconds:g} s, worker, bridge, mosquitto and ingest on one machine")


# --- stopped ---------------------------------------------------------------------------------------------------------


def lateness_now(worker: Worker) -> Any:
    """The worker's lateness histograms so far: {thread: counts}."""
    return {name: found["counts"] for name, found in worker.status()["lateness"].items()}


def bench_stopped(argv: list[str]) -> Result:
    """`stirbar bench stopped`"""
    parser = parser_for("stopped", "Lateness of a worker's loop while bridge and broker are stopped.")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of one slice undisturbed, one disturbed (8)")
    parser.add_argument("--slice", type=positive, default=4.0, help="seconds of one slice (4)")
    parser.add_argument(
        "--stop", type=int, action="append", default=[], metavar="PID", help="stop this process too; repeatable"
    )
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        raise BenchError("--rounds is at least 1")
    slices: dict[bool, list[dict[str, Bins]]] = {False: [], True: []}
    with Cluster() as cluster:
        cluster.run("worker", "loop.config.control_period_ms=1")
        bridge = cluster.run("bridge")
        cluster.until_stored()
        processes = [bridge.pid, *([cluster.broker.pid] if cluster.broker.pid else []), *arguments.stop]
        with Worker(cluster.address) as worker:
            for number in range(2 * arguments.rounds):
                disturbed = number % 2 == 1
                with stopped(processes) if disturbed else undisturbed():
                    before = lateness_now(worker)
                    time.sleep(arguments.slice)
                    after = lateness_now(worker)
                slices[disturbed].append({name: difference(after[name], before[name]) for name in THREADS})
            counters = worker.status()["counters"]
        wait_for(lambda: cluster.stored()["readings"] > 0 and cluster.heard()["connected"] > 0, "the leader's return")
    quiet, with_stopped = medians(slices[False]), medians(slices[True])
    title = "bridge and broker under SIGSTOP, of undisturbed"
    rows = [
        *ratio_rows(with_stopped, quiet, title, DISTURBED_RATIO),
        Row("readings that found the loop's ring full", counters["ring_drops"], "", 0),
    ]
    conditions = f"a worker of its own process, {arguments.rounds} x {arguments.slice:g} s each, alternating"
    return Result("stopped", rows, conditions, {"undisturbed_us": quiet, "stopped_us": with_stopped})
