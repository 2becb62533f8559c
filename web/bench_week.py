"""`stirbar bench week`: how long the charts of a week of a hundred units take to come from the store.

What is timed is what the page waits for when it opens an experiment over a week: the API's answer for every stream
that it charts, asked for at once, as bytes of JSON. The store is written in the order in which a leader writes it,
hour by hour over all units, so that the pages of one series lie as far apart as they do there.
"""

from __future__ import annotations

import math
import os
import random
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bottle import request
from stirbar.bridge.blocks import ROLLUP_LEVELS_S
from stirbar.bridge.store import Store, open_store
from stirbar.core.bench import BenchError, Result, Row, parser_for
from stirbar.core.records import STREAM_IDS, STREAMS
from stirbar.web import api
from stirbar.web.app import Site
from stirbar.web.live import Live

LIMIT_MS = 1000.0
WEEK_S, HOUR_S = 604_800, 3600
FINE_HOURS = 1  # the last hour has roll-ups of 10 s too; charts of a day or a week do not read them
STREAM_NAMES = ("od2", "rpm", "temperature", "liquid")  # what a unit with one angle shows
POINTS = 400  # as the page asks for many lines
EXPERIMENT = "week"
START_S = 1_700_000_100  # a multiple of 900


def fill(connection: Any, units: int) -> None:
    """Write the roll-ups of a week, into either database."""
    rng = random.Random(1)
    connection.execute("INSERT INTO experiment (id, name, created_ns) VALUES (1, ?, 0)", (EXPERIMENT,))
    for unit in range(1, units + 1):
        name = f"unit{unit:03d}"
        connection.execute("INSERT INTO unit VALUES (?,?,?,'{}',0)", (unit, rng.randbytes(16), name))
        connection.execute(
            "INSERT INTO run (id, unit, run_id, boot_id, clock_ns, first_seen_ns) VALUES (?,?,?,?,0,0)",
            (unit, unit, rng.randbytes(16), bytes(16)),
        )
    series = [(unit, STREAM_IDS[name]) for name in STREAM_NAMES for unit in range(1, units + 1)]
    connection.executemany(
        "INSERT INTO series VALUES (?,?,?,?,?)",
        [(number, *one, 1, 90 if STREAMS[one[1]].startswith("od") else 0) for number, one in enumerate(series, 1)],
    )
    hours = WEEK_S // HOUR_S
    for hour in range(hours):
        connection.execute("BEGIN")
        for level in ROLLUP_LEVELS_S if hour >= hours - FINE_HOURS else ROLLUP_LEVELS_S[1:]:
            first = (START_S + hour * HOUR_S) // level
            rows = (
                row(number, bucket, level, rng.random())
                for number in range(1, len(series) + 1)
                for bucket in range(first, first + HOUR_S // level)
            )
            if isinstance(connection, sqlite3.Connection):
                connection.executemany(f"INSERT INTO rollup_{level}s VALUES (?,?,?,?,?,?,?,?)", rows)
            else:
                connection.copy(f"rollup_{level}s", rows)
        connection.execute("COMMIT")


def fill_sqlite(path: Path, units: int) -> None:
    """As a leader's file after a week."""
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        fill(connection, units)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def fill_postgres(url: str, units: int) -> None:
    """As a server's database after a week, its statistics gathered."""
    from stirbar.bridge.postgres_link import Link

    link = Link(url)
    try:
        fill(link, units)
        link.execute("ANALYZE")
    finally:
        link.close()


def row(series: int, bucket: int, level: int, noise: float) -> tuple[Any, ...]:
    """A roll-up of ten readings a second, with as many digits as a real one."""
    mean = 0.5 + 0.3 * math.sin(bucket * level / 40_000 + series) + 0.01 * noise
    sequence = (bucket * level - START_S) * 10
    count = 10 * level
    return series, bucket, count, mean - 0.004, mean + 0.005, mean * count, sequence, sequence + count - 1


def ask(site: Site, stream: str, span_s: int) -> int:
    """Bytes of the API's answer for one stream of the experiment."""
    end = START_S + WEEK_S
    query = f"experiment={EXPERIMENT}&stream={stream}&from={end - span_s}&to={end}&points={POINTS}"
    request.bind({"REQUEST_METHOD": "GET", "PATH_INFO": "/api/readings", "QUERY_STRING": query})
    return len(api.readings(site).body.encode())


def opened_ms(site: Site, span_s: int) -> tuple[float, float, int]:
    """All charts at once, each in a thread whose connection caches nothing yet. Returns ms, CPU ms and bytes."""
    found: list[tuple[float, int]] = []

    def run(stream: str) -> None:
        cpu = time.thread_time()
        size = ask(site, stream, span_s)
        found.append((time.thread_time() - cpu, size))

    threads = [threading.Thread(target=run, args=(stream,)) for stream in STREAM_NAMES]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - start
    if len(found) < len(STREAM_NAMES):
        raise BenchError("the API gave no charts")
    return 1e3 * took_s, 1e3 * sum(cpu for cpu, _ in found), sum(size for _, size in found)


def forget(path: Path) -> None:
    """Let the kernel forget what it has of a file, as after a start of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def percentiles(times: list[float]) -> tuple[float, float]:
    """p50 and p99; of few, the last is the largest."""
    times.sort()
    return times[len(times) // 2], times[min(len(times) - 1, math.ceil(0.99 * len(times)) - 1)]


def measure(store: Store, path: Path | None, directory: Path, rounds: int) -> list[Row]:
    """Rows for the week, cold and warm, and for its last day."""
    site = Site(directory, store, None, Live(lambda key: False))
    rows = []
    for name, span_s, limit in (("a week", WEEK_S, LIMIT_MS), ("a day", 86_400, None)):
        for state in ("cold", "warm") if path else ("warm",):
            times, used = [], []
            size = 0
            for _ in range(rounds):
                if state == "cold" and path is not None:
                    forget(path)
                took, cpu, size = opened_ms(site, span_s)
                times.append(took)
                used.append(cpu)
            p50, p99 = percentiles(times)
            note = f"{size / 1e6:.1f} MB of JSON, {rounds} times"
            rows.append(Row(f"charts of {name}, {state}, p50", p50, "ms", note=note))
            rows.append(Row(f"charts of {name}, {state}, p99", p99, "ms"))
            rows.append(Row(f"charts of {name}, {state}, CPU time, p50", percentiles(used)[0], "ms", limit))
    return rows


def bench_week(argv: list[str]) -> Result:
    """See the module."""
    parser = parser_for("week", "Charts of a week of many units.")
    parser.add_argument("--units", type=int, default=100, help="units in the experiment (100)")
    parser.add_argument("--rounds", type=int, default=20, help="how often the charts are opened (20)")
    parser.add_argument("--store", default="", metavar="URL", help="an empty PostgreSQL database (default: SQLite)")
    arguments = parser.parse_args(argv)
    if min(arguments.units, arguments.rounds) < 1:
        raise BenchError("--units and --rounds are at least 1")
    url = arguments.store
    with tempfile.TemporaryDirectory(prefix="stirbar-bench-") as name:
        directory = Path(name)
        path = None if url else directory / "store.sqlite"
        open_store(path or url).close()
        if path is None:
            fill_postgres(url, arguments.units)
        else:
            fill_sqlite(path, arguments.units)
        store = open_store(path or url)
        try:
            rows = measure(store, path, directory, arguments.rounds)
            size = store.counters()["database_bytes"] or 0
        finally:
            store.close()
    kind = "PostgreSQL" if url else "SQLite"
    conditions = f"{arguments.units} units, {len(STREAM_NAMES)} streams, {POINTS} points; {size / 1e6:.0f} MB of {kind}"
    return Result("week", rows, conditions)
