# Why compiled: the sampling thread measures how the photodiodes' light follows the LED, and chops no faster than that.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: nanoseconds, codes. A lag counts from a change of the LED to the begin of a conversion.
#
# Conversions are averaged by their lag, after edges to on and to off apart. What is fitted to the averages is the
# response of a first-order lag (tau, behind a delay) to light that is chopped for ever with one half-cycle, averaged
# over a conversion's aperture:
#   f(t) = 1 - c exp(-t / tau), c = 1 / (1 + exp(-half / tau)); before the edge what is left of the last one.
# Level and step of each channel are solved for, so tau and delay are all that is searched, a piece in each tick.

from libc.math cimport INFINITY, NAN, exp, log, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

cdef enum:
    PATH_BINS = 40           # of lags, from one aperture before the edge to the end of the half-cycle
    PATH_FINE_BINS = 20      # of these, a quarter of an aperture wide; the rest grow
    PATH_TAUS = 32           # of the first, coarse search
    PATH_NEAR = 9            # about the best in the finer ones
    PATH_DELAYS = 5
    PATH_STAGES = 4
    PATH_LEAST_COUNT = 3     # conversions that make a bin

cdef extern from *:
    """
    #define STIRBAR_PATH_TAU_LOW_NS 2e4
    #define STIRBAR_PATH_TAU_HIGH_NS 1e8
    #define STIRBAR_PATH_RESIDUAL 1e-3      /* of a step, in a conversion that is used (IS-25) */
    #define STIRBAR_PATH_LEAST_VARIANCE 0.0833 /* of a code: of its rounding */
    #define STIRBAR_PATH_LEAST_GAIN 25.0    /* of the cost, over light that follows at once: less is no time constant */
    #define STIRBAR_PATH_LEAST_SIGNAL 200.0 /* step over its standard error: less says nothing about a thousandth */
    """
    const double PATH_LEAST_VARIANCE "STIRBAR_PATH_LEAST_VARIANCE"
    const double PATH_LEAST_GAIN "STIRBAR_PATH_LEAST_GAIN"
    const double PATH_TAU_LOW_NS "STIRBAR_PATH_TAU_LOW_NS"
    const double PATH_TAU_HIGH_NS "STIRBAR_PATH_TAU_HIGH_NS"
    const double PATH_RESIDUAL "STIRBAR_PATH_RESIDUAL"
    const double PATH_LEAST_SIGNAL "STIRBAR_PATH_LEAST_SIGNAL"

# The edge-aligned average of one channel.
cdef struct LightPath:
    int64_t limit_ns[PATH_BINS + 1]  # of the bins
    double sum[2][PATH_BINS]         # of codes; [0] after the light went off, [1] on
    double lag_ns[2][PATH_BINS]      # sum
    double squares[2][PATH_BINS]     # of codes
    uint32_t count[2][PATH_BINS]
    double aperture_ns               # 0: looked at for an instant
    double half_ns                   # of the chop
    int cursor

cdef struct LightFit:
    double tau_ns                    # NAN: not known
    double delay_ns
    double settle_ns                 # from an edge to the begin of a conversion that is right to a thousandth
    double signal                    # of the strongest channel: step over its standard error
    double cost                      # of the fit: sum of squares over the variance of the bins' means
    double fast_cost                 # the same for light that follows at once

# A search that is under way: one channel at one (tau, delay) in each step.
cdef struct LightSearch:
    int active
    int stage
    int candidate                    # of the stage
    int channel                      # next, of this candidate
    double log_tau                   # middle of the stage
    double log_step
    double delay_ns
    double delay_step_ns             # 0: there is no delay to look for
    double cost                      # of this candidate so far
    double signal
    double aperture_ns               # the longest
    LightFit best


cdef inline void light_path_clear(LightPath* path, double aperture_ns, double half_ns) noexcept nogil:
    """Begin an average, for conversions of one aperture (0 with an instant's look) in half-cycles of one length."""
    cdef double unit = aperture_ns if aperture_ns > 0.0 else 0.05 * half_ns
    cdef double grown = half_ns + unit
    cdef double factor, limit
    cdef int i
    memset(path, 0, sizeof(LightPath))
    path.aperture_ns = aperture_ns
    path.half_ns = half_ns
    for i in range(PATH_FINE_BINS + 1):
        path.limit_ns[i] = <int64_t>(unit * (0.25 * i - 1.0))
    limit = 4.0 * unit
    grown = grown if grown > 1.5 * limit else 1.5 * limit
    factor = exp(log(grown / limit) / (PATH_BINS - PATH_FINE_BINS))
    for i in range(PATH_FINE_BINS, PATH_BINS):
        limit *= factor
        path.limit_ns[i + 1] = <int64_t>limit


cdef inline void light_path_add(LightPath* path, int64_t lag_ns, int32_t code, int on) noexcept nogil:
    """One conversion that began `lag_ns` after the light went on or off; one from before the edge, or from long after,
    is left out."""
    cdef int i = path.cursor
    if lag_ns < path.limit_ns[i]:
        i = 0
        if lag_ns < path.limit_ns[0]:
            return
    if lag_ns >= path.limit_ns[PATH_BINS]:
        return
    while lag_ns >= path.limit_ns[i + 1]:
        i += 1
    path.cursor = i
    path.sum[on][i] += code
    path.lag_ns[on][i] += <double>lag_ns
    path.count[on][i] += 1
    path.squares[on][i] += <double>code * code


cdef inline double light_path_share(
    double lag_ns, double aperture_ns, double half_ns, double tau_ns
) noexcept nogil:
    """Share of the step that a conversion sees which begins `lag_ns` after the edge, at least -aperture."""
    cdef double last = exp(-half_ns / tau_ns)
    cdef double c = 1.0 / (1.0 + last)
    cdef double seen
    if aperture_ns <= 0.0:
        return 1.0 - c * exp(-lag_ns / tau_ns) if lag_ns >= 0.0 else c * exp(-(lag_ns + half_ns) / tau_ns)
    if lag_ns >= 0.0:
        return 1.0 - c * tau_ns / aperture_ns * exp(-lag_ns / tau_ns) * (1.0 - exp(-aperture_ns / tau_ns))
    seen = lag_ns + aperture_ns
    seen = seen if seen > 0.0 else 0.0
    return (c * tau_ns * (exp(-(lag_ns + half_ns) / tau_ns) - last)
            + seen - c * tau_ns * (1.0 - exp(-seen / tau_ns))) / aperture_ns


cdef inline double light_settle_ns(double aperture_ns, double tau_ns, double delay_ns) noexcept nogil:
    """From an edge to the begin of the first conversion that lacks no more than PATH_RESIDUAL of the step."""
    cdef double lacks = 1.0 / PATH_RESIDUAL
    if aperture_ns > 0.0:
        lacks *= tau_ns / aperture_ns * (1.0 - exp(-aperture_ns / tau_ns))
    return delay_ns + (tau_ns * log(lacks) if lacks > 1.0 else 0.0)


cdef inline double light_path_cost(
    const LightPath* path, double tau_ns, double delay_ns, double* signal
) noexcept nogil:
    """Sum of squares about the best level and step; `signal` gets the step over its standard error.

    A bin weighs by its count over the variance within it, which is large where the light is steep and the lags differ.
    A channel of which too little is known adds nothing.
    """
    cdef double n = 0.0, y = 0.0, r = 0.0, rr = 0.0, ry = 0.0, yy = 0.0
    cdef double count, mean, share, weight, step, cost
    cdef int on, i
    cdef int bins = 0
    signal[0] = 0.0
    for on in range(2):
        for i in range(PATH_BINS):
            if path.count[on][i] < PATH_LEAST_COUNT:
                continue
            count = path.count[on][i]
            mean = path.sum[on][i] / count
            share = light_path_share(
                path.lag_ns[on][i] / count - delay_ns, path.aperture_ns, path.half_ns, tau_ns)
            share = share if on else 1.0 - share
            weight = (path.squares[on][i] - count * mean * mean) / (count - 1.0)
            weight = count / (weight if weight > PATH_LEAST_VARIANCE else PATH_LEAST_VARIANCE)
            bins += 1
            n += weight
            y += weight * mean
            r += weight * share
            rr += weight * share * share
            ry += weight * share * mean
            yy += weight * mean * mean
    if bins < 4:
        return 0.0
    rr -= r * r / n
    ry -= r * y / n
    yy -= y * y / n
    if rr <= 1e-9 * n:
        return yy
    step = ry / rr
    cost = yy - step * ry
    signal[0] = step * sqrt(rr)
    return cost if cost > 0.0 else 0.0


cdef inline void light_search_begin(LightSearch* search, double aperture_ns, double delay_step_ns) noexcept nogil:
    """Look for the time constant, from coarse to fine; `delay_step_ns` 0: there is no delay."""
    memset(search, 0, sizeof(LightSearch))
    search.active = 1
    search.aperture_ns = aperture_ns
    search.log_step = log(PATH_TAU_HIGH_NS / PATH_TAU_LOW_NS) / (PATH_TAUS - 1)
    search.log_tau = 0.5 * log(PATH_TAU_HIGH_NS * PATH_TAU_LOW_NS)
    search.delay_step_ns = delay_step_ns
    search.delay_ns = delay_step_ns * (PATH_DELAYS // 2)
    search.best.cost = INFINITY
    search.best.tau_ns = NAN


cdef inline void light_search_next(LightSearch* search, double tau_ns, double delay_ns, int candidates) noexcept nogil:
    """A candidate's cost is whole: keep the best, and go on to the next candidate or stage."""
    if search.stage == 0 and search.candidate == 0:
        search.best.fast_cost = search.cost
    if search.cost < search.best.cost:
        search.best.cost = search.cost
        search.best.tau_ns = tau_ns
        search.best.delay_ns = delay_ns
        search.best.signal = search.signal
    search.cost = 0.0
    search.signal = 0.0
    search.channel = 0
    search.candidate += 1
    if search.candidate < candidates:
        return
    search.candidate = 0
    search.stage += 1
    if search.stage < PATH_STAGES:
        search.log_tau = log(search.best.tau_ns)
        search.log_step *= 2.0 / (PATH_NEAR - 1)
        search.delay_ns = search.best.delay_ns
        search.delay_step_ns *= 0.5
        return
    search.active = 0
    search.best.settle_ns = light_settle_ns(search.aperture_ns, search.best.tau_ns, search.best.delay_ns)
    if not search.best.signal >= PATH_LEAST_SIGNAL or search.best.fast_cost - search.best.cost < PATH_LEAST_GAIN:
        search.best.tau_ns = NAN


cdef inline int light_search_step(LightSearch* search, const LightPath* path, int last) noexcept nogil:
    """Weigh one candidate against one channel's averages; `last`: the next channel is the first again. Returns 1 when
    the search is over: `best` has the result, tau_ns NAN where there is none."""
    cdef int taus = PATH_NEAR if search.stage else PATH_TAUS
    cdef int delays = 1 if search.delay_step_ns == 0.0 else 3 if search.stage else PATH_DELAYS
    cdef double signal = 0.0
    cdef double tau_ns = exp(
        search.log_tau + search.log_step * (search.candidate % taus - 0.5 * (taus - 1)))
    cdef double delay_ns = search.delay_ns + search.delay_step_ns * (search.candidate // taus - delays // 2)
    search.cost += light_path_cost(path, tau_ns, delay_ns if delay_ns > 0.0 else 0.0, &signal)
    search.signal = signal if signal > search.signal else search.signal
    search.channel += 1
    if last:
        light_search_next(search, tau_ns, delay_ns if delay_ns > 0.0 else 0.0, taus * delays)
    return not search.active
