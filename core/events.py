"""The compiled loop's commands and events, in words.

The numbers are those of `pyx/types.pxd` (a test holds them equal).
"""

from __future__ import annotations

COMMAND_EXPERIMENT = 1
COMMAND_OD_START = 2
COMMAND_OD_STOP = 3
COMMAND_BLANK = 4
COMMAND_LED = 5
COMMAND_TRACE = 6
COMMAND_STIR_RPM = 7
COMMAND_STIR_DUTY = 8
COMMAND_STIR_STOP = 9
COMMAND_TEMPERATURE = 10
COMMAND_SIMULATION = 11
COMMAND_CURVE = 12
COMMAND_REFERENCE = 13
COMMAND_HEAT_TARGET = 14
COMMAND_HEAT_DUTY = 15
COMMAND_HEAT_STOP = 16
COMMAND_HEAT_RENEW = 17
COMMAND_HEAT_UNLOCK = 18
COMMAND_DOSE_ML = 20
COMMAND_DOSE_SECONDS = 21
COMMAND_DOSE_CONTINUOUS = 22
COMMAND_DOSE_RENEW = 23
COMMAND_DOSE_PART = 24
COMMAND_DOSE_EXCHANGE = 25
COMMAND_DOSE_STOP = 26
COMMAND_VOLUME = 27
COMMAND_PUMP = 28
COMMAND_LED_SET = 30
COMMAND_LED_RENEW = 31
COMMAND_STIR_RAMP = 35
COMMAND_STIR_CURVE = 36
COMMAND_STIR_DODGE = 37

EVENT_COMMAND_DONE = 1
EVENT_COMMAND_REFUSED = 2
EVENT_STIR_FAULT = 5
EVENT_RATE_LOCKED = 7
EVENT_HALF_CYCLE = 8
EVENT_OVER_VOLTAGE = 13
EVENT_LIGHT_PATH = 16
EVENT_REFERENCE_ERROR, EVENT_REFERENCE = 20, 21
EVENT_HEAT_LIMITED, EVENT_HEAT_FREED = 32, 33
EVENT_DOSE_STEP, EVENT_DOSE_DONE, EVENT_DOSE_CUT, EVENT_DOSE_OWED = 34, 35, 36, 37

EVENT_LIMITS_RESTORED = 38
DOSE_EVENTS = (EVENT_DOSE_STEP, EVENT_DOSE_DONE, EVENT_DOSE_CUT, EVENT_DOSE_OWED)
PUMPS = ("media", "alt_media", "waste")  # DOSE_* of pyx/volume.pxd

# Why a dose was cut, by CUT_* of pyx/doser.pxd: name, level, and what it means.
CUTS: tuple[tuple[str, str, str], ...] = (
    ("none", "info", ""),
    ("stopped", "notice", "it was stopped"),
    ("unguarded", "error", "the guard is silent"),
    ("unstirred", "error", "nobody sees the stirrer turn"),
    ("pump", "error", "a pump's output does not take orders: run `stirbar hardware check`"),
    ("full", "warning", "the vial holds no more, or too much came in since somebody looked: `stirbar dose volume`"),
    ("late", "error", "the loop stood still"),
    ("lease", "notice", "nobody asked for it any more"),
)

EVENT_LED_CHANGED, EVENT_LED_LAPSED, EVENT_LED_LAPSED_OVER, EVENT_LED_LOCKED = 50, 51, 52, 53
EVENT_LED_LOST, EVENT_LED_LOST_OVER = 54, 55
LED_CHANNELS = "ABCD"

# Why the heater has less than was asked for, by the bits of pyx/heat_protect.pxd: name, level, and what it means.
HEAT_REASONS: tuple[tuple[str, str, str], ...] = (
    ("no_lease", "error", "heater off: the worker's Python stood still for 5 s"),
    ("reduced", "warning", "the heater board is at {value:.1f} °C: less heat"),
    ("disabled", "error", "the heater board is at {value:.1f} °C: heater off"),
    (
        "locked",
        "error",
        "the heater board was too hot ({value:.1f} °C): heater off until you acknowledge it; look for a dry vial, a "
        "shorted driver, a sensor that came loose",
    ),
    ("blind", "warning", "the heater's sensor is not believed ({value:.1f} °C): little heat, for at most a minute"),
    ("untrusted", "error", "the heater's sensor is not believed ({value:.1f} °C): heater off until it is"),
    ("energy", "error", "the heater has used up the energy of half an hour: off until some of that has passed"),
    ("unstirred", "warning", "nobody knows that the liquid is stirred: half the heat"),
    ("no_guard", "error", "the guard is silent: heater off"),
)

# code: (name, level, source, message); the message may use {value}, {argument}, {stream} and (an LED channel) {letter}
EVENTS: dict[int, tuple[str, str, str, str]] = {
    3: ("stir_kick", "debug", "stirring", "stirrer kicked into motion"),
    4: ("stir_stall", "warning", "stirring", "stirrer stalled ({argument} in a row): kicking again"),
    EVENT_STIR_FAULT: (
        "stir_fault",
        "error",
        "stirring",
        "stirrer does not turn: switched off; check the stir bar, the fan and its cable, then set a target again",
    ),
    6: ("stir_running", "info", "stirring", "stirrer runs at {value:.1f} rpm"),
    EVENT_RATE_LOCKED: (
        "rate_locked",
        "info",
        "od_reading",
        "converter of photodiode {argument} makes {value:.3f} conversions a second",
    ),
    EVENT_HALF_CYCLE: (
        "half_cycle",
        "info",
        "od_reading",
        "light chopped at {value:.2f} Hz: {argument} conversions in half a cycle",
    ),
    9: (
        "sensor_lost",
        "error",
        "monitor",
        "{stream} does not answer; its readings stop, it is asked again every second",
    ),
    10: ("sensor_back", "notice", "monitor", "{stream} answers again"),
    11: (
        "saturated",
        "warning",
        "od_reading",
        "photodiode {argument} is at the converter's limit: lower the LED's intensity or raise adc_full_scale_v",
    ),
    12: ("gain", "info", "od_reading", "photodiode {argument} is measured at a full scale of {value:.3f} V"),
    EVENT_OVER_VOLTAGE: (
        "over_voltage",
        "error",
        "od_reading",
        "photodiode {argument} gives {value:.2f} V, more than the converter may see: the LED stays off; lower its "
        "intensity or shade the photodiode, then start od_reading again",
    ),
    14: (
        "high_voltage",
        "warning",
        "od_reading",
        "photodiode {argument} gives {value:.2f} V; above 3.2 V the LED is switched off: lower its intensity",
    ),
    EVENT_LIGHT_PATH: (
        "light_path",
        "notice",
        "od_reading",
        "light follows the LED in {value:.3g} ms: {argument} conversions are discarded after each change",
    ),
    17: (
        "light_lost",
        "error",
        "od_reading",
        "the LED's driver does not answer: there is no optical density, it is asked again every second; check its "
        "plug, then run `stirbar hardware check`",
    ),
    18: ("light_back", "notice", "od_reading", "the LED's driver answers again"),
    EVENT_LIMITS_RESTORED: (
        "limits_restored",
        "error",
        "monitor",
        "limits of the envelope had changed in memory: they are back, no heat, no inflow; restart "
        "the worker, and look at the unit's memory and its supply",
    ),
    EVENT_REFERENCE_ERROR: (
        "reference_error",
        "debug",
        "od_reading",
        "photodiode {argument}: standard error {value:.4f} of the reference's coefficient",
    ),
    EVENT_REFERENCE: (
        "reference",
        "debug",
        "od_reading",
        "photodiode {argument}: coefficient {value:+.4f} of the reference, learned from the LED's temperature",
    ),
    EVENT_LED_CHANGED: ("led_changed", "info", "leds", "LED {letter} gives {value:.4g} %"),
    EVENT_LED_LAPSED: (
        "led_lapsed",
        "error",
        "leds",
        "LED {letter} is off: the worker's Python stood still for 60 s; it comes back to {value:.4g} % by itself",
    ),
    EVENT_LED_LAPSED_OVER: ("led_lapsed_over", "notice", "leds", "LED {letter} may give light again"),
    EVENT_LED_LOCKED: (
        "led_locked",
        "notice",
        "leds",
        "LED {letter} is dark while od_reading runs ([leds.config] lock_during_od); then it has {value:.4g} % again",
    ),
    EVENT_LED_LOST: (
        "led_lost",
        "error",
        "leds",
        "the LEDs' driver did not take {value:.4g} % for LED {letter}; it is tried again every second; check its plug, "
        "then run `stirbar hardware check`",
    ),
    EVENT_LED_LOST_OVER: ("led_lost_over", "notice", "leds", "the LEDs' driver takes changes of LED {letter} again"),
}


def describe(code: int, argument: int, value: float, stream: str) -> tuple[str, str, str, str]:
    """Name, level, source and message of an event."""
    if code in (EVENT_HEAT_LIMITED, EVENT_HEAT_FREED):
        reason, level, message = HEAT_REASONS[argument]
        if code == EVENT_HEAT_FREED:
            return f"heat_{reason}_over", "notice", "temperature_automation", f"the heater is no longer held: {reason}"
        return f"heat_{reason}", level, "temperature_automation", message.format(value=value)
    if code == EVENT_DOSE_STEP:
        return "dose_step", "debug", "bioreactor", f"{PUMPS[argument]} pump: {value:.3f} mL"
    if code == EVENT_DOSE_DONE:
        return "dose_done", "info", "bioreactor", f"dose ended: {value:.2f} mL in the vial"
    if code in (EVENT_DOSE_CUT, EVENT_DOSE_OWED):
        reason, level, message = CUTS[argument]
        if code == EVENT_DOSE_CUT:
            missing = f"; {value:.2f} mL did not come in" if value > 0.0 else ""
            return f"dose_cut_{reason}", level, "bioreactor", f"dose cut: {message}{missing}"
        text = f"{value:.2f} mL came in and were not taken out ({message}): the next exchange takes them out first"
        return "dose_owed", "error", "bioreactor", text
    name, level, source, message = EVENTS.get(code, (f"event_{code}", "warning", "monitor", "event {argument} {value}"))
    letter = LED_CHANNELS[argument] if source == "leds" else ""
    return name, level, source, message.format(argument=argument, value=value, stream=stream, letter=letter)
