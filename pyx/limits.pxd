# Why compiled: what no profile, no config and no command can exceed; what every controller's output is held to.
# Thread rule: Limits are filled before the loop runs, and read-only from then on.
# Units: percent of duty, degrees Celsius, seconds, millilitres, joules.
#
# A ceiling is absolute: profile and config can only lower it (IS-13). Constants carry their unit in the name.

from libc.errno cimport EDOM

cdef enum:
    HEATER_DUTY_CEILING_PERCENT = 100
    TEMPERATURE_TARGET_CEILING_DEGC = 70   # of the liquid
    TEMPERATURE_REDUCE_CEILING_DEGC = 78   # tiers of the heater board: those of the field's most permissive vials
    TEMPERATURE_DISABLE_CEILING_DEGC = 80
    TEMPERATURE_SHUTDOWN_CEILING_DEGC = 85
    HEATER_LEASE_CEILING_MS = 5000         # renewed by the host thread at least so often
    HEATER_ENERGY_WINDOW_S = 1800
    HEATER_POWER_CEILING_W = 50
    PUMP_ON_CEILING_S = 60                 # without a pause; the guard's own copy: PUMP_ON_CEILING_MS of guard.c
    PUMP_LEASE_CEILING_MS = 5000           # of a pump that runs until somebody stops it
    VOLUME_CEILING_ML = 1000
    SUBDOSE_CEILING_ML = 100
    LED_INTENSITY_CEILING_PERCENT = 100
    LED_LEASE_S = 60                       # renewed by the host thread at least so often

# What the heater may do on this vial.
cdef struct HeatLimits:
    double duty_maximum_percent
    double target_maximum_degc
    double reduce_degc            # above it the duty falls in a straight line,
    double disable_degc           # to 0 here
    double shutdown_degc          # here the heater stays off until a person has acknowledged it
    double blind_duty_percent     # without a trusted sensor: its equilibrium is below reduce_degc
    double blind_s                # for so long, then 0
    double energy_maximum_j       # in any HEATER_ENERGY_WINDOW_S, whatever the sensor says
    double lease_s


cdef inline int heat_limits_check(const HeatLimits* limits) noexcept nogil:
    """0, or -EDOM: a limit is no number, above its ceiling, or not in the order reduce < disable < shutdown."""
    if not 0.0 <= limits.duty_maximum_percent <= HEATER_DUTY_CEILING_PERCENT:
        return -EDOM
    if not 0.0 < limits.reduce_degc <= TEMPERATURE_REDUCE_CEILING_DEGC:
        return -EDOM
    if not limits.reduce_degc < limits.disable_degc <= TEMPERATURE_DISABLE_CEILING_DEGC:
        return -EDOM
    if not limits.disable_degc < limits.shutdown_degc <= TEMPERATURE_SHUTDOWN_CEILING_DEGC:
        return -EDOM
    if not 0.0 < limits.target_maximum_degc <= TEMPERATURE_TARGET_CEILING_DEGC:
        return -EDOM
    if not limits.target_maximum_degc <= limits.reduce_degc:
        return -EDOM
    if not 0.0 <= limits.blind_duty_percent <= limits.duty_maximum_percent or not 0.0 <= limits.blind_s <= 600.0:
        return -EDOM
    if not 0.0 <= limits.energy_maximum_j <= HEATER_POWER_CEILING_W * HEATER_ENERGY_WINDOW_S:
        return -EDOM
    if not 0.1 <= limits.lease_s * 1000.0 <= HEATER_LEASE_CEILING_MS:
        return -EDOM
    return 0


# What the pumps may do on this vial.
cdef struct DoseLimits:
    double volume_maximum_ml      # the vial's fill, whatever comes in
    double volume_minimum_ml      # taken out no further than this
    double subdose_maximum_ml     # comes in at once, before the waste pump runs again
    double unseen_maximum_ml      # comes in without evidence of the level; 0: an overflow needs no pump
    double on_maximum_s           # of a pump at a time
    double interval_s             # between the end of one inflow and the beginning of the next, at least
    double lease_s                # of a pump that runs until somebody stops it


cdef inline int dose_limits_check(const DoseLimits* limits) noexcept nogil:
    """0, or -EDOM: a limit is no number, above its ceiling, or floor and ceiling are out of order."""
    if not 0.0 < limits.volume_maximum_ml <= VOLUME_CEILING_ML:
        return -EDOM
    if not 0.0 <= limits.volume_minimum_ml < limits.volume_maximum_ml:
        return -EDOM
    if not 0.0 < limits.subdose_maximum_ml <= SUBDOSE_CEILING_ML or not limits.unseen_maximum_ml >= 0.0:
        return -EDOM
    if not 0.0 < limits.on_maximum_s <= PUMP_ON_CEILING_S or not 0.0 <= limits.interval_s <= 86400.0:
        return -EDOM
    if not 100.0 <= limits.lease_s * 1000.0 <= PUMP_LEASE_CEILING_MS:
        return -EDOM
    return 0
