# Why compiled: the whole way from a conversion to a reading runs at the converter's pace.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: codes of 16 bits, volts, nanoseconds, seconds, hertz; values in AU (docs/optical-density.md).
#
# The chain sees what is recorded and nothing else: od_clock, od_gain, od_push, od_blank, od_led. Channels are 0..3.
# od_state.pxd has its state, od_init.pxd its beginning; od_half.pxd makes differences of conversions, od_window.pxd
# values of differences.

from libc.math cimport NAN, fabs, isfinite, sqrt
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from stirbar.rt.culture_noise cimport CULTURE_BLOCKS, CultureNoise
from stirbar.rt.mains_run cimport mains_resync
from stirbar.rt.od_blocks cimport (
    od_block_window, od_culture_se, od_fit_blocks, od_keep_block, od_push_culture, od_push_within, od_rate_window,
)
from stirbar.rt.od_half cimport od_clear_culture, od_close, od_drop_half, od_forget_past, od_limit_count
from stirbar.rt.od_modulation cimport OdModulation, od_modulation
from stirbar.rt.od_nulls cimport od_design_nulls, od_nulls_hold, od_window_entries
from stirbar.rt.od_state cimport (
    DUE_BLOCK, DUE_MODULATION, DUE_NULLS, DUE_RATE, DUE_READING, DUE_REFERENCE, DUE_SCALES, ENTRY_CLIPPED, ENTRY_GAP,
    OD_BLOCK, OD_CLASSIC, OD_RATES, OD_REGRESSED, OD_RESTART, OD_SIGNAL,
    OD_STALL_NS, OD_UNCHOPPED, OD_UNUSED, OD_WARM_S, OD_WARM_SLOPE, OD_WINDOWS, OdChannel, OdRate, OdState, OdWindow,
    od_end_ns, od_newest_ns, od_next_middle_ns,
)
from stirbar.rt.od_reference cimport od_learn_reference
from stirbar.rt.od_window cimport od_update_scales
from stirbar.rt.reference cimport ReferenceFit, reference_factor, reference_light
from stirbar.rt.types cimport (
    FLAG_AMBIENT_STEP, FLAG_BLANKED, FLAG_DARK, FLAG_MAINS_UNLOCKED, FLAG_SATURATED, FLAG_STALE_REFERENCE,
    FLAG_UNCALIBRATED, FLAG_WARMING, MAX_CHANNELS, PHASE_EDGE, RECORD_VERSION, Reading, STREAM_MODULATION1,
    STREAM_OD1, STREAM_OD1_RATE1,
)


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
            reference_light(&s.reference_fit[i])
        s.warming = 1
        s.warm_from_ns = 0
    s.led_percent = intensity_percent


cdef inline void od_watch_warming(OdState* s, int64_t now_ns) noexcept nogil:
    """Clear `warming` when the reference's slope is below 0.01 % a minute, or not to be told from it."""
    cdef const CultureNoise* noise
    cdef double slope
    cdef double reference_v = s.rate[OD_BLOCK].reference_v
    if s.warm_from_ns == 0:
        s.warm_from_ns = now_ns
    if s.reference < 0:
        if <double>(now_ns - s.warm_from_ns) > OD_WARM_S * 1e9:
            s.warming = 0
        return
    noise = &s.channel[s.reference].culture
    if noise.count < CULTURE_BLOCKS // 2 or not reference_v > 0.0:
        return
    slope = fabs(noise.slope) / reference_v
    if slope < OD_WARM_SLOPE or slope < 2.0 * noise.slope_se / reference_v:
        s.warming = 0


cdef inline void od_refer(OdState* s, OdRate* rate, const OdWindow* window) noexcept nogil:
    """The reference's newest window of a rate, for the readings of that rate."""
    if not window.value_v > 0.0 or window.flags & FLAG_DARK:
        return
    rate.referred = 1
    rate.reference_v = window.value_v
    rate.reference_se = window.se_v
    if s.reference_first_v == 0.0 and window.full and not window.flags & (FLAG_AMBIENT_STEP | FLAG_SATURATED):
        s.reference_first_v = window.value_v


cdef inline void od_divide(
    const OdState* s, const OdRate* rate, const ReferenceFit* fit, const OdWindow* window, Reading* r
) noexcept nogil:
    """Value and standard error by the rate's reference, before the blank."""
    cdef double factor = 1.0
    cdef double relative_se = 0.0
    if rate.reference_v > 0.0:
        if s.config.normalization == OD_CLASSIC:
            factor = 1.0 / rate.reference_v
            relative_se = rate.reference_se / rate.reference_v
        elif s.reference_first_v > 0.0:
            factor = s.reference_first_v / rate.reference_v
            relative_se = rate.reference_se / rate.reference_v
            if s.config.normalization == OD_REGRESSED:
                factor *= reference_factor(fit, rate.reference_v)
                relative_se *= 1.0 + fit.coefficient
    r.value = window.value_v * factor
    relative_se *= r.value
    r.se_instrument = <float>sqrt(window.se_v * factor * window.se_v * factor + relative_se * relative_se)


cdef inline int od_read(OdState* s, int which, int channel, Reading* r) noexcept nogil:
    """Make the reading of one signal channel at one rate. Returns 0, or -1 when there is none."""
    cdef OdChannel* ch = &s.channel[channel]
    cdef const OdRate* rate = &s.rate[which]
    cdef OdWindow window
    cdef double culture
    if od_rate_window(s, ch, which, &window) != 0:
        return -1
    memset(r, 0, sizeof(Reading))
    od_divide(s, rate, &s.reference_fit[channel], &window, r)
    od_push_within(s, ch, which, r.value, &window)
    culture = od_culture_se(s, ch, which, 0.5 / window.bandwidth_hz)
    r.se_culture = <float>culture if not culture < r.se_instrument else r.se_instrument
    r.monotonic_ns = window.end_ns
    r.window_s = <float>window.window_s
    r.noise_bandwidth_hz = <float>window.bandwidth_hz
    r.signal_v = <float>window.value_v
    r.reference_v = <float>rate.reference_v if rate.reference_v > 0.0 else <float>NAN
    r.ambient_v = <float>window.ambient_v
    r.used = window.used
    r.rejected = window.rejected
    r.flags = window.flags | FLAG_UNCALIBRATED
    if isfinite(ch.blank):
        r.blank = <float>ch.blank
        r.value -= ch.blank
        r.flags |= FLAG_BLANKED
    if not rate.referred:
        r.flags |= FLAG_STALE_REFERENCE
    if not s.line.locked:
        r.flags |= FLAG_MAINS_UNLOCKED
    if s.warming:
        r.flags |= FLAG_WARMING
    if s.led_percent == 0.0 or window.value_v < 3.0 * window.se_v:
        r.flags |= FLAG_DARK
    r.stream = <uint16_t>(STREAM_OD1 + channel if which == 0 else STREAM_OD1_RATE1 + 4 * (which - 1) + channel)
    r.angle = s.config.angle[channel]
    r.half_cycle = <uint16_t>ch.half_cycle
    r.version = RECORD_VERSION
    return 0


cdef inline void od_close_block(OdState* s, int channel) noexcept nogil:
    """Once a second (the reference first): the block's sums, and what it says about the culture."""
    cdef OdChannel* ch = &s.channel[channel]
    cdef OdWindow window
    cdef Reading reading
    if od_block_window(s, ch, &window) != 0:
        return
    od_keep_block(s, ch, &window, s.block_tick_ns)
    ch.trusted = 10 * window.rejected <= window.used
    if window.restarted or not ch.centred:
        ch.centre_v = window.value_v
        ch.coarse.level_v = window.value_v
        ch.centred = 1
    if window.restarted or not window.full:
        od_clear_culture(ch)
    if channel == s.reference:
        od_refer(s, &s.rate[OD_BLOCK], &window)
        reading.value = window.value_v
    else:
        od_learn_reference(s, channel, &window)
        od_divide(s, &s.rate[OD_BLOCK], &s.reference_fit[channel], &window, &reading)
    if window.full:
        od_push_culture(s, ch, reading.value)


cdef inline int od_read_modulation(OdState* s, int channel, Reading* r) noexcept nogil:
    """How much of a channel's lit light turns with the stirrer, percent. Returns 0, or -1 when nobody can say.

    The standard error is that of one amplitude; light that does not turn gives about twice as much by noise alone."""
    cdef OdChannel* ch = &s.channel[channel]
    cdef OdModulation modulation
    cdef double once, twice
    if not ch.blocks or od_modulation(s, ch, ch.level_v[OD_BLOCK], &modulation) != 0 or not modulation.mean_v > 0.0:
        return -1
    memset(r, 0, sizeof(Reading))
    once = modulation.amplitude_v[0]
    twice = modulation.amplitude_v[1]
    r.value = 100.0 * sqrt(once * once + twice * twice) / modulation.mean_v
    r.se_instrument = <float>(100.0 * ch.scale.value * sqrt(2.0 / modulation.used) / modulation.mean_v)
    r.se_culture = <float>NAN
    r.window_s = <float>modulation.window_s
    r.noise_bandwidth_hz = <float>(0.5 / modulation.window_s)
    r.signal_v = <float>once
    r.reference_v = <float>twice
    r.ambient_v = <float>NAN
    r.used = <uint32_t>modulation.used
    r.monotonic_ns = ch.closed_ns
    r.stream = <uint16_t>(STREAM_MODULATION1 + channel)
    r.angle = s.config.angle[channel]
    r.half_cycle = <uint16_t>ch.half_cycle
    r.version = RECORD_VERSION
    return 0


cdef inline void od_turn(OdState* s, double turn_ns) noexcept nogil:
    """Time of a turn of the stirrer from here on; 0 when it does not turn."""
    s.turn_ns = turn_ns if turn_ns > 0.0 else 0.0


cdef inline int od_queue(OdState* s, int which, int channel) noexcept nogil:
    """Make a reading of a rate (`which` -1: of the modulation) and keep it for od_take; returns whether there was one.
    """
    cdef int status
    if s.taken == s.pending:
        s.taken = s.pending = 0
    elif s.pending == MAX_CHANNELS:
        s.untaken += s.pending - s.taken
        s.taken = s.pending = 0
    if which < 0:
        status = od_read_modulation(s, channel, &s.out[s.pending])
    else:
        status = od_read(s, which, channel, &s.out[s.pending])
    if status != 0:
        return 0
    s.pending += 1
    return 1


cdef inline int od_work(OdState* s) noexcept nogil:
    """One piece of what is due, in the order of the bits DUE_*. Returns how many readings it made."""
    cdef OdWindow window
    cdef int bit = 0
    cdef int which
    while not s.due >> bit & 1:
        bit += 1
    if bit == DUE_BLOCK and s.reference > 0 and s.due >> (DUE_BLOCK + s.reference) & 1:
        bit += s.reference
    s.due &= ~(<uint64_t>1 << bit)
    if bit >= DUE_NULLS:
        which = bit - DUE_NULLS
        if not od_nulls_hold(s, &s.rate[which].nulls, od_window_entries(s, which)):
            od_design_nulls(s, &s.rate[which].nulls, od_window_entries(s, which))
    elif bit >= DUE_MODULATION:
        return od_queue(s, -1, bit - DUE_MODULATION)
    elif bit >= DUE_SCALES:
        od_update_scales(s, &s.channel[bit - DUE_SCALES])
    elif bit >= DUE_BLOCK:
        od_close_block(s, bit - DUE_BLOCK)
    else:
        which = bit // DUE_RATE
        bit -= which * DUE_RATE
        if bit >= DUE_READING:
            return od_queue(s, which, bit - DUE_READING)
        if od_rate_window(s, &s.channel[s.reference], which, &window) == 0:
            od_refer(s, &s.rate[which], &window)
    return 0


cdef inline int od_emit(OdState* s, int64_t now_ns) noexcept nogil:
    """Begin what is due at this grid time, for all channels that are alive: readings with their reference, and once a
    second blocks, scales and nulls. One piece is done at each conversion from here on, so that none costs much more
    than another."""
    cdef uint64_t signals = 0
    cdef uint64_t reference = 0
    cdef OdChannel* ch
    cdef int i, r
    if s.spacing_ns <= 0.0:
        return 0
    for i in range(MAX_CHANNELS):
        ch = &s.channel[i]
        if s.config.role[i] == OD_SIGNAL and ch.started and od_newest_ns(ch) >= s.grid_ns:
            signals |= <uint64_t>1 << i
        elif i == s.reference and ch.started and (
                now_ns - od_newest_ns(ch) <= OD_STALL_NS + <int64_t>(3.0 * ch.period_ns)):
            reference = <uint64_t>1 << i
    for r in range(s.config.rates):
        if s.rate[r].next_ns <= s.grid_ns:
            s.rate[r].referred = 0
            s.due |= (signals << DUE_READING | (1 if reference else 0) << DUE_REFERENCE) << r * DUE_RATE
    if s.rate[OD_BLOCK].next_ns <= s.grid_ns:
        od_fit_blocks(s)
        od_watch_warming(s, now_ns)
        s.rate[OD_BLOCK].referred = 0
        s.block_tick_ns = s.grid_ns
        s.due |= (signals | reference) << DUE_BLOCK | (signals | reference) << DUE_SCALES
        if s.turn_ns > 0.0:
            s.due |= signals << DUE_MODULATION
        for r in range(OD_WINDOWS):
            if s.rate[r].nulls.count:
                s.due |= <uint64_t>1 << DUE_NULLS + r
    return od_work(s) if s.due else 0


cdef inline void od_advance_grid(OdState* s, int64_t now_ns) noexcept nogil:
    """Every rate whose time has come waits for its next."""
    cdef OdRate* rate
    cdef int64_t steps
    cdef int i, r
    cdef int64_t earliest_ns = 0
    for r in range(OD_WINDOWS):
        rate = &s.rate[r]
        if rate.interval_ns == 0:
            continue
        if rate.next_ns == 0:
            rate.next_ns = (now_ns // rate.interval_ns + 1) * rate.interval_ns
        elif rate.next_ns <= s.grid_ns:
            steps = (now_ns - rate.next_ns) // rate.interval_ns
            rate.next_ns += (steps + 1) * rate.interval_ns
            if r < OD_RATES:
                s.grid_misses += <uint32_t>steps
        if earliest_ns == 0 or rate.next_ns < earliest_ns:
            earliest_ns = rate.next_ns
    s.grid_ns = earliest_ns
    for i in range(MAX_CHANNELS):
        if s.channel[i].clocked:
            od_schedule(s, &s.channel[i])


cdef inline int od_grid(OdState* s, int64_t now_ns) noexcept nogil:
    """A conversion ended at or behind the grid time: emit once every channel that is alive has got there."""
    cdef int i
    cdef int made = 0
    cdef int64_t newest_ns
    if s.grid_ns:
        for i in range(MAX_CHANNELS):
            if s.config.role[i] == OD_UNUSED or not s.channel[i].started:
                continue
            newest_ns = od_newest_ns(&s.channel[i])
            if newest_ns < s.grid_ns and now_ns - newest_ns <= OD_STALL_NS + <int64_t>(3.0 * s.channel[i].period_ns):
                return 0
        made = od_emit(s, now_ns)
    od_advance_grid(s, now_ns)
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
