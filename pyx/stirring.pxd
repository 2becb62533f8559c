# Why compiled: the fan's controller runs on every edge and every control tick of the actuator thread.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: time in nanoseconds of the loop's clock, duty in percent 0..100, speed in rpm, gains in percent per rpm.

from libc.errno cimport EDOM, EINVAL
from libc.math cimport NAN, fabs, isfinite
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

from stirbar.rt.tachometer cimport (
    Tachometer, TachometerFit, tachometer_bound_rpm, tachometer_edge, tachometer_expect_change, tachometer_fit,
    tachometer_init, tachometer_is_late, tachometer_restart, tachometer_silence_ns, tachometer_turn_rpm)
from stirbar.rt.types cimport (
    EVENT_STIR_FAULT, EVENT_STIR_KICK, EVENT_STIR_RUNNING, EVENT_STIR_STALL, FLAG_SENSOR_LOST, FLAG_STALLED,
    FLAG_STIRRING_OFF, RECORD_VERSION, STREAM_RPM, Reading)

# The envelope: compiled in, lowered by config, raised by nothing.
cdef enum:
    STIR_DUTY_CEILING_PERCENT = 100
    STIR_RPM_CEILING = 3000
    STIR_RPM_FLOOR = 60               # the slowest target: below it a stall takes more than 3 s to see
    STIR_KICK_CEILING_MS = 500
    STIR_RETRIES_CEILING = 10

cdef enum:
    STIR_SLEW_PERCENT_PER_S = 150     # the stir bar falls out of the magnets' hold when the drive jumps
    STIR_KICK_MINIMUM_MS = 30         # an edge before this may be the rotor rocking on its magnet
    STIR_LAG_MS = 400                 # of a usual fan: how long the first kick takes to reach the target
    STIR_FLOOR_PERCENT = 70           # of the feed-forward offset: braking harder than this stops the rotor
    STIR_STALL_BOOST_PERCENT = 2      # a stall says that feed-forward is too low by about this
    STIR_UPDATE_MINIMUM_MS = 50       # at most 20 updates a second (IS-34)
    STIR_STEP_MAXIMUM_MS = 100        # a later tick counts as this much for the slew
    STIR_REFERENCE_MS = 250           # time constant of the speed that PI is asked for, from where the rotor is
    STIR_LOOP_MS = 300                # closed-loop time constant that the default gains aim at
    STIR_TURN_MS = 120                # turn time that the gains are for; slower turns are a longer dead time
    STIR_STALL_MINIMUM_MS = 500
    STIR_STALL_TURNS = 3
    STIR_FORGET_MS = 5000             # turning for this long forgives earlier stalls
    STIR_UNKNOWN_S = 10               # without an edge for longer nobody knows that it turns (IS-14)
    STIR_REACHED_PERCENT = 2          # EVENT_STIR_RUNNING: this close to the target
    STIR_REACHED_TURNS = 3            # for so many updates in a row

cdef enum StirPhase:
    STIR_OFF = 0
    STIR_START = 1                    # the next tick kicks
    STIR_KICK = 2
    STIR_RUN = 3
    STIR_FAULT = 4                    # duty 0 until a new command

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
    double report_period_s

cdef struct StirState:
    StirConfig config
    Tachometer tachometer
    uint64_t reports                  # readings given so far
    int64_t tick_ns                   # the last control tick
    int64_t update_ns                 # the last PI update
    int64_t command_ns                # the command that is obeyed
    int64_t kick_ns                   # the last kick began
    int64_t seen_ns                   # the last edge; 0: none yet
    int64_t alive_ns                  # the last edge, or the kick or command since
    int64_t stall_ns                  # silence that is a stall
    int64_t next_report_ns            # 0: not set yet
    double ceiling_percent            # the highest duty that may ever be written, whatever a controller asks for
    double target_rpm                 # 0: open loop or off
    double open_duty_percent          # of stir_duty
    double duty_percent               # what the last tick put out
    double demand_percent             # where the duty slews to
    double integral_percent
    double reference_rpm              # the speed asked of PI: moves from the measured speed to the target
    double measured_rpm               # at the last PI update
    int phase                         # STIR_OFF..STIR_FAULT
    uint32_t fresh                    # edges accepted since the last PI update
    uint32_t kick_edges               # edges accepted since the kick began
    uint32_t command_edges            # edges accepted since the command
    uint32_t stalls                   # in a row
    uint32_t referenced               # reference_rpm is set
    uint32_t reached                  # updates in a row near the target; stays at STIR_REACHED_TURNS once told
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
    config.report_period_s = 1.0


cdef inline int stir_config_check(const StirConfig* config) noexcept nogil:
    """0, or -EDOM when a field is not a number or is outside the envelope."""
    if not (0.0 <= config.kp <= 10.0 and 0.0 <= config.ki <= 100.0 and 0.0 <= config.kd <= 10.0):
        return -EDOM
    if not (-100.0 <= config.feed_forward_offset_percent <= 100.0):
        return -EDOM
    if not (0.0 <= config.feed_forward_percent_per_rpm <= 10.0):
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
    if not (0.1 <= config.report_period_s <= 60.0):
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
        s.ceiling_percent = stir_clamp(config.duty_maximum_percent, 0.0, STIR_DUTY_CEILING_PERCENT)
    return status


cdef inline double stir_feed_forward(const StirState* s, double rpm) noexcept nogil:
    return s.config.feed_forward_offset_percent + s.config.feed_forward_percent_per_rpm * rpm


cdef inline int64_t stir_stall_ns(double target_rpm) noexcept nogil:
    """Silence that is a stall: max(0.5 s, 3 turns at the target, or at the slowest one in open loop)."""
    cdef double turns_ns = STIR_STALL_TURNS * 60e9 / (target_rpm if target_rpm > 0.0 else STIR_RPM_FLOOR)
    return <int64_t>max(turns_ns, STIR_STALL_MINIMUM_MS * 1e6)


cdef inline void stir_begin(StirState* s, int64_t now_ns) noexcept nogil:
    """Obey a new command: kick, unless a kick is under way or the rotor turns."""
    cdef bint turning = tachometer_turn_rpm(&s.tachometer, now_ns) >= STIR_RPM_FLOOR
    s.command_ns = now_ns
    s.alive_ns = now_ns
    s.stall_ns = stir_stall_ns(s.target_rpm)
    s.command_edges = 0
    s.stalls = 0
    s.reached = 0
    tachometer_expect_change(&s.tachometer)
    if turning and s.phase == STIR_OFF:
        s.phase = STIR_RUN
        s.update_ns = now_ns
    elif s.phase == STIR_OFF or s.phase == STIR_FAULT:
        s.integral_percent = 0.0
        s.phase = STIR_START


cdef inline int stir_stop(StirState* s, int64_t now_ns) noexcept nogil:
    """Duty 0 from the next tick; also ends a fault. Returns 0."""
    s.phase = STIR_OFF
    s.command_ns = now_ns
    s.command_edges = 0
    s.target_rpm = 0.0
    s.open_duty_percent = 0.0
    s.demand_percent = 0.0
    s.integral_percent = 0.0
    s.referenced = 0
    s.stalls = 0
    s.reached = 0
    tachometer_expect_change(&s.tachometer)
    return 0


cdef inline int stir_target_rpm(StirState* s, double rpm, int64_t now_ns) noexcept nogil:
    """Closed loop at rpm; 0 stops. 0, or -EDOM and nothing changed: not 0 and not STIR_RPM_FLOOR..rpm_maximum."""
    if rpm == 0.0:
        return stir_stop(s, now_ns)
    if not (STIR_RPM_FLOOR <= rpm <= s.config.rpm_maximum and rpm <= STIR_RPM_CEILING):
        return -EDOM
    s.target_rpm = rpm
    s.open_duty_percent = 0.0
    s.demand_percent = stir_clamp(stir_feed_forward(s, rpm) + s.integral_percent, 0.0, s.ceiling_percent)
    stir_begin(s, now_ns)
    return 0


cdef inline int stir_duty(StirState* s, double duty_percent, int64_t now_ns) noexcept nogil:
    """Open loop at a duty; 0 stops. 0, or -EDOM and nothing changed: outside 0..duty_maximum_percent."""
    if duty_percent == 0.0:
        return stir_stop(s, now_ns)
    if not (0.0 < duty_percent <= s.ceiling_percent):
        return -EDOM
    s.target_rpm = 0.0
    s.open_duty_percent = duty_percent
    s.demand_percent = duty_percent
    stir_begin(s, now_ns)
    s.integral_percent = 0.0
    return 0


cdef inline int stir_edge(StirState* s, int64_t stamp_ns) noexcept nogil:
    """One edge of the tachometer, in order of time; 1 accepted, 0 rejected (counted)."""
    if not tachometer_edge(&s.tachometer, stamp_ns):
        return 0
    s.alive_ns = s.seen_ns = stamp_ns
    s.fresh += 1
    s.kick_edges += 1
    s.command_edges += 1
    return 1


cdef inline void stir_control(StirState* s, double rpm, double step_s) noexcept nogil:
    """One PI(D) update around the feed-forward; step_s since the last one.

    PI is asked for a reference that moves from the measured speed to the target: with a true feed-forward it has
    nothing to add, and never winds up on the rotor's own inertia. A turn is a dead time of half itself (its mean
    speed) and up to itself (until the next edge), so the gains shrink for slow ones as internal model control of a lag
    with dead time would have it: by (loop + dead time at 500 rpm) / (loop + dead time).
    """
    cdef double dead_ms = 1.5 * 60e3 / s.target_rpm
    cdef double scale = stir_clamp((STIR_LOOP_MS + 1.5 * STIR_TURN_MS) / (STIR_LOOP_MS + dead_ms), 0.0, 1.0)
    cdef double ceiling = s.ceiling_percent
    cdef double floor = stir_clamp(s.config.feed_forward_offset_percent * (STIR_FLOOR_PERCENT * 0.01), 0.0, ceiling)
    cdef double error, wanted, integral
    if not s.referenced:
        s.referenced = 1
        s.reference_rpm = rpm
        s.measured_rpm = rpm
    s.reference_rpm += (s.target_rpm - s.reference_rpm) * step_s / (STIR_REFERENCE_MS * 1e-3 + step_s)
    error = s.reference_rpm - rpm
    integral = s.integral_percent + scale * s.config.ki * error * step_s
    wanted = stir_feed_forward(s, s.target_rpm) + scale * s.config.kp * error + integral
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
    if s.reached == STIR_REACHED_TURNS and reached != STIR_REACHED_TURNS:
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
    s.referenced = 0
    tachometer_restart(&s.tachometer)
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
    return EVENT_STIR_KICK


cdef inline double stir_kick_s(const StirState* s) noexcept nogil:
    """How long a kick may last: kick_s; the first one only until a usual fan has the speed that the demand stands for.

    Full duty for longer throws the stir bar out of the magnets' hold; a rotor that needs more gets it by the retries.
    """
    cdef double reach = s.config.kick_duty_percent - s.config.feed_forward_offset_percent
    cdef double wanted = s.demand_percent - s.config.feed_forward_offset_percent
    if s.stalls or not 0.0 < wanted < reach:
        return s.config.kick_s
    return min(s.config.kick_s, max(STIR_LAG_MS * 1e-3 * wanted / reach, STIR_KICK_MINIMUM_MS * 1e-3))


cdef inline void stir_kick_end(StirState* s, int64_t now_ns) noexcept nogil:
    """In phase KICK: run once the rotor has moved, or the time is up."""
    cdef double kicked_s = 1e-9 * <double>(now_ns - s.kick_ns)
    if kicked_s < stir_kick_s(s) and (s.kick_edges == 0 or kicked_s < STIR_KICK_MINIMUM_MS * 1e-3):
        return
    if s.target_rpm > 0.0:
        s.demand_percent = stir_clamp(stir_feed_forward(s, s.target_rpm) + s.integral_percent, 0.0, s.ceiling_percent)
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


cdef inline bint stir_is_seen(const StirState* s, int64_t now_ns) noexcept nogil:
    """Whether the stirrer is known to turn."""
    return s.seen_ns > 0 and now_ns - s.seen_ns <= <int64_t>STIR_UNKNOWN_S * 1000000000


cdef inline uint32_t stir_flags(const StirState* s, int64_t now_ns) noexcept nogil:
    """FLAG_* of a reading made now."""
    cdef uint32_t flags = 0
    cdef int64_t since_ns = now_ns - s.command_ns
    if s.phase == STIR_OFF:
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
    rotor itself, rpm; signal_v the duty, percent; reference_v the target, rpm (NaN in open loop and when off).
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
    out.reference_v = <float>s.target_rpm if s.target_rpm > 0.0 else NAN
    out.ambient_v = NAN
    out.used = fit.used
    out.rejected = s.tachometer.bounced - s.bounced_reported
    out.flags = stir_flags(s, now_ns)
    out.stream = STREAM_RPM
    out.version = RECORD_VERSION
    s.bounced_reported = s.tachometer.bounced
    s.reports += 1
    return 1
