# Why compiled: each half-cycle of the light becomes a mean, and three of them a difference, at the converter's pace.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: volts, nanoseconds; a half-cycle is what was converted under one level of the light.
#
# An on half-cycle between two off ones makes one OdEntry. Light that does not change makes entries of its level.

from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset

from stirbar.rt.culture_noise cimport culture_noise_clear
from stirbar.rt.mains cimport mains_end_block
from stirbar.rt.mains_run cimport mains_run
from stirbar.rt.od_state cimport (
    ENTRY_DARK, ENTRY_GAP, ENTRY_STEP, ENTRY_UNCHOPPED, OD_BUFFER, OD_CHOP_LIMIT_NS, OD_LEAST_COUNT, OD_LEAST_NOISE,
    OD_RING, OD_SIGNAL, OD_STEP_SIGMAS, OD_UNCHOPPED, OdChannel, OdEntry, OdHalf, OdState, od_end_ns, od_newest_ns,
    od_next_middle_ns,
)
from stirbar.rt.robust cimport TRIM_A, TRIM_KAPPA, TUKEY_C, median_in_place, tukey_weight
from stirbar.rt.types cimport PHASE_OFF, PHASE_ON


cdef inline void od_limit_count(OdChannel* ch) noexcept nogil:
    """How many conversions of one level of the light are closed without waiting for it to change."""
    cdef double most = (1e9 if ch.unchopped else OD_CHOP_LIMIT_NS) / ch.period_ns + 1.0
    cdef int32_t limit = OD_UNCHOPPED if ch.unchopped else OD_BUFFER
    ch.most_count = <int32_t>most if most < limit else limit


cdef inline void od_drop_half(OdChannel* ch) noexcept nogil:
    """The half-cycle that is open cannot be used."""
    ch.count = 0
    ch.off.valid = 0
    ch.on.valid = 0


cdef inline void od_clear_culture(OdChannel* ch) noexcept nogil:
    culture_noise_clear(&ch.culture, ch.culture.block_s, ch.culture.mean_s)
    memset(ch.within, 0, sizeof(ch.within))


cdef inline void od_forget_past(OdChannel* ch) noexcept nogil:
    """Entries up to now do not count any more."""
    ch.entries = 0
    ch.blocks = 0
    memset(ch.leveled, 0, sizeof(ch.leveled))
    od_clear_culture(ch)
    od_drop_half(ch)


cdef inline double od_sample_median(const double* sample, int n) noexcept nogil:
    """Median of the `n` >= 3 conversions of a half-cycle; of three or four without sorting."""
    cdef double work[OD_BUFFER]
    cdef double total, least, most
    cdef int i
    if n > 4:
        for i in range(n):
            work[i] = sample[i]
        return median_in_place(work, n)
    total = sample[0]
    least = sample[0]
    most = sample[0]
    for i in range(1, n):
        total += sample[i]
        least = sample[i] if sample[i] < least else least
        most = sample[i] if sample[i] > most else most
    return (total - least - most) / (n - 2)


cdef inline void od_reduce(OdChannel* ch, OdHalf* half) noexcept nogil:
    """Mean of the open half-cycle; with the LED on, two Tukey steps from its median where there are three or more."""
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
        centre = od_sample_median(ch.sample, n)
        inverse_cut = 1.0 / (TUKEY_C * scale)
        for _step in range(2):
            total = 0.0
            weights = 0.0
            half.rejected = 0
            for i in range(n):
                difference = ch.sample[i] - centre
                w = tukey_weight(difference, inverse_cut)
                weights += w
                total += w * difference
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
