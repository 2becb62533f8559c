# Why compiled: timers, deadlines and control of everything that moves; no Python may delay it.
# Thread rule: the actuator thread; it never touches the I2C bus.
# Units: nanoseconds of the loop's clock, rpm, duty in percent.

from libc.math cimport fabs
from libc.stdint cimport int64_t, uint32_t, uint64_t

from stirbar.rt.controllers cimport TICK_NO_GUARD, Controllers, controllers_apply
from stirbar.rt.envelope cimport Envelope, envelope_holds
from stirbar.rt.doser cimport DOSE_LATE, DOSE_REFUSED, DOSE_UNGUARDED, STAGE_IDLE, Doser
from stirbar.rt.heat_protect cimport HEAT_BLIND, HEAT_REASONS, HEAT_SPOKEN_WHILE_OFF, HEAT_UNSTIRRED
from stirbar.rt.heat_trust cimport DISTRUST_NEW
from stirbar.rt.heating cimport heat_stop
from stirbar.rt.hal cimport Hal
from stirbar.rt.ports cimport (
    Port, port_command, port_event, port_reading, port_trace, port_trace_for, port_trace_tend, trace_float, trace_int)
from stirbar.rt.pulse_lock cimport locked_period_ns
from stirbar.rt.ring cimport stirbar_load_relaxed, stirbar_store_relaxed
from stirbar.rt.sleep_policy cimport SleepPolicy, sleep_for_ever, sleep_next
from stirbar.rt.types cimport (
    COMMAND_DOSE_ML, COMMAND_EXPERIMENT, COMMAND_HEAT_TARGET, COMMAND_HEAT_UNLOCK, COMMAND_PUMP, COMMAND_SIMULATION,
    COMMAND_STIR_DODGE, COMMAND_STIR_RAMP, COMMAND_STIR_RPM, COMMAND_STIR_STOP, COMMAND_TRACE, EVENT_COMMAND_DONE,
    EVENT_COMMAND_REFUSED, EVENT_HEAT_FREED, EVENT_HEAT_LIMITED, EVENT_LIMITS_RESTORED, STREAM_LIQUID, STREAM_RPM,
    STREAM_VOLUME, TRACE_COMMAND, TRACE_DOSE, TRACE_EDGE, TRACE_TEMPERATURE, TRACE_TICK, Command, Reading, TraceItem)
from stirbar.rt.volume cimport DOSE_PUMPS

cdef extern from "<unistd.h>" nogil:
    ssize_t c_write "write" (int fd, const void* data, size_t size)

cdef enum:
    EDGES_PER_TICK = 64
    DEADLINE_WORD = 1            # of the guard's page: off-deadlines of the pumps follow the heartbeat
    DOSE_MIXING_NS = 10000000000     # after a pump: readings are flagged for so much longer
    GUARD_SILENT_NS = 900000000  # a guard that has not beaten for longer is gone: no heat, no pump within a second
    UNSTIRRED_GRACE_S = 15       # from the first tick on
    PAUSE_NS = 2000000000    # after so long without a tick the guard may have switched the outputs off
    LOCK_PARTS = 5000        # the stirrer's PWM is locked anew when the chop period moved by 1/5000 (200 ppm)

cdef extern from *:
    """
    #ifndef STIRBAR_HEAT_STEP
    #define STIRBAR_HEAT_STEP 0.05
    #endif
    """
    const double HEAT_STEP_PERCENT "STIRBAR_HEAT_STEP"   # a smaller change of the duty is not written

cdef struct Actuators:
    Controllers controllers
    Port port
    const Hal* hal
    int (*simulate)(void* context, int parameter, double value) noexcept nogil  # NULL on hardware
    void* simulated
    double stir_percent      # the duties that the hardware has; -1: nothing written yet
    double heat_percent
    int pump                 # that was switched on last and not off since; -1: none
    uint32_t dosing          # read by the sampling thread: what it sees is being mixed
    SleepPolicy* doses       # of doses_tick
    int guard_wake           # to be written when a deadline was set; -1: no guard
    const Envelope* envelope     # in memory that cannot be written
    const uint32_t* board_word      # the heater board's temperature, written by the sampling thread (heating.pxd)
    uint32_t board_word_seen
    uint32_t heat_reasons    # that the host was told
    int64_t begun_ns         # the first tick; 0: none yet
    uint32_t bus_errors
    uint32_t stirring_off    # read by the sampling thread
    uint32_t unlocked_mhz    # of the stirrer's PWM where it cannot be locked to the light, read as well; 0: it is
    uint32_t turn_us         # time of a turn, once a second, read by the sampling thread; 0: it does not turn
    SleepPolicy* pulses      # of pulses_tick, to be woken by a write
    uint32_t* heartbeat      # the guard's page; NULL: no guard
    uint32_t beats
    int64_t beaten_ns        # when it did so last
    const uint32_t* guard_beat      # its own page; NULL: no guard
    uint32_t guard_seen
    int64_t guard_ns         # when it was last seen to beat
    const uint32_t* chop_period_ns  # written by the sampling thread, 0 while it does not chop; NULL: nobody says
    uint32_t locked_chop_ns  # for which the stirrer's period was chosen
    int64_t stirrer_period_ns       # as configured; 0: the profile's own


cdef inline void actuators_feed(Actuators* a, const TraceItem* item) noexcept nogil:
    cdef Reading reading
    port_trace(&a.port, item)
    if controllers_apply(&a.controllers, item, &reading):
        if reading.stream == STREAM_RPM:
            stirbar_store_relaxed(&a.turn_us, <uint32_t>(60e6 / reading.value) if reading.value > 1.0 else 0)
        port_reading(&a.port, &reading)


cdef inline bint actuators_guarded(Actuators* a, int64_t now_ns) noexcept nogil:
    """Whether the guard lives; a vial without one has nothing that it could hold."""
    cdef uint32_t beat
    if a.guard_beat == NULL:
        return True
    beat = stirbar_load_relaxed(a.guard_beat)
    if beat != a.guard_seen or a.guard_ns == 0:
        a.guard_seen = beat
        a.guard_ns = now_ns
    return now_ns - a.guard_ns <= GUARD_SILENT_NS


cdef inline int pump_order(Actuators* a, int pump, double duty_percent, int64_t now_ns) noexcept nogil:
    cdef int status = a.hal.pump_write(a.hal.context, pump, duty_percent, now_ns)
    if status:
        a.bus_errors += 1
    elif a.hal.pulse != NULL:
        a.pulses.target_ns = now_ns
    return status


cdef inline void actuators_deadlines(Actuators* a) noexcept nogil:
    """Show the guard until when each pump may run, and wake it for a new deadline."""
    cdef const Doser* d = &a.controllers.dose
    cdef uint64_t one = 1
    cdef uint32_t word
    cdef bint changed = False
    cdef int pump
    if a.heartbeat == NULL:
        return
    for pump in range(DOSE_PUMPS):
        word = 0
        if d.deadline_ns and pump == d.plan.step_pump:
            word = <uint32_t>((d.deadline_ns + 999999) // 1000000)
            word = word if word else 1
        elif pump == a.pump:
            continue         # it did not take the order to go off: the guard's word is the last
        if word != a.heartbeat[DEADLINE_WORD + pump]:
            stirbar_store_relaxed(&a.heartbeat[DEADLINE_WORD + pump], word)
            changed = changed or word != 0
    if changed and a.guard_wake >= 0 and c_write(a.guard_wake, &one, sizeof(one)) < 0:
        a.bus_errors += 1    # it looks again within 0.1 s


cdef inline bint actuators_pumps(Actuators* a, int64_t now_ns) noexcept nogil:
    """Write what the doser wants: off first, then the deadlines, then on; 0 when a pump did not start."""
    cdef const Doser* d = &a.controllers.dose
    if a.pump >= 0 and a.pump != d.running and pump_order(a, a.pump, 0.0, now_ns) == 0:
        a.pump = -1
    actuators_deadlines(a)
    a.doses.target_ns = d.due_ns
    if d.running >= 0 and a.pump < 0:
        if pump_order(a, d.running, d.pump[d.running].duty_percent, now_ns):
            return False
        a.pump = d.running
    if d.running >= 0:
        stirbar_store_relaxed(&a.dosing, 1)
    return True


cdef inline void actuators_say_doses(Actuators* a, int64_t now_ns) noexcept nogil:
    cdef const Doser* d = &a.controllers.dose
    cdef int i
    for i in range(d.events):
        port_event(&a.port, now_ns, d.event[i].code, d.event[i].argument, STREAM_VOLUME, d.event[i].value)


cdef inline void actuators_dose(Actuators* a, int flags, int64_t now_ns) noexcept nogil:
    """Look at the doser, and do what it wants."""
    cdef TraceItem item
    trace_int(&item, TRACE_DOSE, 0, 0, flags, 0, now_ns)
    actuators_feed(a, &item)
    actuators_say_doses(a, now_ns)
    if not actuators_pumps(a, now_ns):
        trace_int(&item, TRACE_DOSE, 0, 0, DOSE_REFUSED, 0, now_ns)
        actuators_feed(a, &item)
        actuators_say_doses(a, now_ns)
        actuators_pumps(a, now_ns)


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
    elif COMMAND_STIR_RPM <= command.code <= COMMAND_STIR_STOP or (
            COMMAND_HEAT_TARGET <= command.code <= COMMAND_HEAT_UNLOCK) or (
            COMMAND_STIR_RAMP <= command.code <= COMMAND_STIR_DODGE) or (
            COMMAND_DOSE_ML <= command.code <= COMMAND_PUMP):
        trace_int(&item, TRACE_COMMAND, 0, 0, 0, command.code, now_ns)
        actuators_feed(a, &item)
        trace_float(&item, TRACE_COMMAND, <int>command.channel, 1, command.code, command.value)
        item.flags = 0 if actuators_guarded(a, now_ns) else DOSE_UNGUARDED
        actuators_feed(a, &item)
        status = a.controllers.status
        if command.code >= COMMAND_DOSE_ML:
            actuators_pumps(a, now_ns)
            actuators_say_doses(a, now_ns)
    else:
        status = -1
    port_event(&a.port, now_ns, EVENT_COMMAND_REFUSED if status else EVENT_COMMAND_DONE, <int>command.id, 0, status)


cdef inline void actuators_stir(Actuators* a, double duty_percent, int64_t now_ns) noexcept nogil:
    """Write a duty that the stirrer does not have yet; tried again at the next tick when the write fails."""
    if duty_percent == a.stir_percent:
        return
    if a.hal.stirrer_write(a.hal.context, duty_percent, now_ns) == 0:
        a.stir_percent = duty_percent
        stirbar_store_relaxed(&a.stirring_off, duty_percent <= 0)
        if a.hal.pulse != NULL:
            a.pulses.target_ns = now_ns
    else:
        a.bus_errors += 1


cdef inline void actuators_heat(Actuators* a, double duty_percent, int64_t now_ns) noexcept nogil:
    """As actuators_stir, for the heater: a change too small to matter waits, switching off never does."""
    if duty_percent == a.heat_percent or (
            duty_percent > 0.0 and a.heat_percent > 0.0 and fabs(duty_percent - a.heat_percent) < HEAT_STEP_PERCENT):
        return
    if a.hal.heater_write(a.hal.context, duty_percent, now_ns) == 0:
        a.heat_percent = duty_percent
        if a.hal.pulse != NULL:
            a.pulses.target_ns = now_ns
    else:
        a.bus_errors += 1


cdef inline void actuators_off(Actuators* a, int64_t now_ns) noexcept nogil:
    """Everything off, whatever was written before."""
    cdef int pump
    for pump in range(DOSE_PUMPS):
        pump_order(a, pump, 0.0, now_ns)
    a.stir_percent = a.heat_percent = a.pump = -1
    actuators_heat(a, 0.0, now_ns)
    actuators_stir(a, 0.0, now_ns)


cdef inline void actuators_say_heat(Actuators* a, int64_t now_ns) noexcept nogil:
    """An event for each reason that began or ended to keep the heater below what was asked for."""
    cdef uint32_t reasons = a.controllers.heat.protect.reasons
    cdef uint32_t changed
    cdef int bit
    if not a.controllers.heat.control.on:
        reasons &= HEAT_SPOKEN_WHILE_OFF
    if a.controllers.heat.trust.distrust == DISTRUST_NEW:
        reasons &= ~<uint32_t>HEAT_BLIND      # a sensor that has yet to prove itself is no fault,
    if now_ns - a.begun_ns < <int64_t>UNSTIRRED_GRACE_S * 1000000000:
        reasons &= ~<uint32_t>HEAT_UNSTIRRED  # nor a stirrer that is only starting
    changed = reasons ^ a.heat_reasons
    a.heat_reasons = reasons
    for bit in range(HEAT_REASONS):
        if changed >> bit & 1:
            port_event(&a.port, now_ns, EVENT_HEAT_LIMITED if reasons >> bit & 1 else EVENT_HEAT_FREED, bit,
                       STREAM_LIQUID, a.controllers.heat.trust.last_degc)


cdef inline void actuators_beat(Actuators* a, int64_t now_ns) noexcept nogil:
    """Tell the guard that this thread runs: a store, no system call. After a long pause the outputs begin anew."""
    if a.heartbeat == NULL:
        return
    a.beats += 1
    stirbar_store_relaxed(a.heartbeat, a.beats)
    if now_ns - a.beaten_ns > PAUSE_NS:
        actuators_dose(a, DOSE_LATE, now_ns)
        actuators_off(a, now_ns)
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


cdef inline void actuators_take_temperature(Actuators* a, int64_t now_ns) noexcept nogil:
    """What the sampling thread has read of the heater board since the last tick."""
    cdef uint32_t word = stirbar_load_relaxed(a.board_word)
    cdef TraceItem item
    if word != a.board_word_seen:
        a.board_word_seen = word
        trace_int(&item, TRACE_TEMPERATURE, 0, 0, 0, word, now_ns)
        actuators_feed(a, &item)


cdef inline void actuators_watch_dose(Actuators* a, bint guarded, int64_t now_ns) noexcept nogil:
    """Once a control period: what a dose depends on; a pump that did not take an order; the end of mixing."""
    cdef const Doser* d = &a.controllers.dose
    if d.stage != STAGE_IDLE or a.pump >= 0:
        actuators_dose(a, 0 if guarded else DOSE_UNGUARDED, now_ns)
    elif a.dosing and now_ns - d.ran_ns > DOSE_MIXING_NS:
        stirbar_store_relaxed(&a.dosing, 0)


cdef inline void actuators_hold_envelope(Actuators* a, int64_t now_ns) noexcept nogil:
    """Limits that changed while the loop runs were changed by a fault: nothing that they bounded goes on."""
    if envelope_holds(&a.controllers, a.envelope):
        return
    heat_stop(&a.controllers.heat)
    actuators_dose(a, DOSE_LATE, now_ns)
    port_event(&a.port, now_ns, EVENT_LIMITS_RESTORED, 0, 0, 0.0)


cdef inline void doses_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """A pump is to start or to stop."""
    cdef Actuators* a = <Actuators*>context
    actuators_dose(a, 0 if actuators_guarded(a, now_ns) else DOSE_UNGUARDED, now_ns)
    policy.target_ns = a.controllers.dose.due_ns


cdef inline void actuators_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Read edges, control, protect, write, publish: once a control period."""
    cdef Actuators* a = <Actuators*>context
    cdef int64_t stamps_ns[EDGES_PER_TICK]
    cdef Command command
    cdef TraceItem item
    cdef int i, count
    cdef bint guarded
    if a.begun_ns == 0:
        a.begun_ns = now_ns
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
    actuators_take_temperature(a, now_ns)
    guarded = actuators_guarded(a, now_ns)
    actuators_hold_envelope(a, now_ns)
    trace_int(&item, TRACE_TICK, 0, 0, 0 if guarded else TICK_NO_GUARD, 0, now_ns)
    actuators_feed(a, &item)
    actuators_heat(a, a.controllers.heat_percent, now_ns)
    actuators_stir(a, a.controllers.stir_percent, now_ns)
    actuators_watch_dose(a, guarded, now_ns)
    actuators_say_heat(a, now_ns)
    if a.controllers.event:
        port_event(&a.port, now_ns, a.controllers.event, <int>a.controllers.stir.stalls, STREAM_RPM,
                   a.controllers.event_value)
    sleep_next(policy, now_ns)
