# Why compiled: each reading carries its standard error as a measure of the culture, from the last minute of readings.
# Thread rule: pure; the sampling thread runs it on state that it owns.
# Units: those of the value; seconds.

from libc.math cimport NAN, sqrt
from libc.stdint cimport int32_t

cdef enum:
    CULTURE_BLOCKS = 60     # block means that are kept
    CULTURE_MINIMUM = 15    # block means before there is a figure
    CULTURE_LAGS = 2        # Bartlett's window: lags 1..2

# Means of consecutive, non-overlapping blocks.
cdef struct CultureNoise:
    double mean[CULTURE_BLOCKS]
    double block_s          # from one mean to the next
    double mean_s           # that each mean is made of, at most block_s
    double density          # spectral density near zero, two-sided, value^2 s; NaN: not yet
    double slope            # value per second
    double slope_se
    int32_t count
    int32_t cursor


cdef inline void culture_noise_clear(CultureNoise* noise, double block_s, double mean_s) noexcept nogil:
    noise.block_s = block_s
    noise.mean_s = mean_s if mean_s < block_s else block_s
    noise.density = NAN
    noise.slope = NAN
    noise.slope_se = NAN
    noise.count = 0
    noise.cursor = 0


cdef inline void culture_noise_push(CultureNoise* noise, double mean) noexcept nogil:
    """Add the mean of one block; update slope and spectral density near zero.

    Long-run variance of the means about their straight line, Bartlett's window (Newey & West 1987), with the degrees
    of freedom that the line and the window's own bias take (each of the 2 + 1 lags loses about two of `count`).
    """
    cdef double residual[CULTURE_BLOCKS]
    cdef double centre, total, slope, level, spread
    cdef int i, j, lag, n
    noise.mean[noise.cursor] = mean
    noise.cursor = noise.cursor + 1 if noise.cursor + 1 < CULTURE_BLOCKS else 0
    if noise.count < CULTURE_BLOCKS:
        noise.count += 1
    n = noise.count
    if n < CULTURE_MINIMUM:
        return
    centre = 0.5 * (n - 1)
    level = 0.0
    slope = 0.0
    j = noise.cursor if n == CULTURE_BLOCKS else 0
    for i in range(n):
        residual[i] = noise.mean[j]
        level += residual[i]
        slope += (i - centre) * residual[i]
        j = j + 1 if j + 1 < CULTURE_BLOCKS else 0
    level /= n
    spread = n * (<double>n * n - 1.0) / 12.0
    slope /= spread
    for i in range(n):
        residual[i] -= level + slope * (i - centre)
    total = 0.0
    for i in range(n):
        total += residual[i] * residual[i]
    for lag in range(1, CULTURE_LAGS + 1):
        spread = 0.0
        for i in range(lag, n):
            spread += residual[i] * residual[i - lag]
        total += 2.0 * (1.0 - lag / (CULTURE_LAGS + 1.0)) * spread
    total /= n - 2.0 * (CULTURE_LAGS + 1)
    if total < 0.0:
        total = 0.0
    noise.density = total * noise.mean_s
    noise.slope = slope / noise.block_s
    spread = n * (<double>n * n - 1.0) / 12.0
    noise.slope_se = sqrt(total / spread) / noise.block_s
