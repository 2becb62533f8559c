# Why compiled: the converter's range follows the light within a conversion or two, before anything can be harmed.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: volts at the converter; codes of 16 bits; conversions; nanoseconds of the loop's clock.
#
# Decisions only: the caller writes the range, switches the light and says when it did. Down at once, when a conversion
# clips; up after a dwell. Two clipped conversions in a row mean that nobody knows the voltage: lowest gain, light off,
# then measure. Ranges differ by up to 0.15 % in gain: neighbours are compared on the same light, on minus off, before
# one takes over from the other, and what was found stays in volts_per_code. docs/converter-clock.md has the figures.

from libc.math cimport exp, fabs, log
from libc.stdint cimport int32_t, int64_t, uint32_t

from stirbar.rt.types cimport PHASE_EDGE, PHASE_OFF, PHASE_ON

cdef extern from *:
    """
    #ifndef STIRBAR_GAIN_TABLE
    #define STIRBAR_GAIN_TABLE
    /* Full scale of the ADS111x's ranges, lowest gain first. */
    static const double stirbar_gain_full_scale_v[6] = {6.144, 4.096, 2.048, 1.024, 0.512, 0.256};
    static const int stirbar_gain_multiple[6] = {24, 16, 8, 4, 2, 1};
    #endif
    #define STIRBAR_GAIN_HIGH 0.85            /* of full scale: the signal stays below */
    #define STIRBAR_GAIN_UP 0.7               /* of the next full scale, for a dwell: then up */
    #define STIRBAR_GAIN_DWELL_S 2.0
    #define STIRBAR_GAIN_AGAIN_S 10.0         /* so often a fixed range that clips is looked at from the lowest gain */
    #define STIRBAR_GAIN_OVER_V 3.2           /* at the converter: the light stays off */
    #define STIRBAR_GAIN_WARN_V 3.0
    #define STIRBAR_GAIN_CALM_V 2.9           /* below, the warning may come again */
    #define STIRBAR_GAIN_SPREAD 0.001         /* of the ratio of two ranges, before it was measured */
    #define STIRBAR_GAIN_RATIO_MOST 0.02      /* of a pair of chop periods */
    #define STIRBAR_GAIN_KNOWN 1e-4           /* standard error at which a ratio is known */
    #define STIRBAR_GAIN_GUARD_NS 30000       /* uncertainty of a conversion's limits */
    """
    const double GAIN_FULL_SCALE_V "stirbar_gain_full_scale_v" [6]
    const int GAIN_MULTIPLE "stirbar_gain_multiple" [6]
    const double GAIN_HIGH "STIRBAR_GAIN_HIGH"
    const double GAIN_UP "STIRBAR_GAIN_UP"
    const double GAIN_DWELL_S "STIRBAR_GAIN_DWELL_S"
    const double GAIN_AGAIN_S "STIRBAR_GAIN_AGAIN_S"
    const double GAIN_OVER_V "STIRBAR_GAIN_OVER_V"
    const double GAIN_WARN_V "STIRBAR_GAIN_WARN_V"
    const double GAIN_CALM_V "STIRBAR_GAIN_CALM_V"
    const double GAIN_SPREAD "STIRBAR_GAIN_SPREAD"
    const double GAIN_RATIO_MOST "STIRBAR_GAIN_RATIO_MOST"
    const double GAIN_KNOWN "STIRBAR_GAIN_KNOWN"
    const int64_t GAIN_GUARD_NS "STIRBAR_GAIN_GUARD_NS"

cdef enum:
    GAIN_RANGES = 6
    GAIN_AUTO = -1           # gain_init: the range follows the light
    GAIN_SURE = 2            # conversions that say the same, before it is believed
    GAIN_PAIRS = 6           # chop periods at either range that make a ratio
    GAIN_PAIRS_LEAST = 4     # of these, with light that kept still
    GAIN_LOOKS = 48          # at a register, while nobody knows which conversion it holds: some half-cycles
    GAIN_REST = 6            # chop periods in force before a neighbour is compared

cdef enum:                   # Gain.state
    GAIN_PROBING = 0         # lowest gain, light on: how strong is it?
    GAIN_STEADY = 1
    GAIN_COMPARING = 2       # with a neighbour, by turns
    GAIN_DARK = 3            # lowest gain, light off: what comes from elsewhere?
    GAIN_SHUT = 4            # over-voltage: the light stays off

cdef enum:                   # what the caller must do in this tick, or tell; bits
    GAIN_WRITE = 1           # adc_gain with gain_full_scale_v, then gain_written
    GAIN_LIGHT_OFF = 2       # and no chopping while gain_holds_light
    GAIN_MOVED = 4           # another range for good
    GAIN_OVER_VOLTAGE = 8    # gain_level_v says how much
    GAIN_WARNING = 16

cdef enum:                   # gain_admit: the conversion was made
    GAIN_IN_FORCE = 0        # at the range in force
    GAIN_FRESH = 1           # at another from here on: trace gain_volts_per_code before it
    GAIN_FOREIGN = 2         # during a change, or at a range that is only compared: not for the estimators

# Light of one chop period at one range: off minus on is wanted, without the converter's offset.
cdef struct GainSums:
    double on
    double off
    int32_t on_count
    int32_t off_count

cdef struct Gain:
    double correction[GAIN_RANGES]   # volts = code * nominal volts per code * correction
    double ratio[GAIN_RANGES]        # log of a signal seen at this range over that at the next lower gain, less nominal
    double ratio_weight[GAIN_RANGES]  # 1 / variance of it; the prior's counts
    GainSums sums                    # of the chop period under way
    double before                    # on minus off at home, the last chop period there
    double pair_guest                # the same of the guest, in between
    double pair_total                # of the ratios' logs of this comparison
    double pair_square
    double peak_v                    # of this dwell
    double level_v                   # last conversion that was believed
    int64_t from_ns                  # the last write of a range happened between these
    int64_t to_ns
    int32_t pairs_done
    int32_t pairs_left
    int32_t state
    int32_t fixed                    # GAIN_AUTO, or the range
    int32_t home                     # range that the estimators know
    int32_t guest                    # that is compared with it
    int32_t target                   # home after the comparison
    int32_t wanted                   # range last written
    int32_t in_force                 # range of the conversions that come
    int32_t pending                  # a write is not in force yet
    int32_t clipped                  # conversions in a row
    int32_t over
    int32_t high                     # conversions in a row above GAIN_HIGH
    int32_t settled                  # conversions that count, in states that wait for GAIN_SURE
    int32_t warned
    int32_t rested                   # chop periods since home was taken
    uint32_t dwell                   # conversions
    uint32_t dwell_count             # that are a dwell
    uint32_t again                   # conversions until a fixed range that clips is looked at again
    uint32_t again_count
    uint32_t moves                   # only ever grows


cdef inline int gain_range(double full_scale_v) noexcept nogil:
    """The range with that full scale, or -1."""
    cdef int i
    for i in range(GAIN_RANGES):
        if fabs(GAIN_FULL_SCALE_V[i] - full_scale_v) < 1e-6:
            return i
    return -1


cdef inline void gain_init(Gain* g, int fixed, double rate_hz) noexcept nogil:
    """Begin with a range, or GAIN_AUTO: then at the lowest gain, which the caller starts the converter with."""
    cdef int i
    for i in range(GAIN_RANGES):
        g.correction[i] = 1.0
        g.ratio[i] = 0.0
        g.ratio_weight[i] = 1.0 / (GAIN_SPREAD * GAIN_SPREAD)
    g.sums.on = g.sums.off = 0.0
    g.sums.on_count = g.sums.off_count = 0
    g.before = g.pair_guest = g.pair_total = g.pair_square = g.peak_v = g.level_v = 0.0
    g.from_ns = g.to_ns = 0
    g.pairs_done = g.pairs_left = 0
    g.fixed = fixed
    g.state = GAIN_PROBING if fixed == GAIN_AUTO else GAIN_STEADY
    g.home = g.guest = g.target = g.wanted = g.in_force = 0 if fixed == GAIN_AUTO else fixed
    g.pending = g.clipped = g.over = g.high = g.settled = g.warned = g.rested = 0
    g.dwell = g.again = g.moves = 0
    g.dwell_count = <uint32_t>(GAIN_DWELL_S * rate_hz)
    g.again_count = <uint32_t>(GAIN_AGAIN_S * rate_hz)


cdef inline void gain_resume(Gain* g) noexcept nogil:
    """The converter is started anew: at the lowest gain, or the fixed one. Ratios stay, and so does over-voltage."""
    g.home = g.guest = g.target = g.wanted = g.in_force = 0 if g.fixed == GAIN_AUTO else g.fixed
    g.pending = g.clipped = g.over = g.high = g.settled = g.rested = 0
    g.sums.on = g.sums.off = g.peak_v = g.before = 0.0
    g.sums.on_count = g.sums.off_count = 0
    g.dwell = g.again = 0
    if g.state != GAIN_SHUT:
        g.state = GAIN_PROBING if g.fixed == GAIN_AUTO else GAIN_STEADY


# --- what holds ---

cdef inline double gain_full_scale_v(const Gain* g) noexcept nogil:
    """Of the range that the converter is to have."""
    return GAIN_FULL_SCALE_V[g.wanted]


cdef inline double gain_nominal(const Gain* g, int number) noexcept nogil:
    return GAIN_FULL_SCALE_V[number] / 32768.0


cdef inline double gain_volts_per_code(const Gain* g) noexcept nogil:
    """Of the conversions that gain_admit lets pass: the same light gives the same volts at every range."""
    return gain_nominal(g, g.home) * g.correction[g.home]


cdef inline int32_t gain_multiple(const Gain* g) noexcept nogil:
    """Codes times this are comparable over all ranges, to 0.15 %."""
    return GAIN_MULTIPLE[g.in_force]


cdef inline bint gain_holds_light(const Gain* g) noexcept nogil:
    """Whether the light must stay off."""
    return g.state == GAIN_DARK or g.state == GAIN_SHUT


cdef inline void gain_written(Gain* g, int64_t from_ns, int64_t to_ns) noexcept nogil:
    """The range was written between these moments; it counts from the conversion after the one under way."""
    if not g.pending:
        g.from_ns = from_ns
    g.to_ns = to_ns
    g.pending = 1


cdef inline int gain_admit(Gain* g, int64_t begin_ns, int64_t end_ns) noexcept nogil:
    """At which range the conversion was made: GAIN_IN_FORCE, GAIN_FRESH or GAIN_FOREIGN. In their order, once each."""
    if g.pending:
        if end_ns <= g.from_ns:
            return GAIN_FOREIGN if g.in_force != g.home else GAIN_IN_FORCE
        if begin_ns < g.to_ns + GAIN_GUARD_NS:
            return GAIN_FOREIGN
        g.pending = 0
        g.in_force = g.wanted
        g.clipped = 0
        if g.state != GAIN_COMPARING and g.in_force != g.home:
            g.home = g.in_force
            g.moves += 1
            return GAIN_FRESH
    return GAIN_FOREIGN if g.in_force != g.home else GAIN_IN_FORCE


# --- the ratio of two ranges ---

cdef inline void gain_learn(Gain* g) noexcept nogil:
    """Take a comparison's mean into the ratio of the two ranges; home's correction stays, all others follow."""
    cdef int higher = g.home if g.home > g.guest else g.guest
    cdef double mean = g.pair_total / g.pairs_done
    cdef double variance = (g.pair_square - g.pairs_done * mean * mean) / (g.pairs_done - 1)
    cdef double weight
    # more than n: few pairs, which share the chop periods between them
    variance = 1e-10 + 3.0 * variance / g.pairs_done
    if g.guest != higher:
        mean = -mean
    weight = 1.0 / variance
    g.ratio[higher] += (mean - g.ratio[higher]) * weight / (weight + g.ratio_weight[higher])
    g.ratio_weight[higher] += weight
    for higher in range(g.home + 1, GAIN_RANGES):
        g.correction[higher] = g.correction[higher - 1] * exp(-g.ratio[higher])
    for higher in range(g.home, 0, -1):
        g.correction[higher - 1] = g.correction[higher] * exp(g.ratio[higher])


cdef inline bint gain_knows(const Gain* g, int neighbour) noexcept nogil:
    """Whether the ratio of home and a neighbour is known."""
    cdef int higher = g.home if g.home > neighbour else neighbour
    return g.ratio_weight[higher] * GAIN_KNOWN * GAIN_KNOWN > 1.0


cdef inline bint gain_sum_up(Gain* g, double* light) noexcept nogil:
    """On minus off, nominal volts, of the chop period that ends; False when either is missing."""
    cdef bint whole = g.sums.on_count >= 2 and g.sums.off_count >= 2
    if whole:
        light[0] = gain_nominal(g, g.in_force) * (g.sums.on / g.sums.on_count - g.sums.off / g.sums.off_count)
        whole = light[0] > 0.0
    g.sums.on = g.sums.off = 0.0
    g.sums.on_count = g.sums.off_count = 0
    return whole


cdef inline int gain_go(Gain* g, int number) noexcept nogil:
    g.wanted = number
    return GAIN_WRITE


cdef inline int gain_settle(Gain* g, int number) noexcept nogil:
    """Take a range for good."""
    cdef int told = GAIN_MOVED if number != g.home else 0
    g.state = GAIN_STEADY
    g.high = 0
    if told:
        g.rested = 0
        g.dwell = 0
        g.peak_v = 0.0
    if g.wanted == number:
        return told
    return gain_go(g, number) | told


cdef inline int gain_compare(Gain* g, int guest, int target) noexcept nogil:
    """Begin to take turns with a neighbour; home is `target` afterwards. At once, where their ratio is known."""
    if gain_knows(g, guest):
        return gain_settle(g, target)
    g.state = GAIN_COMPARING
    g.guest = guest
    g.target = target
    g.pairs_done = 0
    g.pairs_left = GAIN_PAIRS
    g.pair_total = g.pair_square = 0.0
    g.pair_guest = 0.0
    return gain_go(g, guest)


cdef inline int gain_turn(Gain* g, bint whole, double light) noexcept nogil:
    """A chop period of the comparison is over."""
    cdef double ratio
    if g.in_force == g.guest:
        g.pair_guest = light if whole else 0.0
        return gain_go(g, g.home)
    if whole and g.before > 0.0 and g.pair_guest > 0.0:
        ratio = log(g.pair_guest / (0.5 * (g.before + light)))
        if fabs(ratio) < GAIN_RATIO_MOST:  # more is the light that has changed
            g.pair_total += ratio
            g.pair_square += ratio * ratio
            g.pairs_done += 1
    g.before = light if whole else 0.0
    g.pairs_left -= 1
    if g.pairs_left > 0:
        return gain_go(g, g.guest)
    if g.pairs_done >= GAIN_PAIRS_LEAST:
        gain_learn(g)
    return gain_settle(g, g.target)


cdef inline int gain_chop(Gain* g) noexcept nogil:
    """The light is about to go on: a chop period is over. Returns what to do in this tick (GAIN_WRITE...)."""
    cdef double light = 0.0
    cdef bint whole = gain_sum_up(g, &light)
    cdef int up = g.home + 1
    cdef int down = g.home - 1
    if g.pending or g.fixed != GAIN_AUTO:
        return 0
    if g.state == GAIN_COMPARING:
        return gain_turn(g, whole, light)
    g.before = light if whole else 0.0
    if g.state != GAIN_STEADY or not whole:
        return 0
    g.rested += 1
    if g.high >= GAIN_SURE and down >= 0:
        return gain_compare(g, down, down)
    if g.dwell >= g.dwell_count:
        g.dwell = 0
        light = g.peak_v
        g.peak_v = 0.0
        if up < GAIN_RANGES and light < GAIN_UP * GAIN_FULL_SCALE_V[up]:
            return gain_compare(g, up, up)
    if g.rested == GAIN_REST and up < GAIN_RANGES and not gain_knows(g, up) and (
            g.peak_v < GAIN_HIGH * GAIN_FULL_SCALE_V[up]):
        return gain_compare(g, up, g.home)
    if g.rested == 2 * GAIN_REST and down >= 0 and not gain_knows(g, down):
        return gain_compare(g, down, g.home)
    return 0


# --- conversions ---

cdef inline int gain_alarm(Gain* g) noexcept nogil:
    """Two clipped in a row: nobody knows the voltage. Or one at the lowest gain that should not be possible."""
    g.clipped = 0
    g.settled = 0
    if g.in_force == 0:
        g.state = GAIN_SHUT
        g.level_v = GAIN_FULL_SCALE_V[0]
        return GAIN_LIGHT_OFF | GAIN_OVER_VOLTAGE
    if g.fixed != GAIN_AUTO:
        if g.again:
            return 0
        g.again = g.again_count
    g.state = GAIN_DARK
    return gain_go(g, 0) | GAIN_LIGHT_OFF | GAIN_MOVED


cdef inline int gain_clip(Gain* g) noexcept nogil:
    """A conversion is at the converter's limit."""
    g.clipped += 1
    g.over = 0
    if g.state == GAIN_DARK and g.in_force != 0:
        return 0    # of before the alarm
    if g.clipped >= GAIN_SURE:
        return gain_alarm(g)
    if g.fixed != GAIN_AUTO or g.wanted == 0 or g.pending:
        return 0
    return gain_settle(g, g.wanted - 1)


cdef inline int gain_choose(const Gain* g) noexcept nogil:
    """The largest gain at which what was just measured stays below GAIN_HIGH."""
    cdef int best = 0
    if g.fixed != GAIN_AUTO:
        return g.fixed
    while best + 1 < GAIN_RANGES and g.peak_v < GAIN_HIGH * GAIN_FULL_SCALE_V[best + 1]:
        best += 1
    return best


cdef inline int gain_wait(Gain* g, int phase) noexcept nogil:
    """States that want GAIN_SURE conversions at the lowest gain, under one light."""
    if g.in_force != 0 or g.pending:
        return 0
    if g.state == GAIN_DARK:
        g.settled += phase == PHASE_OFF
        if g.settled >= GAIN_SURE:
            g.state = GAIN_PROBING
            g.settled = 0
            g.peak_v = 0.0
        return 0
    if g.level_v > g.peak_v:
        g.peak_v = g.level_v
    g.settled += phase == PHASE_ON
    if g.settled < GAIN_SURE:
        return 0
    return gain_settle(g, gain_choose(g))


cdef inline int gain_conversion(Gain* g, int32_t code, int clipped, int phase) noexcept nogil:
    """One conversion, after gain_admit, at the range in force. Returns what to do in this tick (GAIN_WRITE...)."""
    cdef double volts = code * gain_nominal(g, g.in_force) * g.correction[g.in_force]
    cdef int told = 0
    if g.again:
        g.again -= 1
    if g.state == GAIN_SHUT:
        return 0
    if clipped and code > 0:
        return gain_clip(g)
    g.clipped = 0
    g.over = g.over + 1 if volts > GAIN_OVER_V else 0
    if g.over >= GAIN_SURE:
        g.state = GAIN_SHUT
        g.level_v = volts
        return GAIN_LIGHT_OFF | GAIN_OVER_VOLTAGE
    if phase == PHASE_EDGE or g.pending:
        return 0
    g.level_v = volts
    if volts > GAIN_WARN_V and not g.warned:
        g.warned = 1
        told = GAIN_WARNING
    elif volts < GAIN_CALM_V and phase == PHASE_ON:
        g.warned = 0
    if g.state == GAIN_DARK or g.state == GAIN_PROBING:
        return gain_wait(g, phase) | told
    if g.fixed != GAIN_AUTO:
        return told
    if phase == PHASE_ON:
        g.sums.on += code
        g.sums.on_count += 1
    else:
        g.sums.off += code
        g.sums.off_count += 1
    if g.state == GAIN_STEADY:
        g.dwell += 1
        if volts > g.peak_v:
            g.peak_v = volts
        g.high = g.high + 1 if volts > GAIN_HIGH * GAIN_FULL_SCALE_V[g.in_force] else 0 if phase == PHASE_ON else g.high
    return told


cdef inline bint gain_looked(Gain* g, int64_t latch_ns, double period_ns) noexcept nogil:
    """A register is read whose conversions have no numbers yet: whether a range that was written is in force by now."""
    if not g.pending or latch_ns < g.to_ns + <int64_t>(2.5 * period_ns):
        return False
    g.pending = 0
    g.in_force = g.home = g.wanted
    g.clipped = 0
    g.settled = 0
    g.moves += 1
    return True


cdef inline int gain_look(Gain* g, int32_t code, int clipped) noexcept nogil:
    """The same, its code: the range is chosen from many looks, for the light changes meanwhile. Returns what to do."""
    if g.pending or g.state == GAIN_SHUT:
        return 0
    if clipped and code > 0:
        g.clipped += 1
        # looks repeat a conversion: as many as two conversions can have
        return gain_alarm(g) if g.clipped > 8 * GAIN_SURE else 0
    g.clipped = 0
    g.level_v = code * gain_nominal(g, g.in_force) * g.correction[g.in_force]
    if g.level_v > GAIN_OVER_V:
        g.over += 1
        if g.over > 8 * GAIN_SURE:
            g.state = GAIN_SHUT
            return GAIN_LIGHT_OFF | GAIN_OVER_VOLTAGE
    if g.state != GAIN_PROBING and g.state != GAIN_DARK:
        return 0
    if g.level_v > g.peak_v:
        g.peak_v = g.level_v
    g.settled += 1
    if g.settled < GAIN_LOOKS:
        return 0
    g.settled = 0
    if g.state == GAIN_DARK:
        g.state = GAIN_PROBING
        g.peak_v = 0.0
        return 0
    return gain_settle(g, gain_choose(g))
