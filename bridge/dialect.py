"""The dialect: what the bridge says on `<topic_root>/<unit>/<experiment>/<job>/<setting>`, and what it hears there.

Payloads are those that Pioreactor's dashboards and plug-ins expect (docs/protocol.md): scalars as text, structs as
JSON, retained. Everything retained is remembered, and said again after each connect.

Synchronization: one thread.
"""

from __future__ import annotations

import json
import math
import os
import time

from stirbar.bridge import topics
from stirbar.core.records import FLAGS, READING, READING_FIELDS, STREAM_IDS, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Publish = Callable[[str, bytes, int, bool], object]
    Reading = dict[str, float | int]

JOBS = ("od_reading", "stirring", "temperature_automation", "bioreactor", "leds", "monitor")
MONITOR = topics.MONITOR
SELF_TEST = "self_test"
UNIVERSAL = (MONITOR, SELF_TEST)  # of the unit, whatever its experiment
READY, SLEEPING, DISCONNECTED, LOST = "ready", "sleeping", "disconnected", "lost"
SETTABLE = {
    ("stirring", "target_rpm"),
    ("stirring", "duty_cycle"),
    ("od_reading", "ir_led_intensity"),
    ("temperature_automation", "target_temperature"),
    *(("leds", letter) for letter in "ABCD"),
}
# made from readings, with a time stamp; the worker's plain setting of the same name is not passed on
_FROM_READINGS = {
    ("stirring", "measured_rpm"),
    ("temperature_automation", "temperature"),
    ("temperature_automation", "heater_duty_cycle"),
}
_DOSED = "dose_step"
_LED_CHANGED = "led_changed"
_VALUE_BYTES = 64
_NAME_BYTES = 128
_OD = (1, 2, 3, 4)
_RPM, _LIQUID, _FUSED = STREAM_IDS["rpm"], STREAM_IDS["liquid"], STREAM_IDS["od_fused"]
_OD_TOPICS = ("od", "raw_od", "calibrated_od")


def timestamp(wall_ns: int) -> str:
    """Unix time in ns as the dialect's ISO 8601 in UTC with milliseconds and Z."""
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d}Z"


def compact(document: object) -> bytes:
    """JSON without spaces, as the dialect has it."""
    return json.dumps(document, separators=(",", ":")).encode()


def scalar(value: object) -> bytes:
    """A setting's value as the dialect writes it: nothing for None, JSON for structures, else plain text."""
    if value is None:
        return b""
    if isinstance(value, dict | list):
        return compact(value)
    if isinstance(value, bool):
        return b"1" if value else b"0"
    return str(value).encode()


def od_reading(reading: Reading, intensity_percent: float, calibration: str | None = None) -> dict[str, object]:
    """The struct of one OD channel, with its calibration's name; without one, what it was before a calibration."""
    calibrated = not int(reading["flags"]) & FLAGS["uncalibrated"]
    struct: dict[str, object] = {
        "calibrated": 0 if calibration is None else 1,
        "timestamp": timestamp(int(reading["wall_ns"])),
        "angle": str(reading["angle"]),
        "od": reading["signal_v"] if calibrated and calibration is None else reading["value"],
        "channel": str(reading["stream"]),
        "ir_led_intensity": intensity_percent,
    }
    return struct if calibration is None else {**struct, "calibration_name": calibration}


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


class Dialect:
    """Says what the worker does. `publish(topic, payload, qos, retain)` may drop what it cannot send.

    `readings_per_second` bounds the rate of each reading topic; 0 says nothing.
    """

    def __init__(self, root: str, unit: str, readings_per_second: float, publish: Publish) -> None:
        self.experiment = topics.NO_EXPERIMENT
        self.interval_s = 1.0 / readings_per_second if readings_per_second > 0 else math.inf
        self._root = root
        self._unit = unit
        self._publish = publish
        self._said: dict[tuple[str, str], bytes] = {}  # (job, setting): retained payload in force
        self._latest: dict[int, bytes] = {}
        self._intensity = 0.0
        self._calibrations: dict[int, str] = {}  # channel: name

    def _topic(self, job: str, setting: str) -> str:
        experiment = topics.UNIVERSAL_EXPERIMENT if job in UNIVERSAL else self.experiment
        return topics.dialect(self._root, self._unit, experiment, job, setting)

    def say(self, job: str, setting: str, payload: bytes) -> None:
        """Publish retained and remember; an empty payload takes the topic away."""
        if payload:
            self._said[(job, setting)] = payload
        else:
            self._said.pop((job, setting), None)
        self._publish(self._topic(job, setting), payload, 1 if setting == topics.STATE_SETTING else 0, True)

    def say_again(self) -> None:
        """After a connect: everything retained, as it is now."""
        for (job, setting), payload in self._said.items():
            qos = 1 if setting == topics.STATE_SETTING else 0
            self._publish(self._topic(job, setting), payload, qos, True)

    # From the worker

    def reading(self, header: Header, body: bytes) -> None:
        """Remember the last reading of a batch until the next `tick`."""
        self._latest[header.stream] = body[-READING.size :]

    def tick(self) -> None:
        """Say the latest reading of each stream that has a new one. Call it every `interval_s`."""
        ods: dict[str, object] = {}
        newest = 0
        for stream, packed in self._latest.items():
            reading: Reading = dict(zip(READING_FIELDS, READING.unpack(packed), strict=True))
            value, wall_ns = reading["value"], int(reading["wall_ns"])
            if not math.isfinite(value):
                continue
            if stream in _OD and reading["angle"]:
                struct = raw = od_reading(reading, self._intensity)
                if not int(reading["flags"]) & FLAGS["uncalibrated"]:
                    struct = od_reading(reading, self._intensity, self._calibrations.get(stream, ""))
                    self.say("od_reading", f"raw_od{stream}", compact(raw))
                    self.say("od_reading", f"calibrated_od{stream}", compact(struct))
                ods[str(stream)] = struct
                newest = max(newest, wall_ns)
                self.say("od_reading", f"od{stream}", compact(struct))
            elif stream == _FUSED:
                said = {"od_fused": value, "timestamp": timestamp(wall_ns)}
                self.say("od_reading", "od_fused", compact(said))
            elif stream == _RPM:
                said = {"measured_rpm": max(value, 0.0), "timestamp": timestamp(wall_ns)}
                self.say("stirring", "measured_rpm", compact(said))
            elif stream == _LIQUID:
                said = {"temperature": value, "timestamp": timestamp(wall_ns)}
                self.say("temperature_automation", "temperature", compact(said))
                self.say("temperature_automation", "heater_duty_cycle", scalar(round(reading["signal_v"], 2)))
        if ods:
            self.say("od_reading", "ods", compact({"timestamp": timestamp(newest), "ods": ods}))
        self._latest.clear()

    def setting(self, document: dict[str, object]) -> None:
        """A `setting` message of the worker."""
        job, name, value = document.get("job"), document.get("setting"), document.get("value")
        if job not in (*JOBS, SELF_TEST) or not isinstance(name, str) or (job, name) in _FROM_READINGS:
            return
        if name == "ir_led_intensity" and isinstance(value, int | float):
            self._intensity = float(value)
        if name[:-1] == "calibration" and name[-1] in "1234":
            self._calibration(name, value)
            return
        payload = scalar(value)
        if self._said.get((job, name), b"") != payload:
            self.say(job, topics.level(name), payload)

    def _calibration(self, name: str, value: object) -> None:
        """Remember a channel's calibration; without one, what was said of its readings goes."""
        channel = int(name[-1])
        if isinstance(value, dict):
            self._calibrations[channel] = str(value.get("name", ""))
            return
        self._calibrations.pop(channel, None)
        for setting in (f"raw_od{channel}", f"calibrated_od{channel}"):
            if ("od_reading", setting) in self._said:
                self.say("od_reading", setting, b"")

    def event(self, document: dict[str, object]) -> None:
        """An event of the worker becomes a log line of the dialect; what a pump has moved, a dosing event as well."""
        level = str(document.get("level", "info"))
        wall_ns = document.get("wall_ns")
        self.log(
            str(document.get("source", "worker")),
            level,
            str(document.get("message", "")),
            wall_ns if isinstance(wall_ns, int) else time.time_ns(),
        )
        if document.get("code") == _LED_CHANGED and isinstance(wall_ns, int):
            said = {name: document.get(name) for name in ("channel", "intensity", "source_of_event")}
            topic = topics.dialect_led(self._root, self._unit, self.experiment)
            self._publish(topic, compact({**said, "timestamp": timestamp(wall_ns)}), 0, False)
        if document.get("code") == _DOSED and isinstance(wall_ns, int):
            said = {name: document.get(name) for name in ("volume_change", "event", "source_of_event")}
            topic = topics.dosing_events(self._root, self._unit, self.experiment)
            self._publish(topic, compact({**said, "timestamp": timestamp(wall_ns)}), 1, False)

    def log(self, source: str, level: str, message: str, wall_ns: int) -> None:
        said = {"message": message, "level": level.upper(), "task": source, "source": "app"}
        topic = topics.dialect_log(self._root, self._unit, self.experiment, "app", topics.level(level))
        self._publish(topic, compact({**said, "timestamp": timestamp(wall_ns)}), 0, False)

    def follow_experiment(self, name: str) -> None:
        """The worker stamps another experiment: the old one's jobs end there, their retained values go."""
        if name == self.experiment:
            return
        moving = {entry: payload for entry, payload in self._said.items() if entry[0] not in UNIVERSAL}
        for job, setting in moving:
            if setting == topics.STATE_SETTING:
                self._publish(self._topic(job, setting), DISCONNECTED.encode(), 1, True)
            else:
                self._publish(self._topic(job, setting), b"", 0, True)
        self.experiment = name
        for (job, setting), payload in moving.items():
            if setting.startswith(_OD_TOPICS) or (job, setting) in _FROM_READINGS:
                del self._said[(job, setting)]  # a reading belongs to the experiment it was made in
            else:
                self.say(job, setting, payload)

    def states(self, state: str) -> None:
        """All jobs are `lost` (the worker does not answer) or `disconnected` (the bridge ends)."""
        for job, setting in list(self._said):
            said = self._said[(job, setting)]
            # what did not run is not lost with its worker
            if setting == topics.STATE_SETTING and said not in (state.encode(), DISCONNECTED.encode()):
                self.say(job, setting, state.encode())

    def statistics(self, path: str) -> None:
        """`monitor/computer_statistics`: the disk that holds `path`, and the processor's temperature."""
        disk = os.statvfs(path)
        said = {
            "disk_usage_percent": round(100 * (1 - disk.f_bavail / max(disk.f_blocks, 1))),
            "cpu_temperature_celcius": _cpu_temperature(),  # spelt as the dialect spells it
            "timestamp": timestamp(time.time_ns()),
        }
        self.say(MONITOR, "computer_statistics", compact(said))

    # From the broker

    def command(self, topic: str, payload: bytes) -> dict[str, object] | None:
        """The worker's command for a `/set` message; None: for another experiment; ValueError: malformed."""
        parsed = topics.parse_set(self._root, topic)
        if parsed is None or parsed.unit not in (topics.level(self._unit), topics.BROADCAST):
            raise ValueError("not a command topic of this unit")
        if parsed.experiment not in (topics.UNIVERSAL_EXPERIMENT, topics.level(self.experiment)):
            return None
        return parse_command(parsed.job, parsed.setting, payload)


def _cpu_temperature() -> float | None:
    try:
        with open("/sys/class/thermal/thermal_zone0/temp") as file:
            return round(int(file.read()) / 1000)
    except (OSError, ValueError):
        return None
