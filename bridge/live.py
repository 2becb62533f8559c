"""What the leader knows of each unit now: its state, its latest readings, its settings, its last seconds of raw data.

Nothing here is stored; it is what the page shows before anything is read from the store.
"""

from __future__ import annotations

import json
import math
from collections import deque

from stirbar.bridge import topics
from stirbar.bridge.blocks import STORED_FLAGS
from stirbar.bridge.dialect_payloads import JOBS
from stirbar.core.records import READING_FIELDS, STREAMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.records import Header

    Record = tuple[Any, ...]

STATES = ("online", "offline", "lost")
RAW_LIMIT_BYTES = 2 << 20  # of one unit: half a minute of four channels
SETTINGS_LIMIT = 64  # of one job

_FLAGS = tuple(STORED_FLAGS.items())
_WALL, _FLAG_BITS = READING_FIELDS.index("wall_ns"), READING_FIELDS.index("flags")


def reading_object(record: Record) -> dict[str, Any]:
    """A reading as JSON shows it: all fields (the stream by name), `t` in Unix seconds, `flag_names`; NaN is None."""
    out: dict[str, Any] = {
        name: (value if value.__class__ is not float or math.isfinite(value) else None)
        for name, value in zip(READING_FIELDS, record, strict=True)
    }
    out["stream"] = STREAMS[out["stream"]]
    out["t"] = record[_WALL] / 1e9
    flags = record[_FLAG_BITS]
    out["flag_names"] = [name for name, bit in _FLAGS if flags & bit]
    return out


def event_object(event: dict[str, Any]) -> dict[str, Any]:
    """An event as `Store.events` would show it, without id and unit."""
    wall_ns = event.get("wall_ns")
    value = event.get("value")
    out = {name: str(event.get(name) or "") for name in ("level", "source", "code", "message")}
    return {
        "t": wall_ns / 1e9 if isinstance(wall_ns, int) else None,
        **out,
        "value": None if isinstance(value, float) and not math.isfinite(value) else value,
    }


def parse_setting(topic_root: str, topic: str) -> tuple[str, str, str, str] | None:
    """(unit, experiment, job, setting) of a dialect topic that carries a setting of a job; None for any other."""
    if not topic.startswith(topic_root + "/"):
        return None
    levels = topic[len(topic_root) + 1 :].split("/")
    if len(levels) != 4 or levels[2] not in JOBS or not all(levels):
        return None
    unit, experiment, job, setting = levels
    # the slow copies of readings are no settings; the readings themselves come by our own topics
    if setting == "ods" or (setting.startswith("od") and setting[2:].isdecimal()):
        return None
    return unit, experiment, job, setting


def parse_value(payload: bytes) -> Any:
    """The value of a setting in the dialect: JSON or a word; of an object with one field beside its time, that."""
    if payload in (b"True", b"False"):
        return payload == b"True"
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        return payload[:1000].decode("utf-8", "replace")
    if isinstance(value, dict):
        rest = {name: item for name, item in value.items() if name != "timestamp"}
        if len(rest) == 1:
            value = next(iter(rest.values()))
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LiveUnit:
    """One unit as it is now. Synchronization: under the lock of the ingest."""

    __slots__ = (
        "applied",
        "assigned",
        "clock",
        "clock_wrong",
        "describe",
        "describe_due",
        "events_seen",
        "heard_at",
        "jobs_lost",
        "last_seen",
        "latest",
        "name",
        "raw",
        "raw_bytes",
        "settings",
        "silent",
        "state",
        "status",
        "topics",
        "unit_id",
    )

    def __init__(self, unit_id: bytes, data_root: str) -> None:
        self.unit_id = unit_id
        self.topics = topics.UnitTopics(data_root, unit_id.hex())
        self.name = unit_id.hex()
        self.describe: dict[str, Any] = {}
        self.describe_due = False  # the store does not have it yet
        self.state = "offline"
        self.last_seen = 0.0  # Unix seconds; 0: not since the leader started
        self.heard_at = 0.0  # the same, by the monotonic clock
        self.silent = False  # lost because nothing was heard of it, while its own last word is that it is online
        self.jobs_lost: tuple[str, ...] = ()  # whose states in the dialect the leader has called lost
        self.status: dict[str, Any] = {}
        self.settings: dict[str, dict[str, Any]] = {}
        self.latest: dict[int, Record] = {}
        self.raw: deque[tuple[Header, bytes]] = deque()
        self.raw_bytes = 0
        self.events_seen: dict[bytes, int] = {}  # run: one past the last event that listeners heard of
        self.clock: tuple[int, int] | None = None  # leader's time of its monotonic zero, error of its wall clock, ns
        self.clock_wrong = False  # and a person was told
        self.applied: dict[str, Any] = {}  # what the unit has made of what it should be
        self.assigned: str | None = None  # what the broker was told in this connection

    @property
    def experiment(self) -> str | None:
        """What the unit itself says it belongs to."""
        found = self.status.get("experiment", self.describe.get("experiment"))
        return found if isinstance(found, str) else None

    @property
    def foreign(self) -> bool:
        """Whether it is no stirbar's and is known by the dialect alone."""
        return bool(self.describe.get("foreign"))

    def add_raw(self, header: Header, payload: bytes) -> None:
        self.raw.append((header, payload))
        self.raw_bytes += len(payload)
        while self.raw_bytes > RAW_LIMIT_BYTES and len(self.raw) > 1:
            self.raw_bytes -= len(self.raw.popleft()[1])

    def latest_raw(self, seconds: float) -> list[tuple[Header, bytes]]:
        """The blocks of the last so many seconds, oldest first, of the newest run only."""
        if not self.raw:
            return []
        newest = self.raw[-1][0]
        since_ns = newest.monotonic_ns - round(seconds * 1e9)
        return [
            (header, payload)
            for header, payload in self.raw
            if header.run_id == newest.run_id and header.monotonic_ns >= since_ns
        ]

    def new_event(self, run_id: bytes, sequence: int) -> bool:
        """Whether listeners have not heard of this event: it comes live and again to be stored."""
        if sequence < self.events_seen.get(run_id, 0):
            return False
        if run_id not in self.events_seen and len(self.events_seen) > 16:
            self.events_seen.clear()
        self.events_seen[run_id] = sequence + 1
        return True

    def set_setting(self, job: str, setting: str, value: Any) -> bool:
        """Take in a setting; False when it is the value in force, or one too many."""
        settings = self.settings.setdefault(job, {})
        if setting in settings:
            if settings[setting] == value:
                return False
        elif len(settings) >= SETTINGS_LIMIT:
            return False
        settings[setting] = value
        return True

    def jobs(self) -> dict[str, Any]:
        """{job: state}, from the dialect's states and the newer word of the status."""
        found = {job: values[topics.STATE_SETTING] for job, values in self.settings.items() if "$state" in values}
        told = self.status.get("jobs")
        return found | told if isinstance(told, dict) else found

    def brief(self, experiment: str | None) -> dict[str, Any]:
        """Who and how it is, for other threads; `experiment` is the assignment that the store has."""
        return {
            "unit": self.name,
            "unit_id": self.unit_id.hex(),
            "state": self.state,
            "last_seen": self.last_seen or None,
            "experiment": self.experiment if self.foreign else experiment,
            "foreign": self.foreign,
            "clock_offset_s": None if self.clock is None else self.clock[1] / 1e9,
            "simulated": bool(self.describe.get("simulated")),
            "version": self.describe.get("version"),
            "channels": self.describe.get("channels") or [],
            "describe": self.describe,
        }

    def snapshot(self, experiment: str | None) -> dict[str, Any]:
        """The same with what it measures."""
        return {
            **self.brief(experiment),
            "jobs": self.jobs(),
            "status": self.status,
            "settings": [
                {"job": job, "setting": setting, "value": value}
                for job, values in self.settings.items()
                for setting, value in values.items()
            ],
            "latest": {STREAMS[stream]: reading_object(record) for stream, record in self.latest.items()},
        }
