# Why compiled: what every turn of the stirrer took is gathered in the actuator thread, edge by edge.
# Thread rule: pure functions on one flat struct; the thread that owns the struct calls them.
# Units: nanoseconds of the loop's clock; microseconds where a name says so.
#
# Two things make the times of turns differ: the stamps of the edges (sd s each) and the rotor itself. A stamp that is
# late makes one turn longer and the next one shorter, so with V the variance and D the mean squared difference of
# neighbours (2 s^2 and 6 s^2 on an ideal rotor) 3 V - D is the rotor's own variance where its turns are independent,
# and more than V where it drifts: V is taken then.

from libc.math cimport NAN, sqrt
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.tachometer cimport TACHOMETER_PULSES_MAXIMUM, Tachometer, tachometer_index, tachometer_stamp

cdef enum:
    TURNS_LEAST = 5              # a window with fewer says nothing

cdef struct Turns:
    int64_t begin_ns             # the edge at which the first turn began
    int64_t end_ns               # at which the last ended
    int64_t last_index           # of that edge
    double last_ns               # time of the last turn
    double mean_ns
    double squares               # sum of squared deviations from the mean
    double neighbours            # sum of squared differences of turns that follow each other
    double shortest_ns
    double longest_ns
    double share[TACHOMETER_PULSES_MAXIMUM]  # of a turn, from one magnet to the next: sums
    uint32_t shares              # whole turns in them
    uint32_t turns
    uint32_t pairs
    uint32_t odd                 # bounced and lost edges of the tachometer when the window began

cdef struct TurnsSummary:
    double sd_us                 # of all turns
    double standard_error_us     # of that
    double rotor_sd_us           # what the rotor itself does
    double mean_us
    double shortest_us
    double longest_us
    double asymmetry_percent     # widest less narrowest distance of two magnets, of what it would be if all were equal
    double window_s


cdef inline void turns_clear(Turns* w, const Tachometer* t) noexcept nogil:
    """Begin a window."""
    memset(w, 0, sizeof(Turns))
    w.odd = t.bounced + t.lost


cdef inline void turns_edge(Turns* w, const Tachometer* t) noexcept nogil:
    """An edge was accepted: take the turn that it ends, when that is whole and every edge of it was seen."""
    cdef uint32_t pulses = t.pulses_per_turn
    cdef int64_t index = tachometer_index(t, 0)
    cdef double turn_ns, delta
    cdef uint32_t i
    if index % pulses or t.held <= pulses or index - tachometer_index(t, pulses) != pulses:
        return
    turn_ns = <double>(tachometer_stamp(t, 0) - tachometer_stamp(t, pulses))
    if w.turns == 0:
        w.begin_ns = tachometer_stamp(t, pulses)
        w.shortest_ns = w.longest_ns = turn_ns
    elif w.last_index == index - pulses:
        w.neighbours += (turn_ns - w.last_ns) * (turn_ns - w.last_ns)
        w.pairs += 1
    w.turns += 1
    delta = turn_ns - w.mean_ns
    w.mean_ns += delta / w.turns
    w.squares += delta * (turn_ns - w.mean_ns)
    w.shortest_ns = min(w.shortest_ns, turn_ns)
    w.longest_ns = max(w.longest_ns, turn_ns)
    w.last_ns = turn_ns
    w.last_index = index
    w.end_ns = tachometer_stamp(t, 0)
    if pulses > 1:
        w.shares += 1
        for i in range(pulses):
            w.share[i] += <double>(tachometer_stamp(t, i) - tachometer_stamp(t, i + 1)) / turn_ns


cdef inline int turns_summary(const Turns* w, const Tachometer* t, TurnsSummary* out) noexcept nogil:
    """1, or 0 when there were fewer than TURNS_LEAST turns."""
    cdef double variance, own
    cdef double widest = 0.0
    cdef double narrowest = 1e9
    cdef uint32_t i
    if w.turns < TURNS_LEAST or w.pairs == 0:
        return 0
    variance = w.squares / (w.turns - 1)
    own = min(variance, max(0.0, 3.0 * variance - w.neighbours / w.pairs))
    out.sd_us = 1e-3 * sqrt(variance)
    out.standard_error_us = out.sd_us / sqrt(2.0 * (w.turns - 1))
    out.rotor_sd_us = 1e-3 * sqrt(own)
    out.mean_us = 1e-3 * w.mean_ns
    out.shortest_us = 1e-3 * w.shortest_ns
    out.longest_us = 1e-3 * w.longest_ns
    out.window_s = 1e-9 * <double>(w.end_ns - w.begin_ns)
    out.asymmetry_percent = NAN
    if w.shares:
        for i in range(t.pulses_per_turn):
            widest = max(widest, w.share[i])
            narrowest = min(narrowest, w.share[i])
        out.asymmetry_percent = 100.0 * t.pulses_per_turn * (widest - narrowest) / w.shares
    return 1
