# Why compiled: finds rate and phase of a silent converter within a tenth of a second of its start.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: nanoseconds of the loop's clock; codes; phases in fractions of a conversion period.
#
# The register is read a few times in each conversion while the light changes now and then. After a change at t the
# register goes through three levels: as before, until the straddling conversion ends at t + phase * period; between,
# for a period, by just that phase; as after. So one half-cycle gives the likelihood of 16 phases, kept as its first
# circular moment. All edges belong to one rate when (t / period + phase) is the same for all, modulo 1: the sum of
# the moments, each turned by t / period, is longest at the true rate (a periodogram; Rife and Boorstyn 1974), and its
# angle is the phase.

from libc.math cimport M_PI, atan2, cos, exp, fabs, floor, sin
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

cdef enum:
    ACQUISITION_READS = 24   # of one half-cycle
    ACQUISITION_RATES = 105  # hypotheses
    ACQUISITION_PHASES = 16
    ACQUISITION_LEAST = 6    # edges before an answer
    ACQUISITION_WIDEN = 96   # edges that found nothing near the old rate: look everywhere

cdef extern from *:
    """
    #define STIRBAR_ACQUISITION_WIDE 0.0022    /* of the rate, from one hypothesis to the next: +-11.4 % */
    #define STIRBAR_ACQUISITION_NARROW 0.0002  /* +-1 % */
    #define STIRBAR_ACQUISITION_FADE 0.96875   /* of the sums, per edge: they remember 32 */
    #define STIRBAR_ACQUISITION_ENOUGH 4.5     /* length of the sum, in sure edges */
    #define STIRBAR_ACQUISITION_AGREED 0.75    /* the same, of all edges */
    #define STIRBAR_ACQUISITION_CHANCE 14.0    /* or squared, in sums of squares: 1 in 10^4 by chance among all rates */
    #define STIRBAR_ACQUISITION_RIVAL 0.8      /* the longest sum at another rate, at most */
    #define STIRBAR_ACQUISITION_BLUR 0.05      /* of a conversion: what a phase's model is wrong by */
    #define STIRBAR_ACQUISITION_FAINT 16.0     /* squared swing of the light over a conversion's variance, at least */
    """
    const double WIDE "STIRBAR_ACQUISITION_WIDE"
    const double NARROW "STIRBAR_ACQUISITION_NARROW"
    const double FADE "STIRBAR_ACQUISITION_FADE"
    const double ENOUGH "STIRBAR_ACQUISITION_ENOUGH"
    const double AGREED "STIRBAR_ACQUISITION_AGREED"
    const double CHANCE "STIRBAR_ACQUISITION_CHANCE"
    const double RIVAL "STIRBAR_ACQUISITION_RIVAL"
    const double BLUR "STIRBAR_ACQUISITION_BLUR"
    const double FAINT "STIRBAR_ACQUISITION_FAINT"

cdef struct Acquisition:
    double centre_ns         # of the hypotheses
    double nominal_ns
    double spacing           # of them, relative
    double tolerance         # largest error of nominal_ns, relative
    double re[ACQUISITION_RATES]
    double im[ACQUISITION_RATES]
    double squares           # faded total of the edges' squared moments
    double edges             # faded count
    double turns             # faded total of the edges' times, nominal periods
    double level             # before the newest edge, codes
    double swing
    double noise_square
    int64_t begin_ns         # times count from here
    int64_t half_ns          # the newest edge
    int64_t read_ns[ACQUISITION_READS]
    int32_t code[ACQUISITION_READS]
    int32_t reads
    int32_t leveled          # level is valid
    int32_t vague            # half_ns is not to be trusted
    int32_t used             # edges
    # the answer
    int64_t end_at_ns        # end of a conversion
    double period_ns
    double period_sd_ns


cdef inline void acquisition_begin(
    Acquisition* a, double centre_ns, double nominal_ns, bint known, int64_t now_ns
) noexcept nogil:
    """Look for a period near `centre_ns`: `known` within 1 %, else within 11 %; in vain, then near `nominal_ns`."""
    memset(a, 0, sizeof(Acquisition))
    a.centre_ns = centre_ns
    a.nominal_ns = nominal_ns
    a.spacing = NARROW if known else WIDE
    a.tolerance = 0.5 * (ACQUISITION_RATES - 1) * a.spacing
    a.begin_ns = a.half_ns = now_ns
    a.noise_square = 1.0
    a.vague = 1


cdef inline void acquisition_read(Acquisition* a, int64_t latch_ns, int32_t code, int clipped) noexcept nogil:
    if clipped or a.reads >= ACQUISITION_READS:
        return
    a.read_ns[a.reads] = latch_ns
    a.code[a.reads] = code
    a.reads += 1


cdef inline int acquisition_level(Acquisition* a, double* level) noexcept nogil:
    """Mean code of the half-cycle once its straddling conversion has been overwritten, for certain: 1, or 0."""
    cdef int64_t settled_ns = a.half_ns + <int64_t>((2.0 + 2.2 * a.tolerance) * a.centre_ns)
    cdef double total = 0.0
    cdef double square = 0.0
    cdef int count = 0
    cdef int i
    for i in range(a.reads):
        if a.read_ns[i] > settled_ns:
            total += a.code[i]
            count += 1
    if count < 2:
        return 0
    level[0] = total / count
    for i in range(a.reads):
        if a.read_ns[i] > settled_ns:
            square += (a.code[i] - level[0]) * (a.code[i] - level[0])
    a.noise_square += (square / (count - 1) - a.noise_square) * 0.25
    return 1


cdef inline double acquisition_misfit(
    const Acquisition* a, double phase, double before, double step, int32_t reads
) noexcept nogil:
    """Sum of squares of what is left of the reads when the straddling conversion ended `phase` periods after the edge.

    A read so near a change of the register that the period's error decides takes the better of both sides.
    """
    cdef double total = 0.0
    cdef double gone, first, second, seen, low, high
    cdef int i
    for i in range(reads):
        gone = <double>(a.read_ns[i] - a.half_ns) / a.centre_ns
        seen = (a.code[i] - before) / step
        first = seen * seen
        second = (seen - phase) * (seen - phase)
        low = 0.03 + a.tolerance * phase
        high = 0.03 + a.tolerance * (1.0 + phase)
        if gone < phase - low:
            total += first
        elif gone < phase + low:
            total += first if first < second else second
        elif gone < phase + 1.0 - high:
            total += second
        else:
            first = (seen - 1.0) * (seen - 1.0)
            total += first if gone > phase + 1.0 + high or first < second else second
    return total


cdef inline int32_t acquisition_transient(const Acquisition* a) noexcept nogil:
    """How many reads of the half-cycle the straddling conversion can be seen in."""
    cdef int64_t until_ns = a.half_ns + <int64_t>((2.0 + 2.2 * a.tolerance) * a.centre_ns)
    cdef int32_t reads = 0
    while reads < a.reads and a.read_ns[reads] <= until_ns:
        reads += 1
    return reads


cdef inline void acquisition_moment(
    const Acquisition* a, double before, double step, double* re, double* im
) noexcept nogil:
    """First circular moment of the phase's likelihood."""
    cdef double misfit[ACQUISITION_PHASES]
    cdef double least = 1e300
    cdef double total = 0.0
    cdef double c = cos(M_PI / ACQUISITION_PHASES)
    cdef double s = sin(M_PI / ACQUISITION_PHASES)
    cdef double turn_re = cos(2.0 * M_PI / ACQUISITION_PHASES)
    cdef double turn_im = sin(2.0 * M_PI / ACQUISITION_PHASES)
    cdef double scale, weight
    cdef int32_t reads = acquisition_transient(a)
    cdef int i
    for i in range(ACQUISITION_PHASES):
        misfit[i] = acquisition_misfit(a, (i + 0.5) / ACQUISITION_PHASES, before, step, reads)
        least = misfit[i] if misfit[i] < least else least
    scale = 0.5 / ((a.noise_square + 0.0833333) * 1.5 / (step * step) + BLUR * BLUR)
    re[0] = im[0] = 0.0
    for i in range(ACQUISITION_PHASES):
        weight = exp((least - misfit[i]) * scale)
        total += weight
        re[0] += weight * c
        im[0] += weight * s
        weight = c * turn_re - s * turn_im
        s = c * turn_im + s * turn_re
        c = weight
    re[0] /= total
    im[0] /= total


cdef inline void acquisition_add(Acquisition* a, double re, double im) noexcept nogil:
    """Turn the moment by t / period for each hypothesis, and add it to its sum."""
    cdef double turns = <double>(a.half_ns - a.begin_ns) / a.centre_ns
    cdef double angle = 2.0 * M_PI * turns * (1.0 - a.tolerance)
    cdef double c = cos(angle)
    cdef double s = sin(angle)
    cdef double turn_re = cos(2.0 * M_PI * turns * a.spacing)
    cdef double turn_im = sin(2.0 * M_PI * turns * a.spacing)
    cdef double x = re * c - im * s
    cdef double y = re * s + im * c
    cdef double z
    cdef int i
    for i in range(ACQUISITION_RATES):
        a.re[i] = a.re[i] * FADE + x
        a.im[i] = a.im[i] * FADE + y
        z = x * turn_re - y * turn_im
        y = x * turn_im + y * turn_re
        x = z
    a.squares = a.squares * FADE * FADE + re * re + im * im
    a.edges = a.edges * FADE + 1.0
    a.turns = a.turns * FADE + turns
    a.used += 1


cdef inline void acquisition_edge(Acquisition* a, int64_t at_ns, bint vague) noexcept nogil:
    """The light changed: make what can be made of the half-cycle that ends."""
    cdef double level = 0.0
    cdef double step, re, im
    cdef bint leveled = acquisition_level(a, &level)
    if leveled and a.leveled:
        step = level - a.level
        if step * step > FAINT * (a.noise_square + 0.0833333):
            a.swing += (fabs(step) - a.swing) * (0.25 if a.swing > 0.0 else 1.0)
            if not a.vague:
                acquisition_moment(a, a.level, step, &re, &im)
                acquisition_add(a, re, im)
    a.leveled = leveled
    a.level = level
    a.half_ns = at_ns
    a.vague = vague
    a.reads = 0


cdef inline double acquisition_length(const Acquisition* a, int i) noexcept nogil:
    """Squared length of a hypothesis's sum."""
    return a.re[i] * a.re[i] + a.im[i] * a.im[i]


cdef inline bint acquisition_is_rivalled(const Acquisition* a, int best, double longest, double span) noexcept nogil:
    """Whether another rate, more than a lobe of the periodogram away, explains the edges nearly as well."""
    cdef double lobe = 1.0 / (span * a.spacing)
    cdef int i
    for i in range(ACQUISITION_RATES):
        if fabs(<double>(i - best)) > lobe and acquisition_length(a, i) > RIVAL * RIVAL * longest:
            return True
    return False


cdef inline int acquisition_best(const Acquisition* a) noexcept nogil:
    """The hypothesis with the longest sum; -1 when that is no answer."""
    cdef double longest = 0.0
    cdef double span
    cdef int best = -1
    cdef int i
    if a.used < ACQUISITION_LEAST:
        return -1
    for i in range(ACQUISITION_RATES):
        if acquisition_length(a, i) > longest:
            longest = acquisition_length(a, i)
            best = i
    if longest < ENOUGH * ENOUGH or best == 0 or best == ACQUISITION_RATES - 1:
        return -1
    if longest < AGREED * AGREED * a.edges * a.edges and longest < CHANCE * a.squares:
        return -1
    span = 2.0 * (<double>(a.half_ns - a.begin_ns) / a.centre_ns - a.turns / a.edges)
    return -1 if acquisition_is_rivalled(a, best, longest, span) else best


cdef inline int acquisition_solve(Acquisition* a) noexcept nogil:
    """1 when rate and phase are found (end_at_ns, period_ns), else 0."""
    cdef int best
    cdef double left, right, longest, offset, phase, age
    if a.used >= ACQUISITION_WIDEN and a.spacing < WIDE:
        acquisition_begin(a, a.nominal_ns, a.nominal_ns, False, a.half_ns)
    best = acquisition_best(a)
    if best < 0:
        return 0
    longest = acquisition_length(a, best)
    left = acquisition_length(a, best - 1)
    right = acquisition_length(a, best + 1)
    offset = 0.5 * (right - left) / (2.0 * longest - left - right)
    a.period_ns = a.centre_ns / (1.0 + (best + offset) * a.spacing - a.tolerance)
    age = <double>(a.half_ns - a.begin_ns) / a.centre_ns - a.turns / a.edges
    a.period_sd_ns = a.period_ns * 0.1 / age
    # the sum's angle is the phase at the hypothesis: the rates meet at the mean of the edges' times
    phase = atan2(a.im[best], a.re[best]) / (2.0 * M_PI) + a.turns / a.edges * offset * a.spacing
    phase += floor(<double>(a.half_ns - a.begin_ns) / a.period_ns - phase) + 1.0
    a.end_at_ns = a.begin_ns + <int64_t>(phase * a.period_ns)
    return 1
