# Why compiled: says of each read of a silent converter which conversion it was, which paces the sampling thread.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: nanoseconds of the loop's clock; codes; fractions of a conversion period where nothing else is said.
#
# A free-running converter without ALERT/RDY overwrites its register at the end of each conversion and tells nobody. The
# light is ours: of a conversion during which it goes on, the code lies between the levels before and after, and how far
# between says how long before the conversion's end that was. Two phases: pilot_acquire.pxd finds rate and phase from
# nothing; here they are tracked, by a Kalman filter on (end, period), and every read gets its number from them.
# Derivations and figures: docs/converter-clock.md.

from libc.math cimport fabs, floor, sqrt
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t

from stirbar.rt.pilot_acquire cimport (
    Acquisition, acquisition_begin, acquisition_edge, acquisition_read, acquisition_solve)

cdef enum:
    PILOT_CODES = 32         # newest conversions that are remembered (a power of two)
    PILOT_EDGES = 8          # newest changes of the light (a power of two)
    PILOT_COAST = 64         # conversions after which the uncertainty is carried on although no edge came
    PILOT_TRIAL_COUNT = 8    # edges that must agree before the clock is believed
    PILOT_TRIAL_EDGES = 64   # within which they must
    PILOT_LOST_COUNT = 24    # edges that disagree in a row before it is not any more

cdef enum:                   # Pilot.state
    PILOT_ACQUIRING = 0
    PILOT_TRYING = 1         # conversions have numbers, edges must still agree
    PILOT_LOCKED = 2

cdef enum:                   # what pilot_read says of a read
    PILOT_NOTHING = 0        # not locked yet
    PILOT_NEW = 1            # conversion last_index, read for the first time
    PILOT_REPEATED = 2       # read before
    PILOT_UNSURE = 3         # so near the end of a conversion that it may be either: not used

cdef extern from *:
    """
    #define STIRBAR_PILOT_LATCH_NS 40e3      /* what reads and edges have in common, and nobody knows */
    #define STIRBAR_PILOT_DELAY 0.145        /* of the light's settling to 0.1 %: its time constant, delays an edge */
    #define STIRBAR_PILOT_WANDER 1e-6        /* of the rate, per root second: temperature */
    #define STIRBAR_PILOT_LEAN 0.7           /* mean of 16 normalised residuals, 0.18 when all is well */
    #define STIRBAR_PILOT_HASTE 16.0         /* times the wander's variance, then */
    #define STIRBAR_PILOT_CALM 0.98          /* of that, left after each edge */
    #define STIRBAR_PILOT_SIGMAS 3.0         /* a residual counts with at most so many standard deviations */
    #define STIRBAR_PILOT_FAINT 25.0         /* squared swing over the variance of a conversion, at least */
    #define STIRBAR_PILOT_POSITION 0.25      /* of a period after its end a conversion is read, when that is sure */
    #define STIRBAR_PILOT_GUARD_MOST 0.35   /* then no read is sure any more */
    #define STIRBAR_PILOT_RATE_MOST 0.13     /* of the nominal rate, off */
    #define STIRBAR_PILOT_TRIAL_MORE 1500.0  /* edges for a whole period squared of scatter */
    #define STIRBAR_PILOT_TRUST 0.12         /* of a period: scatter of the edges at which a trial is passed */
    #define STIRBAR_PILOT_DOUBT 0.22         /* and at which the lock is given up */
    """
    const double PILOT_LATCH_NS "STIRBAR_PILOT_LATCH_NS"
    const double PILOT_DELAY "STIRBAR_PILOT_DELAY"
    const double PILOT_WANDER "STIRBAR_PILOT_WANDER"
    const double PILOT_LEAN "STIRBAR_PILOT_LEAN"
    const double PILOT_HASTE "STIRBAR_PILOT_HASTE"
    const double PILOT_CALM "STIRBAR_PILOT_CALM"
    const double PILOT_SIGMAS "STIRBAR_PILOT_SIGMAS"
    const double PILOT_FAINT "STIRBAR_PILOT_FAINT"
    const double PILOT_POSITION "STIRBAR_PILOT_POSITION"
    const double PILOT_GUARD_MOST "STIRBAR_PILOT_GUARD_MOST"
    const double PILOT_RATE_MOST "STIRBAR_PILOT_RATE_MOST"
    const double PILOT_TRIAL_MORE "STIRBAR_PILOT_TRIAL_MORE"
    const double PILOT_TRUST "STIRBAR_PILOT_TRUST"
    const double PILOT_DOUBT "STIRBAR_PILOT_DOUBT"

cdef struct PilotCode:
    uint32_t index
    int32_t code

cdef struct Pilot:
    # the clock: conversion `index` ends at origin_ns + end_ns
    int64_t origin_ns
    double end_ns
    double period_ns
    double inverse           # 1 / period_ns
    double end_variance      # ns^2
    double cross_variance
    double period_variance
    double edge_variance     # ns^2, of one edge's residual, learned from them
    double lean              # mean of the normalised residuals
    double haste             # times the wander's variance; 1 when all is well
    double guard             # on either side of a conversion's end
    double swing             # |on - off|, codes
    double noise_square      # variance of a conversion, codes^2
    double nominal_ns
    double settle_ns         # of the light path, to 0.1 %
    double width_ns          # mean of the edges' own uncertainty
    int64_t read_ns          # latch of the newest read
    int64_t edge_ns[PILOT_EDGES]
    uint32_t edge_count
    uint32_t edge_done       # edges before this one have been looked at
    uint32_t look_index      # the oldest edge before it need not be looked at earlier
    uint32_t trial_edge      # at which the trial began
    uint32_t edge_vague      # bit by slot: the write took so long that nobody knows when the light changed
    uint32_t index
    uint32_t last_index      # newest conversion that was read
    PilotCode newest[PILOT_CODES]
    int32_t state
    int32_t corrections      # since the clock was found
    int32_t disagreeing
    int32_t numbered         # last_index is valid
    # counters, only ever grow
    uint32_t missed          # conversions that were overwritten unread, or read too near their end
    uint32_t repeated
    uint32_t unsure
    uint32_t outliers        # edges whose residual was cut
    uint32_t faint           # edges with too little light to tell
    uint32_t locks
    Acquisition acquisition


cdef inline void pilot_init(Pilot* p, double rate_hz, int64_t settle_ns, int64_t now_ns) noexcept nogil:
    """Begin with a converter of nominal `rate_hz`, 12 % off at most, whose light settles in `settle_ns`."""
    cdef uint32_t i
    p.nominal_ns = 1e9 / rate_hz
    p.settle_ns = <double>settle_ns
    p.period_ns = p.nominal_ns
    p.inverse = 1.0 / p.nominal_ns
    p.origin_ns = now_ns
    p.end_ns = 0.0
    p.end_variance = p.cross_variance = p.period_variance = p.edge_variance = 0.0
    p.haste = 1.0
    p.lean = p.guard = p.swing = p.noise_square = p.width_ns = 0.0
    p.read_ns = now_ns
    p.edge_count = p.edge_done = p.edge_vague = p.trial_edge = p.look_index = 0
    p.index = p.last_index = 0
    for i in range(PILOT_CODES):
        p.newest[i].index = i + 1   # no slot holds its own number: all empty
        p.newest[i].code = 0
    p.state = PILOT_ACQUIRING
    p.corrections = p.disagreeing = p.numbered = 0
    p.missed = p.repeated = p.unsure = p.outliers = p.faint = p.locks = 0
    acquisition_begin(&p.acquisition, p.nominal_ns, p.nominal_ns, False, now_ns)


# --- what the clock says ---

cdef inline int64_t pilot_end_ns(const Pilot* p, uint32_t index) noexcept nogil:
    """When conversion `index` ends."""
    return p.origin_ns + <int64_t>(p.end_ns + <int32_t>(index - p.index) * p.period_ns)


cdef inline double pilot_rate_hz(const Pilot* p) noexcept nogil:
    return 1e9 / p.period_ns


cdef inline double pilot_end_sd_ns(const Pilot* p) noexcept nogil:
    """Standard error of the clock, without what all edges have in common."""
    return sqrt(p.end_variance)


cdef inline double pilot_period_sd_ns(const Pilot* p) noexcept nogil:
    return sqrt(p.period_variance)


cdef inline int64_t pilot_next_ns(const Pilot* p, int64_t lead_ns) noexcept nogil:
    """When to wake for the next read: soon after the next conversion's end, for a thread is late more often than early.
    `lead_ns` earlier, as far as that is safe, where the light is to be switched first."""
    cdef double position = PILOT_POSITION - <double>lead_ns * p.inverse
    cdef double least = p.guard + (0.1 if lead_ns == 0 else 0.04)
    cdef double done
    cdef int64_t next
    cdef int32_t ahead
    if p.state == PILOT_ACQUIRING:
        return p.read_ns + <int64_t>(0.25 * p.nominal_ns)
    position = least if position < least else position
    done = (<double>(p.read_ns - p.origin_ns) - p.end_ns) * p.inverse - position
    ahead = <int32_t>floor(done) + 1
    if p.numbered and ahead <= <int32_t>(p.last_index - p.index):
        ahead = <int32_t>(p.last_index - p.index) + 1
    next = p.origin_ns + <int64_t>(p.end_ns + (ahead + position) * p.period_ns)
    return next


cdef inline int64_t pilot_next_edge_ns(const Pilot* p) noexcept nogil:
    """When the light is to change while the clock is being found: intervals that no wrong rate within bounds fits."""
    cdef double interval = 6.5 if p.edge_count & 2 else 4.0
    if p.state == PILOT_LOCKED:
        return INT64_MAX
    if p.edge_count == 0:
        return p.acquisition.begin_ns + <int64_t>(interval * p.nominal_ns)
    return p.edge_ns[(p.edge_count - 1) & (PILOT_EDGES - 1)] + <int64_t>(interval * p.nominal_ns)


# --- the filter ---

cdef inline void pilot_advance(Pilot* p, int32_t steps) noexcept nogil:
    """Carry the clock and its doubt on by conversions: the rate wanders by PILOT_WANDER per root second."""
    cdef double n = steps
    cdef double wander = PILOT_WANDER * p.period_ns
    cdef double q = wander * wander * p.period_ns * 1e-9 * p.haste
    if steps <= 0:
        return
    p.end_ns += n * p.period_ns
    p.index += <uint32_t>steps
    p.end_variance += n * (2.0 * p.cross_variance + n * (p.period_variance + q * n * 0.3333333333333333))
    p.cross_variance += n * (p.period_variance + 0.5 * q * n)
    p.period_variance += q * n
    if p.end_ns > 1e12:
        p.origin_ns += <int64_t>1e12
        p.end_ns -= 1e12


cdef inline void pilot_lose(Pilot* p, int64_t now_ns) noexcept nogil:
    """Look for the clock again, near the rate that it had while it was believed."""
    cdef bint known = p.state == PILOT_LOCKED
    p.state = PILOT_ACQUIRING
    acquisition_begin(&p.acquisition, p.period_ns if known else p.nominal_ns, p.nominal_ns, known, now_ns)


cdef inline void pilot_refresh(Pilot* p) noexcept nogil:
    """What follows from the variances."""
    p.inverse = 1.0 / p.period_ns
    p.guard = (PILOT_LATCH_NS + PILOT_DELAY * p.settle_ns + 4.0 * sqrt(p.end_variance)) * p.inverse
    if p.guard > PILOT_GUARD_MOST:
        pilot_lose(p, p.read_ns)
    elif p.state == PILOT_TRYING and p.guard > 0.2:
        p.guard = 0.2


cdef inline void pilot_judge(Pilot* p) noexcept nogil:
    """Whether the clock is believed."""
    cdef double scatter = p.edge_variance * p.inverse * p.inverse
    cdef double off = p.period_ns / p.nominal_ns - 1.0
    if p.disagreeing >= PILOT_LOST_COUNT or scatter > PILOT_DOUBT * PILOT_DOUBT or fabs(off) > PILOT_RATE_MOST:
        pilot_lose(p, p.read_ns)
        return
    # edges that scatter agree by chance more easily: 8 of them at 1 %, 30 at 12 %
    if (p.state == PILOT_TRYING and scatter < PILOT_TRUST * PILOT_TRUST
            and p.corrections >= PILOT_TRIAL_COUNT + PILOT_TRIAL_MORE * scatter):
        p.state = PILOT_LOCKED
        p.locks += 1
    pilot_refresh(p)


cdef inline void pilot_correct(Pilot* p, double residual) noexcept nogil:
    """One edge: the conversion's end seen minus the end predicted, ns, at `index` as it is now."""
    cdef double variance = p.end_variance + p.edge_variance
    cdef double deviation = sqrt(variance)
    cdef double cut = PILOT_SIGMAS * deviation
    cdef double gain, rate_gain, square
    if fabs(residual) > cut:
        p.outliers += 1
        p.disagreeing += 1
        residual = cut if residual > 0.0 else -cut
    else:
        p.disagreeing = 0
    p.corrections += 1
    square = residual * residual - p.end_variance - p.edge_variance
    p.edge_variance += square * (0.015625 if p.corrections > 64 else 1.0 / (8.0 + 0.875 * p.corrections))
    if p.edge_variance < 4e6:
        p.edge_variance = 4e6
    p.lean += (residual / deviation - p.lean) * 0.0625
    gain = p.end_variance / variance
    rate_gain = p.cross_variance / variance
    p.end_ns += gain * residual
    p.period_ns += rate_gain * residual
    p.period_variance -= rate_gain * p.cross_variance
    p.cross_variance -= gain * p.cross_variance
    p.end_variance -= gain * p.end_variance
    p.haste = 1.0 + (p.haste - 1.0) * PILOT_CALM
    if fabs(p.lean) > PILOT_LEAN and p.haste < 1e9:
        p.haste *= PILOT_HASTE
        p.lean *= 0.5
    pilot_judge(p)


# --- edges ---

cdef inline const PilotCode* pilot_code(const Pilot* p, uint32_t index) noexcept nogil:
    """NULL where that conversion was not read, or clipped."""
    cdef const PilotCode* held = &p.newest[index & (PILOT_CODES - 1)]
    return held if held.index == index else NULL


cdef inline int pilot_levels(
    Pilot* p, uint32_t first, uint32_t last, double* before, double* after
) noexcept nogil:
    """Light before conversion `first` and after conversion `last`, and the noise of both: 1, or 0 when they were not
    read."""
    cdef const PilotCode* a = pilot_code(p, first - 2)
    cdef const PilotCode* b = pilot_code(p, first - 1)
    cdef const PilotCode* c = pilot_code(p, last + 1)
    cdef const PilotCode* d = pilot_code(p, last + 2)
    cdef double square
    if a == NULL or b == NULL or c == NULL or d == NULL:
        return 0
    before[0] = 0.5 * (a.code + b.code)
    after[0] = 0.5 * (c.code + d.code)
    square = 0.25 * ((a.code - b.code) * <double>(a.code - b.code) + (c.code - d.code) * <double>(c.code - d.code))
    if square > 9.0 * p.noise_square + 1.0:
        square = 9.0 * p.noise_square + 1.0
    p.noise_square += (square - p.noise_square) * 0.03125
    return 1


cdef inline void pilot_use_edge(Pilot* p, int64_t at_ns, uint32_t first, uint32_t last) noexcept nogil:
    """Correct the clock by the conversions first..last, within which the light changed at `at_ns`.

    Their distances from the level before, over the whole step, add up to the time from the edge to the end of the last
    one in periods, wherever the edge is: an edge on the boundary of two conversions is no special case.
    """
    cdef double before, after, step, share, residual
    cdef const PilotCode* held
    cdef uint32_t index
    cdef bint odd
    if not pilot_levels(p, first, last, &before, &after):
        return
    step = after - before
    if step * step < PILOT_FAINT * (p.noise_square + 0.0833333):
        p.faint += 1
        return
    odd = fabs(step) < 0.6 * p.swing or fabs(step) > 1.6 * p.swing
    p.swing += (fabs(step) - p.swing) * 0.0625
    share = 0.0
    for index in range(first, last + 1):
        held = pilot_code(p, index)
        if held == NULL:
            return
        share += (held.code - before) / step
    if odd or share < -0.5 or share > (last - first) + 1.5:
        p.outliers += 1   # a step of other light, or a bubble: says nothing of the clock
        return
    pilot_advance(p, <int32_t>(last - p.index))
    residual = <double>(at_ns - p.origin_ns) + PILOT_DELAY * p.settle_ns - p.end_ns
    residual += (share + <int32_t>(p.index - last)) * p.period_ns
    pilot_correct(p, residual)


cdef inline bint pilot_is_alone(const Pilot* p, uint32_t edge, double begin_ns, double end_ns) noexcept nogil:
    """Whether no other edge falls between two moments, counted from the origin."""
    cdef double other
    if edge:
        other = <double>(p.edge_ns[(edge - 1) & (PILOT_EDGES - 1)] - p.origin_ns)
        if other + p.settle_ns > begin_ns:
            return False
    if edge + 1 != p.edge_count:
        other = <double>(p.edge_ns[(edge + 1) & (PILOT_EDGES - 1)] - p.origin_ns)
        if other < end_ns:
            return False
    return True


cdef inline void pilot_measure(Pilot* p) noexcept nogil:
    """Look at the oldest edge that has not been, once the conversions around it have been read."""
    cdef uint32_t slot = p.edge_done & (PILOT_EDGES - 1)
    cdef int64_t at_ns = p.edge_ns[slot]
    cdef double ahead = (<double>(at_ns - p.origin_ns) - p.end_ns) * p.inverse
    cdef int32_t whole = <int32_t>ahead + (ahead > 0.0)
    cdef uint32_t first = p.index + <uint32_t>whole
    cdef uint32_t last = first
    cdef double left = whole - ahead      # of the straddling conversion, after the edge
    cdef double slack = 0.25 * p.guard    # one standard deviation, and the time of the write
    if left < slack + p.settle_ns * p.inverse:
        last += 1
    if left > 1.0 - slack:
        first -= 1
    if <int32_t>(p.last_index - last) < 2:
        p.look_index = last + 2
        return
    p.edge_done += 1
    p.look_index = p.last_index
    if p.edge_vague & (<uint32_t>1 << slot):
        return
    if pilot_is_alone(p, p.edge_done - 1, p.end_ns + (<int32_t>(first - p.index) - 3) * p.period_ns,
                      p.end_ns + (<int32_t>(last - p.index) + 2) * p.period_ns):
        pilot_use_edge(p, at_ns, first, last)


cdef inline void pilot_found(Pilot* p) noexcept nogil:
    """Take over what the acquisition found; numbers go on where an old clock would be by now."""
    cdef Acquisition* found = &p.acquisition
    cdef double gone
    cdef int32_t steps = 0
    if p.numbered:
        gone = (<double>(found.end_at_ns - p.origin_ns) - p.end_ns) * p.inverse
        steps = <int32_t>floor(gone + 0.5)
        steps = steps if <int32_t>(p.index - p.last_index) + steps >= 0 else <int32_t>(p.last_index - p.index)
    p.index += <uint32_t>steps
    p.origin_ns = found.end_at_ns
    p.end_ns = 0.0
    p.period_ns = found.period_ns
    p.inverse = 1.0 / p.period_ns
    p.end_variance = 0.05 * p.period_ns * 0.05 * p.period_ns
    p.period_variance = found.period_sd_ns * found.period_sd_ns
    p.cross_variance = 0.0
    p.edge_variance = 0.03 * p.period_ns * 0.03 * p.period_ns
    p.lean = 0.0
    p.swing = found.swing
    p.noise_square = found.noise_square
    p.corrections = p.disagreeing = 0
    p.edge_done = p.edge_count - 1 if p.edge_count else 0
    p.trial_edge = p.edge_count
    p.look_index = p.last_index
    p.haste = 1.0
    p.state = PILOT_TRYING
    pilot_refresh(p)


cdef inline void pilot_edge(Pilot* p, int64_t from_ns, int64_t to_ns) noexcept nogil:
    """The light went on or off between `from_ns` and `to_ns`, which are as near to each other as the caller knows."""
    cdef uint32_t slot = p.edge_count & (PILOT_EDGES - 1)
    cdef int64_t at_ns = from_ns + (to_ns - from_ns) // 2
    cdef double width = <double>(to_ns - from_ns)
    cdef bint vague = width > 4.0 * p.width_ns + 2e4 and p.edge_count > 0
    p.width_ns += ((4.0 * p.width_ns + 2e4 if vague else width) - p.width_ns) * 0.0625
    p.edge_ns[slot] = at_ns
    if p.edge_done == p.edge_count:
        p.look_index = p.last_index
    p.edge_count += 1
    p.edge_vague &= ~(<uint32_t>1 << slot)
    if vague:
        p.edge_vague |= <uint32_t>1 << slot
    if p.edge_count - p.edge_done > PILOT_EDGES:
        p.edge_done = p.edge_count - PILOT_EDGES
    if p.state == PILOT_TRYING and p.edge_count - p.trial_edge > PILOT_TRIAL_EDGES:
        pilot_lose(p, to_ns)
    if p.state == PILOT_ACQUIRING:
        acquisition_edge(&p.acquisition, at_ns, vague)
        if acquisition_solve(&p.acquisition):
            pilot_found(p)


cdef inline void pilot_forget(Pilot* p) noexcept nogil:
    """Codes are on another scale from here on: what was read before does not compare with what comes."""
    cdef uint32_t i
    for i in range(PILOT_CODES):
        p.newest[i].index = i + 1
    p.edge_done = p.edge_count
    if p.state == PILOT_ACQUIRING:
        p.acquisition.reads = 0
        p.acquisition.leveled = 0
        p.acquisition.vague = 1


# --- reads ---

cdef inline void pilot_keep(Pilot* p, uint32_t index, int32_t code, int clipped) noexcept nogil:
    cdef PilotCode* held = &p.newest[index & (PILOT_CODES - 1)]
    held.index = index if not clipped else index + 1
    held.code = code


cdef inline int pilot_read(Pilot* p, int64_t latch_ns, int32_t code, int clipped) noexcept nogil:
    """The register held `code` at `latch_ns`. Says what it was (PILOT_NEW...); a new one is conversion `last_index`."""
    cdef double gone
    cdef uint32_t index
    cdef int32_t whole, step
    p.read_ns = latch_ns
    if p.state == PILOT_ACQUIRING:
        acquisition_read(&p.acquisition, latch_ns, code, clipped)
        return PILOT_NOTHING
    gone = (<double>(latch_ns - p.origin_ns) - p.end_ns) * p.inverse
    whole = <int32_t>gone
    if whole > gone:
        whole -= 1
    gone -= whole
    index = p.index + <uint32_t>whole
    if gone < p.guard or gone > 1.0 - p.guard:
        p.unsure += 1
        return PILOT_UNSURE
    step = <int32_t>(index - p.last_index)
    if p.numbered and step <= 0:
        p.repeated += 1
        return PILOT_REPEATED
    if p.numbered and p.state == PILOT_LOCKED:
        p.missed += <uint32_t>(step - 1)
    p.numbered = 1
    p.last_index = index
    pilot_keep(p, index, code, clipped)
    if p.edge_done != p.edge_count and <int32_t>(index - p.look_index) >= 0:
        pilot_measure(p)
    if <int32_t>(index - p.index) > PILOT_COAST:
        pilot_advance(p, PILOT_COAST // 2)
        pilot_refresh(p)
    return PILOT_NEW if p.state == PILOT_LOCKED else PILOT_NOTHING
