"""What the leader hears in the dialect of units that are not stirbar's, and of foreign jobs about units that are.

Such a unit publishes and forgets: no sequence numbers, no acknowledgement, nothing is sent again. What arrives is
stored once; what the broker did not deliver, or the store could not take, is missing, and only the latter is counted.

A name in the dialect is taken for a foreign unit's when it has said something that a unit says, not as a retained
message, and none of our units has the name SETTLE_S later. What it said meanwhile is taken in then. The id of a foreign
unit follows from its name; each process of the leader is one run. It has no heartbeat: while the broker has not sent a
job's last will, and it was heard within SILENT_S, it counts as seen.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import secrets
import time

from stirbar.bridge import topics
from stirbar.bridge.dialect_payloads import JOBS
from stirbar.bridge.live import parse_value
from stirbar.bridge.store import StoreUnavailable
from stirbar.core.records import FLAGS, KIND_READINGS, READING, RECORD_VERSION, STREAM_IDS, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stirbar.bridge.live import LiveUnit, Record
    from stirbar.bridge.store import Store

SETTLE_S = 3.0  # a unit of ours has described itself by then
SILENT_S = 60.0  # a foreign unit that says nothing for so long is taken for lost, whatever the broker says
NAMES_HELD, MESSAGES_HELD = 256, 256
UNITS_MAXIMUM = 1024
GROWTH = "growth_rate_calculating"
LOGS = "logs"
STRANGE_JOBS = (*JOBS, GROWTH, "dosing_automation", "led_automation")
LEVELS = {"info": "info", "notice": "notice", "warning": "warning", "error": "error", "critical": "error"}
NO_BOOT = bytes(16)  # of a foreign unit's clocks nothing is known

# (job, setting): stream, and the field of the struct that is its value; None: the payload is the number
READINGS: dict[tuple[str, str], tuple[int, str | None]] = {
    **{("od_reading", f"od{channel}"): (channel, "od") for channel in (1, 2, 3, 4)},
    ("od_reading", "od_fused"): (STREAM_IDS["od_fused"], "od_fused"),
    ("stirring", "measured_rpm"): (STREAM_IDS["rpm"], "measured_rpm"),
    ("temperature_automation", "temperature"): (STREAM_IDS["liquid"], "temperature"),
    ("bioreactor", "current_volume_ml"): (STREAM_IDS["volume"], None),
    ("dosing_automation", "current_volume_ml"): (STREAM_IDS["volume"], None),
    (GROWTH, "growth_rate"): (STREAM_IDS["growth_rate"], "growth_rate"),
    (GROWTH, "od_filtered"): (STREAM_IDS["od_filtered"], "od_filtered"),
}


def foreign_id(root: str, name: str) -> bytes:
    """The id of the foreign unit of this name: the same wherever and whenever it is asked for."""
    return hashlib.sha256(f"stirbar foreign unit\0{root}\0{name}".encode()).digest()[:16]


def parse_time(text: object) -> int:
    """ISO 8601 with its zone as Unix ns. Raises ValueError."""
    if not isinstance(text, str) or len(text) > 40:
        raise ValueError(f"time {str(text)[:50]!r}")
    moment = datetime.datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"time {text!r} without a zone")
    since = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return ((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds) * 1000


class Run:
    """What this leader has taken in of a unit: next sequence number and time of the last reading, by stream."""

    __slots__ = ("last_ns", "next", "run_id")

    def __init__(self) -> None:
        self.run_id = secrets.token_bytes(16)
        self.next: dict[int, int] = {}
        self.last_ns: dict[int, int] = {}


class House:
    """What the strangers need of the ingest: `find(name)` a unit, `adopt(name, unit_id)` a foreign one, `show` a
    reading, `tell` the listeners, `event(unit, level, code, text)`.

    Synchronization: immutable by convention.
    """

    __slots__ = ("adopt", "event", "find", "show", "tell")

    def __init__(
        self,
        find: Callable[[str], LiveUnit | None],
        adopt: Callable[[str, bytes], LiveUnit],
        show: Callable[[LiveUnit, Record], None],
        tell: Callable[[str, str, dict[str, Any]], None],
        event: Callable[[LiveUnit, str, str, str], None],
    ) -> None:
        self.find = find
        self.adopt = adopt
        self.show = show
        self.tell = tell
        self.event = event


class Strangers:
    """`hear` every message of the dialect, `settle` once a second.

    Synchronization: the ingest thread alone, but for `counters`, whose values are read as they are.
    """

    def __init__(self, store: Store, topic_root: str, house: House) -> None:
        self.counters = {"foreign_readings": 0, "foreign_not_stored": 0}
        self._store = store
        self._root = topic_root
        self._house = house
        self._held: dict[str, tuple[float, list[tuple[list[str], bytes, bool]]]] = {}
        self._runs: dict[bytes, Run] = {}
        self._heard: dict[bytes, tuple[LiveUnit, float]] = {}  # foreign units, and when last

    def subscriptions(self) -> list[tuple[str, bool]]:
        """What is heard beside the settings: log lines."""
        return [(f"{self._root}/+/+/{LOGS}/+/+", False)]

    def hear(self, topic: str, payload: bytes, retained: bool) -> bool:
        """A message; whether it is done with. Raises ValueError for one that cannot be read."""
        if not topic.startswith(self._root + "/"):
            return False
        levels = topic[len(self._root) + 1 :].split("/")
        if len(levels) != (5 if levels[2:3] == [LOGS] else 4) or not all(levels) or levels[0].startswith("$"):
            return False
        unit = self._house.find(levels[0])
        if unit is None:
            return self._hold(levels, payload, retained)
        if unit.foreign:
            self._take(unit, levels, payload, retained)
        elif levels[2] == GROWTH:
            if not retained:
                self._reading(unit, levels, payload)
        else:
            return levels[2] == LOGS  # our own units' come as events
        return True

    def settle(self, now: float) -> None:
        """Who was heard and is still nobody's name is a foreign unit; who is alive is seen."""
        for unit, heard in self._heard.values():
            if unit.state == "online" and now - heard <= SILENT_S:
                unit.last_seen = time.time()
                self._house.tell("status", unit.name, unit.status)
        for name, (since, messages) in list(self._held.items()):
            if now - since < SETTLE_S:
                continue
            del self._held[name]
            alive = any(not retained and _is_a_units(levels) for levels, _, retained in messages)
            if self._house.find(name) is not None or not alive or len(self._heard) >= UNITS_MAXIMUM:
                continue
            unit = self._house.adopt(name, foreign_id(self._root, name))
            self._house.event(unit, "notice", "foreign_unit", f"'{name}' is heard: a unit that is not stirbar's")
            for levels, payload, retained in messages:
                try:
                    self._take(unit, levels, payload, retained)
                except ValueError:
                    continue  # one that cannot be read does not keep out the others

    def _hold(self, levels: list[str], payload: bytes, retained: bool) -> bool:
        """Keep what a name says until it is known whose it is."""
        if levels[2] not in (*STRANGE_JOBS, LOGS):
            return False
        if levels[0] not in self._held and len(self._held) >= NAMES_HELD:
            return True
        _, messages = self._held.setdefault(levels[0], (time.monotonic(), []))
        if len(messages) < MESSAGES_HELD:
            messages.append((levels, payload, retained))
        return True

    def _take(self, unit: LiveUnit, levels: list[str], payload: bytes, retained: bool) -> None:
        """What a foreign unit says."""
        _, experiment, job, setting = levels[:4]
        if not retained:
            unit.last_seen = time.time()
            self._heard[unit.unit_id] = unit, time.monotonic()
            if experiment != topics.UNIVERSAL_EXPERIMENT and job != LOGS:
                unit.status = {"experiment": experiment}
        if job == LOGS:
            self._log_line(unit, levels[4], payload)
        elif job in STRANGE_JOBS:
            if (job, setting) in READINGS and not retained:
                self._reading(unit, levels, payload)
            belongs = experiment in (unit.experiment or experiment, topics.UNIVERSAL_EXPERIMENT)
            if not (retained and not belongs) and not _is_reading(job, setting):
                self._setting(unit, job, setting, payload)

    def _setting(self, unit: LiveUnit, job: str, setting: str, payload: bytes) -> None:
        value = parse_value(payload)
        if not unit.set_setting(job, setting, value):
            return
        self._house.tell("setting", unit.name, {"job": job, "setting": setting, "value": value})
        if setting == topics.STATE_SETTING:
            states = set(unit.jobs().values())
            state = "online" if states & {"init", "ready", "sleeping"} else "lost" if "lost" in states else "offline"
            if state != unit.state:
                unit.state = state
                self._house.tell("state", unit.name, {"state": state})

    def _reading(self, unit: LiveUnit, levels: list[str], payload: bytes) -> None:
        """Store and show a reading; one of the same time as the last is the same one again."""
        _, experiment, job, setting = levels
        if (job, setting) not in READINGS or not payload:
            return
        stream, field = READINGS[job, setting]
        now_ns = time.time_ns()
        struct = _struct(payload, field)
        value, angle = _number(struct.get(field or "")), _angle(struct)
        wall_ns = parse_time(struct["timestamp"]) if "timestamp" in struct else now_ns
        run = self._runs.setdefault(unit.unit_id, Run())
        if run.last_ns.get(stream) == wall_ns:
            return
        sequence = run.next.get(stream, 0)
        calibrated = struct.get("calibrated") == 1 or stream > 4
        record = _record(sequence, stream, value, wall_ns, angle, 0 if calibrated else FLAGS["uncalibrated"])
        header = Header(
            KIND_READINGS, stream, READING.size, 1, sequence, unit.unit_id, run.run_id, NO_BOOT,
            0, time.monotonic_ns(), now_ns, experiment,
        )  # fmt: skip
        try:
            self._store.add(header, READING.pack(*record))
        except StoreUnavailable:
            self.counters["foreign_not_stored"] += 1
        else:
            run.next[stream] = sequence + 1
            self.counters["foreign_readings"] += 1
        run.last_ns[stream] = wall_ns
        if stream <= 4 and unit.foreign:
            _add_channel(unit, stream, angle)
        self._house.show(unit, record)

    def _log_line(self, unit: LiveUnit, level: str, payload: bytes) -> None:
        if level in LEVELS:
            line = _struct(payload, "message")
            text = f"{str(line.get('task') or '?')[:100]}: {str(line.get('message') or '')[:1000]}"
            self._house.event(unit, LEVELS[level], "foreign_log", text)


def _is_reading(job: str, setting: str) -> bool:
    """Whether a topic carries readings, or the struct of all channels together."""
    return READINGS.get((job, setting), (0, None))[1] is not None or setting == "ods"


def _is_a_units(levels: list[str]) -> bool:
    """Whether only a unit says this: the state of a job, or a reading."""
    return levels[2] != LOGS and (levels[3] == topics.STATE_SETTING or (levels[2], levels[3]) in READINGS)


def _struct(payload: bytes, field: str | None) -> dict[str, Any]:
    """A payload as an object; a plain number is under the empty name. Raises ValueError."""
    try:
        found = json.loads(payload)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if field is None:
        return {"": found}
    if not isinstance(found, dict):
        raise ValueError(f"expected an object with {field}")
    return found


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:50]!r} is not a finite number")
    return float(value)


def _angle(struct: dict[str, Any]) -> int:
    text = str(struct.get("angle", 0))
    return int(text) if text.isdecimal() and len(text) <= 3 else 0


def _record(sequence: int, stream: int, value: float, wall_ns: int, angle: int, flags: int) -> Record:
    """A reading of which nothing is known but value and time."""
    unknown = math.nan
    return (
        sequence, time.monotonic_ns(), wall_ns, value, unknown, unknown, unknown, unknown, unknown, unknown, unknown,
        unknown, 0, 0, flags, 0, stream, angle, 0, RECORD_VERSION,
    )  # fmt: skip


def _add_channel(unit: LiveUnit, stream: int, angle: int) -> None:
    """A photodiode of a foreign unit is known when it is first heard."""
    known = unit.describe.get("channels") or []
    if all(channel["channel"] != stream for channel in known):
        one = {"stream": f"od{stream}", "channel": stream, "angle": angle, "name": f"{angle}°", "unit": "AU"}
        unit.describe = {**unit.describe, "channels": sorted([*known, one], key=lambda channel: channel["channel"])}
        unit.describe_due = True
