# Why compiled: the culture lives inside the simulated hardware, behind the loop's C interface.
# Thread rule: sampling thread.
# Units: biomass in OD600, substrate in g/L, volume in mL, time in seconds (rates per hour only in parameters).
#
# Monod growth with the lag of Baranyi and Roberts (1994) and the cardinal temperature model of Rosso et al. (1993):
#   dX/dt = mu X,  dS/dt = -mu X / Y,  mu = mu_opt gamma(T) q/(1+q) S/(K+S),  dq/dt = mu_opt gamma(T) q

from libc.math cimport exp, expm1, log, sqrt
from stirbar.rt.sim_parameters cimport (
    PARAM_ALT_MEDIA_SUBSTRATE_G_PER_L, PARAM_BIOMASS_OD, PARAM_GROWTH_RATE_MAXIMUM_PER_HOUR,
    PARAM_HALF_SATURATION_G_PER_L, PARAM_LAG_H, PARAM_MEDIA_SUBSTRATE_G_PER_L, PARAM_SUBSTRATE_G_PER_L,
    PARAM_TEMPERATURE_MAXIMUM_DEGC, PARAM_TEMPERATURE_MINIMUM_DEGC, PARAM_TEMPERATURE_OPTIMUM_DEGC,
    PARAM_VIAL_CAPACITY_ML, PARAM_VOLUME_ML, PARAM_WASTE_TUBE_ML, PARAM_YIELD_OD_PER_G_PER_L)

cdef struct Culture:
    double biomass_od
    double substrate_g_per_l
    double readiness          # ln q of the lag model; large once the lag is over
    double volume_ml
    double overflow_ml        # what ran over the rim so far


cdef inline double cardinal_temperature(double t, double low, double best, double high) noexcept nogil:
    """Growth rate at temperature t relative to that at the optimum, 0..1."""
    cdef double value
    if t <= low or t >= high or best <= low or best >= high:
        return 0.0
    value = (t - high) * (t - low) * (t - low) / (
        (best - low) * ((best - low) * (t - best) - (best - high) * (best + low - 2.0 * t)))
    return 0.0 if value < 0.0 else value


cdef inline double culture_rate_per_s(const double* p, double celsius) noexcept nogil:
    """Specific growth rate with ample substrate after the lag."""
    return p[PARAM_GROWTH_RATE_MAXIMUM_PER_HOUR] / 3600.0 * cardinal_temperature(
        celsius, p[PARAM_TEMPERATURE_MINIMUM_DEGC], p[PARAM_TEMPERATURE_OPTIMUM_DEGC],
        p[PARAM_TEMPERATURE_MAXIMUM_DEGC])


cdef inline void culture_start_lag(Culture* culture, const double* p, double celsius) noexcept nogil:
    """Begin a lag of `lag_h` at the present temperature (at the optimum where nothing grows now)."""
    cdef double rate = culture_rate_per_s(p, celsius)
    cdef double growth
    if rate <= 0.0:
        rate = p[PARAM_GROWTH_RATE_MAXIMUM_PER_HOUR] / 3600.0
    growth = rate * 3600.0 * p[PARAM_LAG_H]
    culture.readiness = 50.0 if growth <= 1e-9 else -log(expm1(growth)) if growth < 50.0 else -growth


cdef inline void culture_init(Culture* culture, const double* p, double celsius) noexcept nogil:
    culture.biomass_od = p[PARAM_BIOMASS_OD]
    culture.substrate_g_per_l = p[PARAM_SUBSTRATE_G_PER_L]
    culture.volume_ml = p[PARAM_VOLUME_ML]
    culture.overflow_ml = 0.0
    culture_start_lag(culture, p, celsius)


cdef inline void culture_grow(Culture* culture, const double* p, double celsius, double seconds) noexcept nogil:
    """Grow for a step that is short against the doubling time (a minute at most).

    Exact for exponential growth; near exhaustion the substrate follows an implicit step, which cannot become negative
    however fast the last of it is eaten. Biomass is what the substrate became, so mass is conserved.
    """
    cdef double rate = culture_rate_per_s(p, celsius)
    cdef double k = p[PARAM_HALF_SATURATION_G_PER_L]
    cdef double yield_od = p[PARAM_YIELD_OD_PER_G_PER_L]
    cdef double s = culture.substrate_g_per_l
    cdef double middle = culture.readiness + 0.5 * rate * seconds
    cdef double growth, appetite, b, left
    if s <= 0.0 or rate <= 0.0 or culture.biomass_od <= 0.0:
        return
    if culture.readiness < 50.0:
        culture.readiness += rate * seconds
        rate = rate / (1.0 + exp(-middle))
    growth = rate * seconds
    # mean biomass of the step times rate and time, as if substrate stayed: what would be eaten of an endless supply
    appetite = culture.biomass_od * expm1(growth * s / (k + s)) * (k + s) / s / yield_od
    b = k + appetite - s
    left = sqrt(b * b + 4.0 * k * s)
    left = 2.0 * k * s / (left + b) if b > 0.0 else 0.5 * (left - b)
    culture.biomass_od += yield_od * (s - left)
    culture.substrate_g_per_l = left


cdef inline void culture_exchange(
        Culture* culture, const double* p, double media_ml, double alt_media_ml, double waste_ml) noexcept nogil:
    """Add media, mix, let what is above the rim run over, and draw waste down to the end of its tube."""
    cdef double added = media_ml + alt_media_ml
    cdef double total = culture.volume_ml + added
    if added > 0.0:
        culture.biomass_od *= culture.volume_ml / total
        culture.substrate_g_per_l = (
            culture.substrate_g_per_l * culture.volume_ml + p[PARAM_MEDIA_SUBSTRATE_G_PER_L] * media_ml
            + p[PARAM_ALT_MEDIA_SUBSTRATE_G_PER_L] * alt_media_ml) / total
        culture.volume_ml = total
    if waste_ml > 0.0 and culture.volume_ml > p[PARAM_WASTE_TUBE_ML]:
        culture.volume_ml -= waste_ml
        if culture.volume_ml < p[PARAM_WASTE_TUBE_ML]:
            culture.volume_ml = p[PARAM_WASTE_TUBE_ML]
    if culture.volume_ml > p[PARAM_VIAL_CAPACITY_ML]:
        culture.overflow_ml += culture.volume_ml - p[PARAM_VIAL_CAPACITY_ML]
        culture.volume_ml = p[PARAM_VIAL_CAPACITY_ML]
