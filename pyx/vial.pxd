# Why compiled: the simulated vial makes 74 million conversions a day and channel.
# Thread rule: culture, optics, converters and temperature belong to the sampling thread; fan and pumps to the actuator
#   thread; between the two only the single-writer 32-bit values of Exchange.
# Units: SI with the unit in the name; *_s is seconds since the start of the simulation.
#
# The state of the simulated vial, its slow step and its conversions; the hardware interface on top is sim.pxd.
# One flat struct, no pointers, no allocation. Equations and sources: docs/simulation.md.

from libc.math cimport M_PI, ceil, cos, exp, fabs, sin, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from stirbar.rt.ads1115 cimport Ads1115, ads1115_tune
from stirbar.rt.culture cimport Culture, culture_exchange, culture_grow
from stirbar.rt.fan cimport Fan
from stirbar.rt.hal cimport PACE_HOST, PACE_SMOOTHED, AdcPlan
from stirbar.rt.leds cimport LED_CHANNELS
from stirbar.rt.optics cimport (
    Bubbles, Lamp, Led, Mains, Photodiode, bubbles_mean_od, lamp_mean, lamp_set, lamp_switches, led_step, mains_step,
    photodiode_level, photodiode_mean)
from stirbar.rt.pump cimport PUMP_ALT_MEDIA, PUMP_MEDIA, PUMP_WASTE, PUMPS, Pumps
from stirbar.rt.rng cimport Rng, Ziggurat, rng_normal, rng_uniform
from stirbar.rt.sim_log cimport SimLog
from stirbar.rt.sim_parameters cimport *
from stirbar.rt.thermal cimport Thermal, thermal_step
from stirbar.rt.types cimport MAX_CHANNELS

cdef extern from *:
    """
    #ifndef STIRBAR_SIM_EXCHANGE
    #define STIRBAR_SIM_EXCHANGE
    #include <stdint.h>
    #include <string.h>
    static inline void sim_put_u32(uint32_t *to, uint32_t value) { __atomic_store_n(to, value, __ATOMIC_RELAXED); }
    static inline uint32_t sim_get_u32(const uint32_t *from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }
    static inline void sim_put_f32(uint32_t *to, float value) { uint32_t u; memcpy(&u, &value, 4); sim_put_u32(to, u); }
    static inline float sim_get_f32(const uint32_t *from) {
        float f;
        uint32_t u = sim_get_u32(from);
        memcpy(&f, &u, 4);
        return f;
    }
    #endif
    """
    void sim_put_u32(uint32_t* to, uint32_t value) noexcept nogil
    uint32_t sim_get_u32(const uint32_t* from_) noexcept nogil
    void sim_put_f32(uint32_t* to, float value) noexcept nogil
    float sim_get_f32(const uint32_t* from_) noexcept nogil

cdef enum:
    NOISE_STRIDE = 8          # conversions between two nodes of the culture's noise; straight lines in between
    SIM_ABSENCE_S = 20        # a caller away for longer gets slow steps of SIM_COARSE_STEP_S
    SIM_COARSE_STEP_S = 10

cdef struct Exchange:         # written by the actuator thread only
    uint32_t fan_turns_per_s  # float
    uint32_t fan_phase        # float, turns, at fan_stamp_us
    uint32_t fan_stamp_us     # microseconds since the start, wraps
    uint32_t stir_bar         # 1: it is there
    uint32_t stirrer_hz       # float, of the PWM
    uint32_t heater_duty      # float, 0..1
    uint32_t pumped_nl[PUMPS]     # wraps

cdef struct Beam:             # a photodiode on its converter; held between slow steps unless said otherwise
    int32_t angle
    uint32_t epoch            # slow step that what follows was made for
    uint32_t bubble           # cursor
    int32_t noise_left        # conversions until the next node of the culture's noise
    double sensitivity        # standard normal, drawn from the seed
    double keep               # of the settling over a conversion
    double shot_v             # variance per volt of signal
    double mains_re           # phasor at the middle of the conversion; moves with each one
    double mains_im
    double mains_cos          # its turn per conversion
    double mains_sin
    double hum_v[4]           # amplitudes of harmonics 1, 2, 3, 5 after the converter's averaging
    double flicker[2]         # of the ambient light at 2 and 4 times the mains
    double ambient_share
    double vortex_re          # phasor of the stirrer, as mains_*
    double vortex_im
    double vortex_cos
    double vortex_sin
    double vortex[2]          # relative modulation, once and twice per turn
    double pwm_v              # pick-up of the stirrer's PWM, after the converter's averaging
    double pwm_rad_per_s
    double noise              # of the culture, relative; moves with each conversion
    double noise_slope
    double noise_node         # standard normal
    double noise_keep
    double noise_sigma
    double spacing_s          # from one conversion to the next
    double smoothed_v         # of a microcontroller's running mean
    uint32_t reads
    double begin_s            # of a single conversion
    uint8_t waiting           # it has not been read yet
    uint8_t clipped           # what the register holds
    Photodiode diode

cdef struct Sim:
    int64_t start_ns
    double parameter[PARAM_COUNT]
    Ziggurat ziggurat
    # sampling thread
    Culture culture
    Thermal thermal
    Led led
    Mains mains
    Lamp lamp
    Lamp others               # what leaks from the LED channels beside the OD LED's
    double[LED_CHANNELS] other  # their intensities, 0..1
    Bubbles bubbles
    Beam beam[MAX_CHANNELS]
    AdcPlan plan[MAX_CHANNELS]
    Ads1115 adc[MAX_CHANNELS]  # a channel's own one is plan.converter
    Rng slow_rng
    Rng bubble_rng
    double now_s              # latest moment the sampling thread spoke of
    double slow_s             # quantities are held from here
    double slow_end_s         # to here
    uint32_t epoch            # counts slow steps and changes of parameters
    uint32_t taken_nl[PUMPS]      # of the pumps' volumes
    uint32_t bus_transfers
    uint32_t bus_busy_ms      # time of these
    int64_t bus_rest_ns
    uint8_t swapped           # reference and first culture diode are in each other's place
    Exchange exchange
    # actuator thread
    Fan fan
    Pumps pumps
    SimLog log


cdef inline double sim_time_s(const Sim* sim, int64_t now_ns) noexcept nogil:
    return 1e-9 * <double>(now_ns - sim.start_ns)


cdef inline double average_factor(double hz, double seconds) noexcept nogil:
    """What is left of a sinusoid after averaging over a conversion."""
    cdef double x = M_PI * hz * seconds
    return 1.0 if fabs(x) < 1e-9 else sin(x) / x


# --- slow step ---

cdef inline void sim_hold(Sim* sim) noexcept nogil:
    """Work out what the conversions need of the slow quantities; channels take it over at their next conversion."""
    cdef Beam* beam
    cdef double gain
    cdef int i
    for i in range(MAX_CHANNELS):
        beam = &sim.beam[i]
        if beam.angle >= 0:
            gain = sim.led.output * exp(0.01 * sim.parameter[PARAM_SENSITIVITY_SPREAD_PERCENT] * beam.sensitivity)
            if beam.angle == 0:
                gain *= 1.0 + 1e-6 * sim.parameter[PARAM_REFERENCE_EXCESS_PPM_PER_DEGC] * (
                    sim.thermal.board_degc + sim.led.heating_degc - 25.0)
            photodiode_level(&beam.diode, sim.parameter, beam.angle, sim.culture.biomass_od, gain)
    sim.epoch += 1


cdef inline void sim_swap_reference(Sim* sim, uint8_t swapped) noexcept nogil:
    """Put the reference and the first culture diode into each other's place, or back."""
    cdef int reference = -1
    cdef int signal = -1
    cdef int i
    for i in range(MAX_CHANNELS - 1, -1, -1):
        if sim.beam[i].angle == 0:
            reference = i
        elif sim.beam[i].angle > 0:
            signal = i
    if swapped != sim.swapped and reference >= 0 and signal >= 0:
        sim.swapped = swapped
        sim.beam[reference].angle = sim.beam[signal].angle
        sim.beam[signal].angle = 0


cdef inline void sim_exchange_liquid(Sim* sim, double* inflow_ml) noexcept nogil:
    """Take what the pumps delivered since the last slow step."""
    cdef double ml[PUMPS]
    cdef uint32_t delivered
    cdef int i
    for i in range(PUMPS):
        delivered = sim_get_u32(&sim.exchange.pumped_nl[i])
        ml[i] = 1e-6 * <double><uint32_t>(delivered - sim.taken_nl[i])
        sim.taken_nl[i] = delivered
    inflow_ml[0] = ml[PUMP_MEDIA] + ml[PUMP_ALT_MEDIA]
    if inflow_ml[0] > 0.0 or ml[PUMP_WASTE] > 0.0:
        culture_exchange(&sim.culture, sim.parameter, ml[PUMP_MEDIA], ml[PUMP_ALT_MEDIA], ml[PUMP_WASTE])


cdef inline void sim_slow_step(Sim* sim) noexcept nogil:
    """End the held interval: advance culture, temperature, LED, mains and lamp, and hold them for the next 100 ms."""
    cdef const double* p = sim.parameter
    cdef double seconds = sim.slow_end_s - sim.slow_s
    cdef double biological_s = seconds * p[PARAM_TIME_ACCELERATION]
    cdef double duty = sim_get_f32(&sim.exchange.heater_duty)
    cdef double inflow_ml = 0.0
    cdef int parts = <int>ceil(biological_s / 60.0)
    cdef int _part
    sim_exchange_liquid(sim, &inflow_ml)
    thermal_step(&sim.thermal, p, duty, sim.culture.volume_ml, inflow_ml, seconds)
    for _part in range(parts):
        culture_grow(&sim.culture, p, sim.thermal.liquid_degc, biological_s / parts)
    led_step(&sim.led, p, sim.thermal.board_degc, sim.slow_end_s, seconds)
    mains_step(&sim.mains, p, &sim.slow_rng, &sim.ziggurat, seconds)
    sim.slow_s = sim.slow_end_s
    sim.slow_end_s = sim.slow_s + 0.1
    if lamp_switches(&sim.lamp, p, &sim.slow_rng, 0.1):
        sim.lamp.lit = 1 - sim.lamp.lit
        lamp_set(&sim.lamp, p[PARAM_AMBIENT_LIGHT_V] + sim.lamp.lit * p[PARAM_AMBIENT_STEP_V],
                 sim.slow_s + 0.1 * rng_uniform(&sim.slow_rng))
    sim_hold(sim)


cdef inline void sim_advance(Sim* sim, double time_s) noexcept nogil:
    """Bring the slow quantities to a moment; an absence of a day costs 8640 coarse steps."""
    if time_s > sim.now_s:
        sim.now_s = time_s
    while time_s >= sim.slow_end_s:
        if time_s - sim.slow_s > SIM_ABSENCE_S:
            sim.slow_end_s = sim.slow_s + SIM_COARSE_STEP_S
        sim_slow_step(sim)


# --- conversions ---

cdef inline void beam_turn(Sim* sim, Beam* beam, double middle_s) noexcept nogil:
    """Set both phasors for a conversion whose middle is `middle_s`."""
    cdef double angle = 2.0 * M_PI * (sim.mains.turns + sim.mains.frequency_hz * (middle_s - sim.slow_s))
    cdef double speed = sim_get_f32(&sim.exchange.fan_turns_per_s)
    cdef uint32_t now_us = <uint32_t><int64_t>(1e6 * middle_s)
    cdef double since = 1e-6 * <double><int32_t>(now_us - sim_get_u32(&sim.exchange.fan_stamp_us))
    beam.mains_re = cos(angle)
    beam.mains_im = sin(angle)
    angle = 2.0 * M_PI * (sim_get_f32(&sim.exchange.fan_phase) + speed * since)
    beam.vortex_re = cos(angle)
    beam.vortex_im = sin(angle)


cdef inline void beam_take_over(Sim* sim, Beam* beam, Ads1115* adc) noexcept nogil:
    """Make what a channel's conversions need from the quantities held now."""
    cdef const double* p = sim.parameter
    cdef double f = sim.mains.frequency_hz
    cdef double speed = sim_get_f32(&sim.exchange.fan_turns_per_s)
    cdef double od = sim.culture.biomass_od if sim.culture.biomass_od > 1e-4 else 1e-4
    cdef double mixing = 0.01 * p[PARAM_CULTURE_NOISE_PERCENT]
    cdef double counting = 0.01 * p[PARAM_PARTICLE_NOISE_PERCENT]
    cdef double modulation = 0.01 * p[PARAM_VORTEX_PERCENT] * (speed * 60.0 / 500.0) * (speed * 60.0 / 500.0)
    cdef const AdcPlan* plan = &sim.plan[beam - &sim.beam[0]]
    cdef double stirrer_hz = sim_get_f32(&sim.exchange.stirrer_hz)
    cdef double period, hum
    if plan.pace != PACE_SMOOTHED:
        ads1115_tune(adc, p, sim.thermal.board_degc)
    period = adc.period_s
    beam.epoch = sim.epoch
    beam.spacing_s = 1.0 / plan.rate_hz if plan.pace == PACE_HOST else period
    if plan.pace == PACE_SMOOTHED:
        beam.spacing_s = 1.0 / plan.conversion_hz
    beam.keep = exp(-period / (1e-3 * p[PARAM_PHOTODIODE_SETTLING_MS]))
    beam.shot_v = 1.602176634e-19 * p[PARAM_FEEDBACK_RESISTANCE_OHM] / period
    hum = p[PARAM_HUM_AMPLITUDE_V]
    beam.mains_cos = cos(2.0 * M_PI * f * period)
    beam.mains_sin = sin(2.0 * M_PI * f * period)
    beam.hum_v[0] = hum * average_factor(f, period)
    beam.hum_v[1] = hum * 0.01 * p[PARAM_HUM_SECOND_HARMONIC_PERCENT] * average_factor(2.0 * f, period)
    beam.hum_v[2] = hum * 0.01 * p[PARAM_HUM_THIRD_HARMONIC_PERCENT] * average_factor(3.0 * f, period)
    beam.hum_v[3] = hum * 0.01 * p[PARAM_HUM_FIFTH_HARMONIC_PERCENT] * average_factor(5.0 * f, period)
    beam.flicker[0] = 0.01 * p[PARAM_FLICKER_PERCENT] * average_factor(2.0 * f, period)
    beam.flicker[1] = 0.002 * p[PARAM_FLICKER_PERCENT] * average_factor(4.0 * f, period)
    beam.ambient_share = 1.0
    beam.vortex_cos = cos(2.0 * M_PI * speed * period)
    beam.vortex_sin = sin(2.0 * M_PI * speed * period)
    beam.vortex[0] = modulation * average_factor(speed, period)
    beam.vortex[1] = modulation / 3.0 * average_factor(2.0 * speed, period)
    beam.noise_keep = exp(-NOISE_STRIDE * beam.spacing_s / p[PARAM_CULTURE_NOISE_TIME_S])
    beam.noise_sigma = sqrt(mixing * mixing + counting * counting / od)
    beam.pwm_v = p[PARAM_PWM_PICKUP_V] * average_factor(stirrer_hz, period) if speed > 0.0 else 0.0
    beam.pwm_rad_per_s = 2.0 * M_PI * stirrer_hz
    if beam.angle == 0:
        beam.ambient_share = 0.01 * p[PARAM_REFERENCE_AMBIENT_PERCENT]
    if beam.angle == 0 or p[PARAM_VIAL_MISSING] != 0.0:
        beam.noise_sigma = 0.0
    if beam.angle == 0 or p[PARAM_VIAL_MISSING] != 0.0 or not sim_get_u32(&sim.exchange.stir_bar):
        beam.vortex[0] = 0.0
        beam.vortex[1] = 0.0


cdef inline void beam_noise_node(Beam* beam, Ads1115* adc, const Ziggurat* table) noexcept nogil:
    beam.noise_node = beam.noise_keep * beam.noise_node + sqrt(1.0 - beam.noise_keep * beam.noise_keep) * rng_normal(
        &adc.rng, table)
    beam.noise_slope = (beam.noise_sigma * beam.noise_node - beam.noise) / NOISE_STRIDE
    beam.noise_left = NOISE_STRIDE


cdef inline double beam_mean_v(Sim* sim, Beam* beam, Ads1115* adc, double end_s, uint32_t skipped) noexcept nogil:
    """Mean voltage over the conversion that ends at `end_s`, with its noise."""
    cdef double re, im, re2, im2, re3, im3, ambient, light, v, turned
    if beam.epoch != sim.epoch:
        beam_take_over(sim, beam, adc)
        beam_turn(sim, beam, end_s - 0.5 * adc.period_s)
    elif skipped:
        beam_turn(sim, beam, end_s - 0.5 * adc.period_s)
    else:
        turned = beam.mains_re * beam.mains_cos - beam.mains_im * beam.mains_sin
        beam.mains_im = beam.mains_re * beam.mains_sin + beam.mains_im * beam.mains_cos
        beam.mains_re = turned
        turned = beam.vortex_re * beam.vortex_cos - beam.vortex_im * beam.vortex_sin
        beam.vortex_im = beam.vortex_re * beam.vortex_sin + beam.vortex_im * beam.vortex_cos
        beam.vortex_re = turned
    # harmonics of the mains as powers of the phasor
    re = beam.mains_re
    im = beam.mains_im
    re2 = re * re - im * im
    im2 = 2.0 * re * im
    re3 = re2 * re - im2 * im
    im3 = re2 * im + im2 * re
    v = (beam.hum_v[0] * im + beam.hum_v[1] * im2 + beam.hum_v[2] * im3
         + beam.hum_v[3] * (re2 * im3 + im2 * re3))
    if beam.pwm_v != 0.0:
        v += beam.pwm_v * sin(beam.pwm_rad_per_s * (end_s - 0.5 * adc.period_s))
    ambient = beam.ambient_share * lamp_mean(&sim.lamp, end_s, adc.period_s) * (
        1.0 + beam.flicker[0] * re2 + beam.flicker[1] * (re2 * re2 - im2 * im2))
    light = photodiode_mean(&beam.diode, &sim.led, end_s, adc.period_s,
                            1e-3 * sim.parameter[PARAM_PHOTODIODE_SETTLING_MS], beam.keep)
    if beam.angle != 0:
        if beam.noise_left == 0:
            beam_noise_node(beam, adc, &sim.ziggurat)
        beam.noise_left -= 1
        beam.noise += beam.noise_slope
        re = beam.vortex_re
        im = beam.vortex_im
        light *= (
            beam.diode.level_v * (1.0 + beam.noise + beam.vortex[0] * re + beam.vortex[1] * (re * re - im * im))
            + beam.diode.bubble_v_per_od * bubbles_mean_od(
                &sim.bubbles, sim.parameter, &sim.bubble_rng, &beam.bubble, end_s, adc.period_s))
        light += lamp_mean(&sim.others, end_s, adc.period_s)
    else:
        light *= beam.diode.level_v
    light += ambient
    return v + light + sqrt(adc.noise_v2 + beam.shot_v * fabs(light)) * rng_normal(&adc.rng, &sim.ziggurat)
