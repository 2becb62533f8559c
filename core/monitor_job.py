"""The job `monitor`: how the unit itself is, its self-checks, and the error codes that its board's LED blinks.

Error codes are the field's: 3 disk almost full, 4 stirring failed, 5 too much light, 6 heater board too hot, 7 supply.
1 and 2, network and broker, are the bridge's to report; 8, the leader's page, is nobody's here.

Synchronization: none; belongs to the host thread.
"""

from __future__ import annotations

from stirbar.core import events
from stirbar.core.jobs import READY, SLEEPING, Job
from stirbar.core.records import STREAM_IDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config
    from stirbar.core.host import Host

    Figures = dict[str, float | bool]

VITALS_PERIOD_NS = 60_000_000_000
FIRST_CHECK_NS = 10_000_000_000  # after the start: rail and heater board have been read then
HOUR_NS = 3_600_000_000_000
FRESH_NS = 10_000_000_000  # an older temperature says nothing of now
STIRRING_FAILED, TOO_MUCH_LIGHT, HEATER_TOO_HOT = 4, 5, 6
HOT_REASONS = ("disabled", "locked")  # of events.HEAT_REASONS


class Check:
    """One self-check: the figure looked at is bad at `limit` or beyond, and good again only at `release`.

    Beyond is above where `release` is below `limit`. `blink` is the error code that the LED shows, 0 for none.
    """

    __slots__ = ("blink", "code", "figure", "level", "limit", "message", "over", "release")

    def __init__(
        self, code: str, figure: str, blink: int, limit: float, release: float, level: str, message: str, over: str
    ) -> None:
        self.code = code
        self.figure = figure
        self.blink = blink
        self.limit = limit
        self.release = release
        self.level = level
        self.message = message
        self.over = over

    def is_bad(self, value: float, was_bad: bool) -> bool:
        if self.release < self.limit:
            return value > self.release if was_bad else value >= self.limit
        return value < self.release if was_bad else value <= self.limit


def make_checks(shutdown_degc: float) -> tuple[Check, ...]:
    """The self-checks of a unit whose vial's heater board may become so hot."""
    return (
        Check(
            "disk_almost_full", "disk_available_gb", 3, 3.0, 3.3, "warning",
            "only {value:.1f} GB of the disk are free (3 GB or less): delete old recordings or files; when it is full, "
            "nothing more is kept",
            "{value:.1f} GB of the disk are free again",
        ),
        Check(
            "cpu_hot", "cpu_temperature_celcius", 0, 80.0, 75.0, "warning",
            "the processor is at {value:.0f} °C (80 or more): give the computer air, or a heat sink",
            "the processor is at {value:.0f} °C again",
        ),
        Check(
            "rail_low", "voltage_on_pwm_rail", 7, 4.8, 4.85, "warning",
            "the PWM rail has {value:.2f} V (4.80 or less): stirrer and heater are weaker; use a supply of 5.1 V, 3 A "
            "with a short cable, and see that the board's own supply is plugged in",
            "the PWM rail has {value:.2f} V again",
        ),
        Check(
            "under_voltage", "under_voltage", 7, 1.0, 0.5, "warning",
            "the computer's supply is below 4.63 V: use a supply of 5.1 V, 3 A with a short cable",
            "the computer's supply is well again",
        ),
        Check(
            "heater_board_hot", "heater_board_degc", HEATER_TOO_HOT, shutdown_degc, shutdown_degc - 5.0, "error",
            "the heater board is at {value:.1f} °C, "
            f"where the vial's model is to be switched off ({shutdown_degc:g}): the heater is off; unplug its supply, "
            "and look for a shorted driver",
            "the heater board is at {value:.1f} °C again",
        ),
    )  # fmt: skip


class Monitor(Job):
    """Reports on the unit itself; runs as long as the worker does."""

    name = "monitor"

    def __init__(self, host: Host, config: Config) -> None:
        super().__init__(host, config)
        self.checks = make_checks(config.vial()["shutdown_degc"])
        self.bad: set[str] = set()  # codes of the checks that found something
        self.faults: frozenset[int] = frozenset()  # error codes that last
        self._interval_ns = round(float(config.get("monitor.config", "self_check_interval_hours")) * HOUR_NS)
        self._vitals_at_ns = 0
        self._look_again_ns = 0
        self._check_at_ns: int | None = host.loop.now_ns() + FIRST_CHECK_NS
        self._statistics: Figures = {}
        self._asleep: set[int] = set()

    def publish(self) -> None:
        self.host.publish_setting(self.name, "versions", {"app": self.host.version})
        self.host.publish_setting(self.name, "error_codes", [])
        self.become(READY)

    def tend(self) -> None:
        now_ns = self.host.loop.now_ns()
        if self.host.vitals is not None and now_ns >= self._vitals_at_ns:
            self._vitals_at_ns = now_ns + VITALS_PERIOD_NS
            self._statistics = self.host.vitals.read()
            self.host.publish_setting(self.name, "computer_statistics", self._statistics)
            self.host.report_vitals(self._statistics)
        if self._check_at_ns is not None and now_ns >= self._check_at_ns:
            self._check_at_ns = now_ns + self._interval_ns if self._interval_ns else None
            self._look_again_ns = now_ns + VITALS_PERIOD_NS
            self.check(self.figures(now_ns), self.checks)
        elif self.bad and now_ns >= self._look_again_ns:
            self._look_again_ns = now_ns + VITALS_PERIOD_NS
            self.check(self.figures(now_ns), tuple(check for check in self.checks if check.code in self.bad))
        self._show()

    def figures(self, now_ns: int) -> Figures:
        """What the checks look at; what nobody measures is absent."""
        figures = dict(self._statistics)
        rail_v = self.host.loop.rail_v()
        if rail_v is not None:
            figures["voltage_on_pwm_rail"] = rail_v
        board = self.host.latest.get(STREAM_IDS["temperature"])
        if board is not None and now_ns - int(str(board["monotonic_ns"])) < FRESH_NS:
            figures["heater_board_degc"] = float(str(board["value"]))
        return figures

    def check(self, figures: Figures, checks: tuple[Check, ...]) -> None:
        """An event for each check that finds something for the first time, and one for each that no longer does."""
        for check in checks:
            value = float(figures.get(check.figure, float("nan")))
            was_bad = check.code in self.bad
            if value != value or check.is_bad(value, was_bad) == was_bad:
                continue
            if was_bad:
                self.bad.discard(check.code)
                self.host.event(
                    "notice", self.name, check.over.format(value=value), code=f"{check.code}_over", value=value
                )
            else:
                self.bad.add(check.code)
                self.host.event(check.level, self.name, check.message.format(value=value), code=check.code, value=value)

    def _show(self) -> None:
        """Let setting and LED say which error codes last."""
        codes = {check.blink for check in self.checks if check.code in self.bad and check.blink}
        hot = self.host.loop.heat_limited()
        if any(hot >> bit & 1 for bit, (name, _, _) in enumerate(events.HEAT_REASONS) if name in HOT_REASONS):
            codes.add(HEATER_TOO_HOT)
        for job, code in (("stirring", STIRRING_FAILED), ("od_reading", TOO_MUCH_LIGHT)):
            state = self.host.jobs[job].state
            if state == SLEEPING:
                self._asleep.add(code)
            elif state == READY and code in self._asleep:
                self._asleep.discard(code)
                if code == TOO_MUCH_LIGHT:
                    self.host.event("notice", job, "the light is on again", code="over_voltage_over")
        now_ns = self.host.loop.now_ns()
        reported = {code for code, until_ns in self.host.reported_faults.items() if now_ns < until_ns}
        faults = frozenset(codes | self._asleep | reported)
        if self.host.panel is not None:
            self.host.panel.faults = faults
        if faults != self.faults:
            self.faults = faults
            self.host.publish_setting(self.name, "error_codes", sorted(faults))
