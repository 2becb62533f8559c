"""The configuration's sections about what acts on the vial: light, stirring, heat, pumps; and what is looked after."""

from __future__ import annotations

from stirbar.core.schema_keys import Key, choice_key, integer_key, real_key, switch_key, text_key

VIAL: tuple[tuple[str, str, tuple[Key, ...]], ...] = (
    (
        "leds.config",
        "The LED channels A to D beside the OD LED's (docs/leds.md).",
        (
            text_key(
                "lock_during_od",
                "channels",
                "",
                "Channels that are dark for as long as od_reading runs, as in B, C; they come back when it stops.",
            ),
            *(
                real_key(f"maximum_percent_{letter}", 100.0, "%", 0.0, 100.0, f"No intensity of {letter} above this.")
                for letter in "ABCD"
            ),
        ),
    ),
    (
        "stirring.config",
        "Stirring.",
        (
            real_key("initial_target_rpm", 500.0, "rpm", 60.0, 2000.0, "Speed that stirring starts with."),
            real_key(
                "initial_duty_cycle", 30.0, "%", 0.0, 100.0, "Duty that open-loop stirring (use_rpm = 0) starts with."
            ),
            real_key("pwm_hz", 200.0, "Hz", 10.0, 40_000.0, "Frequency of the stirrer's PWM."),
            switch_key("use_rpm", True, "Hold the speed by the tachometer; 0 sets the duty only."),
            real_key("maximum_rpm", 1500.0, "rpm", 60.0, 2000.0, "No target above this is accepted."),
            real_key(
                "ramp_rpm_per_s",
                0.0,
                "rpm/s",
                0.0,
                10_000.0,
                "How fast a new target is approached; 0: at once. From rest a ramp begins at 200 rpm.",
            ),
            integer_key("pulses_per_turn", 1, "edges", 1, 8, "Edges that the tachometer gives in one turn."),
            real_key(
                "turns_window_s", 10.0, "s", 1.0, 3600.0, "Turns of so long make one reading of the stream `turns`."
            ),
            real_key("duty_maximum_percent", 100.0, "%", 1.0, 100.0, "No duty above this is set."),
            real_key("kick_duty_percent", 100.0, "%", 0.0, 100.0, "Duty that breaks the rotor loose."),
            real_key("kick_s", 0.35, "s", 0.0, 0.5, "How long a kick lasts at most."),
            integer_key("stall_retries", 3, "kicks", 0, 10, "Kicks after a stall before stirring stops with a fault."),
            real_key(
                "feed_forward_offset_percent",
                6.0,
                "%",
                0.0,
                100.0,
                "Duty at standstill of the line that gives the duty for a speed.",
            ),
            real_key("feed_forward_percent_per_rpm", 0.048, "%/rpm", 0.0, 1.0, "Slope of that line."),
            switch_key("enable_dodging_od", False, "Slow the stirrer down for a share of the time, by a schedule."),
            real_key("dodging_period_s", 20.0, "s", 5.0, 3600.0, "The schedule's period."),
            real_key("dodging_od_s", 5.0, "s", 1.0, 600.0, "How long of each period the stirrer is slow."),
            real_key("target_rpm_during_od_reading", 0.0, "rpm", 0.0, 2000.0, "Its speed then; 0: at rest."),
            switch_key("autostart", True, "Start stirring when the worker starts."),
        ),
    ),
    (
        "stirring.pid",
        "The controller of the stirring speed; it acts on each edge of the tachometer.",
        (
            real_key("Kp", 0.05, "%/rpm", 0.0, 10.0, "Proportional gain, at 500 rpm and above."),
            real_key("Ki", 0.1, "%/(rpm s)", 0.0, 10.0, "Integral gain, at 500 rpm and above."),
            real_key("Kd", 0.0, "% s/rpm", 0.0, 10.0, "Derivative gain, on the measured speed."),
        ),
    ),
    (
        "temperature_automation.config",
        "Reading the temperature, and holding it.",
        (
            real_key("interval_s", 1.0, "s", 0.25, 2.0, "Time between readings of the heater board's sensor."),
            switch_key("autostart", True, "Start when the worker starts."),
            choice_key(
                "automation_name",
                "only_record_temperature",
                ("only_record_temperature", "thermostat"),
                "What is started: reading alone, or holding target_temperature.",
            ),
            real_key("target_temperature", 30.0, "degC", 0.0, 70.0, "Temperature of the liquid to hold."),
            real_key("target_maximum_degc", 50.0, "degC", 1.0, 70.0, "No target above this is accepted."),
            real_key("heater_duty_maximum_percent", 100.0, "%", 0.0, 100.0, "No duty above this is set."),
            real_key("gain_percent_per_degc", 40.0, "%/degC", 0.0, 1000.0, "Duty for a degree that is missing."),
            real_key(
                "integral_percent_per_degc_s", 0.07, "%/(degC s)", 0.0, 10.0, "Duty for a degree missing for a second."
            ),
            real_key("ramp_degc_per_min", 0.0, "degC/min", 0.0, 100.0, "Pace of a change of the target; 0: at once."),
            real_key(
                "dither_percent",
                10.0,
                "%",
                0.0,
                30.0,
                "Share by which the duty is varied to learn how liquid and air follow the heater board.",
            ),
            real_key("dither_period_s", 180.0, "s", 120.0, 1200.0, "Period of that."),
        ),
    ),
    (
        "monitor.config",
        "What the worker looks after on its own unit.",
        (
            real_key(
                "self_check_interval_hours",
                12.0,
                "h",
                0.0,
                8760.0,
                "Time between checks of disk, processor, supply and heater board; 0: only at the start.",
            ),
        ),
    ),
    (
        "bioreactor",
        "The liquid in the vial.",
        (
            real_key("initial_volume_ml", 15.0, "mL", 1.0, 100.0, "What is in the vial when the worker first starts."),
            real_key(
                "efflux_tube_volume_ml",
                15.0,
                "mL",
                0.0,
                100.0,
                "Level of the waste tube, below which it draws air; 0: it reaches the bottom.",
            ),
            real_key(
                "initial_alt_media_fraction",
                0.0,
                "fraction",
                0.0,
                1.0,
                "Share of alternative media at the first start.",
            ),
            real_key("minimum_volume_ml", 5.0, "mL", 0.0, 100.0, "The waste pump never leaves less than this."),
            switch_key("passive_overflow", False, "The vial has an outlet at its fill level that needs no pump."),
        ),
    ),
    (
        "dosing_automation.config",
        "The pumps: how a dose is done, and what it may not do.",
        (
            real_key("max_subdose", 1.0, "mL", 0.01, 100.0, "Comes in at once, before the waste pump runs again."),
            real_key("pause_between_subdoses_seconds", 5.0, "s", 0.0, 3600.0, "After an inflow, to mix."),
            real_key(
                "waste_removal_multiplier",
                2.0,
                "times",
                0.0,
                10.0,
                "How often the waste of an exchange is pumped once more after its inflow.",
            ),
            real_key("maximum_on_time_s", 30.0, "s", 0.1, 60.0, "Of a pump without a pause; the guard cuts there too."),
            real_key("minimum_interval_s", 1.0, "s", 0.0, 86400.0, "From the end of an inflow to the next dose."),
            real_key(
                "inflow_without_evidence_ml",
                100.0,
                "mL",
                0.0,
                1_000_000.0,
                "Comes in until somebody says how much is in the vial (`stirbar dose volume`); 0: no limit.",
            ),
            real_key(
                "media_ml_per_s",
                0.0,
                "mL/s",
                0.0,
                20.0,
                "Flow of the media pump at full duty, where no calibration is in force; 0: not known.",
            ),
            real_key("alt_media_ml_per_s", 0.0, "mL/s", 0.0, 20.0, "The same, of the alternative media pump."),
            real_key("waste_ml_per_s", 0.0, "mL/s", 0.0, 20.0, "The same, of the waste pump."),
        ),
    ),
)
