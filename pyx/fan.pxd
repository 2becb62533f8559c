# Why compiled: the stirring fan lives inside the simulated hardware, behind the loop's C interface.
# Thread rule: actuator thread; speed and phase cross to the sampling thread through 32-bit values (sim.pxd).
# Units: rpm, duty in percent, angle in turns, seconds since the start of the simulation; stamps in ns, loop's clock.
#
# In units of speed: tau dn/dt = F (duty - run)/100 - n - n^2/D, with the drive F at full duty, the running friction as
# a duty and the liquid's quadratic drag D; at rest nothing moves below the higher duty of static friction.

from libc.errno cimport EINVAL
from libc.math cimport exp, floor, sqrt
from libc.stdint cimport int64_t, uint32_t, uint64_t
from stirbar.rt.rng cimport Rng, Ziggurat, rng_normal, rng_seed
from stirbar.rt.sim_parameters cimport (
    PARAM_EDGE_JITTER_US, PARAM_EDGE_LATENCY_US, PARAM_FAN_DRAG_RPM, PARAM_FAN_FULL_SPEED_RPM,
    PARAM_FAN_PULSES_PER_TURN, PARAM_FAN_RUN_DUTY_PERCENT, PARAM_FAN_SPREAD_PERCENT, PARAM_FAN_STALLED,
    PARAM_FAN_START_DUTY_PERCENT, PARAM_FAN_TIME_CONSTANT_S, PARAM_FAN_VARIATION_PERCENT, PARAM_FAN_VARIATION_TIME_S,
    PARAM_STIR_BAR_MISSING, PARAM_TACHOMETER_SILENT)

cdef enum:
    EDGE_QUEUE = 64   # stamps the kernel holds for the reader; later ones are lost

cdef struct Fan:
    double time_s
    double duty_percent
    double speed_rpm
    double angle_turn        # 0..1
    double load              # standard normal, Ornstein-Uhlenbeck
    double deviation         # of this unit's drive, standard normal
    double load_due_s        # when the load changes next
    double load_keep         # of the load from change to change, and the share of new noise
    double load_kick
    double load_time_s       # the correlation time these two were made for
    int64_t start_ns
    int64_t edge_ns[EDGE_QUEUE]
    uint32_t edges_written
    uint32_t edges_taken
    uint32_t edges_lost
    Rng rng


cdef inline double fan_step_s() noexcept nogil:
    return 0.0025


cdef inline void fan_init(
        Fan* fan, uint64_t seed, uint64_t stream, const Ziggurat* table, int64_t start_ns) noexcept nogil:
    rng_seed(&fan.rng, seed, stream)
    fan.time_s = 0.0
    fan.duty_percent = 0.0
    fan.speed_rpm = 0.0
    fan.angle_turn = 0.5
    fan.load = rng_normal(&fan.rng, table)
    fan.deviation = rng_normal(&fan.rng, table)
    fan.load_due_s = 0.0
    fan.load_time_s = 0.0
    fan.start_ns = start_ns
    fan.edges_written = 0
    fan.edges_taken = 0
    fan.edges_lost = 0


cdef inline void fan_edge(Fan* fan, const double* p, const Ziggurat* table, double time_s) noexcept nogil:
    cdef double delay_us = p[PARAM_EDGE_LATENCY_US] + p[PARAM_EDGE_JITTER_US] * rng_normal(&fan.rng, table)
    if p[PARAM_TACHOMETER_SILENT] != 0.0:
        return
    if fan.edges_written - fan.edges_taken >= EDGE_QUEUE:
        fan.edges_lost += 1
        return
    fan.edge_ns[fan.edges_written % EDGE_QUEUE] = fan.start_ns + <int64_t>(
        1e9 * time_s + 1e3 * (delay_us if delay_us > 0.0 else 0.0))
    fan.edges_written += 1


cdef inline double fan_acceleration(const double* p, double drive_rpm, double load, double speed_rpm) noexcept nogil:
    cdef double drag_rpm = speed_rpm * speed_rpm / p[PARAM_FAN_DRAG_RPM] if p[PARAM_STIR_BAR_MISSING] == 0.0 else 0.0
    return (drive_rpm - speed_rpm * (1.0 + 0.01 * p[PARAM_FAN_VARIATION_PERCENT] * load)
            - drag_rpm) / p[PARAM_FAN_TIME_CONSTANT_S]


cdef inline void fan_step(Fan* fan, const double* p, const Ziggurat* table, double seconds) noexcept nogil:
    """One step of at most fan_step_s(): midpoint rule, edges at their interpolated times."""
    cdef double full = p[PARAM_FAN_FULL_SPEED_RPM] * exp(0.01 * p[PARAM_FAN_SPREAD_PERCENT] * fan.deviation)
    cdef double before = fan.speed_rpm
    cdef double drive, after, pulses, position, moved, next_edge
    cdef double threshold = p[PARAM_FAN_RUN_DUTY_PERCENT]
    if before <= 0.0 and p[PARAM_FAN_START_DUTY_PERCENT] > threshold:
        threshold = p[PARAM_FAN_START_DUTY_PERCENT]
    if fan.time_s >= fan.load_due_s:
        fan.load = fan.load_keep * fan.load + fan.load_kick * rng_normal(&fan.rng, table)
        fan.load_due_s += fan_step_s()
    if p[PARAM_FAN_STALLED] != 0.0 or (before <= 0.0 and fan.duty_percent <= threshold):
        after = 0.0
        before = 0.0
    else:
        drive = 0.01 * full * (fan.duty_percent - p[PARAM_FAN_RUN_DUTY_PERCENT])
        after = before + 0.5 * seconds * fan_acceleration(p, drive, fan.load, before)
        after = before + seconds * fan_acceleration(p, drive, fan.load, after)
        if after < 0.0:
            after = 0.0
    moved = 0.5 * (before + after) / 60.0 * seconds
    if moved > 0.0:
        pulses = floor(p[PARAM_FAN_PULSES_PER_TURN])
        position = fan.angle_turn * pulses
        next_edge = floor(position) + 1.0
        while next_edge <= position + moved * pulses:
            fan_edge(fan, p, table, fan.time_s + seconds * (next_edge - position) / (moved * pulses))
            next_edge += 1.0
        fan.angle_turn += moved
        fan.angle_turn -= floor(fan.angle_turn)
    fan.speed_rpm = after
    fan.time_s += seconds


cdef inline void fan_advance(Fan* fan, const double* p, const Ziggurat* table, double time_s) noexcept nogil:
    """Run until `time_s`. After a long absence only the last minute is run: the queue had overflowed before it."""
    cdef double step = fan_step_s()
    if fan.load_time_s != p[PARAM_FAN_VARIATION_TIME_S]:
        fan.load_time_s = p[PARAM_FAN_VARIATION_TIME_S]
        fan.load_keep = exp(-step / fan.load_time_s)
        fan.load_kick = sqrt(1.0 - fan.load_keep * fan.load_keep)
    if time_s - fan.time_s > 60.0:
        fan.time_s = time_s - 60.0
        fan.load_due_s = fan.time_s
    while fan.time_s + step <= time_s:
        fan_step(fan, p, table, step)
    if fan.time_s < time_s:
        fan_step(fan, p, table, time_s - fan.time_s)


cdef inline int fan_write(Fan* fan, const double* p, const Ziggurat* table, double duty, double time_s) noexcept nogil:
    """Set the duty from `time_s` on. Returns 0 or -EINVAL."""
    if not 0.0 <= duty <= 100.0:
        return -EINVAL
    fan_advance(fan, p, table, time_s)
    fan.duty_percent = duty
    return 0


cdef inline int fan_edges(Fan* fan, int64_t now_ns, int64_t* stamps_ns, int room) noexcept nogil:
    """Take the edges stamped until now, in order; returns how many."""
    cdef int count = 0
    while count < room and fan.edges_taken != fan.edges_written:
        if fan.edge_ns[fan.edges_taken % EDGE_QUEUE] > now_ns:
            break
        stamps_ns[count] = fan.edge_ns[fan.edges_taken % EDGE_QUEUE]
        fan.edges_taken += 1
        count += 1
    return count
