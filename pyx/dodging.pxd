# Why compiled: the stirrer slows down and speeds up again at times that other readings are picked by.
# Thread rule: pure functions on flat structs; the actuator thread owns them.
# Units: nanoseconds of the loop's clock, rpm.
#
# The schedule is a grid of the loop's clock: it is quiet while (time mod period) < quiet. Who has a reading's
# monotonic_ns and the two settings knows its phase; nothing else need be said.

from libc.errno cimport EDOM, EINVAL
from libc.stdint cimport int64_t

from stirbar.rt.stirring cimport (
    STIR_FAULT, STIR_OFF, STIR_RPM_FLOOR, StirState, stir_duty, stir_stop, stir_switch, stir_target_rpm)

cdef enum:
    DODGE_PERIOD = 0         # parts as they are given: seconds
    DODGE_QUIET = 1          # seconds of it
    DODGE_RPM = 2            # the speed then; 0: at rest
    DODGE_ON = 3             # 1 or 0: puts them in force
    DODGE_PARTS = 3
    DODGE_PERIOD_CEILING_S = 3600
    DODGE_REST_CEILING_S = 8  # at rest for longer nobody knows that the liquid is stirred (IS-14)

cdef struct Dodging:
    int on
    int64_t period_ns
    int64_t quiet_ns
    int64_t next_ns          # when the phase ends; 0: nothing is scheduled
    double quiet_rpm
    double outside_rpm       # the target of the command; 0: off or open loop
    double given[DODGE_PARTS]


cdef inline int dodge_target(Dodging* d, StirState* s, double rpm, int64_t now_ns) noexcept nogil:
    """A target: the speed outside the quiet phase. As stir_target_rpm."""
    cdef int status = stir_target_rpm(s, rpm, now_ns)
    if status == 0:
        d.outside_rpm = rpm
        d.next_ns = now_ns if d.on and rpm > 0.0 else 0
    return status


cdef inline int dodge_duty(Dodging* d, StirState* s, double duty_percent, int64_t now_ns) noexcept nogil:
    """Open loop, which has no schedule. As stir_duty."""
    cdef int status = stir_duty(s, duty_percent, now_ns)
    if status == 0:
        d.outside_rpm = 0.0
        d.next_ns = 0
    return status


cdef inline int dodge_stop(Dodging* d, StirState* s, int64_t now_ns) noexcept nogil:
    """As stir_stop."""
    d.outside_rpm = 0.0
    d.next_ns = 0
    return stir_stop(s, now_ns)


cdef inline int dodge_give(Dodging* d, StirState* s, int part, double value, int64_t now_ns) noexcept nogil:
    """Take one part of a schedule; the last puts it in force, or ends it. 0, or -EINVAL (no such part) or -EDOM."""
    cdef double period_s = d.given[DODGE_PERIOD]
    cdef double quiet_s = d.given[DODGE_QUIET]
    cdef double rpm = d.given[DODGE_RPM]
    if not 0 <= part <= DODGE_ON:
        return -EINVAL
    if part < DODGE_ON:
        d.given[part] = value
        return 0
    if value != 0.0:
        if not (1.0 <= quiet_s <= period_s - 1.0 and period_s <= DODGE_PERIOD_CEILING_S):
            return -EDOM
        if not (rpm == 0.0 and quiet_s <= DODGE_REST_CEILING_S or STIR_RPM_FLOOR <= rpm <= s.config.rpm_maximum):
            return -EDOM
        d.period_ns = <int64_t>(1e9 * period_s)
        d.quiet_ns = <int64_t>(1e9 * quiet_s)
        d.quiet_rpm = rpm
    d.on = value != 0.0
    d.next_ns = 0
    if d.outside_rpm > 0.0:
        if d.on:
            d.next_ns = now_ns
        elif s.phase != STIR_OFF and s.phase != STIR_FAULT:
            stir_switch(s, d.outside_rpm, now_ns)
    return 0


cdef inline void dodge_tick(Dodging* d, StirState* s, int64_t now_ns) noexcept nogil:
    """Before each control tick: change the speed where a phase has begun. A fault ends the schedule."""
    cdef int64_t phase_ns
    cdef bint quiet
    if d.next_ns == 0 or now_ns < d.next_ns:
        return
    if s.phase == STIR_FAULT:
        d.next_ns = 0
        return
    phase_ns = now_ns % d.period_ns
    quiet = phase_ns < d.quiet_ns
    d.next_ns = now_ns - phase_ns + (d.quiet_ns if quiet else d.period_ns)
    stir_switch(s, d.quiet_rpm if quiet else d.outside_rpm, now_ns)
