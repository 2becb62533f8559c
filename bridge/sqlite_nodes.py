"""What the store knows of the nodes: labels, tags, assignments over time, vitals, and who has to stand down."""

from __future__ import annotations

import math
import time

from stirbar.bridge.blocks import TIME_END_NS, plain
from stirbar.bridge.sqlite_reader import SqliteReader
from stirbar.bridge.store import StoreError
from stirbar.core.vitals import STORED

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from typing import Any

    from stirbar.core.records import Header

LABEL_LENGTH = 60
TAG_LENGTH = 32
TAGS_MAXIMUM = 16
LARGEST_VITAL = 1e15  # what is larger is no figure of a computer
EVENTS_PAGE = 2000
CLOCK_OFFSET = "clock_offset_s"
_OF_THE_UNIT = tuple(name for name in STORED if name != CLOCK_OFFSET)
_BINS = ", ".join(f"min({name}), avg({name}), max({name})" for name in STORED)
_EXPERIMENT = "(SELECT id FROM experiment WHERE name = ?1)"


def vitals_row(
    series: int, sequence: int, unit: int, header: Header, figures: dict[str, Any], zero_ns: int | None
) -> tuple[Any, ...]:
    """A row of the table, from what a unit sent; `zero_ns` is the leader's time of the unit's monotonic zero."""
    wall_ns = figures.get("wall_ns", header.realtime_ns)
    monotonic_ns = figures.get("monotonic_ns")
    if not isinstance(monotonic_ns, int) or isinstance(monotonic_ns, bool) or not 0 <= monotonic_ns < TIME_END_NS:
        monotonic_ns = header.monotonic_ns
    values = [_figure(figures.get(name)) for name in _OF_THE_UNIT]
    offset_s = None if zero_ns is None else (wall_ns - monotonic_ns - zero_ns) / 1e9
    return (series, sequence, unit, wall_ns, monotonic_ns, *values, offset_s)


def _figure(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < LARGEST_VITAL else None


def check_label(label: str) -> str:
    """A label without space around it. Raises StoreError for one that cannot be shown in a line."""
    label = label.strip()
    if len(label) > LABEL_LENGTH or not label.isprintable() or plain(label) != label:
        raise StoreError(f"label {label[:LABEL_LENGTH]!r}: at most {LABEL_LENGTH} printable characters")
    return label


def check_tags(tags: list[str]) -> list[str]:
    """Tags, sorted, each once. Raises StoreError for one that is no word."""
    for tag in tags:
        if not 0 < len(tag) <= TAG_LENGTH or not all(letter.isalnum() or letter in "-_." for letter in tag):
            raise StoreError(f"tag {tag[:TAG_LENGTH]!r}: 1 to {TAG_LENGTH} letters, digits, - _ and .")
    found = sorted(set(tags))
    if len(found) > TAGS_MAXIMUM:
        raise StoreError(f"{len(found)} tags: at most {TAGS_MAXIMUM} of a unit")
    return found


class SqliteNodes(SqliteReader):
    """See `Store`. Synchronization: reading from any thread; writing takes the lock of `SqliteStore`."""

    _lock: threading.RLock
    _writer: Any
    _units: dict[bytes, int]
    _experiments: dict[str, int]

    def _transaction(self, synchronous: str) -> AbstractContextManager[None]:
        raise NotImplementedError

    def _known(self, unit_id: bytes, experiment: str | None = None) -> tuple[int, int]:
        """Numbers of a unit and an experiment (0 for None). Lock held. Raises StoreError for what is not here."""
        unit = self._units.get(unit_id)
        if unit is None:
            raise StoreError(f"no unit {unit_id.hex()}: it has never reported to this leader")
        if experiment is not None and experiment not in self._experiments:
            raise StoreError(f"no experiment '{experiment}': create it first")
        return unit, 0 if experiment is None else self._experiments[experiment]

    # Labels and tags

    def set_label(self, unit_id: bytes, experiment: str, label: str) -> str:
        label = check_label(label)
        with self._lock:
            unit, number = self._known(unit_id, experiment)
            with self._transaction("FULL"):
                taken = self._writer.execute(
                    "SELECT name FROM label JOIN unit ON unit.id = label.unit "
                    "WHERE experiment = ? AND label = ? AND unit <> ?",
                    (number, label, unit),
                ).fetchone()
                if taken:
                    raise StoreError(f"the unit '{taken[0]}' has the label '{label}' in '{experiment}': choose another")
                self._writer.execute("DELETE FROM label WHERE experiment = ? AND unit = ?", (number, unit))
                if label:
                    self._writer.execute("INSERT INTO label VALUES (?,?,?)", (number, unit, label))
        return label

    def labels(self, experiment: str) -> dict[bytes, str]:
        rows = self._rows(
            f"SELECT unit_id, label FROM label JOIN unit ON unit.id = label.unit WHERE experiment = {_EXPERIMENT}",
            (experiment,),
        )
        return dict(rows)

    def set_tags(self, unit_id: bytes, tags: list[str]) -> list[str]:
        found = check_tags(tags)
        with self._lock:
            unit, _ = self._known(unit_id)
            with self._transaction("FULL"):
                self._writer.execute("DELETE FROM tag WHERE unit = ?", (unit,))
                for tag in found:
                    self._writer.execute("INSERT INTO tag VALUES (?,?)", (unit, tag))
        return found

    # Assignments

    def assignment_history(
        self, unit_id: bytes | None = None, experiment: str | None = None, limit: int = 1000
    ) -> list[dict[str, Any]]:
        rows = self._rows(
            "SELECT unit.unit_id, unit.name, experiment.name, label, from_ns, until_ns FROM assignment "
            "JOIN unit ON unit.id = assignment.unit JOIN experiment ON experiment.id = assignment.experiment "
            "LEFT JOIN label ON label.unit = unit.id AND label.experiment = experiment.id "
            "WHERE (?1 IS NULL OR unit.unit_id = ?1) AND (?2 IS NULL OR experiment.name = ?2) "
            "ORDER BY from_ns DESC, assignment.id DESC LIMIT ?3",
            (unit_id, experiment, limit),
        )
        return [
            {
                "unit_id": number,
                "unit": unit,
                "experiment": name,
                "label": label,
                "from": from_ns / 1e9,
                "until": None if until_ns is None else until_ns / 1e9,
            }
            for number, unit, name, label, from_ns, until_ns in rows
        ]

    def replace(self, experiment: str, failed_id: bytes, spare_id: bytes) -> dict[str, Any]:
        with self._lock:
            failed, number = self._known(failed_id, experiment)
            spare, _ = self._known(spare_id)
            with self._transaction("FULL"):
                execute, now_ns = self._writer.execute, time.time_ns()
                in_force = dict(execute("SELECT unit, experiment FROM assignment WHERE until_ns IS NULL").fetchall())
                if in_force.get(failed) != number:
                    raise StoreError(f"the failed unit is not in the experiment '{experiment}'")
                if failed == spare or spare in in_force:
                    raise StoreError("the spare is in an experiment already: take it out of that first")
                label = execute(
                    "SELECT label FROM label WHERE experiment = ? AND unit = ?", (number, failed)
                ).fetchone()
                tags = [tag for (tag,) in execute("SELECT tag FROM tag WHERE unit = ?", (failed,)).fetchall()]
                execute("UPDATE assignment SET until_ns = ? WHERE unit = ? AND until_ns IS NULL", (now_ns, failed))
                execute("INSERT INTO assignment (unit, experiment, from_ns) VALUES (?,?,?)", (spare, number, now_ns))
                execute("DELETE FROM label WHERE experiment = ? AND unit IN (?,?)", (number, failed, spare))
                if label:
                    execute("INSERT INTO label VALUES (?,?,?)", (number, spare, label[0]))
                for tag in tags:
                    execute("INSERT INTO tag VALUES (?,?) ON CONFLICT DO NOTHING", (spare, tag))
                execute("DELETE FROM tag WHERE unit = ?", (failed,))
                execute("DELETE FROM standdown WHERE unit IN (?,?)", (failed, spare))
                execute("INSERT INTO standdown VALUES (?,?)", (failed, now_ns))
        return {"label": label[0] if label else None, "tags": sorted(tags)}

    def standing_down(self) -> list[bytes]:
        rows = self._rows("SELECT unit_id FROM standdown JOIN unit ON unit.id = standdown.unit")
        return [unit_id for (unit_id,) in rows]

    def stood_down(self, unit_id: bytes) -> None:
        with self._lock:
            unit, _ = self._known(unit_id)
            with self._transaction("FULL"):
                self._writer.execute("DELETE FROM standdown WHERE unit = ?", (unit,))

    # Vitals

    def vitals(self, unit_id: bytes, start_s: float, end_s: float, points: int) -> list[dict[str, Any]]:
        if points < 1 or not -1e9 < start_s < end_s < 4e9:
            raise StoreError(f"vitals from {start_s} to {end_s} s, {points} points: start < end, at least one point")
        start_ns = round(start_s * 1e9)
        width_ns = max(1, math.ceil((end_s - start_s) * 1e9 / points))
        rows = self._rows(
            f"SELECT (wall_ns - ?) / ?, {_BINS} FROM vitals WHERE unit = (SELECT id FROM unit WHERE unit_id = ?) "
            "AND wall_ns >= ? AND wall_ns < ? GROUP BY 1 ORDER BY 1",
            (start_ns, width_ns, unit_id, start_ns, round(end_s * 1e9)),
        )
        lines = []
        for place, (name, unit) in enumerate(STORED.items()):
            told = [(row[0], *row[1 + 3 * place : 4 + 3 * place]) for row in rows if row[1 + 3 * place] is not None]
            if told:
                bins, low, mean, high = (list(column) for column in zip(*told, strict=True))
                t = [(start_ns + (number + 0.5) * width_ns) / 1e9 for number in bins]
                lines.append({"name": name, "unit_of_value": unit, "t": t, "low": low, "mean": mean, "high": high})
        return lines

    # What belongs to an experiment

    def experiment_events(self, experiment: str) -> Iterator[dict[str, Any]]:
        after = 0
        while True:
            page = self._rows(
                f"SELECT event.id, event.wall_ns, unit.name, unit.unit_id, level, source, code, message, object "
                "FROM event JOIN unit ON unit.id = event.unit LEFT JOIN series ON series.id = event.series "
                f"WHERE event.id > ?2 AND (series.experiment = {_EXPERIMENT} OR (event.series IS NULL AND EXISTS ("
                f"SELECT 1 FROM assignment WHERE assignment.unit = event.unit AND assignment.experiment = {_EXPERIMENT}"
                " AND event.wall_ns >= from_ns AND (until_ns IS NULL OR event.wall_ns < until_ns)))) "
                "ORDER BY event.id LIMIT ?3",
                (experiment, after, EVENTS_PAGE),
            )
            names = ("id", "wall_ns", "unit", "unit_id", "level", "source", "code", "message", "object")
            yield from (dict(zip(names, row, strict=True)) for row in page)
            if len(page) < EVENTS_PAGE:
                return
            after = page[-1][0]

    def experiment_gaps(self, experiment: str) -> list[dict[str, Any]]:
        rows = self._rows(
            "SELECT unit.name, unit.unit_id, run.run_id, gap.stream, first_sequence, count, reason, wall_ns FROM gap "
            "JOIN run ON run.id = gap.run JOIN unit ON unit.id = run.unit WHERE EXISTS (SELECT 1 FROM series "
            f"WHERE series.run = gap.run AND series.stream = gap.stream AND series.experiment = {_EXPERIMENT}) "
            "ORDER BY gap.id",
            (experiment,),
        )
        names = ("unit", "unit_id", "run_id", "stream", "first_sequence", "count", "reason", "wall_ns")
        return [dict(zip(names, row, strict=True)) for row in rows]
