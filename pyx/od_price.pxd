# Why compiled: the host asks what chopping costs whenever k changes, with the weights that the loop uses.
# Thread rule: pure; the host thread, or a notebook. It takes a fraction of a millisecond: not for the loop's threads.
# Units: hertz, seconds; ratios of standard deviations, efficiencies of variances.
#
# B0 is the mean of all conversions of a window, the light always on. B1: on minus off, of the conversions that are
# kept. B2: B1 with dark level, drift and mains (frequency and four harmonics) unknown too: the Cramer-Rao bound of that
# linear model within the window. A chain that carries the hum's phasors over from before may do better than B2.

from libc.errno cimport EINVAL
from libc.math cimport M_PI, cos, fabs, floor, sin, sqrt
from libc.string cimport memset

from stirbar.rt.cholesky cimport solve_cholesky
from stirbar.rt.culture_noise cimport CULTURE_BLOCKS, CULTURE_LAGS
from stirbar.rt.mains_run cimport HARMONICS
from stirbar.rt.od_nulls cimport OD_NULL_FLOOR, OD_NULL_REACH, od_solve_nulls
from stirbar.rt.od_state cimport OD_RING, OdNulls

cdef enum:
    PRICE_HARMONICS = 4
    PRICE_UNKNOWNS = 3 + 2 * PRICE_HARMONICS + 2  # on, dark, drift; harmonics; frequency in either phase

cdef extern from *:
    """
    #define STIRBAR_PRICE_WINDOW_S 2.0       /* longer windows cost as this one does: mains is orthogonal to them */
    #define STIRBAR_PRICE_ROBUST 0.98        /* efficiency of the rejection of bubbles in clean noise */
    """
    const double PRICE_WINDOW_S "STIRBAR_PRICE_WINDOW_S"
    const double PRICE_ROBUST "STIRBAR_PRICE_ROBUST"

cdef struct OdPrice:
    double noise_over_b0
    double b1_over_b0
    double b2_over_b0
    double efficiency_b1         # of the chain, robust part included
    double efficiency_b2
    double freedom               # degrees of freedom of se_culture


cdef inline double od_bound_b2(double rate_hz, int k, int discarded, int count, double mains_hz) noexcept nogil:
    """B2 / B0 for a window of `count` chop periods."""
    cdef double gram[PRICE_UNKNOWNS * PRICE_UNKNOWNS]
    cdef double unit[PRICE_UNKNOWNS]
    cdef double row[PRICE_UNKNOWNS]
    cdef double time, turn
    cdef int conversions = 2 * k * count
    cdef int n, i, j, h
    memset(gram, 0, sizeof(gram))
    memset(unit, 0, sizeof(unit))
    for n in range(conversions):
        if n % k < discarded:
            continue
        time = (n + 0.5) / conversions - 0.5
        row[PRICE_UNKNOWNS - 1] = 1.0 if n // k % 2 == 0 else 0.0  # last: nothing behind it in the elimination
        row[0] = 1.0
        row[1] = time
        for h in range(1, PRICE_HARMONICS + 1):
            turn = 2.0 * M_PI * h * mains_hz * conversions * time / rate_hz
            row[2 * h] = cos(turn)
            row[2 * h + 1] = sin(turn)
        row[2 * PRICE_HARMONICS + 2] = time * row[2]
        row[2 * PRICE_HARMONICS + 3] = time * row[3]
        for i in range(PRICE_UNKNOWNS):
            for j in range(i + 1):
                gram[i * PRICE_UNKNOWNS + j] += row[i] * row[j]
    unit[PRICE_UNKNOWNS - 1] = 1.0
    solve_cholesky(gram, unit, PRICE_UNKNOWNS, PRICE_UNKNOWNS, 1e-9 * conversions)
    return sqrt(unit[PRICE_UNKNOWNS - 1] * conversions)


cdef inline int od_price(
    double rate_hz, int k, int discarded, double window_s, double mains_hz, OdPrice* price
) noexcept nogil:
    """What a light that is chopped every `k` conversions, the first `discarded` of them unused, costs a window, while
    no hum is seen. Returns 0, or -EINVAL when a value is out of its bounds."""
    cdef OdNulls nulls
    cdef float weight[OD_RING]
    cdef double g, before, turns
    cdef double total = 0.0
    cdef double kept = k - discarded
    cdef int count, h, m
    memset(price, 0, sizeof(OdPrice))
    if not rate_hz > 0.0 or not window_s > 0.0 or not 45.0 <= mains_hz <= 65.0 or not 0 <= discarded < k:
        return -EINVAL
    window_s = window_s if window_s < PRICE_WINDOW_S else PRICE_WINDOW_S
    count = <int>(window_s * rate_hz / (2 * k) + 0.5)
    count = 1 if count < 1 else count if count < OD_RING else OD_RING
    memset(&nulls, 0, sizeof(OdNulls))
    nulls.hz = mains_hz
    nulls.spacing_ns = 2e9 * k / rate_hz
    nulls.count = count
    for h in range(HARMONICS):
        turns = (h + 1) * mains_hz * 2.0 * k / rate_hz
        turns -= floor(turns + 0.5)
        nulls.prior[h] = OD_NULL_FLOOR / count if fabs(turns) * count >= OD_NULL_REACH else 0.0
    od_solve_nulls(&nulls, weight)
    before = 0.0
    for m in range(count + 1):
        g = weight[m] if m < count else 0.0
        total += g * g / kept + 0.25 * (g + before) * (g + before) / kept
        before = g
    price.b1_over_b0 = 2.0 / sqrt(1.0 - discarded / <double>k)
    price.b2_over_b0 = od_bound_b2(rate_hz, k, discarded, count, mains_hz)
    price.noise_over_b0 = sqrt(total * 2 * k * count / PRICE_ROBUST)
    price.efficiency_b1 = price.b1_over_b0 / price.noise_over_b0
    price.efficiency_b1 *= price.efficiency_b1
    price.efficiency_b2 = price.b2_over_b0 / price.noise_over_b0
    price.efficiency_b2 *= price.efficiency_b2
    # of a variance with Bartlett's window: n over twice the window's squares, less two for the line (Priestley 1981)
    g = 0.0
    for m in range(1, CULTURE_LAGS + 1):
        before = 1.0 - m / (CULTURE_LAGS + 1.0)
        g += before * before
    price.freedom = (CULTURE_BLOCKS - 2) / (1.0 + 2.0 * g)
    return 0
