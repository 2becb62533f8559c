# Why compiled: what the sampling thread knows, and the way of every conversion, whoever paces it, to the estimators.
# Thread rule: the sampling thread; chop_period_ns and led_seconds are read by others as 32-bit values.
# Units: nanoseconds of the loop's clock, volts, percent of LED intensity, conversions.
#
# A pace function (sampling_paces.pxd) finds out which conversion it has and when that began and ended; then
# sampler_number, sampler_model where a block of conversions begins, and sampler_conversion. No pace does more.

from libc.math cimport NAN
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint16_t, uint32_t
from libc.string cimport memset

from stirbar.rt.chop cimport LED_EDGES, LedEdge, LedTrack, led_track_phase
from stirbar.rt.clock cimport Clock
from stirbar.rt.converter_clock cimport ConverterClock
from stirbar.rt.estimators cimport Estimators, estimators_apply, estimators_take
from stirbar.rt.gain cimport (
    GAIN_FOREIGN, GAIN_FRESH, GAIN_IN_FORCE, Gain, gain_admit, gain_conversion, gain_multiple, gain_volts_per_code)
from stirbar.rt.hal cimport PACE_PILOT, AdcPlan, Conversion, Hal
from stirbar.rt.leds cimport Leds
from stirbar.rt.light_path cimport LightFit, LightPath, LightSearch, light_path_add
from stirbar.rt.pilot cimport Pilot, pilot_forget
from stirbar.rt.ports cimport Port, port_event, port_reading, port_trace, trace_float, trace_int
from stirbar.rt.sleep_policy cimport SleepPolicy
from stirbar.rt.types cimport (
    EVENT_SATURATED, MAX_CHANNELS, PART_CLEAR, PART_DONE, PART_WORD, PHASE_EDGE, RECORD_VERSION,
    STREAM_OD1, TRACE_CLOCK, TRACE_CONVERSION, TRACE_CURVE, TRACE_GAIN, TRACE_PERIOD, Reading, TraceItem)

cdef enum:
    CLOCK_BLOCK = 86          # conversions for which one clock model is in force
    LED_GUARD_NS = 30000      # uncertainty of a conversion's limits
    SILENCE_NS = 100000000    # without a conversion for so long a channel is lost
    RETRY_NS = 1000000000     # a lost device is asked again this often
    LIGHT_RETRY_NS = 20000000  # a change of the light that was refused is tried again after so long

# What has a clock of its own and waits for a gap between conversions.
cdef enum:
    SLOW_LEDS = 0             # an LED channel is to change: in the first gap of a chop period
    SLOW_TEMPERATURE = 1
    SLOW_RAIL = 2             # to be begun
    SLOW_RAIL_READ = 3        # was begun
    SLOW_TEMPERATURE_CHECK = 4
    SLOW_LED_CHECK = 5
    SLOW_DEVICES = 6

# Part of a calibration, made by the host before it sends COMMAND_CURVE and untouched until that is answered.
cdef struct Staged:
    const int64_t* word
    int32_t first            # number of word[0] in its slot
    int32_t count
    int32_t slot
    int32_t last             # it completes the calibration

cdef struct SamplingConfig:
    int32_t angle[MAX_CHANNELS]         # -1 not connected, 0 reference
    double full_scale_v[MAX_CHANNELS]   # 0: follows the light (gain.pxd)
    double rate_hz                      # a free-running converter makes so many conversions a second at the most
    double mains_hz                     # 0: unknown
    double rpm                          # the stirrer's speed before it turns, for the choice of k; 0: none
    double intensity_percent
    double led_duty_percent             # share of time that the LED is lit; 50: chopped all the time, less: in bursts
    double window_s                     # of a reading: a burst holds one
    int half_cycle                      # 0: chosen
    int half_cycle_low                  # from which it is chosen
    int half_cycle_high

cdef struct Channel:
    AdcPlan plan
    ConverterClock clock                # PACE_READY
    Pilot pilot                         # PACE_PILOT
    Gain gain
    LightPath path                      # how its light follows the LED
    double period_ns                    # from one conversion to the next, of the block in force
    double aperture_ns                  # how long a conversion integrates
    uint32_t last_index                 # counts on over restarts of the converter
    uint32_t index_offset               # from the converter's own count to ours
    int64_t last_ready_ns
    int64_t last_end_ns                 # of its aperture
    uint32_t next_block                 # index at which the clock model is renewed
    uint32_t looks                      # PACE_SMOOTHED: grid points that have passed
    uint32_t missed                     # conversions that were overwritten unread, or not begun
    uint32_t conversions
    int64_t heard_ns                    # when the last conversion was fetched
    int64_t expected_ns                 # asking before would only keep the bus busy
    int64_t due_ns                      # when it is to be asked at the latest
    int slot                            # PACE_HOST: its place in a turn
    int begun                           # PACE_HOST: its conversion is under way, or (HOST_LENT) that of the rail
    uint32_t started                    # last_index is valid
    uint32_t modelled                   # the estimators have a clock model
    uint32_t lost
    uint32_t clipping                   # reported as saturated
    int ranged                          # gain is in use
    int acts                            # GAIN_*: what is to be done before the tick ends

# The turns of converters whose conversions we begin: in each, every channel has one.
cdef struct HostGrid:
    int64_t origin_ns                   # begin of turn 0
    double turn_ns
    int64_t slot_ns
    int64_t next_ns                     # when the next step is due; INT64_MAX: no such converter
    int64_t answer_ns                   # from the begin of a conversion until it is surely there
    uint32_t turn
    int slots                           # of a turn
    int slot                            # that is next, or under way
    int reading                         # conversions are under way
    int asked                           # how often in vain

cdef struct Sampler:
    Estimators estimators
    SamplingConfig config
    Channel channel[MAX_CHANNELS]
    HostGrid grid
    LedTrack led
    Leds leds                           # the channels beside the OD LED's
    LightSearch search                  # the fit of the light path that is under way
    LightFit light_path                 # in force
    Port port
    const Clock* clock
    const Hal* hal
    int64_t poll_ns                     # between two looks at a converter whose clock is not known yet
    int64_t least_sleep_ns
    int active[MAX_CHANNELS]            # the channels that are connected
    int active_count
    SleepPolicy* conversions            # of sampling_tick, to be woken by a command
    SleepPolicy* temperature
    const uint32_t* stirring_off        # written by the actuator thread
    const uint32_t* turn_us             # as well
    const uint32_t* dosing              # as well
    const uint32_t* unlocked_mhz        # as well
    int (*simulate)(void* context, int parameter, double value) noexcept nogil  # NULL on hardware
    void* simulated
    Staged staged
    double rate_chosen_hz               # for which k was chosen
    double mains_chosen_hz
    double rpm_chosen
    uint32_t unlocked_chosen_mhz
    double rpm                          # of the stirrer, as it turned when that last held still; 0: not yet
    int64_t settle_ns                   # of the light path, for which k was chosen
    uint32_t toggled_index              # the master's conversion at the last change of light
    int master                          # its conversions pace the light; -1: nothing measures
    int half_cycle                      # k
    int discard                         # d: conversions of a half-cycle that are not used
    int sampling
    int light_first                     # PACE_READY: the bus has room to change the light before anything is read
    double edge_from_ns                 # where the light changes, from the end of the master's last conversion on
    double edge_to_ns                   # where we time the conversions: before the begin of its next
    int held                            # the light must stay off
    int acting                          # a channel has acts
    uint32_t seeking                    # by channel: its clock is sought beside the master's
    int measuring                       # the light path, in the conversions that come
    int path_rounds                     # short measurements, at the start of the run, that are done
    int64_t path_from_ns                # when that began, or is to begin
    int path_edges                      # of the light, since
    int64_t unknown_from_ns             # the LED's driver refused: nobody knows its light from here
    int64_t unknown_to_ns               # until here; INT64_MAX: still so
    int64_t light_retry_ns              # while that is so: nothing is tried before
    int light_lost                      # it is so for long
    int burst                           # lit half-cycles in a burst; 0: chopped all the time
    int burst_left                      # half-cycles until burst or pause ends
    int paused
    int64_t lit_from_ns
    double lit_ns                       # at full intensity, the rest below a second
    uint32_t led_seconds                # the same, whole seconds; read by the host
    uint32_t chop_period_ns             # read by the actuator thread; 0: not chopped
    int64_t leds_until_ns               # a change of them that comes later waits for the next chop period
    int64_t leds_retry_ns               # their driver refused a change: not before
    uint32_t leds_lost                  # bits: that was told
    uint32_t slow_due                   # bits: what waits for a gap on the bus
    int64_t slow_from_ns[SLOW_DEVICES]  # since when
    int64_t slow_bus_ns[SLOW_DEVICES]   # how long it takes, as measured
    uint32_t slow_seconds               # ticks of its clock
    int rail_lender                     # PACE_HOST: channel that leaves a conversion out for the rail; -1: none
    uint32_t slow_forced                # taken without a gap
    double rail_v                       # NAN: not known
    int rail_absent
    uint32_t board_word                 # the heater board's temperature, read by the actuator thread (heating.pxd)
    int temperature_on
    int temperature_lost
    uint32_t bus_errors
    uint32_t stirring_off_told
    uint32_t dosing_told
    int32_t references_told[MAX_CHANNELS]  # stretches of the reference that the host knows of
    uint32_t turn_us_told


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


cdef inline int64_t host_begin_ns(const HostGrid* grid) noexcept nogil:
    """When the conversions of the slot in force begin."""
    return grid.origin_ns + <int64_t>(grid.turn * grid.turn_ns) + grid.slot * grid.slot_ns


cdef inline double sampler_rate_hz(const Sampler* s, int index) noexcept nogil:
    return 1e9 / s.channel[index].period_ns


cdef inline uint32_t sampler_resumed_index(const Channel* channel, int64_t ready_ns) noexcept nogil:
    """Our number of the first conversion after a start: the pause counts as conversions that were not made, so that to
    the estimators it is a gap of its true length."""
    cdef double paused
    if channel.conversions == 0:
        return 0
    paused = <double>(ready_ns - channel.last_ready_ns) * 1e-9 * channel.plan.rate_hz
    return channel.last_index + 1 + <uint32_t>(paused if paused < 1e9 else 1e9)


cdef inline uint32_t sampler_number(Channel* channel, uint32_t index, int64_t ready_ns, int64_t now_ns) noexcept nogil:
    """Our number of a conversion that the pace counts as `index`; what was missed before it is counted."""
    cdef uint32_t number
    if not channel.started:
        channel.index_offset = sampler_resumed_index(channel, ready_ns) - index
    number = index + channel.index_offset
    if channel.started and <int32_t>(number - channel.last_index) > 1:
        channel.missed += number - channel.last_index - 1
    channel.last_index = number
    channel.last_ready_ns = ready_ns
    channel.started = 1
    channel.conversions += 1
    channel.heard_ns = now_ns
    return number


cdef inline bint sampler_wants_model(const Channel* channel, uint32_t number) noexcept nogil:
    """Whether the clock model is to be renewed before this conversion."""
    return not channel.modelled or <int32_t>(number - channel.next_block) >= 0


cdef inline void sampler_model(
    Sampler* s, int index, uint32_t number, int64_t end_ns, double period_ns
) noexcept nogil:
    """Freeze the clock for the next block of conversions (`number` ended at `end_ns`), and tell the estimators."""
    cdef Channel* channel = &s.channel[index]
    cdef TraceItem item
    channel.next_block = number + CLOCK_BLOCK
    channel.modelled = 1
    channel.period_ns = period_ns
    trace_int(&item, TRACE_CLOCK, index, 0, 0, number, end_ns)
    sampler_feed(s, &item)
    sampler_feed_float(s, TRACE_PERIOD, index, 0, period_ns)


cdef inline int sampler_admit(Sampler* s, int index, int64_t begin_ns, int64_t end_ns) noexcept nogil:
    """At which range a conversion was made (gain_admit); the estimators are told of another one."""
    cdef Channel* channel = &s.channel[index]
    cdef int before = channel.gain.in_force
    cdef int admitted = gain_admit(&channel.gain, begin_ns, end_ns)
    if admitted == GAIN_FRESH:
        sampler_feed_float(s, TRACE_GAIN, index, 0, gain_volts_per_code(&channel.gain))
    if channel.gain.in_force != before and channel.plan.pace == PACE_PILOT:
        pilot_forget(&channel.pilot)
    return admitted


cdef inline bint sampler_light_unknown(const Sampler* s) noexcept nogil:
    """Whether the LED's driver has refused the last change."""
    return s.unknown_to_ns == INT64_MAX


cdef inline bint sampler_may_light(const Sampler* s, int64_t now_ns) noexcept nogil:
    """Whether it is time to try a change of the light."""
    return not sampler_light_unknown(s) or now_ns >= s.light_retry_ns


cdef inline void sampler_conversion(
    Sampler* s, int index, uint32_t number, int64_t begin_ns, int64_t end_ns, const Conversion* conversion,
    int64_t now_ns
) noexcept nogil:
    """Say under which light a conversion was made, and feed it to the estimators.

    [begin, end] is its aperture; `number` is of sampler_number, in a block of sampler_model.
    """
    cdef Channel* channel = &s.channel[index]
    cdef const LedEdge* edge
    cdef TraceItem item
    cdef int64_t spent_ns
    cdef bint unknown = begin_ns < s.unknown_to_ns and end_ns > s.unknown_from_ns
    cdef int phase = PHASE_EDGE if unknown else led_track_phase(&s.led, begin_ns, end_ns)
    cdef int admitted = sampler_admit(s, index, begin_ns, end_ns) if channel.ranged else GAIN_IN_FORCE
    channel.last_end_ns = end_ns
    if s.measuring and not unknown and s.led.count and admitted != GAIN_FOREIGN:
        edge = &s.led.edge[s.led.cursor - 1 if s.led.cursor else LED_EDGES - 1]
        # the light changes with the last bit of the write, in the middle of what the call took beyond the bus time
        spent_ns = edge.to_ns - edge.from_ns - channel.plan.light_ns
        light_path_add(&channel.path, begin_ns - edge.to_ns + (spent_ns >> 1 if spent_ns > 0 else 0),
                       conversion.code * gain_multiple(&channel.gain), edge.on)
    if not s.paused:
        trace_int(&item, TRACE_CONVERSION, index, PHASE_EDGE if admitted == GAIN_FOREIGN else phase, conversion.clipped,
                  number, conversion.code)
        sampler_feed(s, &item)
    if channel.ranged:
        channel.acts |= gain_conversion(&channel.gain, conversion.code, conversion.clipped, phase)
        s.acting |= channel.acts
    if conversion.clipped and not channel.clipping:
        port_event(&s.port, now_ns, EVENT_SATURATED, index + 1, STREAM_OD1 + index, 0)
    channel.clipping = conversion.clipped


cdef inline void sampler_say_none(Sampler* s, int stream, int angle, uint32_t flag, int64_t now_ns) noexcept nogil:
    """A reading that says that there is none, and why."""
    cdef Reading reading
    memset(&reading, 0, sizeof(Reading))
    reading.monotonic_ns = now_ns
    reading.value = NAN
    reading.se_instrument = reading.se_culture = reading.window_s = reading.noise_bandwidth_hz = NAN
    reading.signal_v = reading.reference_v = reading.ambient_v = NAN
    reading.flags = flag
    reading.stream = <uint16_t>stream
    reading.angle = <uint16_t>angle
    reading.version = RECORD_VERSION
    port_reading(&s.port, &reading)
