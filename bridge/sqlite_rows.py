"""What one commit writes into the SQLite store, as rows, and the statements that write them."""

from __future__ import annotations

from stirbar.bridge.blocks import ROLLUP_LEVELS_S, Bucket, Coverage
from stirbar.core.vitals import STORED

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from typing import Any

    Buckets = dict[tuple[int, int], Bucket]  # (series, number of the bucket)

COUNTERS = (
    "readings",
    "events",
    "vitals",
    "raw_chunks",
    "gaps",
    "lost",  # sequence numbers inside gaps
    "duplicates",
    "refused_blocks",  # because too much waited
    "commits",
    "commit_failures",
    "thinned_readings",  # kept as roll-ups only
    "removed_raw_chunks",
    "removed_vitals",
)

_READING_INSERT = "INSERT INTO reading VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING"
_EVENT_INSERT = """
    INSERT INTO event (id, wall_ns, unit, series, sequence, level, source, code, message, object)
    VALUES (?,?,?,?,?,?,?,?,?,?)"""
_VITALS_INSERT = f"INSERT INTO vitals VALUES ({','.join('?' * (5 + len(STORED)))}) ON CONFLICT DO NOTHING"
_GAP_INSERT = "INSERT INTO gap (run, stream, first_sequence, count, reason, wall_ns) VALUES (?,?,?,?,?,?)"
_COVERAGE_UPSERT = """
    INSERT INTO coverage VALUES (?,?,?,?)
    ON CONFLICT (run, stream, first_sequence) DO UPDATE SET end_sequence = excluded.end_sequence"""
_ROLLUP_UPSERT = """
    INSERT INTO rollup_{level}s AS old VALUES (?,?,?,?,?,?,?,?)
    ON CONFLICT (series, bucket) DO UPDATE SET
        count = old.count + excluded.count,
        low = CASE WHEN old.low IS NULL OR excluded.low < old.low THEN excluded.low ELSE old.low END,
        high = CASE WHEN old.high IS NULL OR excluded.high > old.high THEN excluded.high ELSE old.high END,
        sum = {sum},
        first_sequence = CASE WHEN excluded.first_sequence < old.first_sequence
            THEN excluded.first_sequence ELSE old.first_sequence END,
        last_sequence = CASE WHEN excluded.last_sequence > old.last_sequence
            THEN excluded.last_sequence ELSE old.last_sequence END"""
_CHUNK_UPSERT = """
    INSERT INTO raw_chunk AS old VALUES (?,?,?,?,?,?,?)
    ON CONFLICT (series, first_sequence) DO UPDATE SET
        count = excluded.count, raw_ns = excluded.raw_ns, monotonic_ns = excluded.monotonic_ns,
        realtime_ns = excluded.realtime_ns, payload = excluded.payload
    WHERE excluded.count > old.count"""


class Pending:
    """What waits for the next commit. Synchronization: under the store's lock."""

    __slots__ = ("chunks", "events", "gaps", "readings", "rollups", "size", "touched", "vitals")

    def __init__(self) -> None:
        self.readings: list[tuple[Any, ...]] = []
        self.rollups: Buckets = {}  # of the finest level
        self.events: list[tuple[Any, ...]] = []
        self.chunks: list[tuple[Any, ...]] = []
        self.vitals: list[tuple[Any, ...]] = []
        self.gaps: list[tuple[Any, ...]] = []
        self.touched: set[tuple[int, int]] = set()  # (run, stream) whose coverage grew
        self.size = 0  # bytes, about

    def write(self, connection: sqlite3.Connection) -> None:
        """Everything but the coverage, within the caller's transaction."""
        connection.executemany(_READING_INSERT, self.readings)
        self.write_rest(connection, "old.sum + excluded.sum")

    def write_rest(self, connection: Any, added: str) -> None:
        """Everything but readings and coverage; `added` is how the database adds two sums of a roll-up."""
        connection.executemany(_EVENT_INSERT, self.events)
        connection.executemany(_CHUNK_UPSERT, self.chunks)
        connection.executemany(_VITALS_INSERT, self.vitals)
        connection.executemany(_GAP_INSERT, self.gaps)
        for level in ROLLUP_LEVELS_S:
            buckets = _widen(self.rollups, level // ROLLUP_LEVELS_S[0])
            connection.executemany(_ROLLUP_UPSERT.format(level=level, sum=added), map(_rollup_row, buckets.items()))


def write_coverage(connection: Any, coverages: dict[tuple[int, int], Coverage]) -> None:
    """Make the table say what these of (run, stream) say; normally that is one row each, whose end moves."""
    moved = []
    for (run, stream), coverage in coverages.items():
        rows = [(run, stream, *span) for span in coverage.spans]
        if len(rows) == 1 and coverage.kept in ([], coverage.beginnings):
            moved += rows
            continue
        connection.execute("DELETE FROM coverage WHERE run = ? AND stream = ?", (run, stream))
        connection.executemany(_COVERAGE_UPSERT, rows)
    connection.executemany(_COVERAGE_UPSERT, moved)


def _widen(finest: Buckets, ratio: int) -> Buckets:
    """The same readings in buckets `ratio` times as long."""
    if ratio == 1:
        return finest
    buckets: Buckets = {}
    for (series, number), bucket in finest.items():
        key = (series, number // ratio)
        wider = buckets.get(key)
        if wider is None:
            wider = buckets[key] = Bucket(bucket.first_sequence)
        wider.merge(bucket)
    return buckets


def _rollup_row(item: tuple[tuple[int, int], Bucket]) -> tuple[Any, ...]:
    key, bucket = item
    extremes = (bucket.low, bucket.high) if bucket.count else (None, None)
    return (*key, bucket.count, *extremes, bucket.total, bucket.first_sequence, bucket.last_sequence)
