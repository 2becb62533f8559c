# Why compiled: the simulated vial behind the loop's C interface.
# Thread rule: each function belongs to the thread named at its section; sim_init runs before either thread starts.
# Units: nanoseconds of the loop's clock, volts, percent; *_s is seconds since the start of the simulation.
#
# What a loop needs: sim_init, sim_hal, sim_set with sim_parameter_owner. What moves is sim_outputs.pxd, the model
# vial.pxd.

from libc.errno cimport EINVAL, ENODEV, EREMOTEIO
from libc.math cimport fabs, isfinite
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from stirbar.rt.ads1115 cimport (
    ADC_GARBAGE, ADC_LOST, Ads1115, ads1115_code, ads1115_convert, ads1115_init, ads1115_noise_v, ads1115_range,
    ads1115_range_next, ads1115_start)
from stirbar.rt.culture cimport culture_init, culture_start_lag
from stirbar.rt.fan cimport fan_init
from stirbar.rt.hal cimport PACE_HOST, PACE_READY, PACE_SMOOTHED, AdcPlan, Conversion, Hal
from stirbar.rt.leds cimport LED_CHANNELS
from stirbar.rt.mcu_adc cimport MCU_APERTURE_S, MCU_FULL_SCALE_V, MCU_NEW, mcu_adc_code, mcu_adc_mean_v
from stirbar.rt.optics cimport BUBBLES, bubbles_make, lamp_set, led_init, led_set_output, led_switch
from stirbar.rt.pump cimport PUMPS, pumps_init
from stirbar.rt.rng cimport Rng, rng_next, rng_normal, rng_seed, rng_uniform, ziggurat_init
from stirbar.rt.sim_log cimport log_init
from stirbar.rt.sim_outputs cimport (
    STIRRER_HZ, sim_actuators_advance, sim_edges_read, sim_heater_write, sim_pump_write, sim_stirrer_period,
    sim_stirrer_write)
from stirbar.rt.sim_parameters cimport *
from stirbar.rt.thermal cimport thermal_init, thermal_read
from stirbar.rt.types cimport MAX_CHANNELS
from stirbar.rt.vial cimport (
    Beam, Sim, beam_mean_v, sim_advance, sim_hold, sim_put_f32, sim_put_u32, sim_swap_reference, sim_time_s)

cdef enum:
    SIM_OWNER_SAMPLING = 0
    SIM_OWNER_ACTUATOR = 1
    MCU_CATCH_UP = 64        # updates of a running mean after which nothing is left of what was before

# Which random stream of the seed feeds what; channels have STREAM_CHANNEL + 0..3.
cdef enum:
    RNG_SLOW = 1
    RNG_BUBBLES = 2
    RNG_UNIT = 3
    RNG_FAN = 4
    RNG_CHANNEL = 16

cdef struct SimConfig:
    uint64_t seed
    int32_t angle[MAX_CHANNELS]  # of the photodiode on each channel: 45, 90, 135, 180; 0 reference; -1 not connected
    AdcPlan plan[MAX_CHANNELS]   # how the board samples each of them; channels that share a converter share its clock
    double parameter[PARAM_COUNT]  # core/simulation.py `values()`


cdef inline int sim_parameter_owner(int index) noexcept nogil:
    """The thread that may set a parameter: SIM_OWNER_SAMPLING or SIM_OWNER_ACTUATOR."""
    return SIM_OWNER_ACTUATOR if index >= PARAM_FIRST_ACTUATOR else SIM_OWNER_SAMPLING


# --- hardware interface: sampling thread ---

cdef inline int sim_adc_plan(void* context, int channel, AdcPlan* plan) noexcept nogil:
    """0; -ENODEV: no photodiode on that channel."""
    cdef Sim* sim = <Sim*>context
    if channel < 0 or channel >= MAX_CHANNELS or sim.beam[channel].angle < 0:
        return -ENODEV
    plan[0] = sim.plan[channel]
    return 0


cdef inline int sim_mcu_start(Sim* sim, int channel, double full_scale_v, double rate_hz, double time_s) noexcept nogil:
    """A microcontroller's converter always runs; its first running mean is the level it finds. 0, or -EINVAL for
    another full scale than its supply."""
    cdef Ads1115* adc = &sim.adc[channel]
    if fabs(full_scale_v - MCU_FULL_SCALE_V) > 1e-6 or not 1.0 <= rate_hz <= 1000.0:
        return -EINVAL
    adc.nominal_hz = rate_hz
    adc.period_s = MCU_APERTURE_S if MCU_APERTURE_S * rate_hz < 1.0 else 1.0 / rate_hz
    adc.noise_v2 = 0.0
    if not adc.running:
        adc.running = 1
        adc.next_s = time_s
    return 0


cdef inline int sim_adc_start(
        void* context, int channel, double full_scale_v, double rate_hz, int64_t now_ns) noexcept nogil:
    """0; -ENODEV: no photodiode on that channel; -EINVAL: no such range or rate; -EREMOTEIO: fault."""
    cdef Sim* sim = <Sim*>context
    cdef double time_s = sim_time_s(sim, now_ns)
    if channel < 0 or channel >= MAX_CHANNELS or sim.beam[channel].angle < 0:
        return -ENODEV
    if <int>sim.parameter[PARAM_ADC1_FAULT + channel] == ADC_LOST:
        return -EREMOTEIO
    sim_advance(sim, time_s)
    sim.beam[channel].epoch = sim.epoch - 1
    sim.beam[channel].waiting = 0
    if sim.plan[channel].pace == PACE_SMOOTHED:
        return sim_mcu_start(sim, channel, full_scale_v, rate_hz, time_s)
    return ads1115_start(
        &sim.adc[channel], sim.parameter, &sim.ziggurat, full_scale_v, rate_hz, sim.thermal.board_degc, time_s)


cdef inline void sim_code(Sim* sim, int channel, double v, Conversion* conversion) noexcept nogil:
    """The code of a conversion, as the channel's fault lets it be."""
    cdef Ads1115* adc = &sim.adc[channel]
    cdef int fault = <int>sim.parameter[PARAM_ADC1_FAULT + channel]
    conversion.clipped = 0
    if fault == 0:
        adc.last_code = ads1115_code(adc, v, &conversion.clipped)
    elif fault == ADC_GARBAGE:
        adc.last_code = <int16_t>(rng_next(&adc.rng) >> 48)
    conversion.code = adc.last_code


cdef inline void sim_take_range(Sim* sim, int channel, double end_s) noexcept nogil:
    """Before the conversion that ends at `end_s`: the range that was written meanwhile."""
    cdef Ads1115* adc = &sim.adc[channel]
    if adc.next_full_scale_v > 0.0 and end_s > adc.range_after_s + 0.5 * adc.period_s:
        ads1115_range(adc, sim.parameter, &sim.ziggurat, adc.next_full_scale_v, adc.nominal_hz, sim.thermal.board_degc)


cdef inline int sim_read_running(Sim* sim, int channel, double time_s, Conversion* conversion) noexcept nogil:
    """The newest conversion of a free-running converter that has ended: 1, or 0 when none has since the last read."""
    cdef Ads1115* adc = &sim.adc[channel]
    cdef uint32_t skipped = 0
    cdef double end_s, late_us
    if time_s < adc.next_s:
        return 0
    end_s = adc.next_s
    if time_s >= end_s + adc.period_s:
        skipped = <uint32_t><int64_t>((time_s - end_s) / adc.period_s)
        end_s += skipped * adc.period_s
    sim_advance(sim, end_s)
    sim_take_range(sim, channel, end_s)
    sim_code(sim, channel, beam_mean_v(sim, &sim.beam[channel], adc, end_s, skipped), conversion)
    conversion.begin_ns = 0
    conversion.index = adc.index + skipped
    late_us = sim.parameter[PARAM_READY_LATENCY_US] + sim.parameter[PARAM_READY_JITTER_US] * (
        2.0 * rng_uniform(&adc.rng) - 1.0)
    conversion.ready_ns = sim.start_ns + <int64_t>(1e9 * end_s + 1e3 * (late_us if late_us > 0.0 else 0.0))
    adc.index += skipped + 1
    adc.next_s = end_s + adc.period_s
    return 1


cdef inline int sim_read_single(Sim* sim, int channel, double time_s, Conversion* conversion) noexcept nogil:
    """The conversion that was begun: 1, or 0 while it is not there."""
    cdef Ads1115* adc = &sim.adc[channel]
    cdef Beam* beam = &sim.beam[channel]
    if not beam.waiting or time_s < adc.next_s:
        return 0
    beam.waiting = 0
    sim_advance(sim, adc.next_s)
    sim_code(sim, channel, beam_mean_v(sim, beam, adc, adc.next_s, 1), conversion)
    conversion.begin_ns = sim.start_ns + <int64_t>(1e9 * beam.begin_s)
    conversion.ready_ns = sim.start_ns + <int64_t>(1e9 * adc.next_s)
    conversion.index = adc.index
    adc.index += 1
    return 1


cdef inline int sim_read_mean(Sim* sim, int channel, double time_s, Conversion* conversion) noexcept nogil:
    """A microcontroller's running mean as it is now: always 1."""
    cdef Ads1115* adc = &sim.adc[channel]
    cdef Beam* beam = &sim.beam[channel]
    cdef double interval_s = 1.0 / adc.nominal_hz
    cdef double behind = (time_s - adc.next_s) / interval_s
    cdef double v
    if behind > MCU_CATCH_UP:
        adc.next_s += interval_s * <double><int64_t>(behind - MCU_CATCH_UP)
    while adc.next_s <= time_s:
        sim_advance(sim, adc.next_s)
        v = mcu_adc_mean_v(beam_mean_v(sim, beam, adc, adc.next_s, 1), &adc.rng, &sim.ziggurat)
        beam.smoothed_v += (v - beam.smoothed_v) * (MCU_NEW if adc.index else 1.0)
        adc.index += 1
        adc.next_s += interval_s
    sim_code(sim, channel, 0.0, conversion)
    if <int>sim.parameter[PARAM_ADC1_FAULT + channel] == 0:
        conversion.code = adc.last_code = mcu_adc_code(beam.smoothed_v, &conversion.clipped)
    return 1


cdef inline void sim_transfer(Sim* sim, int64_t planned_ns) noexcept nogil:
    """Count a transfer on the bus, and the time that it takes there."""
    sim.bus_transfers += 1
    sim.bus_rest_ns += <int64_t>(planned_ns * sim.parameter[PARAM_BUS_SLOWNESS])
    sim.bus_busy_ms += <uint32_t>(sim.bus_rest_ns // 1000000)
    sim.bus_rest_ns %= 1000000


cdef inline int sim_adc_read(void* context, int channel, int64_t now_ns, Conversion* conversion) noexcept nogil:
    """1: a conversion; 0: none since the last read; -ENODEV: not started; -EREMOTEIO: fault."""
    cdef Sim* sim = <Sim*>context
    cdef double time_s = sim_time_s(sim, now_ns)
    cdef Beam* beam
    cdef int status, pace
    if channel < 0 or channel >= MAX_CHANNELS or not sim.adc[channel].running:
        return -ENODEV
    sim_transfer(sim, sim.plan[channel].read_ns)
    if <int>sim.parameter[PARAM_ADC1_FAULT + channel] == ADC_LOST:
        return -EREMOTEIO
    pace = sim.plan[channel].pace
    if pace == PACE_READY:
        status = sim_read_running(sim, channel, time_s, conversion)
        if status and conversion.ready_ns > now_ns:
            conversion.ready_ns = now_ns
        return status
    if pace == PACE_HOST:
        return sim_read_single(sim, channel, time_s, conversion)
    beam = &sim.beam[channel]
    if pace == PACE_SMOOTHED:
        sim_read_mean(sim, channel, time_s, conversion)
    elif not sim_read_running(sim, channel, time_s, conversion):
        conversion.code = sim.adc[channel].last_code
        conversion.clipped = beam.clipped
    beam.clipped = conversion.clipped
    conversion.begin_ns = 0
    conversion.ready_ns = now_ns
    conversion.index = beam.reads
    beam.reads += 1
    return 1


cdef inline int sim_adc_gain(void* context, int channel, double full_scale_v, int64_t now_ns) noexcept nogil:
    """0; -ENODEV: not started; -EINVAL: no such range; -EREMOTEIO: fault."""
    cdef Sim* sim = <Sim*>context
    if channel < 0 or channel >= MAX_CHANNELS or not sim.adc[channel].running:
        return -ENODEV
    if <int>sim.parameter[PARAM_ADC1_FAULT + channel] == ADC_LOST:
        return -EREMOTEIO
    if sim.plan[channel].pace == PACE_SMOOTHED:
        return sim_adc_start(context, channel, full_scale_v, sim.adc[channel].nominal_hz, now_ns)
    if ads1115_noise_v(full_scale_v, sim.adc[channel].nominal_hz) < 0.0:
        return -EINVAL
    ads1115_range_next(&sim.adc[channel], full_scale_v, sim_time_s(sim, now_ns))
    return 0


cdef inline int sim_adc_convert(void* context, int channel, int64_t now_ns) noexcept nogil:
    """Begin a single conversion; one of another channel of the same converter that is under way is lost. 0; -ENODEV:
    not started, or free-running; -EREMOTEIO: fault."""
    cdef Sim* sim = <Sim*>context
    cdef double time_s = sim_time_s(sim, now_ns)
    cdef int i
    if channel < 0 or channel >= MAX_CHANNELS or not sim.adc[channel].running or sim.plan[channel].pace != PACE_HOST:
        return -ENODEV
    if <int>sim.parameter[PARAM_ADC1_FAULT + channel] == ADC_LOST:
        return -EREMOTEIO
    for i in range(MAX_CHANNELS):
        if sim.plan[i].converter == sim.plan[channel].converter:
            sim.beam[i].waiting = 0
    if sim.adc[channel].next_full_scale_v > 0.0:
        ads1115_range(&sim.adc[channel], sim.parameter, &sim.ziggurat, sim.adc[channel].next_full_scale_v,
                      sim.adc[channel].nominal_hz, sim.thermal.board_degc)
    sim.beam[channel].waiting = 1
    sim.beam[channel].begin_s = time_s
    ads1115_convert(&sim.adc[channel], time_s)
    return 0


cdef inline int sim_check(void* context, int64_t now_ns) noexcept nogil:
    """Its chips never lose what was written to them."""
    return 0


cdef inline int sim_rail_convert(void* context, int64_t now_ns) noexcept nogil:
    return -ENODEV


cdef inline int sim_rail_read(void* context, int64_t now_ns, double* volts) noexcept nogil:
    return -ENODEV


cdef inline int sim_led_write(void* context, double intensity_percent, int64_t now_ns) noexcept nogil:
    """Switch the LED; 0, or -EINVAL outside 0..100."""
    cdef Sim* sim = <Sim*>context
    cdef double time_s = sim_time_s(sim, now_ns)
    if not 0.0 <= intensity_percent <= 100.0:
        return -EINVAL
    if time_s > sim.now_s:
        sim.now_s = time_s
    sim_transfer(sim, sim.plan[0].light_ns)
    led_switch(&sim.led, 0.01 * intensity_percent, time_s)
    return 0


cdef inline void sim_leak(Sim* sim, double time_s) noexcept nogil:
    """What leaks to the culture's photodiodes from the other LEDs, from this moment on."""
    cdef double lit = 0.0
    cdef int i
    for i in range(LED_CHANNELS):
        lit += sim.other[i]
    lamp_set(&sim.others, lit * sim.parameter[PARAM_LIGHT_LEAK_V], time_s)


cdef inline int sim_led_channel_write(void* context, int channel, double percent, int64_t now_ns) noexcept nogil:
    """Set an LED channel beside the OD LED's; 0, -ENODEV: no such channel, -EINVAL outside 0..100."""
    cdef Sim* sim = <Sim*>context
    cdef double time_s = sim_time_s(sim, now_ns)
    if not 0 <= channel < LED_CHANNELS:
        return -ENODEV
    if not 0.0 <= percent <= 100.0:
        return -EINVAL
    sim.other[channel] = 0.01 * percent
    sim_leak(sim, time_s)
    return 0


cdef inline int sim_temperature_read(void* context, int64_t now_ns, double* celsius) noexcept nogil:
    """0, or -EREMOTEIO while the sensor is lost."""
    cdef Sim* sim = <Sim*>context
    sim_advance(sim, sim_time_s(sim, now_ns))
    return thermal_read(&sim.thermal, sim.parameter, &sim.slow_rng, &sim.ziggurat, celsius)


# --- set-up and parameters ---

cdef inline int sim_set(Sim* sim, int parameter, double value) noexcept nogil:
    """Change a parameter, from the thread that owns it. Limits are the caller's (core/simulation.py `check`).

    What names a state (biomass, substrate, volume, drive hours) replaces it; a new lag begins now. 0 or -EINVAL.
    """
    cdef double* p = sim.parameter
    if parameter < 0 or parameter >= PARAM_COUNT or not isfinite(value):
        return -EINVAL
    p[parameter] = value
    if sim_parameter_owner(parameter) == SIM_OWNER_ACTUATOR:
        return 0
    if parameter == PARAM_BIOMASS_OD:
        sim.culture.biomass_od = value
    elif parameter == PARAM_SUBSTRATE_G_PER_L:
        sim.culture.substrate_g_per_l = value
    elif parameter == PARAM_VOLUME_ML:
        sim.culture.volume_ml = value
    elif parameter == PARAM_LAG_H:
        culture_start_lag(&sim.culture, p, sim.thermal.liquid_degc)
    elif parameter == PARAM_LED_DRIVE_H:
        sim.led.drive_h = value
    elif parameter == PARAM_LIGHT_LEAK_V:
        sim_leak(sim, sim.now_s)
    elif parameter == PARAM_REFERENCE_SWAPPED:
        sim_swap_reference(sim, value != 0.0)
    elif parameter == PARAM_LED_DEAD:
        led_set_output(&sim.led, p, sim.thermal.board_degc)
    elif parameter == PARAM_MAINS_HZ or parameter == PARAM_MAINS_WANDER_HZ:
        sim.mains.turns += sim.mains.frequency_hz * (sim.now_s - sim.slow_s)
        sim.mains.frequency_hz = p[PARAM_MAINS_HZ] + p[PARAM_MAINS_WANDER_HZ] * sim.mains.wander
        sim.mains.turns -= sim.mains.frequency_hz * (sim.now_s - sim.slow_s)
    elif parameter == PARAM_AMBIENT_LIGHT_V or parameter == PARAM_AMBIENT_STEP_V:
        lamp_set(&sim.lamp, p[PARAM_AMBIENT_LIGHT_V] + sim.lamp.lit * p[PARAM_AMBIENT_STEP_V], sim.now_s)
    elif PARAM_BUBBLE_RATE_HZ <= parameter <= PARAM_BUBBLE_MAXIMUM_MS:
        if sim.bubbles.from_s[(sim.bubbles.count - 1) % BUBBLES] > sim.now_s:
            sim.bubbles.count -= 1
            bubbles_make(&sim.bubbles, p, &sim.bubble_rng, sim.now_s)
    sim_hold(sim)
    return 0


cdef inline int sim_init_beams(Sim* sim, const SimConfig* config, Rng* unit) noexcept nogil:
    cdef Beam* beam
    cdef int i, j
    for i in range(MAX_CHANNELS):
        if config.angle[i] not in (-1, 0, 45, 90, 135, 180):
            return -EINVAL
        sim.plan[i] = config.plan[i]
        if config.angle[i] >= 0 and not (
            PACE_READY <= config.plan[i].pace <= PACE_SMOOTHED and config.plan[i].rate_hz > 0.0
            and config.plan[i].conversion_hz > 0.0
        ):
            return -EINVAL
        beam = &sim.beam[i]
        beam.angle = config.angle[i]
        beam.epoch = 0
        beam.bubble = 0
        beam.noise_left = 0
        beam.noise = 0.0
        beam.noise_slope = 0.0
        beam.sensitivity = rng_normal(unit, &sim.ziggurat)
        beam.smoothed_v = 0.0
        beam.reads = 0
        beam.clipped = 0
        beam.waiting = 0
        beam.diode.light = 0.0
        beam.diode.time_s = 0.0
        beam.diode.edge = 1
        ads1115_init(&sim.adc[i], config.seed, RNG_CHANNEL + i, &sim.ziggurat)
        beam.noise_node = rng_normal(&sim.adc[i].rng, &sim.ziggurat)
        for j in range(i):
            if config.plan[j].converter == config.plan[i].converter and config.angle[j] >= 0:
                sim.adc[i].rate_deviation = sim.adc[j].rate_deviation
                sim.adc[i].offset_deviation = sim.adc[j].offset_deviation
                sim.adc[i].seed = sim.adc[j].seed
                break
    return 0


cdef inline int sim_init(Sim* sim, const SimConfig* config, int64_t start_ns) noexcept nogil:
    """Start a vial at a moment of the loop's clock. 0, or -EINVAL for an angle it does not have or a value that is not
    finite. What differs from unit to unit (sensitivities, rates, pumps, fan) is drawn from the seed."""
    cdef Rng unit
    cdef int i
    for i in range(PARAM_COUNT):
        if not isfinite(config.parameter[i]):
            return -EINVAL
        sim.parameter[i] = config.parameter[i]
    sim.start_ns = start_ns
    ziggurat_init(&sim.ziggurat)
    rng_seed(&sim.slow_rng, config.seed, RNG_SLOW)
    rng_seed(&sim.bubble_rng, config.seed, RNG_BUBBLES)
    rng_seed(&unit, config.seed, RNG_UNIT)
    if sim_init_beams(sim, config, &unit) != 0:
        return -EINVAL
    sim.swapped = 0
    sim_swap_reference(sim, sim.parameter[PARAM_REFERENCE_SWAPPED] != 0.0)
    fan_init(&sim.fan, config.seed, RNG_FAN, &sim.ziggurat, start_ns)
    log_init(&sim.log)
    pumps_init(&sim.pumps, &unit, &sim.ziggurat)
    thermal_init(&sim.thermal, sim.parameter)
    culture_init(&sim.culture, sim.parameter, sim.thermal.liquid_degc)
    led_init(&sim.led, sim.parameter[PARAM_LED_DRIVE_H])
    sim.mains.turns = rng_uniform(&unit)
    sim.mains.wander = rng_normal(&unit, &sim.ziggurat)
    sim.mains.frequency_hz = sim.parameter[PARAM_MAINS_HZ] + sim.parameter[PARAM_MAINS_WANDER_HZ] * sim.mains.wander
    sim.lamp.lit = 0
    sim.lamp.before_v = sim.parameter[PARAM_AMBIENT_LIGHT_V]
    sim.lamp.after_v = sim.lamp.before_v
    sim.lamp.step_s = 0.0
    sim.others.before_v = sim.others.after_v = sim.others.step_s = 0.0
    for i in range(LED_CHANNELS):
        sim.other[i] = 0.0
    sim.bubbles.count = 0
    bubbles_make(&sim.bubbles, sim.parameter, &sim.bubble_rng, 0.0)
    sim.now_s = 0.0
    sim.slow_s = 0.0
    sim.slow_end_s = 0.1
    sim.epoch = 1
    sim.bus_transfers = 0
    sim.bus_busy_ms = 0
    sim.bus_rest_ns = 0
    sim_put_f32(&sim.exchange.heater_duty, 0.0)
    sim_put_f32(&sim.exchange.stirrer_hz, STIRRER_HZ)
    for i in range(PUMPS):
        sim.taken_nl[i] = 0
    sim_actuators_advance(sim, 0.0)
    led_set_output(&sim.led, sim.parameter, sim.thermal.board_degc)
    sim_hold(sim)
    return 0


cdef inline void sim_hal(Sim* sim, Hal* hal) noexcept nogil:
    """Put the vial behind the hardware interface; `sim` must outlive it."""
    hal.context = sim
    hal.counters = NULL
    hal.adc_plan = sim_adc_plan
    hal.adc_start = sim_adc_start
    hal.adc_gain = sim_adc_gain
    hal.adc_convert = sim_adc_convert
    hal.adc_read = sim_adc_read
    hal.led_write = sim_led_write
    hal.led_channel_write = sim_led_channel_write
    hal.temperature_read = sim_temperature_read
    hal.temperature_check = sim_check
    hal.led_check = sim_check
    hal.rail_convert = sim_rail_convert
    hal.rail_read = sim_rail_read
    hal.edges_read = sim_edges_read
    hal.stirrer_write = sim_stirrer_write
    hal.heater_write = sim_heater_write
    hal.pump_write = sim_pump_write
    hal.pulse = NULL
    hal.stirrer_period = sim_stirrer_period
