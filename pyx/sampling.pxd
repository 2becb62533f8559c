# Why compiled: every conversion of every photodiode is read in time, with the light switched at the converter's pace.
# Thread rule: the sampling thread; it owns the I2C bus and never an actuator.
# Units: nanoseconds of the loop's clock, volts, percent of LED intensity, conversions.

from libc.math cimport NAN, fabs
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint16_t, uint32_t
from libc.string cimport memset

from stirbar.rt.chop cimport (
    HALF_CYCLE_HIGH, HALF_CYCLE_LOW, LedTrack, choose_half_cycle, led_track_edge, led_track_init, led_track_phase)
from stirbar.rt.clock cimport Clock
from stirbar.rt.converter_clock cimport (
    ConverterClock, converter_clock_init, converter_clock_next_ns, converter_clock_push, converter_clock_rate_hz)
from stirbar.rt.estimators cimport Estimators, estimators_apply, estimators_take
from stirbar.rt.hal cimport Conversion, Hal
from stirbar.rt.ports cimport (
    Port, port_command, port_event, port_reading, port_trace, port_trace_for, port_trace_tend, trace_float, trace_int)
from stirbar.rt.reference cimport ReferenceFit
from stirbar.rt.ring cimport stirbar_load_relaxed
from stirbar.rt.sleep_policy cimport SleepPolicy, sleep_for_ever, sleep_next, sleep_until
from stirbar.rt.types cimport (
    COMMAND_BLANK, COMMAND_CURVE, COMMAND_EXPERIMENT, COMMAND_LED, COMMAND_OD_START, COMMAND_OD_STOP, COMMAND_REFERENCE,
    COMMAND_SIMULATION,
    COMMAND_STIR_STOP, COMMAND_TEMPERATURE, COMMAND_TRACE, EVENT_COMMAND_DONE, EVENT_COMMAND_REFUSED,
    EVENT_HALF_CYCLE, EVENT_RATE_LOCKED, EVENT_REFERENCE, EVENT_REFERENCE_ERROR,
    EVENT_SATURATED, EVENT_SENSOR_BACK, EVENT_SENSOR_LOST, FLAG_SENSOR_LOST,
    MAX_CHANNELS, PART_CLEAR, PART_DONE, PART_WORD, RECORD_VERSION, STREAM_OD1, STREAM_TEMPERATURE, TRACE_CLOCK,
    TRACE_COMMAND, TRACE_CONVERSION, TRACE_CURVE, TRACE_GAIN, TRACE_PERIOD, Command, Reading, TraceItem)

cdef enum:
    CLOCK_BLOCK = 86          # conversions for which one clock model is in force
    LED_GUARD_NS = 30000      # uncertainty of a conversion's limits
    SILENCE_NS = 100000000    # without a conversion for so long a channel is lost
    RETRY_NS = 1000000000     # a lost device is asked again this often
    TMP1075_LSB_MICRODEGC = 62500

cdef extern from *:
    """
    #define STIRBAR_READ_AFTER 0.35   /* of a period after it is ready a conversion is fetched at the latest */
    #define STIRBAR_RATE_MOVED 0.005  /* of the rate: k is chosen again */
    """
    const double READ_AFTER "STIRBAR_READ_AFTER"
    const double RATE_MOVED "STIRBAR_RATE_MOVED"

# Part of a calibration, made by the host before it sends COMMAND_CURVE and untouched until that is answered.
cdef struct Staged:
    const int64_t* word
    int32_t first            # number of word[0] in its slot
    int32_t count
    int32_t slot
    int32_t last             # it completes the calibration

cdef struct SamplingConfig:
    int32_t angle[MAX_CHANNELS]         # -1 not connected, 0 reference
    double full_scale_v
    double rate_hz
    double mains_hz                     # 0: unknown
    double rpm                          # the stirrer's usual speed, for the choice of k; 0: none
    double intensity_percent
    int half_cycle                      # 0: chosen

cdef struct Channel:
    ConverterClock clock
    uint32_t last_index                 # counts on over restarts of the converter
    uint32_t index_offset               # from the converter's own count to ours
    int64_t last_ready_ns
    uint32_t next_block                 # index at which the clock model is renewed
    uint32_t missed                     # conversions that were overwritten unread
    uint32_t conversions
    int64_t heard_ns                    # when the last conversion was fetched
    int64_t expected_ns                 # asking before would only keep the bus busy
    int64_t due_ns                      # when it is to be asked at the latest
    uint32_t started                    # last_index is valid
    uint32_t modelled                   # the estimators have a clock model
    uint32_t lost
    uint32_t clipping                   # reported as saturated

cdef struct Sampler:
    Estimators estimators
    SamplingConfig config
    Channel channel[MAX_CHANNELS]
    LedTrack led
    Port port
    const Clock* clock
    const Hal* hal
    int64_t poll_ns                     # between two looks at a converter whose clock is not known yet
    int active[MAX_CHANNELS]            # the channels that are connected
    int active_count
    SleepPolicy* conversions            # of sampling_tick, to be woken by a command
    SleepPolicy* temperature
    const uint32_t* stirring_off        # written by the actuator thread
    int (*simulate)(void* context, int parameter, double value) noexcept nogil  # NULL on hardware
    void* simulated
    Staged staged
    double rate_chosen_hz               # for which k was chosen
    double mains_chosen_hz
    uint32_t toggled_index              # the master's conversion at the last change of light
    int master                          # its conversions pace the light
    int half_cycle
    int sampling
    int temperature_on
    int temperature_lost
    uint32_t bus_errors
    uint32_t stirring_off_told
    int32_t references_told[MAX_CHANNELS]  # stretches of the reference that the host knows of


cdef inline int sampler_feed(Sampler* s, const TraceItem* item) noexcept nogil:
    """Trace one item and apply it; hand on the readings that it made."""
    cdef Reading reading
    cdef int count
    port_trace(&s.port, item)
    count = estimators_apply(&s.estimators, item)
    if count:
        while estimators_take(&s.estimators, &reading):
            port_reading(&s.port, &reading)
    return count


cdef inline void sampler_feed_float(Sampler* s, int kind, int channel, uint32_t index, double value) noexcept nogil:
    cdef TraceItem item
    trace_float(&item, kind, channel, 1, index, value)
    sampler_feed(s, &item)


cdef inline void sampler_curve(Sampler* s) noexcept nogil:
    """What is staged, into the estimators and into the trace; words of 0 need not be said."""
    cdef const Staged* staged = &s.staged
    cdef TraceItem item
    cdef int32_t i
    if staged.first == 0:
        trace_int(&item, TRACE_CURVE, staged.slot, PART_CLEAR, 0, 0, 0)
        sampler_feed(s, &item)
    for i in range(staged.count):
        if staged.word[i]:
            trace_int(&item, TRACE_CURVE, staged.slot, PART_WORD, 0, <uint32_t>(staged.first + i), staged.word[i])
            sampler_feed(s, &item)
    if staged.last:
        trace_int(&item, TRACE_CURVE, staged.slot, PART_DONE, 0, 0, 0)
        sampler_feed(s, &item)


cdef inline double sampler_mains_hz(const Sampler* s) noexcept nogil:
    """50 or 60 as configured or, once it is tracked, as found; 0 before."""
    if s.config.mains_hz > 0 or not s.estimators.od.line.locked:
        return s.config.mains_hz
    return s.estimators.od.line.nominal_hz


cdef inline bint sampler_has_moved(const Sampler* s) noexcept nogil:
    """Whether k was chosen for another rate of the converter, or another mains; mains that fades changes nothing."""
    cdef double rate_hz = converter_clock_rate_hz(&s.channel[s.master].clock)
    cdef double mains = sampler_mains_hz(s)
    return fabs(rate_hz / s.rate_chosen_hz - 1) > RATE_MOVED or (mains > 0 and mains != s.mains_chosen_hz)


cdef inline void sampler_choose_half_cycle(Sampler* s, int64_t now_ns) noexcept nogil:
    """k for the converter's rate and the mains as they are now known, unless the config names one."""
    cdef double rate_hz = converter_clock_rate_hz(&s.channel[s.master].clock)
    cdef int k = s.config.half_cycle
    s.rate_chosen_hz = rate_hz
    s.mains_chosen_hz = sampler_mains_hz(s)
    if k == 0:
        k = choose_half_cycle(rate_hz, s.mains_chosen_hz, s.config.rpm, HALF_CYCLE_LOW, HALF_CYCLE_HIGH)
    if k != s.half_cycle:
        s.half_cycle = k
        port_event(&s.port, now_ns, EVENT_HALF_CYCLE, k, STREAM_OD1 + s.master, rate_hz / (2 * k))


cdef inline int sampler_light(Sampler* s, int on) noexcept nogil:
    """Switch the OD LED; 0, or minus an errno and the light is as it was."""
    cdef int64_t before_ns = s.clock.now_ns(s.clock.context)
    cdef int status = s.hal.led_write(s.hal.context, s.config.intensity_percent if on else 0.0, before_ns)
    if status:
        s.bus_errors += 1
        return status
    led_track_edge(&s.led, before_ns, s.clock.now_ns(s.clock.context), on)
    return 0


cdef inline void sampler_model(Sampler* s, int index) noexcept nogil:
    """Freeze the converter's clock for the next block of conversions, and tell the estimators."""
    cdef Channel* channel = &s.channel[index]
    cdef TraceItem item
    channel.next_block = channel.clock.index + CLOCK_BLOCK
    channel.modelled = 1
    trace_int(&item, TRACE_CLOCK, index, 0, 0, channel.clock.index,
              channel.clock.origin_ns + <int64_t>channel.clock.end_ns)
    sampler_feed(s, &item)
    sampler_feed_float(s, TRACE_PERIOD, index, 0, channel.clock.period_ns)


cdef inline uint32_t sampler_resumed_index(const Sampler* s, const Channel* channel, int64_t ready_ns) noexcept nogil:
    """Our number of the first conversion after a start: the pause counts as conversions that were not made, so that to
    the estimators it is a gap of its true length."""
    cdef double paused
    if channel.conversions == 0:
        return 0
    paused = <double>(ready_ns - channel.last_ready_ns) * 1e-9 * s.config.rate_hz
    return channel.last_index + 1 + <uint32_t>(paused if paused < 1e9 else 1e9)


cdef inline void sampler_conversion(Sampler* s, int index, const Conversion* conversion, int64_t now_ns) noexcept nogil:
    """Time one conversion, say under which light it was made, and feed it to the estimators."""
    cdef Channel* channel = &s.channel[index]
    cdef TraceItem item
    cdef int64_t end_ns
    cdef int was_locked = channel.clock.locked
    cdef uint32_t number
    if not channel.started:
        channel.index_offset = sampler_resumed_index(s, channel, conversion.ready_ns) - conversion.index
    number = conversion.index + channel.index_offset
    if channel.started and <int32_t>(number - channel.last_index) > 1:
        channel.missed += number - channel.last_index - 1
    channel.last_index = number
    channel.last_ready_ns = conversion.ready_ns
    channel.started = 1
    channel.conversions += 1
    channel.heard_ns = now_ns
    if not converter_clock_push(&channel.clock, number, conversion.ready_ns):
        channel.modelled = 0
        return
    if not was_locked:
        port_event(&s.port, now_ns, EVENT_RATE_LOCKED, index + 1, STREAM_OD1 + index,
                   converter_clock_rate_hz(&channel.clock))
    if not channel.modelled or <int32_t>(number - channel.next_block) >= 0:
        sampler_model(s, index)
        if index == s.master and sampler_has_moved(s):
            sampler_choose_half_cycle(s, now_ns)
    end_ns = channel.clock.origin_ns + <int64_t>channel.clock.end_ns
    trace_int(&item, TRACE_CONVERSION, index,
              led_track_phase(&s.led, end_ns - <int64_t>channel.clock.period_ns, end_ns),
              conversion.clipped, number, conversion.code)
    sampler_feed(s, &item)
    if conversion.clipped and not channel.clipping:
        port_event(&s.port, now_ns, EVENT_SATURATED, index + 1, STREAM_OD1 + index, 0)
    channel.clipping = conversion.clipped


cdef inline void sampler_lost(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """A converter that fails or has fallen silent is asked again once a second; without the master there is no pace for
    the light, which is switched off."""
    cdef Channel* channel = &s.channel[index]
    if index == s.master and s.led.on:
        sampler_light(s, 0)
    channel.expected_ns = channel.due_ns = now_ns + RETRY_NS
    if not channel.lost:
        channel.lost = 1
        port_event(&s.port, now_ns, EVENT_SENSOR_LOST, 0, STREAM_OD1 + index, 0)


cdef inline int sampler_begin(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """Start a converter anew; 0, or minus an errno."""
    cdef Channel* channel = &s.channel[index]
    cdef int status = s.hal.adc_start(s.hal.context, index, s.config.full_scale_v, s.config.rate_hz, now_ns)
    converter_clock_init(&channel.clock, s.config.rate_hz)
    channel.started = 0
    channel.modelled = 0
    channel.heard_ns = now_ns
    channel.expected_ns = now_ns
    channel.due_ns = now_ns + s.poll_ns
    s.bus_errors += status != 0
    return status


cdef inline void sampler_fetch(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """Read a converter whose next conversion should be ready, and say when it wants to be read again."""
    cdef Channel* channel = &s.channel[index]
    cdef Conversion conversion
    cdef int status
    if channel.lost:
        if sampler_begin(s, index, now_ns):
            sampler_lost(s, index, now_ns)
            return
        channel.lost = 0
        port_event(&s.port, now_ns, EVENT_SENSOR_BACK, 0, STREAM_OD1 + index, 0)
    status = s.hal.adc_read(s.hal.context, index, now_ns, &conversion)
    if status == 1:
        sampler_conversion(s, index, &conversion, now_ns)
        if channel.clock.locked:
            channel.expected_ns = converter_clock_next_ns(&channel.clock)
            channel.due_ns = channel.expected_ns + <int64_t>(READ_AFTER * channel.clock.period_ns)
        else:
            channel.expected_ns = now_ns
            channel.due_ns = now_ns + s.poll_ns
    elif status < 0:
        s.bus_errors += 1
        sampler_lost(s, index, now_ns)
    elif now_ns - channel.heard_ns > SILENCE_NS:
        sampler_lost(s, index, now_ns)
    else:
        channel.due_ns = now_ns + s.poll_ns


cdef inline void sampler_chop(Sampler* s) noexcept nogil:
    """Change the light when the master has made k conversions under it."""
    cdef Channel* master = &s.channel[s.master]
    if <int32_t>(master.last_index - s.toggled_index) >= s.half_cycle:
        s.toggled_index = master.last_index
        sampler_light(s, not s.led.on)


cdef inline void sampling_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Fetch what the converters have finished, keep the light in step, and wake for the next one."""
    cdef Sampler* s = <Sampler*>context
    cdef Channel* channel
    cdef int64_t earliest_ns = INT64_MAX
    cdef int i
    if not s.sampling:
        sleep_for_ever(policy)
        return
    port_trace_tend(&s.port, now_ns)
    for i in range(s.active_count):
        channel = &s.channel[s.active[i]]
        if now_ns >= channel.expected_ns:
            sampler_fetch(s, s.active[i], now_ns)
        if channel.due_ns < earliest_ns:
            earliest_ns = channel.due_ns
    sampler_chop(s)
    # a converter that is long overdue must not turn the thread into a spin
    sleep_until(policy, earliest_ns, now_ns + (s.poll_ns >> 1))


cdef inline int sampler_start(Sampler* s, double intensity_percent, int64_t now_ns) noexcept nogil:
    """Start every converter, and the light; 0, or minus the errno of the first device that refused."""
    cdef int i, status
    s.config.intensity_percent = intensity_percent
    sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_LED, intensity_percent)
    led_track_init(&s.led, LED_GUARD_NS, 0)
    s.poll_ns = <int64_t>(0.25e9 / s.config.rate_hz)
    s.active_count = 0
    for i in range(MAX_CHANNELS):
        if s.config.angle[i] < 0:
            continue
        s.active[s.active_count] = i
        s.active_count += 1
        s.channel[i].lost = 0
        status = sampler_begin(s, i, now_ns)
        if status:
            return status
        sampler_feed_float(s, TRACE_GAIN, i, 0, s.config.full_scale_v / 32768.0)
    sampler_choose_half_cycle(s, now_ns)
    s.toggled_index = 0
    status = sampler_light(s, 1)
    if status:
        return status
    s.sampling = 1
    s.conversions.target_ns = now_ns
    return 0


cdef inline void sampler_stop(Sampler* s) noexcept nogil:
    s.sampling = 0
    sampler_light(s, 0)


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
    elif command.code == COMMAND_OD_STOP:
        sampler_stop(s)
    elif command.code == COMMAND_BLANK and command.channel < MAX_CHANNELS:
        sampler_feed_float(s, TRACE_COMMAND, command.channel, COMMAND_BLANK, command.value)
    elif command.code == COMMAND_REFERENCE and command.channel < MAX_CHANNELS:
        sampler_feed_float(s, TRACE_COMMAND, command.channel, COMMAND_REFERENCE, command.value)
    elif command.code == COMMAND_CURVE:
        sampler_curve(s)
    elif command.code == COMMAND_LED:
        s.config.intensity_percent = command.value
        sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_LED, command.value)
    elif command.code == COMMAND_TEMPERATURE:
        s.temperature_on = command.value != 0
        s.temperature.target_ns = now_ns
    else:
        status = -1
    port_event(&s.port, now_ns, EVENT_COMMAND_REFUSED if status else EVENT_COMMAND_DONE, <int>command.id, 0, status)


cdef inline void sampler_say_lost(Sampler* s, int stream, int angle, int64_t now_ns) noexcept nogil:
    """A reading that says that there is none."""
    cdef Reading reading
    memset(&reading, 0, sizeof(Reading))
    reading.monotonic_ns = now_ns
    reading.value = NAN
    reading.se_instrument = reading.se_culture = reading.window_s = reading.noise_bandwidth_hz = NAN
    reading.signal_v = reading.reference_v = reading.ambient_v = NAN
    reading.flags = FLAG_SENSOR_LOST
    reading.stream = <uint16_t>stream
    reading.angle = <uint16_t>angle
    reading.version = RECORD_VERSION
    port_reading(&s.port, &reading)


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
    """Commands, and what the actuator thread says about the stirrer."""
    cdef Sampler* s = <Sampler*>context
    cdef Command command
    cdef uint32_t stirring_off = stirbar_load_relaxed(s.stirring_off)
    port_trace_tend(&s.port, now_ns)
    while port_command(&s.port, &command):
        sampler_command(s, &command, now_ns)
    sampler_say_references(s, now_ns)
    if stirring_off != s.stirring_off_told:
        s.stirring_off_told = stirring_off
        sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_STIR_STOP, stirring_off)
    sleep_next(policy, now_ns)


cdef inline void temperature_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Read the heater board's sensor; also once a second say which photodiodes are lost."""
    cdef Sampler* s = <Sampler*>context
    cdef Reading reading
    cdef double celsius = 0
    cdef int i
    sleep_next(policy, now_ns)
    for i in range(MAX_CHANNELS):
        if s.sampling and s.config.angle[i] > 0 and s.channel[i].lost:
            sampler_say_lost(s, STREAM_OD1 + i, s.config.angle[i], now_ns)
    if not s.temperature_on:
        return
    if s.hal.temperature_read(s.hal.context, now_ns, &celsius):
        s.bus_errors += 1
        if not s.temperature_lost:
            s.temperature_lost = 1
            port_event(&s.port, now_ns, EVENT_SENSOR_LOST, 0, STREAM_TEMPERATURE, 0)
        sampler_say_lost(s, STREAM_TEMPERATURE, 0, now_ns)
        return
    if s.temperature_lost:
        s.temperature_lost = 0
        port_event(&s.port, now_ns, EVENT_SENSOR_BACK, 0, STREAM_TEMPERATURE, 0)
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
