# Why compiled: what the actuator thread says about the stirrer, made where its state is.
# Thread rule: pure functions on the controller's struct; the thread that owns it calls them.
# Units: time in nanoseconds of the loop's clock, speed in rpm, duty in percent.

from libc.math cimport NAN
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.stirring cimport STIR_FAULT, STIR_OFF, STIR_REST, StirState
from stirbar.rt.tachometer cimport TachometerFit, tachometer_fit
from stirbar.rt.turns cimport TurnsSummary, turns_clear, turns_summary
from stirbar.rt.types cimport (
    FLAG_SENSOR_LOST, FLAG_STALLED, FLAG_STIRRING_OFF, RECORD_VERSION, STREAM_RPM, STREAM_TURNS, Reading)

cdef enum:
    STIR_UNKNOWN_S = 10               # without an edge for longer nobody knows that it turns (IS-14)


cdef inline bint stir_is_seen(const StirState* s, int64_t now_ns) noexcept nogil:
    """Whether the stirrer is known to turn."""
    return s.seen_ns > 0 and now_ns - s.seen_ns <= <int64_t>STIR_UNKNOWN_S * 1000000000


cdef inline uint32_t stir_flags(const StirState* s, int64_t now_ns) noexcept nogil:
    """FLAG_* of a reading made now."""
    cdef uint32_t flags = 0
    cdef int64_t since_ns = now_ns - s.command_ns
    if s.phase == STIR_OFF or s.phase == STIR_REST:
        return FLAG_STIRRING_OFF
    if s.phase == STIR_FAULT:
        flags |= FLAG_STIRRING_OFF
    if s.stalls:
        flags |= FLAG_STALLED
    # kicked, and not one edge: the sensor is silent, or the rotor is held fast
    if s.command_edges == 0 and (s.stalls or since_ns > s.stall_ns):
        flags |= FLAG_SENSOR_LOST
    return flags


cdef inline int stir_reading(StirState* s, int64_t now_ns, Reading* out) noexcept nogil:
    """1 and a reading when one is due (every report_period_s, from the first call on), else 0.

    value is the line's speed; se_instrument its standard error; se_culture the turn-to-turn standard deviation of the
    rotor itself, rpm; signal_v the duty, percent; reference_v the speed asked for now, rpm, on a ramp that of the ramp
    (NaN in open loop and when off).
    noise_bandwidth_hz is that of the slope of a line, a parabolic average of the speed: 0.6 / window.
    """
    cdef int64_t period_ns = <int64_t>(s.config.report_period_s * 1e9)
    cdef TachometerFit fit
    if period_ns <= 0:
        return 0
    if s.next_report_ns == 0:
        s.next_report_ns = now_ns + period_ns
    if now_ns < s.next_report_ns:
        return 0
    s.next_report_ns += period_ns * ((now_ns - s.next_report_ns) // period_ns + 1)
    tachometer_fit(&s.tachometer, now_ns, period_ns, &fit)
    memset(out, 0, sizeof(Reading))
    out.sequence = s.reports
    out.monotonic_ns = now_ns
    out.value = fit.rpm
    out.se_instrument = <float>fit.standard_error_rpm if fit.used else NAN
    out.se_culture = NAN
    if fit.turns > 1:
        out.se_culture = <float>(60e9 * fit.turn_sd_ns / (fit.turn_mean_ns * fit.turn_mean_ns))
    out.window_s = <float>fit.window_s
    out.noise_bandwidth_hz = <float>(0.6 / fit.window_s) if fit.window_s > 0.0 else NAN
    out.signal_v = <float>s.duty_percent
    out.reference_v = <float>s.goal_rpm if s.target_rpm > 0.0 else NAN
    out.ambient_v = NAN
    out.used = fit.used
    out.rejected = s.tachometer.bounced - s.bounced_reported
    out.flags = stir_flags(s, now_ns)
    out.stream = STREAM_RPM
    out.version = RECORD_VERSION
    s.bounced_reported = s.tachometer.bounced
    s.reports += 1
    return 1


cdef inline int stir_turns(StirState* s, int64_t now_ns, Reading* out) noexcept nogil:
    """1 and a reading of stream `turns` when a window of steady turning is over, by its time or by a new command.

    value is the standard deviation of the time of a turn, us; se_instrument the standard error of that; se_culture what
    of it is the rotor's own. signal_v is the mean turn, reference_v the shortest, ambient_v the longest, us; blank how
    unevenly the magnets sit, percent (NaN with one edge a turn); used counts turns, rejected edges bounced or lost.
    """
    cdef TurnsSummary summary
    cdef uint32_t odd
    cdef int whole
    if now_ns < s.next_turns_ns:
        return 0
    s.next_turns_ns = now_ns + <int64_t>(s.config.turns_window_s * 1e9)
    whole = turns_summary(&s.turns, &s.tachometer, &summary)
    if whole:
        odd = s.tachometer.bounced + s.tachometer.lost - s.turns.odd
        memset(out, 0, sizeof(Reading))
        out.sequence = s.turn_reports
        out.monotonic_ns = s.turns.end_ns
        out.value = summary.sd_us
        out.se_instrument = <float>summary.standard_error_us
        out.se_culture = <float>summary.rotor_sd_us
        out.window_s = <float>summary.window_s
        out.noise_bandwidth_hz = NAN
        out.signal_v = <float>summary.mean_us
        out.reference_v = <float>summary.shortest_us
        out.ambient_v = <float>summary.longest_us
        out.blank = <float>summary.asymmetry_percent
        out.used = s.turns.turns
        out.rejected = odd
        out.flags = stir_flags(s, now_ns)
        out.stream = STREAM_TURNS
        out.version = RECORD_VERSION
        s.turn_reports += 1
    turns_clear(&s.turns, &s.tachometer)
    return whole
