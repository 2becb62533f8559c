"""The job `temperature_automation`: the temperature read, published, and held.

The loop controls and protects (pyx/heating.pxd); this asks it for a target and renews its lease. When this stops
asking, the heater is off within the lease.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

from stirbar.core import events
from stirbar.core.jobs import ACTUATORS, DISCONNECTED, INIT, READY, SAMPLING, CommandError, Job, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config
    from stirbar.core.host import Host
    from stirbar.core.jobs import Done

SECTION = "temperature_automation.config"
RECORD, THERMOSTAT, OPEN_LOOP = "only_record_temperature", "thermostat", "open_loop"
TARGET_MINIMUM_DEGC = 0.1


def _ignore(ok: bool, limit: float) -> None:
    """For the lease: when it is refused, the heater is off already and an event has said why."""


class TemperatureAutomation(Job):
    """`automation_name` is only_record_temperature, thermostat (holds `target_temperature`), or open_loop
    (`heater_duty_cycle`, by hand)."""

    name = "temperature_automation"
    settable = ("automation_name", "target_temperature", "heater_duty_cycle", "acknowledge")

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        self.automation = str(config.get(SECTION, "automation_name"))
        self.target_degc = float(config.get(SECTION, "target_temperature"))
        self.target_maximum_degc = float(config.get(SECTION, "target_maximum_degc"))
        self.duty_maximum_percent = float(config.get(SECTION, "heater_duty_maximum_percent"))
        self.duty_percent = 0.0
        self.limited: list[str] = []

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

        def answered(ok: bool, limit: float) -> None:
            if not ok:
                self.automation, self.target_degc, self.duty_percent = before
            self.publish()
            done(ok, limit)

        if self.state == READY:
            self._drive(answered)
        else:
            answered(True, 0.0)

    def _acknowledge(self, done: Done) -> None:
        """A person has seen that the heater board was too hot: it may heat again, once it has cooled."""

        def answered(ok: bool, limit: float) -> None:
            if not ok and limit == limit:
                self.host.event("warning", self.name, "the heater board is still too hot: wait", code="too_hot")
            done(ok, limit)

        self.host.send(ACTUATORS, events.COMMAND_HEAT_UNLOCK, 0, 0, 0.0, answered)

    def tend(self) -> None:
        if self.heats:
            self.host.send(ACTUATORS, events.COMMAND_HEAT_RENEW, 0, 0, 0.0, _ignore)

    def on_event(self, code: int, value: float) -> None:
        bits = self.host.loop.heat_limited()
        limited = [name for bit, (name, _, _) in enumerate(events.HEAT_REASONS) if bits >> bit & 1]
        if limited != self.limited:
            self.limited = limited
            self.publish()
