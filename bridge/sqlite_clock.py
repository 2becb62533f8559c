"""Wall times in the SQLite store that a unit's clock had wrong, put right by its monotonic clock (see `clocks`)."""

from __future__ import annotations

import json

from stirbar.bridge.blocks import CLOCK_CORRECTED, ROLLUP_LEVELS_S, SEQUENCE_BITS, TIME_END_NS, WALL_TOLERANCE_NS

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from stirbar.core.records import Header

    Boot = tuple[bytes, bytes]  # unit_id, boot_id

BOOT_UPSERT = """
    INSERT INTO boot VALUES (?,?,?,?,?)
    ON CONFLICT (unit, boot_id) DO UPDATE SET
        zero_ns = excluded.zero_ns, error_ns = excluded.error_ns, judged_ns = excluded.judged_ns"""
RANGE_NS = 100_000_000  # by how much less or more is written

_RANGE_SET = "UPDATE run SET clock_low_ns = ?2, clock_high_ns = ?3 WHERE id = ?1"
_RANGE_WIDEN = """
    UPDATE run SET clock_low_ns = CASE WHEN clock_low_ns < ?2 THEN clock_low_ns ELSE ?2 END,
        clock_high_ns = CASE WHEN clock_high_ns > ?3 THEN clock_high_ns ELSE ?3 END
    WHERE id = ?1"""

_WRONG_RUNS = """
    SELECT id, clock_ns FROM run
    WHERE unit = ?1 AND boot_id = ?2 AND (clock_low_ns < ?3 - ?4 OR clock_high_ns > ?3 + ?4)"""
# monotonic_ns = wall_ns - reading.clock_ns - run.clock_ns stays what it is
_READINGS = f"""
    UPDATE reading SET wall_ns = wall_ns - clock_ns - ?4 + ?3, clock_ns = ?3 - ?4, flags = flags | {CLOCK_CORRECTED}
    WHERE id >= ?1 AND id < ?2 AND abs(clock_ns + ?4 - ?3) > ?5"""
_CHUNKS = """
    UPDATE raw_chunk SET realtime_ns = monotonic_ns + ?2
    WHERE series = ?1 AND abs(realtime_ns - monotonic_ns - ?2) > ?3"""
_VITALS = """
    UPDATE vitals SET wall_ns = monotonic_ns + ?2, clock_offset_s = (wall_ns - monotonic_ns - ?2) / 1e9
    WHERE series = ?1 AND abs(wall_ns - monotonic_ns - ?2) > ?3"""
_ROLLUP = f"""
    INSERT INTO rollup_{{level}}s
    SELECT id >> {SEQUENCE_BITS}, wall_ns / {{span_ns}}, count(finite), min(finite), max(finite),
           coalesce(sum(CASE WHEN abs(finite) < 1e290 THEN finite ELSE 0.0 END), 0.0),
           min(id & {(1 << SEQUENCE_BITS) - 1}), max(id & {(1 << SEQUENCE_BITS) - 1})
    FROM (SELECT id, wall_ns, CASE WHEN abs(value) <= 1.7976931348623157e308 THEN value END AS finite FROM reading
          WHERE id >= ?1 AND id < ?2) AS read
    GROUP BY 1, 2"""


class Clock:
    """Which wall times to believe, and what of the stored ones is to be mended. Synchronization: the store's lock."""

    def __init__(self, known: Iterable[tuple[bytes, bytes, int]]) -> None:
        self._zeros: dict[Boot, int] = {(unit_id, boot_id): zero_ns for unit_id, boot_id, zero_ns in known}
        self._ranges: dict[int, tuple[int, int]] = {}  # run: least and greatest wall - monotonic that the table has
        self._wider: dict[int, tuple[int, int]] = {}  # to be written with the next commit
        self._mend: dict[Boot, int] = {}

    def set(self, unit_id: bytes, boot_id: bytes, zero_ns: int) -> None:
        """From now on; what is stored already is mended when nothing was known of that boot so far."""
        key = (unit_id, boot_id)
        if key not in self._zeros:
            self._mend[key] = zero_ns
        self._zeros[key] = zero_ns

    def zero_ns(self, header: Header) -> int | None:
        return self._zeros.get((header.unit_id, header.boot_id))

    def wall_ns(self, header: Header, wall_ns: int, monotonic_ns: object) -> int:
        """The wall time to be stored for something of that boot."""
        zero_ns = self.zero_ns(header)
        if zero_ns is None or not isinstance(monotonic_ns, int) or not 0 <= monotonic_ns < TIME_END_NS:
            return wall_ns
        right_ns = zero_ns + monotonic_ns
        return right_ns if abs(wall_ns - right_ns) > WALL_TOLERANCE_NS else wall_ns

    def saw(self, run: int, low_ns: int, high_ns: int) -> None:
        """Readings of a run are to be stored whose wall - monotonic lies between these."""
        low, high = self._ranges.get(run, (high_ns + 1 + RANGE_NS, low_ns - 1 - RANGE_NS))
        if low_ns < low - RANGE_NS or high_ns > high + RANGE_NS:
            self._wider[run] = self._ranges[run] = (min(low, low_ns), max(high, high_ns))

    @property
    def due(self) -> bool:
        """Whether there is something to write."""
        return bool(self._wider or self._mend)

    def write(self, connection: sqlite3.Connection, units: dict[bytes, int]) -> None:
        """Within the caller's transaction; `written` when it is committed."""
        for run, (low_ns, high_ns) in self._wider.items():
            connection.execute(_RANGE_WIDEN, (run, low_ns, high_ns))
        for (unit_id, boot_id), zero_ns in self._mend.items():
            for run in mend(connection, units[unit_id], boot_id, zero_ns):
                self._ranges.pop(run, None)

    def written(self) -> None:
        self._wider.clear()
        self._mend.clear()


def mend(connection: sqlite3.Connection, unit: int, boot_id: bytes, zero_ns: int) -> list[int]:
    """Put right what is stored of a boot already, within the caller's transaction; the runs that it changed."""
    runs = connection.execute(_WRONG_RUNS, (unit, boot_id, zero_ns, WALL_TOLERANCE_NS)).fetchall()
    for run, clock_ns in runs:
        for (series,) in connection.execute("SELECT id FROM series WHERE run = ?", (run,)).fetchall():
            first, end = series << SEQUENCE_BITS, series + 1 << SEQUENCE_BITS
            if connection.execute(_READINGS, (first, end, zero_ns, clock_ns, WALL_TOLERANCE_NS)).rowcount:
                for level in ROLLUP_LEVELS_S:
                    connection.execute(f"DELETE FROM rollup_{level}s WHERE series = ?", (series,))
                    connection.execute(_ROLLUP.format(level=level, span_ns=level * 10**9), (first, end))
            _mend_events(connection, series, zero_ns)
            for statement in (_CHUNKS, _VITALS):
                connection.execute(statement, (series, zero_ns, WALL_TOLERANCE_NS))
        connection.execute(_RANGE_SET, (run, zero_ns, zero_ns))
    return [run for run, _ in runs]


def _mend_events(connection: sqlite3.Connection, series: int, zero_ns: int) -> None:
    """An event's JSON is a unit's own: its number may be none, or larger than a time."""
    for number, wall_ns, text in connection.execute(
        "SELECT id, wall_ns, object FROM event WHERE series = ?1", (series,)
    ).fetchall():
        try:
            monotonic_ns = json.loads(text)["monotonic_ns"]
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        if not isinstance(monotonic_ns, int) or isinstance(monotonic_ns, bool) or not 0 <= monotonic_ns <= TIME_END_NS:
            continue
        if abs(wall_ns - monotonic_ns - zero_ns) > WALL_TOLERANCE_NS:
            connection.execute("UPDATE event SET wall_ns = ?2 WHERE id = ?1", (number, zero_ns + monotonic_ns))
