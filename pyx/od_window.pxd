# Why compiled: the newest chop periods become a value with its error, ten times a second for every photodiode.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: volts, hertz, nanoseconds.

from libc.math cimport NAN, ceil, fabs, sqrt
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memset

from stirbar.rt.od_nulls cimport od_design_nulls, od_window_entries
from stirbar.rt.od_state cimport (
    ENTRY_CLIPPED, ENTRY_DARK, ENTRY_GAP, ENTRY_STEP, ENTRY_UNCHOPPED, OD_FEWEST, OD_FIRST_READING_S, OD_ITERATIONS,
    OD_RING, OD_TUKEY_LOSS, OdChannel, OdEntry, OdState, OdWindow,
)
from stirbar.rt.robust cimport (
    TUKEY_C, CarriedScale, carried_scale_push, mad_scale, median_in_place, tukey_weight, winsorised_scale,
)
from stirbar.rt.types cimport (
    FLAG_AMBIENT_STEP, FLAG_BUBBLES, FLAG_DARK, FLAG_GAP, FLAG_SATURATED, FLAG_UNCHOPPED,
)


cdef inline double od_scale_now(const CarriedScale* carried, double square, int32_t pairs) noexcept nogil:
    """The carried scale; in the first second, what there is of it; 0 before."""
    if carried.count:
        return carried.value
    return sqrt(square / pairs) if pairs >= 16 else 0.0


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
