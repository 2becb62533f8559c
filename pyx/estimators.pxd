# Why compiled: the one way by which what was measured becomes readings, live and in a replay alike.
# Thread rule: Estimators belong to the sampling thread, StirringLoop to the actuator thread; in a replay to its caller.
# Units: as in the trace (types.pxd): nanoseconds of the loop's clock, volts per code, the unit of each command.
#
# A trace item is applied by the same function when it happens and when it is read from a recording, so a replay from a
# snapshot of the struct repeats every reading bit by bit.

from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.od cimport OdState, od_blank, od_clock, od_gain, od_led, od_push, od_take, od_turn
from stirbar.rt.stirring cimport StirState, stir_duty, stir_edge, stir_reading, stir_stop, stir_target_rpm, stir_tick
from stirbar.rt.types cimport (
    COMMAND_BLANK, COMMAND_LED, COMMAND_STIR_DUTY, COMMAND_STIR_RPM, COMMAND_STIR_STOP, FLAG_STIRRING_OFF, MAX_CHANNELS,
    TRACE_CLOCK, TRACE_COMMAND, TRACE_CONVERSION, TRACE_EDGE, TRACE_GAIN, TRACE_PERIOD, TRACE_TICK, TRACE_TURN, Reading, TraceItem)

cdef struct Estimators:
    OdState od
    int64_t t0_ns            # of the TRACE_CLOCK item that waits for its TRACE_PERIOD
    uint32_t index0
    uint32_t flags           # FLAG_STIRRING_OFF, as the actuator thread says

cdef struct StirringLoop:
    StirState stir
    int64_t command_ns       # of the first half of a TRACE_COMMAND
    double duty_percent      # what the last tick asks for
    double event_value
    int event                # EVENT_STIR_* of the last tick, or 0
    int status               # of the last command: 0, or minus an errno


cdef inline int estimators_apply(Estimators* e, const TraceItem* item) noexcept nogil:
    """What one item of the sampling thread's trace does; returns how many readings are ready (estimators_take)."""
    if item.kind == TRACE_CONVERSION:
        return od_push(&e.od, item.channel, item.index, <int>item.value.i, item.phase, item.flags & 1)
    if item.kind == TRACE_CLOCK:
        e.index0 = item.index
        e.t0_ns = item.value.i
    elif item.kind == TRACE_PERIOD:
        od_clock(&e.od, item.channel, e.index0, e.t0_ns, item.value.f)
    elif item.kind == TRACE_GAIN:
        od_gain(&e.od, item.channel, item.value.f)
    elif item.kind == TRACE_TURN:
        od_turn(&e.od, 1e3 * <double>item.value.i)
    elif item.kind == TRACE_COMMAND:
        if item.index == COMMAND_BLANK:
            od_blank(&e.od, item.channel, item.value.f)
        elif item.index == COMMAND_LED:
            od_led(&e.od, item.value.f)
        elif item.index == COMMAND_STIR_STOP:
            e.flags = FLAG_STIRRING_OFF if item.value.f != 0 else 0
    return 0


cdef inline int estimators_take(Estimators* e, Reading* reading) noexcept nogil:
    """1 and the next reading that is ready, or 0."""
    if not od_take(&e.od, reading):
        return 0
    reading.flags |= e.flags
    return 1


cdef inline int stirring_apply(StirringLoop* s, const TraceItem* item, Reading* reading) noexcept nogil:
    """What one item of the actuator thread's trace does; 1 when it made a reading."""
    if item.kind == TRACE_EDGE:
        stir_edge(&s.stir, item.value.i)
    elif item.kind == TRACE_TICK:
        stir_tick(&s.stir, item.value.i, &s.duty_percent, &s.event, &s.event_value)
        return stir_reading(&s.stir, item.value.i, reading)
    elif item.kind == TRACE_COMMAND and item.phase == 0:
        s.command_ns = item.value.i
    elif item.kind == TRACE_COMMAND:
        if item.index == COMMAND_STIR_RPM:
            s.status = stir_target_rpm(&s.stir, item.value.f, s.command_ns)
        elif item.index == COMMAND_STIR_DUTY:
            s.status = stir_duty(&s.stir, item.value.f, s.command_ns)
        else:
            s.status = stir_stop(&s.stir, s.command_ns)
    return 0
