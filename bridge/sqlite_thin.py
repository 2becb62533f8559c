"""Retention: old readings of a SQLite store become roll-ups only, old raw chunks go; what went is counted.

All of it within the caller's transaction, a batch at a time, so that the ingest never waits long.
"""

from __future__ import annotations

import sys

from stirbar.bridge.blocks import ROLLUP_LEVELS_S, SEQUENCE_BITS
from stirbar.core.records import READING_STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BATCH_READINGS = 2000  # about 10 ms
BATCH_CHUNKS = 50
_THINNED_UPSERT = """
    INSERT INTO thinned AS old VALUES (?,?,?,?,?) ON CONFLICT (series) DO UPDATE SET
        before_ns = CASE WHEN excluded.before_ns > old.before_ns THEN excluded.before_ns ELSE old.before_ns END,
        readings = old.readings + excluded.readings, finite = old.finite + excluded.finite,
        raw_chunks = old.raw_chunks + excluded.raw_chunks"""
# a unit whose clock was wrong stamps new readings long ago: the leader must have known the run for as long
AGED_SERIES = f"""
    SELECT series.id FROM series JOIN run ON run.id = series.run
    WHERE run.first_seen_ns < ? AND stream IN ({",".join(map(str, sorted(READING_STREAMS)))}) ORDER BY series.id"""


def whole_buckets_ns(before_ns: int) -> int:
    """The edge of the coarsest roll-up at or before a time: no bucket is thinned in part."""
    span_ns = ROLLUP_LEVELS_S[-1] * 10**9
    return before_ns // span_ns * span_ns


def thin(connection: Any, series: int, before_ns: int) -> int:
    """Take away a batch of the readings of a series that are older; returns how many, 0 when there are no more."""
    before_ns = whole_buckets_ns(before_ns)
    page = connection.execute(
        "SELECT id, wall_ns, value FROM reading WHERE id >= ? AND id < ? ORDER BY id LIMIT ?",
        (series << SEQUENCE_BITS, (series + 1) << SEQUENCE_BITS, BATCH_READINGS),
    ).fetchall()
    old = [(number, value) for number, wall_ns, value in page if wall_ns < before_ns]
    if not old:
        return 0
    connection.execute(
        "DELETE FROM reading WHERE id >= ? AND id <= ? AND wall_ns < ?", (page[0][0], page[-1][0], before_ns)
    )
    finite = sum(value is not None and abs(value) <= sys.float_info.max for _, value in old)
    connection.execute(_THINNED_UPSERT, (series, before_ns, len(old), finite, 0))
    return len(old)


def drop_raw(connection: Any, before_ns: int) -> int:
    """Take away a batch of raw chunks that are older; returns how many, 0 when there are no more."""
    chunks = connection.execute(
        "SELECT series, first_sequence FROM raw_chunk JOIN series ON series.id = raw_chunk.series "
        "JOIN run ON run.id = series.run WHERE realtime_ns < ?1 AND run.first_seen_ns < ?1 "
        "ORDER BY realtime_ns LIMIT ?2",
        (before_ns, BATCH_CHUNKS),
    ).fetchall()
    connection.executemany("DELETE FROM raw_chunk WHERE series = ? AND first_sequence = ?", chunks)
    connection.executemany(_THINNED_UPSERT, [(series, 0, 0, 0, 1) for series, _ in chunks])
    return len(chunks)


def drop_vitals(connection: Any, before_ns: int) -> int:
    """Take away a batch of vitals that are older; returns how many, 0 when there are no more."""
    old = connection.execute(
        "SELECT series, sequence FROM unit JOIN vitals ON vitals.unit = unit.id AND wall_ns < ?1 "
        "JOIN series ON series.id = vitals.series JOIN run ON run.id = series.run WHERE run.first_seen_ns < ?1 "
        "LIMIT ?2",
        (before_ns, BATCH_READINGS),
    ).fetchall()
    connection.executemany("DELETE FROM vitals WHERE series = ? AND sequence = ?", old)
    for series in {series for series, _ in old}:
        count = sum(one == series for one, _ in old)
        connection.execute(_THINNED_UPSERT, (series, before_ns, count, 0, 0))
    return len(old)
