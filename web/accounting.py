"""What the demo's workers made, and what of it the leader has: every reading, by unit, run and stream."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import zmq
from stirbar.core.records import KIND_JSON, READING_STREAMS, STREAM_IDS, Header

Key = tuple[str, str, int]  # unit_id and run_id in hexadecimal digits, stream
TOPICS = (b"reading/", b"status")


class Tally:
    """Listens to the telemetry of all workers and remembers how far each stream of each run has come.

    Sequence numbers are absolute, so a message that this listener missed changes nothing once a later one came.

    Synchronization: none; one thread.
    """

    def __init__(self) -> None:
        self.ends: dict[Key, int] = {}
        self.status: dict[str, dict[str, Any]] = {}  # run_id: its latest status
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.rcvhwm = 0
        self._socket.linger = 0
        for topic in TOPICS:
            self._socket.subscribe(topic)

    def connect(self, address: str) -> None:
        """Listen to one more worker; it may start later, and again."""
        self._socket.connect(f"{address}/telemetry")

    def listen(self, seconds: float) -> int:
        """Take what comes within this time, at most; returns how many messages came."""
        count = 0
        while self._socket.poll(0 if count else int(seconds * 1000)):
            self._take(*self._socket.recv_multipart())
            count += 1
        return count

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _take(self, topic: bytes, packed: bytes, payload: bytes) -> None:
        header = Header.unpack(packed)[0]
        if header.kind == KIND_JSON:
            if topic == b"status":
                self.add_status(header.unit_id.hex(), json.loads(payload))
        elif header.stream in READING_STREAMS:
            self._raise((header.unit_id.hex(), header.run_id.hex(), header.stream), header.end_sequence)

    def add_status(self, unit_id: str, status: dict[str, Any]) -> None:
        """What a worker says of itself (docs/protocol.md, `status`)."""
        self.status[status["run_id"]] = status
        for name, end in status.get("sequences", {}).items():
            stream = STREAM_IDS.get(name)
            if stream in READING_STREAMS and end:
                self._raise((unit_id, status["run_id"], stream), end)

    def _raise(self, key: Key, end: int) -> None:
        self.ends[key] = max(self.ends.get(key, 0), end)

    def published(self) -> int:
        """Readings that the workers have made so far."""
        return sum(self.ends.values())

    def overruns(self) -> int:
        """Ticks that came too late, over all loops and runs."""
        return sum(int(status["counters"]["overruns"]) for status in self.status.values())

    def lateness_us(self, percent: float) -> float | None:
        """A percentile of the lateness over all loops and runs, in microseconds; None before the first tick."""
        bins: dict[int, int] = {}  # upper edge in ns: count
        for status in self.status.values():
            for histogram in status.get("lateness", {}).values():
                for _, high_ns, count in histogram["counts"]:
                    bins[high_ns] = bins.get(high_ns, 0) + count
        return percentile_us(bins, percent)


def percentile_us(bins: dict[int, int], percent: float) -> float | None:
    """The upper edge, in µs, of the bin that holds this percentile; `bins` are counts by upper edge in ns."""
    left = sum(bins.values()) * percent / 100.0
    for edge in sorted(bins):
        left -= bins[edge]
        if left <= 0:
            return edge / 1000.0
    return None


class Stored:
    """What a store's database holds, read beside the leader that writes it.

    Synchronization: none; one thread.
    """

    def __init__(self, database: Path) -> None:
        self.database = database

    def covered(self) -> dict[Key, int]:
        """How far each stream of each run is committed, or known as a gap, without a hole from its beginning."""
        rows = self._rows(
            "SELECT lower(hex(unit.unit_id)), lower(hex(run.run_id)), coverage.stream, coverage.end_sequence "
            "FROM coverage JOIN run ON run.id = coverage.run JOIN unit ON unit.id = run.unit "
            "WHERE coverage.first_sequence = 0"
        )
        return {(unit, run, stream): end for unit, run, stream, end in rows if stream in READING_STREAMS}

    def readings(self) -> dict[Key, tuple[int, int]]:
        """Of each stream of each run the number of readings, and one past the highest sequence number."""
        rows = self._rows(
            "SELECT lower(unit_id), lower(run_id), stream, count(*), max(sequence) + 1 FROM readings GROUP BY 1, 2, 3"
        )
        return {(unit, run, stream): (count, end) for unit, run, stream, count, end in rows}

    def gaps(self) -> dict[tuple[str, str], int]:
        """Number of gaps that units announced in their readings, by unit_id and run_id."""
        marks = ",".join("?" * len(READING_STREAMS))
        rows = self._rows(
            "SELECT lower(hex(unit.unit_id)), lower(hex(run.run_id)), count(*) FROM gap JOIN run ON run.id = gap.run "
            f"JOIN unit ON unit.id = run.unit WHERE stream IN ({marks}) GROUP BY 1, 2",
            READING_STREAMS,
        )
        return {(unit, run): count for unit, run, count in rows}

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        if not self.database.exists():
            return []
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=2.0)) as connection:
            try:
                return connection.execute(query, values).fetchall()
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):  # the leader is just making it
                    return []
                raise
