# Why compiled: the simulated vial draws a normal number for each of 74 million conversions a day.
# Thread rule: each generator belongs to one thread; the table is read only after its initialisation.
# Units: dimensionless.
#
# xoroshiro128++ (Blackman and Vigna 2019), seeded through splitmix64; normal numbers by the ziggurat of 256 layers
# (Marsaglia and Tsang 2000, in the floating-point form of Doornik 2005).

from libc.math cimport exp, fabs, log, sqrt
from libc.stdint cimport int64_t, uint64_t

cdef enum:
    ZIGGURAT_LAYERS = 256

cdef struct Rng:
    uint64_t s0
    uint64_t s1

cdef struct Ziggurat:
    double x[257]      # right edges of the layers, widest first; x[0] stands for the base with its tail
    double ratio[256]  # x[i + 1] / x[i]: below it a draw needs no exponential


cdef inline uint64_t splitmix64(uint64_t* state) noexcept nogil:
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline void rng_seed(Rng* rng, uint64_t seed, uint64_t stream) noexcept nogil:
    """Start the generator number `stream` of a seed; streams of one seed are independent of each other."""
    cdef uint64_t state = seed
    state = splitmix64(&state) ^ (stream * <uint64_t>0xD1342543DE82EF95)
    rng.s0 = splitmix64(&state)
    rng.s1 = splitmix64(&state) | 1


cdef inline uint64_t rotate_left(uint64_t value, int bits) noexcept nogil:
    return (value << bits) | (value >> (64 - bits))


cdef inline uint64_t rng_next(Rng* rng) noexcept nogil:
    cdef uint64_t s0 = rng.s0
    cdef uint64_t s1 = rng.s1
    cdef uint64_t result = rotate_left(s0 + s1, 17) + s0
    s1 ^= s0
    rng.s0 = rotate_left(s0, 49) ^ s1 ^ (s1 << 21)
    rng.s1 = rotate_left(s1, 28)
    return result


cdef inline double rng_uniform(Rng* rng) noexcept nogil:
    """Evenly distributed in (0, 1)."""
    return (<double><int64_t>(rng_next(rng) >> 12) + 0.5) * 2.220446049250313e-16


cdef inline double rng_exponential(Rng* rng) noexcept nogil:
    """Exponentially distributed with mean 1."""
    return -log(rng_uniform(rng))


cdef inline void ziggurat_init(Ziggurat* table) noexcept nogil:
    cdef double tail = 3.6541528853610088      # where the base layer's tail begins
    cdef double area = 0.00492867323399        # of each layer
    cdef double density = exp(-0.5 * tail * tail)
    cdef int i
    table.x[0] = area / density
    table.x[1] = tail
    table.x[ZIGGURAT_LAYERS] = 0.0
    for i in range(2, ZIGGURAT_LAYERS):
        table.x[i] = sqrt(-2.0 * log(area / table.x[i - 1] + density))
        density = exp(-0.5 * table.x[i] * table.x[i])
    for i in range(ZIGGURAT_LAYERS):
        table.ratio[i] = table.x[i + 1] / table.x[i]


cdef inline double rng_normal_tail(Rng* rng, double start) noexcept nogil:
    cdef double x = 0.0
    cdef double y = -1.0
    while y < x * x:
        x = log(rng_uniform(rng)) / start
        y = -2.0 * log(rng_uniform(rng))
    return start - x


cdef inline double rng_normal(Rng* rng, const Ziggurat* table) noexcept nogil:
    """Normally distributed, mean 0, standard deviation 1."""
    cdef uint64_t bits
    cdef double u, x, outer, inner
    cdef int i
    while True:
        bits = rng_next(rng)
        i = <int>(bits & 255)
        u = <double>(<int64_t>bits >> 11) * 2.220446049250313e-16  # (-1, 1), from the bits above the layer's
        if fabs(u) < table.ratio[i]:
            return u * table.x[i]
        if i == 0:
            x = rng_normal_tail(rng, table.x[1])
            return -x if u < 0 else x
        x = u * table.x[i]
        # the densities at the edges of the layer, relative to that at x
        outer = exp(-0.5 * (table.x[i] * table.x[i] - x * x))
        inner = exp(-0.5 * (table.x[i + 1] * table.x[i + 1] - x * x))
        if inner + rng_uniform(rng) * (outer - inner) < 1.0:
            return x
