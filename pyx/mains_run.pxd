# Why compiled: mains hum is learnt from, and subtracted from, every conversion.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: volts, hertz, nanoseconds; phases in turns.
#
# Conversions come in runs of one level of the light, in equal steps of the phase: about a run's middle, cosines see the
# sums of symmetric pairs and sines their differences, and only the middle's phase turns from run to run.

from libc.math cimport M_PI, cos, fabs, floor, sin
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcpy

cdef enum:
    HARMONICS = 6
    MAINS_RUN = 6            # conversions that are treated at once; longer runs come in pieces
    MAINS_PAIRS = 3          # in them

cdef extern from *:
    """
    #define STIRBAR_MAINS_SAME_TURNS 1e-6     /* of a step: 1e-5 turns from one clock model to the next */
    """
    const double MAINS_SAME_TURNS "STIRBAR_MAINS_SAME_TURNS"

cdef struct MainsChannel:
    double frequency_hz       # in force for this block
    double cosine             # of the phase at the middle of conversion `index`
    double sine
    double stride_cosine      # of the phase over `stride` conversions
    double stride_sine
    double turns              # phase from one conversion to the next
    double half_cosine[MAINS_RUN - 1][2 * HARMONICS]  # of 1, 2... half steps
    double half_sine[MAINS_RUN - 1][HARMONICS]
    double gate[2 * HARMONICS]  # sums of cos over a run of `gated` conversions, about its middle
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
    int32_t gated
    uint32_t tabled           # bit m: half_cosine[m - 1] is filled
    int32_t count
    int32_t blocks            # since the phasors started anew
    int32_t spoiled           # a step of ambient light fell into the block
    int32_t applying          # the highest harmonic that is subtracted
    int32_t harmonics         # below half the converter's rate
    int32_t candidate         # 0: 50 Hz, 1: 60 Hz, while undecided


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
    if fabs(turns - channel.turns) <= MAINS_SAME_TURNS * turns:
        return
    channel.turns = turns
    channel.stride = 0
    channel.gated = 0
    channel.tabled = 0
    channel.harmonics = <int32_t>(0.47 / turns) if turns * HARMONICS > 0.47 else HARMONICS


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
    """Fill the tables for runs of `count` conversions."""
    cdef double sine[2 * HARMONICS]
    cdef double angle
    cdef int m, n
    channel.gated = count
    for n in range(2 * HARMONICS):
        channel.gate[n] = count & 1
    for m in range(count - 1, 0, -2):
        if not channel.tabled & (1u << m):
            angle = M_PI * channel.turns * m
            mains_multiples(cos(angle), sin(angle), 2 * HARMONICS, channel.half_cosine[m - 1], sine)
            memcpy(channel.half_sine[m - 1], sine, HARMONICS * sizeof(double))
            channel.tabled |= 1u << m
        for n in range(2 * HARMONICS):
            channel.gate[n] += 2.0 * channel.half_cosine[m - 1][n]


cdef inline void mains_learn(
    MainsChannel* channel, const double* sample, int count, const double* cosine, const double* sine
) noexcept nogil:
    """Add a run to the block's sums; `cosine` and `sine` are of 1..12 times the phase of its middle."""
    cdef double even[MAINS_PAIRS]
    cdef double odd[MAINS_PAIRS]
    cdef double real[HARMONICS]
    cdef double imaginary[HARMONICS]
    cdef double low, high
    cdef double middle = 0.0
    cdef int pairs = count >> 1
    cdef int h, j, m
    if channel.count == 0:
        channel.offset = sample[0]
    channel.count += count
    for j in range(pairs):
        low = sample[j] - channel.offset
        high = sample[count - 1 - j] - channel.offset
        even[j] = high + low
        odd[j] = high - low
        channel.total += even[j]
        channel.total_square += low * low + high * high
    if count & 1:
        middle = sample[pairs] - channel.offset
        channel.total += middle
        channel.total_square += middle * middle
    for h in range(HARMONICS):
        real[h] = middle
        imaginary[h] = 0.0
    m = count - 2
    for j in range(pairs):
        for h in range(HARMONICS):
            real[h] += even[j] * channel.half_cosine[m][h]
            imaginary[h] += odd[j] * channel.half_sine[m][h]
        m -= 2
    for h in range(HARMONICS):
        channel.y_cosine[h] += real[h] * cosine[h] - imaginary[h] * sine[h]
        channel.y_sine[h] += real[h] * sine[h] + imaginary[h] * cosine[h]
    for h in range(2 * HARMONICS):
        channel.n_cosine[h] += channel.gate[h] * cosine[h]
        channel.n_sine[h] += channel.gate[h] * sine[h]


cdef inline void mains_subtract(
    const MainsChannel* channel, double* sample, int count, const double* cosine, const double* sine
) noexcept nogil:
    """Take the hum away from a run, in place; `cosine` and `sine` as in mains_learn."""
    cdef double real[HARMONICS]
    cdef double imaginary[HARMONICS]
    cdef double even, odd
    cdef int h, j
    cdef int m = count - 2
    even = 0.0
    for h in range(HARMONICS):
        real[h] = channel.applied_cosine[h] * cosine[h] + channel.applied_sine[h] * sine[h]
        imaginary[h] = channel.applied_sine[h] * cosine[h] - channel.applied_cosine[h] * sine[h]
    if count & 1:
        for h in range(HARMONICS):
            even += real[h]
        sample[count >> 1] -= even
    for j in range(count >> 1):
        even = 0.0
        odd = 0.0
        for h in range(channel.applying):
            even += real[h] * channel.half_cosine[m][h]
            odd += imaginary[h] * channel.half_sine[m][h]
        m -= 2
        sample[j] -= even - odd
        sample[count - 1 - j] -= even + odd


cdef inline void mains_run(
    MainsChannel* channel, double* sample, int count, uint32_t first_index, bint learn
) noexcept nogil:
    """A run of conversions under one level of the light: subtract the hum; `learn` from it when the LED was off."""
    cdef double cosine[2 * HARMONICS]
    cdef double sine[2 * HARMONICS]
    cdef double c, s, hc, hs
    cdef int begin = 0
    cdef int n
    if not (learn or channel.applying):
        return
    while begin < count:
        n = count - begin if count - begin < MAINS_RUN else MAINS_RUN
        mains_move(channel, first_index + <uint32_t>begin)
        if channel.gated != n:
            mains_open_gate(channel, n)
        c = channel.cosine
        s = channel.sine
        if n > 1:
            hc = channel.half_cosine[n - 2][0]
            hs = channel.half_sine[n - 2][0]
            c = channel.cosine * hc - channel.sine * hs
            s = channel.cosine * hs + channel.sine * hc
        mains_multiples(c, s, 2 * HARMONICS if learn else HARMONICS, cosine, sine)
        if channel.applying:
            mains_subtract(channel, sample + begin, n, cosine, sine)
        if learn:
            mains_learn(channel, sample + begin, n, cosine, sine)
        begin += n
