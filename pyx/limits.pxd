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
