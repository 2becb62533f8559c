# Why compiled: the newest chop periods become a value with its error, ten times a second for every photodiode.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: volts, hertz, nanoseconds.

from libc.math cimport NAN, ceil, fabs, pow, sqrt
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport abs
from libc.string cimport memset

from stirbar.rt.od_nulls cimport od_design_nulls, od_window_entries
from stirbar.rt.od_state cimport (
    ENTRY_CLIPPED, ENTRY_DARK, ENTRY_GAP, ENTRY_STEP, ENTRY_UNCHOPPED, ENTRY_WEAK, OD_DECIDE_S, OD_FEWEST,
    OD_FIRST_READING_S, OD_ITERATIONS, OD_RING, OD_SCALE_ENTRIES, OdChannel, OdEntry, OdNulls, OdState, OdSums,
    OdWindow,
)
from stirbar.rt.robust cimport (
    TUKEY_C, CarriedScale, carried_scale_push, mad_scale, median_in_place, winsorised_scale,
)
from stirbar.rt.types cimport (
    FLAG_AMBIENT_STEP, FLAG_BUBBLES, FLAG_DARK, FLAG_GAP, FLAG_SATURATED, FLAG_UNCHOPPED,
)


cdef inline double od_scale_now(const CarriedScale* carried, double square, int32_t pairs) noexcept nogil:
    """The carried scale; in the first second, what there is of it; 0 before."""
    if carried.count:
        return carried.value
    return sqrt(square / pairs) if pairs >= 16 else 0.0


cdef inline int od_available(const OdState* s, const OdChannel* ch, int wanted, double window_s) noexcept nogil:
    """How many of the newest entries, at most `wanted`, lie within a window that ends with the newest one."""
    cdef int n = wanted if wanted < ch.entries else ch.entries
    cdef int slot
    cdef uint32_t newest, limit
    if n == 0:
        return 0
    newest = ch.entry[ch.cursor - 1 if ch.cursor else OD_RING - 1].tick
    limit = <uint32_t>((1.25e9 * window_s + 2.0 * s.spacing_ns) / 128.0)
    while n > 1:
        slot = ch.cursor - n
        if slot < 0:
            slot += OD_RING
        if <uint32_t>(newest - ch.entry[slot].tick) <= limit:
            break
        n -= 1
    return n


cdef inline void od_weigh(
    const float* null_weight, const OdChannel* ch, int count, double level, double inverse_cut, int skip, OdSums* result
) noexcept nogil:
    """All sums over the newest `count` entries with Tukey's weights about `level` (`inverse_cut` 0: without).

    Weights of the nulls (NULL: equal ones), less for entries of few conversions, none for those whose flags are in
    `skip`. Noise of single conversions is carried through: entry m has the weight g_m, its on half-cycle g_m and each
    off half-cycle half the sum of its neighbours' weights.
    """
    cdef OdSums sums
    cdef const OdEntry* e
    cdef const OdEntry* end = &ch.entry[0] + OD_RING
    cdef double before = 0.0
    cdef double enough_inverse = ch.enough_inverse
    cdef double off_inverse = 0.0
    cdef double g, u, v, w
    cdef int off_count = 0
    cdef int slot = ch.cursor - count
    cdef int i
    memset(&sums, 0, sizeof(OdSums))
    e = &ch.entry[slot if slot >= 0 else slot + OD_RING]
    for i in range(count):
        sums.ambient_v += e.ambient_v
        sums.flags |= e.flags
        w = 0.0
        if not e.flags & ENTRY_STEP:
            g = null_weight[i] if null_weight != NULL else 1.0
            if e.on_inverse > enough_inverse:
                g *= enough_inverse / e.on_inverse
            sums.whole += g
            sums.lit += e.used
            v = e.difference_v - level
            u = v * inverse_cut
            u = 1.0 - u * u
            if u > 0.0 and not e.flags & skip:
                g *= u
                w = g * u
                sums.weights += w
                sums.moment += w * v
                sums.slope += g * (5.0 * u - 4.0)
                sums.squares += w * w
                sums.on_variance += w * w * e.on_inverse
                sums.used += e.used - e.rejected + e.off_count
                sums.rejected += e.rejected
            else:
                sums.rejected += e.used
        if e.off_count:
            if e.off_count != off_count:
                off_count = e.off_count
                off_inverse = 0.25 / off_count
            sums.off_variance += (before + w) * (before + w) * off_inverse
        before = w
        e += 1
        if e == end:
            e = &ch.entry[0]
    if sums.off_variance > 0.0:
        sums.off_variance += before * before * off_inverse
    result[0] = sums


cdef inline double od_iterate(
    const float* null_weight, const OdChannel* ch, int count, double scale, int skip, double* level, OdSums* sums
) noexcept nogil:
    """Tukey's biweight from *level*: Newton's steps, until one is below a fifth of the scale (what is left is then a
    twentieth of a standard error at most, whatever the count: it goes with the step's square, and as the error does
    with the count); where the slope is too flat for them, reweighting until a step is below that twentieth.

    `sums` are those of the last step. Returns the share of the weight that is left.
    """
    cdef double move
    cdef int _turn
    cdef bint steep
    for _turn in range(OD_ITERATIONS):
        od_weigh(null_weight, ch, count, level[0], 1.0 / (TUKEY_C * scale), skip, sums)
        if not sums.weights > 0.05 * sums.whole:
            break
        steep = sums.slope > 0.5 * sums.weights
        move = sums.moment / (sums.slope if steep else sums.weights)
        level[0] += move
        if fabs(move) < (0.2 * scale if steep else 0.05 * scale / sqrt(<double>count)):
            break
    return sums.weights / sums.whole


cdef inline int od_copy(const OdChannel* ch, int count, double* values) noexcept nogil:
    """Copy the differences of the newest `count` entries but those of ambient steps; returns how many."""
    cdef int slot = ch.cursor - count
    cdef int n = 0
    cdef int _i
    if slot < 0:
        slot += OD_RING
    for _i in range(count):
        if not ch.entry[slot].flags & ENTRY_STEP:
            values[n] = ch.entry[slot].difference_v
            n += 1
        slot = slot + 1 if slot + 1 < OD_RING else 0
    return n


cdef inline uint32_t od_entry_flags(uint32_t entry_flags) noexcept nogil:
    """Flags of a reading that has entries of these flags."""
    cdef uint32_t flags = 0
    if entry_flags & ENTRY_CLIPPED:
        flags |= FLAG_SATURATED
    if entry_flags & ENTRY_GAP:
        flags |= FLAG_GAP
    if entry_flags & ENTRY_STEP:
        flags |= FLAG_AMBIENT_STEP
    if entry_flags & ENTRY_UNCHOPPED:
        flags |= FLAG_UNCHOPPED
    if entry_flags & ENTRY_DARK:
        flags |= FLAG_DARK
    return flags


cdef inline double od_mean_inflation(double correlation, double count) noexcept nogil:
    """Variance of a mean of `count` conversions whose noise is an AR(1), over that of independent ones."""
    cdef double apart = 1.0 - correlation
    if correlation == 0.0 or not count > 1.0:
        return 1.0
    return (1.0 + correlation - 2.0 * correlation * (1.0 - pow(correlation, count)) / (count * apart)) / apart


cdef inline void od_account(
    const OdState* s, const OdChannel* ch, double scale, const OdSums* sums, OdWindow* window
) noexcept nogil:
    """Standard error, bandwidth, counts and flags, from the sums with the final weights."""
    cdef double on = od_scale_now(&ch.on_scale, ch.on_square, ch.on_pairs)
    cdef double off = od_scale_now(&ch.off_scale, ch.off_square, ch.off_pairs)
    window.ambient_v = sums.ambient_v / window.entries
    window.used = sums.used
    window.rejected = sums.rejected
    window.lit = sums.lit
    window.entry_flags = sums.flags
    window.flags |= od_entry_flags(sums.flags)
    if not sums.weights > 0.0:
        window.se_v = NAN
        window.bandwidth_hz = NAN
        return
    if on > 0.0:
        window.se_v = sqrt((sums.on_variance * on * on + sums.off_variance * off * off) * od_mean_inflation(
            ch.correlation, sums.lit / <double>window.entries)) / sums.weights
    else:
        window.se_v = sqrt(sums.squares) * scale / sums.weights
    window.squares = sums.squares / (sums.weights * sums.weights)
    window.bandwidth_hz = window.squares * 0.5e9 / s.spacing_ns
    if 4 * window.rejected > sums.lit:
        window.flags |= FLAG_BUBBLES


cdef inline int od_window(OdState* s, OdChannel* ch, int which, OdWindow* window) noexcept nogil:
    """Value of a channel's newest window, of the length of rate `which`. Returns 0, or -1 when there is not enough."""
    cdef double work[OD_RING]
    cdef OdSums sums
    cdef OdNulls* nulls = &s.rate[which].nulls
    cdef const float* weight
    cdef int wanted = od_window_entries(s, which)
    cdef int fewest = <int>ceil(OD_FIRST_READING_S * 1e9 / s.spacing_ns)
    cdef int n = 0
    cdef int turn
    cdef double scale = ch.scale.value
    cdef double kept = 1.0
    cdef double centre
    cdef double before = ch.level_v[which]
    memset(window, 0, sizeof(OdWindow))
    if nulls.count == 0 or 5 * abs(nulls.count - wanted) > wanted:
        od_design_nulls(s, nulls, wanted)
    wanted = nulls.count  # a small change waits for its own turn (DUE_NULLS)
    fewest = fewest if fewest > OD_FEWEST else OD_FEWEST
    window.entries = od_available(s, ch, wanted, s.rate[which].window_s)
    window.full = window.entries == wanted
    weight = &s.null_weight[nulls.begin] if window.full else NULL
    if window.entries < (fewest if fewest < wanted else wanted):
        return -1
    window.window_s = window.entries * s.spacing_ns * 1e-9
    window.end_ns = ch.closed_ns
    window.value_v = before
    if not ch.leveled[which] or ch.scale.count == 0:
        n = od_copy(ch, window.entries, work)
        if n == 0:
            return -1
        centre = median_in_place(work, n)
        window.value_v = centre
        if ch.scale.count == 0:
            scale = mad_scale(work, n, centre)
    if scale > 0.0:
        kept = od_iterate(weight, ch, window.entries, scale, ENTRY_WEAK, &window.value_v, &sums)
        if kept < 0.6 and ch.leveled[which]:
            # a short window asks a longer one where the level is; when that has nothing in common with it, itself
            n = <int>(OD_DECIDE_S * 1e9 / s.spacing_ns + 0.5)
            n = n if n > window.entries else window.entries
            for turn in range(2):
                n = od_copy(ch, od_available(s, ch, n, n * s.spacing_ns * 1e-9), work)
                if n == 0:
                    return -1
                centre = median_in_place(work, n)
                window.restarted = fabs(centre - before) > TUKEY_C * scale
                window.value_v = centre
                kept = od_iterate(
                    weight, ch, window.entries, scale, 0 if turn else ENTRY_WEAK, &window.value_v, &sums)
                if kept > 0.1:
                    break
                n = window.entries
    else:
        od_weigh(weight, ch, window.entries, window.value_v, 0.0, 0, &sums)
    if sums.lit == 0:
        return -1
    window.kept = kept
    od_account(s, ch, scale, &sums, window)
    ch.level_v[which] = window.value_v
    ch.leveled[which] = 1
    return 0


cdef inline void od_update_scales(OdState* s, OdChannel* ch) noexcept nogil:
    """Once a second: scales of the differences of the last second (or of 16 chop periods), and of conversions."""
    cdef double work[OD_RING]
    cdef double centre, start
    cdef int n = <int>(1e9 / s.spacing_ns + 0.5)
    cdef bint trusted = ch.trusted
    n = n if n > OD_SCALE_ENTRIES else OD_SCALE_ENTRIES
    n = od_copy(ch, od_available(s, ch, OD_RING if n > OD_RING else n, n * s.spacing_ns * 1e-9), work)
    if n < 8:
        return
    centre = median_in_place(work, n)
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
    start = ch.on_scale.value * ch.on_scale.value * (1.0 - ch.enough_inverse) + ch.scale.value * ch.scale.value
    ch.lit_scale = sqrt(start) if start > 0.0 else 0.0
    ch.on_square = 0.0
    ch.off_square = 0.0
    ch.on_pairs = 0
    ch.off_pairs = 0
