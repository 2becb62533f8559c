"""The dialect: what the bridge says on `<topic_root>/<unit>/<experiment>/<job>/<setting>`, and what it hears there.

Payloads are those that Pioreactor's dashboards and plug-ins expect (docs/protocol.md): scalars as text, structs as
JSON, retained. Everything retained is remembered, and said again after each connect.

Synchronization: one thread.
"""

from __future__ import annotations

import math
import time

from stirbar.bridge import dialect_machine, topics
from stirbar.bridge.dialect_derived import AUTOMATION_RECORD, BLANK, THERMAL, Derived
from stirbar.bridge.dialect_payloads import (
    DISCONNECTED,
    JOBS,
    MONITOR,
    READY,
    compact,
    od_reading,
    parse_command,
    scalar,
    stamped,
    timestamp,
)
from stirbar.core.records import FLAGS, READING, READING_FIELDS, STREAM_IDS, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.bridge.dialect_payloads import Reading

    Publish = Callable[[str, bytes, int, bool], object]

OD = "od_reading"
SELF_TEST = "self_test"
UNIVERSAL = (MONITOR, SELF_TEST)  # of the unit, whatever its experiment
# made from readings, with a time stamp; the worker's plain setting of the same name is not passed on
_FROM_READINGS = {
    ("stirring", "measured_rpm"),
    ("stirring", "duty_cycle"),
    (THERMAL, "temperature"),
    (THERMAL, "heater_duty_cycle"),
}
_DOSED = "dose_step"
_LED_CHANGED = "led_changed"
_OD = (1, 2, 3, 4)
_RPM, _LIQUID, _FUSED = STREAM_IDS["rpm"], STREAM_IDS["liquid"], STREAM_IDS["od_fused"]
# of an experiment's readings: they do not move to the next one
_OD_TOPICS = ("od", "raw_od", "calibrated_od", "first_od", "relative_intensity")


class Dialect:
    """Says what the worker does. `publish(topic, payload, qos, retain)` may drop what it cannot send.

    `readings_per_second` bounds the rate of each reading topic; 0 says nothing.
    """

    def __init__(
        self,
        root: str,
        unit: str,
        readings_per_second: float,
        publish: Publish,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.experiment = topics.NO_EXPERIMENT
        self.interval_s = 1.0 / readings_per_second if readings_per_second > 0 else math.inf
        self._root = root
        self._unit = unit
        self._publish = publish
        self._said: dict[tuple[str, str], bytes] = {}  # (job, setting): retained payload in force
        self._latest: dict[int, bytes] = {}
        self._intensity = 0.0
        self._calibrations: dict[int, str] = {}  # channel: name
        self._derived = Derived()
        self._now_ns = now_ns
        self._vitals = False  # the worker tells of the computer; else we do

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
        ods: dict[int, Reading] = {}
        for stream, packed in self._latest.items():
            reading: Reading = dict(zip(READING_FIELDS, READING.unpack(packed), strict=True))
            value, wall_ns = reading["value"], int(reading["wall_ns"])
            if not math.isfinite(value):
                continue
            if stream in _OD and reading["angle"]:
                ods[stream] = reading
            elif stream == _FUSED:
                self.say(OD, "od_fused", stamped("od_fused", value, wall_ns))
            elif stream == _RPM:
                self.say("stirring", "measured_rpm", stamped("measured_rpm", max(value, 0.0), wall_ns))
                self.say("stirring", "duty_cycle", _percent(reading["signal_v"]))
            elif stream == _LIQUID:
                self.say(THERMAL, "temperature", stamped("temperature", value, wall_ns))
                self.say(THERMAL, "heater_duty_cycle", _percent(reading["signal_v"]))
        if ods:
            self._say_ods(ods)
        self._latest.clear()

    def _say_ods(self, readings: dict[int, Reading]) -> None:
        structs: dict[str, object] = {}
        for stream, reading in readings.items():
            struct = raw = od_reading(reading, self._intensity)
            if not int(reading["flags"]) & FLAGS["uncalibrated"]:
                struct = od_reading(reading, self._intensity, self._calibrations.get(stream, ""))
                self.say(OD, f"raw_od{stream}", compact(raw))
                self.say(OD, f"calibrated_od{stream}", compact(struct))
            structs[str(stream)] = struct
            self.say(OD, f"od{stream}", compact(struct))
        newest = max(int(reading["wall_ns"]) for reading in readings.values())
        self.say(OD, "ods", compact({"timestamp": timestamp(newest), "ods": structs}))
        self._say_all(self._derived.od(readings))

    def _say_all(self, said: list[tuple[str, str, bytes]]) -> None:
        for job, setting, payload in said:
            self.say(job, setting, payload)

    def setting(self, document: dict[str, object]) -> None:
        """A `setting` message of the worker."""
        job, name, value = document.get("job"), document.get("setting"), document.get("value")
        if job not in (*JOBS, SELF_TEST) or not isinstance(job, str) or not isinstance(name, str):
            return
        if job == THERMAL:
            self._record_automation(name, value)
        if (job, name) in _FROM_READINGS:
            return
        if job == OD and name[:-1] in ("calibration", "blank") and name[-1] in "1234":
            if name.startswith("calibration"):
                self._calibration(name, value)
                return
            self._say_all(self._derived.blank(int(name[-1]), value, self._now_ns()))
        if name == "ir_led_intensity" and isinstance(value, int | float):
            self._intensity = float(value)
        payload = self._payload(job, name, value)
        if self._said.get((job, name), b"") != payload:
            self.say(job, topics.level(name), payload)
            if job == "bioreactor":
                self._say_all(self._derived.volume(name, payload))
            elif (job, name) == (OD, topics.STATE_SETTING) and value != READY:
                self._say_all(self._derived.stopped())

    def _payload(self, job: str, name: str, value: object) -> bytes:
        """A setting's payload; what `monitor` tells has its time with it, as in the field."""
        if job != MONITOR or value is None:
            return scalar(value)
        when = timestamp(self._now_ns())
        if name == "voltage_on_pwm_rail":
            return compact({"timestamp": when, "voltage": value})
        if name == "versions" and isinstance(value, dict):
            return compact(dialect_machine.versions(value.get("app", ""), when))
        if name == "computer_statistics" and isinstance(value, dict):
            self._vitals = True
            return compact({**value, "timestamp": when})
        return scalar(value)

    def _record_automation(self, name: str, value: object) -> None:
        for record in self._derived.automation(name, value, self._unit, self.experiment, self._now_ns()):
            self._publish(self._topic(THERMAL, AUTOMATION_RECORD), record, 1, False)

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
        self._derived.forget()
        for (job, setting), payload in moving.items():
            if setting.startswith(_OD_TOPICS) or job == BLANK or (job, setting) in _FROM_READINGS:
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

    def machine(self, path: str, ipv4: str) -> None:
        """Once a minute: `monitor`'s words on the machine; `path` is on the disk that counts, `ipv4` our address."""
        for setting, address in {"ipv4": ipv4, **dialect_machine.addresses()}.items():
            if self._said.get((MONITOR, setting), b"") != address.encode():
                self.say(MONITOR, setting, address.encode())
        if not self._vitals:
            said = dialect_machine.statistics(path, timestamp(self._now_ns()))
            self.say(MONITOR, "computer_statistics", compact(said))

    # From the broker

    def command(self, topic: str, payload: bytes) -> dict[str, object] | None:
        """The worker's command for a `/set` message; None: for another experiment; ValueError: malformed."""
        parsed = topics.parse_set(self._root, topic)
        if parsed is None and topics.is_blink(self._root, self._unit, topic):
            return {"command": "identify"}
        if parsed is None or parsed.unit not in (topics.level(self._unit), topics.BROADCAST):
            raise ValueError("not a command topic of this unit")
        if parsed.experiment not in (topics.UNIVERSAL_EXPERIMENT, topics.level(self.experiment)):
            return None
        return parse_command(parsed.job, parsed.setting, payload)


def _percent(value: float) -> bytes:
    """A duty; nothing where it is not known."""
    return scalar(round(value, 2)) if math.isfinite(value) else b""
