# Why compiled: sensor, observer, controller and envelope of the heater, in the order of a tick.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: degrees Celsius, nanoseconds of the loop's clock; duty in percent outside, 0..1 inside.
#
# The sampling thread reads the sensor (it owns the bus); what it read arrives here as one 32-bit word.

from libc.errno cimport EBUSY, EDOM
from libc.math cimport NAN
from libc.stdint cimport int16_t, int64_t, uint16_t, uint32_t
from libc.string cimport memset

from stirbar.rt.heat_protect cimport (
    HeatProtect, heat_acknowledge, heat_lease, heat_protect, heat_protect_init)
from stirbar.rt.heat_trust cimport (
    DISTRUST_NEW, DISTRUST_NONE, HeatTrust, trust_advance, trust_init, trust_is_plausible, trust_reading,
    trust_tick)
from stirbar.rt.limits cimport HeatLimits, heat_limits_check
from stirbar.rt.liquid cimport (
    LiquidConfig, LiquidState, liquid_degc, liquid_init, liquid_measure, liquid_predict, liquid_se_degc,
    liquid_start)
from stirbar.rt.thermostat cimport (
    THERMOSTAT_HOLDS, ThermostatConfig, ThermostatState, thermostat_duty, thermostat_init, thermostat_reading,
    thermostat_stop, thermostat_target)
from stirbar.rt.types cimport (
    FLAG_SENSOR_LOST, FLAG_UNOBSERVED, RECORD_VERSION, STREAM_LIQUID, Reading)

cdef enum:
    HEAT_PREDICT_MS = 1000           # the observer's longest step: without a reading it goes on at this pace
    HEAT_UNOBSERVED_MDEGC = 500      # a larger standard error is said
    HEAT_WORD_PER_DEGC = 256         # of the word in which the sampling thread hands over a temperature

cdef struct HeatConfig:
    LiquidConfig vial
    HeatLimits limits
    ThermostatConfig control
    double band_degc                 # of trust
    double volume_ml

cdef struct HeatState:
    LiquidState liquid
    HeatTrust trust
    ThermostatState control
    HeatProtect protect
    double applied                   # 0..1, in force since observed_ns
    int64_t observed_ns              # until when the observer has gone
    int64_t read_ns                  # last reading that went into the controller
    uint32_t word                    # last of the sampling thread's


cdef inline uint32_t heat_word(uint32_t before, double celsius) noexcept nogil:
    """A reading as one word that another thread can take whole: a count, and the temperature in 1/256 degC."""
    cdef double scaled = celsius * HEAT_WORD_PER_DEGC
    if not -32768.0 <= scaled <= 32767.0:
        scaled = -32768.0            # -128 degC: nothing that a heater board can have
    return (((before >> 16) + 1) << 16) | <uint16_t><int16_t>scaled


cdef inline double heat_word_degc(uint32_t word) noexcept nogil:
    return <double><int16_t>(word & 0xFFFF) / HEAT_WORD_PER_DEGC


cdef inline int heat_init(HeatState* s, const HeatConfig* config) noexcept nogil:
    """Off; 0, or -EDOM: a limit above its ceiling or out of order, or another value outside its range."""
    cdef int status
    memset(s, 0, sizeof(HeatState))
    status = heat_limits_check(&config.limits)
    if status == 0:
        status = thermostat_init(&s.control, &config.control)
    if status == 0 and not (config.volume_ml > 0.0 and config.band_degc > 0.0 and config.vial.power_w > 0.0):
        status = -EDOM
    if status == 0:
        liquid_init(&s.liquid, &config.vial, config.volume_ml)
        trust_init(&s.trust, config.band_degc)
        heat_protect_init(&s.protect, &config.limits,
                          config.vial.power_w * (1.0 + 2.0 * config.vial.power_sd))
    return status


cdef inline int heat_target(HeatState* s, double target_degc, int64_t now_ns) noexcept nogil:
    """Hold a temperature: 0, or -EDOM and nothing changed: above the limit, or no number."""
    if not 0.0 < target_degc <= s.protect.limits.target_maximum_degc:
        return -EDOM
    thermostat_target(&s.control, target_degc, liquid_degc(&s.liquid) if s.liquid.started else target_degc)
    heat_lease(&s.protect, now_ns)
    return 0


cdef inline int heat_duty(HeatState* s, double duty_percent, int64_t now_ns) noexcept nogil:
    """A duty without a controller, below the envelope as any other: 0, or -EDOM and nothing changed."""
    if not 0.0 <= duty_percent <= s.protect.limits.duty_maximum_percent:
        return -EDOM
    thermostat_duty(&s.control, 0.01 * duty_percent)
    heat_lease(&s.protect, now_ns)
    return 0


cdef inline int heat_stop(HeatState* s) noexcept nogil:
    """Duty 0 from the next tick on. Returns 0."""
    thermostat_stop(&s.control)
    s.protect.lease_ns = 0
    return 0


cdef inline int heat_renew(HeatState* s, int64_t now_ns) noexcept nogil:
    """The host thread lives: 0, or -EBUSY while nothing is to be held."""
    if not s.control.on:
        return -EBUSY
    heat_lease(&s.protect, now_ns)
    return 0


cdef inline int heat_unlock(HeatState* s) noexcept nogil:
    """A person has acknowledged: 0, or -EBUSY while the board is still too hot."""
    return 0 if heat_acknowledge(&s.protect, s.trust.last_degc) else -EBUSY


cdef inline void heat_observe(HeatState* s, int64_t now_ns) noexcept nogil:
    """Let observer and trust go on to now with the duty that was in force."""
    cdef double seconds
    while s.observed_ns < now_ns:
        seconds = 1e-9 * <double>(now_ns - s.observed_ns)
        if seconds > 1e-3 * HEAT_PREDICT_MS:
            seconds = 1e-3 * HEAT_PREDICT_MS
        liquid_predict(&s.liquid, s.applied, seconds)
        trust_advance(&s.trust, s.applied, seconds)
        s.observed_ns += <int64_t>(1e9 * seconds + 0.5)


cdef inline void heat_reading(HeatState* s, double board_degc, int64_t now_ns) noexcept nogil:
    """A reading of the heater board's sensor."""
    if s.observed_ns == 0:
        s.observed_ns = s.read_ns = now_ns
    if not s.liquid.started and trust_is_plausible(&s.trust, board_degc, now_ns):
        liquid_start(&s.liquid, board_degc)
    heat_observe(s, now_ns)
    if not trust_reading(&s.trust, &s.liquid, board_degc, s.applied, now_ns):
        return
    if s.trust.distrust == DISTRUST_NONE or s.trust.distrust == DISTRUST_NEW:
        liquid_measure(&s.liquid, board_degc)
    thermostat_reading(&s.control, &s.liquid, s.protect.duty if s.protect.reasons else 1.0,
                       1e-9 * <double>(now_ns - s.read_ns), now_ns)
    s.read_ns = now_ns


cdef inline double heat_tick(HeatState* s, bint is_stirred, bint has_guard, int64_t now_ns) noexcept nogil:
    """The duty to write, percent. Once a control period, after the readings and commands of that tick."""
    cdef double duty
    if s.observed_ns and now_ns - s.observed_ns >= <int64_t>HEAT_PREDICT_MS * 1000000:
        heat_observe(s, now_ns)
    trust_tick(&s.trust, now_ns)
    duty = heat_protect(&s.protect, &s.trust, s.control.duty if s.control.on else 0.0, is_stirred, has_guard, now_ns)
    if duty != s.applied:
        if s.observed_ns:
            heat_observe(s, now_ns)
        s.applied = duty
    return 100.0 * duty


cdef inline void heat_fill(const HeatState* s, int64_t now_ns, Reading* reading) noexcept nogil:
    """The liquid's temperature as a reading: value and se_culture are the observer's, signal_v the duty in percent,
    reference_v the set-point, ambient_v the air's temperature as estimated."""
    cdef double se = liquid_se_degc(&s.liquid)
    memset(reading, 0, sizeof(Reading))
    reading.monotonic_ns = now_ns
    reading.value = liquid_degc(&s.liquid)
    reading.se_instrument = reading.se_culture = <float>se
    reading.window_s = reading.noise_bandwidth_hz = NAN
    reading.signal_v = <float>(100.0 * s.applied)
    reading.reference_v = <float>(s.control.setpoint_degc if s.control.on == THERMOSTAT_HOLDS else NAN)
    reading.ambient_v = <float>s.liquid.x[2]
    reading.used = 1
    reading.stream = STREAM_LIQUID
    reading.version = RECORD_VERSION
    if s.trust.distrust != DISTRUST_NONE and s.trust.distrust != DISTRUST_NEW:
        reading.flags |= FLAG_SENSOR_LOST
    if not se * 1000.0 <= HEAT_UNOBSERVED_MDEGC:
        reading.flags |= FLAG_UNOBSERVED
