"""What is asked of the SQLite store: charts, downloads, lists. Any thread, each on a connection of its own."""

from __future__ import annotations

import json
import math
import pathlib
import sqlite3
import sys
import threading
import weakref
from datetime import UTC, datetime

from stirbar.bridge.blocks import ROLLUP_LEVELS_S, SEQUENCE_BITS, SEQUENCE_END, STORED_FLAGS, rollup_level
from stirbar.bridge.store import Store, StoreError
from stirbar.core.records import KIND_RAW_CHUNK, STREAM_UNITS, STREAMS, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, TypeVar

    T = TypeVar("T")
    Point = list[Any]  # time (s), low, high, sum, count

BUSY_TIMEOUT_S = 1.0  # how long to wait for another process's lock; the ingest thread waits with it
CSV_PAGE_ROWS = 2000
CSV_COLUMNS = (
    "experiment", "pioreactor_unit", "timestamp", "stream", "value", "unit", "se_instrument", "se_culture", "angle",
    "window_s", "noise_bandwidth_hz", "signal_v", "reference_v", "ambient_v", "blank", "used", "rejected", "half_cycle",
    "flags", "unit_id", "run_id", "sequence", "wall_ns", "monotonic_ns",
)  # fmt: skip

_EVENT_SELECT = (
    "SELECT event.id, wall_ns, unit.unit_id, unit.name, level, source, code, message, object, acknowledged_ns, "
    "acknowledged_by FROM event LEFT JOIN unit ON unit.id = event.unit"
)
_OPEN = "acknowledged_ns IS NULL AND level IN ('warning', 'error')"  # as the index event_open has it
# which event says that a fault is over, beside the one whose code ends in _over
ENDS = {"sensor_lost": "sensor_back", "stir_stall": "stir_running", "stir_fault": "stir_running"}
OF_A_STREAM = ("sensor_lost",)  # whose message, and that of its end, begins with the stream


class Connection(sqlite3.Connection):
    """A connection that can be weakly referenced, so that those of ended threads do not pile up."""


class SqliteReader(Store):
    """The reading half of `SqliteStore`. Synchronization: any thread; no query holds a snapshot between calls."""

    SUM = "sum({})"  # an overflow is infinite, no error
    ERROR: type[Exception] = sqlite3.Error  # what the database raises

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.name = str(path)  # for messages
        self._local = threading.local()
        self._readers: weakref.WeakSet[Connection] = weakref.WeakSet()
        self._readers_lock = threading.Lock()  # protects _readers and _closed
        self._closed = False

    def _connect(self) -> Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, factory=Connection
        )
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        return connection

    def _connect_to_read(self) -> Any:
        connection = self._connect()
        connection.execute("PRAGMA query_only = 1")
        return connection

    def _read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on this thread's own connection; what SQLite refuses becomes a StoreError."""
        try:
            connection: Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._connect_to_read()
                with self._readers_lock:
                    self._readers.add(connection)
                self._local.connection = connection
            if self._closed:
                raise StoreError(f"database {self.name} is closed")
            return query(connection)
        except self.ERROR as error:
            raise StoreError(f"database {self.name} cannot be read: {error}") from None

    def _rows(self, statement: str, values: tuple[Any, ...] | list[Any] = ()) -> list[Any]:
        return self._read(lambda connection: connection.execute(statement, values).fetchall())

    def close_readers(self) -> None:
        """Let go of the connections of all threads; a query that is running is interrupted."""
        with self._readers_lock:
            self._closed = True
            for connection in list(self._readers):
                connection.interrupt()

    # Units, experiments, assignments

    def units(self) -> list[dict[str, Any]]:
        rows = self._rows(
            "SELECT unit.unit_id, unit.name, unit.describe, unit.first_seen_ns, experiment.name, label.label FROM unit "
            "LEFT JOIN assignment ON assignment.unit = unit.id AND assignment.until_ns IS NULL "
            "LEFT JOIN experiment ON experiment.id = assignment.experiment "
            "LEFT JOIN label ON label.experiment = experiment.id AND label.unit = unit.id ORDER BY unit.name, unit.id"
        )
        tags: dict[bytes, list[str]] = {}
        for unit_id, tag in self._rows("SELECT unit_id, tag FROM tag JOIN unit ON unit.id = tag.unit ORDER BY tag"):
            tags.setdefault(unit_id, []).append(tag)
        names = ("unit_id", "unit", "describe", "first_seen", "experiment", "label", "tags")
        return [
            dict(
                zip(
                    names, (unit_id, name, json.loads(about), first_ns / 1e9, *rest, tags.get(unit_id, [])), strict=True
                )
            )
            for unit_id, name, about, first_ns, *rest in rows
        ]

    def experiments(self) -> list[dict[str, Any]]:
        members: dict[str, list[str]] = {}
        for unit in self.units():
            members.setdefault(unit["experiment"], []).append(unit["unit"])
        rows = self._rows(
            "SELECT name, description, created_ns FROM experiment WHERE name <> '' AND name NOT LIKE '$%' "
            "ORDER BY created_ns DESC, id DESC"
        )
        return [
            {"name": name, "description": text, "created_at": created_ns / 1e9, "units": members.get(name, [])}
            for name, text, created_ns in rows
        ]

    def assignments(self) -> dict[bytes, str]:
        return {unit["unit_id"]: unit["experiment"] for unit in self.units() if unit["experiment"] is not None}

    # Charts

    def series(
        self,
        stream: int,
        start_s: float,
        end_s: float,
        points: int,
        unit_ids: list[bytes] | None = None,
        experiment: str | None = None,
    ) -> list[dict[str, Any]]:
        if points < 1 or not (math.isfinite(start_s) and math.isfinite(end_s)) or not -1e9 < start_s < end_s < 4e9:
            raise StoreError(f"chart from {start_s} to {end_s} s with {points} points: start < end, at least one point")
        lines: dict[tuple[bytes, int, str], list[int]] = {}
        for number, unit_id, name, angle in self._find_series(stream, unit_ids, experiment):
            lines.setdefault((unit_id, angle, name), []).append(number)
        out = []
        for (unit_id, angle, name), numbers in lines.items():
            curves = self._line(numbers, start_s, end_s, points)
            if curves["t"]:
                out.append({"unit_id": unit_id, "unit": name, "stream": stream, "angle": angle, **curves})
        return out

    def _line(self, numbers: list[int], start_s: float, end_s: float, points: int) -> dict[str, list[float]]:
        """The curves of the series that make one line."""
        width_s = (end_s - start_s) / points
        level = rollup_level(width_s)
        if level and len(numbers) == 1:  # the usual case: nothing is to be merged
            rows, span_s = self._rolled_rows(numbers[0], level, start_s, end_s, width_s)
            if len(rows) <= points + 1:
                return _columns(rows, span_s)
        merged: dict[float, Point] = {}
        for number in numbers:
            if level:
                found = self._rolled_points(number, level, start_s, end_s, width_s)
            else:
                found = self._fine_points(number, start_s, end_s, points)
            for point in found:
                _merge(merged, point)
        return _lists(merged if len(merged) <= points + 1 else _thin(merged, start_s, width_s))

    def _find_series(self, stream: int, unit_ids: list[bytes] | None, experiment: str | None) -> list[Any]:
        where = ["series.stream = ?"]
        values: list[Any] = [stream]
        if unit_ids is not None:
            where.append(f"unit.unit_id IN ({','.join('?' * len(unit_ids)) or 'NULL'})")
            values += unit_ids
        if experiment is not None:
            where.append("series.experiment = (SELECT id FROM experiment WHERE name = ?)")
            values.append(experiment)
        return self._rows(
            "SELECT series.id, unit.unit_id, unit.name, series.angle FROM series JOIN run ON run.id = series.run "
            f"JOIN unit ON unit.id = run.unit WHERE {' AND '.join(where)} ORDER BY unit.name, unit.id, series.id",
            values,
        )

    def _rolled_points(self, series: int, level: int, start_s: float, end_s: float, width_s: float) -> list[Point]:
        rows, span_s = self._rolled_rows(series, level, start_s, end_s, width_s)
        return [[(number + 0.5) * span_s, *rest] for number, *rest in rows]

    def _rolled_rows(
        self, series: int, level: int, start_s: float, end_s: float, width_s: float
    ) -> tuple[list[Any], int]:
        """Bins of a whole number of roll-up buckets, at multiples of their length (returned beside them): they stay
        put as time goes on. A bin is its number, low, high, sum and count."""
        group = math.ceil(width_s / level)
        place = "WHERE series = ?1 AND bucket >= ?2 AND bucket < ?3 AND count > 0"
        values = (series, math.floor(start_s / level), math.ceil(end_s / level))
        if group == 1:
            rows = self._rows(
                f"SELECT bucket, low, high, sum, count FROM rollup_{level}s {place} ORDER BY bucket", values
            )
        else:
            rows = self._rows(
                f"SELECT bucket / ?4, min(low), max(high), {self.SUM.format('sum')}, sum(count) "
                f"FROM rollup_{level}s {place} GROUP BY 1 ORDER BY 1",
                (*values, group),
            )
        return rows, group * level

    def _fine_points(self, series: int, start_s: float, end_s: float, points: int) -> list[Point]:
        """From readings; where retention left none, from the finest roll-ups."""
        rows = self._rows("SELECT before_ns FROM thinned WHERE series = ?", (series,))
        edge_s = min(max(start_s, rows[0][0] / 1e9), end_s) if rows else start_s
        found: list[Point] = []
        if edge_s > start_s:
            found = self._rolled_points(series, ROLLUP_LEVELS_S[0], start_s, edge_s, (end_s - start_s) / points)
        return found + (self._reading_points(series, edge_s, end_s, points) if edge_s < end_s else [])

    def _reading_points(self, series: int, start_s: float, end_s: float, points: int) -> list[Point]:
        """The readings themselves, or bins of them when there are more than `points`."""
        fine = ROLLUP_LEVELS_S[0]
        ((count, first, last),) = self._rows(
            "SELECT sum(count), min(first_sequence), max(last_sequence) FROM rollup_10s "
            "WHERE series = ? AND bucket >= ? AND bucket < ?",
            (series, math.floor(start_s / fine), math.ceil(end_s / fine)),
        )
        if not count:
            return []
        start_ns, end_ns = round(start_s * 1e9), round(end_s * 1e9)
        place = "id BETWEEN ? AND ? AND wall_ns >= ? AND wall_ns < ? AND abs(value) <= ?"
        largest = sys.float_info.max
        values = (series << SEQUENCE_BITS | first, series << SEQUENCE_BITS | last, start_ns, end_ns, largest)
        if count <= 4 * points:
            rows = self._rows(f"SELECT wall_ns, value FROM reading WHERE {place}", values)
            if len(rows) <= points:
                return [[wall_ns / 1e9, value, value, value, 1] for wall_ns, value in rows]
        width_ns = math.ceil((end_ns - start_ns) / points)
        rows = self._rows(
            f"SELECT (wall_ns - ?) / ?, min(value), max(value), {self.SUM.format('value')}, count(*) FROM reading "
            f"WHERE {place} GROUP BY 1",
            (start_ns, width_ns, *values),
        )
        return [[(start_ns + (number + 0.5) * width_ns) / 1e9, *rest] for number, *rest in rows]

    # Downloads

    def csv_rows(self, experiment: str, stream: int | None = None) -> Iterator[list[str]]:
        if not self._rows("SELECT 1 FROM experiment WHERE name = ?", (experiment,)):
            raise StoreError(f"no experiment '{experiment}'")
        series = self._rows(
            "SELECT series.id, unit.name, series.stream, series.angle, unit.unit_id, run.run_id, run.clock_ns "
            "FROM series JOIN run ON run.id = series.run JOIN unit ON unit.id = run.unit "
            "WHERE series.experiment = (SELECT id FROM experiment WHERE name = ?1) "
            "AND series.stream = coalesce(?2, series.stream) "
            "ORDER BY unit.name, unit.id, series.stream, series.run, series.id",
            (experiment, stream),
        )
        return self._csv(experiment, series)

    def _csv(self, experiment: str, series: list[Any]) -> Iterator[list[str]]:
        yield list(CSV_COLUMNS)
        for number, unit, stream, angle, unit_id, run_id, clock_ns in series:
            left = [experiment, unit]
            right = [unit_id.hex(), run_id.hex()]
            after, end = (number << SEQUENCE_BITS) - 1, (number + 1) << SEQUENCE_BITS
            while True:
                page = self._rows(
                    "SELECT * FROM reading WHERE id > ? AND id < ? ORDER BY id LIMIT ?", (after, end, CSV_PAGE_ROWS)
                )
                for row in page:
                    identity, wall_ns, rest_ns, value, se_instrument, se_culture = row[:6]
                    yield [
                        *left,
                        _iso(wall_ns),
                        STREAMS.get(stream, str(stream)),
                        _text(value),
                        STREAM_UNITS.get(stream, ""),
                        _short(se_instrument),
                        _short(se_culture),
                        str(angle),
                        *map(_short, row[6:12]),
                        str(row[12]),
                        str(row[13]),
                        str(row[15]),
                        " ".join(name for name, bit in STORED_FLAGS.items() if row[14] & bit),
                        *right,
                        str(identity & (SEQUENCE_END - 1)),
                        str(wall_ns),
                        str(wall_ns - rest_ns - clock_ns),
                    ]
                if len(page) < CSV_PAGE_ROWS:
                    break
                after = page[-1][0]

    # Events, gaps, raw

    def events(
        self, unit_id: bytes | None = None, limit: int = 100, before: float | None = None
    ) -> list[dict[str, Any]]:
        where = ["1 = 1"]
        values: list[Any] = []
        if unit_id is not None:
            where.append("event.unit = (SELECT id FROM unit WHERE unit_id = ?)")
            values.append(unit_id)
        if before is not None:
            where.append("event.wall_ns < ?")
            values.append(round(before * 1e6) * 1000)
        rows = self._rows(
            f"{_EVENT_SELECT} WHERE {' AND '.join(where)} ORDER BY event.wall_ns DESC, event.id DESC LIMIT ?",
            [*values, limit],
        )
        return [_event(row) for row in rows]

    def alerts(self, unit_id: bytes | None = None, limit: int = 100) -> dict[str, Any]:
        where = f"{_OPEN} AND (?1 IS NULL OR event.unit = (SELECT id FROM unit WHERE unit_id = ?1))"
        ((count, newest),) = self._rows(f"SELECT count(*), max(id) FROM event WHERE {where}", (unit_id,))
        rows = self._rows(
            f"{_EVENT_SELECT} WHERE {where} ORDER BY event.wall_ns DESC, event.id DESC LIMIT ?2", (unit_id, limit)
        )
        return {"count": count, "newest": newest, "alerts": [{**_event(row), "over": self._over(row)} for row in rows]}

    def _over(self, row: tuple[Any, ...]) -> float | None:
        """When an alert ended: by the event that says so, or with the worker's run."""
        number, code, message = row[0], row[6], row[7]
        ((end_ns,),) = self._rows(
            "SELECT min(other.wall_ns) FROM event JOIN event AS other ON other.unit = event.unit "
            "AND other.wall_ns >= event.wall_ns AND other.id > event.id "
            "WHERE event.id = ?1 AND other.code IN (?2, ?3) AND (?4 = '' OR other.message LIKE ?4 || ' %')",
            (number, f"{code}_over", ENDS.get(code), message.split(" ")[0] if code in OF_A_STREAM else ""),
        )
        if end_ns is None:
            ((end_ns,),) = self._rows(
                "SELECT min(later.first_seen_ns) FROM event JOIN series ON series.id = event.series "
                "JOIN run ON run.id = series.run JOIN run AS later ON later.unit = run.unit AND later.id > run.id "
                "WHERE event.id = ?",
                (number,),
            )
        return None if end_ns is None else float(end_ns // 1000 / 1e6)

    def gaps(self, unit_id: bytes | None = None, limit: int = 100) -> list[dict[str, Any]]:
        rows = self._rows(
            "SELECT unit.unit_id, unit.name, run.run_id, stream, first_sequence, count, reason, gap.wall_ns FROM gap "
            "JOIN run ON run.id = gap.run JOIN unit ON unit.id = run.unit WHERE ?1 IS NULL OR unit.unit_id = ?1 "
            "ORDER BY gap.id DESC LIMIT ?2",
            (unit_id, limit),
        )
        names = ("unit_id", "unit", "run_id", "stream", "first_sequence", "count", "reason", "t")
        return [dict(zip(names, (*row[:7], row[7] / 1e9), strict=True)) for row in rows]

    def raw_chunks(self, unit_id: bytes, start_s: float, end_s: float) -> list[tuple[Header, bytes]]:
        rows = self._rows(
            "SELECT series.stream, raw_chunk.count, first_sequence, run.run_id, run.boot_id, raw_ns, monotonic_ns, "
            "realtime_ns, experiment.name, payload FROM raw_chunk JOIN series ON series.id = raw_chunk.series "
            "JOIN run ON run.id = series.run JOIN unit ON unit.id = run.unit "
            "JOIN experiment ON experiment.id = series.experiment "
            "WHERE realtime_ns >= ? AND realtime_ns < ? AND unit.unit_id = ? ORDER BY realtime_ns, first_sequence",
            (round(start_s * 1e9), round(end_s * 1e9), unit_id),
        )
        return [(Header(KIND_RAW_CHUNK, row[0], 0, row[1], row[2], unit_id, *row[3:9]), row[9]) for row in rows]


def _merge(points: dict[float, Point], point: Point) -> None:
    """Two runs may share a bin."""
    other = points.get(point[0])
    if other is None:
        points[point[0]] = point
    else:
        other[1] = min(other[1], point[1])
        other[2] = max(other[2], point[2])
        other[3] = None if other[3] is None or point[3] is None else other[3] + point[3]
        other[4] += point[4]


def _thin(points: dict[float, Point], start_s: float, width_s: float) -> dict[float, Point]:
    """Bin again: several runs, each with few readings, may have more points together than were asked for."""
    binned: dict[float, Point] = {}
    for point in points.values():
        point[0] = start_s + (math.floor((point[0] - start_s) / width_s) + 0.5) * width_s
        _merge(binned, point)
    return binned


def _lists(points: dict[float, Point]) -> dict[str, list[float]]:
    ordered = sorted(points.values())
    return {
        "t": [point[0] for point in ordered],
        "low": [point[1] for point in ordered],
        "high": [point[2] for point in ordered],
        "mean": [_mean(*point[1:]) for point in ordered],
    }


def _columns(rows: list[Any], span_s: int) -> dict[str, list[float]]:
    """`_lists` of rolled rows, column by column."""
    if not rows:
        return {"t": [], "low": [], "high": [], "mean": []}
    numbers, low, high, totals, counts = zip(*rows, strict=True)
    means = list(map(_mean, low, high, totals, counts))
    return {"t": [(number + 0.5) * span_s for number in numbers], "low": list(low), "high": list(high), "mean": means}


def _mean(low: float, high: float, total: float | None, count: int) -> float:
    """Mean of finite values; their sum may have overflowed."""
    if total is None or not math.isfinite(total):
        return low / 2 + high / 2
    return total / count


def _event(row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of `_EVENT_SELECT` as it is given out."""
    number, wall_ns, *rest, text, acknowledged_ns, acknowledged_by = row
    names = ("unit_id", "unit", "level", "source", "code", "message")
    return {
        "id": number,
        "t": wall_ns // 1000 / 1e6,
        **dict(zip(names, rest, strict=True)),
        "value": _value(text),
        "acknowledged_at": None if acknowledged_ns is None else acknowledged_ns // 1000 / 1e6,
        "acknowledged_by": acknowledged_by,
    }


def _value(text: str) -> Any:
    """The `value` of an event's JSON, as JSON without NaN."""
    value = json.loads(text).get("value")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float | None) -> str:
    """A number that came with 32 bits: nine digits are all of it."""
    return "" if value is None else f"{value:.9g}"


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


def _iso(wall_ns: int) -> str:
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest // 1000:06d}Z"
