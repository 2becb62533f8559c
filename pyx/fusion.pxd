# Why compiled: several angles become one concentration ten times a second, a little at each conversion.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: log10 of the concentration, natural logarithm of the uncalibrated value.
#
# The estimator is that of the field's od_fused_estimator files: ln V of angle a is mu_a(x) with the scatter
# s_a(x) = sigma_a(x) w_a(x) / max(|mu_a'(x)|, 0.05), and x minimises J(x) = sum of sqrt(1 + r^2) - 1 + ln s_a,
# r = (ln V - mu_a) / s_a (pseudo-Huber, delta 1). w_a goes from 1 at log c -0.1 to the file's low_conc_scales at -2.5.

from libc.errno cimport EINVAL
from libc.math cimport NAN, exp, fabs, isfinite, log, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.curve cimport CurvePoint, Cubics, cubics_at, cubics_check
from stirbar.rt.types cimport FLAG_ABOVE_CURVE, FLAG_BELOW_CURVE, FLAG_UNCALIBRATED, Reading, STREAM_OD_FUSED

cdef enum:
    FUSION_ANGLES = 3
    FUSION_GRID = 256        # points that are looked at before the search
    FUSION_MINIMA = 4        # of them, at most, that are searched around
    FUSION_SEARCH = 48       # steps of one search, at most
    FUSION_TABLE_STEP = 8    # points of the table that one conversion makes
    FUSION_GRID_STEP = 64    # points of the grid that one conversion looks at

cdef enum:                   # Fusion.stage
    FUSION_IDLE = 0
    FUSION_TABLE = 1
    FUSION_LOOK = 2
    FUSION_REFINE = 3
    FUSION_READY = 4

cdef extern from *:
    """
    #define STIRBAR_FUSION_SLOPE_FLOOR 0.05
    #define STIRBAR_FUSION_LOW_LOGC -2.5
    #define STIRBAR_FUSION_HIGH_LOGC -0.1
    #define STIRBAR_FUSION_TOLERANCE 1e-7      /* of log10 c */
    #define STIRBAR_FUSION_GOLDEN 0.38196601125010515
    #define STIRBAR_FUSION_RIVAL 2.0           /* a grid point this much worse than the best has no minimum that wins */
    #define STIRBAR_FUSION_DISAGREE 4.0        /* sigmas from its mean curve: this angle does not agree with the rest */
    #define STIRBAR_FUSION_DIFFERENCE 1e-3     /* for derivatives by differences */
    #define STIRBAR_FUSION_LEAST_VALUE 1e-12   /* what a value that is not positive counts as */
    #define STIRBAR_LN10 2.302585092994046
    """
    const double SLOPE_FLOOR "STIRBAR_FUSION_SLOPE_FLOOR"
    const double LOW_LOGC "STIRBAR_FUSION_LOW_LOGC"
    const double HIGH_LOGC "STIRBAR_FUSION_HIGH_LOGC"
    const double FUSION_TOLERANCE "STIRBAR_FUSION_TOLERANCE"
    const double GOLDEN "STIRBAR_FUSION_GOLDEN"
    const double FUSION_RIVAL "STIRBAR_FUSION_RIVAL"
    const double FUSION_DISAGREE "STIRBAR_FUSION_DISAGREE"
    const double FUSION_DIFFERENCE "STIRBAR_FUSION_DIFFERENCE"
    const double LEAST_VALUE "STIRBAR_FUSION_LEAST_VALUE"
    const double LN10 "STIRBAR_LN10"

# Eight bytes a member: it travels through the trace word by word.
cdef struct FusionModel:
    int64_t angles
    int64_t channel[FUSION_ANGLES]       # 0..3
    double low_scale[FUSION_ANGLES]
    double lowest                        # log10 c
    double highest
    double sigma_floor
    double intensity_percent
    Cubics mean[FUSION_ANGLES]
    Cubics log_sigma[FUSION_ANGLES]

cdef struct FusionInput:
    double log_value[FUSION_ANGLES]
    double error[FUSION_ANGLES]          # of log_value, by the light
    double culture[FUSION_ANGLES]        # of log_value, as a measure of the culture

cdef struct FusionEstimate:
    double log_concentration
    double concentration
    double error                         # of the concentration, from `error` of the inputs
    double culture
    double model                         # of the concentration, by the estimator's own scatter (curvature of J)
    int32_t edge                         # -1, 1: at the low, high end of the range
    int32_t disagree                     # an angle is far from what the concentration found would give

cdef struct Fusion:
    FusionModel model
    FusionInput input
    FusionInput working
    Reading gathered                     # flags, counts and times of the readings of this grid time
    Reading reading
    int64_t grid_ns                      # which they are of
    double cost[FUSION_MINIMA]           # of the best minima of the grid, ascending
    double around[FUSION_MINIMA]
    double left, right, inner, outer     # the search's bracket
    double inner_cost, outer_cost
    double best_x, best_cost
    double before, cost_before           # the grid's last two costs
    float inverse[FUSION_GRID][FUSION_ANGLES]    # 1 / s_a
    float scaled_mean[FUSION_GRID][FUSION_ANGLES]  # mu_a / s_a
    float log_scale[FUSION_GRID]         # sum of ln s_a
    int32_t in_force
    int32_t stage
    int32_t cursor
    int32_t minima
    int32_t steps
    uint32_t have                        # angles that are read, by bit
    uint32_t unfinished                  # estimates that were overtaken by the next grid time


cdef inline double fusion_at(const FusionModel* m, int64_t a, double x, double* scale) noexcept nogil:
    """mu_a and s_a at log concentration x."""
    cdef CurvePoint mean = cubics_at(&m.mean[a], x)
    cdef double sigma = exp(cubics_at(&m.log_sigma[a], x).y)
    cdef double slope = fabs(mean.slope)
    cdef double low = (HIGH_LOGC - x) / (HIGH_LOGC - LOW_LOGC)
    low = 0.0 if low < 0.0 else 1.0 if low > 1.0 else low
    if sigma < m.sigma_floor:
        sigma = m.sigma_floor
    scale[0] = sigma / (slope if slope > SLOPE_FLOOR else SLOPE_FLOOR) * (1.0 - low + low * m.low_scale[a])
    return mean.y


cdef inline double fusion_cost(const FusionModel* m, const FusionInput* v, double x) noexcept nogil:
    """J at log concentration x."""
    cdef double total = 0.0
    cdef double scale, residual
    cdef int64_t a
    for a in range(m.angles):
        residual = v.log_value[a] - fusion_at(m, a, x, &scale)
        residual /= scale
        total += sqrt(1.0 + residual * residual) - 1.0 + log(scale)
    return total


cdef inline double fusion_pull(const FusionModel* m, const FusionInput* v, int64_t a, double x) noexcept nogil:
    """Derivative of J by ln V of one angle."""
    cdef double scale
    cdef double residual = v.log_value[a] - fusion_at(m, a, x, &scale)
    residual /= scale
    return residual / (sqrt(1.0 + residual * residual) * scale)


cdef inline int fusion_disagrees(const FusionModel* m, const FusionInput* v, double x) noexcept nogil:
    """Whether an angle is further from its mean curve than its scatter explains: bubbles, a shifted photodiode, or a
    culture outside the standards."""
    cdef double sigma
    cdef int64_t a
    for a in range(m.angles):
        sigma = exp(cubics_at(&m.log_sigma[a], x).y)
        if sigma < m.sigma_floor:
            sigma = m.sigma_floor
        if fabs(v.log_value[a] - cubics_at(&m.mean[a], x).y) > FUSION_DISAGREE * sigma:
            return 1
    return 0


cdef inline int fusion_check(const FusionModel* m) noexcept nogil:
    """0, or -EINVAL when a number is out of its bounds. For the host."""
    cdef int64_t a
    if not 1 <= m.angles <= FUSION_ANGLES or not isfinite(m.lowest) or not isfinite(m.highest):
        return -EINVAL
    if not m.lowest < m.highest or not m.sigma_floor > 0.0 or not isfinite(m.sigma_floor):
        return -EINVAL
    for a in range(m.angles):
        if not m.low_scale[a] > 0.0 or not isfinite(m.low_scale[a]):
            return -EINVAL
        if cubics_check(&m.mean[a]) or cubics_check(&m.log_sigma[a]):
            return -EINVAL
    return 0


cdef inline double fusion_grid_x(const FusionModel* m, int i) noexcept nogil:
    return m.lowest + (m.highest - m.lowest) * i / (FUSION_GRID - 1)


cdef inline void fusion_start(Fusion* f) noexcept nogil:
    """A model has been put in place: its table is made next."""
    f.in_force = 0
    f.have = 0
    f.grid_ns = 0
    f.cursor = 0
    f.stage = FUSION_TABLE


cdef inline void fusion_tabulate(Fusion* f) noexcept nogil:
    """Some points of the table that makes the look over the grid cheap."""
    cdef double scale, mean, total
    cdef int64_t a
    cdef int i
    cdef int end = f.cursor + FUSION_TABLE_STEP
    for i in range(f.cursor, end):
        total = 0.0
        for a in range(f.model.angles):
            mean = fusion_at(&f.model, a, fusion_grid_x(&f.model, i), &scale)
            f.inverse[i][a] = <float>(1.0 / scale)
            f.scaled_mean[i][a] = <float>(mean / scale)
            total += log(scale)
        f.log_scale[i] = <float>total
    f.cursor = end
    if end >= FUSION_GRID:
        f.in_force = 1
        f.stage = FUSION_IDLE


cdef inline void fusion_keep(Fusion* f, double cost, int i) noexcept nogil:
    """Remember a minimum of the grid, among the best few."""
    cdef int at
    if f.minima < FUSION_MINIMA:
        f.minima += 1
    elif cost >= f.cost[FUSION_MINIMA - 1]:
        return
    at = f.minima - 1
    while at > 0 and f.cost[at - 1] > cost:
        f.cost[at] = f.cost[at - 1]
        f.around[at] = f.around[at - 1]
        at -= 1
    f.cost[at] = cost
    f.around[at] = fusion_grid_x(&f.model, i)


cdef inline void fusion_bracket(Fusion* f) noexcept nogil:
    """Begin the golden-section search around the next minimum of the grid."""
    cdef double step = (f.model.highest - f.model.lowest) / (FUSION_GRID - 1)
    cdef double centre = f.around[f.cursor]
    f.left = centre - step if centre - step > f.model.lowest else f.model.lowest
    f.right = centre + step if centre + step < f.model.highest else f.model.highest
    f.inner = f.left + GOLDEN * (f.right - f.left)
    f.outer = f.right - GOLDEN * (f.right - f.left)
    f.inner_cost = fusion_cost(&f.model, &f.working, f.inner)
    f.outer_cost = fusion_cost(&f.model, &f.working, f.outer)
    f.steps = 0


cdef inline void fusion_look(Fusion* f) noexcept nogil:
    """Some points of the grid: where is J lower than at both neighbours?"""
    cdef double cost, residual
    cdef int64_t a
    cdef int i
    cdef int end = f.cursor + FUSION_GRID_STEP
    for i in range(f.cursor, end):
        cost = f.log_scale[i]
        for a in range(f.model.angles):
            residual = f.working.log_value[a] * f.inverse[i][a] - f.scaled_mean[i][a]
            cost += sqrt(1.0 + residual * residual) - 1.0
        if i and f.cost_before <= cost and (i == 1 or f.cost_before <= f.before):
            fusion_keep(f, f.cost_before, i - 1)
        f.before = f.cost_before
        f.cost_before = cost
    if end >= FUSION_GRID:
        if f.cost_before <= f.before:
            fusion_keep(f, f.cost_before, FUSION_GRID - 1)
        f.cursor = 0
        f.best_cost = NAN
        f.stage = FUSION_REFINE
        fusion_bracket(f)
    else:
        f.cursor = end


cdef inline void fusion_errors(
    const FusionModel* m, const FusionInput* v, double x, FusionEstimate* e
) noexcept nogil:
    """Errors by the implicit function: dx = -(sum of d2J/dx dL_a dL_a) / J''. Light noise of the angles is independent;
    the culture's fluctuation is one and the same for all, each by the slope of its mean."""
    cdef double h = FUSION_DIFFERENCE
    cdef double low = x - h if x - h > m.lowest else m.lowest
    cdef double high = low + 2.0 * h if low + 2.0 * h < m.highest else m.highest
    cdef double middle, bend, gain
    cdef double squares = 0.0
    cdef double common = 0.0
    cdef int64_t a
    low = high - 2.0 * h if high - 2.0 * h > m.lowest else m.lowest
    middle = 0.5 * (low + high)
    h = 0.5 * (high - low)
    bend = (fusion_cost(m, v, low) - 2.0 * fusion_cost(m, v, middle) + fusion_cost(m, v, high)) / (h * h)
    e.model = e.error = e.culture = NAN
    if not bend > 0.0:
        return
    for a in range(m.angles):
        gain = (fusion_pull(m, v, a, high) - fusion_pull(m, v, a, low)) / (2.0 * h * bend)
        squares += gain * gain * v.error[a] * v.error[a]
        common += gain * v.culture[a] * (1.0 if cubics_at(&m.mean[a], x).slope >= 0.0 else -1.0)
    e.model = LN10 * e.concentration / sqrt(bend)
    e.error = LN10 * e.concentration * sqrt(squares)
    e.culture = LN10 * e.concentration * fabs(common)
    if not e.culture > e.error:
        e.culture = e.error if e.culture == e.culture else NAN


cdef inline void fusion_finish(Fusion* f) noexcept nogil:
    """Make the reading."""
    cdef FusionEstimate e
    cdef double edge = 2.0 * FUSION_TOLERANCE
    e.log_concentration = f.best_x
    e.concentration = exp(LN10 * f.best_x)
    fusion_errors(&f.model, &f.working, f.best_x, &e)
    f.reading.value = e.concentration
    f.reading.se_instrument = <float>e.error
    f.reading.se_culture = <float>e.culture
    f.reading.signal_v = <float>e.model
    if f.best_x < f.model.lowest + edge:
        f.reading.flags |= FLAG_BELOW_CURVE
    elif f.best_x > f.model.highest - edge:
        f.reading.flags |= FLAG_ABOVE_CURVE
    elif fusion_disagrees(&f.model, &f.working, f.best_x):
        f.reading.flags |= FLAG_BELOW_CURVE | FLAG_ABOVE_CURVE
    f.stage = FUSION_READY


cdef inline void fusion_refine(Fusion* f) noexcept nogil:
    """One step of the search; behind the last minimum that may win, the reading is made."""
    cdef double x, cost
    if f.right - f.left > FUSION_TOLERANCE and f.steps < FUSION_SEARCH:
        f.steps += 1
        if f.inner_cost < f.outer_cost:
            f.right = f.outer
            f.outer = f.inner
            f.outer_cost = f.inner_cost
            f.inner = f.left + GOLDEN * (f.right - f.left)
            f.inner_cost = fusion_cost(&f.model, &f.working, f.inner)
        else:
            f.left = f.inner
            f.inner = f.outer
            f.inner_cost = f.outer_cost
            f.outer = f.right - GOLDEN * (f.right - f.left)
            f.outer_cost = fusion_cost(&f.model, &f.working, f.outer)
        return
    x = f.inner if f.inner_cost < f.outer_cost else f.outer
    cost = f.inner_cost if f.inner_cost < f.outer_cost else f.outer_cost
    if f.best_cost != f.best_cost or cost < f.best_cost:
        f.best_cost = cost
        f.best_x = x
    f.cursor += 1
    if f.cursor < f.minima and f.cost[f.cursor] < f.cost[0] + FUSION_RIVAL:
        fusion_bracket(f)
    else:
        fusion_finish(f)


cdef inline int fusion_work(Fusion* f) noexcept nogil:
    """One piece of what is to be done, small enough for one conversion; 1 when a reading is ready."""
    if f.stage == FUSION_TABLE:
        fusion_tabulate(f)
    elif f.stage == FUSION_LOOK:
        fusion_look(f)
    elif f.stage == FUSION_REFINE:
        fusion_refine(f)
    return f.stage == FUSION_READY


cdef inline void fusion_give(Fusion* f, const Reading* reading, int64_t grid_ns, double blank) noexcept nogil:
    """A reading before its calibration. The last angle of a grid time starts the work."""
    cdef double value = reading.value + blank
    cdef int64_t a
    if not f.in_force:
        return
    if grid_ns != f.grid_ns:
        f.grid_ns = grid_ns
        f.have = 0
    for a in range(f.model.angles):
        if f.model.channel[a] != reading.stream - 1:
            continue
        value = value if value > LEAST_VALUE else LEAST_VALUE
        f.input.log_value[a] = log(value)
        f.input.error[a] = reading.se_instrument / value
        f.input.culture[a] = reading.se_culture / value
        if not f.have:
            f.gathered = reading[0]
        else:
            f.gathered.flags |= reading.flags
            f.gathered.used += reading.used
            f.gathered.rejected += reading.rejected
            if reading.monotonic_ns > f.gathered.monotonic_ns:
                f.gathered.monotonic_ns = reading.monotonic_ns
        f.have |= <uint32_t>1 << a
    if f.have != (<uint32_t>1 << f.model.angles) - 1:
        return
    f.have = 0
    if f.stage != FUSION_IDLE:
        f.unfinished += 1
    f.working = f.input
    f.reading = f.gathered
    f.reading.flags &= ~<uint32_t>FLAG_UNCALIBRATED
    f.reading.blank = 0.0
    f.reading.angle = 0
    f.reading.ambient_v = <float>NAN
    f.reading.stream = STREAM_OD_FUSED
    f.cursor = 0
    f.minima = 0
    f.before = f.cost_before = NAN
    f.stage = FUSION_LOOK


cdef inline int fusion_take(Fusion* f, Reading* reading) noexcept nogil:
    """1 and the reading that is ready, or 0."""
    if f.stage != FUSION_READY:
        return 0
    reading[0] = f.reading
    f.stage = FUSION_IDLE
    return 1


cdef inline int fusion_estimate(Fusion* f, const FusionInput* v, FusionEstimate* e) noexcept nogil:
    """All at once, for a model in force: what the pieces above make of one set of values."""
    memset(&f.reading, 0, sizeof(Reading))
    f.working = v[0]
    f.cursor = 0
    f.minima = 0
    f.before = f.cost_before = NAN
    f.stage = FUSION_LOOK
    while not fusion_work(f):
        pass
    f.stage = FUSION_IDLE
    e.log_concentration = f.best_x
    e.concentration = f.reading.value
    fusion_errors(&f.model, v, f.best_x, e)
    e.disagree = fusion_disagrees(&f.model, v, f.best_x)
    e.edge = 0
    if f.best_x < f.model.lowest + 2.0 * FUSION_TOLERANCE:
        e.edge = -1
    elif f.best_x > f.model.highest - 2.0 * FUSION_TOLERANCE:
        e.edge = 1
    return 0
