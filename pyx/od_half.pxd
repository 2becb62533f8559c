# Why compiled: each half-cycle of the light becomes a mean, and three of them a difference, at the converter's pace.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: volts, nanoseconds; a half-cycle is what was converted under one level of the light.
#
# An on half-cycle between two off ones makes one OdEntry. Light that does not change makes entries of its level.

from libc.math cimport INFINITY, NAN, fabs
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from stirbar.rt.culture_noise cimport culture_noise_clear
from stirbar.rt.mains cimport mains_end_block
from stirbar.rt.mains_run cimport mains_run
from stirbar.rt.od_state cimport (
    ENTRY_DARK, ENTRY_GAP, ENTRY_STEP, ENTRY_UNCHOPPED, ENTRY_WEAK, OD_BUFFER, OD_CENTRE_ENTRIES, OD_CENTRE_STRAYS,
    OD_CHOP_LIMIT_NS, OD_COARSE_FIRST, OD_COARSE_SIGMAS, OD_COARSE_STRAYS, OD_LEAST_COUNT, OD_LEAST_NOISE,
    OD_LEAST_SHARE, OD_QUARTET, OD_RING, OD_SIGNAL, OD_STALL_NS, OD_STEP_SIGMAS, OD_UNCHOPPED, OdChannel, OdCoarse,
    OdEntry, OdHalf, OdState, od_end_ns, od_newest_ns, od_next_middle_ns,
)
from stirbar.rt.robust cimport TRIM_A, TRIM_KAPPA, TUKEY_C, median_in_place
from stirbar.rt.types cimport MAX_CHANNELS, PHASE_OFF, PHASE_ON


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
    ch.centred = 0
    ch.strays = 0
    ch.last.full = 0
    memset(&ch.coarse, 0, sizeof(OdCoarse))
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


cdef inline double od_least_scale(const OdChannel* ch, double scale) noexcept nogil:
    """A scale of conversions that is not below what the codes' steps leave."""
    return OD_LEAST_NOISE * ch.volts_per_code if 0.0 < scale < OD_LEAST_NOISE * ch.volts_per_code else scale


cdef inline void od_spread(OdChannel* ch) noexcept nogil:
    """Noise of single conversions: squares of neighbours' differences, trimmed, of the open half-cycle. What neighbours
    have in common is not in their difference."""
    cdef bint on = ch.phase == PHASE_ON
    cdef double apart = 2.0 * (1.0 - ch.correlation)
    cdef double scale = od_least_scale(ch, ch.on_scale.value if on else ch.off_scale.value)
    cdef double cut = apart * TRIM_A * TRIM_A * scale * scale if scale > 0.0 else INFINITY
    cdef double square = 0.0
    cdef double difference
    cdef int pairs = 0
    cdef int i
    for i in range(1, ch.count):
        difference = ch.sample[i] - ch.sample[i - 1]
        difference *= difference
        if difference < cut:
            square += difference
            pairs += 1
    square /= TRIM_KAPPA * apart if scale > 0.0 else apart
    if on:
        ch.on_square += square
        ch.on_pairs += pairs
    else:
        ch.off_square += square
        ch.off_pairs += pairs


cdef inline double od_plain_mean(const double* sample, int n) noexcept nogil:
    cdef double total = 0.0
    cdef int i
    for i in range(n):
        total += sample[i]
    return total / n


cdef inline double od_tukey_step(
    const double* sample, int n, double centre, double inverse_cut, OdHalf* half
) noexcept nogil:
    """One step of Tukey's location from `centre`; weights and counts of the step go to `half`."""
    cdef double total = 0.0
    cdef double weights = 0.0
    cdef double difference, u
    cdef int rejected = 0
    cdef int i
    for i in range(n):
        difference = sample[i] - centre
        u = difference * inverse_cut
        u = 1.0 - u * u
        if u > 0.0:
            u *= u
            weights += u
            total += u * difference
        else:
            rejected += 1
    half.count = weights
    half.rejected = rejected
    return centre + total / weights if weights > 0.0 else centre


cdef inline void od_lit_mean(const OdChannel* ch, double dark_v, OdHalf* half) noexcept nogil:
    """Mean of an on half-cycle: two Tukey steps from what is expected above the dark level or, where hardly any
    conversion agrees with that, from its own median (IS-26)."""
    cdef double scale = od_least_scale(ch, ch.on_scale.value)
    cdef double inverse_cut
    cdef double mean
    cdef int n = half.used
    half.rejected = 0
    half.count = n
    if not scale > 0.0 or (n < 3 and not ch.centred):
        half.mean_v = od_plain_mean(ch.lit, n)
        return
    inverse_cut = 1.0 / (TUKEY_C * scale)
    if ch.centred and ch.lit_scale > 0.0:
        mean = od_tukey_step(ch.lit, n, dark_v + ch.centre_v, 1.0 / (TUKEY_C * ch.lit_scale), half)
        if half.count >= OD_LEAST_SHARE * n:
            half.mean_v = od_tukey_step(ch.lit, n, mean, inverse_cut, half)
            if half.count < OD_LEAST_COUNT:
                half.count = OD_LEAST_COUNT
            return
    if n < 3:
        half.mean_v = od_plain_mean(ch.lit, n)
        half.rejected = 0
        half.count = n
        return
    mean = od_tukey_step(ch.lit, n, od_sample_median(ch.lit, n), inverse_cut, half)
    half.mean_v = od_tukey_step(ch.lit, n, mean, inverse_cut, half)
    if half.count < OD_LEAST_COUNT:
        half.count = OD_LEAST_COUNT


cdef inline void od_expect(OdChannel* ch, double difference_v) noexcept nogil:
    """Follow the differences, so that each half-cycle knows what to expect."""
    cdef double move = difference_v - ch.centre_v
    cdef double cut = TRIM_A * ch.scale.value
    if not ch.centred:
        return
    if fabs(move) <= cut:
        ch.strays = 0
        ch.centre_v += move * (1.0 / OD_CENTRE_ENTRIES)
        return
    ch.strays += 1
    if ch.strays >= OD_CENTRE_STRAYS:
        ch.strays = 0
        ch.centre_v = difference_v


cdef inline void od_append(OdState* s, OdChannel* ch, const OdEntry* entry, int64_t middle_ns) noexcept nogil:
    """Keep an entry, and the spacing of those of the first signal channel that measures."""
    cdef OdEntry* before
    cdef double spacing
    cdef int i
    ch.enough_inverse += (entry.on_inverse / 0.75 - ch.enough_inverse) * (1.0 / 16 if ch.enough_inverse > 0.0 else 1.0)
    ch.entry[ch.cursor] = entry[0]
    ch.entry[ch.cursor].tick = <uint32_t>(middle_ns >> 7)
    if ch.entries and not entry.flags & ENTRY_GAP:
        i = 0
        while i < MAX_CHANNELS and (s.config.role[i] != OD_SIGNAL or not s.channel[i].started or (
                od_newest_ns(ch) - od_newest_ns(&s.channel[i]) > OD_STALL_NS)):
            i += 1
        if i < MAX_CHANNELS and ch == &s.channel[i]:
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


cdef inline void od_mark_weak(OdChannel* ch, int count, bint weak) noexcept nogil:
    """Whether the newest `count` entries belong to a weak long bubble."""
    cdef int slot = ch.cursor
    cdef int _i
    for _i in range(count if count < ch.entries else ch.entries):
        slot = slot - 1 if slot else OD_RING - 1
        if weak:
            ch.entry[slot].flags |= ENTRY_WEAK
        else:
            ch.entry[slot].flags &= ~ENTRY_WEAK


cdef inline void od_test_block(OdChannel* ch) noexcept nogil:
    """Four more differences: whether the mean of the newest eight strays from the slow level. A level that all means
    leave has moved."""
    cdef OdCoarse* c = &ch.coarse
    cdef int count = c.count[0] + c.count[1]
    cdef double move, square, gain
    if count < OD_QUARTET:
        return
    move = (c.total[0] + c.total[1]) / count
    square = move * move * count * (0.5 / OD_QUARTET)
    if c.blocks >= OD_COARSE_FIRST and square > OD_COARSE_SIGMAS * OD_COARSE_SIGMAS * c.square:
        c.strays += 1
        od_mark_weak(ch, 2 * OD_QUARTET, True)
        if c.strays >= OD_COARSE_STRAYS:
            od_mark_weak(ch, (c.strays + 1) * OD_QUARTET, False)
            c.level_v += move
            c.total[0] = c.total[1] = 0.0
            c.count[0] = c.count[1] = 0
            c.strays = 0
        square = OD_COARSE_SIGMAS * OD_COARSE_SIGMAS * c.square
    else:
        c.strays = 0
        c.level_v += move * (1.0 / 16)
    c.blocks += c.blocks < 512
    gain = 1.0 / c.blocks
    c.square += (square - c.square) * gain


cdef inline void od_watch_blocks(OdChannel* ch, double difference_v) noexcept nogil:
    """Count a difference that was appended in; those that a window rejects by itself do not count."""
    cdef OdCoarse* c = &ch.coarse
    cdef double move = difference_v - c.level_v
    if not ch.centred:
        c.level_v = difference_v
        return
    if fabs(move) < TUKEY_C * ch.scale.value:
        c.total[0] += move
        c.count[0] += 1
    c.entries += 1
    if c.entries < OD_QUARTET:
        return
    od_test_block(ch)
    c.entries = 0
    c.total[1] = c.total[0]
    c.count[1] = c.count[0]
    c.total[0] = 0.0
    c.count[0] = 0


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
    cdef double share, dark_v
    cdef int64_t span_ns = after.middle_ns - ch.off.middle_ns
    if span_ns <= 0 or span_ns > <int64_t>(6.0 * (after.used + ch.on.used + ch.off.used + 6) * ch.period_ns):
        return
    share = <double>(ch.on.middle_ns - ch.off.middle_ns) / <double>span_ns
    dark_v = ch.off.mean_v + share * (after.mean_v - ch.off.mean_v)
    od_lit_mean(ch, dark_v, &ch.on)
    entry.ambient_v = <float>dark_v
    entry.difference_v = ch.on.mean_v - dark_v
    od_expect(ch, entry.difference_v)
    entry.on_inverse = <float>(1.0 / ch.on.count)
    entry.off_count = <uint8_t>after.used
    entry.used = <uint8_t>ch.on.used
    entry.rejected = <uint8_t>ch.on.rejected
    entry.flags = ch.off.flags | ch.on.flags | after.flags
    if od_ambient_step(ch, &ch.off, after):
        entry.flags |= ENTRY_STEP
        ch.mains.spoiled = 1
    od_append(s, ch, &entry, ch.on.middle_ns)
    if not entry.flags & ENTRY_STEP:
        od_watch_blocks(ch, entry.difference_v)
    ch.closed_ns = od_newest_ns(ch)


cdef inline void od_close_unchopped(OdState* s, OdChannel* ch, const OdHalf* half) noexcept nogil:
    """Light that is always on, or always off: the level itself is the entry."""
    cdef OdEntry entry
    entry.difference_v = half.mean_v
    od_expect(ch, half.mean_v)
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
    od_spread(ch)
    half.used = ch.count
    half.count = ch.count
    if ch.phase == PHASE_OFF:
        half.mean_v = od_plain_mean(ch.sample, ch.count)
    else:
        memcpy(ch.lit, ch.sample, ch.count * sizeof(double))
        if not changed:
            od_lit_mean(ch, 0.0, &half)
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
