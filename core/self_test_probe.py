"""The measurements that the tests of core/self_test_list.py share: light while it is stirred and still, and heat.

Synchronization: none; one thread.
"""

from __future__ import annotations

import math

from stirbar.core.self_test_bench import OFF, ON
from stirbar.core.self_test_signal import (
    MAINS_HZ,
    STIRRED_RPM,
    correlation,
    difference_v,
    in_seconds,
    kept_of,
    lines,
    mean,
    modulation_of,
    quiet_rpm,
)
from stirbar.core.vials import vial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.check_report import Finding
    from stirbar.core.profiles import Profile
    from stirbar.core.self_test_bench import Bench, Capture

OD, STIRRING, HEAT = "od_reading", "stirring", "temperature_automation"
CHOP_TRIES, CHOP_SAME_HZ = 4, 0.5
SETTLE_S = 8.0  # converters' clocks, chop, light path and stirrer after a start
STIRRED_S, STILL_S, STOPPING_S = 20.0, 8.0, 6.0
STEP_S, STEP_SETTLE_S = 1.0, 0.5  # of a change of the LED
DARK_LOOKS = 8  # as the field looks
SMOOTHED_LOOK_S = 2.0  # of light that is chopped once a second or slower
INTENSITIES = (35.0, 85.0, 75.0, 55.0, 45.0, 65.0, 80.0, 50.0)  # the field's
DUTY_STEPS, DUTY_STEP_S = 8, 3.5  # the field's number of steps; the last second of each counts
HEAT_STEPS_PERCENT = tuple(range(0, 30, 3))  # the field's
HEAT_STEP_S = 2.0
BASE_S, HEATED_S, COOLED_S = 8.0, 40.0, 40.0
TRUST_S = 60.0  # the worker believes a sensor that was not asked for long only after 45 s
CALM_DEGC, CALM_WAIT_S = 0.2, 180.0  # over BASE_S, before anything is concluded from heat
HEATED_PERCENT = 40.0
MAINS_SPAN_HZ, MAINS_STEP_HZ = 0.3, 0.05
CLEAR_V = 0.005  # less than clear medium scatters tells nothing of a bar
LOCK_STEP_HZ, LOCK_STEPS = 0.05, 20  # the stirrer's PWM follows the light's period only when that has moved


class Skipped(Exception):
    """Why a test says nothing."""


class Lateness:
    """Wake-ups of a thread and counters of the bus between two looks."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        self.seconds = 1e-9 * (after["monotonic_ns"] - before["monotonic_ns"])
        self._before, self._after = before, after

    def counted(self, name: str) -> int | None:
        """By how much a counter grew; None where the unit has none."""
        if name not in self._after["counters"]:
            return None
        return int(self._after["counters"][name] - self._before["counters"][name])

    def quantile_ns(self, thread: str, fraction: float) -> float:
        """Upper edge of the bin of the histogram that holds this share of the wake-ups; NaN without any."""
        seen = {low: count for low, _, count in self._before["lateness"][thread]["counts"]}
        counts = [(high, count - seen.get(low, 0)) for low, high, count in self._after["lateness"][thread]["counts"]]
        left = fraction * sum(count for _, count in counts)
        for high, count in counts:
            left -= count
            if count and left <= 0.0:
                return float(high)
        return math.nan


class Light:
    """Conversions at the usual intensity: stirred, and still."""

    def __init__(self, stirred: Capture, still: Capture, chop_hz: float, spent: Lateness) -> None:
        self.stirred = stirred
        self.still = still
        self.chop_hz = chop_hz
        self.spent = spent
        self._modulation: dict[int, float] = {}

    def level_v(self, channel: int, phase: int) -> float:
        """Mean of the conversions made under one light, without outliers; NaN without any."""
        samples = self.stirred.samples.get(channel)
        return mean(kept_of(samples.under(phase)[1])) if samples else math.nan

    def signal_v(self, channel: int) -> float:
        return self.level_v(channel, ON) - self.level_v(channel, OFF)

    def modulation(self, channel: int) -> float:
        """How much of a photodiode's light turns with the stirrer (`modulation_of`)."""
        if channel not in self._modulation:
            samples = self.stirred.samples.get(channel)
            self._modulation[channel] = modulation_of(samples, self.stirred.edges_ns) if samples else math.nan
        return self._modulation[channel]

    def hum_v(self, channel: int) -> float:
        """Amplitude at mains frequency, twice and three times that, in the dark, of 50 or 60 Hz whichever is larger."""
        samples = self.stirred.samples.get(channel)
        if samples is None:
            return math.nan
        time_ns, volts = samples.under(OFF)
        position = in_seconds(time_ns)
        steps = range(-round(MAINS_SPAN_HZ / MAINS_STEP_HZ), round(MAINS_SPAN_HZ / MAINS_STEP_HZ) + 1)
        best = 0.0
        for nominal in MAINS_HZ:
            near = [nominal + MAINS_STEP_HZ * step for step in steps]
            # the second harmonic may be the lamp's alone
            seen = lines(position, volts, near + [2.0 * hertz for hertz in near])
            sums = [math.hypot(one, two) for one, two in zip(seen, seen[len(near) :], strict=False)]
            line = near[sums.index(max(sums))]
            best = max(best, math.hypot(*lines(position, volts, [line, 2.0 * line, 3.0 * line])))
        return best

    def line_v(self, channel: int, hertz: float) -> float:
        """By how much a line in the dark is stronger while the stirrer turns."""
        turning, resting = self.stirred.samples.get(channel), self.still.samples.get(channel)
        if turning is None or resting is None:
            return math.nan
        near = [hertz + LOCK_STEP_HZ * step for step in range(-LOCK_STEPS, LOCK_STEPS + 1)]
        seen = []
        for samples in (turning, resting):
            time_ns, volts = samples.under(OFF)
            seen.append(max(lines(in_seconds(time_ns), volts, near)))
        return max(0.0, seen[0] - seen[1])


class Heat:
    """The heater board in steps of duty, then heated, then left alone."""

    def __init__(self, correlation: float, base: Capture, heated: Capture, cooled: Capture) -> None:
        self.correlation = correlation
        self.base = base
        self.heated = heated
        self.cooled = cooled

    def _board(self, capture: Capture) -> list[float]:
        return capture.values("temperature")

    def rise_degc(self) -> float:
        """From the beginning of the heating to its end."""
        board = self._board(self.heated)
        return mean(board[-3:]) - mean(board[:1])

    def expected_degc(self, model: dict[str, float], volume_ml: float) -> float:
        """The same, as a vial with water in it would rise with the duty that was given."""
        duties = [0.01 * duty for duty in self.heated.values("liquid", "signal_v")]
        board = liquid = 0.0
        for duty in duties:
            through = model["coupling_w_per_k"] * (board - liquid)
            board += (model["power_w"] * duty - through - model["board_loss_w_per_k"] * board) / model["board_j_per_k"]
            liquid += (through - model["liquid_loss_w_per_k"] * liquid) / (4.18 * volume_ml)
        return board

    def left(self) -> float:
        """Share of the rise that is left after the time of cooling: what holds no liquid cools slowly."""
        board = self._board(self.cooled)
        start = mean(self._board(self.heated)[-2:])
        return 1.0 - (start - mean(board[-3:])) / self.rise_degc() if board else math.nan


class Probe:
    """Makes each measurement once, when the first test asks for it."""

    def __init__(self, bench: Bench, profile: Profile | None, clock: Finding | None = None) -> None:
        self.bench = bench
        self.profile = profile
        self.clock = clock  # of the bus, as measured before a worker of our own had it
        self._light: Light | None = None
        self._heat: Heat | None = None
        self._asked_ns = 0  # since when the heater board is asked

    @property
    def channels(self) -> dict[int, int]:
        """Photodiode channel: its angle, 0 for the reference."""
        return {one["channel"]: one["angle"] for one in self.bench.description["channels"]}

    @property
    def reference(self) -> int:
        """The reference's channel; Skipped where there is none."""
        for channel, angle in self.channels.items():
            if angle == 0:
                return channel
        raise Skipped("no photodiode is the reference")

    def signals(self) -> list[int]:
        """The channels that measure the culture; Skipped where there are none."""
        found = [channel for channel, angle in self.channels.items() if angle != 0]
        if not found:
            raise Skipped("no photodiode measures the culture")
        return found

    def option(self, section: str, key: str) -> Any:
        return self.bench.config[section][key]

    def has_pace(self, pace: str) -> bool:
        """Whether a photodiode's converter is of a kind: ready, pilot, host, smoothed (docs/hardware.md)."""
        return self.profile is not None and any(
            self.profile.get(f"photodiode.{channel}", "pace") == pace for channel in self.channels
        )

    def start(self, job: str) -> None:
        """Have a job run."""
        if self.bench.ask("status")["jobs"][job] == "disconnected":
            self.bench.ask("start", job=job)

    def stop(self, job: str) -> None:
        """Have a job not run."""
        if self.bench.ask("status")["jobs"][job] != "disconnected":
            self.bench.ask("stop", job=job)

    def set(self, job: str, setting: str, value: float | str) -> None:
        self.bench.ask("set", job=job, setting=setting, value=value)

    def stir(self, rpm: float) -> None:
        """Turn at a speed, as far as the config lets."""
        self.set(STIRRING, "target_rpm", min(rpm, self.bench.description["limits"]["target_rpm"][1]))
        self.start(STIRRING)

    def _usual(self) -> float:
        """The LED's usual intensity."""
        return float(self.option("od_reading.config", "ir_led_intensity"))

    def light(self) -> Light:
        """Conversions at the usual intensity, stirred and still."""
        if self._light is None:
            bench = self.bench
            bench.ask("raw", seconds=SETTLE_S)  # before the converters start: their ranges are told then
            self._begin_light()
            chop_hz = self._stir_quietly()
            before = bench.ask("status")
            stirred = bench.watch(STIRRED_S, raw=True)
            spent = Lateness(before, bench.ask("status"))
            self.stop(STIRRING)
            bench.watch(STOPPING_S, raw=True)
            still = bench.watch(STILL_S, raw=True)
            self._light = Light(stirred, still, chop_hz, spent)
        return self._light

    def _stir_quietly(self) -> float:
        """Turn at a speed that chopped light tells from mains and lamps; returns the chop's frequency.

        The worker chooses the chop by the speed as well.
        """
        chop_hz = 0.0
        for _ in range(CHOP_TRIES):
            before_hz, chop_hz = chop_hz, float(self.bench.setting(OD, "chop_frequency") or 0.0)
            if abs(chop_hz - before_hz) < CHOP_SAME_HZ:
                break
            self.stir(quiet_rpm(chop_hz))
            self.bench.watch(STOPPING_S, raw=True)
        return float(self.bench.setting(OD, "chop_frequency") or 0.0)

    def is_turning(self) -> bool:
        """Whether the stirrer turned while light was measured."""
        return mean(self.light().stirred.values("rpm")) > 0.5 * STIRRED_RPM[0]

    def light_steps(self) -> dict[int, list[float]]:
        """The signal of each photodiode at each of INTENSITIES, volts."""
        found: dict[int, list[float]] = {channel: [] for channel in self.channels}
        self._begin_light()
        for percent in INTENSITIES:
            self.set(OD, "ir_led_intensity", percent)
            self.bench.watch(STEP_SETTLE_S, raw=True)
            seen = self.bench.watch(STEP_S, raw=True)
            for channel, levels in found.items():
                levels.append(difference_v(seen.samples.get(channel)))
        self.set(OD, "ir_led_intensity", self._usual())
        return found

    def dark(self) -> dict[int, list[float]]:
        """On minus off of each photodiode with the LED out, volts, over and over."""
        if self.has_pace("pilot"):
            raise Skipped("the light's edges are the clock of a silent converter")
        found: dict[int, list[float]] = {channel: [] for channel in self.channels}
        look_s = SMOOTHED_LOOK_S if self.has_pace("smoothed") else STEP_SETTLE_S
        self._begin_light()
        self.set(OD, "ir_led_intensity", 0.0)
        self.bench.watch(look_s, raw=True)
        for _ in range(DARK_LOOKS):
            seen = self.bench.watch(look_s, raw=True)
            for channel, levels in found.items():
                levels.append(difference_v(seen.samples.get(channel)))
        self.set(OD, "ir_led_intensity", self._usual())
        return found

    def _begin_light(self) -> None:
        """Have the light on and stirred, and wait for it to be steady, where it was not."""
        self.signals()
        jobs = self.bench.ask("status")["jobs"]
        self.start(OD)
        self.stir(STIRRED_RPM[len(STIRRED_RPM) // 2])
        if "disconnected" in (jobs[OD], jobs[STIRRING]):
            self.bench.watch(SETTLE_S, raw=True)

    def speeds(self) -> tuple[list[float], list[float]]:
        """Duties from 1.2 to 0.8 of the usual one, percent, and the speed at each, rpm."""
        usual = float(self.option("stirring.config", "initial_duty_cycle"))
        highest = float(self.option("stirring.config", "duty_maximum_percent"))
        first, end = min(1.2 * usual, highest), max(0.8 * usual, 5.0)
        self.set(STIRRING, "duty_cycle", usual)
        self.start(STIRRING)
        self.bench.watch(3.0)
        duties, speeds = [], []
        for step in range(DUTY_STEPS):
            duty = first + (end - first) * step / DUTY_STEPS
            self.set(STIRRING, "duty_cycle", duty)
            seen = self.bench.watch(DUTY_STEP_S).values("rpm")
            duties.append(duty)
            speeds.append(seen[-1] if seen else math.nan)
        self.stop(STIRRING)
        return duties, speeds

    def ask_board(self) -> None:
        """Have the heater board's temperature read from now on."""
        if not self._asked_ns:
            self.set(HEAT, "automation_name", "only_record_temperature")
            self.start(HEAT)
            self._asked_ns = int(self.bench.ask("status")["monotonic_ns"])

    def board_degc(self) -> list[float]:
        """The heater board over some seconds."""
        self.ask_board()
        return self.bench.watch(BASE_S).values("temperature")

    def _heat_for(self, percent: float, seconds: float) -> Capture:
        self.set(HEAT, "heater_duty_cycle", percent)
        return self.bench.watch(seconds)

    def heat(self) -> Heat:
        """The board in steps of duty, then heated, then left alone."""
        if self._heat is None:
            self.stir(500.0)
            board = self.board_degc()
            if not board:
                raise Skipped("the heater board's temperature is not told")
            asked_s = 1e-9 * (self.bench.ask("status")["monotonic_ns"] - self._asked_ns)
            if asked_s < TRUST_S:
                self.bench.watch(TRUST_S - asked_s)
            base, waited = self.bench.watch(BASE_S), BASE_S
            while _moves(base) > CALM_DEGC and waited < CALM_WAIT_S:
                base, waited = self.bench.watch(BASE_S), waited + BASE_S
            highest = float(self.option("temperature_automation.config", "heater_duty_maximum_percent"))
            steps = [self._heat_for(min(duty, highest), HEAT_STEP_S) for duty in HEAT_STEPS_PERCENT]
            seen = [mean(step.values("temperature")[-1:]) for step in steps]
            r = correlation([float(duty) for duty in HEAT_STEPS_PERCENT], seen)
            self._heat_for(0.0, BASE_S)
            heated = self._heat_for(min(HEATED_PERCENT, highest), HEATED_S)
            cooled = self._heat_for(0.0, COOLED_S)
            self.set(HEAT, "automation_name", "only_record_temperature")
            self.stop(STIRRING)
            self._heat = Heat(r, base, heated, cooled)
        return self._heat

    def vial(self) -> dict[str, float]:
        """What is known of the vial's heat."""
        return vial(str(self.option("unit", "vial")))


def _moves(capture: Capture) -> float:
    board = capture.values("temperature")
    return abs(mean(board[-2:]) - mean(board[:2]))
