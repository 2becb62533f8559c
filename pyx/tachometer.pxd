# Why compiled: every edge of the hall sensor passes here, in the actuator thread, and a day of them in virtual time.
# Thread rule: pure functions on one flat struct; the thread that owns the struct calls them.
# Units: stamps and intervals in nanoseconds of the loop's clock, speeds in turns a minute (rpm).
#
# Speed is the slope of a least-squares line through the edges' times: with edges n = 0..m-1 of equal stamp noise s the
# period has the standard error s / sqrt(sum((n - mean n)^2)), 1.1 to 5 times better than first-to-last.

from libc.errno cimport EINVAL
from libc.math cimport fabs, sqrt
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

cdef enum:
    TACHOMETER_EDGES = 128               # held for the fit; a power of two
    TACHOMETER_PULSES_MAXIMUM = 8        # per turn
    TACHOMETER_RPM_LIMIT = 6000          # edges that follow faster than this are bounce
    TACHOMETER_RPM_ZERO = 20             # slower than this is "does not turn"
    TACHOMETER_STEADY_EDGES = 3          # edges in a row with the same interval before oddities can be told
    TACHOMETER_STEADY_PERCENT = 25       # "the same": vortex and load vary a turn by up to this
    TACHOMETER_BOUNCE_PERCENT = 40       # in steady turning: shorter than this part of the interval is no edge of ours
    TACHOMETER_LOST_PERCENT = 160        # longer: an edge was lost
    TACHOMETER_LOST_LIMIT_PERCENT = 350  # longer than this is no loss of one or two edges, but another speed
    TACHOMETER_SUSPECTS = 3              # rejections in a row after which the edges are believed
    TACHOMETER_BOUND_PERCENT = 225       # silent for this part of the interval: one lost edge does not explain it
    TACHOMETER_STAMP_NOISE_NS = 50000    # of a kernel line event; the prior of the standard error, worth two edges

cdef struct Tachometer:
    int64_t stamps_ns[TACHOMETER_EDGES]  # ring; entry i is at i & (TACHOMETER_EDGES - 1)
    int64_t indices[TACHOMETER_EDGES]    # which pulse it is: lost edges leave holes
    int64_t minimum_interval_ns
    int64_t silent_ns                    # an interval longer than this begins a new run of edges
    int64_t late_ns                      # silence that one lost edge does not explain; 0 speed unknown
    uint32_t pulses_per_turn
    uint32_t head                        # edges accepted since the restart; the newest is entry head - 1
    uint32_t held                        # newest edges that belong to one unbroken run
    uint32_t steady                      # edges in a row whose interval matched the turn before
    uint32_t suspects                    # odd edges in a row
    uint32_t broken                      # 1: the pattern broke and no two intervals have agreed since
    uint32_t bounced                     # counter: edges rejected as bounce or duplicate
    uint32_t lost                        # counter: edges inferred from double and triple intervals
    uint32_t restarts                    # counter: runs of edges given up because their pattern broke
    double turn_ns                       # period of the last turn, 0 unknown

cdef struct TachometerFit:
    double rpm                   # 0: does not turn
    double standard_error_rpm    # of the line: stamp noise and what turns differ by
    double window_s              # first to last edge used
    double turn_mean_ns          # of the whole turns within the window
    double turn_sd_ns            # turn-to-turn variation of the rotor itself (viscosity, vortex); 0 with one turn
    uint32_t turns
    uint32_t used                # edges
    uint32_t bounded             # 1: the silence since the last edge, not the line, made rpm


cdef inline int tachometer_init(Tachometer* t, int pulses_per_turn) noexcept nogil:
    """Start without edges; 0, or -EINVAL when pulses_per_turn is outside 1..TACHOMETER_PULSES_MAXIMUM."""
    memset(t, 0, sizeof(Tachometer))
    t.pulses_per_turn = 1
    if pulses_per_turn < 1 or pulses_per_turn > TACHOMETER_PULSES_MAXIMUM:
        return -EINVAL
    t.pulses_per_turn = pulses_per_turn
    t.minimum_interval_ns = <int64_t>60000000000 // (TACHOMETER_RPM_LIMIT * pulses_per_turn)
    t.silent_ns = <int64_t>60000000000 // (TACHOMETER_RPM_ZERO * pulses_per_turn)
    return 0


cdef inline void tachometer_expect_change(Tachometer* t) noexcept nogil:
    """The drive was changed: the next intervals may differ from the last by any factor."""
    t.steady = 0
    t.suspects = 0


cdef inline void tachometer_restart(Tachometer* t) noexcept nogil:
    """Forget the past, a stamp that was wrong included: the next edge begins a new run."""
    t.head = 0
    t.held = 0
    t.turn_ns = 0.0
    t.late_ns = 0
    t.steady = 0
    t.suspects = 0
    t.broken = 0


cdef inline int64_t tachometer_stamp(const Tachometer* t, uint32_t back) noexcept nogil:
    """Time of the edge `back` before the newest."""
    return t.stamps_ns[(t.head - 1 - back) & (TACHOMETER_EDGES - 1)]


cdef inline int64_t tachometer_index(const Tachometer* t, uint32_t back) noexcept nogil:
    return t.indices[(t.head - 1 - back) & (TACHOMETER_EDGES - 1)]


cdef inline void tachometer_push(Tachometer* t, int64_t stamp_ns, int64_t index) noexcept nogil:
    """Append an edge, and measure the turn (or as much of one as there is) that it ends."""
    cdef uint32_t slot = t.head & (TACHOMETER_EDGES - 1)
    cdef uint32_t back = 1
    cdef int64_t pulses
    t.stamps_ns[slot] = stamp_ns
    t.indices[slot] = index
    t.head += 1
    if t.held < TACHOMETER_EDGES:
        t.held += 1
    if t.held < 2:
        return
    while back + 1 < t.held and index - tachometer_index(t, back) < t.pulses_per_turn:
        back += 1
    pulses = index - tachometer_index(t, back)
    t.turn_ns = <double>(stamp_ns - tachometer_stamp(t, back)) * t.pulses_per_turn / <double>pulses
    t.late_ns = <int64_t>(TACHOMETER_BOUND_PERCENT * 0.01 * t.turn_ns / t.pulses_per_turn)


cdef inline int tachometer_steps(Tachometer* t, int64_t interval_ns) noexcept nogil:
    """How many pulses an interval spans: 0 bounce, 1, 2 or 3; -1 the pattern broke, believe this interval alone."""
    cdef double percent
    if interval_ns < t.minimum_interval_ns:
        return 0
    if t.turn_ns <= 0.0:
        return 1
    percent = 100.0 * <double>interval_ns * t.pulses_per_turn / t.turn_ns
    if t.steady >= TACHOMETER_STEADY_EDGES:
        if percent < TACHOMETER_BOUNCE_PERCENT:
            t.suspects += 1
            return 0 if t.suspects < TACHOMETER_SUSPECTS else -1
        if percent > TACHOMETER_LOST_PERCENT:
            # a second odd interval in a row is a rotor that slowed down, not a second loss
            if t.suspects or percent > TACHOMETER_LOST_LIMIT_PERCENT:
                return -1
            t.suspects = 1
            return <int>(percent / 100.0 + 0.5)
    t.suspects = 0
    if fabs(percent - 100.0) <= TACHOMETER_STEADY_PERCENT:
        t.steady += 1
        t.broken = 0
        return 1
    t.steady = 0
    return -1 if t.broken else 1


cdef inline int tachometer_edge(Tachometer* t, int64_t stamp_ns) noexcept nogil:
    """One edge, in order of time; 1 accepted, 0 rejected (counted in `bounced`)."""
    cdef int steps = 1
    if t.head and stamp_ns - tachometer_stamp(t, 0) > t.silent_ns:
        tachometer_restart(t)
    elif t.head:
        # a stamp before the last edge is a duplicate too
        steps = tachometer_steps(t, stamp_ns - tachometer_stamp(t, 0))
    if steps == 0:
        t.bounced += 1
        return 0
    if steps < 0:
        t.restarts += 1
        t.held = 1
        t.broken = 1
        tachometer_expect_change(t)
        steps = 1
    t.lost += steps - 1
    tachometer_push(t, stamp_ns, tachometer_index(t, 0) + steps)
    return 1


cdef inline int64_t tachometer_silence_ns(const Tachometer* t, int64_t now_ns) noexcept nogil:
    """Time since the last edge; longer than anything when there was none."""
    if t.head == 0:
        return <int64_t>1 << 62
    if now_ns <= tachometer_stamp(t, 0):
        return 0
    return now_ns - tachometer_stamp(t, 0)


cdef inline int tachometer_is_late(const Tachometer* t, int64_t now_ns) noexcept nogil:
    """1 when the next edge is so late that one lost edge does not explain it: the bound then is the speed."""
    return t.late_ns > 0 and now_ns - tachometer_stamp(t, 0) > t.late_ns


cdef inline double tachometer_bound_rpm(const Tachometer* t, int64_t now_ns) noexcept nogil:
    """The highest speed that the silence since the last edge allows; 0 below TACHOMETER_RPM_ZERO."""
    cdef int64_t silence_ns = tachometer_silence_ns(t, now_ns)
    if silence_ns > t.silent_ns:
        return 0.0
    if silence_ns < t.minimum_interval_ns:
        silence_ns = t.minimum_interval_ns
    return 60e9 / (<double>silence_ns * t.pulses_per_turn)


cdef inline double tachometer_turn_rpm(const Tachometer* t, int64_t now_ns) noexcept nogil:
    """Speed for control: of the last turn, or the bound when the next edge is late; 0 when unknown or not turning."""
    if t.turn_ns <= 0.0:
        return 0.0
    if tachometer_is_late(t, now_ns):
        return tachometer_bound_rpm(t, now_ns)
    return 60e9 / t.turn_ns


cdef inline void tachometer_fit_turns(const Tachometer* t, TachometerFit* fit) noexcept nogil:
    """Mean and standard deviation of the whole turns among the newest fit.used edges (Welford)."""
    cdef uint32_t newest, back
    cdef double period_ns, delta
    cdef double squares = 0.0
    for newest in range(fit.used):
        back = newest + 1
        while back < fit.used and tachometer_index(t, newest) - tachometer_index(t, back) < t.pulses_per_turn:
            back += 1
        if back >= fit.used or tachometer_index(t, newest) - tachometer_index(t, back) != t.pulses_per_turn:
            continue
        period_ns = <double>(tachometer_stamp(t, newest) - tachometer_stamp(t, back))
        fit.turns += 1
        delta = period_ns - fit.turn_mean_ns
        fit.turn_mean_ns += delta / fit.turns
        squares += delta * (period_ns - fit.turn_mean_ns)
    if fit.turns > 1:
        fit.turn_sd_ns = sqrt(squares / (fit.turns - 1))


cdef inline int tachometer_fit(const Tachometer* t, int64_t now_ns, int64_t window_ns,
                               TachometerFit* fit) noexcept nogil:
    """Fit the edges of the last window_ns, or of the last two turns when those are longer; returns edges used.

    The standard error mixes the residuals with TACHOMETER_STAMP_NOISE_NS worth two edges, so that three edges that
    happen to lie on a line do not claim to be exact.
    """
    cdef uint32_t back = 0
    cdef uint32_t least = 2 * t.pulses_per_turn + 1
    cdef double x, y, n, mean_x, mean_y
    cdef double sx = 0.0
    cdef double sy = 0.0
    cdef double sxx = 0.0
    cdef double sxy = 0.0
    cdef double syy = 0.0
    cdef double pulse_ns, residual
    memset(fit, 0, sizeof(TachometerFit))
    if tachometer_bound_rpm(t, now_ns) == 0.0:
        return 0
    while back < t.held and (back < least or now_ns - tachometer_stamp(t, back) <= window_ns):
        sx += <double>(tachometer_index(t, back) - tachometer_index(t, 0))
        sy += <double>(tachometer_stamp(t, back) - tachometer_stamp(t, 0))
        back += 1
    if back < 2:
        return 0
    fit.used = back
    n = <double>back
    mean_x = sx / n
    mean_y = sy / n
    for back in range(fit.used):
        x = <double>(tachometer_index(t, back) - tachometer_index(t, 0)) - mean_x
        y = <double>(tachometer_stamp(t, back) - tachometer_stamp(t, 0)) - mean_y
        sxx += x * x
        sxy += x * y
        syy += y * y
    pulse_ns = sxy / sxx
    residual = syy - pulse_ns * sxy
    if residual < 0.0:
        residual = 0.0
    residual = (residual + 2.0 * TACHOMETER_STAMP_NOISE_NS * <double>TACHOMETER_STAMP_NOISE_NS) / n
    fit.rpm = 60e9 / (pulse_ns * t.pulses_per_turn)
    fit.standard_error_rpm = fit.rpm * sqrt(residual / sxx) / pulse_ns
    fit.window_s = 1e-9 * <double>(tachometer_stamp(t, 0) - tachometer_stamp(t, fit.used - 1))
    tachometer_fit_turns(t, fit)
    if tachometer_is_late(t, now_ns):
        fit.rpm = min(fit.rpm, tachometer_bound_rpm(t, now_ns))
        fit.bounded = 1
    return fit.used
