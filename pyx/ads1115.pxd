# Why compiled: one conversion is made for each of 860 reads a second and channel.
# Thread rule: sampling thread.
# Units: volts, seconds since the start of the simulation, Hz; codes are 16 bits, left-justified.

from libc.errno cimport EINVAL
from libc.math cimport ceil, fabs, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from stirbar.rt.rng cimport Rng, Ziggurat, rng_next, rng_normal, rng_seed
from stirbar.rt.sim_parameters cimport (
    PARAM_ADC_GAIN_SPREAD_PERCENT, PARAM_ADC_NOISE_FACTOR, PARAM_ADC_OFFSET_SPREAD_LSB,
    PARAM_OSCILLATOR_DRIFT_PPM_PER_DEGC, PARAM_OSCILLATOR_ERROR_PERCENT, PARAM_OSCILLATOR_SPREAD_PERCENT)

cdef extern from *:
    """
    #ifndef STIRBAR_ADS1115_NOISE
    #define STIRBAR_ADS1115_NOISE
    /* Peak-to-peak noise in microvolts at 3.3 V; full scale 6.144, 4.096, 2.048, 1.024, 0.512, 0.256 V. */
    static const double ads1115_full_scale_v[6] = {6.144, 4.096, 2.048, 1.024, 0.512, 0.256};
    static const double ads1115_noise_rate_hz[3] = {250.0, 475.0, 860.0};
    static const double ads1115_noise_uv[3][6] = {
        {252.1, 148.3, 84.0, 39.5, 16.1, 18.5},
        {266.9, 227.4, 79.1, 56.8, 32.1, 26.0},
        {430.1, 266.9, 118.6, 64.3, 40.2, 35.8}};
    static const double ads1115_rate_hz[8] = {8.0, 16.0, 32.0, 64.0, 128.0, 250.0, 475.0, 860.0};
    #endif
    """
    const double ads1115_full_scale_v[6]
    const double ads1115_noise_rate_hz[3]
    const double ads1115_noise_uv[3][6]
    const double ads1115_rate_hz[8]

cdef enum:
    ADC_LOST = 1
    ADC_GARBAGE = 2
    ADC_STUCK = 3

cdef struct Ads1115:
    uint8_t running
    double nominal_hz
    double lsb_v
    double period_s
    double next_s           # end of the conversion that is under way
    uint32_t index          # its number
    double table_noise_v    # standard deviation, from the data sheet
    double noise_v2         # variance in force
    double codes_per_v      # with this range's gain error
    double offset_lsb       # plus half a code, for the rounding
    double rate_deviation   # -1..1, drawn from the seed
    double gain_deviation   # standard normal, drawn from the seed for each range
    double offset_deviation
    double next_full_scale_v  # of the conversions that end after range_after_s; 0: no other than now
    double range_after_s
    int32_t last_code
    uint64_t seed
    Rng rng


cdef inline void ads1115_init(Ads1115* adc, uint64_t seed, uint64_t stream, const Ziggurat* table) noexcept nogil:
    rng_seed(&adc.rng, seed, stream)
    adc.running = 0
    adc.rate_deviation = <double><int64_t>rng_next(&adc.rng) / 9223372036854775808.0
    adc.offset_deviation = rng_normal(&adc.rng, table)
    adc.seed = rng_next(&adc.rng)
    adc.next_full_scale_v = 0.0
    adc.last_code = 0


cdef inline double ads1115_noise_v(double full_scale_v, double rate_hz) noexcept nogil:
    """Standard deviation of a conversion: peak-to-peak of the data sheet / 6.6; below 250/s as the root of the rate,
    because the sheet shows only its 1 LSB there. A negative number for a range or rate that the chip does not have."""
    cdef int column = -1
    cdef int known = 0
    cdef int i
    for i in range(6):
        if fabs(ads1115_full_scale_v[i] - full_scale_v) < 1e-6:
            column = i
    for i in range(8):
        if fabs(ads1115_rate_hz[i] - rate_hz) < 1e-6:
            known = 1
    if column < 0 or not known:
        return -1.0
    for i in range(3):
        if rate_hz == ads1115_noise_rate_hz[i]:
            return 1e-6 * ads1115_noise_uv[i][column] / 6.6
    return 1e-6 * ads1115_noise_uv[0][column] / 6.6 * sqrt(rate_hz / 250.0)


cdef inline void ads1115_tune(Ads1115* adc, const double* p, double board_degc) noexcept nogil:
    """Take over parameters and temperature; conversions keep their place, the one under way keeps its end."""
    cdef double deviation = adc.gain_deviation
    adc.period_s = 1.0 / (adc.nominal_hz * (
        1.0 + 0.01 * (p[PARAM_OSCILLATOR_ERROR_PERCENT] + p[PARAM_OSCILLATOR_SPREAD_PERCENT] * adc.rate_deviation)
        + 1e-6 * p[PARAM_OSCILLATOR_DRIFT_PPM_PER_DEGC] * (board_degc - 25.0)))
    adc.noise_v2 = adc.table_noise_v * adc.table_noise_v * p[PARAM_ADC_NOISE_FACTOR] * p[PARAM_ADC_NOISE_FACTOR]
    adc.codes_per_v = (1.0 + 0.01 * p[PARAM_ADC_GAIN_SPREAD_PERCENT] * deviation) / adc.lsb_v
    adc.offset_lsb = p[PARAM_ADC_OFFSET_SPREAD_LSB] * adc.offset_deviation + 32768.5


cdef inline int ads1115_range(
        Ads1115* adc, const double* p, const Ziggurat* table, double full_scale_v, double rate_hz,
        double board_degc) noexcept nogil:
    """Set range and rate; 0, or -EINVAL where the chip has no such. The gain error belongs to the range: the same range
    has the same one each time."""
    cdef double noise = ads1115_noise_v(full_scale_v, rate_hz)
    cdef Rng range_rng
    if noise < 0.0:
        return -EINVAL
    rng_seed(&range_rng, adc.seed, <uint64_t>(1000.0 * full_scale_v + 0.5))
    adc.gain_deviation = rng_normal(&range_rng, table)
    adc.nominal_hz = rate_hz
    adc.lsb_v = full_scale_v / 32768.0
    adc.table_noise_v = noise
    adc.next_full_scale_v = 0.0
    ads1115_tune(adc, p, board_degc)
    return 0


cdef inline int ads1115_start(
        Ads1115* adc, const double* p, const Ziggurat* table, double full_scale_v, double rate_hz, double board_degc,
        double time_s) noexcept nogil:
    """Start continuous conversion; the first result comes one period and the wake-up time of 25 us later.

    Returns 0, or -EINVAL for a range or rate that the chip does not have.
    """
    cdef int status = ads1115_range(adc, p, table, full_scale_v, rate_hz, board_degc)
    if status:
        return status
    adc.index = 0
    adc.running = 1
    adc.next_s = time_s + 25e-6 + adc.period_s
    return 0


cdef inline void ads1115_range_next(Ads1115* adc, double full_scale_v, double time_s) noexcept nogil:
    """Another range from the conversion after the one that is under way at a moment."""
    adc.next_full_scale_v = full_scale_v
    adc.range_after_s = adc.next_s
    if time_s > adc.next_s:
        adc.range_after_s += ceil((time_s - adc.next_s) / adc.period_s) * adc.period_s


cdef inline void ads1115_convert(Ads1115* adc, double time_s) noexcept nogil:
    """Begin a single conversion: the result is there one period and the wake-up time of 25 us later."""
    adc.next_s = time_s + 25e-6 + adc.period_s


cdef inline int32_t ads1115_code(const Ads1115* adc, double v, uint8_t* clipped) noexcept nogil:
    """Quantise, and clip at the converter's limits."""
    cdef double shifted = v * adc.codes_per_v + adc.offset_lsb
    clipped[0] = 0
    if shifted >= 65535.0:
        clipped[0] = 1
        return 32767
    if shifted < 1.0:
        clipped[0] = 1
        return -32768
    return <int32_t>shifted - 32768
