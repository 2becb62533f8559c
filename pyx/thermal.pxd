# Why compiled: heater board and liquid live inside the simulated hardware, behind the loop's C interface.
# Thread rule: sampling thread.
# Units: degrees Celsius, watts, joules per kelvin, seconds; duty 0..1.
#
# Two nodes, board and liquid, each coupled to the other and to the air; the TMP1075 sits on the board.

from libc.errno cimport EREMOTEIO
from libc.math cimport NAN, floor
from stirbar.rt.rng cimport Rng, Ziggurat, rng_normal
from stirbar.rt.sim_parameters cimport (
    PARAM_AMBIENT_TEMPERATURE_DEGC, PARAM_BOARD_AMBIENT_W_PER_K, PARAM_BOARD_HEAT_CAPACITY_J_PER_K,
    PARAM_BOARD_LIQUID_W_PER_K, PARAM_HEATER_POWER_W, PARAM_LIQUID_AMBIENT_W_PER_K, PARAM_TEMPERATURE_FAULT,
    PARAM_TEMPERATURE_NOISE_DEGC, PARAM_VIAL_MISSING)

cdef enum:
    TEMPERATURE_LOST = 1
    TEMPERATURE_FROZEN = 2
    TEMPERATURE_NAN = 3
    TEMPERATURE_JUMPS = 4
    TEMPERATURE_JUMP_DEGC = 20

cdef struct Thermal:
    double board_degc
    double liquid_degc
    double shown_degc  # last answer of the sensor
    bint jumped


cdef inline void thermal_init(Thermal* thermal, const double* p) noexcept nogil:
    thermal.board_degc = p[PARAM_AMBIENT_TEMPERATURE_DEGC]
    thermal.liquid_degc = p[PARAM_AMBIENT_TEMPERATURE_DEGC]
    thermal.shown_degc = p[PARAM_AMBIENT_TEMPERATURE_DEGC]
    thermal.jumped = False


cdef inline void thermal_step(
        Thermal* thermal, const double* p, double duty, double volume_ml, double inflow_ml,
        double seconds) noexcept nogil:
    """Advance by an implicit step (stable for any length); what flows in has the temperature of the air."""
    cdef double air = p[PARAM_AMBIENT_TEMPERATURE_DEGC]
    cdef double coupling = p[PARAM_BOARD_LIQUID_W_PER_K] if p[PARAM_VIAL_MISSING] == 0.0 else 0.0
    cdef double liquid_j_per_k = 4.18 * volume_ml
    cdef double a, b, e, f
    if volume_ml > 0.0 and inflow_ml > 0.0:
        thermal.liquid_degc += (air - thermal.liquid_degc) * inflow_ml / (volume_ml + inflow_ml)
    # (C/dt + G) T = C/dt T0 + sources, two equations
    a = p[PARAM_BOARD_HEAT_CAPACITY_J_PER_K] / seconds + coupling + p[PARAM_BOARD_AMBIENT_W_PER_K]
    b = liquid_j_per_k / seconds + coupling + p[PARAM_LIQUID_AMBIENT_W_PER_K]
    e = (p[PARAM_BOARD_HEAT_CAPACITY_J_PER_K] / seconds * thermal.board_degc + p[PARAM_HEATER_POWER_W] * duty
         + p[PARAM_BOARD_AMBIENT_W_PER_K] * air)
    f = liquid_j_per_k / seconds * thermal.liquid_degc + p[PARAM_LIQUID_AMBIENT_W_PER_K] * air
    thermal.board_degc = (e * b + coupling * f) / (a * b - coupling * coupling)
    thermal.liquid_degc = (f + coupling * thermal.board_degc) / b


cdef inline int thermal_read(
        Thermal* thermal, const double* p, Rng* rng, const Ziggurat* table, double* celsius) noexcept nogil:
    """Answer as a TMP1075: the board's temperature in steps of 0.0625 degC. Returns 0 or -EREMOTEIO."""
    cdef int fault = <int>p[PARAM_TEMPERATURE_FAULT]
    if fault == TEMPERATURE_LOST:
        return -EREMOTEIO
    if fault != TEMPERATURE_FROZEN:
        thermal.shown_degc = 0.0625 * floor(
            16.0 * (thermal.board_degc + p[PARAM_TEMPERATURE_NOISE_DEGC] * rng_normal(rng, table)) + 0.5)
    celsius[0] = thermal.shown_degc
    if fault == TEMPERATURE_NAN:
        celsius[0] = NAN
    elif fault == TEMPERATURE_JUMPS:
        thermal.jumped = not thermal.jumped
        celsius[0] += TEMPERATURE_JUMP_DEGC if thermal.jumped else 0.0
    return 0
