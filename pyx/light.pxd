# Why compiled: the OD LED is switched between two conversions, as slowly as its light path asks for and no slower.
# Thread rule: the sampling thread.
# Units: nanoseconds of the loop's clock, percent of LED intensity, conversions.

from libc.math cimport NAN, ceil, fabs, floor, isnan
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from stirbar.rt.chop cimport LED_EDGES, ChopPlan, LedEdge, choose_half_cycle, chop_plan_init, led_track_edge
from stirbar.rt.gain cimport gain_chop
from stirbar.rt.hal cimport PACE_HOST, PACE_PILOT, PACE_READY, PACE_SMOOTHED
from stirbar.rt.light_path cimport light_path_clear, light_search_begin, light_search_step
from stirbar.rt.pilot cimport pilot_edge
from stirbar.rt.ports cimport port_event
from stirbar.rt.ring cimport stirbar_load_relaxed, stirbar_store_relaxed
from stirbar.rt.sampler_state cimport (
    LED_GUARD_NS, LIGHT_RETRY_NS, RETRY_NS, SILENCE_NS, SLOW_LEDS, Channel, Sampler, host_begin_ns, sampler_feed_float,
    sampler_light_unknown, sampler_may_light, sampler_rate_hz)
from stirbar.rt.types cimport (
    COMMAND_LED, EVENT_HALF_CYCLE, EVENT_LIGHT_BACK, EVENT_LIGHT_LOST, EVENT_LIGHT_PATH, STREAM_OD1, TRACE_COMMAND)

cdef enum:
    SEEK_MORE = 3             # conversions: no wrong rate within 12 % gets more than 0.8 of the right one's sum
    PATH_FIRST_EDGES = 64     # of the light, in a measurement at the start of a run
    PATH_FEWEST_EDGES = 6     # where the light is slow
    PATH_ROUNDS = 6           # short measurements at the start: each chops as the one before found right
    PATH_FLOOR_NS = 20000     # a smaller change is not told from none

cdef extern from *:
    """
    #define STIRBAR_READ_AFTER 0.35   /* of a period after it is ready a conversion is fetched at the latest */
    #define STIRBAR_EDGE_AFTER 0.08   /* of a period after it is ready, where it ends a half-cycle, the light changes */
    #define STIRBAR_PILOT_AFTER 0.6   /* the same where the register is read at mid-conversion */
    #define STIRBAR_RATE_MOVED 0.005  /* of the rate: k is chosen again */
    #define STIRBAR_SPEED_MOVED 0.05  /* of the stirrer's speed: as well */
    #define STIRBAR_SPEED_STILL 0.02  /* of it, from one second to the next: it holds still */
    #define STIRBAR_PATH_MOVED 0.05   /* of the settling time: k is chosen again, and it is said */
    #define STIRBAR_PATH_FIRST_NS 5000000000LL
    #define STIRBAR_PATH_LONG_NS 60000000000LL     /* a measurement in a run that goes on */
    #define STIRBAR_PATH_PERIOD_NS 3600000000000LL
    """
    const double READ_AFTER "STIRBAR_READ_AFTER"
    const double EDGE_AFTER "STIRBAR_EDGE_AFTER"
    const double PILOT_AFTER "STIRBAR_PILOT_AFTER"
    const double RATE_MOVED "STIRBAR_RATE_MOVED"
    const double SPEED_MOVED "STIRBAR_SPEED_MOVED"
    const double SPEED_STILL "STIRBAR_SPEED_STILL"
    const double PATH_MOVED "STIRBAR_PATH_MOVED"
    const int64_t PATH_FIRST_NS "STIRBAR_PATH_FIRST_NS"
    const int64_t PATH_LONG_NS "STIRBAR_PATH_LONG_NS"
    const int64_t PATH_PERIOD_NS "STIRBAR_PATH_PERIOD_NS"


# --- the LED ---

cdef inline void sampler_tell_edge(Sampler* s, int64_t before_ns, int64_t after_ns, int on) noexcept nogil:
    """The light has changed: silent converters tell their clocks from it, and a chop period ends when it goes on."""
    cdef Channel* channel
    cdef int64_t from_ns
    cdef int i
    for i in range(s.active_count):
        channel = &s.channel[s.active[i]]
        if channel.plan.pace == PACE_PILOT and not channel.lost:
            from_ns = before_ns + channel.plan.light_ns
            pilot_edge(&channel.pilot, from_ns if from_ns < after_ns else after_ns, after_ns)
        if on and channel.ranged and not channel.lost:
            channel.acts |= gain_chop(&channel.gain)
            s.acting |= channel.acts


cdef inline void sampler_count_light(Sampler* s, int64_t now_ns) noexcept nogil:
    """Add how long the LED was lit up to now."""
    if s.led.on:
        s.lit_ns += 0.01 * s.config.intensity_percent * <double>(now_ns - s.lit_from_ns)
        while s.lit_ns >= 1e9:
            s.lit_ns -= 1e9
            stirbar_store_relaxed(&s.led_seconds, s.led_seconds + 1)
    s.lit_from_ns = now_ns


cdef inline void sampler_light_refused(Sampler* s, int64_t now_ns) noexcept nogil:
    """The driver did not take a change: what is converted from here on counts for nothing. It is soon tried again;
    after SILENCE_NS in vain the light is lost."""
    s.bus_errors += 1
    if not sampler_light_unknown(s):
        sampler_count_light(s, now_ns)
        s.unknown_from_ns = now_ns
        s.unknown_to_ns = INT64_MAX
    elif not s.light_lost and now_ns - s.unknown_from_ns > SILENCE_NS:
        s.light_lost = 1
        port_event(&s.port, now_ns, EVENT_LIGHT_LOST, 0, 0, 0)
    s.light_retry_ns = now_ns + (RETRY_NS if s.light_lost else LIGHT_RETRY_NS)


cdef inline void sampler_light_known(Sampler* s, int64_t now_ns) noexcept nogil:
    """The driver takes changes again. Whether this one was any is not known: no clock is told from it."""
    s.unknown_to_ns = s.lit_from_ns = now_ns
    if s.light_lost:
        s.light_lost = 0
        port_event(&s.port, now_ns, EVENT_LIGHT_BACK, 0, 0, 0)


cdef inline int sampler_light(Sampler* s, int on) noexcept nogil:
    """Switch the OD LED; 0, or minus an errno and nobody knows what light there is."""
    cdef int64_t before_ns = s.clock.now_ns(s.clock.context)
    cdef int status = s.hal.led_write(s.hal.context, s.config.intensity_percent if on else 0.0, before_ns)
    cdef int64_t after_ns
    if status:
        sampler_light_refused(s, before_ns)
        return status
    after_ns = s.clock.now_ns(s.clock.context)
    if sampler_light_unknown(s):
        sampler_light_known(s, after_ns)
    else:
        sampler_count_light(s, after_ns)
        if on != s.led.on:
            sampler_tell_edge(s, before_ns, after_ns, on)
    led_track_edge(&s.led, before_ns, after_ns, on)
    return 0


# --- how fast it is chopped ---

cdef inline double sampler_mains_hz(const Sampler* s) noexcept nogil:
    """50 or 60 as configured or, once it is tracked, as found; 0 before."""
    if s.config.mains_hz > 0 or not s.estimators.od.line.locked:
        return s.config.mains_hz
    return s.estimators.od.line.nominal_hz


cdef inline void sampler_turned(Sampler* s, uint32_t before_us, uint32_t turn_us) noexcept nogil:
    """A turn of the stirrer takes `turn_us`, a second ago `before_us`: where that holds still, it is the speed."""
    if turn_us and fabs(<double>turn_us - before_us) < SPEED_STILL * turn_us:
        s.rpm = 60e6 / turn_us


cdef inline bint sampler_has_moved(const Sampler* s) noexcept nogil:
    """Whether k was chosen for another rate of the converter, mains, stirrer or PWM; what fades changes nothing."""
    cdef double mains = sampler_mains_hz(s)
    cdef uint32_t unlocked_mhz = stirbar_load_relaxed(s.unlocked_mhz)
    return fabs(sampler_rate_hz(s, s.master) / s.rate_chosen_hz - 1) > RATE_MOVED or (
        mains > 0 and mains != s.mains_chosen_hz) or fabs(s.rpm - s.rpm_chosen) > SPEED_MOVED * s.rpm > 0 or (
        unlocked_mhz > 0 and unlocked_mhz != s.unlocked_chosen_mhz)


cdef inline void sampler_guess_edge(Sampler* s) noexcept nogil:
    """Where the light will change between two conversions of the master, before that was ever seen."""
    cdef const Channel* master = &s.channel[s.master]
    s.edge_from_ns = master.period_ns * (
        1.0 + PILOT_AFTER if master.plan.pace == PACE_PILOT else 1.0 + EDGE_AFTER if s.light_first else READ_AFTER)
    if master.plan.pace == PACE_READY and not s.light_first:
        s.edge_from_ns += master.plan.read_ns
    s.edge_to_ns = s.edge_from_ns + master.plan.light_ns
    if master.plan.pace == PACE_HOST:
        s.edge_to_ns = -<double>(s.grid.slot_ns - s.grid.answer_ns - master.plan.read_ns - master.plan.light_ns)
    elif master.plan.pace == PACE_SMOOTHED:
        s.edge_to_ns = -(master.period_ns - master.plan.read_ns - master.plan.light_ns)


cdef inline void sampler_learn_edge(Sampler* s) noexcept nogil:
    """The light has changed: follow where between two conversions of the master that happens."""
    cdef const Channel* master = &s.channel[s.master]
    cdef const LedEdge* edge = &s.led.edge[s.led.cursor - 1 if s.led.cursor else LED_EDGES - 1]
    cdef int64_t origin_ns = master.last_end_ns
    if master.plan.pace == PACE_HOST:
        origin_ns = host_begin_ns(&s.grid)
    elif master.plan.pace == PACE_SMOOTHED:
        origin_ns = master.expected_ns
    s.edge_from_ns += (<double>(edge.from_ns - origin_ns) - s.edge_from_ns) * (1.0 / 16)
    s.edge_to_ns += (<double>(edge.to_ns - origin_ns) - s.edge_to_ns) * (1.0 / 16)


cdef inline int sampler_discarded(const Sampler* s, int64_t settle_ns) noexcept nogil:
    """How many of the master's conversions after a change of the light are not used: those that see it change, or not
    yet settled."""
    cdef const Channel* master = &s.channel[s.master]
    cdef double until = (s.edge_to_ns + settle_ns + LED_GUARD_NS) / master.period_ns
    if master.plan.pace >= PACE_HOST:
        return <int>ceil(until) if until > 0.0 else 0
    return <int>ceil(until) - <int>floor((s.edge_from_ns - LED_GUARD_NS) / master.period_ns)


cdef inline void sampler_publish_chop(Sampler* s) noexcept nogil:
    """Let the actuator thread know the chop's period."""
    cdef double period_ns = 2.0 * s.half_cycle * s.channel[s.master].period_ns
    cdef uint32_t published = <uint32_t><int64_t>(period_ns + 0.5) if s.sampling and period_ns < 4e9 else 0
    if published != s.chop_period_ns:
        stirbar_store_relaxed(&s.chop_period_ns, published)


cdef inline void sampler_measure_path(Sampler* s, int64_t now_ns) noexcept nogil:
    """Begin to average conversions by their lag behind the light's edges."""
    cdef double half_ns = s.half_cycle * s.channel[s.master].period_ns
    cdef int i
    for i in range(s.active_count):
        light_path_clear(&s.channel[s.active[i]].path, s.channel[s.active[i]].aperture_ns, half_ns)
    s.measuring = 1
    s.path_from_ns = now_ns
    s.path_edges = 0
    s.search.active = 0


cdef inline void sampler_plan_bursts(Sampler* s) noexcept nogil:
    """A burst holds a window and its two last neighbours; 50 % is chopped without a pause."""
    s.burst = 0
    if s.config.led_duty_percent < 50.0:
        s.burst = <int>ceil(
            s.config.window_s * 1e9 / (2.0 * s.half_cycle * s.channel[s.master].period_ns)) + 2
        s.burst_left = s.burst_left if s.burst_left < 2 * s.burst else 2 * s.burst


cdef inline void sampler_choose_half_cycle(Sampler* s, int64_t now_ns) noexcept nogil:
    """d and k for the converter's rate, the light path, mains, stirrer and PWM as they are now known; k as configured,
    where it leaves anything to use."""
    cdef const Channel* master = &s.channel[s.master]
    cdef ChopPlan plan
    cdef int k = s.config.half_cycle
    s.unlocked_chosen_mhz = stirbar_load_relaxed(s.unlocked_mhz)
    chop_plan_init(
        &plan, sampler_rate_hz(s, s.master), sampler_mains_hz(s), s.rpm if s.rpm > 0.0 else s.config.rpm)
    s.rate_chosen_hz = plan.rate_hz
    s.mains_chosen_hz = plan.mains_hz
    s.rpm_chosen = plan.rpm
    plan.aperture = master.aperture_ns / master.period_ns if master.plan.pace >= PACE_HOST else 1.0
    plan.pwm_hz = 1e-3 * s.unlocked_chosen_mhz
    plan.discard = s.discard = sampler_discarded(s, s.settle_ns)
    plan.low = s.config.half_cycle_low
    plan.high = s.config.half_cycle_high
    s.led.settle_ns = s.settle_ns
    if k <= plan.discard:
        k = choose_half_cycle(&plan)
    if k != s.half_cycle:
        s.half_cycle = k
        port_event(&s.port, now_ns, EVENT_HALF_CYCLE, k, STREAM_OD1 + s.master, plan.rate_hz / (2 * k))
        sampler_plan_bursts(s)
        if s.measuring:
            sampler_measure_path(s, now_ns)
    sampler_publish_chop(s)


# --- how slowly it follows ---

cdef inline void sampler_path_found(Sampler* s, int64_t now_ns) noexcept nogil:
    """A measurement of the light path is whole: chop by it, and say when the next one is due.

    At the start each measurement chops as the last one found right, until two agree. Readings of light that had not
    settled do not count: the windows begin anew.
    """
    cdef double before_ns = s.settle_ns
    cdef double moved_ns = fabs(s.search.best.settle_ns - before_ns)
    cdef double half_ns = s.half_cycle * s.channel[s.master].period_ns
    cdef int round = s.path_rounds
    s.path_rounds = PATH_ROUNDS
    s.path_from_ns = now_ns + PATH_PERIOD_NS
    if isnan(s.search.best.tau_ns):
        return
    if not isnan(s.light_path.tau_ns) and (
        moved_ns < PATH_MOVED * before_ns or moved_ns < PATH_FLOOR_NS
    ):
        return
    s.light_path = s.search.best
    s.settle_ns = <int64_t>s.search.best.settle_ns
    sampler_choose_half_cycle(s, now_ns)
    port_event(&s.port, now_ns, EVENT_LIGHT_PATH, s.discard, STREAM_OD1 + s.master, 1e-6 * s.light_path.tau_ns)
    if s.settle_ns > before_ns + LED_GUARD_NS:
        sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_LED, NAN)
        sampler_feed_float(s, TRACE_COMMAND, 0, COMMAND_LED, s.config.intensity_percent)
    if round < PATH_ROUNDS and 3.0 * s.light_path.tau_ns > half_ns:
        s.path_rounds = round + 1
        s.path_from_ns = now_ns


cdef inline void sampler_tend_path(Sampler* s, int64_t now_ns) noexcept nogil:
    """One step of what is to be done for the light path in a tick: mostly nothing."""
    cdef int last
    cdef int64_t since_ns = now_ns - s.path_from_ns
    if s.search.active:
        last = s.search.channel + 1 >= s.active_count
        if light_search_step(&s.search, &s.channel[s.active[s.search.channel]].path, last):
            sampler_path_found(s, now_ns)
    elif s.measuring:
        if s.path_edges < PATH_FEWEST_EDGES or since_ns < PATH_LONG_NS and (
            s.path_rounds >= PATH_ROUNDS or s.path_edges < PATH_FIRST_EDGES and since_ns < PATH_FIRST_NS
        ):
            return
        s.measuring = 0
        light_search_begin(
            &s.search, s.channel[s.master].aperture_ns,
            0.5e9 / s.channel[s.master].plan.conversion_hz if s.channel[s.master].plan.pace == PACE_SMOOTHED else 0.0)
    elif since_ns >= 0 and s.channel[s.master].modelled:
        sampler_measure_path(s, now_ns)


# --- edge after edge ---

cdef inline int sampler_pause_half_cycles(const Sampler* s) noexcept nogil:
    """Half-cycles of a pause between two bursts, so that the LED is lit for its share of the time."""
    return <int>(100.0 * s.burst / s.config.led_duty_percent + 0.5) - (2 * s.burst + 1)


cdef inline void sampler_let_leds(Sampler* s) noexcept nogil:
    """A chop period begins, or nothing is measured: LED channels that wait may change in the first gap on the bus,
    before a conversion that counts; without one they wait on."""
    cdef const Channel* master = &s.channel[s.master]
    cdef int64_t now_ns
    if not s.leds.pending:
        return
    now_ns = s.clock.now_ns(s.clock.context)
    if now_ns < s.leds_retry_ns:
        return
    s.slow_due |= <uint32_t>1 << SLOW_LEDS
    s.slow_from_ns[SLOW_LEDS] = s.leds.pending_ns
    s.leds_until_ns = now_ns + <int64_t>(0.5 * master.period_ns)
    if master.plan.pace == PACE_HOST:
        s.leds_until_ns = host_begin_ns(&s.grid)


cdef inline void sampler_edge(Sampler* s) noexcept nogil:
    """A half-cycle is over: change the light, or go on with a pause.

    A burst begins and ends with a dark half-cycle; in a pause nothing is fed to the estimators.
    """
    cdef bint known = not sampler_light_unknown(s)
    if not sampler_may_light(s, s.clock.now_ns(s.clock.context)):
        return
    if s.held:
        if s.led.on:
            sampler_light(s, 0)
        sampler_let_leds(s)
        return
    if s.burst:
        s.burst_left -= 1
        if s.burst_left <= 0:
            s.paused = not s.paused
            s.burst_left = sampler_pause_half_cycles(s) if s.paused else 2 * s.burst + 1
            if not s.paused:
                return
        if s.paused:
            if s.led.on:
                sampler_light(s, 0)
            sampler_let_leds(s)
            return
    if sampler_light(s, not s.led.on) == 0 and known:
        s.path_edges += 1
        sampler_learn_edge(s)
        if s.led.on:
            sampler_let_leds(s)


cdef inline int sampler_half_cycle(const Sampler* s) noexcept nogil:
    """k; while the clock of a silent converter is sought beside another's, every other time more: edges at equal
    intervals would fit several rates."""
    return s.half_cycle + (SEEK_MORE if s.seeking and s.path_edges & 2 else 0)


cdef inline void sampler_chop(Sampler* s) noexcept nogil:
    """Change the light when the master has made k conversions under it."""
    cdef Channel* master = &s.channel[s.master]
    if <int>(master.last_index - s.toggled_index) >= sampler_half_cycle(s):
        s.toggled_index = master.last_index
        sampler_edge(s)
