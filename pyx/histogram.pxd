# Why compiled: every tick of the loop adds its lateness.
# Thread rule: one writer; readers see counts that may be one tick old.
# Units: nanoseconds; bins are log-spaced, 8 to an octave (12.5 % wide), and add up across threads, units and runs.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    HISTOGRAM_BINS = 264     # up to 2^35 ns = 34 s; what is above lands in the last bin

cdef struct Histogram:
    uint32_t counts[HISTOGRAM_BINS]
    uint32_t early           # woken before the target: never with absolute sleeps
    int64_t worst_ns

cdef extern from *:
    """
    static inline int stirbar_log2(unsigned long long v) { return 63 - __builtin_clzll(v); }
    """
    int stirbar_log2(uint64_t v) noexcept nogil


cdef inline int histogram_bin(int64_t value_ns) noexcept nogil:
    """Index of the bin of a value >= 0."""
    cdef int octave, index
    if value_ns < 8:
        return <int>value_ns
    octave = stirbar_log2(<uint64_t>value_ns)
    index = (octave - 2) * 8 + <int>((value_ns >> (octave - 3)) & 7)
    return index if index < HISTOGRAM_BINS else HISTOGRAM_BINS - 1


cdef inline int64_t histogram_edge_ns(int index) noexcept nogil:
    """Lower edge of a bin."""
    if index < 8:
        return index
    return <int64_t>(8 + (index & 7)) << (index // 8 - 1)


cdef inline void histogram_add(Histogram* histogram, int64_t value_ns) noexcept nogil:
    if value_ns < 0:
        histogram.early += 1
        return
    histogram.counts[histogram_bin(value_ns)] += 1
    if value_ns > histogram.worst_ns:
        histogram.worst_ns = value_ns
