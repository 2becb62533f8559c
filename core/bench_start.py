"""`stirbar bench start`: from the start of a worker's process to its first readings, seen by a subscriber."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import zmq
from stirbar.core.bench import BenchError, Result, Row, child_environment, parser_for
from stirbar.core.records import READING, READING_FIELDS, STREAMS, Header

START_LIMIT_S = 0.5
GIVE_UP_S = 30.0
VALUE = READING_FIELDS.index("value")


@contextmanager
def running_worker(
    directory: str, options: list[str], python: list[str]
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A simulated worker with its files in a directory: its process and its base address. It ends with the block."""
    address = f"ipc://{directory}/w"
    settings = [
        "unit.name=bench",
        f"unit.data_directory={directory}/data",
        f"unit.runtime_directory={directory}",
        f"worker.config.address={address}",
        *options,
    ]
    command = [*python, "-m", "stirbar.core.cli", "worker", "--simulate"]
    for setting in settings:
        command += ["--set", setting]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=child_environment(python))
    try:
        yield process, address
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def subscribe(context: zmq.Context[zmq.Socket[bytes]], address: str, topic: bytes) -> zmq.Socket[bytes]:
    """A subscriber that is there before the worker is, and tries again every 2 ms."""
    socket = context.socket(zmq.SUB)
    socket.linger = 0
    socket.reconnect_ivl = 2
    socket.subscribe(topic)
    socket.connect(f"{address}/telemetry")
    return socket


def first_readings(options: list[str], python: list[str]) -> dict[str, float]:
    """Seconds from the start of the process to the first reading of each kind, `od` with a value."""
    seen: dict[str, float] = {}
    with (
        tempfile.TemporaryDirectory(prefix="stirbar-bench-") as directory,
        zmq.Context() as context,
        subscribe(context, f"ipc://{directory}/w", b"reading/") as socket,
    ):
        begun = time.monotonic()
        with running_worker(directory, options, python) as (process, _):
            while "od" not in seen:
                if not socket.poll(100):
                    if process.poll() is not None or time.monotonic() - begun > GIVE_UP_S:
                        raise BenchError("the worker made no reading of optical density")
                    continue
                _, packed, payload = socket.recv_multipart()
                at = time.monotonic() - begun
                name = STREAMS[Header.unpack(packed)[0].stream]
                seen.setdefault("any", at)
                value = READING.unpack_from(payload)[VALUE]
                if name.startswith("od") and value == value:
                    seen["od"] = at
    return seen


def bench_start(argv: list[str]) -> Result:
    """`stirbar bench start`"""
    parser = parser_for("start", "From process start to the first reading.")
    parser.add_argument("--runs", type=int, default=7, help="starts; the median counts (7)")
    parser.add_argument("--python", default=sys.executable, help="interpreter with stirbar installed (this one)")
    arguments = parser.parse_args(argv)
    if arguments.runs < 1:
        raise BenchError("--runs is at least 1")
    runs = [first_readings([], [arguments.python]) for _ in range(arguments.runs)]
    first = [run["od"] for run in runs]
    rows = [
        Row(
            "process start to first reading of optical density",
            median(first),
            "s",
            START_LIMIT_S,
            note=f"{min(first):.2f} to {max(first):.2f} s",
        ),
        Row("process start to first reading of anything", median(run["any"] for run in runs), "s"),
    ]
    interpreter = os.path.basename(arguments.python)
    return Result("start", rows, f"median of {arguments.runs} starts, {interpreter}", {"runs": runs})
