"""The job `stirring`: the stirrer at a speed or at a duty.

The loop controls it (pyx/stirring.pxd); this asks it for a target, and keeps what was asked.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import itertools

from stirbar.core import events
from stirbar.core.jobs import ACTUATORS, DISCONNECTED, INIT, READY, SLEEPING, CommandError, Job, allowed, number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.config import Config
    from stirbar.core.host import Host
    from stirbar.core.jobs import Done

SECTION = "stirring.config"
# What is compiled into the controller (STIR_RPM_FLOOR, STIR_RPM_CEILING); the config can only lower the ceiling.
RPM_FLOOR, RPM_CEILING = 60.0, 3000.0
RAMP_CEILING = 10_000.0  # STIR_RAMP_CEILING
REST_MAXIMUM_S = 8  # DODGE_REST_CEILING_S
# A calibration's table (pyx/feed_forward.pxd): so many duties, then the speeds of the first and the last; and the part
# that puts the config's line in force again.
CURVE_POINTS, CURVE_LINE = 16, 18


def _ignore(ok: bool, limit: float) -> None:
    """For what was checked before it was sent."""


def checked_curve(curve: dict[str, Any] | None) -> dict[str, Any] | None:
    """A stirring calibration as active.json has it. Raises ValueError with what is wrong and the remedy."""
    if curve is None:
        return None
    remedy = f"put it in force anew with `stirbar calibrations set-active stirring '{curve.get('name')}'`"
    if "duty_percent" not in curve:
        raise ValueError(f"calibration '{curve.get('name')}' of stirring has no table of duties: {remedy}")
    duty, low, high = curve["duty_percent"], curve["low_rpm"], curve["high_rpm"]
    rises = len(duty) == CURVE_POINTS and all(after > before for before, after in itertools.pairwise(duty))
    if not (rises and duty[0] >= 0 and duty[-1] <= 100 and 0 <= low <= high - 1):
        raise ValueError(f"calibration '{curve.get('name')}' of stirring does not rise within 0 to 100 %: {remedy}")
    return curve


class Stirring(Job):
    """The stirrer, held at a speed (`target_rpm`, approached by `ramp_rpm_per_s`) or at a duty (`duty_cycle`)."""

    name = "stirring"
    lent = ("use_rpm", "target_rpm", "duty_percent")
    settable = (
        "target_rpm", "duty_cycle", "ramp_rpm_per_s", "enable_dodging_od", "target_rpm_during_od_reading"
    )  # fmt: skip

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        self.use_rpm = bool(config.get(SECTION, "use_rpm"))
        self.target_rpm = float(config.get(SECTION, "initial_target_rpm"))
        self.duty_percent = float(config.get(SECTION, "initial_duty_cycle"))
        self.ramp_rpm_per_s = float(config.get(SECTION, "ramp_rpm_per_s"))
        self.dodges = bool(config.get(SECTION, "enable_dodging_od"))
        self.quiet_rpm = float(config.get(SECTION, "target_rpm_during_od_reading"))
        self.period_s = float(config.get(SECTION, "dodging_period_s"))
        self.quiet_s = float(config.get(SECTION, "dodging_od_s"))
        self.pwm_hz = float(config.get(SECTION, "pwm_hz"))
        self.curve: dict[str, Any] | None = None  # the calibration in force
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

        self.host.publish_setting(self.name, "enable_dodging_od", self.dodges, settable=True)
        self.host.publish_setting(self.name, "target_rpm_during_od_reading", self.quiet_rpm, "rpm", settable=True)
        self.host.publish_setting(self.name, "dodging_period_s", self.period_s, "s")
        self.host.publish_setting(self.name, "dodging_od_s", self.quiet_s, "s")

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

    def _checked_rpm(self, value: object, setting: str = "target_rpm") -> float:
        rpm = number(value, setting, 0.0, self.rpm_maximum, "rpm")
        if 0.0 < rpm < RPM_FLOOR:
            limit = f"0 (off), or {RPM_FLOOR:g} to {self.rpm_maximum:g} rpm"
            raise CommandError(f"{setting} must be {limit}, not {rpm:g}", setting, limit)
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
        self._send_schedule(_ignore)
        self._drive(self._then(READY, done))

    def stop(self, done: Done) -> None:
        self.host.send(ACTUATORS, events.COMMAND_STIR_STOP, 0, 0, 0.0, self._then(DISCONNECTED, done))

    def _send_schedule(self, done: Done) -> None:
        parts = (self.period_s, self.quiet_s, self.quiet_rpm, float(self.dodges))
        for part, value in enumerate(parts):  # the last puts it in force
            last = part + 1 == len(parts)
            self.host.send(ACTUATORS, events.COMMAND_STIR_DODGE, part, 0, value, done if last else _ignore)

    def _set_schedule(self, setting: str, value: object, done: Done) -> None:
        before = (self.dodges, self.quiet_rpm)
        if setting == "enable_dodging_od":
            if value not in (True, False):
                raise CommandError(f"{setting} must be true or false", setting, [True, False])
            self.dodges = bool(value)
        else:
            self.quiet_rpm = self._checked_rpm(value, setting)
            if self.quiet_rpm == 0.0 and self.quiet_s > REST_MAXIMUM_S:
                self.quiet_rpm = before[1]
                raise CommandError(
                    f"{setting} must be {RPM_FLOOR:g} rpm or more: dodging_od_s is {self.quiet_s:g} s, and a liquid "
                    f"that nobody stirs for more than {REST_MAXIMUM_S} s is not heated",
                    setting,
                    f"{RPM_FLOOR:g} to {self.rpm_maximum:g} rpm",
                )

        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.publish()
            else:
                self.dodges, self.quiet_rpm = before
            done(ok, limit)

        self._send_schedule(answered)

    def apply_curve(self, curve: dict[str, Any] | None, done: Done) -> None:
        """Let feed-forward be a calibration that checked_curve passed; None: the config's line."""

        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.curve = curve
                self._tell_curve()
            done(ok, limit)

        if curve is None:
            self.host.send(ACTUATORS, events.COMMAND_STIR_CURVE, CURVE_LINE, 0, 0.0, answered)
            return
        parts = [*curve["duty_percent"], curve["low_rpm"], curve["high_rpm"]]
        for part, value in enumerate(parts):  # the last puts them in force; the loop's queue holds 64 commands
            last = part + 1 == len(parts)
            self.host.send(ACTUATORS, events.COMMAND_STIR_CURVE, part, 0, value, answered if last else _ignore)

    def _tell_curve(self) -> None:
        from stirbar.core.calibrations import describe

        curve = self.curve
        self.host.publish_setting(self.name, "calibration", None if curve is None else describe(curve))
        if curve is not None and curve["pwm_hz"] != self.pwm_hz:
            text = (
                f"calibration '{curve['name']}' was made at a PWM of {curve['pwm_hz']:g} Hz, it is {self.pwm_hz:g} Hz: "
                "the same duty gives another speed"
            )
            self.host.event("warning", self.name, text, code="calibration")
        self._tell_range()

    def _tell_range(self) -> None:
        """Say that a target is outside what was calibrated."""
        curve = self.curve
        if curve is None or not self.use_rpm or curve["low_rpm"] <= self.target_rpm <= curve["high_rpm"]:
            return
        text = (
            f"{self.target_rpm:g} rpm is outside calibration '{curve['name']}' ({curve['low_rpm']:.0f} to "
            f"{curve['high_rpm']:.0f} rpm): its end is prolonged in a straight line"
        )
        self.host.event("notice", self.name, text, code="calibration_range")

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
        if setting in ("enable_dodging_od", "target_rpm_during_od_reading"):
            self._set_schedule(setting, value, done)
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
                if setting == "target_rpm" and before != (self.use_rpm, self.target_rpm, self.duty_percent):
                    self._tell_range()
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
