# Why compiled: the host thread packs a few hundred readings ten times a second, beside its Python.
# Thread rule: the host thread, on what it has popped from the rings.
# Units: none.

from libc.stdint cimport uint32_t

from stirbar.rt.types cimport Reading


cdef inline bint follows(const Reading* a, const Reading* b) noexcept nogil:
    return a.stream == b.stream and a.experiment == b.experiment and a.sequence + 1 == b.sequence


cdef inline void sort_by_stream(Reading* readings, uint32_t count) noexcept nogil:
    """Insertion sort, stable: a batch is short and nearly in order."""
    cdef Reading moving
    cdef uint32_t i, j
    for i in range(1, count):
        j = i
        if readings[j].stream >= readings[j - 1].stream:
            continue
        moving = readings[i]
        while j > 0 and readings[j - 1].stream > moving.stream:
            readings[j] = readings[j - 1]
            j -= 1
        readings[j] = moving
