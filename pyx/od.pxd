# Why compiled: the whole way from a conversion to a reading runs at the converter's pace.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns. The state is flat: copy it with
#   memcpy, go on from the copy, and every later reading is the same bit by bit.
# Units: codes of 16 bits, volts, nanoseconds, seconds, hertz; values in AU (docs/optical-density.md).
#
# The chain sees what is recorded and nothing else: od_clock, od_gain, od_push, od_blank, od_led. Channels are 0..3.

from libc.errno cimport EINVAL
from libc.math cimport INFINITY, M_PI, NAN, ceil, cos, fabs, floor, isfinite, sin, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from stirbar.rt.chop cimport chop_gain
from stirbar.rt.culture_noise cimport (
    CULTURE_BLOCKS, CultureNoise, culture_noise_clear, culture_noise_push, culture_noise_se,
)
from stirbar.rt.mains cimport (
    HARMONICS, MainsChannel, MainsLine, mains_channel_init, mains_end_block, mains_line_init, mains_resync, mains_run,
    solve_cholesky,
)
from stirbar.rt.robust cimport (
    TRIM_A, TRIM_KAPPA, TUKEY_C, CarriedScale, carried_scale_clear, carried_scale_push, mad_scale,
    median_in_place, tukey_weight, winsorised_scale,
)
from stirbar.rt.types cimport (
    FLAG_AMBIENT_STEP, FLAG_BLANKED, FLAG_BUBBLES, FLAG_DARK, FLAG_GAP, FLAG_MAINS_UNLOCKED, FLAG_SATURATED,
    FLAG_STALE_REFERENCE, FLAG_UNCALIBRATED, FLAG_UNCHOPPED, FLAG_WARMING, MAX_CHANNELS, PHASE_EDGE, PHASE_OFF,
    PHASE_ON, RECORD_VERSION, Reading, STREAM_OD1,
)

cdef enum:
    OD_RING = 480            # chop periods that are kept: 5 s at 96 Hz
    OD_BUFFER = 64           # conversions of a half-cycle; more without a change of the light: it is not chopped
    OD_UNCHOPPED = 8         # conversions that make one entry where the light is not chopped
    OD_ITERATIONS = 8
    OD_RESTART = 256         # an index that falls back by more: the converter was started anew
    OD_FEWEST = 4            # chop periods that make the first reading of a run

cdef enum:                   # OdConfig.role
    OD_UNUSED = 0
    OD_SIGNAL = 1
    OD_REFERENCE = 2

cdef enum:                   # OdConfig.normalization
    OD_UNITY = 0             # by the reference relative to its first settled value of the run
    OD_CLASSIC = 1           # by the reference

cdef enum:                   # OdEntry.flags
    ENTRY_CLIPPED = 1
    ENTRY_GAP = 2
    ENTRY_STEP = 4           # a step of ambient light: not used
    ENTRY_UNCHOPPED = 8
    ENTRY_DARK = 16

cdef extern from *:
    """
    #define STIRBAR_OD_STALL_NS 500000000     /* a channel that is silent for longer is not waited for */
    #define STIRBAR_OD_CHOP_LIMIT_NS 2.5e9    /* one level of the light for longer: it is not chopped */
    #define STIRBAR_OD_STEP_SIGMAS 8.0        /* off half-cycles that differ by more: a step of ambient light */
    #define STIRBAR_OD_LEAST_NOISE 0.35       /* codes: below, neighbours' differences are 0 or 1 */
    #define STIRBAR_OD_LEAST_COUNT 0.25       /* weight of a half-cycle whose conversions disagree altogether */
    #define STIRBAR_OD_FIRST_READING_S 0.2
    #define STIRBAR_OD_WARM_SLOPE 1.67e-6     /* of the reference, per second: 0.01 % a minute */
    #define STIRBAR_OD_WARM_S 60.0            /* LED is taken as warm after that where there is no reference */
    #define STIRBAR_OD_TUKEY_LOSS 1.05        /* variance of the biweight against the mean, over the weights' own */
    """
    const int64_t OD_STALL_NS "STIRBAR_OD_STALL_NS"
    const double OD_CHOP_LIMIT_NS "STIRBAR_OD_CHOP_LIMIT_NS"
    const double OD_STEP_SIGMAS "STIRBAR_OD_STEP_SIGMAS"
    const double OD_LEAST_NOISE "STIRBAR_OD_LEAST_NOISE"
    const double OD_LEAST_COUNT "STIRBAR_OD_LEAST_COUNT"
    const double OD_FIRST_READING_S "STIRBAR_OD_FIRST_READING_S"
    const double OD_WARM_SLOPE "STIRBAR_OD_WARM_SLOPE"
    const double OD_WARM_S "STIRBAR_OD_WARM_S"
    const double OD_TUKEY_LOSS "STIRBAR_OD_TUKEY_LOSS"

cdef struct OdConfig:
    double window_s                  # 0.1..5
    double readings_per_second       # 0.01..50
    double mains_hz                  # 50, 60, or 0: find out
    int32_t normalization            # OD_UNITY, OD_CLASSIC
    uint8_t role[MAX_CHANNELS]
    uint16_t angle[MAX_CHANNELS]

# One chop period: an on half-cycle against its two off neighbours.
cdef struct OdEntry:
    double difference_v
    uint32_t tick                    # middle of the on half-cycle, in 128 ns
    float on_inverse                 # 1 / conversions in it, by weight
    float ambient_v
    uint8_t off_count                # conversions in the off half-cycle after it
    uint8_t used
    uint8_t rejected
    uint8_t flags

# The light of one half-cycle.
cdef struct OdHalf:
    double mean_v
    double count                     # by weight
    int64_t middle_ns
    int32_t used
    int32_t rejected
    uint32_t first_index
    uint8_t flags
    uint8_t valid

cdef struct OdChannel:
    OdEntry entry[OD_RING]
    MainsChannel mains
    CarriedScale scale               # of the differences, about the window's value
    CarriedScale on_scale            # of single conversions, from neighbours
    CarriedScale off_scale
    CultureNoise culture
    double sample[OD_BUFFER]         # of the half-cycle that is open
    OdHalf off                       # the last off half-cycle
    OdHalf on                        # the on half-cycle after it
    double volts_per_code
    double period_ns
    double on_square, off_square     # of neighbours' differences, this second
    double step_square               # mean square of the change from one off half-cycle to the next
    double enough_inverse            # 1 / conversions by weight that give an on half-cycle its full weight
    double level_v                   # the last window's value
    double blank
    int64_t t0_ns
    int64_t closed_ns                # end of the newest entry
    double culture_total             # of the readings of the block that is open
    int64_t culture_block            # its number
    uint32_t index0
    uint32_t next_index
    uint32_t first_index
    uint32_t due_index               # at the earliest, the conversion that ends behind the grid's time
    uint32_t missing                 # conversions that never came
    uint32_t repeated                # conversions that came twice, or late: ignored
    int32_t entries
    int32_t cursor
    int32_t count                    # of sample
    int32_t most_count
    int32_t phase
    int32_t on_pairs, off_pairs
    int32_t cycle                    # conversions in the last whole chop period
    int32_t half_cycle               # k, once two chop periods agree
    int32_t unchopped
    int32_t clocked
    int32_t started
    int32_t leveled
    int32_t culture_count
    uint8_t open_flags

cdef struct OdState:
    OdConfig config
    MainsLine line
    OdChannel channel[MAX_CHANNELS]
    double null_weight[OD_RING]      # of the window's entries, sum 1
    Reading out[MAX_CHANNELS]
    double spacing_ns                # from one chop period to the next
    double led_percent
    double reference_first_v         # R0; 0: not yet
    double reference_v
    double reference_se
    int64_t reference_ns
    int64_t interval_ns
    int64_t grid_ns                  # next reading
    int64_t scale_ns                 # next update of the scales
    int64_t warm_from_ns
    uint32_t grid_misses             # readings that were due while nothing came
    uint32_t untaken                 # readings that were overwritten before od_take
    double null_hz                   # what null_weight is for
    double null_spacing_ns
    double null_prior[HARMONICS]
    int32_t null_count
    int32_t spaced
    int32_t pending
    int32_t taken
    int32_t warming
    int32_t reference                # channel, -1: none

# What a window of one channel says.
cdef struct OdWindow:
    double value_v
    double se_v
    double ambient_v
    double bandwidth_hz
    double window_s
    double rejected_share            # of the differences, by weight
    uint32_t used
    uint32_t rejected
    uint32_t flags
    int32_t entries
    int32_t full                     # as long as was asked for
    int32_t restarted                # the level moved by more than the window could reject


cdef inline double od_culture_block_s(const OdConfig* config) noexcept nogil:
    """From one mean of the culture's noise to the next: a second, or as long as windows and readings need."""
    cdef double block_s = ceil(config.window_s - 1e-9)
    cdef double interval_s = ceil(1.0 / config.readings_per_second - 1e-9)
    return interval_s if interval_s > block_s else block_s


cdef inline int od_init(OdState* s, const OdConfig* config) noexcept nogil:
    """Start a run. Returns 0, or -EINVAL when a value is out of its bounds or no channel is a signal."""
    cdef int i
    cdef int signals = 0
    memset(s, 0, sizeof(OdState))
    s.config = config[0]
    if not 0.1 <= config.window_s <= 5.0 or not 0.01 <= config.readings_per_second <= 50.0:
        return -EINVAL
    if config.mains_hz != 0.0 and not 45.0 <= config.mains_hz <= 65.0:
        return -EINVAL
    s.reference = -1
    mains_line_init(&s.line, config.mains_hz)
    for i in range(MAX_CHANNELS):
        s.channel[i].blank = NAN
        s.channel[i].phase = PHASE_EDGE
        mains_channel_init(&s.channel[i].mains, &s.line)
        culture_noise_clear(
            &s.channel[i].culture, od_culture_block_s(config), config.window_s if config.window_s > 1.0 else 1.0)
        s.channel[i].culture_block = -1
        if config.role[i] == OD_SIGNAL:
            signals += 1
        elif config.role[i] == OD_REFERENCE and s.reference < 0:
            s.reference = i
    s.interval_ns = <int64_t>(1e9 / config.readings_per_second + 0.5)
    s.led_percent = NAN
    s.warming = 1
    return 0 if signals else -EINVAL


cdef inline int64_t od_end_ns(const OdChannel* ch, uint32_t index) noexcept nogil:
    return ch.t0_ns + <int64_t>(<int32_t>(index - ch.index0) * ch.period_ns)


cdef inline int64_t od_newest_ns(const OdChannel* ch) noexcept nogil:
    """End of the newest conversion."""
    return od_end_ns(ch, ch.next_index - 1)


cdef inline int64_t od_next_middle_ns(const OdChannel* ch) noexcept nogil:
    return od_end_ns(ch, ch.next_index) - <int64_t>(0.5 * ch.period_ns)


cdef inline void od_schedule(const OdState* s, OdChannel* ch) noexcept nogil:
    """When this channel reaches the grid's time, as the number of a conversion (never too late)."""
    cdef double ahead = <double>(s.grid_ns - ch.t0_ns) / ch.period_ns
    ch.due_index = ch.index0 + <uint32_t>(<int32_t>ahead) if 0.0 < ahead < 1e9 else ch.next_index


cdef inline void od_limit_count(OdChannel* ch) noexcept nogil:
    """How many conversions of one level of the light are closed without waiting for it to change."""
    cdef double most = (1e9 if ch.unchopped else OD_CHOP_LIMIT_NS) / ch.period_ns + 1.0
    cdef int32_t limit = OD_UNCHOPPED if ch.unchopped else OD_BUFFER
    ch.most_count = <int32_t>most if most < limit else limit


cdef inline void od_clock(OdState* s, int channel, uint32_t index0, int64_t t0_ns, double period_ns) noexcept nogil:
    """Clock model for the conversions from here on: conversion `index0` ended at `t0_ns`, one each `period_ns`."""
    cdef OdChannel* ch = &s.channel[channel]
    cdef int64_t middle_ns
    ch.index0 = index0
    ch.t0_ns = t0_ns
    ch.period_ns = period_ns
    od_limit_count(ch)
    if not ch.started:
        ch.next_index = index0
    middle_ns = od_next_middle_ns(ch)
    if not ch.clocked:
        ch.clocked = 1
        ch.mains.reference_ns = middle_ns
        ch.mains.block_start_ns = middle_ns
    mains_resync(&ch.mains, ch.next_index, middle_ns, period_ns)
    od_schedule(s, ch)


cdef inline void od_drop_half(OdChannel* ch) noexcept nogil:
    """The half-cycle that is open cannot be used."""
    ch.count = 0
    ch.off.valid = 0
    ch.on.valid = 0


cdef inline void od_gain(OdState* s, int channel, double volts_per_code) noexcept nogil:
    """Volts per code for the conversions from here on."""
    s.channel[channel].volts_per_code = volts_per_code
    od_drop_half(&s.channel[channel])


cdef inline void od_blank(OdState* s, int channel, double value) noexcept nogil:
    """Subtract `value` (unit of the reading) from here on; NaN subtracts nothing."""
    s.channel[channel].blank = value


cdef inline void od_clear_culture(OdChannel* ch) noexcept nogil:
    culture_noise_clear(&ch.culture, ch.culture.block_s, ch.culture.mean_s)
    ch.culture_total = 0.0
    ch.culture_count = 0


cdef inline void od_forget_past(OdChannel* ch) noexcept nogil:
    """Entries up to now do not count any more."""
    ch.entries = 0
    ch.leveled = 0
    od_clear_culture(ch)
    od_drop_half(ch)


cdef inline void od_led(OdState* s, double intensity_percent) noexcept nogil:
    """The LED's intensity while on, from here on. A change starts the windows and the warming-up anew."""
    cdef int i
    if intensity_percent == s.led_percent:
        return
    if isfinite(s.led_percent):
        for i in range(MAX_CHANNELS):
            od_forget_past(&s.channel[i])
        s.warming = 1
        s.warm_from_ns = 0
    s.led_percent = intensity_percent


# --- half-cycles ------------------------------------------------------------------------------------------------------

cdef inline double od_scale_now(const CarriedScale* carried, double square, int32_t pairs) noexcept nogil:
    """The carried scale; in the first second, what there is of it; 0 before."""
    if carried.count:
        return carried.value
    return sqrt(square / pairs) if pairs >= 16 else 0.0


cdef inline void od_reduce(OdChannel* ch, OdHalf* half) noexcept nogil:
    """Mean of the open half-cycle; with the LED on, two Tukey steps from its median where there are three or more."""
    cdef double work[OD_BUFFER]
    cdef int n = ch.count
    cdef int i, _step
    cdef double total = 0.0
    cdef double weights = 0.0
    cdef int pairs = 0
    cdef double scale, centre, inverse_cut, w, difference, cut
    cdef double square = 0.0
    cdef bint on = ch.phase == PHASE_ON
    scale = ch.on_scale.value if on else ch.off_scale.value
    if 0.0 < scale < OD_LEAST_NOISE * ch.volts_per_code:
        scale = OD_LEAST_NOISE * ch.volts_per_code
    cut = 2.0 * TRIM_A * TRIM_A * scale * scale if scale > 0.0 else INFINITY
    for i in range(1, n):
        difference = ch.sample[i] - ch.sample[i - 1]
        difference *= difference
        if difference < cut:
            square += difference
            pairs += 1
    square *= 0.5 / TRIM_KAPPA if scale > 0.0 else 0.5
    half.used = n
    half.rejected = 0
    if on:
        ch.on_square += square
        ch.on_pairs += pairs
    else:
        ch.off_square += square
        ch.off_pairs += pairs
    if on and n >= 3 and scale > 0.0:
        for i in range(n):
            work[i] = ch.sample[i]
        centre = median_in_place(work, n)
        inverse_cut = 1.0 / (TUKEY_C * scale)
        for _step in range(2):
            total = 0.0
            weights = 0.0
            half.rejected = 0
            for i in range(n):
                w = tukey_weight(ch.sample[i] - centre, inverse_cut)
                weights += w
                total += w * (ch.sample[i] - centre)
                if w == 0.0:
                    half.rejected += 1
            if weights > 0.0:
                centre += total / weights
        half.mean_v = centre
        half.count = weights if weights > OD_LEAST_COUNT else OD_LEAST_COUNT
        return
    for i in range(n):
        total += ch.sample[i]
    half.mean_v = total / n
    half.count = n


cdef inline void od_append(OdState* s, OdChannel* ch, const OdEntry* entry, int64_t middle_ns) noexcept nogil:
    """Keep an entry, and the spacing of the first signal channel's."""
    cdef OdEntry* before
    cdef double spacing
    cdef int i
    ch.enough_inverse += (entry.on_inverse / 0.75 - ch.enough_inverse) * (1.0 / 16 if ch.enough_inverse > 0.0 else 1.0)
    ch.entry[ch.cursor] = entry[0]
    ch.entry[ch.cursor].tick = <uint32_t>(middle_ns >> 7)
    if ch.entries and not entry.flags & ENTRY_GAP:
        i = 0
        while s.config.role[i] != OD_SIGNAL:
            i += 1
        if ch == &s.channel[i]:
            before = &ch.entry[ch.cursor - 1 if ch.cursor else OD_RING - 1]
            spacing = 128.0 * <double><uint32_t>(ch.entry[ch.cursor].tick - before.tick)
            if not s.spaced or fabs(spacing - s.spacing_ns) > 0.3 * s.spacing_ns:
                s.spaced -= 1
                if s.spaced < 0:
                    s.spacing_ns = spacing
                    s.spaced = 1
            else:
                s.spaced = 4
                s.spacing_ns += (spacing - s.spacing_ns) * (1.0 / 32)
    ch.cursor = ch.cursor + 1 if ch.cursor + 1 < OD_RING else 0
    if ch.entries < OD_RING:
        ch.entries += 1


cdef inline bint od_ambient_step(OdChannel* ch, const OdHalf* before, const OdHalf* after) noexcept nogil:
    """Whether ambient light stepped between two off half-cycles; keeps the scale of their changes."""
    cdef double change = after.mean_v - before.mean_v
    cdef double least = ch.off_scale.value
    least = least * least * (1.0 / before.count + 1.0 / after.count)
    change *= change
    if ch.step_square < least:
        ch.step_square = least
    if ch.off_scale.count == 0:
        ch.step_square += (change - ch.step_square) * (1.0 / 16)
        return False
    ch.step_square += ((change if change < 9.0 * ch.step_square else 9.0 * ch.step_square) - ch.step_square) / 64
    return change > OD_STEP_SIGMAS * OD_STEP_SIGMAS * ch.step_square


cdef inline void od_compare(OdState* s, OdChannel* ch, const OdHalf* after) noexcept nogil:
    """An on half-cycle between two off ones: difference from the line through them (IS-19)."""
    cdef OdEntry entry
    cdef double share
    cdef int64_t span_ns = after.middle_ns - ch.off.middle_ns
    if span_ns <= 0 or span_ns > <int64_t>(6.0 * (after.used + ch.on.used + ch.off.used + 6) * ch.period_ns):
        return
    share = <double>(ch.on.middle_ns - ch.off.middle_ns) / <double>span_ns
    entry.ambient_v = <float>(ch.off.mean_v + share * (after.mean_v - ch.off.mean_v))
    entry.difference_v = ch.on.mean_v - (ch.off.mean_v + share * (after.mean_v - ch.off.mean_v))
    entry.on_inverse = <float>(1.0 / ch.on.count)
    entry.off_count = <uint8_t>after.used
    entry.used = <uint8_t>ch.on.used
    entry.rejected = <uint8_t>ch.on.rejected
    entry.flags = ch.off.flags | ch.on.flags | after.flags
    if od_ambient_step(ch, &ch.off, after):
        entry.flags |= ENTRY_STEP
        ch.mains.spoiled = 1
    od_append(s, ch, &entry, ch.on.middle_ns)
    ch.closed_ns = od_newest_ns(ch)


cdef inline void od_close_unchopped(OdState* s, OdChannel* ch, const OdHalf* half) noexcept nogil:
    """Light that is always on, or always off: the level itself is the entry."""
    cdef OdEntry entry
    entry.difference_v = half.mean_v
    entry.ambient_v = <float>half.mean_v if ch.phase == PHASE_OFF else <float>NAN
    entry.on_inverse = <float>(1.0 / half.count)
    entry.off_count = 0
    entry.used = <uint8_t>half.used
    entry.rejected = <uint8_t>half.rejected
    entry.flags = half.flags | (ENTRY_DARK if ch.phase == PHASE_OFF else ENTRY_UNCHOPPED)
    if not ch.unchopped:
        od_forget_past(ch)
        ch.unchopped = 1
        od_limit_count(ch)
        ch.half_cycle = 0
        ch.cycle = 0
        s.spaced = 0
    od_append(s, ch, &entry, half.middle_ns)
    ch.closed_ns = od_newest_ns(ch)


cdef inline void od_close(OdState* s, OdChannel* ch, bint changed) noexcept nogil:
    """The open half-cycle is over: the light `changed`, or it was on or off for too long."""
    cdef OdHalf half
    cdef int32_t cycle
    cdef bint learn
    memset(&half, 0, sizeof(OdHalf))
    half.first_index = ch.first_index
    half.flags = ch.open_flags
    half.valid = 1
    half.middle_ns = (od_end_ns(ch, ch.first_index) + od_end_ns(ch, ch.next_index - 1) - <int64_t>ch.period_ns) >> 1
    learn = (ch.phase == PHASE_OFF or ch.unchopped) and not ch.open_flags & ENTRY_GAP
    mains_run(&ch.mains, ch.sample, ch.count, ch.first_index, learn)
    od_reduce(ch, &half)
    ch.count = 0
    ch.open_flags = 0
    mains_end_block(&ch.mains, &s.line, ch.next_index, od_next_middle_ns(ch), ch.period_ns)
    if not changed:
        od_close_unchopped(s, ch, &half)
        return
    if ch.phase == PHASE_OFF:
        if ch.off.valid and ch.on.valid:
            od_compare(s, ch, &half)
        ch.off = half
        ch.on.valid = 0
        return
    cycle = <int32_t>(half.first_index - ch.on.first_index)
    if cycle == ch.cycle:
        ch.half_cycle = (cycle + 1) >> 1
    ch.cycle = cycle
    ch.on = half


# --- windows ----------------------------------------------------------------------------------------------------------

cdef inline int od_window_entries(const OdState* s) noexcept nogil:
    """Chop periods in a window, as many as fit."""
    cdef double n = s.config.window_s * 1e9 / s.spacing_ns + 0.5
    if n > OD_RING:
        return OD_RING
    return <int>n if n > 1.0 else 1


cdef inline double od_dirichlet(double phase, int count) noexcept nogil:
    """Sum of cos(phase x) over x = -(count-1)/2 .. (count-1)/2."""
    cdef double half = sin(0.5 * phase)
    if fabs(half) < 1e-9:
        return count * cos(0.5 * count * phase) / cos(0.5 * phase)
    return sin(0.5 * count * phase) / half


cdef inline double od_hum_to_noise(const OdState* s, int harmonic, bint near_zero) noexcept nogil:
    """Power of a harmonic in the differences against their variance, the worst of the channels.

    Near zero frequency the fit costs dear: there it is the power that subtraction may have left over, elsewhere all.
    """
    cdef const OdChannel* ch
    cdef double worst = 0.0
    cdef double power, gain
    cdef int i
    for i in range(MAX_CHANNELS):
        ch = &s.channel[i]
        if s.config.role[i] != OD_UNUSED and ch.scale.value > 0.0:
            gain = 1.0
            if ch.half_cycle > 1:
                gain = chop_gain((harmonic + 1) * s.line.frequency_hz, 1e9 / ch.period_ns, ch.half_cycle)
            power = ch.mains.left[harmonic] if near_zero else ch.mains.power[harmonic]
            power *= gain * gain / (ch.scale.value * ch.scale.value)
            worst = power if power > worst else worst
    return worst


cdef inline double od_null_prior(const OdState* s, int harmonic, int count) noexcept nogil:
    """How strong a harmonic may be among `count` entries: power against the variance of the differences.

    One whose alias lies within 1.5 / T of zero is fitted only as far as the tracker has seen it; the others at least as
    far as they could hide below the noise (three standard errors).
    """
    cdef double turns = (harmonic + 1) * s.line.frequency_hz * s.spacing_ns * 1e-9
    turns -= floor(turns + 0.5)
    if fabs(turns) * count < 1.5:
        return od_hum_to_noise(s, harmonic, True)
    return od_hum_to_noise(s, harmonic, False) + 9.0 / count


cdef inline bint od_nulls_hold(const OdState* s, int count) noexcept nogil:
    """Whether the weights still fit: aliases within 1/20 of a turn over the window, hum within 30 %."""
    cdef double drift, prior
    cdef int h
    if s.null_count != count:
        return False
    drift = fabs(s.line.frequency_hz / s.null_hz - 1.0) + fabs(s.spacing_ns / s.null_spacing_ns - 1.0)
    if HARMONICS * drift * s.line.frequency_hz * count * s.spacing_ns * 1e-9 > 0.05:
        return False
    for h in range(HARMONICS):
        prior = od_null_prior(s, h, count)
        if prior > 1.3 * s.null_prior[h] or 1.3 * prior < s.null_prior[h]:
            return False
    return True


cdef inline void od_design_nulls(OdState* s, int count) noexcept nogil:
    """Weights of `count` equally spaced entries: least variance of white noise plus mains of known power.

    The row of the least-squares fit (constant and harmonics, ridge 1 / prior power) that gives the constant; by
    symmetry only the cosines about the window's middle matter.
    """
    cdef double gram[HARMONICS * HARMONICS]
    cdef double beta[HARMONICS]
    cdef double phase[HARMONICS]
    cdef double c[HARMONICS]
    cdef double sn[HARMONICS]
    cdef double tc[HARMONICS]
    cdef double ts[HARMONICS]
    cdef double cosine, sine
    cdef double turns, total
    cdef int h, i, m
    cdef int used = 0
    s.null_hz = s.line.frequency_hz
    s.null_spacing_ns = s.spacing_ns
    s.null_count = count
    for h in range(HARMONICS):
        s.null_prior[h] = od_null_prior(s, h, count)
        if s.null_prior[h] > 0.0:
            turns = (h + 1) * s.line.frequency_hz * s.spacing_ns * 1e-9
            phase[used] = 2.0 * M_PI * (turns - floor(turns + 0.5))
            gram[used * HARMONICS + used] = 1.0 / s.null_prior[h]
            used += 1
    for i in range(used):
        beta[i] = od_dirichlet(phase[i], count)
        for h in range(i + 1):
            total = 0.5 * (od_dirichlet(phase[i] - phase[h], count) + od_dirichlet(phase[i] + phase[h], count))
            if h == i:
                total += gram[i * HARMONICS + i]
            gram[i * HARMONICS + h] = total
        tc[i] = cos(phase[i])
        ts[i] = sin(phase[i])
        c[i] = cos(0.5 * (count - 1) * phase[i])
        sn[i] = -sin(0.5 * (count - 1) * phase[i])
    solve_cholesky(gram, beta, used, HARMONICS, 1e-9 * count)
    total = 0.0
    for m in range(count):
        s.null_weight[m] = 1.0
        for i in range(used):
            s.null_weight[m] -= beta[i] * c[i]
            cosine = c[i] * tc[i] - sn[i] * ts[i]
            sine = c[i] * ts[i] + sn[i] * tc[i]
            c[i] = cosine
            sn[i] = sine
        total += s.null_weight[m]
    for m in range(count):
        s.null_weight[m] /= total


cdef inline int od_available(const OdState* s, const OdChannel* ch, int wanted) noexcept nogil:
    """How many of the newest entries, at most `wanted`, lie within a window that ends with the newest one."""
    cdef int n = wanted if wanted < ch.entries else ch.entries
    cdef int slot
    cdef uint32_t newest, limit
    if n == 0:
        return 0
    newest = ch.entry[ch.cursor - 1 if ch.cursor else OD_RING - 1].tick
    limit = <uint32_t>((1.25e9 * s.config.window_s + 2.0 * s.spacing_ns) / 128.0)
    while n > 1:
        slot = ch.cursor - n
        if slot < 0:
            slot += OD_RING
        if <uint32_t>(newest - ch.entry[slot].tick) <= limit:
            break
        n -= 1
    return n


cdef inline double od_iterate(
    const double* difference, const double* weight, int count, double scale, double* level, double* final
) noexcept nogil:
    """Tukey's biweight by reweighting, from *level, until a step is below a twentieth of a standard error.

    `final` gets the weights of the last step. Returns their share of `weight`.
    """
    cdef double inverse_cut = 1.0 / (TUKEY_C * scale)
    cdef double enough = 0.05 * scale / sqrt(<double>count)
    cdef double whole = 0.0
    cdef double weights = 0.0
    cdef double total, w, residual, move
    cdef int i, _turn
    for i in range(count):
        whole += weight[i]
    for _turn in range(OD_ITERATIONS):
        total = 0.0
        weights = 0.0
        for i in range(count):
            residual = difference[i] - level[0]
            w = weight[i] * tukey_weight(residual, inverse_cut)
            final[i] = w
            total += w * residual
            weights += w
        if not weights > 0.05 * whole:
            break
        move = total / weights
        level[0] += move
        if fabs(move) < enough:
            break
    return weights / whole


cdef inline double od_median(const double* difference, const double* weight, int count, double* work) noexcept nogil:
    """Median of the entries that have a weight; leaves their copy in `work` (work[OD_RING] is how many)."""
    cdef int i
    cdef int n = 0
    for i in range(count):
        if weight[i] != 0.0:
            work[n] = difference[i]
            n += 1
    work[OD_RING] = n
    return median_in_place(work, n) if n else 0.0


cdef inline int od_gather(
    const OdState* s, const OdChannel* ch, int wanted, double* difference, double* weight, OdWindow* window
) noexcept nogil:
    """Copy the newest entries; weight by the nulls and by how many conversions they hold. Returns how many weigh."""
    cdef int n = od_available(s, ch, wanted)
    cdef int slot = ch.cursor - n
    cdef int weighing = 0
    cdef int i
    cdef const OdEntry* e
    cdef double ambient = 0.0
    cdef double w
    cdef uint8_t flags = 0
    cdef bint nulls = s.null_count == n
    if slot < 0:
        slot += OD_RING
    window.entries = n
    window.full = n == wanted
    for i in range(n):
        e = &ch.entry[slot]
        slot = slot + 1 if slot + 1 < OD_RING else 0
        difference[i] = e.difference_v
        ambient += e.ambient_v
        flags |= e.flags
        if e.flags & ENTRY_STEP:
            weight[i] = 0.0
            continue
        w = s.null_weight[i] if nulls else 1.0
        weight[i] = w if e.on_inverse <= ch.enough_inverse else w * ch.enough_inverse / e.on_inverse
        weighing += 1
    window.ambient_v = ambient / n if n else NAN
    if weighing == 0:
        return 0
    if flags & ENTRY_CLIPPED:
        window.flags |= FLAG_SATURATED
    if flags & ENTRY_GAP:
        window.flags |= FLAG_GAP
    if flags & ENTRY_STEP:
        window.flags |= FLAG_AMBIENT_STEP
    if flags & ENTRY_UNCHOPPED:
        window.flags |= FLAG_UNCHOPPED
    if flags & ENTRY_DARK:
        window.flags |= FLAG_DARK
    return weighing


cdef inline void od_account(
    const OdState* s, const OdChannel* ch, const double* weight, double scale, OdWindow* window
) noexcept nogil:
    """Standard error, bandwidth, conversions used and rejected, from the final weights.

    Noise of single conversions is carried through the weights: entry m has the weight g_m, its on half-cycle g_m and
    each off half-cycle half the sum of its neighbours' weights.
    """
    cdef double on = od_scale_now(&ch.on_scale, ch.on_square, ch.on_pairs)
    cdef double off = od_scale_now(&ch.off_scale, ch.off_square, ch.off_pairs)
    cdef double weights = 0.0
    cdef double squares = 0.0
    cdef double on_variance = 0.0
    cdef double off_variance = 0.0
    cdef double before = 0.0
    cdef double off_inverse = 0.0
    cdef double g
    cdef int off_count = 0
    cdef uint32_t on_total = 0
    cdef const OdEntry* e
    cdef int slot = ch.cursor - window.entries
    cdef int i
    if slot < 0:
        slot += OD_RING
    for i in range(window.entries):
        e = &ch.entry[slot]
        slot = slot + 1 if slot + 1 < OD_RING else 0
        g = weight[i]
        weights += g
        squares += g * g
        on_variance += g * g * e.on_inverse
        if e.off_count:
            if e.off_count != off_count:
                off_count = e.off_count
                off_inverse = 0.25 / off_count
            off_variance += (before + g) * (before + g) * off_inverse
        before = g
        if e.flags & ENTRY_STEP:
            continue
        on_total += e.used
        if g == 0.0:
            window.rejected += e.used
        else:
            window.rejected += e.rejected
            window.used += e.used - e.rejected + e.off_count
    if off_variance > 0.0:
        off_variance += before * before * off_inverse
    if not weights > 0.0:
        window.se_v = NAN
        window.bandwidth_hz = NAN
        return
    if on > 0.0:
        window.se_v = sqrt(on_variance * on * on + off_variance * off * off) / weights
    else:
        window.se_v = sqrt(squares) * scale / weights
    window.se_v *= sqrt(OD_TUKEY_LOSS) if scale > 0.0 else 1.0
    window.bandwidth_hz = squares / (weights * weights) * 0.5e9 / s.spacing_ns
    if 4 * window.rejected > on_total:
        window.flags |= FLAG_BUBBLES


cdef inline int od_window(OdState* s, OdChannel* ch, OdWindow* window) noexcept nogil:
    """Value of the newest window of a channel. Returns 0, or -1 when there is not enough of it."""
    cdef double difference[OD_RING]
    cdef double weight[OD_RING]
    cdef double final[OD_RING]
    cdef double work[OD_RING + 1]
    cdef int wanted = od_window_entries(s)
    cdef int fewest = <int>ceil(OD_FIRST_READING_S * 1e9 / s.spacing_ns)
    cdef double scale = ch.scale.value
    cdef double kept = 1.0
    cdef double centre
    memset(window, 0, sizeof(OdWindow))
    if s.null_count != wanted:
        od_design_nulls(s, wanted)
    fewest = fewest if fewest > OD_FEWEST else OD_FEWEST
    if od_gather(s, ch, wanted, difference, weight, window) == 0:
        return -1
    if window.entries < (fewest if fewest < wanted else wanted):
        return -1
    window.window_s = window.entries * s.spacing_ns * 1e-9
    window.value_v = ch.level_v
    if not ch.leveled or ch.scale.count == 0:
        centre = od_median(difference, weight, window.entries, work)
        window.value_v = centre
        if ch.scale.count == 0:
            scale = mad_scale(work, <int>work[OD_RING], centre)
    if scale > 0.0:
        kept = od_iterate(difference, weight, window.entries, scale, &window.value_v, final)
        if kept < 0.6 and ch.leveled:
            centre = od_median(difference, weight, window.entries, work)
            window.restarted = fabs(centre - ch.level_v) > TUKEY_C * scale
            window.value_v = centre
            kept = od_iterate(difference, weight, window.entries, scale, &window.value_v, final)
    window.rejected_share = 1.0 - kept
    od_account(s, ch, &final[0] if scale > 0.0 else &weight[0], scale, window)
    ch.level_v = window.value_v
    ch.leveled = 1
    return 0


cdef inline void od_update_scales(OdState* s, OdChannel* ch, const OdWindow* window) noexcept nogil:
    """Once a second: scales of the differences of the last second, and of single conversions."""
    cdef double difference[OD_RING]
    cdef double weight[OD_RING]
    cdef double work[OD_RING + 1]
    cdef double centre, start
    cdef int n, count
    cdef OdWindow ignored
    cdef bint trusted
    memset(&ignored, 0, sizeof(OdWindow))
    count = <int>(1e9 / s.spacing_ns + 0.5)
    count = OD_RING if count > OD_RING else count
    if od_gather(s, ch, count, difference, weight, &ignored) < 8:
        return
    trusted = 10 * window.rejected <= window.used
    centre = od_median(difference, weight, ignored.entries, work)
    n = <int>work[OD_RING]
    start = ch.scale.value
    if trusted and start > 0.0:
        carried_scale_push(&ch.scale, winsorised_scale(work, n, centre, start), trusted)
    else:
        carried_scale_push(&ch.scale, mad_scale(work, n, centre), trusted)
    if ch.off_pairs >= 32:
        carried_scale_push(&ch.off_scale, sqrt(ch.off_square / ch.off_pairs), True)
    if ch.on_pairs >= 32:
        start = sqrt(ch.on_square / ch.on_pairs)
        if ch.on_scale.count == 0 and 0.0 < 1.5 * ch.off_scale.value < start:
            start = 1.5 * ch.off_scale.value  # whether light's own noise or bubbles: grows from here if it must
        carried_scale_push(&ch.on_scale, start, trusted)
    ch.on_square = 0.0
    ch.off_square = 0.0
    ch.on_pairs = 0
    ch.off_pairs = 0


# --- readings ---------------------------------------------------------------------------------------------------------

cdef inline void od_push_culture(
    const OdState* s, OdChannel* ch, double value, const OdWindow* window, int64_t now_ns
) noexcept nogil:
    """Means for the culture's noise: the block's first window where windows last a second or more, else the mean of all
    that began in the block."""
    cdef int64_t block = now_ns // <int64_t>(ch.culture.block_s * 1e9)
    if not window.full:
        return
    if window.restarted or block > ch.culture_block + 1:
        od_clear_culture(ch)
    elif block > ch.culture_block and ch.culture_count:
        culture_noise_push(&ch.culture, ch.culture_total / ch.culture_count)
        ch.culture_total = 0.0
        ch.culture_count = 0
    ch.culture_block = block
    if ch.culture_count == 0 or s.config.window_s < 1.0:
        ch.culture_total += value
        ch.culture_count += 1


cdef inline void od_watch_warming(OdState* s, int64_t now_ns) noexcept nogil:
    """Clear `warming` when the reference's slope is below 0.01 % a minute, or not to be told from it."""
    cdef const CultureNoise* noise
    cdef double slope
    if s.warm_from_ns == 0:
        s.warm_from_ns = now_ns
    if s.reference < 0:
        if <double>(now_ns - s.warm_from_ns) > OD_WARM_S * 1e9:
            s.warming = 0
        return
    noise = &s.channel[s.reference].culture
    if noise.count < CULTURE_BLOCKS // 2 or not s.reference_v > 0.0:
        return
    slope = fabs(noise.slope) / s.reference_v
    if slope < OD_WARM_SLOPE or slope < 2.0 * noise.slope_se / s.reference_v:
        s.warming = 0


cdef inline int od_refer(OdState* s, int64_t now_ns) noexcept nogil:
    """Read the reference; returns whether it is fresh."""
    cdef OdWindow window
    cdef OdChannel* ch
    if s.reference < 0:
        return 0
    ch = &s.channel[s.reference]
    if not ch.started or now_ns - od_newest_ns(ch) > OD_STALL_NS + <int64_t>(3.0 * ch.period_ns):
        return 0
    if od_window(s, ch, &window) != 0 or not window.value_v > 0.0:
        return 0
    if window.flags & FLAG_DARK:
        return 0
    s.reference_v = window.value_v
    s.reference_se = window.se_v
    s.reference_ns = now_ns
    od_push_culture(s, ch, window.value_v, &window, ch.closed_ns)
    if s.scale_ns <= now_ns:
        od_update_scales(s, ch, &window)
    if s.reference_first_v == 0.0 and window.full and not window.flags & (FLAG_AMBIENT_STEP | FLAG_SATURATED):
        s.reference_first_v = window.value_v
    return 1


cdef inline void od_divide(OdState* s, Reading* r, const OdWindow* window) noexcept nogil:
    """Value and standard error by the reference, before the blank."""
    cdef double factor = 1.0
    cdef double relative_se = 0.0
    if s.reference_v > 0.0:
        if s.config.normalization == OD_CLASSIC:
            factor = 1.0 / s.reference_v
            relative_se = s.reference_se / s.reference_v
        elif s.reference_first_v > 0.0:
            factor = s.reference_first_v / s.reference_v
            relative_se = s.reference_se / s.reference_v
    r.value = window.value_v * factor
    relative_se *= r.value
    r.se_instrument = <float>sqrt(window.se_v * factor * window.se_v * factor + relative_se * relative_se)


cdef inline int od_read(OdState* s, int channel, int64_t now_ns, bint referred, Reading* r) noexcept nogil:
    """Make the reading of one signal channel. Returns 0, or -1 when there is none."""
    cdef OdChannel* ch = &s.channel[channel]
    cdef OdWindow window
    cdef double culture
    if od_window(s, ch, &window) != 0:
        return -1
    memset(r, 0, sizeof(Reading))
    od_divide(s, r, &window)
    od_push_culture(s, ch, r.value, &window, ch.closed_ns)
    culture = culture_noise_se(&ch.culture, 0.5 / window.bandwidth_hz)
    r.se_culture = <float>culture if not culture < r.se_instrument else r.se_instrument
    if s.scale_ns <= now_ns:
        od_update_scales(s, ch, &window)
    r.monotonic_ns = ch.closed_ns
    r.window_s = <float>window.window_s
    r.noise_bandwidth_hz = <float>window.bandwidth_hz
    r.signal_v = <float>window.value_v
    r.reference_v = <float>s.reference_v if s.reference_v > 0.0 else <float>NAN
    r.ambient_v = <float>window.ambient_v
    r.used = window.used
    r.rejected = window.rejected
    r.flags = window.flags | FLAG_UNCALIBRATED
    if isfinite(ch.blank):
        r.blank = <float>ch.blank
        r.value -= ch.blank
        r.flags |= FLAG_BLANKED
    if not referred:
        r.flags |= FLAG_STALE_REFERENCE
    if not s.line.locked:
        r.flags |= FLAG_MAINS_UNLOCKED
    if s.warming:
        r.flags |= FLAG_WARMING
    if s.led_percent == 0.0 or window.value_v < 3.0 * window.se_v:
        r.flags |= FLAG_DARK
    r.stream = <uint16_t>(STREAM_OD1 + channel)
    r.angle = s.config.angle[channel]
    r.half_cycle = <uint16_t>ch.half_cycle
    r.version = RECORD_VERSION
    return 0


cdef inline void od_emit(OdState* s, int64_t now_ns) noexcept nogil:
    """Make the readings of this grid time, of all signal channels that are alive."""
    cdef int i
    cdef int referred
    s.untaken += s.pending - s.taken
    s.pending = 0
    s.taken = 0
    if s.spacing_ns <= 0.0:
        return
    if s.scale_ns <= now_ns and not od_nulls_hold(s, od_window_entries(s)):
        od_design_nulls(s, od_window_entries(s))
    referred = od_refer(s, now_ns)
    od_watch_warming(s, now_ns)
    for i in range(MAX_CHANNELS):
        if s.config.role[i] == OD_SIGNAL and s.channel[i].started and od_newest_ns(&s.channel[i]) >= s.grid_ns:
            if od_read(s, i, now_ns, referred, &s.out[s.pending]) == 0:
                s.pending += 1
    if s.scale_ns <= now_ns:
        s.scale_ns = (now_ns // 1000000000 + 1) * 1000000000


cdef inline int od_grid(OdState* s, int64_t now_ns) noexcept nogil:
    """A conversion ended at or behind the grid time: emit once every channel that is alive has got there."""
    cdef int i
    cdef int64_t steps, newest_ns
    if s.grid_ns == 0:
        s.scale_ns = (now_ns // 1000000000 + 1) * 1000000000
        s.grid_ns = now_ns // s.interval_ns * s.interval_ns
        steps = 0
    else:
        for i in range(MAX_CHANNELS):
            if s.config.role[i] == OD_UNUSED or not s.channel[i].started:
                continue
            newest_ns = od_newest_ns(&s.channel[i])
            if newest_ns < s.grid_ns and now_ns - newest_ns <= OD_STALL_NS + <int64_t>(3.0 * s.channel[i].period_ns):
                return 0
        od_emit(s, now_ns)
        steps = (now_ns - s.grid_ns) // s.interval_ns
    s.grid_misses += <uint32_t>steps
    s.grid_ns += (steps + 1) * s.interval_ns
    for i in range(MAX_CHANNELS):
        if s.channel[i].clocked:
            od_schedule(s, &s.channel[i])
    return s.pending


cdef inline void od_missed(OdChannel* ch, int32_t step, int phase) noexcept nogil:
    """`step` conversions never came, or the converter counts anew (negative).

    What is longer than a chop period, or may hide one, breaks the half-cycles.
    """
    cdef int32_t most = 2 * ch.half_cycle if ch.half_cycle else OD_UNCHOPPED
    if step > 0:
        ch.missing += step
    if step < 0 or step >= most or (phase == ch.phase and 2 * step >= most):
        od_drop_half(ch)
    ch.open_flags |= ENTRY_GAP


cdef inline void od_change_phase(OdState* s, OdChannel* ch, int phase) noexcept nogil:
    if ch.unchopped:
        ch.unchopped = 0
        od_limit_count(ch)
        s.spaced = 0
        od_forget_past(ch)
    elif ch.count:
        od_close(s, ch, True)
    ch.phase = phase


cdef inline int od_push(
    OdState* s, int channel, uint32_t index, int32_t code, int phase, int clipped
) noexcept nogil:
    """One conversion. Returns how many readings wait for od_take (those that it made), 0 most of the time.

    Conversions before the channel's first od_clock are ignored, as are repeated ones; an index that falls back far is a
    converter that was started anew. A clipped conversion flags the
    readings that it is in.
    """
    cdef OdChannel* ch = &s.channel[channel]
    cdef int32_t step = <int32_t>(index - ch.next_index)
    cdef int64_t now_ns
    if not ch.clocked or s.config.role[channel] == OD_UNUSED:
        return 0
    if step != 0 and ch.started:
        if -OD_RESTART < step < 0:
            ch.repeated += 1
            return 0
        od_missed(ch, step, phase)
    ch.started = 1
    if phase != ch.phase:
        od_change_phase(s, ch, phase)
    ch.next_index = index + 1
    if phase != PHASE_EDGE:
        if ch.count == 0:
            ch.first_index = index
        ch.sample[ch.count] = code * ch.volts_per_code
        ch.count += 1
        ch.open_flags |= clipped & ENTRY_CLIPPED
        if ch.count >= ch.most_count:
            od_close(s, ch, False)
    if <int32_t>(index - ch.due_index) >= 0:
        now_ns = od_end_ns(ch, index)
        if now_ns >= s.grid_ns:
            return od_grid(s, now_ns)
    return 0


cdef inline int od_take(OdState* s, Reading* out) noexcept nogil:
    """Take the next reading that waits: 1, or 0 when there is none. The caller fills sequence, wall_ns, experiment and
    the flags of things that the chain does not see."""
    if s.taken >= s.pending:
        return 0
    out[0] = s.out[s.taken]
    s.taken += 1
    return 1
