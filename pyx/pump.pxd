# Why compiled: the pumps live inside the simulated hardware, behind the loop's C interface.
# Thread rule: actuator thread; what they delivered crosses to the sampling thread as wrapping 32-bit nanolitre counts.
# Units: mL/s, nanolitres, seconds since the start of the simulation.

from libc.errno cimport EINVAL
from libc.math cimport exp, floor
from libc.stdint cimport int64_t, uint32_t
from stirbar.rt.rng cimport Rng, Ziggurat, rng_normal
from stirbar.rt.sim_parameters cimport PARAM_MEDIA_PUMP_EFFICIENCY_PERCENT, PARAM_PUMP_SPREAD_PERCENT

cdef enum:
    PUMP_MEDIA = 0
    PUMP_ALT_MEDIA = 1
    PUMP_WASTE = 2
    PUMPS = 3

cdef struct Pumps:
    double time_s
    double calibrated_ml_per_s[PUMPS]  # what the caller believes
    double deviation[PUMPS]            # standard normal, drawn from the seed
    double rest_nl[PUMPS]              # delivered, but not a whole nanolitre yet
    uint32_t delivered_nl[PUMPS]       # wraps


cdef inline void pumps_init(Pumps* pumps, Rng* rng, const Ziggurat* table) noexcept nogil:
    cdef int i
    pumps.time_s = 0.0
    for i in range(PUMPS):
        pumps.calibrated_ml_per_s[i] = 0.0
        pumps.rest_nl[i] = 0.0
        pumps.delivered_nl[i] = 0
        pumps.deviation[i] = rng_normal(rng, table)


cdef inline void pumps_advance(Pumps* pumps, const double* p, double time_s) noexcept nogil:
    """Deliver until `time_s`: calibration, times this pump's true factor, times its efficiency (0: blocked)."""
    cdef double seconds = time_s - pumps.time_s
    cdef double whole
    cdef int i
    if seconds <= 0.0:
        return
    pumps.time_s = time_s
    for i in range(PUMPS):
        if pumps.calibrated_ml_per_s[i] > 0.0:
            pumps.rest_nl[i] += (
                1e6 * seconds * pumps.calibrated_ml_per_s[i]
                * exp(0.01 * p[PARAM_PUMP_SPREAD_PERCENT] * pumps.deviation[i])
                * 0.01 * p[PARAM_MEDIA_PUMP_EFFICIENCY_PERCENT + i])
            whole = floor(pumps.rest_nl[i])
            pumps.rest_nl[i] -= whole
            pumps.delivered_nl[i] += <uint32_t><int64_t>whole


cdef inline int pumps_set(Pumps* pumps, const double* p, int pump, double ml_per_s, double time_s) noexcept nogil:
    """Run a pump at a calibrated flow from `time_s` on; 0 stops it. Returns 0 or -EINVAL."""
    if pump < 0 or pump >= PUMPS or not 0.0 <= ml_per_s <= 100.0:
        return -EINVAL
    pumps_advance(pumps, p, time_s)
    pumps.calibrated_ml_per_s[pump] = ml_per_s
    return 0
