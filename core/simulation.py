"""The parameters of the simulated vial: one table for config, page, documentation and the compiled model.

The index of a parameter is its PARAM_* number in `pyx/sim_parameters.pxd` (a test holds them equal); the values reach
the model as one array in that order (`SimConfig.parameter`) and change one at a time (`sim_set`). The model is
described in docs/simulation.md, which also holds this table as `parameter_table()` renders it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

OWNER_SAMPLING, OWNER_ACTUATOR = 0, 1


class Parameter:
    """One parameter: `default`, `low` and `high` are in `unit`; `source` says where the default comes from.

    Synchronization: none required; instances are not changed after they are made.
    """

    __slots__ = ("default", "group", "help", "high", "index", "low", "name", "source", "unit")

    def __init__(
        self,
        index: int,
        name: str,
        unit: str,
        default: float,
        low: float,
        high: float,
        group: str,
        help: str,
        source: str,
    ) -> None:
        self.index = index
        self.name = name
        self.unit = unit
        self.default = default
        self.low = low
        self.high = high
        self.group = group
        self.help = help
        self.source = source

    def check(self, value: float) -> float:
        """Return `value` as a float; raise ValueError naming the limits when it is outside them or not a number."""
        number = float(value)
        if not self.low <= number <= self.high:
            raise ValueError(f"{self.name} = {number:g}: allowed is {self.low:g} to {self.high:g} {self.unit}".rstrip())
        return number


ASSUMED = "assumption"
ADS = "ADS1115 datasheet (SBAS444)"

# name, unit, default, low, high, help, source; the thread that owns a group is its second entry
# fmt: off
_GROUPS: tuple[tuple[str, int, tuple[tuple[str, str, float, float, float, str, str], ...]], ...] = (
    (
        "culture",
        OWNER_SAMPLING,
        (
            ("time_acceleration", "", 1, 0, 1000,
             "speed of the culture; heat, light, converter and fan stay at 1", "choice"),
            ("biomass_od", "OD600", 0.05, 0, 100,
             "biomass; setting it replaces the culture's present value", "a usual inoculum"),
            ("substrate_g_per_l", "g/L", 8, 0, 200,
             "glucose; setting it replaces the present value",
             "0.8 % glucose; carries the culture past fold-back at 90 degrees"),
            ("growth_rate_maximum_per_hour", "1/h", 1.0, 0, 5,
             "specific growth rate at the optimum temperature with ample substrate",
             "E. coli on glucose minimal medium, 0.9 /h at 37 degC (Senn et al. 1994, from memory)"),
            ("half_saturation_g_per_l", "g/L", 0.004, 1e-6, 10,
             "substrate at which growth is half of its maximum",
             "Monod 1949, E. coli on glucose, 4 mg/L (from memory)"),
            ("yield_od_per_g_per_l", "OD L/g", 1.1, 0.01, 10,
             "biomass made from substrate",
             "0.45 g dry mass per g glucose, 0.4 g/L per OD (textbook values, from memory)"),
            ("lag_h", "h", 0.3, 0, 48, "lag at the present temperature; setting it starts a new lag", ASSUMED),
            ("temperature_minimum_degc", "degC", 4.9, -10, 60,
             "no growth below", "Rosso et al. 1993, E. coli (from memory)"),
            ("temperature_optimum_degc", "degC", 41, 0, 90,
             "fastest growth", "Rosso et al. 1993, E. coli (from memory)"),
            ("temperature_maximum_degc", "degC", 47.5, 5, 110,
             "no growth above", "Rosso et al. 1993, E. coli (from memory)"),
            ("volume_ml", "mL", 14, 1, 100,
             "liquid in the vial; setting it replaces the present value", "working volume of a 20 mL vial"),
            ("vial_capacity_ml", "mL", 20, 1, 100, "what is above runs over", "20 mL vial"),
            ("waste_tube_ml", "mL", 14, 0, 100, "the waste pump cannot draw the level below this", ASSUMED),
            ("media_substrate_g_per_l", "g/L", 8, 0, 200, "glucose in the media bottle", "as the vial at start"),
            ("alt_media_substrate_g_per_l", "g/L", 0, 0, 200, "glucose in the alternative media bottle", ASSUMED),
        ),
    ),
    (
        "thermal",
        OWNER_SAMPLING,
        (
            ("ambient_temperature_degc", "degC", 36, -20, 70,
             "air around the unit", "a unit inside an incubator: nothing heats yet"),
            ("heater_power_w", "W", 3.3, 0, 50, "at full duty", "board +30 K at full duty (IS-10)"),
            ("board_heat_capacity_j_per_k", "J/K", 8, 0.1, 1000,
             "heater board", "with the liquid: time constant of 600 s (IS-10)"),
            ("board_liquid_w_per_k", "W/K", 0.3, 0, 10, "heater board to liquid", ASSUMED),
            ("board_ambient_w_per_k", "W/K", 0.06, 0, 10, "heater board to air", "+30 K at full duty (IS-10)"),
            ("liquid_ambient_w_per_k", "W/K", 0.06, 0, 10, "liquid to air", "+30 K at full duty (IS-10)"),
            ("temperature_noise_degc", "degC", 0.02, 0, 5,
             "noise of the TMP1075 on the heater board, before its 0.0625 degC steps", ASSUMED),
            ("temperature_fault", "", 0, 0, 4,
             "1: the sensor does not answer; 2: its value is frozen; 3: it is no number; 4: it jumps by 20 K", "fault"),
        ),
    ),
    (
        "led",
        OWNER_SAMPLING,
        (
            ("led_temperature_coefficient_percent_per_degc", "%/degC", -0.9, -5, 5,
             "of the LED's output, from 25 degC", "typical IRED (anchors 3.3)"),
            ("led_self_heating_degc", "degC", 12, 0, 100,
             "rise above the board at 100 % intensity, always on",
             "40 mW at 300 K/W, junction to ambient of a 5 mm or T-1 IRED (TSAL4400 datasheet)"),
            ("led_heating_time_s", "s", 20, 0.1, 3600, "time constant of the self-heating", ASSUMED),
            ("led_ageing_percent_per_1000_h", "%", 2, 0, 100, "output lost per 1000 h at 100 % intensity", ASSUMED),
            ("led_drive_h", "h", 100, 0, 1e6, "drive hours so far; setting it replaces the present value", ASSUMED),
            ("led_dead", "", 0, 0, 1, "1: no light", "fault"),
        ),
    ),
    (
        "optics",
        OWNER_SAMPLING,
        (
            ("scatter_45_v_per_od", "V", 0.125, 0, 10,
             "single-scatter signal per OD at 100 % LED", "chosen for 1.024 V full scale"),
            ("scatter_90_v_per_od", "V", 0.375, 0, 10,
             "single-scatter signal per OD at 100 % LED", "chosen for 1.024 V full scale"),
            ("scatter_135_v_per_od", "V", 0.56, 0, 10,
             "single-scatter signal per OD at 100 % LED", "chosen for 1.024 V full scale"),
            ("transmission_180_v", "V", 0.75, 0, 10,
             "signal through clear medium at 100 % LED", "chosen for 1.024 V full scale"),
            ("stray_45_v", "V", 0.05, 0, 5, "LED light that reaches the diode without culture, at 100 % LED", ASSUMED),
            ("stray_90_v", "V", 0.025, 0, 5,
             "LED light that reaches the diode without culture, at 100 % LED", "blank gate of 35 mV (anchors 3.2)"),
            ("stray_135_v", "V", 0.1, 0, 5,
             "LED light that reaches the diode without culture, at 100 % LED", "blank gate of 150 mV (anchors 3.2)"),
            ("stray_180_v", "V", 0.005, 0, 5, "light around the vial, at 100 % LED", ASSUMED),
            ("fold_back_45_od", "OD600", 8, 0.1, 100,
             "attenuation length of the scatter curve",
             "saturation depends on the angle (anchors 3.3); values assumed"),
            ("fold_back_90_od", "OD600", 4, 0.1, 100,
             "attenuation length of the scatter curve",
             "saturation depends on the angle (anchors 3.3); values assumed"),
            ("fold_back_135_od", "OD600", 2.5, 0.1, 100,
             "attenuation length of the scatter curve",
             "saturation depends on the angle (anchors 3.3); values assumed"),
            ("attenuation_180_od", "OD600", 1, 0.01, 100,
             "biomass that attenuates the transmitted light by e", ASSUMED),
            ("multiple_scattering", "", 0.2, 0, 2, "share of light that is scattered again into the diode", ASSUMED),
            ("reference_v", "V", 0.375, 0, 10, "reference photodiode at 100 % LED", "0.3 V at 80 % LED"),
            ("reference_lost", "", 0, 0, 1, "1: the reference photodiode sees nothing", "fault"),
            ("reference_excess_ppm_per_degc", "ppm/degC", 0, -10000, 10000,
             "of the reference's signal with the LED's temperature, beyond that of the culture diodes",
             "spectrum and responsivity differ on the two ways; off by default"),
            ("light_leak_v", "V", 0, 0, 5,
             "additional light on every culture diode, of the OD LED and of each other LED at 100 %",
             "fault; leakage gate of 80 mV (anchors 3.2)"),
            ("reference_swapped", "", 0, 0, 1,
             "1: the reference photodiode and the first culture diode are in each other's place", "fault"),
            ("vial_missing", "", 0, 0, 1,
             "1: no scatter, a tenth of the stray light, nothing that takes the heater board's heat", "fault"),
            ("sensitivity_spread_percent", "%", 7.1, 0, 50,
             "of the diodes of one unit, log-normal, drawn from the seed",
             "unit-to-unit spread of 7.1 % (anchors 3.2)"),
            ("feedback_resistance_ohm", "ohm", 1e6, 1e3, 1e9,
             "of the photodiode amplifier; sets the shot noise", "1 Mohm as eVOLVER (anchors 3.1)"),
            ("photodiode_settling_ms", "ms", 0.1, 0.001, 20,
             "time constant of the photodiode path", "fastest case of IS-25"),
            ("culture_noise_percent", "%", 0.1, 0, 50,
             "mixing noise of the scatter, Ornstein-Uhlenbeck", "a stirred culture: 0.1 % (anchors 9, 3e)"),
            ("particle_noise_percent", "%", 0.011, 0, 50,
             "counting noise of the cells in the beam at OD 1; grows as 1/sqrt(OD)",
             "E. coli, 0.1 mL beam (anchors 3.3)"),
            ("culture_noise_time_s", "s", 0.06, 0.001, 10, "correlation time of both", "20 to 120 ms (IS-27)"),
            ("vortex_percent", "%", 0.3, 0, 50,
             "modulation of the scatter once per turn at 500 rpm, as the speed squared; a third of it twice per turn",
             ASSUMED),
        ),
    ),
    (
        "ambient",
        OWNER_SAMPLING,
        (
            ("ambient_light_v", "V", 0.02, 0, 5, "room light on the culture diodes; setting it makes a step", ASSUMED),
            ("ambient_step_v", "V", 0.02, -5, 5, "size of the random steps (a lamp that goes on and off)", ASSUMED),
            ("ambient_step_rate_hz", "Hz", 0, 0, 10, "how often the lamp is switched", "off by default"),
            ("flicker_percent", "%", 10, 0, 100,
             "of the ambient light at twice the mains frequency; a fifth of it at four times", ASSUMED),
            ("reference_ambient_percent", "%", 2, 0, 100,
             "share of the ambient light that the reference sees", ASSUMED),
        ),
    ),
    (
        "mains",
        OWNER_SAMPLING,
        (
            ("mains_hz", "Hz", 50, 16, 65, "nominal frequency", "50 or 60"),
            ("mains_wander_hz", "Hz", 0.02, 0, 1,
             "standard deviation of the frequency around it", "about 20 mHz on the European grid (from memory)"),
            ("mains_wander_time_s", "s", 60, 1, 1e5, "correlation time of the frequency", ASSUMED),
            ("hum_amplitude_v", "V", 0.001, 0, 1, "electrical pick-up at the mains frequency", ASSUMED),
            ("hum_second_harmonic_percent", "%", 10, 0, 100, "of the fundamental", ASSUMED),
            ("hum_third_harmonic_percent", "%", 30, 0, 100, "of the fundamental", ASSUMED),
            ("hum_fifth_harmonic_percent", "%", 10, 0, 100, "of the fundamental", ASSUMED),
            ("pwm_pickup_v", "V", 0, 0, 1, "pick-up of the stirrer's PWM while the fan turns", "fault"),
        ),
    ),
    (
        "bubbles",
        OWNER_SAMPLING,
        (
            ("bubble_rate_hz", "Hz", 0.3, 0, 50, "bubbles that enter the beam per second", ASSUMED),
            ("bubble_amplitude_od", "OD600", 0.05, 0, 10,
             "mean scatter of a bubble as an equivalent density, exponentially distributed", ASSUMED),
            ("bubble_minimum_ms", "ms", 10, 0.1, 1000, "shortest stay in the beam", "10 to 100 ms (anchors 3.4)"),
            ("bubble_maximum_ms", "ms", 100, 0.1, 1000, "longest stay in the beam", "10 to 100 ms (anchors 3.4)"),
        ),
    ),
    (
        "adc",
        OWNER_SAMPLING,
        (
            ("oscillator_spread_percent", "%", 10, 0, 10,
             "each converter's rate error is drawn evenly within this", ADS + ": -10 to +10 %"),
            ("oscillator_error_percent", "%", 0, -10, 10, "rate error common to all converters, on top", "for tests"),
            ("oscillator_drift_ppm_per_degc", "ppm/degC", 30, -1000, 1000,
             "of the rate, from 25 degC at the board", ASSUMED),
            ("adc_noise_factor", "", 1, 0, 100,
             "times the noise of the data sheet", ADS + ", noise tables; peak-to-peak / 6.6"),
            ("adc_offset_spread_lsb", "LSB", 1, 0, 30,
             "standard deviation of the offset", ADS + ": 1 typical, 3 maximum"),
            ("adc_gain_spread_percent", "%", 0.01, 0, 5,
             "standard deviation of the gain error", ADS + ": 0.01 % typical, 0.15 % maximum"),
            ("ready_latency_us", "us", 3, 0, 1000, "from the end of a conversion to its time stamp", ASSUMED),
            ("ready_jitter_us", "us", 3, 0, 1000,
             "of that time stamp: evenly within plus or minus this, never before the end", ASSUMED),
            ("adc1_fault", "", 0, 0, 3, "channel 1. 1: does not answer; 2: random codes; 3: stuck code", "fault"),
            ("adc2_fault", "", 0, 0, 3, "channel 2, as adc1_fault", "fault"),
            ("adc3_fault", "", 0, 0, 3, "channel 3, as adc1_fault", "fault"),
            ("adc4_fault", "", 0, 0, 3, "channel 4, as adc1_fault", "fault"),
            ("bus_slowness", "", 1, 0.1, 100,
             "times the bus time that a transfer takes as planned; counted, the loop does not wait", "fault"),
        ),
    ),
    (
        "pumps",
        OWNER_ACTUATOR,
        (
            ("pump_spread_percent", "%", 5, 0, 50,
             "of the pumps' true flow around their calibration, drawn from the seed", ASSUMED),
            ("media_pump_efficiency_percent", "%", 100, 0, 200, "0: blocked", "fault"),
            ("alt_media_pump_efficiency_percent", "%", 100, 0, 200, "0: blocked", "fault"),
            ("waste_pump_efficiency_percent", "%", 100, 0, 200, "0: blocked", "fault"),
            ("pump_ml_per_s", "mL/s", 0.5, 0.01, 5, "what a pump moves at full duty, by its calibration", ASSUMED),
        ),
    ),
    (
        "stirring",
        OWNER_ACTUATOR,
        (
            ("fan_full_speed_rpm", "rpm", 2600, 100, 20000,
             "drive at 100 % duty, as the speed without load", "500 rpm at 30 % duty, the field's starting value"),
            ("fan_drag_rpm", "rpm", 2000, 50, 1e6,
             "speed at which the liquid's quadratic drag equals the motor's own",
             "500 rpm at 30 % duty, the field's starting value"),
            ("fan_run_duty_percent", "%", 6, 0, 100, "running friction", ASSUMED),
            ("fan_start_duty_percent", "%", 15, 0, 100,
             "static friction", "above running friction; the field kicks at 100 % (anchors 5.1)"),
            ("fan_time_constant_s", "s", 0.8, 0.01, 60, "inertia, without drag", ASSUMED),
            ("fan_spread_percent", "%", 5, 0, 50, "of this unit's drive, drawn from the seed", ASSUMED),
            ("fan_variation_percent", "%", 0.3, 0, 50,
             "standard deviation of the load, Ornstein-Uhlenbeck",
             "the vortex varies the turns (anchors 5.1); value assumed"),
            ("fan_variation_time_s", "s", 0.2, 0.001, 60, "correlation time of the load", ASSUMED),
            ("fan_pulses_per_turn", "", 1, 1, 8, "edges of the hall sensor", "1 (anchors 5.1)"),
            ("edge_latency_us", "us", 5, 0, 1000, "from the magnet to the time stamp", ASSUMED),
            ("edge_jitter_us", "us", 5, 0, 1000,
             "standard deviation of that", "5 to 50 us for kernel stamps (anchors 5.2)"),
            ("fan_stalled", "", 0, 0, 1, "1: the stir bar is held", "fault"),
            ("tachometer_silent", "", 0, 0, 1, "1: no edges", "fault"),
            ("stir_bar_missing", "", 0, 0, 1, "1: the fan turns without drag, the liquid stands", "fault"),
        ),
    ),
)
# fmt: on


def _number() -> tuple[tuple[Parameter, ...], int]:
    table: list[Parameter] = []
    first_actuator = 0
    for group, owner, rows in _GROUPS:
        if owner == OWNER_ACTUATOR and not first_actuator:
            first_actuator = len(table)
        for name, unit, default, low, high, text, source in rows:
            limits = float(default), float(low), float(high)
            table.append(Parameter(len(table), name, unit, *limits, group, text, source))
    return tuple(table), first_actuator


PARAMETERS, FIRST_ACTUATOR = _number()
BY_NAME: dict[str, Parameter] = {parameter.name: parameter for parameter in PARAMETERS}


def owner(index: int) -> int:
    """The thread that may set a parameter: OWNER_SAMPLING or OWNER_ACTUATOR (as `sim_parameter_owner`)."""
    return OWNER_ACTUATOR if index >= FIRST_ACTUATOR else OWNER_SAMPLING


def values(changes: Mapping[str, float] | None = None) -> list[float]:
    """All values in the order of their indices: the defaults with `changes` over them.

    Raises ValueError for a name that is not a parameter (with the nearest one) and for a value outside its limits.
    """
    result = [parameter.default for parameter in PARAMETERS]
    for name, value in (changes or {}).items():
        parameter = BY_NAME.get(name)
        if parameter is None:
            import difflib

            near = difflib.get_close_matches(name, list(BY_NAME), 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"the simulated vial has no parameter '{name}'{hint}")
        result[parameter.index] = parameter.check(value)
    return result


def parameter_table() -> str:
    """The table as Markdown, one section per group; docs/simulation.md holds this text."""
    lines: list[str] = []
    for group, thread, _ in _GROUPS:
        owned_by = "actuator" if thread == OWNER_ACTUATOR else "sampling"
        lines += [f"### {group} ({owned_by} thread)", "", "| parameter | unit | default | range | meaning | source |"]
        lines.append("|---|---|---|---|---|---|")
        for p in PARAMETERS:
            if p.group == group:
                limits = f"{p.low:g} to {p.high:g}"
                lines.append(f"| `{p.name}` | {p.unit or '1'} | {p.default:g} | {limits} | {p.help} | {p.source} |")
        lines.append("")
    return "\n".join(lines)
