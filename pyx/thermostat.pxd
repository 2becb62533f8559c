# Why compiled: the heater's duty is worked out at each reading of its sensor, whatever Python is doing.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: degrees Celsius, nanoseconds of the loop's clock, seconds; duty 0..1, gains in duty per kelvin.

from libc.errno cimport EDOM
from libc.math cimport fabs
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from stirbar.rt.liquid cimport LiquidState, liquid_degc, liquid_hold_duty, liquid_se_degc

cdef enum:
    DITHER_PERIOD_LOW_S = 120        # a step must be seen for a minute (heat_trust.pxd)
    DITHER_PERIOD_HIGH_S = 1200

cdef enum:
    THERMOSTAT_OFF = 0
    THERMOSTAT_HOLDS = 1             # a temperature
    THERMOSTAT_OPEN = 2              # a duty that somebody chose

cdef extern from *:
    """
    #ifndef STIRBAR_THERMOSTAT
    #define STIRBAR_THERMOSTAT
    #define STIRBAR_DITHER_NEAR_DEGC 0.5     /* of the target: further away the approach itself tells enough */
    #define STIRBAR_DITHER_SURE_DEGC 0.35    /* standard error up to which the dither is as configured, */
    #define STIRBAR_DITHER_UNSURE_DEGC 0.6   /* and from which on it is three times that */
    #define STIRBAR_DITHER_MOST 3.0
    #define STIRBAR_THERMOSTAT_STEP_S 5.0    /* a reading that comes later counts as this */
    #endif
    """
    const double DITHER_NEAR_DEGC "STIRBAR_DITHER_NEAR_DEGC"
    const double DITHER_SURE_DEGC "STIRBAR_DITHER_SURE_DEGC"
    const double DITHER_UNSURE_DEGC "STIRBAR_DITHER_UNSURE_DEGC"
    const double DITHER_MOST "STIRBAR_DITHER_MOST"
    const double THERMOSTAT_STEP_S "STIRBAR_THERMOSTAT_STEP_S"

cdef struct ThermostatConfig:
    double kp                    # duty per kelvin
    double ki                    # duty per kelvin and second
    double ramp_degc_per_min     # of the set-point; 0: at once
    double dither                # share of the duty
    double dither_period_s

cdef struct ThermostatState:
    ThermostatConfig config
    double target_degc
    double setpoint_degc         # on its way to the target
    double integral              # duty
    double duty                  # 0..1, what the last reading asks for
    int64_t dither_ns            # the present half of the dither began
    int32_t dither_sign
    int32_t on                   # THERMOSTAT_*


cdef inline int thermostat_check(const ThermostatConfig* c) noexcept nogil:
    """0, or -EDOM when a field is not a number or is outside its range."""
    if not (0.0 <= c.kp <= 10.0 and 0.0 <= c.ki <= 0.1 and 0.0 <= c.ramp_degc_per_min <= 100.0):
        return -EDOM
    if not (0.0 <= c.dither <= 0.3 and DITHER_PERIOD_LOW_S <= c.dither_period_s <= DITHER_PERIOD_HIGH_S):
        return -EDOM
    return 0


cdef inline void thermostat_stop(ThermostatState* s) noexcept nogil:
    s.on = THERMOSTAT_OFF
    s.duty = 0.0
    s.integral = 0.0


cdef inline void thermostat_duty(ThermostatState* s, double duty) noexcept nogil:
    """A duty, 0..1, without a controller."""
    s.on = THERMOSTAT_OPEN
    s.integral = 0.0
    s.duty = duty


cdef inline void thermostat_target(ThermostatState* s, double target_degc, double liquid_now_degc) noexcept nogil:
    """Hold a temperature; a new target is approached from where the set-point is, a first one from the liquid's."""
    if s.on != THERMOSTAT_HOLDS:
        s.setpoint_degc = liquid_now_degc
        s.integral = 0.0
        s.dither_sign = 1
    s.target_degc = target_degc
    s.on = THERMOSTAT_HOLDS


cdef inline void thermostat_ramp(ThermostatState* s, double seconds) noexcept nogil:
    cdef double most = s.config.ramp_degc_per_min / 60.0 * seconds
    cdef double left = s.target_degc - s.setpoint_degc
    if s.config.ramp_degc_per_min == 0.0 or fabs(left) <= most:
        s.setpoint_degc = s.target_degc
    else:
        s.setpoint_degc += most if left > 0.0 else -most


cdef inline double thermostat_dither(ThermostatState* s, double se_degc, int64_t now_ns) noexcept nogil:
    """The factor of the duty now: a small square wave, larger while the liquid's temperature is badly known (IS-33).

    Its mean is 1, so that it moves the board by tenths of a degree and the liquid by hundredths."""
    cdef double size = 1.0
    if now_ns - s.dither_ns >= <int64_t>(0.5e9 * s.config.dither_period_s):
        s.dither_ns = now_ns
        s.dither_sign = -s.dither_sign
    if se_degc >= DITHER_UNSURE_DEGC:
        size = DITHER_MOST
    elif se_degc > DITHER_SURE_DEGC:
        size += (DITHER_MOST - 1.0) * (se_degc - DITHER_SURE_DEGC) / (DITHER_UNSURE_DEGC - DITHER_SURE_DEGC)
    return 1.0 + s.dither_sign * s.config.dither * size


cdef inline void thermostat_reading(
    ThermostatState* s, const LiquidState* liquid, double limit, double seconds, int64_t now_ns
) noexcept nogil:
    """After each reading of the sensor: PI on the liquid's estimated temperature, around the duty that holds the
    set-point. `limit` is the largest duty that the envelope gave last: beyond it nothing is integrated."""
    cdef double error, wanted, integral
    if s.on != THERMOSTAT_HOLDS:
        return
    if seconds > THERMOSTAT_STEP_S:
        seconds = THERMOSTAT_STEP_S
    thermostat_ramp(s, seconds)
    error = s.setpoint_degc - liquid_degc(liquid)
    integral = s.integral + s.config.ki * error * seconds
    wanted = liquid_hold_duty(liquid, s.setpoint_degc) + s.config.kp * error + integral
    if (wanted < limit or error < 0.0) and (wanted > 0.0 or error > 0.0):
        s.integral = integral
    if fabs(error) < DITHER_NEAR_DEGC and s.setpoint_degc == s.target_degc:
        wanted *= thermostat_dither(s, liquid_se_degc(liquid), now_ns)
    s.duty = 0.0 if not wanted > 0.0 else (1.0 if wanted > 1.0 else wanted)


cdef inline int thermostat_init(ThermostatState* s, const ThermostatConfig* config) noexcept nogil:
    """Off; 0, or -EDOM when the configuration is outside its range."""
    memset(s, 0, sizeof(ThermostatState))
    s.config = config[0]
    s.dither_sign = 1
    return thermostat_check(config)
