"""The store in one SQLite file (WAL): readings as rows of about 100 bytes, raw as chunks, roll-ups beside them.

Streams are committed with `synchronous = NORMAL`: a power cut may take the last seconds, and their marks with
them, so the units send them again (acknowledged data stay in their spools). What people enter is committed with FULL.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import sqlite3
import threading
import time
from contextlib import contextmanager

from stirbar.bridge import blocks, sqlite_thin
from stirbar.bridge.blocks import (
    CLOCK_CORRECTED,
    ROLLUP_LEVELS_S,
    SEQUENCE_BITS,
    WALL_TOLERANCE_NS,
    Bucket,
    Coverage,
)
from stirbar.bridge.sqlite_check import MIGRATIONS, migration_steps
from stirbar.bridge.sqlite_clock import BOOT_UPSERT, Clock
from stirbar.bridge.sqlite_nodes import SqliteNodes, vitals_row
from stirbar.bridge.sqlite_rows import COUNTERS, Pending, write_coverage
from stirbar.bridge.store import StoreError, StoreUnavailable
from stirbar.core.records import KIND_GAP, KIND_JSON, KIND_RAW_CHUNK, KIND_READINGS, READING_FIELDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from stirbar.bridge.store import Marks
    from stirbar.core.records import Header

PENDING_LIMIT_BYTES = 64 << 20  # what waits in memory while the database cannot be written

_FLAG_BITS, _EXPERIMENT, _ANGLE, _HALF_CYCLE = (
    READING_FIELDS.index(name) for name in ("flags", "experiment", "angle", "half_cycle")
)


class SqliteStore(SqliteNodes):
    """See `Store`. One connection writes under a lock; every reading thread has a connection of its own.

    An flock on `<path>.lock` keeps a second leader away from the same file.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(path)
        self._open_lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._flock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"database {path} cannot be made: {error.strerror}") from None
        try:
            fcntl.flock(self._flock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._flock)
            raise StoreError(f"database {path} is in use by another leader: stop it, or name another file") from None
        try:
            self._writer: Any = self._connect()
            self._writer.execute("PRAGMA journal_mode = WAL")
            self._migrate()
            self._load()
        except sqlite3.Error as error:
            os.close(self._flock)
            raise StoreError(f"database {path} cannot be used: {error}") from None
        except StoreError:
            os.close(self._flock)
            raise

    # Opening

    def _open_lock(self) -> None:
        self._lock = threading.RLock()  # protects the writing connection, what waits, the counters and the ids

    def _migrate(self) -> None:
        """Run the numbered migrations that the file has not seen, each in a transaction with its version."""
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        steps = migration_steps(MIGRATIONS)
        if version > steps[-1][0]:
            raise StoreError(
                f"database {self.name} has schema version {version}, this stirbar knows {steps[-1][0]}: update stirbar"
            )
        if version == 0 and self._writer.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            raise StoreError(f"{self.path} is a database of something else: name another file")
        for number, step in steps:
            if number > version:
                script = step.read_text(encoding="utf-8")
                try:
                    self._writer.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version = {number};\nCOMMIT;")
                except sqlite3.Error:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise

    def _load(self) -> None:
        """The small tables' ids. They are given out in memory, ahead of the commit: this is the only writer."""
        execute = self._writer.execute
        self._pending = Pending()
        self._counters = dict.fromkeys(COUNTERS, 0)
        self._last_error = ""
        self._last_commit_s = 0.0
        (self._epoch,) = execute("SELECT epoch FROM leadership").fetchone()
        self._units: dict[bytes, int] = {row[1]: row[0] for row in execute("SELECT id, unit_id FROM unit")}
        self._experiments: dict[str, int] = {row[1]: row[0] for row in execute("SELECT id, name FROM experiment")}
        self._runs: dict[tuple[bytes, bytes], tuple[int, int]] = {}  # (id, clock_ns); filled as they are met
        self._run_keys: dict[int, tuple[bytes, bytes]] = {}
        self._series: dict[tuple[int, int, int, int], int] = {}
        self._coverage: dict[tuple[int, int], Coverage] = {}
        self._marks: dict[tuple[int, int], int] = {}  # committed
        self._new: list[tuple[str, tuple[Any, ...]]] = []  # inserts of small tables that are not committed yet
        self._clock = Clock(execute("SELECT unit_id, boot_id, zero_ns FROM boot JOIN unit ON unit.id = boot.unit"))
        self._next: dict[str, int] = {
            table: execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0]
            for table in ("unit", "run", "experiment", "series", "event")
        }

    # Writing

    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        with self._lock:
            with self._transaction("FULL"):
                self._writer.execute("UPDATE leadership SET epoch = ?", (epoch,))
            self._epoch = epoch

    def add(self, header: Header, payload: bytes) -> None:
        content = blocks.check_block(header, payload)
        with self._lock, self._readable():
            if self._pending.size + len(payload) > PENDING_LIMIT_BYTES:
                self._counters["refused_blocks"] += 1
                raise StoreUnavailable(f"{self._pending.size >> 20} MiB wait for a commit ({self._last_error})")
            self._take(header, payload, content)

    def _take(self, header: Header, payload: bytes, content: list[Any]) -> None:
        """Put what is new of a block that was checked with what waits for the commit. Lock held."""
        clock_ns = header.realtime_ns - header.monotonic_ns
        run, clock_ns = self._run(header, clock_ns)
        coverage = self._covered(run, header.stream)
        new = coverage.missing(header.first_sequence, header.end_sequence)
        self._counters["duplicates"] += header.count - sum(end - first for first, end in new)
        if not new:
            return
        if header.kind == KIND_READINGS:
            self._add_readings(header, run, clock_ns, content, new)
        elif header.kind == KIND_JSON and header.stream == blocks.VITALS_STREAM:
            self._add_vitals(header, run, content, new)
        elif header.kind == KIND_JSON:
            self._add_events(header, run, content, new)
        elif header.kind == KIND_RAW_CHUNK:
            self._add_chunk(header, run, payload)
        elif header.kind == KIND_GAP:
            self._add_gap(header, run, content[0], new)
        self._cover(run, header, len(payload))

    def add_gap(self, header: Header, reason: str) -> None:
        blocks.check_header(header)
        with self._lock, self._readable():
            run, _ = self._run(header, header.realtime_ns - header.monotonic_ns)
            new = self._covered(run, header.stream).missing(header.first_sequence, header.end_sequence)
            self._add_gap(header, run, blocks.plain(reason), new)
            self._cover(run, header, 0)

    def _cover(self, run: int, header: Header, size: int) -> None:
        self._covered(run, header.stream).add(header.first_sequence, header.end_sequence)
        self._pending.touched.add((run, header.stream))
        self._pending.size += size + 200

    def _add_readings(
        self, header: Header, run: int, clock_ns: int, records: list[Any], new: list[tuple[int, int]]
    ) -> None:
        rows = self._pending.readings
        rollups = self._pending.rollups
        zero_ns = self._clock.zero_ns(header)
        low_ns, high_ns = blocks.TIME_END_NS, -blocks.TIME_END_NS
        first_sequence = header.first_sequence
        span_ns = ROLLUP_LEVELS_S[0] * 1_000_000_000
        series_of = {angle: self._series_id(run, header, angle) for angle in {record[_ANGLE] for record in records}}
        for first, end in new:
            for record in records[first - first_sequence : end - first_sequence]:
                sequence, monotonic_ns, wall_ns, value = record[:4]
                series = series_of[record[_ANGLE]]
                flags = record[_FLAG_BITS]
                rest_ns = wall_ns - monotonic_ns
                if zero_ns is not None and abs(rest_ns - zero_ns) > WALL_TOLERANCE_NS:
                    rest_ns = zero_ns
                    wall_ns = monotonic_ns + zero_ns
                    flags |= CLOCK_CORRECTED
                if rest_ns < low_ns:
                    low_ns = rest_ns
                if rest_ns > high_ns:
                    high_ns = rest_ns
                rows.append(
                    (series << SEQUENCE_BITS | sequence, wall_ns, rest_ns - clock_ns, value)
                    + record[4:_FLAG_BITS]
                    + (flags, record[_HALF_CYCLE])
                )
                key = (series, wall_ns // span_ns)
                bucket = rollups.get(key)
                if bucket is None:
                    bucket = rollups[key] = Bucket(sequence)
                bucket.add(value, sequence)
            self._counters["readings"] += end - first
        self._clock.saw(run, low_ns, high_ns)

    def _add_events(self, header: Header, run: int, events: list[Any], new: list[tuple[int, int]]) -> None:
        series = self._series_id(run, header, 0)
        unit = self._units[header.unit_id]
        for first, end in new:
            for sequence in range(first, end):
                event = events[sequence - header.first_sequence]
                wall_ns = self._clock.wall_ns(
                    header, event.get("wall_ns", header.realtime_ns), event.get("monotonic_ns", header.monotonic_ns)
                )
                self._pending.events.append(self._event_row(wall_ns, unit, series, sequence, event))
            self._counters["events"] += end - first

    def _add_vitals(self, header: Header, run: int, figures: list[Any], new: list[tuple[int, int]]) -> None:
        series = self._series_id(run, header, 0)
        unit = self._units[header.unit_id]
        zero_ns = self._clock.zero_ns(header)
        for first, end in new:
            for sequence in range(first, end):
                told = figures[sequence - header.first_sequence]
                row = vitals_row(series, sequence, unit, header, told, zero_ns)
                self._clock.saw(run, row[3] - row[4], row[3] - row[4])
                wall_ns = self._clock.wall_ns(header, row[3], row[4])
                self._pending.vitals.append((*row[:3], wall_ns, *row[4:]))
            self._counters["vitals"] += end - first

    def _event_row(
        self, wall_ns: int, unit: int | None, series: int | None, sequence: int | None, event: dict[str, Any]
    ) -> tuple[Any, ...]:
        level = event.get("level") if event.get("level") in blocks.LEVELS else "info"
        texts = [blocks.plain(event.get(name)) for name in ("source", "code", "message")]
        number = self._take_id("event")
        return (number, wall_ns, unit, series, sequence, level, *texts, json.dumps(event))

    def _add_chunk(self, header: Header, run: int, payload: bytes) -> None:
        series = self._series_id(run, header, 0)
        wall_ns = self._clock.wall_ns(header, header.realtime_ns, header.monotonic_ns)
        clocks = (header.raw_ns, header.monotonic_ns, wall_ns)
        self._pending.chunks.append((series, header.first_sequence, header.count, *clocks, payload))
        self._counters["raw_chunks"] += 1

    def _add_gap(self, header: Header, run: int, reason: str, new: list[tuple[int, int]]) -> None:
        now_ns = time.time_ns()
        for first, end in new:
            self._pending.gaps.append((run, header.stream, first, end - first, reason, now_ns))
            self._counters["gaps"] += 1
            self._counters["lost"] += end - first

    def commit(self) -> Marks:
        with self._lock:
            if not self._pending.size and not self._new and not self._clock.due:
                return {}
            start = time.monotonic()
            with self._transaction("NORMAL"):
                self._prepare()
                pending = self._pending
                self._write(pending)
                write_coverage(self._writer, {key: self._coverage[key] for key in pending.touched})
                self._clock.write(self._writer, self._units)
            self._pending = Pending()
            self._clock.written()
            self._counters["commits"] += 1
            self._last_commit_s = time.monotonic() - start
            moved = {}
            for run, stream in pending.touched:
                coverage = self._coverage[run, stream]
                coverage.kept = coverage.beginnings
                mark = coverage.mark
                if self._marks.get((run, stream), 0) != mark:
                    self._marks[run, stream] = mark
                    moved[(*self._run_keys[run], stream)] = mark
            return moved

    def _prepare(self) -> None:
        """What is to be done within the transaction of a commit before anything is written."""

    def _write(self, pending: Pending) -> None:
        pending.write(self._writer)

    @contextmanager
    def _transaction(self, synchronous: str) -> Iterator[None]:
        """One transaction of the writing connection, the small tables' new rows first. Lock held."""
        if self._closed:
            raise StoreError(f"database {self.name} is closed")
        try:
            self._begin(synchronous)
            for statement, values in self._new:
                self._writer.execute(statement, values)
            yield
            self._end()
        except self.ERROR as error:
            self._roll_back()
            self._counters["commit_failures"] += 1
            self._last_error = str(error)
            raise StoreUnavailable(f"database {self.name} cannot be written now: {error}") from None
        except BaseException:
            self._roll_back()
            raise
        self._new.clear()

    def _begin(self, synchronous: str) -> None:
        self._writer.execute(f"PRAGMA synchronous = {synchronous}")
        self._writer.execute("BEGIN IMMEDIATE")

    def _end(self) -> None:
        self._writer.execute("COMMIT")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What SQLite refuses while ids and marks are looked up is a StoreUnavailable."""
        try:
            yield
        except self.ERROR as error:
            raise StoreUnavailable(f"database {self.name} cannot be read now: {error}") from None

    def _roll_back(self) -> None:
        # a full disk or an I/O error may have rolled back already
        if self._writer.in_transaction:
            self._writer.execute("ROLLBACK")

    # The small tables' ids, given out in memory. Lock held.

    def _take_id(self, table: str) -> int:
        number = self._next[table]
        self._next[table] = number + 1
        return number

    def _unit(self, unit_id: bytes) -> int:
        number = self._units.get(unit_id)
        if number is None:
            number = self._units[unit_id] = self._take_id("unit")
            values = (number, unit_id, unit_id.hex(), time.time_ns())
            self._new.append(("INSERT INTO unit (id, unit_id, name, first_seen_ns) VALUES (?,?,?,?)", values))
        return number

    def _experiment(self, name: str) -> int:
        number = self._experiments.get(name)
        if number is None:
            number = self._experiments[name] = self._take_id("experiment")
            values = (number, name, time.time_ns())
            self._new.append(("INSERT INTO experiment (id, name, created_ns) VALUES (?,?,?)", values))
        return number

    def _run(self, header: Header, clock_ns: int) -> tuple[int, int]:
        """(id, clock_ns) of the header's run."""
        found = self._find_run(header.unit_id, header.run_id)
        if found is None:
            key = (header.unit_id, header.run_id)
            found = self._runs[key] = (self._take_id("run"), clock_ns)
            self._run_keys[found[0]] = key
            values = (found[0], self._unit(header.unit_id), header.run_id, header.boot_id, clock_ns, time.time_ns())
            columns = "id, unit, run_id, boot_id, clock_ns, first_seen_ns"
            self._new.append((f"INSERT INTO run ({columns}) VALUES (?,?,?,?,?,?)", values))
        return found

    def _find_run(self, unit_id: bytes, run_id: bytes) -> tuple[int, int] | None:
        key = (unit_id, run_id)
        found = self._runs.get(key)
        if found is None and unit_id in self._units:
            row = self._writer.execute(
                "SELECT id, clock_ns FROM run WHERE unit = ? AND run_id = ?", (self._units[unit_id], run_id)
            ).fetchone()
            if row is not None:
                found = self._runs[key] = (row[0], row[1])
                self._run_keys[row[0]] = key
        return found

    def _series_id(self, run: int, header: Header, angle: int) -> int:
        key = (run, header.stream, self._experiment(header.experiment.replace("\0", "�")), angle)
        number = self._series.get(key)
        if number is None:
            row = self._writer.execute(
                "SELECT id FROM series WHERE run = ? AND stream = ? AND experiment = ? AND angle = ?", key
            ).fetchone()
            if row is not None:
                number = row[0]
            else:
                number = self._take_id("series")
                self._new.append(("INSERT INTO series VALUES (?,?,?,?,?)", (number, *key)))
            self._series[key] = number
        return int(number)

    def _covered(self, run: int, stream: int) -> Coverage:
        coverage = self._coverage.get((run, stream))
        if coverage is None:
            rows = self._writer.execute(
                "SELECT first_sequence, end_sequence FROM coverage WHERE run = ? AND stream = ?", (run, stream)
            ).fetchall()
            coverage = self._coverage[run, stream] = Coverage(rows)
            self._marks[run, stream] = coverage.mark
        return coverage

    def set_clock(self, unit_id: bytes, boot_id: bytes, zero_ns: int, error_ns: int) -> None:
        with self._lock:
            values = (self._unit(unit_id), boot_id, zero_ns, error_ns, time.time_ns())
            self._new.append((BOOT_UPSERT, values))
            self._clock.set(unit_id, boot_id, zero_ns)

    def expected(self, unit_id: bytes, run_id: bytes, stream: int) -> int:
        with self._lock, self._readable():
            found = self._find_run(unit_id, run_id)
            return self._covered(found[0], stream).mark if found else 0

    def high_water(self, unit_id: bytes, run_id: bytes) -> dict[int, int]:
        with self._lock, self._readable():
            found = self._find_run(unit_id, run_id)
            if found is None:
                return {}
            run = found[0]
            rows = self._writer.execute(
                "SELECT stream, max(CASE first_sequence WHEN 0 THEN end_sequence ELSE 0 END) "
                "FROM coverage WHERE run = ? GROUP BY stream",
                (run,),
            ).fetchall()
            return {int(stream): int(mark) for stream, mark in rows}

    # Units, experiments, assignments

    def upsert_units(self, units: list[tuple[bytes, str, dict[str, Any]]]) -> None:
        with self._lock:
            rows = [(blocks.plain(name), json.dumps(about), self._unit(unit_id)) for unit_id, name, about in units]
            with self._transaction("FULL"):
                for row in rows:
                    self._writer.execute("UPDATE unit SET name = ?, describe = ? WHERE id = ?", row)

    def create_experiment(self, name: str, description: str = "") -> None:
        name = name.strip()
        if not name or len(name) > 200 or name.startswith("$") or any(ord(c) < 32 or c in "/+#" for c in name):
            raise StoreError(
                f"experiment name {name[:50]!r}: 1 to 200 characters, without / + # and not starting with $, because "
                "it is part of MQTT topics"
            )
        with self._lock:
            if name in self._experiments:
                raise StoreError(f"experiment '{name}' exists already: choose another name")
            number = self._experiment(name)
            try:
                with self._transaction("FULL"):
                    self._writer.execute(
                        "UPDATE experiment SET description = ? WHERE id = ?", (blocks.plain(description), number)
                    )
            except StoreError:
                del self._experiments[name]
                if self._new:
                    self._new.pop()
                raise

    def adopt_experiment(self, name: str, description: str, created_at: float) -> None:
        with self._lock:
            number = self._experiment(name)
            with self._transaction("FULL"):
                self._writer.execute(
                    "UPDATE experiment SET description = ?, created_ns = ? WHERE id = ?",
                    (blocks.plain(description), int(created_at * 1e9), number),
                )

    def assign(self, unit_id: bytes, experiment: str | None) -> None:
        with self._lock:
            unit, number = self._known(unit_id, experiment)
            now_ns = time.time_ns()
            with self._transaction("FULL"):
                current = self._writer.execute(
                    "SELECT experiment FROM assignment WHERE unit = ? AND until_ns IS NULL", (unit,)
                ).fetchone()
                wanted = None if experiment is None else number
                if (current[0] if current else None) == wanted:
                    return
                self._writer.execute(
                    "UPDATE assignment SET until_ns = ? WHERE unit = ? AND until_ns IS NULL", (now_ns, unit)
                )
                if wanted is not None:
                    self._writer.execute(
                        "INSERT INTO assignment (unit, experiment, from_ns) VALUES (?,?,?)", (unit, wanted, now_ns)
                    )
                    self._writer.execute("DELETE FROM standdown WHERE unit = ?", (unit,))

    # Events, counters, the end

    def acknowledge(self, first: int, last: int, unit_id: bytes | None, by: str) -> list[str | None]:
        where = "id BETWEEN ?1 AND ?2 AND level IN ('warning', 'error')"
        if first == last and not self._rows(f"SELECT 1 FROM event WHERE {where}", (first, last)):
            raise StoreError(f"event {first} is no warning and no error, or not here")
        where += " AND acknowledged_ns IS NULL AND (?3 IS NULL OR unit = (SELECT id FROM unit WHERE unit_id = ?3))"
        with self._lock, self._transaction("FULL"):
            rows = self._writer.execute(
                f"UPDATE event SET acknowledged_ns = ?4, acknowledged_by = ?5 WHERE {where} "
                "RETURNING (SELECT name FROM unit WHERE unit.id = event.unit)",
                (first, last, unit_id, time.time_ns(), blocks.plain(by)),
            ).fetchall()
        return [name for (name,) in rows]

    def add_event(self, unit_id: bytes | None, level: str, source: str, code: str, message: str) -> dict[str, Any]:
        wall_ns = time.time_ns()
        event = {"wall_ns": wall_ns, "level": level, "source": source, "code": code, "message": message, "value": None}
        with self._lock:
            unit = None if unit_id is None else self._unit(unit_id)
            row = self._event_row(wall_ns, unit, None, None, event)
            self._pending.events.append(row)
            self._pending.size += 200
        acknowledged = {"acknowledged_at": None, "acknowledged_by": None}
        return {"id": row[0], "t": wall_ns // 1000 / 1e6, "unit_id": unit_id, **event, **acknowledged}

    # Retention

    def aged_series(self, before_s: float) -> list[int]:
        return [number for (number,) in self._rows(sqlite_thin.AGED_SERIES, (round(before_s * 1e9),))]

    def thin(self, series: int, before_s: float) -> int:
        with self._lock, self._transaction("NORMAL"):
            taken = sqlite_thin.thin(self._writer, series, round(before_s * 1e9))
        self._counters["thinned_readings"] += taken
        return taken

    def drop_raw(self, before_s: float) -> int:
        with self._lock, self._transaction("NORMAL"):
            taken = sqlite_thin.drop_raw(self._writer, round(before_s * 1e9))
        self._counters["removed_raw_chunks"] += taken
        return taken

    def drop_vitals(self, before_s: float) -> int:
        with self._lock, self._transaction("NORMAL"):
            taken = sqlite_thin.drop_vitals(self._writer, round(before_s * 1e9))
        self._counters["removed_vitals"] += taken
        return taken

    def counters(self) -> dict[str, Any]:
        with self._lock:
            waiting = {
                "pending_readings": len(self._pending.readings),
                "pending_bytes": self._pending.size,
                "last_commit_s": self._last_commit_s,
                "last_error": self._last_error,
            }
            counters = self._counters | waiting
        counters["database_bytes"] = self._size()
        return counters

    def _size(self) -> int | None:
        try:
            return self.path.stat().st_size
        except OSError:
            return None

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                self.commit()
            except StoreUnavailable:
                pass  # counted; what was not committed was not acknowledged
            self.close_readers()
            self._let_go()

    def _let_go(self) -> None:
        try:
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            pass  # somebody still reads: the next opening does it
        self._writer.close()
        os.close(self._flock)
