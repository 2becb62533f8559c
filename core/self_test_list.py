"""The self-tests by name, the field's eleven and ours: what each looks at, its threshold, where that is from, and what
to do when it fails. docs/self-test.md holds this table as `table()` renders it.

Synchronization: none; one thread.
"""

from __future__ import annotations

import math

from stirbar.core import bus_plan
from stirbar.core.check_report import FAIL
from stirbar.core.detection import Hat
from stirbar.core.self_test_bench import OFF, ON
from stirbar.core.self_test_probe import CLEAR_V, INTENSITIES, Skipped
from stirbar.core.self_test_signal import SEEN_V, correlation, mean, variance

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stirbar.core.self_test_probe import Probe

    Value = float | str | None
    Found = tuple[Value, bool]
    Measure = Callable[[Probe], Found]

VENDOR, PRODUCT = "Pioreactor Inc.", "0x0001"
CORRELATION = 0.9
DARK_V, LEAK_V = 0.080, 0.080
CORRECTED_V, CORRECTED_VARIANCE = 0.010, 5e-5
REFERENCE_V = (0.01, 1.0)
REFERENCE_VARIANCE = 1e-2
REFERENCE_EFFECT, EFFECT_RATIO = 0.015, 0.75
BLANK_V = {45: 0.035, 90: 0.035, 135: 0.15}
AUX_V = 18.0
STIRRED_EFFECT = 0.001
HUM_V, PWM_V = 0.005, 0.0002
LEFT_OF_RISE, HEATER_SHARE = 0.4, 0.5
MINIMUM_RISE_DEGC = 0.5
SAMPLING_NS, ACTUATORS_NS = 530_000.0, 5_000_000.0
QUANTILE = 0.99
DRIVER_S = 150e-6  # what driver and system call add to a transfer at most (core/bus_plan.py: 30 to 110 us)
BUS_TOLERANCE = 1.15  # of the clock
BUSY_SHARE = 0.8


class SelfTest:
    """One test. `heats`: it needs the heater board's sensor, which is asked from the beginning.

    Synchronization: none required; instances are not changed after they are made.
    """

    __slots__ = ("about", "heats", "measure", "name", "remedy", "source", "threshold", "unit")

    def __init__(
        self, name: str, about: str, unit: str, threshold: str, source: str, remedy: str, measure: Measure, heats: bool
    ) -> None:
        self.name = name
        self.about = about
        self.unit = unit
        self.threshold = threshold
        self.source = source
        self.remedy = remedy
        self.measure = measure
        self.heats = heats


def _worst(values: list[float], good: Callable[[float], bool]) -> Found:
    """The value that is told of several, and whether all are good: a bad one if there is any, else the largest."""
    if not values:
        return math.nan, False
    bad = [value for value in values if not good(value)]
    return (bad[0] if bad else max(values, key=abs)), not bad


# --- the field's -----------------------------------------------------------------------------------------------------


def _hat_present(probe: Probe) -> Found:
    if probe.bench.simulated:
        raise Skipped("simulated")
    if not probe.bench.local:
        raise Skipped("the unit is another machine")
    if probe.profile is not None and not probe.profile.get("profile", "hat_version"):
        raise Skipped(f"the board '{probe.profile.name}' is no HAT of the field")
    hat = Hat()
    return str(hat), hat.vendor == VENDOR and hat.product.endswith(PRODUCT)


def _light_correlation(probe: Probe) -> Found:
    levels = probe.light_steps()
    found = [correlation(list(INTENSITIES), seen) if max(seen) >= SEEN_V else 0.0 for seen in levels.values()]
    bad = [r for r in found if not r > CORRELATION]
    return (bad[0] if bad else min(found)), not bad


def _ambient_light(probe: Probe) -> Found:
    light = probe.light()
    return _worst([light.level_v(channel, OFF) for channel in probe.channels], lambda v: v < DARK_V)


def _dark_offset(probe: Probe) -> Found:
    looks = probe.dark()
    means, good = _worst([mean(seen) for seen in looks.values()], lambda v: abs(v) <= CORRECTED_V)
    return means, good and all(variance(seen) <= CORRECTED_VARIANCE for seen in looks.values())


def _reference_level(probe: Probe) -> Found:
    channel = probe.reference
    light = probe.light()
    level = light.signal_v(channel)
    samples = light.stirred.samples.get(channel)
    spread = variance(samples.under(ON)[1]) if samples else math.nan
    return level, REFERENCE_V[0] < level < REFERENCE_V[1] and spread < REFERENCE_VARIANCE


def _strongest_effect(probe: Probe, channels: list[int]) -> float:
    """Largest modulation by the stirrer; Skipped where it does not turn, or cannot be seen."""
    if probe.has_pace("smoothed"):
        raise Skipped("the converter's running mean hides it")
    if not probe.is_turning():
        raise Skipped("the stirrer does not turn")
    light = probe.light()
    found = {channel: light.modulation(channel) for channel in channels}
    for channel, value in found.items():
        if value != value or not light.signal_v(channel) >= CLEAR_V:
            raise Skipped(f"photodiode {channel} sees too little light")
        if math.isinf(value):
            raise Skipped(f"noise hides it on photodiode {channel}")
    return max(found.values())


def _reference_position(probe: Probe) -> Found:
    reference, signals = probe.reference, probe.signals()
    own, strongest = _strongest_effect(probe, [reference]), _strongest_effect(probe, signals)
    if not max(own, strongest) >= STIRRED_EFFECT:
        raise Skipped(f"stirring moves the light by less than {100 * STIRRED_EFFECT:g} %: see stir_bar_present")
    return 100.0 * own, own <= REFERENCE_EFFECT and own <= EFFECT_RATIO * strongest


def _blank_level(probe: Probe) -> Found:
    light = probe.light()
    angles = {channel: probe.channels[channel] for channel in probe.signals()}
    seen = {channel: light.signal_v(channel) for channel, angle in angles.items() if angle in BLANK_V}
    if not seen:
        raise Skipped("no photodiode at 45, 90 or 135 degrees")
    bad = [level for channel, level in seen.items() if not level <= BLANK_V[angles[channel]]]
    return (bad[0] if bad else max(seen.values())), not bad


def _heater_board(probe: Probe) -> Found:
    seen = probe.board_degc()
    return mean(seen), bool(seen)


def _heat_correlation(probe: Probe) -> Found:
    r = probe.heat().correlation
    return r, r > CORRELATION


def _speed_correlation(probe: Probe) -> Found:
    r = correlation(*probe.speeds())
    return r, r > CORRELATION


def _aux_power(probe: Probe) -> Found:
    volts = probe.bench.setting("monitor", "voltage_on_pwm_rail")
    if volts is None:
        raise Skipped("simulated" if probe.bench.simulated else "the board cannot tell")
    return float(volts), float(volts) <= AUX_V


# --- ours ------------------------------------------------------------------------------------------------------------


def _not_swapped(probe: Probe) -> Found:
    light, reference = probe.light(), probe.reference
    seen = [light.signal_v(channel) for channel in probe.signals() if probe.channels[channel] in BLANK_V]
    if not seen:
        raise Skipped("no photodiode at 45, 90 or 135 degrees")
    own = light.signal_v(reference)
    if not own >= SEEN_V:
        raise Skipped("the reference sees no light")
    return _worst([level / own for level in seen], lambda ratio: ratio < 1.0)


def _stir_bar(probe: Probe) -> Found:
    strongest = _strongest_effect(probe, list(probe.channels))
    return 100.0 * strongest, strongest >= STIRRED_EFFECT


def _vial_present(probe: Probe) -> Found:
    heat = probe.heat()
    if not heat.rise_degc() >= MINIMUM_RISE_DEGC:
        raise Skipped("the heater gives too little heat to tell")
    return 100.0 * heat.left(), heat.left() <= LEFT_OF_RISE


def _heater_heats(probe: Probe) -> Found:
    heat = probe.heat()
    expected = heat.expected_degc(probe.vial(), float(probe.option("bioreactor", "initial_volume_ml")))
    if not expected > 0.0:
        raise Skipped("the worker did not let the heater on")
    share = heat.rise_degc() / expected
    return 100.0 * share, share >= HEATER_SHARE


def _hum_level(probe: Probe) -> Found:
    if probe.has_pace("smoothed"):
        raise Skipped("the converter's running mean hides it")
    light = probe.light()
    value, good = _worst([light.hum_v(channel) for channel in probe.channels], lambda v: v <= HUM_V)
    return 1e3 * float(str(value)), good


def _light_leak(probe: Probe) -> Found:
    light = probe.light()
    percent = float(probe.option("od_reading.config", "ir_led_intensity"))
    seen = [light.signal_v(channel) for channel in probe.signals() if probe.channels[channel] in (45, 90)]
    if not seen or not percent > 0.0:
        raise Skipped("no photodiode at 45 or 90 degrees, or no light")
    return _worst([level * 100.0 / percent for level in seen], lambda v: v < LEAK_V)


def _pwm_pickup(probe: Probe) -> Found:
    if probe.has_pace("smoothed"):
        raise Skipped("the converter's running mean hides it")
    if not probe.is_turning():
        raise Skipped("the stirrer does not turn")
    light, hertz = probe.light(), float(probe.option("stirring.config", "pwm_hz"))
    if light.chop_hz > 0.0:  # its period is locked to that of the light
        hertz = light.chop_hz * max(1, round(hertz / light.chop_hz))
    seen = [light.line_v(channel, hertz) for channel in probe.channels]
    value, good = _worst(seen, lambda v: v <= PWM_V)
    return 1e3 * float(str(value)), good


def _bus_speed(probe: Probe) -> Found:
    if probe.clock is not None:
        return probe.clock.measured, probe.clock.status != FAIL
    spent = probe.light().spent
    busy_ms, transfers = spent.counted("bus_busy_ms"), spent.counted("bus_transfers")
    if not transfers or busy_ms is None or probe.profile is None:
        raise Skipped("nobody counts what the bus does")
    share = 1e-3 * busy_ms / spent.seconds
    planned = bus_plan.bus_share(probe.profile, bus_plan.CLOCK_SPREAD)
    limit = min(BUSY_SHARE, BUS_TOLERANCE * planned + DRIVER_S * transfers / spent.seconds)
    return 100.0 * share, share <= max(limit, planned)


def _loop_lateness(probe: Probe) -> Found:
    spent = probe.light().spent
    sampling, actuators = spent.quantile_ns("sampling", QUANTILE), spent.quantile_ns("actuators", QUANTILE)
    return 1e-3 * sampling, sampling <= SAMPLING_NS and actuators <= ACTUATORS_NS


# name, what, unit, threshold, source, remedy, function, whether the heater board is needed
_ROWS: tuple[tuple[str, str, str, str, str, str, Measure, bool], ...] = (
    (
        "pioreactor_HAT_present", "the HAT says who it is", "",
        f"{VENDOR}, product {PRODUCT}", "the field's test",
        "push the HAT onto all 40 pins, start the Pi again; then `stirbar hardware detect`", _hat_present, False,
    ),
    (
        "all_positive_correlations_between_pds_and_leds", "each photodiode follows the LED, 35 to 85 %", "",
        f"r > {CORRELATION:g}", "the field's test",
        "check the LED's and the photodiodes' plugs, and [od_config.photodiode_channel]", _light_correlation, False,
    ),
    (
        "ambient_light_interference", "light on the photodiodes while the LED is off", "V",
        f"< {DARK_V:g} V", "the field's test",
        "close the lid, put in a vial, take the unit out of the sun", _ambient_light, False,
    ),
    (
        "dark_offset_correction_is_effective", "lit less dark with the LED out", "V",
        f"within {CORRECTED_V:g} V, variance <= {CORRECTED_VARIANCE:g} V^2", "the field's test",
        "something else lights in time with the LED, or the LED's driver does not go dark: `stirbar hardware check`",
        _dark_offset, False,
    ),
    (
        "REF_is_lower_than_0_dot_256_volts", "the reference's signal at the usual intensity", "V",
        f"{REFERENCE_V[0]:g} to {REFERENCE_V[1]:g} V, variance < {REFERENCE_VARIANCE:g} V^2", "the field's test",
        "change [od_reading.config] ir_led_intensity; at nothing at all, check the reference's plug",
        _reference_level, False,
    ),
    (
        "REF_is_in_correct_position", "how much of the reference's light turns with the stirrer", "%",
        f"<= {100 * REFERENCE_EFFECT:g} %, and <= {EFFECT_RATIO:g} of the strongest signal's", "the field's limits",
        "the reference sees the vial: put its photodiode into the pocket beside the LED", _reference_position, False,
    ),
    (
        "PD_is_near_0_volts_for_blank", "light scattered by clear medium at the usual intensity", "V",
        "45 and 90 degrees <= 0.035 V, 135 degrees <= 0.15 V", "the field's test",
        "put in a vial of clear medium, wipe it dry, and close the lid", _blank_level, False,
    ),
    (
        "detect_heating_pcb", "the heater board's sensor (TMP1075) answers", "°C",
        "answers", "the field's test",
        "check the heater board's plug; then `stirbar hardware check`", _heater_board, True,
    ),
    (
        "positive_correlation_between_temperature_and_heating", "the heater board warms with the duty, 0 to 27 %", "",
        f"r > {CORRELATION:g}", "the field's test",
        "check the heater's plug and its supply; let the board cool down first", _heat_correlation, True,
    ),
    (
        "positive_correlation_between_rpm_and_stirring", "the speed follows the duty, 0.8 to 1.2 of the usual", "",
        f"r > {CORRELATION:g}", "the field's test",
        "check fan, cable and hall sensor; a fan that does not start needs more initial_duty_cycle",
        _speed_correlation, False,
    ),
    (
        "aux_power_is_not_too_high", "the PWM rail", "V",
        f"<= {AUX_V:g} V", "the field's test",
        "take the supply off at once; use one of at most 12 V", _aux_power, False,
    ),
    (
        "reference_and_signal_not_swapped", "clear medium's scattered light against the reference's", "",
        "< 1", "light of the LED itself is brighter than what clear medium scatters",
        "swap the two plugs, or the entries of [od_config.photodiode_channel]", _not_swapped, False,
    ),
    (
        "stir_bar_present", "how much of the light turns with the stirrer, at 750 to 1050 rpm", "%",
        f">= {100 * STIRRED_EFFECT:g} %", "the field's least effect of stirring",
        "put a stir bar into the vial, and the vial onto the fan's middle", _stir_bar, False,
    ),
    (
        "vial_present", "what is left of the heater board's rise after 40 s of cooling", "%",
        f"<= {100 * LEFT_OF_RISE:g} %", "simulated: 10 % with 14 mL, 70 % without a vial",
        "put in a filled vial, down to the heater board", _vial_present, True,
    ),
    (
        "heater_heats", "rise in 40 s against what the vial's model expects", "%",
        f">= {100 * HEATER_SHARE:g} %", "twice what power and coupling may differ (core/vials.py)",
        "check the heater's plug, its supply and [unit] vial", _heater_heats, True,
    ),
    (
        "hum_level", "lines at one, two and three times the mains frequency, in the dark", "mV",
        f"<= {1e3 * HUM_V:g} mV", "IS-18: 80 dB below it is less than a second's error",
        "move cables and supplies away from the photodiodes' cables, earth the supply, shade the unit from lamps",
        _hum_level, False,
    ),
    (
        "light_leak", "the LED's light at 45 and 90 degrees with clear medium, at 100 %", "V",
        f"< {LEAK_V:g} V", "the field's gate for leakage",
        "the LED lights past the vial: seat LED and photodiodes, look for scratches and drops on the glass",
        _light_leak, False,
    ),
    (
        "pwm_pickup", "by how much the line of the stirrer's PWM is stronger while it turns, in the dark", "mV",
        f"<= {1e3 * PWM_V:g} mV", "IS-30; a hundredth of clear medium's signal",
        "keep the stirrer's cable away from the photodiodes' and twist it; check the supply's capacitor",
        _pwm_pickup, False,
    ),
    (
        "bus_speed", "share of the time that the I2C bus is busy", "%",
        f"<= the plan's bits within {100 * (BUS_TOLERANCE - 1):.0f} % and {1e6 * DRIVER_S:g} us a transfer, "
        f"at most {100 * BUSY_SHARE:g} %", "IS-20, `stirbar hardware check`",
        "write dtparam=i2c_arm_baudrate as the profile's [i2c] clock_hz into /boot/firmware/config.txt, and see that "
        "nobody else uses the bus", _bus_speed, False,
    ),
    (
        "loop_lateness", "99 % of the wake-ups of the sampling thread are at most so late", "us",
        f"<= {1e-3 * SAMPLING_NS:g} us, actuators <= {1e-6 * ACTUATORS_NS:g} ms", "IS-22: margin of a silent converter",
        "grant real-time priority, and take other work off this computer: docs/determinism.md", _loop_lateness, False,
    ),
)  # fmt: skip
TESTS: tuple[SelfTest, ...] = tuple(SelfTest(*row) for row in _ROWS)


def table() -> str:
    """The tests as Markdown; docs/self-test.md holds this text."""
    lines = ["| test | what it looks at | threshold | from | remedy |", "|---|---|---|---|---|"]
    lines += [f"| `{t.name}` | {t.about} | {t.threshold} | {t.source} | {t.remedy} |" for t in TESTS]
    return "\n".join(lines) + "\n"
