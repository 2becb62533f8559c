# Why compiled: the loop chooses anew, when mains or spacing have moved, how a window weighs its chop periods.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: hertz, nanoseconds; phases in radians or turns; weights sum to 1.
#
# The weights take mains out of a window's mean: the row of a least-squares fit (docs/optical-density.md, 7).

from libc.math cimport M_PI, cos, fabs, floor, sin

from stirbar.rt.cholesky cimport solve_cholesky
from stirbar.rt.chop cimport chop_gain
from stirbar.rt.mains_run cimport HARMONICS
from stirbar.rt.od_state cimport OD_TURNS_S, OD_UNUSED, OdChannel, OdNulls, OdState
from stirbar.rt.types cimport MAX_CHANNELS

cdef extern from *:
    """
    #define STIRBAR_OD_NULL_FLOOR 2.0   /* power that is allowed for where no hum is seen, over the mean's variance */
    #define STIRBAR_OD_NULL_REACH 1.5   /* aliases within so many 1 / T of zero are left to the subtraction */
    """
    const double OD_NULL_FLOOR "STIRBAR_OD_NULL_FLOOR"
    const double OD_NULL_REACH "STIRBAR_OD_NULL_REACH"


cdef inline int od_window_entries(const OdState* s, int which) noexcept nogil:
    """Chop periods in a window of that rate, as many as fit; whole turns of the stirrer where it holds them (IS-29).

    It stays as it is while it is right within a chop period, so that it does not follow every wink of the rotor.
    """
    cdef double n = s.rate[which].window_s * 1e9 / s.spacing_ns
    cdef double window_ns = s.rate[which].window_s * 1e9
    cdef int held = s.rate[which].nulls.count
    if s.turn_ns > 0.0 and s.rate[which].window_s >= OD_TURNS_S and s.turn_ns <= window_ns:
        n = <double><int>(window_ns / s.turn_ns + 0.5) * s.turn_ns / s.spacing_ns
    if held and fabs(n - held) < 0.8:
        return held
    n += 0.5
    if n > s.rate[which].nulls.room:
        return s.rate[which].nulls.room
    return <int>n if n > 1.0 else 1


cdef struct NullAngles:
    double sine              # of half a phase
    double cosine
    double count_sine        # of `count` times that
    double count_cosine


cdef inline double od_dirichlet(const NullAngles* a, const NullAngles* b, double sign, int count) noexcept nogil:
    """Sum of cos((a + sign b) x) over x = -(count-1)/2 .. (count-1)/2."""
    cdef double half = a.sine * b.cosine + sign * a.cosine * b.sine
    if fabs(half) > 1e-9:
        return (a.count_sine * b.count_cosine + sign * a.count_cosine * b.count_sine) / half
    half = a.cosine * b.cosine - sign * a.sine * b.sine
    return count * (a.count_cosine * b.count_cosine - sign * a.count_sine * b.count_sine) / half


cdef inline double od_hum_to_noise(const OdState* s, int harmonic, bint near_zero) noexcept nogil:
    """Power of a harmonic in the differences against their variance, the worst of the channels.

    Near zero frequency the fit costs dear: there it is the power that subtraction may have left over, elsewhere all.
    """
    cdef const OdChannel* ch
    cdef double worst = 0.0
    cdef double power, gain
    cdef int i
    for i in range(MAX_CHANNELS):
        ch = &s.channel[i]
        if s.config.role[i] != OD_UNUSED and ch.scale.value > 0.0:
            gain = 1.0
            if ch.half_cycle > 1:
                gain = chop_gain((harmonic + 1) * s.line.frequency_hz, 1e9 / ch.period_ns, ch.half_cycle)
            power = ch.mains.left[harmonic] if near_zero else ch.mains.power[harmonic]
            power *= gain * gain / (ch.scale.value * ch.scale.value)
            worst = power if power > worst else worst
    return worst


cdef inline double od_null_prior(const OdState* s, int harmonic, int count) noexcept nogil:
    """How strong a harmonic may be among `count` entries: power against the variance of the differences.

    One whose alias lies within 1.5 / T of zero is fitted only as far as the tracker has seen it; the others at least as
    far as a standard error or so.
    """
    cdef double turns = (harmonic + 1) * s.line.frequency_hz * s.spacing_ns * 1e-9
    turns -= floor(turns + 0.5)
    if fabs(turns) * count < OD_NULL_REACH:
        return od_hum_to_noise(s, harmonic, True)
    return od_hum_to_noise(s, harmonic, False) + OD_NULL_FLOOR / count


cdef inline bint od_nulls_hold(const OdState* s, const OdNulls* nulls, int count) noexcept nogil:
    """Whether the weights still fit: aliases within 1/20 of a turn over the window, hum within 30 %."""
    cdef double drift, prior
    cdef int h
    if nulls.count != count:
        return False
    drift = fabs(s.line.frequency_hz / nulls.hz - 1.0) + fabs(s.spacing_ns / nulls.spacing_ns - 1.0)
    if HARMONICS * drift * s.line.frequency_hz * count * s.spacing_ns * 1e-9 > 0.05:
        return False
    for h in range(HARMONICS):
        prior = od_null_prior(s, h, count)
        if prior > 1.3 * nulls.prior[h] or 1.3 * prior < nulls.prior[h]:
            return False
    return True


cdef inline void od_solve_nulls(OdNulls* nulls, float* weights) noexcept nogil:
    """Weights of equally spaced entries: least variance of white noise plus mains of known power; count, spacing_ns, hz
    and prior are given.

    The row of the least-squares fit (constant and harmonics, ridge 1 / prior power) that gives the constant; by
    symmetry only the cosines about the window's middle matter.
    """
    cdef int count = nulls.count
    cdef double gram[HARMONICS * HARMONICS]
    cdef double beta[HARMONICS]
    cdef double now[HARMONICS]
    cdef double before[HARMONICS]
    cdef double twice[HARMONICS]
    cdef NullAngles angle[HARMONICS]
    cdef NullAngles zero
    cdef double turns, total, weight
    cdef int h, i, m
    cdef int used = 0
    for h in range(HARMONICS):
        if nulls.prior[h] > 0.0:
            turns = (h + 1) * nulls.hz * nulls.spacing_ns * 1e-9
            turns = M_PI * (turns - floor(turns + 0.5))
            angle[used].sine = sin(turns)
            angle[used].cosine = cos(turns)
            angle[used].count_sine = sin(count * turns)
            angle[used].count_cosine = cos(count * turns)
            gram[used * HARMONICS + used] = 1.0 / nulls.prior[h]
            used += 1
    zero.sine = 0.0
    zero.cosine = 1.0
    zero.count_sine = 0.0
    zero.count_cosine = 1.0
    for i in range(used):
        beta[i] = od_dirichlet(&angle[i], &zero, 1.0, count)
        for h in range(i + 1):
            total = 0.5 * od_dirichlet(&angle[i], &angle[h], -1.0, count)
            total += 0.5 * od_dirichlet(&angle[i], &angle[h], 1.0, count)
            if h == i:
                total += gram[i * HARMONICS + i]
            gram[i * HARMONICS + h] = total
        # cos((m - (count - 1) / 2) phase) for m = 0 and -1
        now[i] = angle[i].count_cosine * angle[i].cosine + angle[i].count_sine * angle[i].sine
        turns = 2.0 * angle[i].sine * angle[i].cosine
        twice[i] = 2.0 * (1.0 - 2.0 * angle[i].sine * angle[i].sine)
        before[i] = 0.5 * twice[i] * now[i] - turns * (
            angle[i].count_sine * angle[i].cosine - angle[i].count_cosine * angle[i].sine)
    solve_cholesky(gram, beta, used, HARMONICS, 1e-9 * count)
    total = 0.0
    for m in range((count + 1) // 2):
        weight = 1.0
        for i in range(used):
            weight -= beta[i] * now[i]
            turns = twice[i] * now[i] - before[i]
            before[i] = now[i]
            now[i] = turns
        weights[m] = <float>weight
        total += weight if 2 * m == count - 1 else 2.0 * weight
    total = 1.0 / total
    for m in range((count + 1) // 2):
        weights[m] *= <float>total
        weights[count - 1 - m] = weights[m]


cdef inline void od_design_nulls(OdState* s, OdNulls* nulls, int count) noexcept nogil:
    """Weights for mains and spacing as they are now."""
    cdef int h
    nulls.hz = s.line.frequency_hz
    nulls.spacing_ns = s.spacing_ns
    nulls.count = count
    for h in range(HARMONICS):
        nulls.prior[h] = od_null_prior(s, h, count)
    od_solve_nulls(nulls, &s.null_weight[nulls.begin])
