# Why compiled: each second of each photodiode is set against the reference's, to learn what the LED's temperature does.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns.
# Units: volts, nanoseconds.

from stirbar.rt.od_state cimport OD_BLOCK, OD_REFERENCE_GAP_NS, OdRate, OdState, OdWindow
from stirbar.rt.reference cimport reference_follow, reference_push, reference_restart
from stirbar.rt.types cimport FLAG_BUBBLES, FLAG_DARK, FLAG_SATURATED, FLAG_UNCHOPPED


cdef inline void od_learn_reference(OdState* s, int channel, const OdWindow* window) noexcept nogil:
    """A block of a signal channel against the reference's block of the same second."""
    cdef const OdRate* rate = &s.rate[OD_BLOCK]
    cdef bint quiet = rate.referred and window.full
    quiet = quiet and not window.flags & (FLAG_BUBBLES | FLAG_SATURATED | FLAG_DARK | FLAG_UNCHOPPED)
    if window.restarted or s.block_tick_ns - s.reference_fit[channel].tick_ns > OD_REFERENCE_GAP_NS:
        reference_restart(&s.reference_fit[channel])
    s.reference_fit[channel].tick_ns = s.block_tick_ns
    reference_push(&s.reference_fit[channel], window.value_v, rate.reference_v, rate.reference_se, quiet)
    if rate.referred:
        reference_follow(&s.reference_fit[channel], rate.reference_v, s.reference_first_v)
