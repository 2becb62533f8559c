# Why compiled: every conversion of every photodiode is read in time, with the light switched at the converter's pace.
# Thread rule: the sampling thread; it owns the I2C bus and never an actuator.
# Units: nanoseconds of the loop's clock, volts, percent of LED intensity, conversions.
#
# Its three tasks: conversions (how each pace works: sampling_paces.pxd; the light: light.pxd; what they share:
# sampler_state.pxd), housekeeping, and the clock of the slow devices, which are read in the gaps between conversions.

from libc.errno cimport EAGAIN, EBUSY, EINVAL, ENODEV
from libc.math cimport NAN
from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.chop cimport led_track_init
from stirbar.rt.gain cimport GAIN_AUTO, gain_init, gain_range
from stirbar.rt.heating cimport heat_word
from stirbar.rt.hal cimport PACE_HOST, PACE_PILOT, PACE_READY, PACE_SMOOTHED
from stirbar.rt.leds cimport leds_renew, leds_set
from stirbar.rt.light cimport (
    sampler_chop, sampler_choose_half_cycle, sampler_guess_edge, sampler_light, sampler_publish_chop,
    sampler_tend_path, sampler_turned)
from stirbar.rt.pilot cimport PILOT_LOCKED
from stirbar.rt.pilot_pace cimport pilot_chops_next, sampler_pilot, sampler_tend_gain
from stirbar.rt.ports cimport port_command, port_event, port_reading, port_trace_for, port_trace_tend, trace_int
from stirbar.rt.reference cimport ReferenceFit
from stirbar.rt.ring cimport stirbar_load_relaxed, stirbar_store_relaxed
from stirbar.rt.sampler_state cimport (
    LED_GUARD_NS, SLOW_DEVICES, SLOW_LED_CHECK, SLOW_LEDS, SLOW_RAIL, SLOW_RAIL_READ, SLOW_TEMPERATURE,
    SLOW_TEMPERATURE_CHECK, Channel, Sampler, sampler_curve, sampler_feed, sampler_feed_float, sampler_light_unknown,
    sampler_say_none)
from stirbar.rt.sampling_leds cimport sampler_tend_leds, sampler_write_led
from stirbar.rt.sampling_paces cimport (
    host_plan, host_tick, sampler_begin, sampler_fetch, sampler_look, sampler_lost)
from stirbar.rt.sleep_policy cimport SleepPolicy, sleep_for_ever, sleep_next, sleep_until
from stirbar.rt.types cimport (
    COMMAND_BLANK, COMMAND_CURVE, COMMAND_DOSE_ML, COMMAND_EXPERIMENT, COMMAND_LED, COMMAND_LED_RENEW, COMMAND_LED_SET,
    COMMAND_OD_START, COMMAND_OD_STOP, COMMAND_REFERENCE, COMMAND_SIMULATION,
    COMMAND_STIR_STOP, COMMAND_TEMPERATURE, COMMAND_TRACE, EVENT_COMMAND_DONE, EVENT_COMMAND_REFUSED,
    EVENT_REFERENCE, EVENT_REFERENCE_ERROR, EVENT_SENSOR_BACK, EVENT_SENSOR_LOST, FLAG_DARK, FLAG_SENSOR_LOST,
    MAX_CHANNELS, RECORD_VERSION,
    STREAM_OD1, STREAM_TEMPERATURE,
    TRACE_COMMAND, TRACE_TURN, Command, Reading, TraceItem)

cdef enum:
    SLOW_LATEST_NS = 1000000000   # so long a slow device waits for a gap
    CHECK_S = 10                  # what was written to sensor and LED driver is read back so often
    RAIL_LENT_S = 10              # the rail is measured so often where that costs a conversion; else each second
    TMP1075_LSB_MICRODEGC = 62500
    HOST_LEAST_SLEEP_NS = 20000
    LIGHT_SLACK_NS = 150000       # for a thread that wakes late

cdef extern from *:
    """
    #define STIRBAR_PILOT_WAITS 0.4   /* of a period: so long a silent converter's register can be read later */
    """
    const double PILOT_WAITS "STIRBAR_PILOT_WAITS"


# --- slow devices ---

cdef inline void sampler_read_temperature(Sampler* s, int64_t now_ns) noexcept nogil:
    """Read the heater board's sensor and publish it."""
    cdef Reading reading
    cdef double celsius = 0
    if s.hal.temperature_read(s.hal.context, now_ns, &celsius):
        s.bus_errors += 1
        if not s.temperature_lost:
            s.temperature_lost = 1
            port_event(&s.port, now_ns, EVENT_SENSOR_LOST, 0, STREAM_TEMPERATURE, 0)
        sampler_say_none(s, STREAM_TEMPERATURE, 0, FLAG_SENSOR_LOST, now_ns)
        return
    if s.temperature_lost:
        s.temperature_lost = 0
        port_event(&s.port, now_ns, EVENT_SENSOR_BACK, 0, STREAM_TEMPERATURE, 0)
    stirbar_store_relaxed(&s.board_word, heat_word(s.board_word, celsius))
    memset(&reading, 0, sizeof(Reading))
    reading.monotonic_ns = now_ns
    reading.value = celsius
    reading.se_instrument = <float>(TMP1075_LSB_MICRODEGC * 1e-6 * 0.288675)  # LSB / sqrt(12)
    reading.se_culture = reading.window_s = reading.noise_bandwidth_hz = NAN
    reading.signal_v = reading.reference_v = reading.ambient_v = NAN
    reading.used = 1
    reading.stream = STREAM_TEMPERATURE
    reading.version = RECORD_VERSION
    port_reading(&s.port, &reading)


cdef inline void sampler_slow_due(Sampler* s, int device, int64_t now_ns) noexcept nogil:
    """A slow device is to be read."""
    if not s.slow_due >> device & 1:
        s.slow_due |= <uint32_t>1 << device
        s.slow_from_ns[device] = now_ns


cdef inline void sampler_begin_rail(Sampler* s, int64_t now_ns) noexcept nogil:
    """Begin to measure the voltage of the PWM rail, where the board has a converter for it that is free."""
    cdef int status = s.hal.rail_convert(s.hal.context, now_ns)
    s.rail_absent = status == -ENODEV
    if status == 0:
        sampler_slow_due(s, SLOW_RAIL_READ, now_ns)
    elif status != -EBUSY:
        s.bus_errors += status != -ENODEV
        s.rail_v = NAN


cdef inline void sampler_read_rail(Sampler* s, int64_t now_ns) noexcept nogil:
    """Fetch it; what is not there yet is asked for in the next gap."""
    cdef double volts = 0
    cdef int status = s.hal.rail_read(s.hal.context, now_ns, &volts)
    if status == -EAGAIN:
        s.slow_due |= <uint32_t>1 << SLOW_RAIL_READ
    elif status != -EBUSY:
        s.bus_errors += status != 0
        s.rail_v = NAN if status else volts


cdef inline void sampler_read_slow(Sampler* s, int device) noexcept nogil:
    """Read a slow device, and learn how long it holds the bus: its longest time, forgotten by 1/8 a read."""
    cdef int64_t before_ns = s.clock.now_ns(s.clock.context)
    cdef int64_t took_ns
    s.slow_due &= ~(<uint32_t>1 << device)
    if device == SLOW_LEDS:
        sampler_write_led(s, before_ns)
    elif device == SLOW_TEMPERATURE:
        sampler_read_temperature(s, before_ns)
    elif device == SLOW_RAIL:
        sampler_begin_rail(s, before_ns)
    elif device == SLOW_RAIL_READ:
        sampler_read_rail(s, before_ns)
    elif device == SLOW_TEMPERATURE_CHECK:
        s.bus_errors += s.hal.temperature_check(s.hal.context, before_ns) != 0
    else:
        s.bus_errors += s.hal.led_check(s.hal.context, before_ns) != 0
    took_ns = s.clock.now_ns(s.clock.context) - before_ns
    s.slow_bus_ns[device] -= s.slow_bus_ns[device] >> 3
    if took_ns > s.slow_bus_ns[device]:
        s.slow_bus_ns[device] = took_ns


cdef inline void sampler_change_leds(Sampler* s, int64_t due_ns) noexcept nogil:
    """Write what LED channels wait for, as far as the gap after the light's edge has room for it; what has waited for
    too long gets one transfer without room."""
    cdef int64_t now_ns
    cdef bint fits = 1
    while fits and s.slow_due >> SLOW_LEDS & 1:
        now_ns = s.clock.now_ns(s.clock.context)
        fits = now_ns + s.slow_bus_ns[SLOW_LEDS] <= due_ns
        if now_ns > s.leds_until_ns:
            s.slow_due &= ~(<uint32_t>1 << SLOW_LEDS)
        elif fits or now_ns - s.slow_from_ns[SLOW_LEDS] >= SLOW_LATEST_NS:
            s.slow_forced += not fits
            sampler_read_slow(s, SLOW_LEDS)


cdef inline void sampler_tend_slow(Sampler* s, int64_t due_ns) noexcept nogil:
    """Read a slow device that waits, when it lets the bus go before the next conversion is due, or has waited for too
    long."""
    cdef int64_t now_ns
    cdef int device
    sampler_change_leds(s, due_ns)
    for device in range(SLOW_LEDS + 1, SLOW_DEVICES):
        if not s.slow_due >> device & 1 or (device == SLOW_RAIL and s.rail_lender >= 0):
            continue
        now_ns = s.clock.now_ns(s.clock.context)
        if now_ns + s.slow_bus_ns[device] <= due_ns:
            sampler_read_slow(s, device)
        elif now_ns - s.slow_from_ns[device] >= SLOW_LATEST_NS:
            s.slow_forced += 1
            sampler_read_slow(s, device)
            return


# --- conversions ---

cdef inline int64_t sampler_latest_ns(const Sampler* s, int index) noexcept nogil:
    """When a channel has to be read at the latest, so that no conversion and no change of the light is late."""
    cdef const Channel* channel = &s.channel[index]
    if channel.plan.pace == PACE_PILOT and channel.pilot.state == PILOT_LOCKED and not pilot_chops_next(s, index):
        return channel.due_ns + <int64_t>(PILOT_WAITS * channel.period_ns)
    return channel.due_ns


cdef inline int64_t sampler_free_until_ns(const Sampler* s) noexcept nogil:
    """Until when the bus can be had: then one channel after the other can still be read in time."""
    cdef int64_t latest_ns, other_ns
    cdef int64_t free_ns = INT64_MAX
    cdef uint32_t left = 0
    cdef int i, last
    for i in range(s.active_count):
        left |= <uint32_t>(s.channel[s.active[i]].plan.pace != PACE_HOST) << s.active[i]
    while left:  # from the last to the first
        last = -1
        latest_ns = 0
        for i in range(MAX_CHANNELS):
            if left >> i & 1:
                other_ns = sampler_latest_ns(s, i)
                if last < 0 or other_ns > latest_ns:
                    last = i
                    latest_ns = other_ns
        left &= ~(<uint32_t>1 << last)
        free_ns -= s.channel[last].plan.read_ns
        if pilot_chops_next(s, last):
            free_ns -= s.channel[last].plan.light_ns
        free_ns = latest_ns if latest_ns < free_ns else free_ns
    return s.grid.next_ns if s.grid.next_ns < free_ns else free_ns


cdef inline void sampling_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Fetch what the converters have finished, keep the light in step, and wake for the next one."""
    cdef Sampler* s = <Sampler*>context
    cdef Channel* channel
    cdef int64_t earliest_ns
    cdef int i
    if not s.sampling:
        sleep_for_ever(policy)
        return
    port_trace_tend(&s.port, now_ns)
    host_tick(s, now_ns)
    earliest_ns = s.grid.next_ns
    for i in range(s.active_count):
        channel = &s.channel[s.active[i]]
        if channel.plan.pace == PACE_HOST:
            continue
        if now_ns >= channel.expected_ns:
            if channel.plan.pace == PACE_READY:
                sampler_fetch(s, s.active[i], now_ns)
            elif channel.plan.pace == PACE_PILOT:
                sampler_pilot(s, s.active[i], now_ns)
            else:
                sampler_look(s, s.active[i], now_ns)
        if channel.due_ns < earliest_ns:
            earliest_ns = channel.due_ns
    if s.channel[s.master].plan.pace != PACE_HOST:
        sampler_chop(s)
    sampler_tend_gain(s)
    sampler_tend_path(s, now_ns)
    if s.slow_due:
        sampler_tend_slow(s, sampler_free_until_ns(s))
    # a converter that is long overdue must not turn the thread into a spin
    sleep_until(policy, earliest_ns, now_ns + s.least_sleep_ns)


cdef inline int sampler_plan(Sampler* s, int index) noexcept nogil:
    """Ask the board how a channel is sampled; 0, or minus an errno."""
    cdef Channel* channel = &s.channel[index]
    cdef int status = s.hal.adc_plan(s.hal.context, index, &channel.plan)
    if status:
        return status
    if not PACE_READY <= channel.plan.pace <= PACE_SMOOTHED:
        return -ENODEV
    if not channel.plan.rate_hz > 0.0 or not channel.plan.conversion_hz > 0.0:
        return -EINVAL
    if channel.plan.pace <= PACE_PILOT and 0.0 < s.config.rate_hz < channel.plan.conversion_hz:
        channel.plan.conversion_hz = channel.plan.rate_hz = s.config.rate_hz
    channel.ranged = channel.plan.pace != PACE_SMOOTHED
    gain_init(&channel.gain, gain_range(s.config.full_scale_v[index]) if s.config.full_scale_v[index] else GAIN_AUTO,
              channel.plan.rate_hz)
    channel.period_ns = 1e9 / channel.plan.rate_hz
    channel.aperture_ns = 0.0 if channel.plan.pace == PACE_SMOOTHED else 1e9 / channel.plan.conversion_hz
    if channel.plan.settle_ns > s.settle_ns:
        s.settle_ns = channel.plan.settle_ns
    return 0


cdef inline int sampler_plan_channels(Sampler* s, int64_t now_ns) noexcept nogil:
    """Plan every channel that is connected; 0, or minus the errno of the first that the board does not have."""
    cdef double fastest_hz = 0.0
    cdef int64_t bus_ns = 0
    cdef int i, status
    s.active_count = 0
    s.settle_ns = 0
    s.held = 0
    s.seeking = 0
    for i in range(MAX_CHANNELS):
        if s.config.angle[i] < 0:
            continue
        s.active[s.active_count] = i
        s.active_count += 1
        status = sampler_plan(s, i)
        if status:
            return status
        bus_ns += s.channel[i].plan.read_ns
        if s.channel[i].plan.conversion_hz > fastest_hz:
            fastest_hz = s.channel[i].plan.conversion_hz
    s.slow_due &= ~(<uint32_t>1 << SLOW_RAIL_READ)  # its converter begins anew
    for i in range(SLOW_DEVICES):  # before it was ever measured: a read with its pointer
        s.slow_bus_ns[i] = 2 * s.channel[s.active[0]].plan.read_ns
    s.slow_bus_ns[SLOW_LEDS] = s.channel[s.master].plan.light_ns
    bus_ns += s.channel[s.master].plan.light_ns
    s.light_first = bus_ns + LIGHT_SLACK_NS < 0.9e9 / fastest_hz
    s.poll_ns = <int64_t>(0.25e9 / fastest_hz)
    s.least_sleep_ns = s.poll_ns >> 1
    host_plan(s, now_ns)
    if s.grid.slots:
        s.least_sleep_ns = HOST_LEAST_SLEEP_NS
    return 0


cdef inline void sampler_start_channels(Sampler* s, int64_t now_ns) noexcept nogil:
    """Start every converter; one that refuses is lost from the start, and asked again as any that is lost."""
    cdef Channel* channel
    cdef int i
    for i in range(s.active_count):
        s.channel[s.active[i]].lost = 0
    for i in range(s.active_count):
        channel = &s.channel[s.active[i]]
        if sampler_begin(s, s.active[i], now_ns):
            sampler_lost(s, s.active[i], now_ns)
        elif channel.plan.pace == PACE_SMOOTHED:  # spread over the period, so that the bus is shared evenly
            channel.expected_ns = channel.due_ns = now_ns + <int64_t>(i * channel.period_ns / s.active_count)


cdef inline int sampler_start(Sampler* s, double intensity_percent, int64_t now_ns) noexcept nogil:
    """Start every converter, and the light; 0, or minus the errno of a channel that the board does not have. What does
    not answer is tried again while the others measure."""
    cdef int status
    s.config.intensity_percent = intensity_percent
    sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_LED, intensity_percent)
    led_track_init(&s.led, LED_GUARD_NS, 0)
    status = sampler_plan_channels(s, now_ns)
    if status:
        return status
    sampler_start_channels(s, now_ns)
    s.light_path.tau_ns = NAN
    s.measuring = 0
    s.search.active = 0
    s.path_rounds = 0
    s.path_from_ns = now_ns
    s.paused = 0
    s.half_cycle = 0
    sampler_guess_edge(s)
    sampler_choose_half_cycle(s, now_ns)
    s.toggled_index = 0
    if not s.channel[s.master].lost:
        sampler_light(s, 1)
    s.sampling = 1
    sampler_publish_chop(s)
    s.conversions.target_ns = now_ns
    return 0


cdef inline void sampler_stop(Sampler* s) noexcept nogil:
    s.sampling = 0
    sampler_light(s, 0)
    sampler_publish_chop(s)


# --- commands and what has a clock of its own ---

cdef inline void sampler_command(Sampler* s, const Command* command, int64_t now_ns) noexcept nogil:
    """Do one command and answer it."""
    cdef int status = 0
    if command.code == COMMAND_EXPERIMENT:
        s.port.experiment = <uint32_t>command.index
    elif command.code == COMMAND_TRACE:
        port_trace_for(&s.port, now_ns, command.value)
    elif command.code == COMMAND_SIMULATION and s.simulate != NULL:
        status = s.simulate(s.simulated, command.index, command.value)
    elif command.code == COMMAND_OD_START:
        status = 0 if s.sampling else sampler_start(s, command.value, now_ns)
        sampler_tend_leds(s, now_ns)
    elif command.code == COMMAND_OD_STOP:
        sampler_stop(s)
        sampler_tend_leds(s, now_ns)
    elif command.code == COMMAND_BLANK and command.channel < MAX_CHANNELS:
        sampler_feed_float(s, TRACE_COMMAND, command.channel, COMMAND_BLANK, command.value)
    elif command.code == COMMAND_REFERENCE and command.channel < MAX_CHANNELS:
        sampler_feed_float(s, TRACE_COMMAND, command.channel, COMMAND_REFERENCE, command.value)
    elif command.code == COMMAND_CURVE:
        sampler_curve(s)
    elif command.code == COMMAND_LED:
        s.config.intensity_percent = command.value
        sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_LED, command.value)
    elif command.code == COMMAND_LED_SET:
        status = leds_set(&s.leds, command.channel, command.value, s.sampling, now_ns)
        sampler_tend_leds(s, now_ns)
    elif command.code == COMMAND_LED_RENEW:
        leds_renew(&s.leds, <uint32_t>command.index, now_ns)
        sampler_tend_leds(s, now_ns)
    elif command.code == COMMAND_TEMPERATURE:
        s.temperature_on = command.value != 0
        s.temperature.target_ns = now_ns
    else:
        status = -1
    port_event(&s.port, now_ns, EVENT_COMMAND_REFUSED if status else EVENT_COMMAND_DONE, <int>command.id, 0, status)


cdef inline void sampler_say_references(Sampler* s, int64_t now_ns) noexcept nogil:
    """Tell the host of each coefficient of the reference that was learned."""
    cdef const ReferenceFit* fit
    cdef int i
    for i in range(MAX_CHANNELS):
        fit = &s.estimators.od.reference_fit[i]
        if fit.stretches != s.references_told[i]:
            s.references_told[i] = fit.stretches
            port_event(&s.port, now_ns, EVENT_REFERENCE_ERROR, i + 1, STREAM_OD1 + i, fit.learned_se)
            port_event(&s.port, now_ns, EVENT_REFERENCE, i + 1, STREAM_OD1 + i, fit.learned)


cdef inline void housekeeping_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Commands, and what the actuator thread says about stirrer and pumps."""
    cdef Sampler* s = <Sampler*>context
    cdef Command command
    cdef TraceItem item
    cdef uint32_t stirring_off = stirbar_load_relaxed(s.stirring_off)
    cdef uint32_t turn_us = stirbar_load_relaxed(s.turn_us)
    cdef uint32_t dosing = stirbar_load_relaxed(s.dosing)
    port_trace_tend(&s.port, now_ns)
    while port_command(&s.port, &command):
        sampler_command(s, &command, now_ns)
    if now_ns >= s.leds.look_ns:
        sampler_tend_leds(s, now_ns)
    sampler_say_references(s, now_ns)
    if stirring_off != s.stirring_off_told:
        s.stirring_off_told = stirring_off
        sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_STIR_STOP, stirring_off)
    if dosing != s.dosing_told:
        s.dosing_told = dosing
        sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_DOSE_ML, dosing)
    if turn_us != s.turn_us_told:
        sampler_turned(s, s.turn_us_told, turn_us)
        s.turn_us_told = turn_us
        trace_int(&item, TRACE_TURN, 0, 0, 0, 0, turn_us)
        sampler_feed(s, &item)
    sleep_next(policy, now_ns)


cdef inline void temperature_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """The slow devices are due: they wait for a gap between conversions, where there are any. Also once a second say
    which photodiodes are lost, or have no light; and where no half-cycle ends, see that the light goes off."""
    cdef Sampler* s = <Sampler*>context
    cdef int i
    sleep_next(policy, now_ns)
    for i in range(MAX_CHANNELS):
        if s.sampling and s.config.angle[i] > 0 and (s.channel[i].lost or s.light_lost):
            sampler_say_none(
                s, STREAM_OD1 + i, s.config.angle[i], FLAG_SENSOR_LOST if s.channel[i].lost else FLAG_DARK, now_ns)
    if sampler_light_unknown(s) and (not s.sampling or s.channel[s.master].lost):
        sampler_light(s, 0)
    s.slow_seconds += 1
    if s.temperature_on:
        sampler_slow_due(s, SLOW_TEMPERATURE, now_ns)
    if not s.rail_absent and (s.rail_lender < 0 or not s.sampling or s.slow_seconds % RAIL_LENT_S == 2):
        sampler_slow_due(s, SLOW_RAIL, now_ns)
    if s.slow_seconds % CHECK_S == 4:
        sampler_slow_due(s, SLOW_TEMPERATURE_CHECK, now_ns)
    if s.slow_seconds % CHECK_S == 6:
        sampler_slow_due(s, SLOW_LED_CHECK, now_ns)
    if s.sampling:
        return
    for i in range(SLOW_DEVICES - 1, -1, -1):  # the rail is fetched a second after it was begun
        if s.slow_due >> i & 1:
            sampler_read_slow(s, i)
