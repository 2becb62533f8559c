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

# code: (name, level, source, message); the message may use {value}, {argument} and {stream}
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
}


def describe(code: int, argument: int, value: float, stream: str) -> tuple[str, str, str, str]:
    """Name, level, source and message of an event."""
    if code in (EVENT_HEAT_LIMITED, EVENT_HEAT_FREED):
        reason, level, message = HEAT_REASONS[argument]
        if code == EVENT_HEAT_FREED:
            return f"heat_{reason}_over", "notice", "temperature_automation", f"the heater is no longer held: {reason}"
        return f"heat_{reason}", level, "temperature_automation", message.format(value=value)
    name, level, source, message = EVENTS.get(code, (f"event_{code}", "warning", "monitor", "event {argument} {value}"))
    return name, level, source, message.format(argument=argument, value=value, stream=stream)
