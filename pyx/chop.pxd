# Why compiled: the sampling thread says of each conversion whether the LED was on, off, or changing within it.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: nanoseconds of the loop's clock, hertz, rpm; k counts conversions in half a cycle of the LED.

from libc.math cimport INFINITY, M_PI, cos, fabs, sin, sqrt
from libc.stdint cimport INT64_MIN, int32_t, int64_t, uint8_t
from libc.string cimport memset

from stirbar.rt.types cimport PHASE_EDGE, PHASE_OFF, PHASE_ON

cdef enum:
    LED_EDGES = 16           # changes that are remembered; a conversion spans at most two
    HALF_CYCLE_LOW = 4       # range of k when the config names none
    HALF_CYCLE_HIGH = 9
    HALF_CYCLES = 16         # whose costs are found at once

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


cdef inline double chop_gain(double frequency_hz, double rate_hz, int k) noexcept nogil:
    """|response| of one on half-cycle minus the mean of its off neighbours to a sinusoid, k - 1 conversions kept."""
    cdef double w = M_PI * frequency_hz / rate_hz
    cdef double s = sin(k * w)
    return fabs(sin((k - 1) * w) / ((k - 1) * w) * 2.0 * s * s) if w > 1e-9 else 0.0


cdef inline void chop_leaks(double frequency_hz, double rate_hz, int low, int count, double* worst) noexcept nogil:
    """How much of a line is left in one second's mean, for each k from `low` on; `worst` keeps the larger.

    The line's gain (chop_gain) times the skirt of the nearest tooth of the comb.
    """
    cdef double w = M_PI * frequency_hz / rate_hz
    cdef double turns = 2.0 * frequency_hz / rate_hz  # of a chop period, for each k
    cdef double twice = 2.0 * cos(w)
    cdef double before = sin((low - 1) * w)
    cdef double now = sin(low * w)
    cdef double distance, leak
    cdef int i, k
    for i in range(count):
        k = low + i
        distance = k * turns
        distance = M_PI * rate_hz / (2.0 * k) * (distance - <int>(distance + 0.5))
        leak = fabs(before / ((k - 1) * w) * 2.0 * now * now) / sqrt(1.0 + distance * distance)
        worst[i] = leak if leak > worst[i] else worst[i]
        leak = twice * now - before
        before = now
        now = leak


cdef inline void chop_costs(
    double rate_hz, double mains_hz, double rpm, int low, int count, double* cost
) noexcept nogil:
    """Cost of half-cycles of k = low, low + 1... (`count` <= HALF_CYCLES) conversions.

    Variance against B0, times what mains, stirrer and ambient light add. Lines: harmonics 1-6 of 50 and 60 Hz (or of
    `mains_hz`), worst within +-0.5 Hz each, amplitude 1/h; n rpm/60 for n <= 12, half as strong. Ambient light leaks in
    proportion to k.
    """
    cdef double total[HALF_CYCLES]
    cdef double worst[HALF_CYCLES]
    cdef double base
    cdef int h, side, offset, i, k
    memset(total, 0, sizeof(total))
    for side in range(1 if mains_hz > 0.0 else 2):
        base = mains_hz if mains_hz > 0.0 else 50.0 + 10.0 * side
        for h in range(1, 7):
            memset(worst, 0, sizeof(worst))
            for offset in range(-2, 3):
                chop_leaks(h * (base + 0.25 * offset), rate_hz, low, count, worst)
            for i in range(count):
                total[i] += worst[i] * worst[i] / (h * h)
    if rpm > 0.0:
        for h in range(1, 13):
            memset(worst, 0, sizeof(worst))
            chop_leaks(h * rpm / 60.0, rate_hz, low, count, worst)
            for i in range(count):
                total[i] += 0.25 * worst[i] * worst[i] / (h * h)
    for i in range(count):
        k = low + i
        cost[i] = 4.0 * k / (k - 1.0) * (1.0 + 100.0 * total[i]) * (1.0 + (k / 16.0) * (k / 16.0))


cdef inline int choose_half_cycle(double rate_hz, double mains_hz, double rpm, int low, int high) noexcept nogil:
    """The k in low..high (at least 2) with the least cost; `mains_hz` 0 is unknown, `rpm` 0 is no stirrer."""
    cdef double cost[HALF_CYCLES]
    cdef double least = INFINITY
    cdef int best, count, i
    low = 2 if low < 2 else low
    best = low
    while low <= high:
        count = high - low + 1 if high - low < HALF_CYCLES else HALF_CYCLES
        chop_costs(rate_hz, mains_hz, rpm, low, count, cost)
        for i in range(count):
            if cost[i] < least:
                least = cost[i]
                best = low + i
        low += count
    return best
