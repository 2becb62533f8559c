# Why compiled: mains is fitted, and windows are weighted, within a tick of the loop.
# Thread rule: pure; runs on its caller's thread and memory.
# Units: those of the caller.

from libc.math cimport sqrt


cdef inline void solve_cholesky(double* gram, double* right, int unknowns, int stride, double floor_) noexcept nogil:
    """Solve in place; an unknown whose pivot falls below `floor_` (seen already in the others) becomes 0."""
    cdef int i, j, k
    cdef double total
    for i in range(unknowns):
        for j in range(i + 1):
            total = gram[i * stride + j]
            for k in range(j):
                total -= gram[i * stride + k] * gram[j * stride + k]
            if j < i:
                gram[i * stride + j] = total * gram[j * stride + j]
            else:
                gram[i * stride + i] = 1.0 / sqrt(total) if total > floor_ else 0.0
    for i in range(unknowns):
        total = right[i]
        for k in range(i):
            total -= gram[i * stride + k] * right[k]
        right[i] = total * gram[i * stride + i]
    for i in range(unknowns - 1, -1, -1):
        total = right[i]
        for k in range(i + 1, unknowns):
            total -= gram[k * stride + i] * right[k]
        right[i] = total * gram[i * stride + i]
