# Why compiled: timers, deadlines and control of everything that moves; no Python may delay it.
# Thread rule: the actuator thread; it never touches the I2C bus.
# Units: nanoseconds of the loop's clock, rpm, duty in percent.

from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.estimators cimport StirringLoop, stirring_apply
from stirbar.rt.hal cimport Hal
from stirbar.rt.ports cimport (
    Port, port_command, port_event, port_reading, port_trace, port_trace_for, port_trace_tend, trace_float, trace_int)
from stirbar.rt.pulse_lock cimport locked_period_ns
from stirbar.rt.ring cimport stirbar_load_relaxed, stirbar_store_relaxed
from stirbar.rt.sleep_policy cimport SleepPolicy, sleep_for_ever, sleep_next
from stirbar.rt.types cimport (
    COMMAND_EXPERIMENT, COMMAND_SIMULATION, COMMAND_STIR_RPM, COMMAND_STIR_STOP, COMMAND_TRACE, EVENT_COMMAND_DONE,
    EVENT_COMMAND_REFUSED, STREAM_RPM, TRACE_COMMAND, TRACE_EDGE, TRACE_TICK, Command, Reading, TraceItem)

cdef enum:
    EDGES_PER_TICK = 64
    PAUSE_NS = 2000000000    # after so long without a tick the guard may have switched the outputs off
    LOCK_PARTS = 5000        # the stirrer's PWM is locked anew when the chop period moved by 1/5000 (200 ppm)

cdef struct Actuators:
    StirringLoop stirring
    Port port
    const Hal* hal
    int (*simulate)(void* context, int parameter, double value) noexcept nogil  # NULL on hardware
    void* simulated
    double written_percent   # the duty that the hardware has; -1: nothing written yet
    uint32_t bus_errors
    uint32_t stirring_off    # read by the sampling thread
    uint32_t unlocked_mhz    # of the stirrer's PWM where it cannot be locked to the light, read as well; 0: it is
    uint32_t turn_us         # time of a turn, once a second, read by the sampling thread; 0: it does not turn
    SleepPolicy* pulses      # of pulses_tick, to be woken by a write
    uint32_t* heartbeat      # the guard's page; NULL: no guard
    uint32_t beats
    int64_t beaten_ns        # when it did so last
    const uint32_t* chop_period_ns  # written by the sampling thread, 0 while it does not chop; NULL: nobody says
    uint32_t locked_chop_ns  # for which the stirrer's period was chosen
    int64_t stirrer_period_ns       # as configured; 0: the profile's own


cdef inline void actuators_feed(Actuators* a, const TraceItem* item) noexcept nogil:
    cdef Reading reading
    port_trace(&a.port, item)
    if stirring_apply(&a.stirring, item, &reading):
        stirbar_store_relaxed(&a.turn_us, <uint32_t>(60e6 / reading.value) if reading.value > 1.0 else 0)
        port_reading(&a.port, &reading)


cdef inline void actuators_command(Actuators* a, const Command* command, int64_t now_ns) noexcept nogil:
    """Do one command and answer it."""
    cdef TraceItem item
    cdef int status = 0
    if command.code == COMMAND_EXPERIMENT:
        a.port.experiment = <uint32_t>command.index
    elif command.code == COMMAND_TRACE:
        port_trace_for(&a.port, now_ns, command.value)
    elif command.code == COMMAND_SIMULATION and a.simulate != NULL:
        status = a.simulate(a.simulated, command.index, command.value)
    elif COMMAND_STIR_RPM <= command.code <= COMMAND_STIR_STOP:
        trace_int(&item, TRACE_COMMAND, 0, 0, 0, command.code, now_ns)
        actuators_feed(a, &item)
        trace_float(&item, TRACE_COMMAND, 0, 1, command.code, command.value)
        actuators_feed(a, &item)
        status = a.stirring.status
    else:
        status = -1
    port_event(&a.port, now_ns, EVENT_COMMAND_REFUSED if status else EVENT_COMMAND_DONE, <int>command.id, 0, status)


cdef inline void actuators_write(Actuators* a, double duty_percent, int64_t now_ns) noexcept nogil:
    """Write a duty that the hardware does not have yet; tried again at the next tick when the write fails."""
    if duty_percent == a.written_percent:
        return
    if a.hal.stirrer_write(a.hal.context, duty_percent, now_ns) == 0:
        a.written_percent = duty_percent
        stirbar_store_relaxed(&a.stirring_off, duty_percent <= 0)
        if a.hal.pulse != NULL:
            a.pulses.target_ns = now_ns
    else:
        a.bus_errors += 1


cdef inline void actuators_beat(Actuators* a, int64_t now_ns) noexcept nogil:
    """Tell the guard that this thread runs: a store, no system call. After a long pause the outputs begin anew."""
    if a.heartbeat == NULL:
        return
    a.beats += 1
    stirbar_store_relaxed(a.heartbeat, a.beats)
    if now_ns - a.beaten_ns > PAUSE_NS:
        a.written_percent = -1
        actuators_write(a, 0.0, now_ns)
    a.beaten_ns = now_ns


cdef inline void actuators_lock(Actuators* a, int64_t now_ns) noexcept nogil:
    """Keep the stirrer's PWM in step with the chopped light; without chopping it has its own frequency. One that
    refuses is the light's to avoid."""
    cdef uint32_t chop_ns
    cdef int64_t moved
    cdef bint refused
    if a.chop_period_ns == NULL:
        return
    chop_ns = stirbar_load_relaxed(a.chop_period_ns)
    moved = <int64_t>chop_ns - <int64_t>a.locked_chop_ns
    if moved < 0:
        moved = -moved
    if moved == 0 or (chop_ns and moved * LOCK_PARTS <= <int64_t>a.locked_chop_ns):
        return
    a.locked_chop_ns = chop_ns
    refused = a.hal.stirrer_period(a.hal.context, locked_period_ns(chop_ns, a.stirrer_period_ns), now_ns) != 0
    a.bus_errors += refused
    stirbar_store_relaxed(
        &a.unlocked_mhz, <uint32_t>(1e12 / <double>a.stirrer_period_ns) if refused and a.stirrer_period_ns > 0 else 0)


cdef inline void pulses_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Slow PWM: write the edges that are due, wake for the next one."""
    cdef Actuators* a = <Actuators*>context
    if a.hal.pulse == NULL:
        sleep_for_ever(policy)
        return
    policy.target_ns = a.hal.pulse(a.hal.context, now_ns)


cdef inline void actuators_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Read edges, control, protect, write, publish: once a control period."""
    cdef Actuators* a = <Actuators*>context
    cdef int64_t stamps_ns[EDGES_PER_TICK]
    cdef Command command
    cdef TraceItem item
    cdef int i, count
    actuators_beat(a, now_ns)
    actuators_lock(a, now_ns)
    port_trace_tend(&a.port, now_ns)
    while port_command(&a.port, &command):
        actuators_command(a, &command, now_ns)
    count = a.hal.edges_read(a.hal.context, now_ns, stamps_ns, EDGES_PER_TICK)
    if count < 0:
        a.bus_errors += 1
    for i in range(count):
        trace_int(&item, TRACE_EDGE, 0, 0, 0, 0, stamps_ns[i])
        actuators_feed(a, &item)
    trace_int(&item, TRACE_TICK, 0, 0, 0, 0, now_ns)
    actuators_feed(a, &item)
    actuators_write(a, a.stirring.duty_percent, now_ns)
    if a.stirring.event:
        port_event(&a.port, now_ns, a.stirring.event, <int>a.stirring.stir.stalls, STREAM_RPM, a.stirring.event_value)
    sleep_next(policy, now_ns)
