# Why compiled: mains hum is tracked within the loop, for every photodiode.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: volts, hertz, nanoseconds; phases in turns.
#
# One MainsLine for the site (its frequency), one MainsChannel for each photodiode (its phasors). Only conversions with
# the LED off are learnt from, so that the culture cannot disturb the hum, nor the hum's model the culture. In blocks of
# a quarter or half a second the sums of y cos(h p), y sin(h p), cos(n p), sin(n p) (mains_run.pxd) give the
# least-squares phasors of harmonics 1..6 over a constant; the turn of the phasors from block to block gives the
# frequency (a scalar Kalman filter that all channels feed).

from libc.math cimport M_PI, atan2, cos, fabs, floor, log, sin, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.cholesky cimport solve_cholesky
from stirbar.rt.mains_run cimport HARMONICS, MainsChannel, mains_multiples, mains_resync

cdef enum:
    MAINS_UNKNOWNS = 13      # a constant, and cosine and sine of each harmonic

cdef extern from *:
    """
    #define STIRBAR_MAINS_BLOCK_LOCKED_NS 500000000
    #define STIRBAR_MAINS_BLOCK_NS 250000000
    #define STIRBAR_MAINS_PATIENCE 120        /* blocks without a hum, after which they are as long as locked ones */
    #define STIRBAR_MAINS_WANDER 1.6e-5       /* Hz^2 a second: a random walk of 4 mHz in a second */
    #define STIRBAR_MAINS_START_VARIANCE 0.09 /* Hz^2 */
    #define STIRBAR_MAINS_LOCK_VARIANCE 0.0025
    #define STIRBAR_MAINS_UNLOCK_VARIANCE 0.04
    #define STIRBAR_MAINS_RANGE_HZ 1.5
    #define STIRBAR_MAINS_EVIDENCE 200.0      /* log-likelihood by which 50 or 60 Hz must lead: 6 sd of no hum */
    #define STIRBAR_MAINS_FADE 0.97           /* of the evidence, a block */
    #define STIRBAR_MAINS_SEEN 16.0           /* power against a component's variance from which a phase counts */
    #define STIRBAR_MAINS_SWELL 0.0025        /* power that may be left over of a hum that is subtracted: 5 % of it */
    """
    const int MAINS_PATIENCE "STIRBAR_MAINS_PATIENCE"
    const int64_t MAINS_BLOCK_LOCKED_NS "STIRBAR_MAINS_BLOCK_LOCKED_NS"
    const int64_t MAINS_BLOCK_NS "STIRBAR_MAINS_BLOCK_NS"
    const double MAINS_WANDER "STIRBAR_MAINS_WANDER"
    const double MAINS_START_VARIANCE "STIRBAR_MAINS_START_VARIANCE"
    const double MAINS_LOCK_VARIANCE "STIRBAR_MAINS_LOCK_VARIANCE"
    const double MAINS_UNLOCK_VARIANCE "STIRBAR_MAINS_UNLOCK_VARIANCE"
    const double MAINS_RANGE_HZ "STIRBAR_MAINS_RANGE_HZ"
    const double MAINS_EVIDENCE "STIRBAR_MAINS_EVIDENCE"
    const double MAINS_FADE "STIRBAR_MAINS_FADE"
    const double MAINS_SEEN "STIRBAR_MAINS_SEEN"
    const double MAINS_SWELL "STIRBAR_MAINS_SWELL"

cdef struct MainsLine:
    double frequency_hz
    double variance           # of frequency_hz, Hz^2
    double nominal_hz
    double evidence[2]        # for 50 and 60 Hz, fading
    int64_t updated_ns
    int32_t forced            # the config names the frequency
    int32_t decided           # 50 or 60 Hz
    int32_t locked
    int32_t tested            # blocks that spoke for or against

cdef inline void mains_line_init(MainsLine* line, double forced_hz) noexcept nogil:
    """`forced_hz` 0: find out whether it is 50 or 60."""
    memset(line, 0, sizeof(MainsLine))
    line.nominal_hz = forced_hz if forced_hz > 0.0 else 50.0
    line.frequency_hz = line.nominal_hz
    line.variance = MAINS_START_VARIANCE
    line.forced = forced_hz > 0.0
    line.decided = line.forced


cdef inline void mains_start_block(MainsChannel* channel, int64_t now_ns) noexcept nogil:
    channel.block_start_ns = now_ns
    channel.count = 0
    channel.spoiled = 0
    channel.total = 0.0
    channel.total_square = 0.0
    memset(channel.y_cosine, 0, sizeof(channel.y_cosine))
    memset(channel.y_sine, 0, sizeof(channel.y_sine))
    memset(channel.n_cosine, 0, sizeof(channel.n_cosine))
    memset(channel.n_sine, 0, sizeof(channel.n_sine))


cdef inline void mains_forget(MainsChannel* channel) noexcept nogil:
    """Start the phasors anew: the frequency's frame has changed."""
    memset(channel.level_cosine, 0, sizeof(channel.level_cosine))
    memset(channel.level_sine, 0, sizeof(channel.level_sine))
    memset(channel.applied_cosine, 0, sizeof(channel.applied_cosine))
    memset(channel.applied_sine, 0, sizeof(channel.applied_sine))
    memset(channel.power, 0, sizeof(channel.power))
    memset(channel.left, 0, sizeof(channel.left))
    channel.applying = 0
    channel.blocks = 0
    channel.last_variance = 0.0


cdef inline void mains_channel_init(MainsChannel* channel, const MainsLine* line) noexcept nogil:
    memset(channel, 0, sizeof(MainsChannel))
    channel.frequency_hz = line.frequency_hz
    channel.cosine = 1.0
    channel.harmonics = HARMONICS
    channel.candidate = line.nominal_hz > 55.0


cdef inline void mains_normal_equations(
    const MainsChannel* channel, int unknowns, double* gram, double* right
) noexcept nogil:
    """Gram matrix (lower triangle, rows of MAINS_UNKNOWNS) and right side, from the sums, by the product formulas.

    Unknown 0 is the constant; 2h - 1 and 2h are cosine and sine of harmonic h.
    """
    cdef int i, j, a, b, d
    cdef double cd, sd
    gram[0] = channel.count
    right[0] = channel.total
    for i in range(1, unknowns):
        a = (i + 1) >> 1
        right[i] = channel.y_cosine[a - 1] if i & 1 else channel.y_sine[a - 1]
        gram[i * MAINS_UNKNOWNS] = channel.n_cosine[a - 1] if i & 1 else channel.n_sine[a - 1]
        for j in range(1, i + 1):
            b = (j + 1) >> 1
            d = a - b
            cd = channel.n_cosine[d - 1] if d else <double>channel.count
            sd = channel.n_sine[d - 1] if d else 0.0
            if i & 1:
                if j & 1:
                    gram[i * MAINS_UNKNOWNS + j] = 0.5 * (cd + channel.n_cosine[a + b - 1])
                else:
                    gram[i * MAINS_UNKNOWNS + j] = 0.5 * (channel.n_sine[a + b - 1] - sd)
            elif j & 1:
                gram[i * MAINS_UNKNOWNS + j] = 0.5 * (channel.n_sine[a + b - 1] + sd)
            else:
                gram[i * MAINS_UNKNOWNS + j] = 0.5 * (cd - channel.n_cosine[a + b - 1])


cdef inline void mains_line_unlock(MainsLine* line) noexcept nogil:
    line.frequency_hz = line.nominal_hz
    line.variance = MAINS_START_VARIANCE
    line.locked = 0
    line.decided = line.forced
    line.evidence[0] = 0.0
    line.evidence[1] = 0.0
    line.tested = 0


cdef inline void mains_line_wait(MainsLine* line, int64_t now_ns) noexcept nogil:
    """Time passes: the frequency is known less well."""
    cdef double elapsed_s = <double>(now_ns - line.updated_ns) * 1e-9
    line.updated_ns = now_ns
    if not 0.0 < elapsed_s < 60.0:
        return
    line.variance += MAINS_WANDER * elapsed_s
    if line.variance > MAINS_START_VARIANCE:
        line.variance = MAINS_START_VARIANCE
    if line.locked and line.variance > MAINS_UNLOCK_VARIANCE:
        mains_line_unlock(line)


cdef inline void mains_line_measure(MainsLine* line, double frequency_hz, double variance) noexcept nogil:
    cdef double gain = line.variance / (line.variance + variance)
    line.frequency_hz += gain * (frequency_hz - line.frequency_hz)
    line.variance *= 1.0 - gain
    if fabs(line.frequency_hz - line.nominal_hz) > MAINS_RANGE_HZ:
        mains_line_unlock(line)
    elif line.variance < MAINS_LOCK_VARIANCE:
        line.locked = 1


cdef inline void mains_line_decide(MainsLine* line, int candidate, double likelihood) noexcept nogil:
    """One block's evidence for 50 (candidate 0) or 60 Hz (1)."""
    cdef double lead
    line.evidence[candidate] = MAINS_FADE * line.evidence[candidate] + likelihood
    line.tested += 1
    lead = line.evidence[1] - line.evidence[0]
    if line.tested >= 4 and fabs(lead) > MAINS_EVIDENCE:
        line.nominal_hz = 60.0 if lead > 0.0 else 50.0
        line.frequency_hz = line.nominal_hz
        line.variance = MAINS_START_VARIANCE
        line.decided = 1


cdef inline void mains_track_frequency(
    MainsChannel* channel, MainsLine* line, const double* cosine, const double* sine, double variance, int64_t middle_ns
) noexcept nogil:
    """Feed the line with the turn of the phasors since the block before."""
    cdef double elapsed_s = <double>(middle_ns - channel.last_middle_ns) * 1e-9
    cdef double weight = 0.0
    cdef double total = 0.0
    cdef double now, before, turn, w
    cdef int h
    if channel.last_variance <= 0.0 or not 0.0 < elapsed_s < 1.5:
        return
    for h in range(1, channel.harmonics + 1):
        if h * (2.0 * sqrt(line.variance) + 0.02) * elapsed_s > 0.5:
            break
        now = cosine[h - 1] * cosine[h - 1] + sine[h - 1] * sine[h - 1]
        before = channel.last_cosine[h - 1] * channel.last_cosine[h - 1]
        before += channel.last_sine[h - 1] * channel.last_sine[h - 1]
        if now < MAINS_SEEN * variance or before < MAINS_SEEN * channel.last_variance:
            continue
        turn = atan2(
            cosine[h - 1] * channel.last_sine[h - 1] - sine[h - 1] * channel.last_cosine[h - 1],
            cosine[h - 1] * channel.last_cosine[h - 1] + sine[h - 1] * channel.last_sine[h - 1],
        ) / (2.0 * M_PI * h * elapsed_s)
        w = 2.0 * M_PI * h * elapsed_s
        w = w * w / (variance / now + channel.last_variance / before)
        total += w * turn
        weight += w
    if weight > 0.0:
        mains_line_measure(
            line, 0.5 * (channel.last_hz + channel.frequency_hz) + total / weight, 1.0 / weight + 1e-7)


cdef inline void mains_update_phasors(
    MainsChannel* channel, const double* cosine, const double* sine, double variance, bint locked
) noexcept nogil:
    """Smooth the phasors (about two seconds once locked) and choose what is subtracted."""
    cdef double gain, surprise, rc, rs, noise, size
    cdef int h
    surprise = 0.0
    for h in range(channel.harmonics):
        rc = cosine[h] - channel.level_cosine[h]
        rs = sine[h] - channel.level_sine[h]
        surprise += rc * rc + rs * rs
    if surprise > 3.0 * 2.0 * variance * channel.harmonics and channel.blocks > 1:
        channel.blocks = 0  # far beyond noise: the newest block knows better than all before
    channel.blocks += 1
    gain = 1.0 / channel.blocks
    if gain < 0.25:
        gain = 0.25
    if not locked:
        gain = 1.0
        channel.blocks = 0
    noise = 2.0 * variance * gain / (2.0 - gain)
    channel.applying = 0
    for h in range(HARMONICS):
        if h < channel.harmonics:
            channel.level_cosine[h] += gain * (cosine[h] - channel.level_cosine[h])
            channel.level_sine[h] += gain * (sine[h] - channel.level_sine[h])
        else:
            channel.level_cosine[h] = 0.0
            channel.level_sine[h] = 0.0
        size = channel.level_cosine[h] * channel.level_cosine[h] + channel.level_sine[h] * channel.level_sine[h]
        channel.power[h] = size if size > 6.0 * noise else 0.0
        rc = 1.0 - noise / size if locked and channel.power[h] > 0.0 else 0.0
        channel.left[h] = noise + MAINS_SWELL * channel.power[h] if rc > 0.0 else channel.power[h]
        channel.applied_cosine[h] = rc * channel.level_cosine[h]
        channel.applied_sine[h] = rc * channel.level_sine[h]
        if rc > 0.0:
            channel.applying = h + 1


cdef inline void mains_carry(MainsChannel* channel, double ahead_turns) noexcept nogil:
    """Turn the phasors from the block's middle to its end: the hum is `ahead_turns` ahead of the frame there."""
    cdef double cosine[HARMONICS]
    cdef double sine[HARMONICS]
    cdef double c
    cdef int h
    mains_multiples(cos(2.0 * M_PI * ahead_turns), sin(2.0 * M_PI * ahead_turns), HARMONICS, cosine, sine)
    for h in range(HARMONICS):
        c = channel.level_cosine[h]
        channel.level_cosine[h] = c * cosine[h] + channel.level_sine[h] * sine[h]
        channel.level_sine[h] = channel.level_sine[h] * cosine[h] - c * sine[h]
        c = channel.applied_cosine[h]
        channel.applied_cosine[h] = c * cosine[h] + channel.applied_sine[h] * sine[h]
        channel.applied_sine[h] = channel.applied_sine[h] * cosine[h] - c * sine[h]


cdef inline void mains_solve_block(MainsChannel* channel, MainsLine* line, int64_t now_ns) noexcept nogil:
    """Least squares over the block; then frequency, decision and phasors."""
    cdef double gram[MAINS_UNKNOWNS * MAINS_UNKNOWNS]
    cdef double x[MAINS_UNKNOWNS]
    cdef double right[MAINS_UNKNOWNS]
    cdef double cosine[HARMONICS]
    cdef double sine[HARMONICS]
    cdef int unknowns = 2 * channel.harmonics + 1
    cdef int i
    cdef double explained = 0.0
    cdef double around_mean, variance, rest
    cdef int64_t middle_ns = channel.block_start_ns + ((now_ns - channel.block_start_ns) >> 1)
    mains_normal_equations(channel, unknowns, gram, right)
    for i in range(unknowns):
        x[i] = right[i]
    solve_cholesky(gram, x, unknowns, MAINS_UNKNOWNS, 1e-3 * channel.count)
    for i in range(unknowns):
        explained += x[i] * right[i]
    around_mean = channel.total_square - channel.total * channel.total / channel.count
    rest = channel.total_square - explained
    if not rest > 1e-12 * channel.total_square:
        rest = 1e-12 * channel.total_square + 1e-300
    variance = rest / (channel.count - unknowns)
    channel.noise_variance = variance
    for i in range(HARMONICS):
        cosine[i] = channel.applied_cosine[i]
        sine[i] = channel.applied_sine[i]
        if i < channel.harmonics:
            cosine[i] += x[2 * i + 1]
            sine[i] += x[2 * i + 2]
    variance *= 2.0 / channel.count
    if not line.decided:
        mains_line_decide(line, channel.candidate, channel.count * log(around_mean / rest) - 2.0 * channel.harmonics)
        mains_update_phasors(channel, cosine, sine, variance, False)
        return
    mains_track_frequency(channel, line, cosine, sine, variance, middle_ns)
    mains_update_phasors(channel, cosine, sine, variance, line.locked)
    if line.locked:
        mains_carry(channel, 1e-9 * <double>(now_ns - middle_ns) * (line.frequency_hz - channel.frequency_hz))
    for i in range(HARMONICS):
        channel.last_cosine[i] = cosine[i]
        channel.last_sine[i] = sine[i]
    channel.last_variance = variance
    channel.last_hz = channel.frequency_hz
    channel.last_middle_ns = middle_ns


cdef inline void mains_end_block(
    MainsChannel* channel, MainsLine* line, uint32_t index, int64_t middle_ns, double period_ns
) noexcept nogil:
    """When it has lasted long enough, close the block before conversion `index` (at `middle_ns`), open the next."""
    cdef double next_hz
    if middle_ns - channel.block_start_ns < MAINS_BLOCK_NS:
        return
    if line.locked or (not line.decided and line.tested > MAINS_PATIENCE):
        if middle_ns - channel.block_start_ns < MAINS_BLOCK_LOCKED_NS:
            return
    mains_line_wait(line, middle_ns)
    if channel.harmonics and channel.count > 3 * (2 * channel.harmonics + 1) and not channel.spoiled:
        mains_solve_block(channel, line, middle_ns)
    channel.reference_turns += channel.frequency_hz * 1e-9 * <double>(middle_ns - channel.reference_ns)
    channel.reference_turns -= floor(channel.reference_turns)
    channel.reference_ns = middle_ns
    if line.decided:
        next_hz = line.frequency_hz
    else:
        channel.candidate = 1 - channel.candidate
        next_hz = 60.0 if channel.candidate else 50.0
    if fabs(next_hz - channel.frequency_hz) > 1.0:
        mains_forget(channel)
    channel.frequency_hz = next_hz
    mains_resync(channel, index, middle_ns, period_ns)
    mains_start_block(channel, middle_ns)
