"""Is a SQLite store whole? SQLite's own check, and what must hold between our tables. Reads only."""

from __future__ import annotations

import pathlib
import sqlite3
import sys
import urllib.parse

from stirbar.bridge.blocks import EVENT_STREAM, ROLLUP_LEVELS_S, SEQUENCE_BITS, VITALS_STREAM
from stirbar.bridge.store import StoreError
from stirbar.core.records import READING_STREAMS, STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MIGRATIONS = pathlib.Path(__file__).parent / "migrations"
TABLES = {"leadership", "unit", "run", "series", "coverage", "reading"}
FAULTS_SHOWN = 20
SUM_TOLERANCE = 1e-9  # of the sum of magnitudes: roll-ups add in another order
_FINITE = f"abs(value) <= {sys.float_info.max!r}"


def migration_steps(directory: pathlib.Path = MIGRATIONS) -> list[tuple[int, pathlib.Path]]:
    """(number, file) of the migrations that this stirbar knows, in order."""
    return sorted((int(step.name[:4]), step) for step in directory.glob("[0-9][0-9][0-9][0-9]_*.sql"))


def open_to_read(path: pathlib.Path) -> sqlite3.Connection:
    """A connection that cannot write. Raises StoreError for what is not there."""
    if not path.is_file():
        raise StoreError(f"{path} is not there: name the file of a store or of a backup")
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro"
    return sqlite3.connect(address, uri=True, isolation_level=None, timeout=10.0)


def check_version(connection: sqlite3.Connection, path: pathlib.Path) -> int:
    """The schema version of a store of ours. Raises StoreError for anything else, and for a newer one."""
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise StoreError(f"{path} is no store: {error}") from None
    if not tables >= TABLES or version < 1:
        raise StoreError(f"{path} is no store of stirbar: name the file of a store or of a backup")
    known = migration_steps()[-1][0]
    if version > known:
        raise StoreError(f"{path} has schema version {version}, this stirbar knows {known}: update stirbar")
    return int(version)


def check(path: pathlib.Path) -> dict[str, int]:
    """Counts of what a store holds, when all of it is in order; one snapshot, also while a leader writes.

    Raises StoreError with the first faults for a store that is damaged or contradicts itself.
    """
    connection = open_to_read(path)
    try:
        version = check_version(connection, path)
        try:
            connection.execute("BEGIN")
            faults = []
            for fault in _faults(connection):
                faults.append(fault)
                if len(faults) == FAULTS_SHOWN:
                    break
            counts = {"schema": version} | {
                table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("unit", "series", "reading", "raw_chunk", "event", "gap")
            }
        except sqlite3.Error as error:
            faults = [str(error)]
    finally:
        connection.close()
    if faults:
        raise StoreError(f"{path} is damaged: {'; '.join(faults)}. Restore a backup: stirbar db restore FILE")
    return counts


def _faults(connection: sqlite3.Connection) -> Iterator[str]:
    damaged = False
    for (text,) in connection.execute(f"PRAGMA integrity_check({FAULTS_SHOWN})"):
        if text != "ok":
            damaged = True
            yield text
    if damaged:  # what the tables say is worth nothing then
        return
    for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"row {row} of {table} refers to a {parent} that is not there"
    yield from _outside_their_series(connection)
    yield from _against_coverage(connection)
    for level in ROLLUP_LEVELS_S:
        yield from _against_rollups(connection, level)


def _outside_their_series(connection: sqlite3.Connection) -> Iterator[str]:
    """From series to series by the index, so that a store of millions of readings costs a look-up a series."""
    known = {number for (number,) in connection.execute("SELECT id FROM series")}
    after = -(1 << 63)
    while True:
        (found,) = connection.execute("SELECT min(id) FROM reading WHERE id >= ?", (after,)).fetchone()
        if found is None:
            return
        series = found >> SEQUENCE_BITS
        if series not in known:
            yield f"readings of series {series}, which is not there"
        after = (series + 1) << SEQUENCE_BITS


def _against_coverage(connection: sqlite3.Connection) -> Iterator[str]:
    """Every sequence number that is accounted for is a reading, an event or part of a gap; every reading is covered."""
    held: dict[tuple[int, int], int] = {}
    for series, run, stream in connection.execute("SELECT id, run, stream FROM series").fetchall():
        if stream in READING_STREAMS:
            count = _count(connection, series, 0, 1 << SEQUENCE_BITS)
            inside = sum(
                _count(connection, series, first, end)
                for first, end in connection.execute(
                    "SELECT first_sequence, end_sequence FROM coverage WHERE run = ? AND stream = ?", (run, stream)
                ).fetchall()
            )
            if inside != count:
                yield f"series {series} has {count - inside} readings that its coverage does not know"
            held[run, stream] = held.get((run, stream), 0) + count
    for table in ("event", "vitals") if _has(connection, "vitals") else ("event",):
        for run, stream, count in connection.execute(
            f"SELECT run, stream, count(*) FROM {table} JOIN series ON series.id = {table}.series GROUP BY 1, 2"
        ):
            held[run, stream] = held.get((run, stream), 0) + count
    gone = "SELECT run, stream, sum(count) FROM gap GROUP BY 1, 2"
    if _has(connection, "thinned"):
        gone += " UNION ALL SELECT run, stream, readings FROM thinned JOIN series ON series.id = thinned.series"
    for run, stream, count in connection.execute(gone):
        held[run, stream] = held.get((run, stream), 0) + count
    for run, stream, covered in connection.execute(
        "SELECT run, stream, sum(end_sequence - first_sequence) FROM coverage GROUP BY 1, 2"
    ):
        if stream in (*READING_STREAMS, EVENT_STREAM, VITALS_STREAM) and held.get((run, stream), 0) != covered:
            yield (
                f"run {run}, stream {STREAMS.get(stream, stream)}: {covered} are accounted for, "
                f"{held.get((run, stream), 0)} are here or known to be lost"
            )


def _has(connection: sqlite3.Connection, table: str) -> bool:
    """A backup of an older version lacks tables."""
    return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone())


def _count(connection: sqlite3.Connection, series: int, first: int, end: int) -> int:
    row = connection.execute(
        "SELECT count(*) FROM reading WHERE id >= ? AND id < ?",
        (series << SEQUENCE_BITS | first, (series << SEQUENCE_BITS) + end),
    ).fetchone()
    return int(row[0])


def _against_rollups(connection: sqlite3.Connection, level: int) -> Iterator[str]:
    """Each bucket has the count, the extremes and the sum of its readings; a thinned series has their count."""
    thinned = {}
    if _has(connection, "thinned"):
        thinned = dict(connection.execute("SELECT series, finite FROM thinned WHERE readings > 0"))
    for (series,) in connection.execute("SELECT id FROM series").fetchall():
        place = (series << SEQUENCE_BITS, (series + 1) << SEQUENCE_BITS)
        if series in thinned:
            (left,) = connection.execute(
                f"SELECT count(*) FROM reading WHERE id >= ? AND id < ? AND {_FINITE}", place
            ).fetchone()
            (rolled,) = connection.execute(
                f"SELECT total(count) FROM rollup_{level}s WHERE series = ?", (series,)
            ).fetchone()
            if rolled != left + thinned[series]:
                yield (
                    f"series {series}: roll-ups of {level} s count {rolled:.0f} readings, {left} are here and "
                    f"{thinned[series]} were thinned"
                )
            continue
        different, first, buckets = connection.execute(
            f"""WITH slow AS (
                SELECT wall_ns / {level * 10**9} AS bucket, count(CASE WHEN {_FINITE} THEN 1 END) AS count,
                    min(CASE WHEN {_FINITE} THEN value END) AS low, max(CASE WHEN {_FINITE} THEN value END) AS high,
                    total(CASE WHEN {_FINITE} THEN value END) AS sum,
                    total(CASE WHEN {_FINITE} THEN abs(value) END) AS size
                FROM reading WHERE id >= ?1 AND id < ?2 GROUP BY 1)
            SELECT total(differs), min(CASE WHEN differs THEN bucket END), count(*) FROM (
                SELECT slow.bucket AS bucket, slow.count IS NOT fast.count OR slow.low IS NOT fast.low
                    OR slow.high IS NOT fast.high OR abs(slow.sum - fast.sum) > {SUM_TOLERANCE} * size AS differs
                FROM slow LEFT JOIN rollup_{level}s AS fast ON fast.series = ?3 AND fast.bucket = slow.bucket)""",
            (*place, series),
        ).fetchone()
        (rolled,) = connection.execute(f"SELECT count(*) FROM rollup_{level}s WHERE series = ?", (series,)).fetchone()
        if rolled != buckets:
            yield f"series {series} has {rolled} roll-ups of {level} s, its readings make {buckets}"
        if different:
            at_s = first * level
            yield f"series {series}: {different:.0f} roll-ups of {level} s differ from their readings, first at {at_s}"
