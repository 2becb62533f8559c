"""The job `stirring`: the stirrer at a speed or at a duty.

The loop controls it (pyx/stirring.pxd); this asks it for a target, and keeps what was asked.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

from stirbar.core import events
from stirbar.core.jobs import ACTUATORS, DISCONNECTED, INIT, READY, SLEEPING, CommandError, Job, allowed, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config
    from stirbar.core.host import Host
    from stirbar.core.jobs import Done

SECTION = "stirring.config"
# What is compiled into the controller (STIR_RPM_FLOOR, STIR_RPM_CEILING); the config can only lower the ceiling.
RPM_FLOOR, RPM_CEILING = 60.0, 3000.0
RAMP_CEILING = 10_000.0  # STIR_RAMP_CEILING


def _ignore(ok: bool, limit: float) -> None:
    """For what was checked before it was sent."""


class Stirring(Job):
    """The stirrer, held at a speed (`target_rpm`, approached by `ramp_rpm_per_s`) or at a duty (`duty_cycle`)."""

    name = "stirring"
    settable = ("target_rpm", "duty_cycle", "ramp_rpm_per_s")

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        self.use_rpm = bool(config.get(SECTION, "use_rpm"))
        self.target_rpm = float(config.get(SECTION, "initial_target_rpm"))
        self.duty_percent = float(config.get(SECTION, "initial_duty_cycle"))
        self.ramp_rpm_per_s = float(config.get(SECTION, "ramp_rpm_per_s"))
        self.rpm_maximum = min(RPM_CEILING, float(config.get(SECTION, "maximum_rpm")))
        self.duty_maximum = float(config.get(SECTION, "duty_maximum_percent"))

    def publish(self) -> None:
        self.host.publish_setting(
            self.name, "target_rpm", self.target_rpm if self.use_rpm else None, "rpm", settable=True
        )
        self.host.publish_setting(
            self.name, "duty_cycle", None if self.use_rpm else self.duty_percent, "%", settable=True
        )
        self.host.publish_setting(self.name, "ramp_rpm_per_s", self.ramp_rpm_per_s, "rpm/s", settable=True)

    def remember(self) -> dict[str, object]:
        return {
            "use_rpm": self.use_rpm,
            "target_rpm": self.target_rpm,
            "duty_percent": self.duty_percent,
            "ramp_rpm_per_s": self.ramp_rpm_per_s,
        }

    def recall(self, kept: dict[str, object]) -> None:
        self.use_rpm = kept.get("use_rpm") is not False
        self.target_rpm = allowed(kept.get("target_rpm"), RPM_FLOOR, self.rpm_maximum, self.target_rpm)
        self.duty_percent = allowed(kept.get("duty_percent"), 0.0, self.duty_maximum, self.duty_percent)
        self.ramp_rpm_per_s = allowed(kept.get("ramp_rpm_per_s"), 0.0, RAMP_CEILING, self.ramp_rpm_per_s)
        self.publish()

    def _checked_rpm(self, value: object) -> float:
        rpm = number(value, "target_rpm", 0.0, self.rpm_maximum, "rpm")
        if 0.0 < rpm < RPM_FLOOR:
            limit = f"0 (off), or {RPM_FLOOR:g} to {self.rpm_maximum:g} rpm"
            raise CommandError(f"target_rpm must be {limit}, not {rpm:g}", "target_rpm", limit)
        return rpm

    def _drive(self, done: Done) -> None:
        if self.use_rpm:
            self.host.send(ACTUATORS, events.COMMAND_STIR_RPM, 0, 0, self.target_rpm, done)
        else:
            self.host.send(ACTUATORS, events.COMMAND_STIR_DUTY, 0, 0, self.duty_percent, done)

    def start(self, done: Done) -> None:
        self.check_outputs("stir")
        self.become(INIT)
        self.host.send(ACTUATORS, events.COMMAND_STIR_RAMP, 0, 0, self.ramp_rpm_per_s, _ignore)
        self._drive(self._then(READY, done))

    def stop(self, done: Done) -> None:
        self.host.send(ACTUATORS, events.COMMAND_STIR_STOP, 0, 0, 0.0, self._then(DISCONNECTED, done))

    def _set_ramp(self, value: object, done: Done) -> None:
        ramp_rpm_per_s = number(value, "ramp_rpm_per_s", 0.0, RAMP_CEILING, "rpm/s")

        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.ramp_rpm_per_s = ramp_rpm_per_s
                self.publish()
            done(ok, limit)

        self.host.send(ACTUATORS, events.COMMAND_STIR_RAMP, 0, 0, ramp_rpm_per_s, answered)

    def set(self, setting: str, value: object, done: Done) -> None:
        if setting == "ramp_rpm_per_s":
            self._set_ramp(value, done)
            return
        before = (self.use_rpm, self.target_rpm, self.duty_percent)
        if setting == "target_rpm":
            self.target_rpm = self._checked_rpm(value)
            self.use_rpm = True
        elif setting == "duty_cycle":
            self.duty_percent = number(value, setting, 0.0, self.duty_maximum, "%")
            self.use_rpm = False
        else:
            super().set(setting, value, done)

        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.publish()
                if self.state == SLEEPING:
                    self.become(READY)
            else:
                self.use_rpm, self.target_rpm, self.duty_percent = before
            done(ok, limit)

        if self.state in (READY, SLEEPING):
            self._drive(answered)
        else:
            answered(True, 0.0)

    def on_event(self, code: int, value: float) -> None:
        if code == events.EVENT_STIR_FAULT and self.state == READY:
            self.become(SLEEPING)
