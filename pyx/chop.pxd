# Why compiled: the sampling thread says of each conversion whether the LED was on, off, or changing within it.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: nanoseconds of the loop's clock, hertz, rpm; k counts conversions in half a cycle of the LED.

from libc.math cimport M_PI, cos, fabs, floor, sin, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t

from stirbar.rt.types cimport PHASE_EDGE, PHASE_OFF, PHASE_ON

cdef enum:
    LED_EDGES = 16           # changes that are remembered; a conversion spans at most two
    HALF_CYCLE_LOW = 4       # range of k when the config names none
    HALF_CYCLE_HIGH = 9

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


cdef inline void led_track_init(LedTrack* track, int64_t guard_ns, int64_t settle_ns) noexcept nogil:
    track.count = 0
    track.cursor = 0
    track.on = 0
    track.guard_ns = guard_ns
    track.settle_ns = settle_ns


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


cdef inline int led_track_phase(const LedTrack* track, int64_t start_ns, int64_t end_ns) noexcept nogil:
    """PHASE_ON or PHASE_OFF when [start, end] lies wholly within one level of settled light, else PHASE_EDGE.

    A conversion from before the oldest remembered change is PHASE_EDGE: nobody knows any more.
    """
    cdef int _i
    cdef int slot = track.cursor
    cdef const LedEdge* edge
    cdef uint8_t level = track.on
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
    cdef double mean = 1.0
    cdef int n = k - 1
    if fabs(sin(w)) > 1e-9:
        mean = sin(n * w) / (n * sin(w))
    if w > 1e-9:
        mean *= sin(w) / w
    return fabs(mean * (1.0 - cos(2.0 * w * k)))


cdef inline double chop_leak(double frequency_hz, double rate_hz, int k) noexcept nogil:
    """How much of a line is left in one second's mean: its gain times the skirt of the nearest tooth of the comb."""
    cdef double chop = rate_hz / (2.0 * k)
    cdef double tooth = floor(frequency_hz / chop + 0.5)
    cdef double distance = M_PI * fabs(frequency_hz - tooth * chop)
    return chop_gain(frequency_hz, rate_hz, k) / sqrt(1.0 + distance * distance)


cdef inline double chop_cost(double rate_hz, double mains_hz, double rpm, int k) noexcept nogil:
    """Cost of a half-cycle of k conversions: variance against B0, times what mains, stirrer and ambient light add.

    Lines: harmonics 1-6 of 50 and 60 Hz (or of `mains_hz`), worst within +-0.5 Hz each, amplitude 1/h; n rpm/60 for
    n <= 12, half as strong. Ambient light leaks in proportion to k.
    """
    cdef double total = 0.0
    cdef double base, worst, leak
    cdef int h, side, offset
    for side in range(2):
        base = mains_hz if mains_hz > 0.0 else 50.0 + 10.0 * side
        if mains_hz > 0.0 and side:
            break
        for h in range(1, 7):
            worst = 0.0
            for offset in range(-2, 3):
                leak = chop_leak(h * (base + 0.25 * offset), rate_hz, k) / h
                worst = leak if leak > worst else worst
            total += worst * worst
    if rpm > 0.0:
        for h in range(1, 13):
            leak = 0.5 * chop_leak(h * rpm / 60.0, rate_hz, k) / h
            total += leak * leak
    return 4.0 * k / (k - 1.0) * (1.0 + 100.0 * total) * (1.0 + (k / 16.0) * (k / 16.0))


cdef inline int choose_half_cycle(double rate_hz, double mains_hz, double rpm, int low, int high) noexcept nogil:
    """The k in low..high (at least 2) with the least `chop_cost`; `mains_hz` 0 is unknown, `rpm` 0 is no stirrer."""
    cdef int k
    cdef int best
    cdef double cost
    cdef double least = 0.0
    low = 2 if low < 2 else low
    best = low
    for k in range(low, high + 1):
        cost = chop_cost(rate_hz, mains_hz, rpm, k)
        if k == low or cost < least:
            least = cost
            best = k
    return best
