"""A PostgreSQL store that several processes write at once: the leader, and the ingest processes that share its load.

Which process gets a block is the broker's choice, so that two of them hold every other second of one stream, and one
that dies takes what it had not committed with it. What is here already, and how far a stream goes without a hole, is
therefore read from the database at each commit, under locks of the runs that are written; nothing is decided when a
block comes. A unit sends again what nobody has committed, and a commit leaves out what another one has.
"""

from __future__ import annotations

import time

from stirbar.bridge import blocks
from stirbar.bridge.blocks import Coverage
from stirbar.bridge.postgres_store import LEADER_LOCK, PostgresStore
from stirbar.bridge.sqlite_rows import Pending
from stirbar.bridge.sqlite_store import PENDING_LIMIT_BYTES
from stirbar.bridge.store import StoreUnavailable
from stirbar.core.records import KIND_GAP, KIND_JSON, KIND_READINGS, READING_FIELDS, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import psycopg
    from stirbar.bridge.store import Marks

    Block = tuple[Header, bytes, list[Any]]

MIGRATION_LOCK, EVENT_LOCK = LEADER_LOCK + 1, LEADER_LOCK + 2
LOCK_S = 10  # how long a commit waits for those of the others
CLOCKS_S = 5.0  # how often it is asked which clocks the leader has judged
TRIES = 20  # to get a row that others make at the same time
RUNS_AT_ONCE = 500
_ANGLE = READING_FIELDS.index("angle")
_CASTS = {"unit_id": "CAST(? AS BYTEA)", "run_id": "CAST(? AS BYTEA)", "boot_id": "CAST(? AS BYTEA)"}


class SharedPostgresStore(PostgresStore):
    """See the module, and `PostgresStore`. Every process that writes opens the database like this, or none does.

    An event that the leader itself makes may be stored twice when the answer to a COMMIT is lost.
    """

    shared = True
    TRY_LOCK = "pg_try_advisory_lock_shared"

    def __init__(self, url: str) -> None:
        self._blocks: list[Block] = []
        self._fresh: set[tuple[int, int]] = set()  # (run, stream) whose coverage is that of the last commit
        self._clocks_at = 0.0
        super().__init__(url)

    def _take_lock(self, raw: psycopg.Connection[Any]) -> None:
        super()._take_lock(raw)
        raw.execute(f"SET lock_timeout = {1000 * LOCK_S}")

    def _migrate(self) -> None:
        self._writer.execute(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
        try:
            super()._migrate()
        finally:
            self._writer.execute(f"SELECT pg_advisory_unlock({MIGRATION_LOCK})")

    # Ids are given out by the database, outside of transactions: nobody waits for another's while holding one

    def _get_or_make(self, table: str, key: dict[str, Any], more: dict[str, Any]) -> int:
        where = " AND ".join(f"{name} = ?" for name in key)
        row = {**key, **more}
        values = ", ".join(_CASTS.get(name, "?") for name in row)
        for _ in range(TRIES):
            found = self._writer.execute(f"SELECT id FROM {table} WHERE {where}", tuple(key.values())).fetchone()
            if found is not None:
                return int(found[0])
            self._writer.execute(
                f"INSERT INTO {table} (id, {', '.join(row)}) SELECT coalesce(max(id), 0) + 1, {values} FROM {table} "
                "ON CONFLICT DO NOTHING",
                tuple(row.values()),
            )
        raise StoreUnavailable(f"database {self.name}: no room among others for a new {table}")

    def _unit(self, unit_id: bytes) -> int:
        number = self._units.get(unit_id)
        if number is None:
            more = {"name": unit_id.hex(), "first_seen_ns": time.time_ns()}
            number = self._units[unit_id] = self._get_or_make("unit", {"unit_id": unit_id}, more)
        return number

    def _experiment(self, name: str) -> int:
        number = self._experiments.get(name)
        if number is None:
            more = {"created_ns": time.time_ns()}
            number = self._experiments[name] = self._get_or_make("experiment", {"name": name}, more)
        return number

    def _find_run(self, unit_id: bytes, run_id: bytes) -> tuple[int, int] | None:
        if unit_id not in self._units:
            row = self._writer.execute("SELECT id FROM unit WHERE unit_id = ?", (unit_id,)).fetchone()
            if row is not None:
                self._units[unit_id] = row[0]
        return super()._find_run(unit_id, run_id)

    def _run(self, header: Header, clock_ns: int) -> tuple[int, int]:
        found = self._find_run(header.unit_id, header.run_id)
        if found is None:
            key = {"unit": self._unit(header.unit_id), "run_id": header.run_id}
            more = {"boot_id": header.boot_id, "clock_ns": clock_ns, "first_seen_ns": time.time_ns()}
            self._get_or_make("run", key, more)
            found = self._find_run(header.unit_id, header.run_id)
            assert found is not None
        return found

    def _series_id(self, run: int, header: Header, angle: int) -> int:
        experiment = self._experiment(header.experiment.replace("\0", "�"))
        place = (run, header.stream, experiment, angle)
        number = self._series.get(place)
        if number is None:
            key = dict(zip(("run", "stream", "experiment", "angle"), place, strict=True))
            number = self._series[place] = self._get_or_make("series", key, {})
        return number

    # Writing

    def add(self, header: Header, payload: bytes) -> None:
        self._keep(header, payload, blocks.check_block(header, payload))

    def add_gap(self, header: Header, reason: str) -> None:
        blocks.check_header(header)
        ids = (header.unit_id, header.run_id, header.boot_id)
        times = (header.raw_ns, header.monotonic_ns, header.realtime_ns)
        gap = Header(
            KIND_GAP, header.stream, 0, header.count, header.first_sequence, *ids, *times, header.experiment
        )  # fmt: skip
        self._keep(gap, b"", [blocks.plain(reason)])

    def _keep(self, header: Header, payload: bytes, content: list[Any]) -> None:
        """Keep a block for the next commit; its run and series get their ids now."""
        with self._lock, self._readable():
            if self._pending.size + len(payload) > PENDING_LIMIT_BYTES:
                self._counters["refused_blocks"] += 1
                raise StoreUnavailable(f"{self._pending.size >> 20} MiB wait for a commit ({self._last_error})")
            run, _ = self._run(header, header.realtime_ns - header.monotonic_ns)
            if header.kind != KIND_GAP:
                angles = {record[_ANGLE] for record in content} if header.kind == KIND_READINGS else {0}
                for angle in angles:
                    self._series_id(run, header, angle)
            self._blocks.append((header, payload, content))
            self._pending.size += len(payload) + 200

    def commit(self) -> Marks:
        with self._lock:
            self._fresh = set()
            own, size, counted = list(self._pending.events), self._pending.size, dict(self._counters)
            try:
                moved = super().commit()
            except BaseException:
                failures = self._counters["commit_failures"]
                self._counters = {**counted, "commit_failures": failures}
                self._pending = Pending()
                self._pending.events, self._pending.size = own, size
                self._fresh = set()
                raise
            self._blocks.clear()
            return moved

    def _begin(self, synchronous: str) -> None:
        self._writer.execute("BEGIN")
        self._writer.execute(f"SET LOCAL synchronous_commit = {'on' if synchronous == 'FULL' else 'off'}")

    def _end(self) -> None:
        self._writer.execute("COMMIT")

    def _prepare(self) -> None:
        """Within the transaction: what of the blocks is new is decided by what the database has now."""
        keys = {(self._run(block[0], 0)[0], block[0].stream) for block in self._blocks}
        self._fresh = keys
        self._load_coverage(keys)
        self._hear_of_clocks()
        own = self._pending.events
        self._pending = Pending()
        if own or any(header.kind == KIND_JSON for header, *_ in self._blocks):
            self._writer.execute(f"SELECT pg_advisory_xact_lock({EVENT_LOCK})")
            (self._next["event"],) = self._writer.execute("SELECT coalesce(max(id), 0) + 1 FROM event").fetchone()
            self._pending.events = [(self._take_id("event"), *row[1:]) for row in own]
        for block in self._blocks:
            self._take(*block)

    def _load_coverage(self, keys: set[tuple[int, int]]) -> None:
        """Lock the runs, in one order for all, and read what is here of them."""
        spans: dict[tuple[int, int], list[tuple[int, int]]] = {key: [] for key in keys}
        runs = sorted({run for run, _ in keys})
        for start in range(0, len(runs), RUNS_AT_ONCE):
            part = runs[start : start + RUNS_AT_ONCE]
            places = ",".join("?" * len(part))
            self._writer.execute(f"SELECT id FROM run WHERE id IN ({places}) ORDER BY id FOR NO KEY UPDATE", part)
            for run, stream, first, end in self._writer.execute(
                f"SELECT run, stream, first_sequence, end_sequence FROM coverage WHERE run IN ({places})", part
            ).fetchall():
                if (run, stream) in spans:
                    spans[run, stream].append((first, end))
        for key, found in spans.items():
            self._coverage[key] = Coverage(found)

    def _hear_of_clocks(self) -> None:
        """The leader judges the units' clocks; what came before this heard of it is mended like any other."""
        now = time.monotonic()
        if now < self._clocks_at:
            return
        self._clocks_at = now + CLOCKS_S
        for unit_id, unit, boot_id, zero_ns in self._writer.execute(
            "SELECT unit_id, unit.id, boot_id, zero_ns FROM boot JOIN unit ON unit.id = boot.unit"
        ).fetchall():
            self._units[unit_id] = unit
            self._clock.set(unit_id, boot_id, zero_ns)

    # Reading

    def expected(self, unit_id: bytes, run_id: bytes, stream: int) -> int:
        with self._lock, self._readable():
            found = self._find_run(unit_id, run_id)
            if found is None:
                return 0
            key = (found[0], stream)
            if key not in self._fresh:
                self._coverage.pop(key, None)
            return self._covered(*key).mark

    def assign(self, unit_id: bytes, experiment: str | None) -> None:
        with self._lock, self._readable():
            self._units.update((row[1], row[0]) for row in self._writer.execute("SELECT id, unit_id FROM unit"))
            rows = self._writer.execute("SELECT id, name FROM experiment")
            self._experiments.update((row[1], row[0]) for row in rows)
        super().assign(unit_id, experiment)
