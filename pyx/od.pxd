# Why compiled: the whole way from a conversion to a reading runs at the converter's pace.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: codes of 16 bits, volts, nanoseconds, seconds, hertz; values in AU (docs/optical-density.md).
#
# The chain sees what is recorded and nothing else: od_clock, od_gain, od_push, od_blank, od_led. Channels are 0..3.
# od_state.pxd has its state, od_half.pxd makes differences of conversions, od_window.pxd values of differences.

from libc.errno cimport EINVAL
from libc.math cimport NAN, ceil, fabs, isfinite, sqrt
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t
from libc.string cimport memset

from stirbar.rt.culture_noise cimport (
    CULTURE_BLOCKS, CultureNoise, culture_noise_clear, culture_noise_push, culture_noise_se,
)
from stirbar.rt.mains cimport mains_channel_init, mains_line_init
from stirbar.rt.mains_run cimport mains_resync
from stirbar.rt.od_half cimport od_clear_culture, od_close, od_drop_half, od_forget_past, od_limit_count
from stirbar.rt.od_nulls cimport od_design_nulls, od_nulls_hold, od_window_entries
from stirbar.rt.od_state cimport (
    DUE_NULLS, DUE_READING, DUE_SCALES, ENTRY_CLIPPED, ENTRY_GAP, OD_CLASSIC, OD_REFERENCE, OD_RESTART, OD_SIGNAL,
    OD_STALL_NS, OD_UNCHOPPED, OD_UNUSED, OD_WARM_S, OD_WARM_SLOPE, OdChannel, OdConfig, OdState, OdWindow, od_end_ns,
    od_newest_ns, od_next_middle_ns,
)
from stirbar.rt.od_window cimport od_update_scales, od_window
from stirbar.rt.types cimport (
    FLAG_AMBIENT_STEP, FLAG_BLANKED, FLAG_DARK, FLAG_MAINS_UNLOCKED, FLAG_SATURATED, FLAG_STALE_REFERENCE,
    FLAG_UNCALIBRATED, FLAG_WARMING, MAX_CHANNELS, PHASE_EDGE, RECORD_VERSION, Reading, STREAM_OD1,
)


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


cdef inline void od_schedule(const OdState* s, OdChannel* ch) noexcept nogil:
    """When this channel reaches the grid's time, as the number of a conversion (never too late)."""
    cdef double ahead = <double>(s.grid_ns - ch.t0_ns) / ch.period_ns
    ch.due_index = ch.index0 + <uint32_t>(<int32_t>ahead) if 0.0 < ahead < 1e9 else ch.next_index


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


cdef inline void od_gain(OdState* s, int channel, double volts_per_code) noexcept nogil:
    """Volts per code for the conversions from here on."""
    s.channel[channel].volts_per_code = volts_per_code
    od_drop_half(&s.channel[channel])


cdef inline void od_blank(OdState* s, int channel, double value) noexcept nogil:
    """Subtract `value` (unit of the reading) from here on; NaN subtracts nothing."""
    s.channel[channel].blank = value


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


cdef inline int od_read(OdState* s, int channel, Reading* r) noexcept nogil:
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
    if not s.referred:
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


cdef inline int od_work(OdState* s) noexcept nogil:
    """One piece of what is due: a reading, a channel's scales, or the nulls. Returns how many readings it made."""
    cdef int i
    for i in range(MAX_CHANNELS):
        if s.due & (DUE_READING << i):
            s.due &= ~<uint32_t>(DUE_READING << i)
            if od_read(s, i, &s.out[s.pending]) != 0:
                s.due &= ~<uint32_t>(DUE_SCALES << i)
                return 0
            s.pending += 1
            return 1
    for i in range(MAX_CHANNELS):
        if s.due & (DUE_SCALES << i):
            s.due &= ~<uint32_t>(DUE_SCALES << i)
            od_update_scales(s, &s.channel[i])
            return 0
    s.due = 0
    if not od_nulls_hold(s, od_window_entries(s)):
        od_design_nulls(s, od_window_entries(s))
    return 0


cdef inline int od_emit(OdState* s, int64_t now_ns) noexcept nogil:
    """Read the reference, and begin the readings of this grid time, of all signal channels that are alive.

    One is made at each conversion from here on, then the scales, so that no conversion costs much more than another.
    """
    cdef int i
    s.untaken += s.pending - s.taken
    s.pending = 0
    s.taken = 0
    if s.spacing_ns <= 0.0:
        return 0
    for i in range(MAX_CHANNELS):
        if s.config.role[i] == OD_SIGNAL and s.channel[i].started and od_newest_ns(&s.channel[i]) >= s.grid_ns:
            s.due |= DUE_READING << i
    s.referred = od_refer(s, now_ns)
    od_watch_warming(s, now_ns)
    if s.scale_ns <= now_ns:
        s.scale_ns = (now_ns // 1000000000 + 1) * 1000000000
        s.due |= s.due * DUE_SCALES | DUE_NULLS
        if s.referred:
            s.due |= DUE_SCALES << s.reference
    return od_work(s) if s.reference < 0 else 0


cdef inline int od_grid(OdState* s, int64_t now_ns) noexcept nogil:
    """A conversion ended at or behind the grid time: emit once every channel that is alive has got there."""
    cdef int i
    cdef int made = 0
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
        made = od_emit(s, now_ns)
        steps = (now_ns - s.grid_ns) // s.interval_ns
    s.grid_misses += <uint32_t>steps
    s.grid_ns += (steps + 1) * s.interval_ns
    for i in range(MAX_CHANNELS):
        if s.channel[i].clocked:
            od_schedule(s, &s.channel[i])
    return made


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
    converter that was started anew. A clipped conversion flags the readings that it is in.
    """
    cdef OdChannel* ch = &s.channel[channel]
    cdef int32_t step = <int32_t>(index - ch.next_index)
    cdef int64_t now_ns
    cdef int made
    cdef bint due
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
    due = <int32_t>(index - ch.due_index) >= 0
    while s.due:
        made = od_work(s)
        if made or not due:
            return made
    if due:
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
