"""Payloads of the dialect, shaped and parsed: no topic is sent here, and nothing is remembered."""

from __future__ import annotations

import json
import math
import time

from stirbar.bridge import topics
from stirbar.core.records import FLAGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    Reading = dict[str, float | int]

JOBS = ("od_reading", "stirring", "temperature_automation", "bioreactor", "leds", "monitor")
MONITOR = topics.MONITOR
READY, SLEEPING, DISCONNECTED, LOST = "ready", "sleeping", "disconnected", "lost"
SETTABLE = {
    ("stirring", "target_rpm"),
    ("stirring", "duty_cycle"),
    ("stirring", "target_rpm_during_od_reading"),
    ("od_reading", "ir_led_intensity"),
    ("temperature_automation", "target_temperature"),
    *(("leds", letter) for letter in "ABCD"),
}
SWITCHES = {("stirring", "enable_dodging_od")}
_TRUE, _FALSE = (b"true", b"1", b"on", b"yes"), (b"false", b"0", b"off", b"no")  # in any case
_VALUE_BYTES = 64
_NAME_BYTES = 128


def timestamp(wall_ns: int) -> str:
    """Unix time in ns as the dialect's ISO 8601 in UTC with milliseconds and Z."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d}Z"


def compact(document: object) -> bytes:
    """JSON without spaces, as the dialect has it."""
    return json.dumps(document, separators=(",", ":")).encode()


def scalar(value: object) -> bytes:
    """A setting's value as the dialect writes it: nothing for None, JSON for structures, else plain text; a boolean is
    Python's word for it, which the field's page compares with."""
    if value is None:
        return b""
    if isinstance(value, dict | list):
        return compact(value)
    if isinstance(value, bool):
        return b"True" if value else b"False"
    return str(value).encode()


def stamped(name: str, value: object, wall_ns: int) -> bytes:
    """A struct of one value and its time: `{"<name>":…,"timestamp":…}`."""
    return compact({name: value, "timestamp": timestamp(wall_ns)})


def od_struct(channel: int, angle: int, od: float, wall_ns: int, intensity_percent: float) -> dict[str, object]:
    """The struct of one OD channel, without a calibration."""
    return {
        "calibrated": 0,
        "timestamp": timestamp(wall_ns),
        "angle": str(angle),
        "od": od,
        "channel": str(channel),
        "ir_led_intensity": intensity_percent,
    }


def od_reading(reading: Reading, intensity_percent: float, calibration: str | None = None) -> dict[str, object]:
    """The struct of an OD reading, with its calibration's name; without one, what it was before a calibration."""
    calibrated = not int(reading["flags"]) & FLAGS["uncalibrated"]
    od = reading["signal_v"] if calibrated and calibration is None else reading["value"]
    channel, angle, wall_ns = (int(reading[name]) for name in ("stream", "angle", "wall_ns"))
    struct = od_struct(channel, angle, od, wall_ns, intensity_percent)
    return struct if calibration is None else {**struct, "calibrated": 1, "calibration_name": calibration}


def parse_number(payload: bytes) -> float:
    """A finite decimal number and nothing else; ValueError says what came instead."""
    if len(payload) > _VALUE_BYTES:
        raise ValueError(f"{len(payload)} bytes, at most {_VALUE_BYTES} are a value")
    try:
        value = json.loads(payload, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError(f"{payload[:40]!r} is not a number") from None
    if isinstance(value, str):
        return parse_number(value.encode())
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{payload[:40]!r} is not a finite number")
    return float(value)


def parse_switch(payload: bytes) -> bool:
    """A boolean, in the words that the field takes for one."""
    word = payload[:_VALUE_BYTES].lower()
    if word not in (*_TRUE, *_FALSE):
        raise ValueError(f"{payload[:40]!r} is neither true nor false")
    return word in _TRUE


def _no_constant(name: str) -> float:
    raise ValueError(name)


def parse_command(job: str, setting: str, payload: bytes) -> dict[str, object]:
    """The worker's command for a message on `<job>/<setting>/set`. ValueError says what is wrong."""
    if setting == topics.STATE_SETTING:
        if job not in JOBS or job in (MONITOR, "bioreactor"):
            raise ValueError(f"job {job!r} cannot be started or stopped")
        if payload == READY.encode():
            return {"command": "start", "job": job}
        if payload in (SLEEPING.encode(), DISCONNECTED.encode()):
            return {"command": "stop", "job": job}
        raise ValueError(f"{payload[:40]!r} is none of {READY}, {SLEEPING}, {DISCONNECTED}")
    if (job, setting) in SWITCHES:
        return {"command": "set", "job": job, "setting": setting, "value": parse_switch(payload)}
    if (job, setting) not in SETTABLE:
        raise ValueError(f"'{job}/{setting}' cannot be set")
    return {"command": "set", "job": job, "setting": setting, "value": parse_number(payload)}


def parse_assignment(payload: bytes) -> str:
    """The experiment's name in a message on `assignment`; an empty one takes the unit out of its experiment."""
    if not payload:
        return topics.NO_EXPERIMENT
    if len(payload) > _NAME_BYTES:
        raise ValueError(f"experiment name of {len(payload)} bytes, at most {_NAME_BYTES}")
    try:
        name = payload.decode()
    except UnicodeDecodeError:
        raise ValueError("experiment name is not UTF-8") from None
    if name != name.strip() or topics.level(name) != name or not name.isprintable():
        raise ValueError(f"{name[:40]!r} is not the name of an experiment")
    return name
