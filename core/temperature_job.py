"""The job `temperature_automation`: the temperature read, published, and held.

The loop controls and protects (pyx/heating.pxd); this asks it for a target and renews its lease. When this stops
asking, the heater is off within the lease.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

from stirbar.core import events
from stirbar.core.jobs import ACTUATORS, DISCONNECTED, INIT, READY, SAMPLING, CommandError, Job, allowed, number
from stirbar.core.journal import GIVE_UP_NS
from stirbar.core.records import STREAM_IDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.config import Config
    from stirbar.core.host import Host
    from stirbar.core.jobs import Done

SECTION = "temperature_automation.config"
RECORD, THERMOSTAT, OPEN_LOOP = "only_record_temperature", "thermostat", "open_loop"
TARGET_MINIMUM_DEGC = 0.1
STIRRED_RPM = 30.0
FRESH_NS = 3_000_000_000  # of a reading of the stirrer


def _ignore(ok: bool, limit: float) -> None:
    """For the lease: when it is refused, the heater is off already and an event has said why."""


def _is_turning(rpm: dict[str, Any], now_ns: int) -> bool:
    return bool(rpm["value"] > STIRRED_RPM and now_ns - rpm["monotonic_ns"] < FRESH_NS)


class TemperatureAutomation(Job):
    """`automation_name` is only_record_temperature, thermostat (holds `target_temperature`), or open_loop
    (`heater_duty_cycle`, by hand)."""

    name = "temperature_automation"
    settable = ("automation_name", "target_temperature", "heater_duty_cycle", "acknowledge")
    lent = ("automation", "target_degc", "duty_percent")

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        self.automation = str(config.get(SECTION, "automation_name"))
        self.target_degc = float(config.get(SECTION, "target_temperature"))
        self.target_maximum_degc = float(config.get(SECTION, "target_maximum_degc"))
        self.duty_maximum_percent = float(config.get(SECTION, "heater_duty_maximum_percent"))
        self.duty_percent = 0.0
        self.limited: list[str] = []
        self.waits_ns = 0  # since when heat waits to be resumed; 0: it does not

    @property
    def heats(self) -> bool:
        return self.state == READY and self.automation != RECORD

    def publish(self) -> None:
        publish = self.host.publish_setting
        holds, opened = self.automation == THERMOSTAT, self.automation == OPEN_LOOP
        publish(self.name, "automation_name", self.automation, settable=True)
        publish(self.name, "target_temperature", self.target_degc if holds else None, "°C", settable=True)
        publish(self.name, "heater_duty_cycle", self.duty_percent if opened else None, "%", settable=True)
        publish(self.name, "heater_limited", self.limited)

    def start(self, done: Done) -> None:
        if self.automation != RECORD:
            self.check_outputs("heat")
        self.become(INIT)

        def reading(ok: bool, limit: float) -> None:
            if ok:
                self._drive(self._then(READY, done))
            else:
                self._then(READY, done)(ok, limit)

        self.host.send(SAMPLING, events.COMMAND_TEMPERATURE, 0, 0, 1.0, reading)

    def stop(self, done: Done) -> None:
        def cold(ok: bool, limit: float) -> None:
            self.host.send(SAMPLING, events.COMMAND_TEMPERATURE, 0, 0, 0.0, self._then(DISCONNECTED, done))

        self.host.send(ACTUATORS, events.COMMAND_HEAT_STOP, 0, 0, 0.0, cold)

    def _drive(self, done: Done) -> None:
        """Ask the loop for what the settings say."""
        if self.automation == THERMOSTAT:
            self.host.send(ACTUATORS, events.COMMAND_HEAT_TARGET, 0, 0, self.target_degc, done)
        elif self.automation == OPEN_LOOP:
            self.host.send(ACTUATORS, events.COMMAND_HEAT_DUTY, 0, 0, self.duty_percent, done)
        else:
            self.host.send(ACTUATORS, events.COMMAND_HEAT_STOP, 0, 0, 0.0, done)

    def set(self, setting: str, value: object, done: Done) -> None:
        before = (self.automation, self.target_degc, self.duty_percent)
        if setting == "target_temperature":
            self.target_degc = number(value, setting, TARGET_MINIMUM_DEGC, self.target_maximum_degc, "°C")
            self.automation = THERMOSTAT
        elif setting == "heater_duty_cycle":
            self.duty_percent = number(value, setting, 0.0, self.duty_maximum_percent, "%")
            self.automation = OPEN_LOOP
        elif setting == "automation_name":
            if value not in (RECORD, THERMOSTAT):
                raise CommandError(f"no automation {value!r}", setting, [RECORD, THERMOSTAT])
            self.automation = str(value)
        elif setting == "acknowledge":
            self._acknowledge(done)
            return
        else:
            super().set(setting, value, done)
        if self.automation != RECORD and self.state == READY:
            try:
                self.check_outputs("heat")
            except CommandError:
                self.automation, self.target_degc, self.duty_percent = before
                raise

        self._decided()

        def answered(ok: bool, limit: float) -> None:
            if not ok:
                self.automation, self.target_degc, self.duty_percent = before
            self.publish()
            done(ok, limit)

        if self.state == READY:
            self._drive(answered)
        else:
            answered(True, 0.0)

    def _decided(self) -> None:
        """A person has said what the heater is to do: nothing waits any more, and nothing is held back."""
        self.waits_ns = 0
        if self.host.journal is not None:
            self.host.journal.held = False

    def _acknowledge(self, done: Done) -> None:
        """A person has seen that the heater board was too hot: it may heat again, once it has cooled."""

        def answered(ok: bool, limit: float) -> None:
            if not ok and limit == limit:
                self.host.event("warning", self.name, "the heater board is still too hot: wait", code="too_hot")
            done(ok, limit)

        self.host.send(ACTUATORS, events.COMMAND_HEAT_UNLOCK, 0, 0, 0.0, answered)

    def remember(self) -> dict[str, object]:
        heats = THERMOSTAT if self.waits_ns else self.automation
        return {"automation_name": heats, "target_degc": self.target_degc}

    def recall(self, kept: dict[str, object]) -> None:
        if kept.get("automation_name") in (RECORD, THERMOSTAT):
            self.automation = str(kept["automation_name"])
        self.target_degc = allowed(
            kept.get("target_degc"), TARGET_MINIMUM_DEGC, self.target_maximum_degc, self.target_degc
        )
        self.publish()

    def resume(self, done: Done) -> None:
        """Read at once; heat when nothing speaks against it any more (core/journal.py)."""
        if self.automation == THERMOSTAT and self.host.config.get("worker.config", "resume") != "all":
            self.automation = RECORD
            self.waits_ns = self.host.loop.now_ns()
            self.publish()
        self.start(done)

    def _resume_heat(self) -> None:
        """Once a second while heat waits."""
        journal, now_ns = self.host.journal, self.host.loop.now_ns()
        rpm = self.host.latest.get(STREAM_IDS["rpm"])
        stirred = rpm is not None and _is_turning(rpm, now_ns)
        missing = journal.missing(self.host.loop.heat_trusted(), stirred) if journal is not None else []
        if not missing:
            self.waits_ns = 0
            self.host.event("notice", self.name, f"heat resumed: {self.target_degc:g} °C", code="heat_resumed")
            self.set("automation_name", THERMOSTAT, _ignore)
        elif now_ns - self.waits_ns > GIVE_UP_NS:
            self.waits_ns = 0
            reasons = "; ".join(missing)
            text = f"heat was not resumed: {reasons}. Set target_temperature to heat to {self.target_degc:g} °C"
            self.host.event("error", self.name, text, code="heat_not_resumed")

    def tend(self) -> None:
        try:
            if self.waits_ns and self.state == READY:
                self._resume_heat()
            if self.heats:
                self.host.send(ACTUATORS, events.COMMAND_HEAT_RENEW, 0, 0, 0.0, _ignore)
        except CommandError:
            pass  # the loop takes no commands: its lease lapses, and says so

    def on_event(self, code: int, value: float) -> None:
        bits = self.host.loop.heat_limited()
        limited = [name for bit, (name, _, _) in enumerate(events.HEAT_REASONS) if bits >> bit & 1]
        if limited != self.limited:
            self.limited = limited
            self.publish()
