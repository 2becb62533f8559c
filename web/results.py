"""Everything of an experiment in one ZIP, written while the store is read: nothing of it is held in memory."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from stirbar.core.records import STREAMS

if TYPE_CHECKING:
    from stirbar.bridge.store import Store

CHUNK_BYTES = 64 * 1024
EVENT_COLUMNS = ("timestamp", "pioreactor_unit", "level", "source", "code", "message", "object", "unit_id", "wall_ns")
DOSE_COLUMNS = ("timestamp", "pioreactor_unit", "event", "volume_change_ml", "source_of_event", "unit_id", "wall_ns")
GAP_COLUMNS = ("timestamp", "pioreactor_unit", "stream", "first_sequence", "count", "reason", "unit_id", "run_id")
ASSIGNMENT_COLUMNS = ("from", "until", "pioreactor_unit", "label", "unit_id")
DOSED = "dose_step"

Row = Iterable[Any]


class _Growing(io.RawIOBase):
    """What the ZIP was written so far and nobody has taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self.size += len(part)
        return len(part)

    def take(self) -> bytes:
        parts, self._parts, self.size = self._parts, [], 0
        return b"".join(parts)


def results(store: Store, experiment: str) -> Iterator[bytes]:
    """The ZIP, piece by piece: readings, events, doses, gaps, assignments, and what the experiment is."""
    growing = _Growing()
    about = next(one for one in store.experiments() if one["name"] == experiment)
    tables: tuple[tuple[str, Iterable[Row]], ...] = (
        ("assignments.csv", _assignments(store, experiment)),
        ("readings.csv", store.csv_rows(experiment)),
        ("events.csv", _events(store, experiment)),
        ("doses.csv", _doses(store, experiment)),
        ("gaps.csv", _gaps(store, experiment)),
    )
    with zipfile.ZipFile(growing, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("experiment.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
        for name, rows in tables:
            with archive.open(name, "w", force_zip64=True) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
                writer = csv.writer(text)
                for row in rows:
                    writer.writerow(row)
                    if growing.size >= CHUNK_BYTES:
                        yield growing.take()
    yield growing.take()


def iso(wall_ns: int) -> str:
    """Unix time in ns as text, in UTC."""
    return datetime.fromtimestamp(wall_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _assignments(store: Store, experiment: str) -> Iterator[Row]:
    yield ASSIGNMENT_COLUMNS
    for one in reversed(store.assignment_history(experiment=experiment)):
        until = "" if one["until"] is None else iso(round(one["until"] * 1e9))
        yield (iso(round(one["from"] * 1e9)), until, one["unit"], one["label"] or "", one["unit_id"].hex())


def _events(store: Store, experiment: str) -> Iterator[Row]:
    yield EVENT_COLUMNS
    for one in store.experiment_events(experiment):
        said = [one[name] for name in ("unit", "level", "source", "code", "message", "object")]
        yield (iso(one["wall_ns"]), *said, one["unit_id"].hex(), one["wall_ns"])


def _doses(store: Store, experiment: str) -> Iterator[Row]:
    yield DOSE_COLUMNS
    for one in store.experiment_events(experiment):
        if one["code"] == DOSED:
            told = json.loads(one["object"])
            moved = [told.get(name, "") for name in ("event", "volume_change", "source_of_event")]
            yield (iso(one["wall_ns"]), one["unit"], *moved, one["unit_id"].hex(), one["wall_ns"])


def _gaps(store: Store, experiment: str) -> Iterator[Row]:
    yield GAP_COLUMNS
    for one in store.experiment_gaps(experiment):
        lost = [one[name] for name in ("first_sequence", "count", "reason")]
        stream = STREAMS.get(one["stream"], one["stream"])
        yield (iso(one["wall_ns"]), one["unit"], stream, *lost, one["unit_id"].hex(), one["run_id"].hex())
