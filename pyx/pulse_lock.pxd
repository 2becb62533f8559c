# Why compiled: keeps the stirrer's PWM out of the optical density, in the loop.
# Thread rule: pure; used by the actuator thread.
# Units: nanoseconds.
#
# What a PWM of period P picks up in the photodiode has lines at multiples of 1/P. Chopping subtracts the mean of an off
# half-cycle from that of an on half-cycle, so a line is gone when it has the same phase at the beginning of both: when
# its frequency is a whole multiple of 1/h, with h the half-cycle. A line at an odd multiple of 1/2h, the chop
# frequency itself, is not reduced at all. So P = h/m, and all lines are gone in every single chop period; or, where P
# is longer than h, P = n h with n odd: lines that are no multiple of 1/h are then at least 1/(2nh) away from the odd
# multiples of 1/2h, and gone from a window of n chop periods. With n even, the line n/2 would be the chop frequency.
# Error of the lock: a line at q/h that is off by a part e of its frequency is left at 2 pi q e of its amplitude.

from libc.stdint cimport int64_t


cdef inline int64_t locked_period_ns(int64_t chop_period_ns, int64_t wanted_ns) noexcept nogil:
    """The PWM period next to the wanted one, by ratio, that chopping removes; the wanted one where nothing chops."""
    cdef double half = 0.5 * <double>chop_period_ns
    cdef double wanted = <double>wanted_ns
    cdef double longer, shorter
    cdef int64_t times
    if chop_period_ns <= 0 or wanted_ns <= 0:
        return wanted_ns
    if wanted <= half:
        times = <int64_t>(half / wanted)
        longer = half / <double>times
        shorter = half / <double>(times + 1)
    else:
        times = (<int64_t>(wanted / half) - 1) // 2 * 2 + 1
        longer = half * <double>(times + 2)
        shorter = half * <double>times
    return <int64_t>((shorter if wanted * wanted < longer * shorter else longer) + 0.5)
