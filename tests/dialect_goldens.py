"""The golden examples of the dialect, `tests/data/dialect.json`: what the worker says, and what the bridge makes of it.

Each case has `feed` (settings and events of a worker, readings, `tick`, `experiment`) and `says`, the messages that
follow: topic below `pioreactor/<unit>/`, payload, QoS, retain.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from bridge_doubles import UNIT_ID, reading
from stirbar.bridge.dialect import Dialect
from stirbar.core.records import FLAGS, KIND_READINGS, READING, READING_FIELDS, STREAM_IDS, Header

FILE = pathlib.Path(__file__).parent / "data" / "dialect.json"
UNIT, EXPERIMENT = "vial1", "exp"
NOW_NS = 1_750_000_000_123_000_000
Message = tuple[str, str, int, bool]


def cases() -> list[dict[str, Any]]:
    return json.loads(FILE.read_text())


def feed(steps: list[dict[str, Any]]) -> list[Message]:
    """What a dialect says when it is fed so, beginning in experiment `exp`."""
    said: list[Message] = []

    def publish(topic: str, payload: bytes, qos: int, retain: bool) -> None:
        said.append((topic.removeprefix(f"pioreactor/{UNIT}/"), payload.decode(), qos, retain))

    dialect = Dialect("pioreactor", UNIT, 0.2, publish, lambda: NOW_NS)
    dialect.follow_experiment(EXPERIMENT)
    for step in steps:
        for kind, what in step.items():
            if kind == "setting":
                job, name, value = what
                dialect.setting({"job": job, "setting": name, "value": value})
            elif kind == "event":
                dialect.event({"wall_ns": NOW_NS, **what})
            elif kind == "reading":
                stream = STREAM_IDS[what["stream"]]
                header = Header(
                    KIND_READINGS, stream, READING.size, 1, 0, UNIT_ID, b"r" * 16, b"b" * 16, 0, 0, 0, "exp"
                )
                dialect.reading(header, _packed(stream, what))
            elif kind == "tick":
                dialect.tick()
            elif kind == "experiment":
                dialect.follow_experiment(what)
            elif kind == "states":
                dialect.states(what)
            else:
                raise AssertionError(kind)
    return said


def _packed(stream: int, what: dict[str, Any]) -> bytes:
    fields = dict(zip(READING_FIELDS, READING.unpack(reading(stream, 0, what["value"])), strict=True))
    fields |= {name: value for name, value in what.items() if name in fields and name != "stream"}
    if what.get("calibrated"):
        fields["flags"] &= ~FLAGS["uncalibrated"]
    return READING.pack(*fields.values())
