# Why compiled: the fan's controller runs on every edge and every control tick of the actuator thread.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: time in nanoseconds of the loop's clock, duty in percent 0..100, speed in rpm, gains in percent per rpm.

from libc.errno cimport EDOM, EINVAL
from libc.math cimport NAN, fabs, isfinite
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from stirbar.rt.feed_forward cimport FORWARD_LINE, FeedForward, forward_give, forward_line, forward_percent
from stirbar.rt.tachometer cimport (
    Tachometer, tachometer_edge, tachometer_expect_change, tachometer_init, tachometer_is_late, tachometer_restart,
    tachometer_turn_rpm)
from stirbar.rt.turns cimport Turns, turns_edge
from stirbar.rt.types cimport EVENT_STIR_FAULT, EVENT_STIR_KICK, EVENT_STIR_RUNNING, EVENT_STIR_STALL

# The envelope: compiled in, lowered by config, raised by nothing.
cdef enum:
    STIR_DUTY_CEILING_PERCENT = 100
    STIR_RPM_CEILING = 3000
    STIR_RPM_FLOOR = 60               # the slowest target: below it a stall takes more than 3 s to see
    STIR_KICK_CEILING_MS = 500
    STIR_RAMP_CEILING = 10000         # rpm per second
    STIR_RETRIES_CEILING = 10

cdef enum:
    STIR_SLEW_PERCENT_PER_S = 150     # the stir bar falls out of the magnets' hold when the drive jumps
    STIR_KICK_MINIMUM_MS = 30         # an edge before this may be the rotor rocking on its magnet
    STIR_LAG_MS = 400                 # of a usual fan: how long the first kick takes to reach the target
    STIR_FLOOR_PERCENT = 70           # of the feed-forward offset: braking harder than this stops the rotor
    STIR_STALL_BOOST_PERCENT = 2      # a stall says that feed-forward is too low by about this
    STIR_UPDATE_MINIMUM_MS = 50       # at most 20 updates a second (IS-34)
    STIR_STEP_MAXIMUM_MS = 100        # a later tick counts as this much for the slew
    STIR_RAMP_START_RPM = 200         # from rest a ramp begins here: slower, a kicked rotor stops again
    STIR_REFERENCE_MS = 250           # time constant of the speed that PI is asked for, from where the rotor is
    STIR_LOOP_MS = 300                # closed-loop time constant that the default gains aim at
    STIR_TURN_MS = 120                # turn time that the gains are for; slower turns are a longer dead time
    STIR_STALL_MINIMUM_MS = 500
    STIR_STALL_TURNS = 3
    STIR_FORGET_MS = 5000             # turning for this long forgives earlier stalls
    STIR_REACHED_PERCENT = 2          # EVENT_STIR_RUNNING: this close to the target
    STIR_REACHED_TURNS = 3            # for so many updates in a row

cdef enum StirPhase:
    STIR_OFF = 0
    STIR_START = 1                    # the next tick kicks
    STIR_KICK = 2
    STIR_RUN = 3
    STIR_FAULT = 4                    # duty 0 until a new command
    STIR_REST = 5                     # duty 0 until the schedule goes on (dodging.pxd)

cdef struct StirConfig:
    int pulses_per_turn
    int use_rpm                       # 0: targets are met by feed-forward alone, and nothing stalls
    int stall_retries                 # kicks after the first before the fault
    double kp                         # percent per rpm, at 500 rpm and above
    double ki                         # percent per rpm and second, at 500 rpm and above
    double kd                         # percent per rpm/s, on the measured speed
    double feed_forward_offset_percent
    double feed_forward_percent_per_rpm
    double duty_maximum_percent
    double kick_duty_percent
    double kick_s
    double rpm_maximum
    double ramp_rpm_per_s             # how fast the speed asked for moves to the target; 0: at once
    double report_period_s
    double turns_window_s             # how long turns are gathered for their statistics

cdef struct StirState:
    StirConfig config
    Tachometer tachometer
    FeedForward forward
    Turns turns                       # of steady turning
    uint64_t turn_reports             # readings of them given so far
    int64_t next_turns_ns             # when the next is due
    uint64_t reports                  # readings given so far
    int64_t tick_ns                   # the last control tick
    int64_t update_ns                 # the last PI update
    int64_t command_ns                # the command that is obeyed
    int64_t kick_ns                   # the last kick began
    int64_t seen_ns                   # the last edge; 0: none yet
    int64_t alive_ns                  # the last edge, or the kick or command since
    int64_t stall_ns                  # silence that is a stall
    int64_t next_report_ns            # 0: not set yet
    double gain                       # slope of the calibration over the configured one, for which kp, ki and kd are
    double ceiling_percent            # the highest duty that may ever be written, whatever a controller asks for
    double target_rpm                 # 0: open loop or off
    double goal_rpm                   # the speed asked for now: moves to the target at ramp_rpm_per_s
    double rate_rpm_per_s             # of the goal, signed; 0: it stands at the target
    double open_duty_percent          # of stir_duty
    double duty_percent               # what the last tick put out
    double demand_percent             # where the duty slews to
    double integral_percent
    double reference_rpm              # the speed asked of PI: moves from the measured speed to the goal
    double measured_rpm               # at the last PI update
    int phase                         # STIR_OFF..STIR_FAULT
    uint32_t fresh                    # edges accepted since the last PI update
    uint32_t kick_edges               # edges accepted since the kick began
    uint32_t command_edges            # edges accepted since the command
    uint32_t stalls                   # in a row
    uint32_t referenced               # reference_rpm is set
    uint32_t reached                  # updates in a row near the target; stays at STIR_REACHED_TURNS once told
    uint32_t told                     # EVENT_STIR_RUNNING was, since the command or the last stall
    uint32_t updates                  # counter: PI updates
    uint32_t saturated                # counter: PI updates that wanted more or less than the drive can give
    uint32_t bounced_reported         # of tachometer.bounced, up to the last reading


cdef inline double stir_clamp(double value, double low, double high) noexcept nogil:
    """value within low..high; low when value is no number."""
    if not value > low:
        return low
    return value if value < high else high


cdef inline void stir_config_default(StirConfig* config) noexcept nogil:
    """Gains for a fan of 33 rpm per percent that starts to turn at 10 %, with a time constant of 0.4 s."""
    config.pulses_per_turn = 1
    config.use_rpm = 1
    config.stall_retries = 3
    config.kp = 0.028
    config.ki = 0.07
    config.kd = 0.0
    config.feed_forward_offset_percent = 10.0
    config.feed_forward_percent_per_rpm = 0.03
    config.duty_maximum_percent = 100.0
    config.kick_duty_percent = 100.0
    config.kick_s = 0.35
    config.rpm_maximum = 1500.0
    config.ramp_rpm_per_s = 0.0
    config.report_period_s = 1.0
    config.turns_window_s = 10.0


cdef inline int stir_config_check(const StirConfig* config) noexcept nogil:
    """0, or -EDOM when a field is not a number or is outside the envelope."""
    if not (0.0 <= config.kp <= 10.0 and 0.0 <= config.ki <= 100.0 and 0.0 <= config.kd <= 10.0):
        return -EDOM
    if not (fabs(config.feed_forward_offset_percent) <= 100.0 and 0.0 <= config.feed_forward_percent_per_rpm <= 10.0):
        return -EDOM
    if not (0.0 < config.duty_maximum_percent <= STIR_DUTY_CEILING_PERCENT):
        return -EDOM
    if not (0.0 <= config.kick_duty_percent <= STIR_DUTY_CEILING_PERCENT):
        return -EDOM
    if not (0.0 <= config.kick_s * 1000.0 <= STIR_KICK_CEILING_MS):
        return -EDOM
    if not (0 <= config.stall_retries <= STIR_RETRIES_CEILING):
        return -EDOM
    if not (STIR_RPM_FLOOR <= config.rpm_maximum <= STIR_RPM_CEILING):
        return -EDOM
    if not (0.0 <= config.ramp_rpm_per_s <= STIR_RAMP_CEILING):
        return -EDOM
    if not (0.1 <= config.report_period_s <= 60.0 and 1.0 <= config.turns_window_s <= 3600.0):
        return -EDOM
    return 0


cdef inline int stir_init(StirState* s, const StirConfig* config) noexcept nogil:
    """Off, without edges; 0, -EINVAL (pulses_per_turn) or -EDOM (any other field outside its range: stays off)."""
    cdef int status
    memset(s, 0, sizeof(StirState))
    status = tachometer_init(&s.tachometer, config.pulses_per_turn)
    if status == 0:
        status = stir_config_check(config)
    if status == 0:
        s.config = config[0]
        forward_line(&s.forward, config.feed_forward_offset_percent, config.feed_forward_percent_per_rpm)
        s.gain = 1.0
        s.ceiling_percent = stir_clamp(config.duty_maximum_percent, 0.0, STIR_DUTY_CEILING_PERCENT)
    return status


cdef inline double stir_feed_forward(const StirState* s) noexcept nogil:
    """Duty for the goal; on a ramp that for where a usual fan's lag would take it."""
    return forward_percent(&s.forward, s.goal_rpm + STIR_LAG_MS * 1e-3 * s.rate_rpm_per_s)


cdef inline int64_t stir_stall_ns(double target_rpm) noexcept nogil:
    """Silence that is a stall: max(0.5 s, 3 turns at the target, or at the slowest one in open loop)."""
    cdef double turns_ns = STIR_STALL_TURNS * 60e9 / max(target_rpm, STIR_RPM_FLOOR)
    return <int64_t>max(turns_ns, STIR_STALL_MINIMUM_MS * 1e6)


cdef inline void stir_aim(StirState* s, double goal_rpm) noexcept nogil:
    """Let the goal stand at goal_rpm, and move from there to the target when a ramp is asked for."""
    s.goal_rpm = goal_rpm if s.config.ramp_rpm_per_s > 0.0 else s.target_rpm
    s.rate_rpm_per_s = s.config.ramp_rpm_per_s * ((s.target_rpm > s.goal_rpm) - (s.target_rpm < s.goal_rpm))
    s.stall_ns = stir_stall_ns(min(s.goal_rpm, s.target_rpm))
    if s.target_rpm > 0.0:
        s.demand_percent = stir_clamp(stir_feed_forward(s) + s.integral_percent, 0.0, s.ceiling_percent)


cdef inline void stir_ramp(StirState* s, int64_t step_ns) noexcept nogil:
    """Move the goal on, and what PI is asked for with it: it corrects only the rotor's departure from the ramp."""
    cdef double before = stir_feed_forward(s)
    cdef double step = 1e-3 * s.rate_rpm_per_s * stir_clamp(1e-6 * <double>step_ns, 0.0, STIR_STEP_MAXIMUM_MS)
    if fabs(step) >= fabs(s.target_rpm - s.goal_rpm):
        step = s.target_rpm - s.goal_rpm
        s.rate_rpm_per_s = 0.0
    s.goal_rpm += step
    s.reference_rpm += step
    s.demand_percent = stir_clamp(s.demand_percent + stir_feed_forward(s) - before, 0.0, s.ceiling_percent)
    s.stall_ns = stir_stall_ns(min(s.goal_rpm, s.target_rpm))


cdef inline void stir_begin(StirState* s, int64_t now_ns) noexcept nogil:
    """Obey a new command: kick, unless a kick is under way or the rotor turns."""
    cdef bint turning = tachometer_turn_rpm(&s.tachometer, now_ns) >= STIR_RPM_FLOOR
    s.command_ns = now_ns
    s.alive_ns = now_ns
    s.command_edges = 0
    s.stalls = 0
    s.reached = 0
    s.told = 0
    s.next_turns_ns = now_ns
    tachometer_expect_change(&s.tachometer)
    if turning and (s.phase == STIR_OFF or s.phase == STIR_REST):
        s.phase = STIR_RUN
        s.update_ns = now_ns
    elif s.phase != STIR_START and s.phase != STIR_KICK and s.phase != STIR_RUN:
        s.integral_percent = 0.0
        s.phase = STIR_START


cdef inline int stir_stop(StirState* s, int64_t now_ns) noexcept nogil:
    """Duty 0 from the next tick; also ends a fault. Returns 0."""
    s.phase = STIR_OFF
    s.command_ns = now_ns
    s.command_edges = 0
    s.target_rpm = 0.0
    s.goal_rpm = 0.0
    s.rate_rpm_per_s = 0.0
    s.open_duty_percent = 0.0
    s.demand_percent = s.integral_percent = 0.0
    s.referenced = 0
    s.stalls = 0
    s.reached = 0
    s.next_turns_ns = now_ns
    tachometer_expect_change(&s.tachometer)
    return 0


cdef inline double stir_goal_rpm(const StirState* s, int64_t now_ns) noexcept nogil:
    """Where a ramp to the target begins: at the speed asked for, at that of a coasting rotor, or as from rest."""
    cdef double rpm = s.goal_rpm if s.goal_rpm > 0.0 else tachometer_turn_rpm(&s.tachometer, now_ns)
    return rpm if rpm >= STIR_RPM_FLOOR else min(s.target_rpm, STIR_RAMP_START_RPM)


cdef inline void stir_switch(StirState* s, double rpm, int64_t now_ns) noexcept nogil:
    """Change the target of a command that goes on: nothing that was learned is forgotten. 0: at rest."""
    if rpm == s.target_rpm:
        return
    s.target_rpm = rpm
    s.alive_ns = now_ns
    s.reached = 0
    s.next_turns_ns = now_ns
    tachometer_expect_change(&s.tachometer)
    if rpm == 0.0:
        s.phase = STIR_REST
        s.goal_rpm = s.rate_rpm_per_s = s.demand_percent = 0.0
        s.referenced = 0
        return
    stir_aim(s, stir_goal_rpm(s, now_ns))
    if s.phase == STIR_REST:
        s.phase = STIR_RUN if tachometer_turn_rpm(&s.tachometer, now_ns) >= STIR_RPM_FLOOR else STIR_START
        s.update_ns = now_ns


cdef inline int stir_target_rpm(StirState* s, double rpm, int64_t now_ns) noexcept nogil:
    """Closed loop at rpm; 0 stops. 0, or -EDOM and nothing changed: not 0 and not STIR_RPM_FLOOR..rpm_maximum."""
    if rpm == 0.0:
        return stir_stop(s, now_ns)
    if not (STIR_RPM_FLOOR <= rpm <= s.config.rpm_maximum and rpm <= STIR_RPM_CEILING):
        return -EDOM
    s.target_rpm = rpm
    s.open_duty_percent = 0.0
    stir_aim(s, stir_goal_rpm(s, now_ns))
    stir_begin(s, now_ns)
    return 0


cdef inline int stir_ramp_rate(StirState* s, double rpm_per_s) noexcept nogil:
    """How fast the speed may change from now on; 0: at once. 0, or -EDOM and nothing changed."""
    if not 0.0 <= rpm_per_s <= STIR_RAMP_CEILING:
        return -EDOM
    s.config.ramp_rpm_per_s = rpm_per_s
    stir_aim(s, s.goal_rpm)
    return 0


cdef inline int stir_curve(StirState* s, int part, double value) noexcept nogil:
    """One part of a calibration's table (feed_forward.pxd), or FORWARD_LINE; 0, or minus an errno and nothing changed.

    A turning rotor does not notice: the integral holds what the table and the curve before it differ by.
    """
    cdef double before = stir_feed_forward(s)
    cdef int status = 1
    if part == FORWARD_LINE:
        forward_line(&s.forward, s.config.feed_forward_offset_percent, s.config.feed_forward_percent_per_rpm)
    else:
        status = forward_give(&s.forward, part, value)
    if status == 1 and s.config.feed_forward_percent_per_rpm > 0.0:
        s.gain = stir_clamp(s.forward.percent_per_rpm / s.config.feed_forward_percent_per_rpm, 0.2, 5.0)
    if status == 1 and s.target_rpm > 0.0 and s.config.use_rpm and s.phase == STIR_RUN:
        s.integral_percent += before - stir_feed_forward(s)
    elif status == 1 and s.target_rpm > 0.0:
        stir_aim(s, s.goal_rpm)
    return status if status < 0 else 0


cdef inline int stir_duty(StirState* s, double duty_percent, int64_t now_ns) noexcept nogil:
    """Open loop at a duty; 0 stops. 0, or -EDOM and nothing changed: outside 0..duty_maximum_percent."""
    if duty_percent == 0.0:
        return stir_stop(s, now_ns)
    if not (0.0 < duty_percent <= s.ceiling_percent):
        return -EDOM
    s.target_rpm = 0.0
    s.open_duty_percent = duty_percent
    s.demand_percent = duty_percent
    stir_aim(s, 0.0)
    stir_begin(s, now_ns)
    s.integral_percent = 0.0
    s.referenced = 0
    return 0


cdef inline int stir_edge(StirState* s, int64_t stamp_ns) noexcept nogil:
    """One edge of the tachometer, in order of time; 1 accepted, 0 rejected (counted)."""
    if not tachometer_edge(&s.tachometer, stamp_ns):
        return 0
    s.alive_ns = s.seen_ns = stamp_ns
    s.fresh += 1
    s.kick_edges += 1
    s.command_edges += 1
    if s.reached == STIR_REACHED_TURNS:
        turns_edge(&s.turns, &s.tachometer)
    return 1


cdef inline void stir_control(StirState* s, double rpm, double step_s) noexcept nogil:
    """One PI(D) update around the feed-forward; step_s since the last one.

    PI is asked for a reference that moves from the measured speed to the goal: with a true feed-forward it has
    nothing to add, and never winds up on the rotor's own inertia. A turn is a dead time of half itself (its mean
    speed) and up to itself (until the next edge), so the gains shrink for slow ones as internal model control of a lag
    with dead time would have it: by (loop + dead time at 500 rpm) / (loop + dead time). On a ramp the measured speed is
    compared with what was asked for half a turn ago.
    """
    cdef double dead_ms = 1.5 * 60e3 / s.goal_rpm
    cdef double scale = stir_clamp((STIR_LOOP_MS + 1.5 * STIR_TURN_MS) / (STIR_LOOP_MS + dead_ms), 0.0, 1.0)
    cdef double ceiling = s.ceiling_percent
    cdef double floor = stir_clamp(s.forward.idle_percent * (STIR_FLOOR_PERCENT * 0.01), 0.0, ceiling)
    cdef double error, wanted, integral
    scale *= s.gain
    if not s.referenced:
        s.referenced = 1
        s.reference_rpm = rpm
        s.measured_rpm = rpm
    s.reference_rpm += (s.goal_rpm - s.reference_rpm) * step_s / (STIR_REFERENCE_MS * 1e-3 + step_s)
    error = s.reference_rpm - rpm - s.rate_rpm_per_s * min(30.0 / rpm, 0.5)
    integral = s.integral_percent + scale * s.config.ki * error * step_s
    wanted = stir_feed_forward(s) + scale * s.config.kp * error + integral
    if step_s > 0.0:
        wanted -= scale * s.config.kd * (rpm - s.measured_rpm) / step_s
    s.demand_percent = stir_clamp(wanted, floor, ceiling)
    if wanted == s.demand_percent or (wanted > ceiling) == (error < 0.0):
        s.integral_percent = stir_clamp(integral, -ceiling, ceiling)
    else:
        s.saturated += 1
    s.measured_rpm = rpm
    s.updates += 1
    if s.reached < STIR_REACHED_TURNS:
        s.reached = s.reached + 1 if fabs(rpm - s.target_rpm) * 100.0 <= STIR_REACHED_PERCENT * s.target_rpm else 0


cdef inline int stir_update(StirState* s, int64_t now_ns, double* event_value) noexcept nogil:
    """In phase RUN: control when an edge came or is late; returns EVENT_STIR_RUNNING once per command, or 0."""
    cdef double rpm
    cdef double step_s
    cdef uint32_t reached = s.reached
    if now_ns - s.update_ns < STIR_UPDATE_MINIMUM_MS * <int64_t>1000000:
        return 0
    if s.fresh == 0 and not tachometer_is_late(&s.tachometer, now_ns):
        return 0
    rpm = tachometer_turn_rpm(&s.tachometer, now_ns)
    if rpm == 0.0:
        return 0  # one edge since the start tells no speed; when there is none, stir_watch acts
    step_s = 1e-9 * <double>(now_ns - s.update_ns)
    s.update_ns = now_ns
    s.fresh = 0
    if s.target_rpm > 0.0 and s.config.use_rpm:
        stir_control(s, rpm, stir_clamp(step_s, 0.0, 60.0 / STIR_RPM_FLOOR))
    elif s.reached < STIR_REACHED_TURNS:
        s.reached += 1
    if now_ns - s.kick_ns > STIR_FORGET_MS * <int64_t>1000000:
        s.stalls = 0
    if s.reached == STIR_REACHED_TURNS and reached != STIR_REACHED_TURNS and not s.told:
        s.told = 1
        event_value[0] = rpm
        return EVENT_STIR_RUNNING
    return 0


cdef inline int stir_watch(StirState* s, int64_t now_ns, double* event_value) noexcept nogil:
    """In phase RUN with a sensor that is trusted: EVENT_STIR_STALL when it has been silent too long, else 0."""
    if now_ns - s.alive_ns <= s.stall_ns or s.target_rpm == 0.0 or not s.config.use_rpm:
        return 0
    # what a stopped process missed is no silence of the rotor
    if now_ns - s.tick_ns > STIR_STEP_MAXIMUM_MS * <int64_t>1000000:
        s.alive_ns += now_ns - s.tick_ns - STIR_STEP_MAXIMUM_MS * <int64_t>1000000
        if now_ns - s.alive_ns <= s.stall_ns:
            return 0
    s.stalls += 1
    s.integral_percent = stir_clamp(s.integral_percent, 0.0, s.ceiling_percent) + STIR_STALL_BOOST_PERCENT
    s.reached = 0
    s.told = 0
    s.next_turns_ns = now_ns
    s.referenced = 0
    tachometer_restart(&s.tachometer)
    stir_aim(s, min(s.target_rpm, STIR_RAMP_START_RPM))
    event_value[0] = s.stalls
    s.phase = STIR_START
    return EVENT_STIR_STALL


cdef inline int stir_kick(StirState* s, int64_t now_ns, double* event_value) noexcept nogil:
    """In phase START: give up after the last retry, else begin a kick; returns the event."""
    event_value[0] = s.stalls
    if s.stalls > <uint32_t>s.config.stall_retries:
        s.phase = STIR_FAULT
        s.demand_percent = 0.0
        return EVENT_STIR_FAULT
    s.phase = STIR_KICK
    s.kick_ns = now_ns
    s.alive_ns = now_ns
    s.kick_edges = 0
    tachometer_expect_change(&s.tachometer)
    return 0 if s.told else EVENT_STIR_KICK


cdef inline double stir_kick_s(const StirState* s) noexcept nogil:
    """How long a kick may last: kick_s; the first one only until a usual fan has the speed that the demand stands for.

    Full duty for longer throws the stir bar out of the magnets' hold; a rotor that needs more gets it by the retries.
    """
    cdef double reach = s.config.kick_duty_percent - s.forward.idle_percent
    cdef double wanted = s.demand_percent - s.forward.idle_percent
    if s.stalls or not 0.0 < wanted < reach:
        return s.config.kick_s
    return min(s.config.kick_s, max(STIR_LAG_MS * 1e-3 * wanted / reach, STIR_KICK_MINIMUM_MS * 1e-3))


cdef inline void stir_kick_end(StirState* s, int64_t now_ns) noexcept nogil:
    """In phase KICK: run once the rotor has moved, or the time is up."""
    cdef double kicked_s = 1e-9 * <double>(now_ns - s.kick_ns)
    if kicked_s < stir_kick_s(s) and (s.kick_edges == 0 or kicked_s < STIR_KICK_MINIMUM_MS * 1e-3):
        return
    if s.target_rpm > 0.0:
        s.demand_percent = stir_clamp(stir_feed_forward(s) + s.integral_percent, 0.0, s.ceiling_percent)
    s.phase = STIR_RUN
    s.update_ns = now_ns
    s.referenced = 0
    s.fresh = 0
    s.duty_percent = s.demand_percent  # full duty ends at once; only what follows is slewed


cdef inline void stir_slew(StirState* s, int64_t step_ns) noexcept nogil:
    """Move the duty towards the demand by what step_ns allows."""
    cdef double step = STIR_SLEW_PERCENT_PER_S * 1e-3 * stir_clamp(1e-6 * <double>step_ns, 0.0, STIR_STEP_MAXIMUM_MS)
    s.duty_percent = stir_clamp(s.demand_percent, s.duty_percent - step, s.duty_percent + step)


cdef inline int stir_tick(StirState* s, int64_t now_ns, double* duty_percent, int* event,
                          double* event_value) noexcept nogil:
    """One control tick: the duty to write now, and at most one EVENT_STIR_* (0: none). Returns 0."""
    event[0] = 0
    event_value[0] = NAN
    if s.phase == STIR_RUN:
        event[0] = stir_watch(s, now_ns, event_value)
        if event[0] == 0:
            event[0] = stir_update(s, now_ns, event_value)
    elif s.phase == STIR_KICK:
        stir_kick_end(s, now_ns)
    elif s.phase == STIR_START:
        event[0] = stir_kick(s, now_ns, event_value)

    if s.phase == STIR_RUN:
        if s.rate_rpm_per_s != 0.0:
            stir_ramp(s, now_ns - s.tick_ns)
        if s.duty_percent != s.demand_percent:
            stir_slew(s, now_ns - s.tick_ns)
    elif s.phase == STIR_KICK:
        s.duty_percent = s.config.kick_duty_percent
    elif s.phase != STIR_START:
        s.duty_percent = 0.0
    s.tick_ns = now_ns
    s.duty_percent = stir_clamp(s.duty_percent, 0.0, s.ceiling_percent)
    duty_percent[0] = s.duty_percent
    return 0
