# Why compiled: the simulated vial for tests and notebooks, on NumPy arrays; the worker never loads it.
# Thread rule: the caller's thread plays both the sampling and the actuator thread.
# Units: nanoseconds, volts, percent, degrees Celsius, as in sim.pxd.

import errno

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from stirbar.rt.culture cimport Culture, culture_grow, culture_init
from stirbar.rt.hal cimport PACE_READY, AdcPlan, Conversion, Hal
from stirbar.rt.optics cimport scatter_v
from stirbar.rt.rng cimport Rng, Ziggurat, rng_normal, rng_seed, rng_uniform, ziggurat_init
from stirbar.rt.sim cimport (
    Sim, SimConfig, sim_adc_read, sim_hal, sim_init, sim_led_write, sim_parameter_owner, sim_set)
from stirbar.rt.sim_outputs cimport sim_heater_write, sim_pump
from stirbar.rt.sim_parameters cimport *

CONVERSION_DTYPE = np.dtype([
    ("ready_ns", "<i8"), ("index", "<u4"), ("code", "<i4"), ("clipped", "u1"), ("led", "u1")], align=False)


PARAMETER_NUMBERS = {
    "time_acceleration": PARAM_TIME_ACCELERATION,
    "biomass_od": PARAM_BIOMASS_OD,
    "substrate_g_per_l": PARAM_SUBSTRATE_G_PER_L,
    "growth_rate_maximum_per_hour": PARAM_GROWTH_RATE_MAXIMUM_PER_HOUR,
    "half_saturation_g_per_l": PARAM_HALF_SATURATION_G_PER_L,
    "yield_od_per_g_per_l": PARAM_YIELD_OD_PER_G_PER_L,
    "lag_h": PARAM_LAG_H,
    "temperature_minimum_degc": PARAM_TEMPERATURE_MINIMUM_DEGC,
    "temperature_optimum_degc": PARAM_TEMPERATURE_OPTIMUM_DEGC,
    "temperature_maximum_degc": PARAM_TEMPERATURE_MAXIMUM_DEGC,
    "volume_ml": PARAM_VOLUME_ML,
    "vial_capacity_ml": PARAM_VIAL_CAPACITY_ML,
    "waste_tube_ml": PARAM_WASTE_TUBE_ML,
    "media_substrate_g_per_l": PARAM_MEDIA_SUBSTRATE_G_PER_L,
    "alt_media_substrate_g_per_l": PARAM_ALT_MEDIA_SUBSTRATE_G_PER_L,
    "ambient_temperature_degc": PARAM_AMBIENT_TEMPERATURE_DEGC,
    "heater_power_w": PARAM_HEATER_POWER_W,
    "board_heat_capacity_j_per_k": PARAM_BOARD_HEAT_CAPACITY_J_PER_K,
    "board_liquid_w_per_k": PARAM_BOARD_LIQUID_W_PER_K,
    "board_ambient_w_per_k": PARAM_BOARD_AMBIENT_W_PER_K,
    "liquid_ambient_w_per_k": PARAM_LIQUID_AMBIENT_W_PER_K,
    "temperature_noise_degc": PARAM_TEMPERATURE_NOISE_DEGC,
    "temperature_fault": PARAM_TEMPERATURE_FAULT,
    "led_temperature_coefficient_percent_per_degc": PARAM_LED_TEMPERATURE_COEFFICIENT_PERCENT_PER_DEGC,
    "led_self_heating_degc": PARAM_LED_SELF_HEATING_DEGC,
    "led_heating_time_s": PARAM_LED_HEATING_TIME_S,
    "led_ageing_percent_per_1000_h": PARAM_LED_AGEING_PERCENT_PER_1000_H,
    "led_drive_h": PARAM_LED_DRIVE_H,
    "led_dead": PARAM_LED_DEAD,
    "scatter_45_v_per_od": PARAM_SCATTER_45_V_PER_OD,
    "scatter_90_v_per_od": PARAM_SCATTER_90_V_PER_OD,
    "scatter_135_v_per_od": PARAM_SCATTER_135_V_PER_OD,
    "transmission_180_v": PARAM_TRANSMISSION_180_V,
    "stray_45_v": PARAM_STRAY_45_V,
    "stray_90_v": PARAM_STRAY_90_V,
    "stray_135_v": PARAM_STRAY_135_V,
    "stray_180_v": PARAM_STRAY_180_V,
    "fold_back_45_od": PARAM_FOLD_BACK_45_OD,
    "fold_back_90_od": PARAM_FOLD_BACK_90_OD,
    "fold_back_135_od": PARAM_FOLD_BACK_135_OD,
    "attenuation_180_od": PARAM_ATTENUATION_180_OD,
    "multiple_scattering": PARAM_MULTIPLE_SCATTERING,
    "reference_v": PARAM_REFERENCE_V,
    "reference_lost": PARAM_REFERENCE_LOST,
    "reference_excess_ppm_per_degc": PARAM_REFERENCE_EXCESS_PPM_PER_DEGC,
    "light_leak_v": PARAM_LIGHT_LEAK_V,
    "reference_swapped": PARAM_REFERENCE_SWAPPED,
    "vial_missing": PARAM_VIAL_MISSING,
    "sensitivity_spread_percent": PARAM_SENSITIVITY_SPREAD_PERCENT,
    "feedback_resistance_ohm": PARAM_FEEDBACK_RESISTANCE_OHM,
    "photodiode_settling_ms": PARAM_PHOTODIODE_SETTLING_MS,
    "culture_noise_percent": PARAM_CULTURE_NOISE_PERCENT,
    "particle_noise_percent": PARAM_PARTICLE_NOISE_PERCENT,
    "culture_noise_time_s": PARAM_CULTURE_NOISE_TIME_S,
    "vortex_percent": PARAM_VORTEX_PERCENT,
    "ambient_light_v": PARAM_AMBIENT_LIGHT_V,
    "ambient_step_v": PARAM_AMBIENT_STEP_V,
    "ambient_step_rate_hz": PARAM_AMBIENT_STEP_RATE_HZ,
    "flicker_percent": PARAM_FLICKER_PERCENT,
    "reference_ambient_percent": PARAM_REFERENCE_AMBIENT_PERCENT,
    "mains_hz": PARAM_MAINS_HZ,
    "mains_wander_hz": PARAM_MAINS_WANDER_HZ,
    "mains_wander_time_s": PARAM_MAINS_WANDER_TIME_S,
    "hum_amplitude_v": PARAM_HUM_AMPLITUDE_V,
    "hum_second_harmonic_percent": PARAM_HUM_SECOND_HARMONIC_PERCENT,
    "hum_third_harmonic_percent": PARAM_HUM_THIRD_HARMONIC_PERCENT,
    "hum_fifth_harmonic_percent": PARAM_HUM_FIFTH_HARMONIC_PERCENT,
    "pwm_pickup_v": PARAM_PWM_PICKUP_V,
    "bubble_rate_hz": PARAM_BUBBLE_RATE_HZ,
    "bubble_amplitude_od": PARAM_BUBBLE_AMPLITUDE_OD,
    "bubble_minimum_ms": PARAM_BUBBLE_MINIMUM_MS,
    "bubble_maximum_ms": PARAM_BUBBLE_MAXIMUM_MS,
    "oscillator_spread_percent": PARAM_OSCILLATOR_SPREAD_PERCENT,
    "oscillator_error_percent": PARAM_OSCILLATOR_ERROR_PERCENT,
    "oscillator_drift_ppm_per_degc": PARAM_OSCILLATOR_DRIFT_PPM_PER_DEGC,
    "adc_noise_factor": PARAM_ADC_NOISE_FACTOR,
    "adc_offset_spread_lsb": PARAM_ADC_OFFSET_SPREAD_LSB,
    "adc_gain_spread_percent": PARAM_ADC_GAIN_SPREAD_PERCENT,
    "ready_latency_us": PARAM_READY_LATENCY_US,
    "ready_jitter_us": PARAM_READY_JITTER_US,
    "adc1_fault": PARAM_ADC1_FAULT,
    "adc2_fault": PARAM_ADC2_FAULT,
    "adc3_fault": PARAM_ADC3_FAULT,
    "adc4_fault": PARAM_ADC4_FAULT,
    "bus_slowness": PARAM_BUS_SLOWNESS,
    "pump_spread_percent": PARAM_PUMP_SPREAD_PERCENT,
    "media_pump_efficiency_percent": PARAM_MEDIA_PUMP_EFFICIENCY_PERCENT,
    "alt_media_pump_efficiency_percent": PARAM_ALT_MEDIA_PUMP_EFFICIENCY_PERCENT,
    "waste_pump_efficiency_percent": PARAM_WASTE_PUMP_EFFICIENCY_PERCENT,
    "pump_ml_per_s": PARAM_PUMP_ML_PER_S,
    "fan_full_speed_rpm": PARAM_FAN_FULL_SPEED_RPM,
    "fan_drag_rpm": PARAM_FAN_DRAG_RPM,
    "fan_run_duty_percent": PARAM_FAN_RUN_DUTY_PERCENT,
    "fan_start_duty_percent": PARAM_FAN_START_DUTY_PERCENT,
    "fan_time_constant_s": PARAM_FAN_TIME_CONSTANT_S,
    "fan_spread_percent": PARAM_FAN_SPREAD_PERCENT,
    "fan_variation_percent": PARAM_FAN_VARIATION_PERCENT,
    "fan_variation_time_s": PARAM_FAN_VARIATION_TIME_S,
    "fan_pulses_per_turn": PARAM_FAN_PULSES_PER_TURN,
    "edge_latency_us": PARAM_EDGE_LATENCY_US,
    "edge_jitter_us": PARAM_EDGE_JITTER_US,
    "fan_stalled": PARAM_FAN_STALLED,
    "tachometer_silent": PARAM_TACHOMETER_SILENT,
    "stir_bar_missing": PARAM_STIR_BAR_MISSING,
}
PARAMETER_COUNT = PARAM_COUNT
FIRST_ACTUATOR = PARAM_FIRST_ACTUATOR


def _check(int status):
    """Raise OSError for a negative status of the hardware interface; return it otherwise."""
    if status < 0:
        raise OSError(-status, errno.errorcode.get(-status, "error"))
    return status


cdef class SimulatedVial:
    """A vial with its photodiodes, converters, LED, fan, pumps and heater, behind the calls that the loop uses.

    `parameters` are all values in the order of their indices (`stirbar.core.simulation.values()`); `angles` gives the
    photodiode on channels 0..3: 45, 90, 135, 180, 0 for the reference, -1 for none. Times are nanoseconds of the
    caller's clock and must not go backwards. Calls raise OSError as the hardware would.

    Synchronization: requires external synchronization.
    """

    cdef Sim sim
    cdef Hal hal

    def __init__(self, parameters, seed=1, angles=(0, 90, -1, -1), start_ns=0):
        cdef SimConfig config
        if len(parameters) != PARAM_COUNT or len(angles) != 4:
            raise ValueError(f"{PARAM_COUNT} parameters and 4 angles expected, got {len(parameters)} and {len(angles)}")
        config.seed = <uint64_t>seed
        for i in range(4):
            config.angle[i] = angles[i]
            config.plan[i] = AdcPlan(PACE_READY, i, 0, 860.0, 860.0, 0, 0, 0)
        for i in range(PARAM_COUNT):
            config.parameter[i] = parameters[i]
        _check(sim_init(&self.sim, &config, start_ns))
        sim_hal(&self.sim, &self.hal)

    def set(self, int parameter, double value):
        """Change the parameter of this index now."""
        _check(sim_set(&self.sim, parameter, value))

    def adc_start(self, int channel, double full_scale_v=1.024, double rate_hz=860.0, int64_t now_ns=0):
        _check(self.hal.adc_start(self.hal.context, channel, full_scale_v, rate_hz, now_ns))

    def adc_read(self, int channel, int64_t now_ns):
        """(ready_ns, index, code, clipped) of the newest conversion, or None when there is none since the last read."""
        cdef Conversion c
        if not _check(self.hal.adc_read(self.hal.context, channel, now_ns, &c)):
            return None
        return c.ready_ns, c.index, c.code, bool(c.clipped)

    def led_write(self, double percent, int64_t now_ns):
        _check(self.hal.led_write(self.hal.context, percent, now_ns))

    def temperature_read(self, int64_t now_ns):
        cdef double celsius = 0.0
        _check(self.hal.temperature_read(self.hal.context, now_ns, &celsius))
        return celsius

    def edges_read(self, int64_t now_ns, int room=64):
        """Stamps (ns) of the tachometer edges since the last call, at most `room` (64)."""
        cdef int64_t stamps[64]
        count = _check(self.hal.edges_read(self.hal.context, now_ns, stamps, min(room, 64)))
        return np.array([stamps[i] for i in range(count)], dtype=np.int64)

    def stirrer_write(self, double percent, int64_t now_ns):
        _check(self.hal.stirrer_write(self.hal.context, percent, now_ns))

    def pump(self, int pump, double ml_per_s, int64_t now_ns):
        """Run pump 0 (media), 1 (alternative media) or 2 (waste) at a calibrated flow; 0 stops it."""
        _check(sim_pump(&self.sim, pump, ml_per_s, now_ns))

    def heater(self, double duty):
        _check(sim_heater_write(&self.sim, 100.0 * duty, 0))

    def record(self, int channel, int count, int64_t now_ns, int half_cycle=0, double percent=80.0,
               int64_t after_ns=100_000):
        """Read `count` conversions, each `after_ns` after its end, and switch the LED after every `half_cycle` of them.

        Returns an array of CONVERSION_DTYPE (`led`: 1 when it was on at the time of the read, before switching) and the
        time of the last read. `half_cycle` 0 leaves the LED as it is.
        """
        cdef Conversion c
        cdef int done = 0
        cdef int status = 0
        cdef bint lit = False
        cdef int64_t[:] ready
        cdef uint32_t[:] index
        cdef int32_t[:] code
        cdef unsigned char[:] clipped, led
        out = np.zeros(count, CONVERSION_DTYPE)
        parts = [np.zeros(count, CONVERSION_DTYPE[name]) for name in CONVERSION_DTYPE.names]
        ready, index, code, clipped, led = parts
        with nogil:
            while done < count:
                status = sim_adc_read(&self.sim, channel, now_ns, &c)
                if status < 0:
                    break
                if status == 1:
                    ready[done] = c.ready_ns
                    index[done] = c.index
                    code[done] = c.code
                    clipped[done] = c.clipped
                    led[done] = lit
                    done += 1
                    if half_cycle and done % half_cycle == 0:
                        lit = not lit
                        sim_led_write(&self.sim, percent if lit else 0.0, now_ns)
                now_ns = self.sim.start_ns + <int64_t>(1e9 * self.sim.adc[channel].next_s) + after_ns
        _check(status)
        for name, part in zip(CONVERSION_DTYPE.names, parts, strict=True):
            out[name] = part
        return out, now_ns - <int64_t>(1e9 * self.sim.adc[channel].period_s)

    @property
    def truth(self):
        """What no sensor shows: a dictionary of the model's state, with units in the names."""
        return {
            "biomass_od": self.sim.culture.biomass_od,
            "substrate_g_per_l": self.sim.culture.substrate_g_per_l,
            "volume_ml": self.sim.culture.volume_ml,
            "overflow_ml": self.sim.culture.overflow_ml,
            "board_degc": self.sim.thermal.board_degc,
            "liquid_degc": self.sim.thermal.liquid_degc,
            "led_output": self.sim.led.output,
            "led_heating_degc": self.sim.led.heating_degc,
            "led_drive_h": self.sim.led.drive_h,
            "mains_hz": self.sim.mains.frequency_hz,
            "fan_rpm": self.sim.fan.speed_rpm,
            "fan_angle_turn": self.sim.fan.angle_turn,
            "edges_lost": self.sim.fan.edges_lost,
            "slow_steps": self.sim.epoch,
            "level_v": [self.sim.beam[i].diode.level_v for i in range(4)],
            "rate_hz": [1.0 / self.sim.adc[i].period_s if self.sim.adc[i].running else 0.0 for i in range(4)],
        }


def normal(int count, uint64_t seed=1):
    """Normal numbers of the ziggurat."""
    cdef Ziggurat table
    cdef Rng rng
    cdef int i
    out = np.empty(count)
    cdef double[:] view = out
    ziggurat_init(&table)
    rng_seed(&rng, seed, 0)
    for i in range(count):
        view[i] = rng_normal(&rng, &table)
    return out


def uniform(int count, uint64_t seed=1):
    """Even numbers in (0, 1)."""
    cdef Rng rng
    cdef int i
    out = np.empty(count)
    cdef double[:] view = out
    rng_seed(&rng, seed, 0)
    for i in range(count):
        view[i] = rng_uniform(&rng)
    return out


def scatter(od, double v_per_od, double fold_od, double multiple):
    """The scatter curve of one angle, volts at 100 % LED, for an array of densities."""
    return np.array([scatter_v(x, v_per_od, fold_od, multiple) for x in np.asarray(od, dtype=float)])


def grow(parameters, double celsius, double step_s, int steps):
    """Grow a culture in equal steps; returns biomass and substrate after each, shape (steps, 2)."""
    cdef Culture culture
    cdef double p[PARAM_COUNT]
    cdef int i
    out = np.empty((steps, 2))
    for i in range(PARAM_COUNT):
        p[i] = parameters[i]
    culture_init(&culture, p, celsius)
    for i in range(steps):
        culture_grow(&culture, p, celsius, step_s)
        out[i, 0] = culture.biomass_od
        out[i, 1] = culture.substrate_g_per_l
    return out


def parameter_owner(int index):
    """0: the sampling thread sets it, 1: the actuator thread."""
    return sim_parameter_owner(index)


def sim_bytes():
    """Size of the whole state."""
    return sizeof(Sim)


def run_chopped(SimulatedVial vial, int channels, double seconds, int half_cycle):
    """Read channels 0..channels-1 for so long, as a loop would, keeping nothing; for timing.

    Returns the number of conversions and a checksum of their codes.
    """
    cdef Sim* sim = &vial.sim
    cdef Conversion c
    cdef int64_t now_ns = sim.start_ns + <int64_t>(1e9 * sim.now_s)
    cdef int64_t end_ns = now_ns + <int64_t>(1e9 * seconds)
    cdef int64_t total = 0
    cdef int64_t checksum = 0
    cdef int64_t cycle = 0
    cdef bint lit = False
    cdef int channel
    with nogil:
        while now_ns < end_ns:
            for channel in range(channels):
                if sim_adc_read(sim, channel, now_ns, &c) == 1:
                    total += 1
                    checksum += c.code
            cycle += 1
            if cycle % half_cycle == 0:
                lit = not lit
                sim_led_write(sim, 80.0 if lit else 0.0, now_ns)
            now_ns = sim.start_ns + <int64_t>(1e9 * sim.adc[0].next_s) + 20000
    return total, checksum
