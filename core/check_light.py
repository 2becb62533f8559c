"""`stirbar hardware check`: converters, photodiodes and their light path, temperature, PWM rail.

Synchronization: none; one thread at a time.
"""

from __future__ import annotations

import math
import time

from stirbar.core import bus_plan
from stirbar.core.board_probe import Converter, Light, ProbeError, oscillator_ratio, power_down, ready_edges
from stirbar.core.check_report import FAIL, NOTE, SKIP, WARN, Finding, judge
from stirbar.core.gpio_lines import LineError
from stirbar.core.profiles import ProfileError, gpio_chip_path
from stirbar.core.schema_keys import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from stirbar.core.config import Config
    from stirbar.core.i2c_bus import I2cBus
    from stirbar.core.profiles import Profile

RATE_TOLERANCE = 0.12  # 10 % of the oscillator, and what this way of measuring adds
DARK_READS = 12
SETTLED_S = {"ads1115": 0.05, "ads1114": 0.05, "rp2040": 0.35}
SIGMAS = 5.0
UNUSED = "unused"  # a photodiode of the board that the config does not name
STEPS = {"ads1115": 4, "ads1114": 4, "rp2040": 2}
STEP_SPAN_S = {"ads1115": 0.04, "ads1114": 0.04, "rp2040": 0.5}
STEP_PAUSE_S = {"ads1115": 0.0, "ads1114": 0.0, "rp2040": 0.004}
STEP_GAP_S = 0.1
RESIDUAL = 1e-3
OUTLIER = 0.2
RESIDUAL_RISE = 100.0  # the step response is worth fitting when the rise is so many times the noise
SETTLE_MARGIN = 1.25
TEMPERATURES = (-10.0, 80.0)
RAIL_LOW_V, RAIL_HIGH_V = 4.8, 18.0
ADS = ("ads1115", "ads1114")


class Step:
    """One photodiode's response to the light: levels and noise in volts; of each `turn` of the light, samples of
    (seconds after the write, volts).
    """

    __slots__ = ("converter", "dark_v", "lit_v", "noise_v", "section", "turns")

    def __init__(self, converter: Converter) -> None:
        self.converter = converter
        self.section = converter.section
        self.dark_v = 0.0
        self.lit_v = 0.0
        self.noise_v = 0.0
        self.turns: list[list[tuple[float, float]]] = []

    def rise_v(self) -> float:
        return self.lit_v - self.dark_v

    def window_s(self) -> float:
        """How long one conversion integrates; the microcontroller's answer has no window of its own."""
        return 0.0 if self.converter.chip == "rp2040" else 1.0 / 860.0

    def sees_light(self) -> bool:
        return self.rise_v() > max(SIGMAS * self.noise_v, 3.0 * self.converter.resolution_v())


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _spread(values: list[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _level(converter: Converter) -> tuple[float, float]:
    values = [converter.volts() for _ in range(DARK_READS)]
    return _mean(values), _spread(values)


def measure_step(converter: Converter, light: Light, percent: float) -> Step:
    """Dark and lit level, then the way between them."""
    step = Step(converter)
    wait = SETTLED_S[converter.chip]
    light.set(percent)
    time.sleep(wait)
    converter.range_for(converter.volts())
    step.lit_v, lit_noise = _level(converter)
    light.set(0.0)
    time.sleep(wait)
    step.dark_v, dark_noise = _level(converter)
    step.noise_v = max(lit_noise, dark_noise)
    if not step.sees_light():
        return step
    for turn in range(STEPS[converter.chip]):
        light.set(percent)
        start = time.monotonic()
        time.sleep(0.0003 * turn)  # conversions begin at other moments after each step
        samples: list[tuple[float, float]] = []
        step.turns.append(samples)
        begun = 0.0
        while begun < STEP_SPAN_S[converter.chip]:
            moment, volts = converter.sample()
            begun = moment - start
            samples.append((begun, volts))
            time.sleep(STEP_PAUSE_S[converter.chip])
        light.set(0.0)
        time.sleep(max(wait, STEP_GAP_S))
    return step


def _residual(age_s: float, tau_s: float, window_s: float) -> float:
    """What one time constant leaves of a step, averaged over a conversion that begins `age_s` after it."""
    if window_s == 0.0:
        return math.exp(-age_s / tau_s)
    return math.exp(-age_s / tau_s) * tau_s / window_s * -math.expm1(-window_s / tau_s)


def fit_tau_s(step: Step) -> float:
    """Time constant that describes the samples best, over 1 us to 1 s, to 1 %: least squares, but of no sample more
    than OUTLIER allows, because a machine that stalls between a write and its stamp gives a wrong age.
    """
    rise, window = step.rise_v(), step.window_s()
    points = [(age, (step.lit_v - volts) / rise) for samples in step.turns for age, volts in samples]

    def cost(tau: float) -> float:
        return sum(min((left - _residual(age, tau, window)) ** 2, OUTLIER**2) for age, left in points)

    best = min((1e-6 * 1.4**n for n in range(42)), key=cost)
    for ratio in (1.1, 1.02):
        best = min((best * ratio**n for n in range(-4, 5)), key=cost)
    return best


def settle_s(step: Step, tau_s: float) -> float:
    """Until a step is within 0.1 %: of the fitted time constant, or as late as samples stand out of the noise in half
    of the turns.
    """
    fitted = tau_s * math.log(1.0 / RESIDUAL)
    limit = max(RESIDUAL * step.rise_v(), SIGMAS * step.noise_v, step.converter.resolution_v())
    late = [max((age for age, v in samples if abs(step.lit_v - v) > limit), default=0.0) for samples in step.turns]
    return max(fitted, sorted(late)[(len(late) - 1) // 2])


def _angle(config: Config, section: str) -> str:
    channel = section.rpartition(".")[2]
    return str(config.get("od_config.photodiode_channel", channel) or UNUSED)


def _describe_light(step: Step, angle: str) -> Finding:
    what = f"light on [{step.section}] ({angle})"
    if step.converter.clips(step.lit_v):
        return Finding(
            FAIL,
            what,
            f"{step.lit_v:.4f} V, at the converter's limit",
            f"below {step.converter.full_scale_v:g} V",
            "lower [od_reading.config] ir_led_intensity",
        )
    needed = max(SIGMAS * step.noise_v, 3.0 * step.converter.resolution_v())
    if angle == UNUSED and not step.sees_light():
        return Finding(SKIP, what, "sees no light, and [od_config.photodiode_channel] names no photodiode there")
    return judge(
        step.sees_light(),
        what,
        f"dark {1e3 * step.dark_v:.3f} mV, lit {1e3 * step.lit_v:.3f} mV, noise {1e6 * step.noise_v:.0f} uV",
        f"rises by {1e3 * needed:.3f} mV or more",
        "put the vial in; check the LED's and the photodiode's plugs, and which channel the profile gives each",
    )


def _describe_step(step: Step, profile: Profile) -> Iterator[Finding]:
    what = f"step response of [{step.section}]"
    if step.rise_v() < RESIDUAL_RISE * step.noise_v:
        text = f"the light rises only {step.rise_v() / max(step.noise_v, 1e-12):.0f} x the noise; 100 x are needed"
        yield Finding(SKIP, what, text)
        return
    tau_s = fit_tau_s(step)
    settle_ms, tau_ms = 1e3 * settle_s(step, tau_s), 1e3 * tau_s
    planned = profile.get(step.section, "settle_ms")
    first_ms = 1e3 * min(age for samples in step.turns for age, _ in samples)
    measured = f"within 0.1 % after {settle_ms:.2f} ms, time constant {tau_ms:.3f} ms"
    if settle_ms <= first_ms:
        measured = f"within 0.1 % at the first look, after {first_ms:.2f} ms"
    yield judge(
        settle_ms <= max(SETTLE_MARGIN * planned, first_ms),
        what,
        measured,
        f"{number(planned)} ms as planned",
        f"write settle_ms = {settle_ms:.2f} into [{step.section}] of a profile that extends this one; the worker"
        " measures it at start as well, and chops slower",
        WARN,
    )
    yield _describe_chop(step, profile, settle_ms)


def _describe_chop(step: Step, profile: Profile, settle_ms: float) -> Finding:
    section = step.section
    lost = bus_plan.discarded(profile, section, settle_ms)
    low, high = profile.get(section, "half_cycle_low"), profile.get(section, "half_cycle_high")
    rate = profile.get(section, "rate_hz")
    prices = [(k, bus_plan.noise_over_b0(k, lost)) for k in range(low, high + 1)]
    good = [(k, price) for k, price in prices if math.isfinite(price)]
    if not good:
        return Finding(
            FAIL,
            f"chopping on [{section}]",
            f"{lost} conversions settle after each change of the light",
            f"less than the half cycle ({high})",
            f"raise half_cycle_high in the profile above {lost}",
        )
    (k_low, price_high), (k_high, price_low) = good[0], good[-1]
    return Finding(
        NOTE,
        f"chopping on [{section}]",
        f"half cycles of {k_low} to {k_high} ({rate / (2 * k_low):.1f} to {rate / (2 * k_high):.1f} Hz), {lost} of them"
        f" lost to each change, noise {price_high:.2f} to {price_low:.2f} x B0",
    )


def _roles(steps: list[Step], config: Config) -> Iterator[Finding]:
    """Whether reference and signal are where they are said to be, as far as light alone can tell."""
    references = [step for step in steps if _angle(config, step.section) == "REF"]
    signals = [step for step in steps if _angle(config, step.section) not in ("REF", UNUSED)]
    for channel in "1234":
        angle = config.get("od_config.photodiode_channel", channel)
        if angle and not any(step.section.endswith(channel) for step in steps):
            yield Finding(
                FAIL,
                f"channel {channel} ({angle})",
                "the board has no such photodiode"
                + ("; nothing corrects for the LED's drift" if angle == "REF" else ""),
                "every channel in use has one",
                f"leave [od_config.photodiode_channel] {channel} empty, or choose another profile",
            )
    if references and signals:
        levels = ", ".join(f"{_angle(config, s.section)}: {1e3 * s.rise_v():.2f} mV" for s in references + signals)
        yield Finding(
            NOTE,
            "reference and signal",
            f"{levels}. Light alone cannot tell whether they are swapped: take the vial out and run this again; the"
            " reference stays within 1 %, the others change",
        )


def check_light(profile: Profile, bus: I2cBus, config: Config) -> Iterator[Finding]:
    """LED on: which photodiodes rise, how fast, and what chopping that allows."""
    percent = float(config.get("od_reading.config", "ir_led_intensity"))
    steps: list[Step] = []
    try:
        with Light(bus, profile) as light:
            for section in (f"photodiode.{n}" for n in profile.channels()):
                try:
                    step = measure_step(Converter(bus, profile, section), light, percent)
                except OSError as error:
                    remedy = "see the devices above"
                    yield Finding(FAIL, f"light on [{section}]", str(error.strerror or error), "answers", remedy)
                    continue
                steps.append(step)
                yield _describe_light(step, _angle(config, section))
                if step.sees_light():
                    yield from _describe_step(step, profile)
    except OSError as error:
        yield Finding(FAIL, "LED driver", str(error.strerror or error), "answers", "see the devices above")
        return
    yield from _roles(steps, config)


def check_converters(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """The rate of each ADS111x, by its ALERT/RDY edges where they are wired, else by how long a conversion takes."""
    done: set[int] = set()
    for section in (f"photodiode.{n}" for n in profile.channels()):
        address, line = profile.get(section, "address"), profile.get(section, "ready_line")
        if profile.get(section, "chip") not in ADS or address in done:
            continue
        done.add(address)
        what = f"clock of the converter at {address:#x}"
        try:
            if line is not None:
                yield _by_edges(profile, bus, section, address, line)
                continue
            ratio = oscillator_ratio(bus, address, profile.get(section, "input") or 0)
            power_down(bus, address)
        except ProbeError as error:
            yield Finding(
                FAIL, what, str(error), "converts", "take the power away and give it back; else the chip is broken"
            )
            continue
        except OSError as error:
            yield Finding(FAIL, what, str(error.strerror or error), "answers", "see the devices above")
            continue
        yield _rate(what, ratio, "timed by single conversions")


def _rate(what: str, ratio: float, how: str) -> Finding:
    return judge(
        abs(ratio - 1.0) <= RATE_TOLERANCE,
        what,
        f"{860.0 * ratio:.1f} conversions/s at 860 ({100.0 * (ratio - 1.0):+.1f} %), {how}",
        f"860 within {100 * RATE_TOLERANCE:.0f} %",
        "the chip is out of its specification, or this machine too busy to time it: run the check again",
        WARN,
    )


def _by_edges(profile: Profile, bus: I2cBus, section: str, address: int, line: int) -> Finding:
    what = f"ALERT/RDY of [{section}] on line {line}"
    try:
        chip = gpio_chip_path(profile)
        edges, rate = ready_edges(bus, address, profile.get(section, "input") or 0, chip, line)
    except (LineError, ProfileError) as error:
        return Finding(FAIL, what, str(error.args[-1]), "edges at 860/s", "free the line")
    if edges < 2:
        return Finding(
            FAIL,
            what,
            f"{edges} edges in 0.3 s",
            "edges at 860/s",
            "check the wire and its pull-up (10 kOhm); without one write pace = pilot into the profile",
        )
    return _rate(what, rate / 860.0, f"{edges} edges")


def check_temperature(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """Whether the heater board's sensor says what can be."""
    if not profile.has("temperature"):
        return
    address = profile.get("temperature", "address")
    what = f"temperature of the heater board ({address:#x})"
    try:
        value = int.from_bytes(bus.read_register(address, 0), "big", signed=True) / 256.0
    except OSError as error:
        yield Finding(FAIL, what, str(error.strerror or error), "answers", "check the heater board's plug")
        return
    low, high = TEMPERATURES
    remedy = "let it cool down and check again; else the sensor is broken: do not heat"
    yield judge(low <= value <= high, what, f"{value:.2f} C", f"{number(low)} to {number(high)} C", remedy)


def check_rail(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """Voltage of the PWM rail, and of the pin that tells the HAT's version."""
    for section, what in (("rail", "voltage of the PWM rail"), ("version_sense", "version sense")):
        if not profile.has(section):
            continue
        try:
            volts = Converter(bus, profile, section).volts()
        except OSError as error:
            yield Finding(FAIL, what, str(error.strerror or error), "answers", "see the devices above")
            continue
        if section == "version_sense":
            yield Finding(NOTE, what, f"{volts:.3f} V")
            continue
        volts /= profile.get("rail", "divider")
        yield judge(
            RAIL_LOW_V <= volts <= RAIL_HIGH_V,
            what,
            f"{volts:.2f} V",
            f"{number(RAIL_LOW_V)} to {number(RAIL_HIGH_V)} V",
            "check the supply of stirrer, pumps and heater; above 18 V take it off at once",
            WARN if volts < RAIL_LOW_V else FAIL,
        )


def check_sensors(profile: Profile, bus: I2cBus, config: Config) -> Iterator[Finding]:
    """Everything that is measured over the bus."""
    yield from check_temperature(profile, bus)
    yield from check_rail(profile, bus)
    yield from check_converters(profile, bus)
    yield from check_light(profile, bus, config)
