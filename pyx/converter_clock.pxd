# Why compiled: the sampling thread sleeps until the converter's own next conversion and must know when each one began.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: nanoseconds of the loop's clock; hertz.

from libc.math cimport fabs
from libc.stdint cimport int32_t, int64_t, uint32_t

cdef enum:
    CLOCK_MEMORY = 2048      # conversions that the line remembers
    CLOCK_LOCK_COUNT = 43    # conversions before the line is believed
    CLOCK_RELOCK_COUNT = 24  # consecutive stamps that disagree before the line starts anew

cdef extern from *:
    """
    /* of the period: scale of the residuals below which the clock is locked */
    #define STIRBAR_CLOCK_LOCKED_JITTER 0.1
    """
    const double CLOCK_LOCKED_JITTER "STIRBAR_CLOCK_LOCKED_JITTER"

# A straight line through (index, ready stamp), with a memory that grows to CLOCK_MEMORY and then fades: the alpha-beta
# filter whose gains are those of least squares (Kalata 1984; alpha = 2(2n-1)/n(n+1), beta = 6/n(n+1)).
cdef struct ConverterClock:
    int64_t origin_ns        # end_ns counts from here
    uint32_t index           # of the conversion that end_ns belongs to
    double end_ns            # estimated end of that conversion, from origin_ns
    double period_ns
    double jitter_ns         # mean absolute residual
    double nominal_ns        # period that was asked for
    double alpha             # gains of the line for its present memory
    double beta
    double fade              # of the jitter's mean
    int32_t count            # conversions in the memory
    int32_t disagreeing
    int32_t locked
    uint32_t relocks


cdef inline void converter_clock_init(ConverterClock* clock, double rate_hz) noexcept nogil:
    clock.origin_ns = 0
    clock.index = 0
    clock.end_ns = 0.0
    clock.nominal_ns = 1e9 / rate_hz
    clock.period_ns = clock.nominal_ns
    clock.jitter_ns = 0.0
    clock.count = 0
    clock.disagreeing = 0
    clock.locked = 0
    clock.relocks = 0


cdef inline int64_t converter_clock_end_ns(const ConverterClock* clock, uint32_t index) noexcept nogil:
    """When conversion `index` ends, by the line."""
    return clock.origin_ns + <int64_t>(clock.end_ns + <int32_t>(index - clock.index) * clock.period_ns)


cdef inline int64_t converter_clock_next_ns(const ConverterClock* clock) noexcept nogil:
    """When the conversion after the newest one will be ready."""
    return clock.origin_ns + <int64_t>(clock.end_ns + clock.period_ns)


cdef inline double converter_clock_rate_hz(const ConverterClock* clock) noexcept nogil:
    return 1e9 / clock.period_ns


cdef inline int converter_clock_push(ConverterClock* clock, uint32_t index, int64_t ready_ns) noexcept nogil:
    """Take one ready stamp; return 1 when the clock is locked, 0 when it is not.

    A thread that was late stamps late: once locked, a residual counts with at most four times the usual jitter
    (at least 2 % of the period). CLOCK_RELOCK_COUNT such stamps in a row, or a stamp more than one period off for
    as long, start a new line.
    """
    cdef double residual, cut, n
    cdef int32_t step
    if clock.count == 0:
        clock.origin_ns = ready_ns
        clock.index = index
        clock.end_ns = 0.0
        clock.count = 1
        return 0
    step = <int32_t>(index - clock.index)
    if step <= 0:
        return clock.locked
    if clock.count == 1:
        clock.period_ns = <double>(ready_ns - clock.origin_ns) / step
        if clock.period_ns < 0.5 * clock.nominal_ns or clock.period_ns > 2.0 * clock.nominal_ns:
            clock.period_ns = clock.nominal_ns
    clock.end_ns += step * clock.period_ns
    clock.index = index
    residual = <double>(ready_ns - clock.origin_ns) - clock.end_ns
    if clock.locked:
        cut = 4.0 * clock.jitter_ns
        if cut < 0.02 * clock.period_ns:
            cut = 0.02 * clock.period_ns
        if fabs(residual) > cut:
            clock.disagreeing += 1
            if clock.disagreeing >= CLOCK_RELOCK_COUNT:
                clock.relocks += 1
                clock.count = 1
                clock.locked = 0
                clock.disagreeing = 0
                clock.jitter_ns = 0.0
                clock.origin_ns = ready_ns
                clock.end_ns = 0.0
                return 0
            residual = cut if residual > 0.0 else -cut
        else:
            clock.disagreeing = 0
    if clock.count < CLOCK_MEMORY:
        clock.count += 1
        n = clock.count
        clock.alpha = 2.0 * (2.0 * n - 1.0) / (n * (n + 1.0))
        clock.beta = 6.0 / (n * (n + 1.0))
        clock.fade = 1.0 / 64 if n > 64.0 else 1.0 / n
    clock.end_ns += clock.alpha * residual
    clock.period_ns += clock.beta * residual if step == 1 else clock.beta * residual / step
    clock.jitter_ns += (fabs(residual) - clock.jitter_ns) * clock.fade
    if not clock.locked and clock.count >= CLOCK_LOCK_COUNT:
        clock.locked = clock.jitter_ns < CLOCK_LOCKED_JITTER * clock.period_ns
    if clock.end_ns > 1e12:
        clock.origin_ns += <int64_t>1e12
        clock.end_ns -= 1e12
    return clock.locked
