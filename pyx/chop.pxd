# Why compiled: the sampling thread says of each conversion whether the LED was on, off, or changing within it.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: nanoseconds of the loop's clock, hertz, rpm; k counts conversions in half a cycle of the LED.

from libc.math cimport INFINITY, M_PI, cos, fabs, log10, sin, sqrt
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint8_t
from libc.string cimport memset

from stirbar.rt.types cimport PHASE_EDGE, PHASE_OFF, PHASE_ON

cdef enum:
    LED_EDGES = 16           # changes that are remembered; a conversion spans at most two
    HALF_CYCLE_LOW = 4       # range of k when the config names none
    HALF_CYCLE_HIGH = 9
    HALF_CYCLES = 16         # whose costs are found at once
    CHOP_TRIALS = 24         # of k, where the range is wide
    CHOP_KEPT = 60           # conversions of a half-cycle at the most (OD_BUFFER holds 64)

cdef extern from *:
    """
    #define STIRBAR_CHOP_DRIFT_S 0.0186     /* half-cycle in which ambient light costs as much as noise */
    #define STIRBAR_CHOP_LONGEST_S 2.0      /* half-cycle; one level for 2.5 s counts as not chopped */
    """
    const double CHOP_DRIFT_S "STIRBAR_CHOP_DRIFT_S"
    const double CHOP_LONGEST_S "STIRBAR_CHOP_LONGEST_S"

cdef struct LedEdge:
    int64_t from_ns          # the light changed between these two instants
    int64_t to_ns
    uint8_t on               # afterwards

# The newest changes of the LED, oldest overwritten.
cdef struct LedTrack:
    LedEdge edge[LED_EDGES]
    int32_t count
    int32_t cursor           # where the next one goes
    uint8_t on               # now
    int64_t guard_ns         # uncertainty of the converter's clock, on either side
    int64_t settle_ns        # after a change, until the light is within 0.1 %
    int64_t settled_ns       # since then the light has been as it is now


cdef inline void led_track_init(LedTrack* track, int64_t guard_ns, int64_t settle_ns) noexcept nogil:
    track.count = 0
    track.cursor = 0
    track.on = 0
    track.guard_ns = guard_ns
    track.settle_ns = settle_ns
    track.settled_ns = INT64_MIN


cdef inline void led_track_edge(LedTrack* track, int64_t from_ns, int64_t to_ns, bint on) noexcept nogil:
    """The light went on or off at some time between `from_ns` and `to_ns` (before and after the write)."""
    if on == track.on:
        return
    track.edge[track.cursor].from_ns = from_ns
    track.edge[track.cursor].to_ns = to_ns
    track.edge[track.cursor].on = on
    track.cursor = (track.cursor + 1) % LED_EDGES
    if track.count < LED_EDGES:
        track.count += 1
    track.on = on
    track.settled_ns = to_ns + track.guard_ns + track.settle_ns


cdef inline int led_track_phase(const LedTrack* track, int64_t start_ns, int64_t end_ns) noexcept nogil:
    """PHASE_ON or PHASE_OFF when [start, end] lies wholly within one level of settled light, else PHASE_EDGE.

    A conversion from before the oldest remembered change is PHASE_EDGE: nobody knows any more.
    """
    cdef int _i
    cdef int slot = track.cursor
    cdef const LedEdge* edge
    cdef uint8_t level = track.on
    if start_ns >= track.settled_ns:
        return PHASE_ON if level else PHASE_OFF
    for _i in range(track.count):
        slot = slot - 1 if slot > 0 else LED_EDGES - 1
        edge = &track.edge[slot]
        if start_ns >= edge.to_ns + track.guard_ns + track.settle_ns:
            return PHASE_ON if level else PHASE_OFF
        if end_ns > edge.from_ns - track.guard_ns:
            return PHASE_EDGE
        level = not edge.on
    if track.count == LED_EDGES:
        return PHASE_EDGE
    return PHASE_ON if level else PHASE_OFF


# What a half-cycle is chosen for.
cdef struct ChopPlan:
    double rate_hz           # conversions a second
    double aperture          # share of the time in which the converter integrates: 1 without gaps
    double mains_hz          # 0: unknown
    double rpm               # of the stirrer; 0: none
    double pwm_hz            # of a PWM that is not locked to the light; 0: none
    int discard              # conversions of each half-cycle that are not used
    int low                  # the range of k
    int high


cdef inline void chop_plan_init(ChopPlan* plan, double rate_hz, double mains_hz, double rpm) noexcept nogil:
    """A gapless converter whose light settles within the conversion that holds the edge."""
    plan.rate_hz = rate_hz
    plan.aperture = 1.0
    plan.mains_hz = mains_hz
    plan.rpm = rpm
    plan.pwm_hz = 0.0
    plan.discard = 1
    plan.low = HALF_CYCLE_LOW
    plan.high = HALF_CYCLE_HIGH


cdef inline double chop_average(double w, int count, double aperture) noexcept nogil:
    """What is left of a sinusoid in the mean of `count` conversions, turning by 2w from one to the next."""
    cdef double s = sin(w)
    cdef double gap = w * aperture
    if fabs(s) < 1e-9:
        return sin(gap) / gap if gap > 1e-9 else 1.0
    return sin(count * w) / (count * s) * (sin(gap) / gap if gap > 1e-9 else 1.0)


cdef inline double chop_response(
    double frequency_hz, double rate_hz, int k, int discard, double aperture
) noexcept nogil:
    """|response| of one on half-cycle minus the mean of its off neighbours to a sinusoid, k - discard kept."""
    cdef double w = M_PI * frequency_hz / rate_hz
    cdef double s = sin(k * w)
    return fabs(chop_average(w, k - discard, aperture) * 2.0 * s * s)


cdef inline double chop_gain(double frequency_hz, double rate_hz, int k) noexcept nogil:
    """The same of a gapless converter, k - 1 conversions kept."""
    return chop_response(frequency_hz, rate_hz, k, 1, 1.0)


cdef inline double chop_rejection_db(
    double frequency_hz, double rate_hz, int k, int discard, double aperture, double window_s
) noexcept nogil:
    """What is left of ambient light that varies at a frequency, in the mean over a window, as 20 log10 of its share.

    The gain of one difference times the window's (1 up to the corner 1/(pi T), the envelope of its lobes above).
    """
    cdef double turned = M_PI * frequency_hz * window_s
    cdef double gain = chop_response(frequency_hz, rate_hz, k, discard, aperture) / sqrt(1.0 + turned * turned)
    return 20.0 * log10(gain) if gain > 1e-12 else -240.0


cdef inline void chop_leaks(
    const ChopPlan* plan, double frequency_hz, int low, int count, double* worst
) noexcept nogil:
    """How much of a line is left in one second's mean, for each k from `low` on; `worst` keeps the larger.

    The line's gain (chop_response) times the skirt of the nearest tooth of the comb.
    """
    cdef double w = M_PI * frequency_hz / plan.rate_hz
    cdef double turns = 2.0 * frequency_hz / plan.rate_hz  # of a chop period, for each k
    cdef double twice = 2.0 * cos(w)
    cdef double kept_before = sin((low - plan.discard - 1) * w)
    cdef double kept = sin((low - plan.discard) * w)
    cdef double before = sin((low - 1) * w)
    cdef double now = sin(low * w)
    cdef double s = sin(w)
    cdef double gap = w * plan.aperture
    cdef double each = (sin(gap) / gap if gap > 1e-9 else 1.0) / s if fabs(s) > 1e-9 else 0.0
    cdef double distance, leak
    cdef int i, k
    for i in range(count):
        k = low + i
        distance = k * turns
        distance = M_PI * plan.rate_hz / (2.0 * k) * (distance - <int>(distance + 0.5))
        leak = fabs(kept * each / (k - plan.discard) * 2.0 * now * now) / sqrt(1.0 + distance * distance)
        worst[i] = leak if leak > worst[i] else worst[i]
        leak = twice * now - before
        before = now
        now = leak
        leak = twice * kept - kept_before
        kept_before = kept
        kept = leak


cdef inline void chop_line(
    const ChopPlan* plan, double frequency_hz, double amplitude, int low, int count, double* total
) noexcept nogil:
    """Add the power that a single line leaves."""
    cdef double worst[HALF_CYCLES]
    cdef int i
    memset(worst, 0, sizeof(worst))
    chop_leaks(plan, frequency_hz, low, count, worst)
    for i in range(count):
        total[i] += amplitude * amplitude * worst[i] * worst[i]


cdef inline void chop_costs(const ChopPlan* plan, int low, int count, double* cost) noexcept nogil:
    """Cost of half-cycles of k = low, low + 1... (`count` <= HALF_CYCLES) conversions, k > discard.

    Variance against B0, times what mains, stirrer, PWM and ambient light add. Lines: harmonics 1-6 of 50 and 60 Hz (or
    of `mains_hz`), worst within +-0.5 Hz each, amplitude 1/h; n rpm/60 for n <= 12, half as strong; n pwm_hz, n <= 3,
    as strong as the mains. Ambient light leaks in proportion to the length of the half-cycle; as much as noise costs it
    at CHOP_DRIFT_S, or where half of the conversions are discarded if that is longer.
    """
    cdef double total[HALF_CYCLES]
    cdef double worst[HALF_CYCLES]
    cdef double base, drift
    cdef double usual = CHOP_DRIFT_S * plan.rate_hz
    cdef int h, side, offset, i, k
    memset(total, 0, sizeof(total))
    for side in range(1 if plan.mains_hz > 0.0 else 2):
        base = plan.mains_hz if plan.mains_hz > 0.0 else 50.0 + 10.0 * side
        for h in range(1, 7):
            memset(worst, 0, sizeof(worst))
            for offset in range(-2, 3):
                chop_leaks(plan, h * (base + 0.25 * offset), low, count, worst)
            for i in range(count):
                total[i] += worst[i] * worst[i] / (h * h)
    if plan.rpm > 0.0:
        for h in range(1, 13):
            chop_line(plan, h * plan.rpm / 60.0, 0.5 / h, low, count, total)
    if plan.pwm_hz > 0.0:
        for h in range(1, 4):
            chop_line(plan, h * plan.pwm_hz, 1.0 / h, low, count, total)
    for i in range(count):
        k = low + i
        drift = k / (usual if usual > 2.0 * plan.discard else 2.0 * plan.discard)
        cost[i] = 4.0 * k / (k - plan.discard) * (1.0 + 100.0 * total[i]) * (1.0 + drift * drift)


cdef inline int choose_half_cycle(const ChopPlan* plan) noexcept nogil:
    """The k with the least cost, from low to high, of at most CHOP_TRIALS tried.

    Where the light settles slowly at least two conversions are kept, and the range reaches as far as two thirds of a
    half-cycle can be; never beyond CHOP_KEPT conversions or CHOP_LONGEST_S.
    """
    cdef double cost[HALF_CYCLES]
    cdef double least = INFINITY
    cdef int longest = <int>(CHOP_LONGEST_S * plan.rate_hz)
    cdef int low = plan.discard + (2 if plan.discard > 1 else 1)
    cdef int high = plan.high if plan.discard < 2 or plan.high > 3 * plan.discard + 2 else 3 * plan.discard + 2
    cdef int best, count, stride, k, i
    low = plan.low if plan.low > low else low
    low = 2 if low < 2 else low
    high = high if high < plan.discard + CHOP_KEPT else plan.discard + CHOP_KEPT
    high = high if high < longest else longest
    low = low if low < high else high
    best = low
    stride = (high - low) // CHOP_TRIALS + 1
    k = low
    while k <= high:
        count = 1 if stride > 1 else high - k + 1 if high - k < HALF_CYCLES else HALF_CYCLES
        chop_costs(plan, k, count, cost)
        for i in range(count):
            if cost[i] < least:
                least = cost[i]
                best = k + i
        k += stride if stride > 1 else count
    return best
