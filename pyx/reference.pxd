# Why compiled: each reading is corrected for a reference that has a temperature coefficient of its own.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: natural logarithms of volts, blocks of a second.
#
# S is proportional to R^(1 + c) while the LED's temperature moves and nothing else does: c is the coefficient. It is
# learned where the light moves faster than a culture can (the LED warming up after it was switched on or changed) by a
# regression of ln S on ln R within two minutes, with a parabola in time taken out of both: what a growing culture does
# in two minutes is in the parabola. Drifts over hours are left alone: nothing tells them from growth.

from libc.math cimport NAN, exp, isfinite, log, sqrt
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

cdef enum:
    REFERENCE_BINS = 24      # of a stretch that is regressed
    REFERENCE_BLOCKS = 5     # seconds that make a bin
    REFERENCE_FEWEST = 3     # of them that must be usable
    REFERENCE_SETTLE = 5     # seconds before a stretch: windows fill, mains is found, the stirrer runs up

cdef extern from *:
    """
    #define STIRBAR_REFERENCE_CLEAR 1e3        /* a stretch counts when R's variance is so many times its noise's */
    #define STIRBAR_REFERENCE_LEAST 1e-5       /* of ln R, rms: below, nothing worth correcting happened */
    #define STIRBAR_REFERENCE_PRIOR 0.1        /* standard deviation of coefficients before anything is known */
    #define STIRBAR_REFERENCE_MOST 1.0         /* a coefficient beyond this is none of an LED */
    """
    const double REFERENCE_CLEAR "STIRBAR_REFERENCE_CLEAR"
    const double REFERENCE_LEAST "STIRBAR_REFERENCE_LEAST"
    const double REFERENCE_PRIOR "STIRBAR_REFERENCE_PRIOR"
    const double REFERENCE_MOST "STIRBAR_REFERENCE_MOST"

# One photodiode against the reference.
cdef struct ReferenceFit:
    double log_signal[REFERENCE_BINS]
    double log_reference[REFERENCE_BINS]
    double signal_sum, reference_sum   # of the bin that is open
    double noise                       # relative variance of R in a block, sum over the stretch
    double information                 # sum of R's variation over the scatter of S
    double pull                        # sum of the covariation over it
    double given                       # stored coefficient; NaN: the learned one is applied
    double coefficient                 # in force
    double learned                     # NaN: nothing was clear enough yet
    double learned_se
    double correction                  # of ln S, by all that R did until now
    double last                        # ln R up to which; NaN: since the light was changed nothing
    int64_t tick_ns                    # grid time of the newest second
    int32_t seconds                    # of the open bin
    int32_t blocks                     # usable ones
    int32_t bins
    int32_t stretches                  # that were clear enough
    int32_t followed


cdef inline void reference_restart(ReferenceFit* f) noexcept nogil:
    """Begin a stretch: the light was changed, or something else happened to the signal."""
    f.seconds = -REFERENCE_SETTLE
    f.blocks = 0
    f.bins = 0
    f.noise = 0.0
    f.signal_sum = 0.0
    f.reference_sum = 0.0


cdef inline void reference_light(ReferenceFit* f) noexcept nogil:
    """The LED's drive was changed: R's step is not of its temperature, so nothing is corrected for it."""
    f.last = NAN
    reference_restart(f)


cdef inline void reference_give(ReferenceFit* f, double coefficient) noexcept nogil:
    """Apply a stored coefficient from here on; NaN applies what is learned."""
    f.given = coefficient
    f.coefficient = coefficient if isfinite(coefficient) else 0.0
    if not isfinite(coefficient) and isfinite(f.learned):
        f.coefficient = f.learned


cdef inline void reference_init(ReferenceFit* f) noexcept nogil:
    memset(f, 0, sizeof(ReferenceFit))
    f.learned = f.learned_se = f.last = NAN
    reference_restart(f)
    reference_give(f, NAN)


cdef inline void reference_detrend(double* y) noexcept nogil:
    """Take the parabola in time out of a stretch, by orthogonal polynomials on its equally spaced bins."""
    cdef double t, square
    cdef double mean = 0.0
    cdef double slope = 0.0
    cdef double bend = 0.0
    cdef double slopes = 0.0
    cdef double bends = 0.0
    cdef double centre = (REFERENCE_BINS * <double>REFERENCE_BINS - 1.0) / 12.0
    cdef int i
    for i in range(REFERENCE_BINS):
        t = i - 0.5 * (REFERENCE_BINS - 1)
        square = t * t - centre
        mean += y[i]
        slope += t * y[i]
        bend += square * y[i]
        slopes += t * t
        bends += square * square
    mean /= REFERENCE_BINS
    slope /= slopes
    bend /= bends
    for i in range(REFERENCE_BINS):
        t = i - 0.5 * (REFERENCE_BINS - 1)
        y[i] -= mean + slope * t + bend * (t * t - centre)


cdef inline int reference_regress(ReferenceFit* f) noexcept nogil:
    """What a full stretch says; 1 when it was clear enough to count.

    Stretches are weighted by their own scatter, so one with a dose or a bubble in it counts for little. The learned
    coefficient is shrunk towards 0 by how well it is known.
    """
    cdef double xx = 0.0
    cdef double xy = 0.0
    cdef double yy = 0.0
    cdef double scatter, estimate, variance
    cdef int i
    reference_detrend(&f.log_signal[0])
    reference_detrend(&f.log_reference[0])
    for i in range(REFERENCE_BINS):
        xx += f.log_reference[i] * f.log_reference[i]
        xy += f.log_reference[i] * f.log_signal[i]
        yy += f.log_signal[i] * f.log_signal[i]
    if xx < REFERENCE_CLEAR * f.noise / REFERENCE_BLOCKS or xx < REFERENCE_BINS * REFERENCE_LEAST * REFERENCE_LEAST:
        return 0
    scatter = (yy - xy * xy / xx) / (REFERENCE_BINS - 4)
    if not scatter > 0.0:
        return 0
    f.information += xx / scatter
    f.pull += (xy - xx) / scatter
    f.stretches += 1
    estimate = f.pull / f.information
    variance = 1.0 / f.information
    f.learned_se = sqrt(variance)
    f.learned = estimate * REFERENCE_PRIOR * REFERENCE_PRIOR / (REFERENCE_PRIOR * REFERENCE_PRIOR + variance)
    if not -REFERENCE_MOST < f.learned < REFERENCE_MOST:
        f.learned = 0.0
    if not isfinite(f.given):
        f.coefficient = f.learned
    return 1


cdef inline int reference_push(
    ReferenceFit* f, double signal_v, double reference_v, double reference_se, int usable
) noexcept nogil:
    """The means of one second; `usable` 0 for what is not quiet. Returns 1 when a coefficient was learned.

    A few such seconds are left out; more begin the stretch anew.
    """
    cdef double relative
    cdef int learned
    if f.seconds >= 0 and usable and signal_v > 0.0 and reference_v > 0.0:
        relative = reference_se / reference_v
        f.signal_sum += log(signal_v)
        f.reference_sum += log(reference_v)
        f.noise += relative * relative / REFERENCE_BLOCKS
        f.blocks += 1
    f.seconds += 1
    if f.seconds < REFERENCE_BLOCKS:
        return 0
    if f.blocks < REFERENCE_FEWEST:
        reference_restart(f)
        return 0
    f.log_signal[f.bins] = f.signal_sum / f.blocks
    f.log_reference[f.bins] = f.reference_sum / f.blocks
    f.signal_sum = 0.0
    f.reference_sum = 0.0
    f.seconds = 0
    f.blocks = 0
    f.bins += 1
    if f.bins < REFERENCE_BINS:
        return 0
    learned = reference_regress(f)
    reference_restart(f)
    return learned


cdef inline void reference_follow(ReferenceFit* f, double reference_v, double first_v) noexcept nogil:
    """Carry the correction on to this R. A new coefficient acts on what R does from then on: no reading jumps.

    The first correction of a run is from the first R of the run, which the value is relative to.
    """
    cdef double now
    if not reference_v > 0.0:
        return
    now = log(reference_v)
    if not isfinite(f.last):
        f.last = now if f.followed or not first_v > 0.0 else log(first_v)
    f.followed = 1
    f.correction -= f.coefficient * (now - f.last)
    f.last = now


cdef inline double reference_factor(const ReferenceFit* f, double reference_v) noexcept nogil:
    """What a value that was divided by R is to be multiplied with."""
    if not isfinite(f.last):
        return exp(f.correction)
    return exp(f.correction - f.coefficient * (log(reference_v) - f.last))
