# Why compiled: mains hum is tracked and subtracted at every conversion.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: volts, hertz, nanoseconds; phases in turns.
#
# One MainsLine for the site (its frequency), one MainsChannel for each photodiode (its phasors). Only conversions with
# the LED off are learnt from, so that the culture cannot disturb the hum, nor the hum's model the culture. In blocks of
# a quarter or half a second the sums of y cos(h p), y sin(h p), cos(n p), sin(n p) give the least-squares phasors of
# harmonics 1..6 over a constant; the turn of the phasors from block to block gives the frequency (a scalar Kalman
# filter that all channels feed). Conversions come in runs of one level of the light: within a run the phase advances by
# equal steps, so Goertzel's recurrence gives the sums of y, a geometric series those of the phase, and a two-term
# recurrence each harmonic to subtract.

from libc.math cimport M_PI, atan2, cos, fabs, floor, log, sin, sqrt
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.cholesky cimport solve_cholesky

cdef enum:
    HARMONICS = 6
    MAINS_UNKNOWNS = 13      # a constant, and cosine and sine of each harmonic

cdef extern from *:
    """
    #define STIRBAR_MAINS_BLOCK_LOCKED_NS 500000000
    #define STIRBAR_MAINS_BLOCK_NS 250000000
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

cdef struct MainsChannel:
    double frequency_hz       # in force for this block
    double cosine             # of the phase at the middle of conversion `index`
    double sine
    double stride_cosine      # of the phase over `stride` conversions
    double stride_sine
    double turns              # phase from one conversion to the next
    double step_cosine[2 * HARMONICS]  # of its multiples
    double step_sine[2 * HARMONICS]
    double gate_cosine[2 * HARMONICS]  # sums over a run of `gate` conversions, from phase 0
    double gate_sine[2 * HARMONICS]
    double reference_turns    # phase at reference_ns
    int64_t reference_ns
    int64_t block_start_ns
    double offset             # the block's first value, taken away from all
    double total              # sums over the block: of y, y^2,
    double total_square
    double y_cosine[HARMONICS]
    double y_sine[HARMONICS]
    double n_cosine[2 * HARMONICS]  # of cos(n p), n = 1..12
    double n_sine[2 * HARMONICS]
    double level_cosine[HARMONICS]  # the smoothed phasors
    double level_sine[HARMONICS]
    double applied_cosine[HARMONICS]  # what is subtracted
    double applied_sine[HARMONICS]
    double last_cosine[HARMONICS]   # phasors of the block before
    double last_sine[HARMONICS]
    double power[HARMONICS]   # amplitude squared, 0 where it is not significant
    double left[HARMONICS]    # of it, what may be left after subtraction
    double last_hz            # mean frequency of the frame of the block before
    double last_variance      # of its phasors' components; 0: there is none
    int64_t last_middle_ns
    double noise_variance     # of one conversion
    uint32_t index
    int32_t stride
    int32_t gate
    int32_t count
    int32_t blocks            # since the phasors started anew
    int32_t spoiled           # a step of ambient light fell into the block
    int32_t applying
    int32_t harmonics         # below half the converter's rate
    int32_t candidate         # 0: 50 Hz, 1: 60 Hz, while undecided


cdef inline void mains_line_init(MainsLine* line, double forced_hz) noexcept nogil:
    """`forced_hz` 0: find out whether it is 50 or 60."""
    memset(line, 0, sizeof(MainsLine))
    line.nominal_hz = forced_hz if forced_hz > 0.0 else 50.0
    line.frequency_hz = line.nominal_hz
    line.variance = MAINS_START_VARIANCE
    line.forced = forced_hz > 0.0
    line.decided = line.forced


cdef inline void mains_multiples(double c1, double s1, int count, double* cosine, double* sine) noexcept nogil:
    """cos and sin of 1..count times an angle, by Chebyshev's recurrence."""
    cdef double twice = 2.0 * c1
    cdef int n
    cosine[0] = c1
    sine[0] = s1
    cosine[1] = twice * c1 - 1.0
    sine[1] = twice * s1
    for n in range(2, count):
        cosine[n] = twice * cosine[n - 1] - cosine[n - 2]
        sine[n] = twice * sine[n - 1] - sine[n - 2]


cdef inline void mains_resync(
    MainsChannel* channel, uint32_t index, int64_t middle_ns, double period_ns
) noexcept nogil:
    """Set the phase of conversion `index`, whose middle is at `middle_ns`, exactly."""
    cdef double turns = channel.reference_turns + channel.frequency_hz * 1e-9 * <double>(
        middle_ns - channel.reference_ns)
    turns -= floor(turns)
    channel.index = index
    channel.cosine = cos(2.0 * M_PI * turns)
    channel.sine = sin(2.0 * M_PI * turns)
    turns = channel.frequency_hz * 1e-9 * period_ns
    if turns == channel.turns:
        return
    channel.turns = turns
    channel.stride = 0
    channel.gate = 0
    channel.harmonics = <int32_t>(0.47 / turns) if turns * HARMONICS > 0.47 else HARMONICS
    mains_multiples(
        cos(2.0 * M_PI * turns), sin(2.0 * M_PI * turns), 2 * HARMONICS, channel.step_cosine, channel.step_sine)


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


cdef inline void mains_move(MainsChannel* channel, uint32_t index) noexcept nogil:
    """Advance the phase to conversion `index`."""
    cdef int32_t stride = <int32_t>(index - channel.index)
    cdef double c = channel.cosine
    if stride == 0:
        return
    if stride != channel.stride:
        channel.stride = stride
        channel.stride_cosine = cos(2.0 * M_PI * channel.turns * stride)
        channel.stride_sine = sin(2.0 * M_PI * channel.turns * stride)
    channel.index = index
    channel.cosine = c * channel.stride_cosine - channel.sine * channel.stride_sine
    channel.sine = c * channel.stride_sine + channel.sine * channel.stride_cosine


cdef inline void mains_open_gate(MainsChannel* channel, int count) noexcept nogil:
    """Sums of cos and sin of n phase steps over `count` conversions, from phase 0 (a geometric series)."""
    cdef double half, size
    cdef int n
    channel.gate = count
    for n in range(2 * HARMONICS):
        half = M_PI * channel.turns * (n + 1)
        size = sin(half)
        size = sin(count * half) / size if fabs(size) > 1e-9 else <double>count
        channel.gate_cosine[n] = size * cos((count - 1) * half)
        channel.gate_sine[n] = size * sin((count - 1) * half)


cdef inline void mains_learn(
    MainsChannel* channel, const double* sample, int count, const double* cosine, const double* sine
) noexcept nogil:
    """Add a run to the block's sums; `cosine` and `sine` are of 1..12 times the phase of its first conversion."""
    cdef double twice, b0, b1, b2, real, imaginary
    cdef int h, j
    if channel.count == 0:
        channel.offset = sample[0]
    if channel.gate != count:
        mains_open_gate(channel, count)
    channel.count += count
    for j in range(count):
        real = sample[j] - channel.offset
        channel.total += real
        channel.total_square += real * real
    for h in range(HARMONICS):
        twice = 2.0 * channel.step_cosine[h]
        b1 = 0.0
        b2 = 0.0
        for j in range(count - 1, 0, -1):
            b0 = sample[j] - channel.offset + twice * b1 - b2
            b2 = b1
            b1 = b0
        real = sample[0] - channel.offset + channel.step_cosine[h] * b1 - b2
        imaginary = channel.step_sine[h] * b1
        channel.y_cosine[h] += real * cosine[h] - imaginary * sine[h]
        channel.y_sine[h] += real * sine[h] + imaginary * cosine[h]
    for h in range(2 * HARMONICS):
        channel.n_cosine[h] += channel.gate_cosine[h] * cosine[h] - channel.gate_sine[h] * sine[h]
        channel.n_sine[h] += channel.gate_cosine[h] * sine[h] + channel.gate_sine[h] * cosine[h]


cdef inline void mains_subtract(
    const MainsChannel* channel, double* sample, int count, const double* cosine, const double* sine
) noexcept nogil:
    """Take the hum away from a run, in place."""
    cdef double twice, x0, x1, x2, c, s
    cdef int h, j
    for h in range(channel.harmonics):
        if channel.applied_cosine[h] == 0.0 and channel.applied_sine[h] == 0.0:
            continue
        twice = 2.0 * channel.step_cosine[h]
        x0 = channel.applied_cosine[h] * cosine[h] + channel.applied_sine[h] * sine[h]
        c = cosine[h] * channel.step_cosine[h] - sine[h] * channel.step_sine[h]
        s = sine[h] * channel.step_cosine[h] + cosine[h] * channel.step_sine[h]
        x1 = channel.applied_cosine[h] * c + channel.applied_sine[h] * s
        for j in range(count):
            sample[j] -= x0
            x2 = twice * x1 - x0
            x0 = x1
            x1 = x2


cdef inline void mains_run(
    MainsChannel* channel, double* sample, int count, uint32_t first_index, bint learn
) noexcept nogil:
    """A run of conversions under one level of the light: subtract the hum; `learn` from it when the LED was off."""
    cdef double cosine[2 * HARMONICS]
    cdef double sine[2 * HARMONICS]
    mains_move(channel, first_index)
    if not (learn or channel.applying):
        return
    mains_multiples(channel.cosine, channel.sine, 2 * HARMONICS if learn else HARMONICS, cosine, sine)
    if channel.applying:
        mains_subtract(channel, sample, count, cosine, sine)
    if learn:
        mains_learn(channel, sample, count, cosine, sine)


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
        channel.blocks = 1
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
            channel.applying = 1


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
    if middle_ns - channel.block_start_ns < (MAINS_BLOCK_LOCKED_NS if line.locked else MAINS_BLOCK_NS):
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
