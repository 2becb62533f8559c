# Why compiled: once a second every photodiode says how much of its light the stir bar moves.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: volts; amplitudes are those of cosines.

from libc.math cimport M_PI, cos, fabs, sin, sqrt
from libc.string cimport memset

from stirbar.rt.od_state cimport ENTRY_STEP, OD_RING, OdChannel, OdState
from stirbar.rt.robust cimport TUKEY_C

cdef enum:
    MODULATION_TURNS = 2         # once and twice per turn
    MODULATION_ENTRIES = 16      # chop periods that make a figure, at the least

cdef struct OdModulation:
    double amplitude_v[MODULATION_TURNS]
    double mean_v                # of the same chop periods
    double window_s
    int used                     # chop periods


cdef inline int od_modulation_entries(const OdState* s) noexcept nogil:
    """Chop periods in as many whole turns as come nearest to a second; 0 where turns are too fast to be seen, or too
    slow."""
    cdef double turns = <double><int>(1e9 / s.turn_ns + 0.5)
    cdef int count
    if s.turn_ns < 2.5 * MODULATION_TURNS * s.spacing_ns:
        return 0
    turns = 1.0 if turns < 1.0 else turns
    count = <int>(turns * s.turn_ns / s.spacing_ns + 0.5)
    return count if MODULATION_ENTRIES <= count <= OD_RING else 0


cdef inline int od_modulation(const OdState* s, const OdChannel* ch, double level_v, OdModulation* out) noexcept nogil:
    """Amplitudes of the lit light at one and two per turn over whole turns. Returns 0, or -1 when there is none.

    The discrete Fourier sums of the newest differences about `level_v`; bubbles and steps of ambient light count as no
    change. Over whole turns neither the level nor one line leaks into the other.
    """
    cdef double cosine[MODULATION_TURNS]
    cdef double sine[MODULATION_TURNS]
    cdef double real[MODULATION_TURNS]
    cdef double imaginary[MODULATION_TURNS]
    cdef double cut = TUKEY_C * ch.scale.value
    cdef double c = 1.0
    cdef double d = 0.0
    cdef double move, turn_c, turn_d
    cdef int count, slot, n, _i
    memset(out, 0, sizeof(OdModulation))
    if not s.turn_ns > 0.0 or not s.spacing_ns > 0.0 or not cut > 0.0:
        return -1
    count = od_modulation_entries(s)
    if count == 0 or ch.entries < count:
        return -1
    memset(real, 0, sizeof(real))
    memset(imaginary, 0, sizeof(imaginary))
    turn_c = cos(2.0 * M_PI * s.spacing_ns / s.turn_ns)
    turn_d = sin(2.0 * M_PI * s.spacing_ns / s.turn_ns)
    slot = ch.cursor - count
    slot = slot if slot >= 0 else slot + OD_RING
    for _i in range(count):
        move = ch.entry[slot].difference_v - level_v
        if not ch.entry[slot].flags & ENTRY_STEP and fabs(move) < cut:
            out.mean_v += move
            out.used += 1
            cosine[0] = c
            sine[0] = d
            cosine[1] = 2.0 * c * c - 1.0
            sine[1] = 2.0 * c * d
            for n in range(MODULATION_TURNS):
                real[n] += move * cosine[n]
                imaginary[n] += move * sine[n]
        move = c
        c = c * turn_c - d * turn_d
        d = move * turn_d + d * turn_c
        slot = slot + 1 if slot + 1 < OD_RING else 0
    if 2 * out.used < count:
        return -1
    for n in range(MODULATION_TURNS):
        out.amplitude_v[n] = 2.0 / out.used * sqrt(real[n] * real[n] + imaginary[n] * imaginary[n])
    out.mean_v = level_v + out.mean_v / out.used
    out.window_s = count * s.spacing_ns * 1e-9
    return 0
