"""Pioreactor's configuration keys that stirbar does not use, each with the reason, so that its files load."""

from __future__ import annotations

NO_SUCH_AUTOMATION = "this version has no dosing automations"
PAGE = "the page shows every quantity"

# Pioreactor's keys that stirbar does not use: (section, keys or "*", reason).
IGNORED: tuple[tuple[str, str, str], ...] = (
    ("PWM", "*", "the hardware profile says which PWM line drives what"),
    ("PWM_reverse", "*", "derived by Pioreactor from [PWM]"),
    ("leds", "*", "the hardware profile says which line is the OD LED"),
    ("leds_reverse", "*", "derived by Pioreactor from [leds]"),
    ("monitor.config", "enable_button", "the button is not read"),
    ("stirring.config", "duration_between_updates_seconds", "the speed is controlled on each edge of the tachometer"),
    (
        "stirring.config",
        "pre_delay_duration post_delay_duration target_rpm_outside_od_reading",
        "readings are continuous: dodging has a schedule of its own, dodging_period_s and dodging_od_s, and target_rpm"
        " is the speed outside",
    ),
    (
        "od_reading.config",
        "samples_per_second",
        "readings come at readings_per_second; [mqtt] dialect_readings_per_second is the rate of Pioreactor's topics",
    ),
    ("od_reading.config", "pd_reference_ema", "light and reference are divided window by window"),
    ("od_reading.config", "smoothing_penalizer", "readings are not smoothed; window_s sets their bandwidth"),
    (
        "od_reading.config",
        "turn_off_leds_during_reading",
        "other light is subtracted by chopping the OD LED; [leds.config] lock_during_od keeps LEDs dark",
    ),
    (
        "od_reading.config",
        "duration_between_led_off_and_od_reading",
        "conversions in which the light changes are left out one by one",
    ),
    ("od_reading.config", "use_dark_offsets", "the dark level is subtracted in every cycle of the chopped light"),
    ("od_reading.config", "sample_relative_intensity_fraction", "every reading carries the reference's volts"),
    (
        "od_reading.config",
        "pre_delay_duration post_delay_duration enable_dodging_od",
        "readings are continuous: there is nothing to dodge",
    ),
    (
        "temperature_automation.config",
        "pre_delay_duration post_delay_duration enable_dodging_od",
        "readings are continuous: there is nothing to dodge",
    ),
    (
        "bioreactor",
        "initial_cumulative_media_added_ml initial_cumulative_alt_media_added_ml initial_cumulative_waste_removed_ml",
        "what the pumps have moved is counted on the unit, from 0",
    ),
    ("dosing_automation.pid_morbidostat", "*", NO_SUCH_AUTOMATION),
    ("dosing_automation.turbidostat", "*", NO_SUCH_AUTOMATION),
    (
        "temperature_automation.thermostat",
        "*",
        "gains for a change of duty every 200 s; ours are in [temperature_automation.config]",
    ),
    ("growth_rate_calculating.config", "*", "this version does not compute a growth rate"),
    ("storage", "*", "files are below [unit] data_directory and [leader.config] data_directory"),
    ("logging", "*", "events are stored with the readings and shown on the page; processes write to standard error"),
    ("cluster.addresses", "*", "units call the leader, nobody calls a unit: only leader_address is needed"),
    ("mqtt", "password", "no password is read from here; put it into a file of its own, named in password_file"),
    ("mqtt", "broker_ws_port ws_protocol", "the browser talks to the leader only, not to the broker"),
    ("ui", "*", "address and port of the page are in [web.config]"),
    ("ui.overview.settings", "*", PAGE),
    ("ui.overview.charts", "*", PAGE),
    ("ui.overview.cards", "*", PAGE),
    ("camera", "*", "cameras are not used"),
    ("local_access_point", "*", "the operating system's network settings make an access point"),
    ("ui_basic_auth", "*", "the page has a login of its own"),
)
