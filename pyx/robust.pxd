# Why compiled: bubbles are rejected in every window of every photodiode, ten times a second.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: those of the samples.

from libc.math cimport fabs, sqrt
from libc.stdint cimport int32_t

cdef enum:
    SCALE_HISTORY = 60   # seconds over which a scale is carried
    SCALE_UNFREEZE = 5   # seconds of a scale that disagrees before it is believed

cdef extern from *:
    """
    /* Tukey's biweight with 95 % efficiency in normal noise (Holland & Welsch 1977) */
    #define STIRBAR_TUKEY_C 4.685
    /* winsorised variance: E[min(z^2, a^2)] for z ~ N(0, 1), a = 2.5 */
    #define STIRBAR_WINSOR_A 2.5
    #define STIRBAR_WINSOR_KAPPA 0.97756
    /* trimmed variance: E[z^2 | |z| < a], a = 2.5 */
    #define STIRBAR_TRIM_A 2.5
    #define STIRBAR_TRIM_KAPPA 0.91126
    """
    const double TUKEY_C "STIRBAR_TUKEY_C"
    const double TRIM_A "STIRBAR_TRIM_A"
    const double TRIM_KAPPA "STIRBAR_TRIM_KAPPA"
    const double WINSOR_A "STIRBAR_WINSOR_A"
    const double WINSOR_KAPPA "STIRBAR_WINSOR_KAPPA"

# A scale of noise that outlives the window: the median of one value a second, over the last minute.
cdef struct CarriedScale:
    double value                    # in force; 0: none yet
    float history[SCALE_HISTORY]
    int32_t count
    int32_t cursor
    int32_t frozen_seconds          # how long updates have been refused


cdef inline double select_rank(double* values, int count, int rank) noexcept nogil:
    """The value of that rank (from 0); reorders `values`. Hoare's quickselect."""
    cdef int left = 0
    cdef int right = count - 1
    cdef int i, j
    cdef double pivot, swap
    while left < right:
        pivot = values[(left + right) >> 1]
        i = left
        j = right
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                swap = values[i]
                values[i] = values[j]
                values[j] = swap
                i += 1
                j -= 1
        if rank <= j:
            right = j
        elif rank >= i:
            left = i
        else:
            break
    return values[rank]


cdef inline double median_in_place(double* values, int count) noexcept nogil:
    """Median; reorders `values`. `count` is at least 1."""
    cdef int half = count >> 1
    cdef int i
    cdef double upper = select_rank(values, count, half)
    cdef double lower
    if count & 1:
        return upper
    lower = values[0]
    for i in range(1, half):
        if values[i] > lower:
            lower = values[i]
    return 0.5 * (lower + upper)


cdef inline double mad_scale(double* values, int count, double centre) noexcept nogil:
    """1.4826 x median |value - centre|; overwrites `values`."""
    cdef int i
    for i in range(count):
        values[i] = fabs(values[i] - centre)
    return 1.4826 * median_in_place(values, count)


cdef inline double winsorised_scale(const double* values, int count, double centre, double start) noexcept nogil:
    """Standard deviation with deviations cut at 2.5 of it (Huber's proposal 2 with a fixed centre), from `start`."""
    cdef double scale = start
    cdef double cut, total, d
    cdef int i, _turn
    for _turn in range(4):
        cut = WINSOR_A * WINSOR_A * scale * scale
        total = 0.0
        for i in range(count):
            d = values[i] - centre
            d = d * d
            total += d if d < cut else cut
        scale = sqrt(total / (WINSOR_KAPPA * count))
    return scale


cdef inline void carried_scale_clear(CarriedScale* carried) noexcept nogil:
    carried.value = 0.0
    carried.count = 0
    carried.cursor = 0
    carried.frozen_seconds = 0


cdef inline void carried_scale_push(CarriedScale* carried, double scale, bint trusted) noexcept nogil:
    """One scale a second. Untrusted ones (more than a tenth rejected) freeze it, unless they are smaller.

    One that is three times the carried one for SCALE_UNFREEZE seconds is a change of the noise, not a bubble.
    """
    cdef double sorted_copy[SCALE_HISTORY]
    cdef int i
    if not scale > 0.0:
        return
    if not trusted and carried.count and scale > carried.value:
        if scale < 3.0 * carried.value:
            carried.frozen_seconds = 0
            return
        carried.frozen_seconds += 1
        if carried.frozen_seconds < SCALE_UNFREEZE:
            return
        carried_scale_clear(carried)
    carried.frozen_seconds = 0
    carried.history[carried.cursor] = <float>scale
    carried.cursor = carried.cursor + 1 if carried.cursor + 1 < SCALE_HISTORY else 0
    if carried.count < SCALE_HISTORY:
        carried.count += 1
    for i in range(carried.count):
        sorted_copy[i] = carried.history[i]
    carried.value = median_in_place(sorted_copy, carried.count)
