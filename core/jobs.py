"""The jobs of a worker: what may be started, stopped and set, and in which state it is.

A job is a name for a part of the compiled loop: starting one sends a command to the loop, and its state follows the
loop's answer. Names and states are those of the field (docs/protocol.md).

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

import math
import os

from stirbar.core import events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.core.config import Config
    from stirbar.core.host import Host

    Done = Callable[[bool, float], None]

INIT, READY, SLEEPING, DISCONNECTED, LOST = "init", "ready", "sleeping", "disconnected", "lost"

SAMPLING, ACTUATORS = 0, 1  # which of the loop's threads a command is for


class CommandError(Exception):
    """Why a command was not done: the field it is about, the limit, and the remedy."""

    def __init__(self, message: str, field: str = "", limit: object = None, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.limit = limit
        self.remedy = remedy

    def as_reply(self) -> dict[str, object]:
        reply: dict[str, object] = {"message": self.message, "field": self.field}
        if self.limit is not None:
            reply["limit"] = self.limit
        if self.remedy:
            reply["remedy"] = self.remedy
        return reply


def number(value: object, field: str, low: float, high: float, unit: str) -> float:
    """A finite number within bounds, or CommandError."""
    limit = f"{low:g} to {high:g} {unit}".rstrip()
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise CommandError(f"{field} must be a number from {limit}", field, limit)
    try:
        result = float(value)
    except (ValueError, OverflowError):
        raise CommandError(f"{field} must be a number from {limit}, not {value!r}", field, limit) from None
    if not math.isfinite(result) or not low <= result <= high:
        raise CommandError(f"{field} must be from {limit}, not {result:g}", field, limit)
    return result


def refusal(limit: float) -> CommandError:
    """Why the loop did not do a command, from what it answers: minus an errno, or NaN where it did not."""
    if math.isnan(limit):
        return CommandError("the loop did not answer", remedy="look at the worker's status and its log")
    return CommandError(f"refused by the loop: {os.strerror(-int(limit))}", "value", limit)


def allowed(value: object, low: float, high: float, otherwise: float) -> float:
    """A number that was kept, where it is one and still within bounds."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return float(value) if fits else otherwise  # type: ignore[arg-type]


def all_of(count: int, done: Done) -> Done:
    """A callback for `count` answers that calls `done` once: with success, or with the first refusal."""
    left = count

    def answered(ok: bool, limit: float) -> None:
        nonlocal left
        if left <= 0:
            return
        left = left - 1 if ok else 0
        if left == 0:
            done(ok, limit)

    return answered


class Job:
    """One job: its state, its settings, and the loop's commands behind start, stop and set."""

    name = ""

    def __init__(self, host: Host, config: Config) -> None:
        self.host = host
        self.config = config
        self.state = DISCONNECTED

    def become(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.host.publish_setting(self.name, "$state", state, settable=True)

    def start(self, done: Done) -> None:
        raise CommandError(f"{self.name} cannot be started", "job")

    def stop(self, done: Done) -> None:
        raise CommandError(f"{self.name} cannot be stopped", "job")

    def set(self, setting: str, value: object, done: Done) -> None:
        raise CommandError(
            f"{self.name} has no setting '{setting}' that can be changed", "setting", list(self.settable) or None
        )

    settable: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()  # attributes that a self-test changes, and that are put back

    def publish(self) -> None:
        """Say what is set."""

    def event_fields(self, code: int, argument: int, value: float) -> dict[str, object]:
        """What else an event of the loop about this job says."""
        return {}

    def on_event(self, code: int, value: float) -> None:
        """The loop reported something about this job."""

    def autostarts(self) -> bool:
        """Whether the config asks for it at a first start."""
        return bool(self.config.get(f"{self.name}.config", "autostart"))

    def tend(self) -> None:
        """Once a second: what has to be renewed."""

    def remember(self) -> dict[str, object]:
        """Set-points that a run after this one takes up again."""
        return {}

    def recall(self, kept: dict[str, object]) -> None:
        """Take up the set-points of the run before, before the start; what is no longer allowed is left out."""

    def resume(self, done: Done) -> None:
        """Start as the run before had it."""
        self.start(done)

    def check_outputs(self, what: str) -> None:
        """CommandError when nothing can be switched on."""
        if self.host.without_outputs:
            raise CommandError(
                f"there is nothing to {what} with: {self.host.without_outputs}", "job", remedy="then restart the worker"
            )

    def _then(self, state: str, done: Done) -> Done:
        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.become(state)
            elif self.state == INIT:
                self.become(DISCONNECTED)
            done(ok, limit)

        return answered


class OdReading(Job):
    """Optical density: light, converters and estimators."""

    name = "od_reading"
    settable = ("ir_led_intensity",)
    lent = ("intensity",)

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        self.intensity = float(config.get("od_reading.config", "ir_led_intensity"))

    def publish(self) -> None:
        self.host.publish_setting(
            self.name, "interval", 1.0 / float(self.config.get("od_reading.config", "readings_per_second")), "s"
        )
        self.host.publish_setting(self.name, "ir_led_intensity", self.intensity, "%", settable=True)
        self.host.publish_setting(self.name, "led_duty", self.config.get("od_reading.config", "led_duty"), "%")

    def publish_chop(self) -> None:
        """How the light is chopped, and what that leaves of ambient light at 0.1, 1 and 5 Hz."""
        chop = self.host.loop.chop()
        if chop is None:
            return
        publish, name = self.host.publish_setting, self.name
        publish(name, "half_cycle", chop["half_cycle"], "conversions")
        publish(name, "discarded", chop["discard"], "conversions")
        publish(name, "chop_frequency", round(chop["frequency_hz"], 3), "Hz")
        path_ms = chop["light_path_ms"]
        publish(name, "light_path", None if path_ms is None else round(path_ms, 4), "ms")
        publish(name, "ambient_rejection", [round(decibel, 1) for decibel in chop["rejection_db"]], "dB")
        for setting, ratio in self.host.loop.price().items():
            publish(name, setting, round(ratio, 4))

    def on_event(self, code: int, value: float) -> None:
        if code in (events.EVENT_HALF_CYCLE, events.EVENT_LIGHT_PATH, events.EVENT_RATE_LOCKED):
            self.publish_chop()
        elif code == events.EVENT_OVER_VOLTAGE and self.state == READY:
            self.become(SLEEPING)

    def remember(self) -> dict[str, object]:
        return {"ir_led_intensity": self.intensity}

    def recall(self, kept: dict[str, object]) -> None:
        self.intensity = allowed(kept.get("ir_led_intensity"), 0.0, 100.0, self.intensity)
        self.publish()

    def start(self, done: Done) -> None:
        self.become(INIT)
        self.host.send(SAMPLING, events.COMMAND_OD_START, 0, 0, self.intensity, self._then(READY, done))

    def stop(self, done: Done) -> None:
        self.host.send(SAMPLING, events.COMMAND_OD_STOP, 0, 0, 0.0, self._then(DISCONNECTED, done))

    def set(self, setting: str, value: object, done: Done) -> None:
        if setting != "ir_led_intensity":
            super().set(setting, value, done)
        intensity = number(value, "ir_led_intensity", 0.0, 100.0, "%")

        def answered(ok: bool, limit: float) -> None:
            if ok:
                self.intensity = intensity
                self.publish()
                self.host.calibrations.check_intensity()
            done(ok, limit)

        self.host.send(SAMPLING, events.COMMAND_LED, 0, 0, intensity, answered)


def make_jobs(host: Host, config: Config) -> dict[str, Job]:
    """The jobs of a worker by name."""
    from stirbar.core.dosing_job import Bioreactor
    from stirbar.core.leds_job import Leds
    from stirbar.core.monitor_job import Monitor
    from stirbar.core.stirring_job import Stirring
    from stirbar.core.temperature_job import TemperatureAutomation

    kinds = (OdReading, Stirring, TemperatureAutomation, Bioreactor, Leds, Monitor)
    return {kind.name: kind(host, config) for kind in kinds}
