"""Rules between keys of the configuration.

Each test gets `get(section, key)` and returns what is wrong and what to do, or None.
"""

from __future__ import annotations

from stirbar.core.schema_keys import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Get = Callable[[str, str], Any]

LOOP, OD, DIODES, STIRRING = "loop.config", "od_reading.config", "od_config.photodiode_channel", "stirring.config"
TEMPERATURE = "temperature_automation.config"
SLOWER_RATES = 3
RATE_MINIMUM_HZ, WINDOW_MINIMUM_S, WINDOW_MAXIMUM_S = 0.01, 0.005, 100.0


def _one_reference(get: Get) -> str | None:
    references = [channel for channel in "1234" if get(DIODES, channel) == "REF"]
    if len(references) > 1:
        return f"channels {' and '.join(references)} are REF; keep one reference and give the other its angle"
    return None


def _one_signal(get: Get) -> str | None:
    if all(get(DIODES, channel) in ("", "REF") for channel in "1234"):
        return "no channel has an angle, so nothing would be measured; write 45, 90, 135 or 180 for one channel"
    return None


def _window_holds_light(get: Get) -> str | None:
    window, rate, half_cycle = get(OD, "window_s"), get(OD, "adc_rate_hz"), get(OD, "half_cycle")
    if half_cycle == 1:
        return "half_cycle 1 leaves no conversion without a change of the light; write 0, or 2 and more"
    needed = 2 * (half_cycle or 2)  # a cycle: an on and an off half
    if window * rate < needed:
        return (
            f"a window of {number(window)} s holds {window * rate:.0f} conversions, and a cycle of the light is"
            f" {needed}; raise window_s to {needed / rate:.3g} s or more, raise adc_rate_hz, or lower half_cycle"
        )
    return None


def _numbers(text: str) -> list[float]:
    return [float(word) for word in text.split(",") if word.strip()]


def _slower_rates(get: Get) -> str | None:
    rates, windows = (_numbers(get(OD, key)) for key in ("slower_readings_per_second", "slower_windows_s"))
    if len(rates) > SLOWER_RATES or len(windows) > len(rates):
        return f"{len(rates)} slower rates, {len(windows)} windows; name at most {SLOWER_RATES}, each with one window"
    fastest = get(OD, "readings_per_second")
    for rate in rates:
        if not RATE_MINIMUM_HZ <= rate <= fastest:
            limits = f"{RATE_MINIMUM_HZ} to readings_per_second ({number(fastest)})"
            return f"a slower rate of {number(rate)}/s; write {limits}"
    for window in windows:
        if not WINDOW_MINIMUM_S <= window <= WINDOW_MAXIMUM_S:
            return f"a window of {number(window)} s; write {WINDOW_MINIMUM_S} to {WINDOW_MAXIMUM_S:g} s"
    return None


def _actuators_first(get: Get) -> str | None:
    sampling, actuators = get(LOOP, "priority_sampling"), get(LOOP, "priority_actuators")
    if actuators <= sampling and (sampling or actuators):
        return (
            f"priority_actuators ({actuators}) must be above priority_sampling ({sampling}), so that an actuator's"
            " deadline does not wait for a conversion; raise the one or lower the other"
        )
    return None


def _target_below_maximum(get: Get) -> str | None:
    target, maximum = get(STIRRING, "initial_target_rpm"), get(STIRRING, "maximum_rpm")
    if target > maximum:
        return (
            f"initial_target_rpm ({number(target)} rpm) is above maximum_rpm ({number(maximum)} rpm);"
            " lower the one or raise the other"
        )
    return None


DUTIES = ("initial_duty_cycle", "kick_duty_percent", "feed_forward_offset_percent")


def _duties_below_maximum(get: Get) -> str | None:
    maximum = get(STIRRING, "duty_maximum_percent")
    above = [f"{key} ({number(get(STIRRING, key))} %)" for key in DUTIES if get(STIRRING, key) > maximum]
    if above:
        verb = "are" if len(above) > 1 else "is"
        return f"{', '.join(above)} {verb} above duty_maximum_percent ({number(maximum)} %); lower it or raise that"
    return None


REST_MAXIMUM_S, SLOWEST_RPM = 8, 60


def _schedule_can_be(get: Get) -> str | None:
    period_s, quiet_s = get(STIRRING, "dodging_period_s"), get(STIRRING, "dodging_od_s")
    rpm, maximum = get(STIRRING, "target_rpm_during_od_reading"), get(STIRRING, "maximum_rpm")
    if quiet_s > period_s - 1:
        return f"dodging_od_s ({number(quiet_s)} s) must leave a second of dodging_period_s ({number(period_s)} s)"
    if rpm and not SLOWEST_RPM <= rpm <= maximum:
        return (
            f"target_rpm_during_od_reading ({number(rpm)} rpm) must be 0, or {SLOWEST_RPM} to maximum_rpm"
            f" ({number(maximum)})"
        )
    if rpm == 0 and quiet_s > REST_MAXIMUM_S:
        return (
            f"dodging_od_s ({number(quiet_s)} s) at rest: write at most {REST_MAXIMUM_S} s, or a"
            " target_rpm_during_od_reading, because a liquid that nobody stirs is not heated"
        )
    return None


def _roots_differ(get: Get) -> str | None:
    if get("mqtt", "topic_root") == get("mqtt", "data_root"):
        return "topic_root and data_root are the same, and dashboards would misread our records; change one"
    return None


def _ports_differ(get: Get) -> str | None:
    port = get("web.config", "port")
    if get("leader.config", "broker") == "own" and port == get("mqtt", "broker_port"):
        return f"page and broker cannot both listen on port {port}; change one of them"
    return None


def _target_degc_below_maximum(get: Get) -> str | None:
    target, maximum = get(TEMPERATURE, "target_temperature"), get(TEMPERATURE, "target_maximum_degc")
    if target > maximum:
        return f"target_temperature ({number(target)}) is above target_maximum_degc ({number(maximum)}); lower it"
    return None


def _target_degc_below_tier(get: Get) -> str | None:
    from stirbar.core import vials

    maximum, reduce_degc = get(TEMPERATURE, "target_maximum_degc"), vials.vial(get("unit", "vial"))["reduce_degc"]
    if maximum > reduce_degc:
        return (
            f"target_maximum_degc ({number(maximum)}) is above {number(reduce_degc)} °C, where this vial's heater is"
            f" reduced; write at most {number(reduce_degc)}, or name your own [unit] vial"
        )
    return None


def _liquid_fits(get: Get) -> str | None:
    from stirbar.core import vials

    fill_ml, minimum_ml = vials.vial(get("unit", "vial"))["fill_ml"], get("bioreactor", "minimum_volume_ml")
    for key in ("initial_volume_ml", "efflux_tube_volume_ml"):
        if get("bioreactor", key) > fill_ml:
            return (
                f"{key} ({number(get('bioreactor', key))}) is above {number(fill_ml)} mL, to which this vial may be"
                " filled; lower it, or name your own [unit] vial"
            )
    if minimum_ml >= get("bioreactor", "initial_volume_ml"):
        return f"minimum_volume_ml ({number(minimum_ml)}) is not below initial_volume_ml; lower it"
    return None


# (the rule in words, the keys it looks at, the test)
RULES: tuple[tuple[str, tuple[tuple[str, str], ...], Callable[[Get], str | None]], ...] = (
    ("At most one photodiode is the reference.", tuple((DIODES, channel) for channel in "1234"), _one_reference),
    ("At least one photodiode has an angle.", tuple((DIODES, channel) for channel in "1234"), _one_signal),
    (
        "`window_s` holds at least a cycle of the chopped light; `half_cycle` is 0, or 2 and more.",
        tuple((OD, key) for key in ("window_s", "adc_rate_hz", "half_cycle")),
        _window_holds_light,
    ),
    (
        "`slower_readings_per_second` has at most three rates, each from 0.01 to `readings_per_second`, and"
        " `slower_windows_s` at most one window for each, 0.005 to 100 s.",
        tuple((OD, key) for key in ("readings_per_second", "slower_readings_per_second", "slower_windows_s")),
        _slower_rates,
    ),
    (
        "`priority_actuators` is above `priority_sampling`, unless both are 0.",
        ((LOOP, "priority_actuators"), (LOOP, "priority_sampling")),
        _actuators_first,
    ),
    (
        "`initial_target_rpm` is not above `maximum_rpm`.",
        ((STIRRING, "initial_target_rpm"), (STIRRING, "maximum_rpm")),
        _target_below_maximum,
    ),
    (
        f"No duty ({', '.join(f'`{key}`' for key in DUTIES)}) is above `duty_maximum_percent`.",
        tuple((STIRRING, key) for key in (*DUTIES, "duty_maximum_percent")),
        _duties_below_maximum,
    ),
    (
        f"`dodging_od_s` leaves a second of `dodging_period_s`; `target_rpm_during_od_reading` is {SLOWEST_RPM} rpm to"
        f" `maximum_rpm`, or 0 for at most {REST_MAXIMUM_S} s.",
        tuple(
            (STIRRING, key)
            for key in ("dodging_period_s", "dodging_od_s", "target_rpm_during_od_reading", "maximum_rpm")
        ),
        _schedule_can_be,
    ),
    (
        "`target_temperature` is not above `target_maximum_degc`.",
        ((TEMPERATURE, "target_temperature"), (TEMPERATURE, "target_maximum_degc")),
        _target_degc_below_maximum,
    ),
    (
        "`target_maximum_degc` is not above the temperature at which the vial's heater is reduced.",
        ((TEMPERATURE, "target_maximum_degc"), ("unit", "vial")),
        _target_degc_below_tier,
    ),
    (
        "The liquid fits into the vial: `initial_volume_ml` and `efflux_tube_volume_ml` are not above its fill level,"
        " `minimum_volume_ml` is below the first.",
        (
            ("bioreactor", "initial_volume_ml"),
            ("bioreactor", "efflux_tube_volume_ml"),
            ("bioreactor", "minimum_volume_ml"),
            ("unit", "vial"),
        ),
        _liquid_fits,
    ),
    ("`topic_root` and `data_root` differ.", (("mqtt", "topic_root"), ("mqtt", "data_root")), _roots_differ),
    (
        "Page and own broker listen on different ports.",
        (("web.config", "port"), ("mqtt", "broker_port"), ("leader.config", "broker")),
        _ports_differ,
    ),
)

# Values of Pioreactor that have another meaning here: (section, ((key, value), ...), reason). When a file gives all of
# them, the defaults are taken.
FOREIGN: tuple[tuple[str, tuple[tuple[str, float], ...], str], ...] = (
    (
        "stirring.pid",
        (("Kp", 0.005), ("Ki", 0.0), ("Kd", 0.0)),
        "Pioreactor's gains are of a controller that adds to the duty every 23 s: the defaults are taken",
    ),
)
