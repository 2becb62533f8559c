# Why compiled: the one way by which edges, temperatures and commands become duties and readings, live and in a replay.
# Thread rule: the actuator thread; in a replay its caller.
# Units: as in the trace (types.pxd): nanoseconds of the loop's clock, the unit of each command; duty in percent.

from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.dodging cimport Dodging, dodge_duty, dodge_give, dodge_stop, dodge_target, dodge_tick
from stirbar.rt.doser cimport (
    Doser, doser_continuous, doser_dose, doser_exchange, doser_fill, doser_part, doser_pump, doser_renew, doser_stop,
    doser_tick)
from stirbar.rt.heating cimport (
    HeatState, heat_duty, heat_fill, heat_reading, heat_renew, heat_stop, heat_target, heat_tick, heat_unlock,
    heat_word_degc)
from stirbar.rt.liquid cimport liquid_exchange, liquid_resize
from stirbar.rt.stir_report cimport stir_is_seen, stir_reading, stir_turns
from stirbar.rt.stirring cimport STIR_OFF, StirState, stir_curve, stir_edge, stir_ramp_rate, stir_tick
from stirbar.rt.types cimport (
    COMMAND_DOSE_CONTINUOUS, COMMAND_DOSE_EXCHANGE, COMMAND_DOSE_ML, COMMAND_DOSE_PART, COMMAND_DOSE_RENEW,
    COMMAND_DOSE_SECONDS, COMMAND_DOSE_STOP, COMMAND_HEAT_DUTY, COMMAND_HEAT_RENEW, COMMAND_HEAT_STOP,
    COMMAND_HEAT_TARGET, COMMAND_HEAT_UNLOCK, COMMAND_PUMP, COMMAND_STIR_CURVE, COMMAND_STIR_DODGE, COMMAND_STIR_DUTY,
    COMMAND_STIR_RAMP, COMMAND_STIR_RPM, COMMAND_VOLUME, TRACE_COMMAND, TRACE_DOSE, TRACE_EDGE, TRACE_TEMPERATURE,
    TRACE_TICK, Reading, TraceItem)
from stirbar.rt.volume cimport VOLUME_ML, volume_set

cdef enum:
    TICK_NO_GUARD = 1        # TraceItem.flags of a TRACE_TICK

cdef struct Controllers:
    StirState stir
    Dodging dodging
    HeatState heat
    Doser dose
    int64_t command_ns       # of the first half of a TRACE_COMMAND
    double stir_percent      # the duties that the last tick asks for
    double heat_percent
    double event_value
    int event                # EVENT_STIR_* of the last tick, or 0
    int status               # of the last command: 0, or minus an errno


cdef inline bint stir_permits_dose(const Controllers* c, int64_t now_ns) noexcept nogil:
    """A stirrer that was switched off mixes nothing, and is somebody's wish; one that should turn has to be seen."""
    return c.stir.phase == STIR_OFF or stir_is_seen(&c.stir, now_ns)


cdef inline int dose_command(Controllers* c, const TraceItem* item) noexcept nogil:
    """0, or minus an errno and nothing changed; the item's flags are DOSE_* of doser.pxd."""
    cdef int64_t now_ns = c.command_ns
    cdef bint stirred = stir_permits_dose(c, now_ns)
    cdef double value = item.value.f
    cdef int status
    if item.index == COMMAND_DOSE_ML or item.index == COMMAND_DOSE_SECONDS:
        return doser_dose(
            &c.dose, item.channel, value, item.index == COMMAND_DOSE_SECONDS, item.flags, stirred, now_ns)
    if item.index == COMMAND_DOSE_CONTINUOUS:
        return doser_continuous(&c.dose, item.channel, item.flags, stirred, now_ns)
    if item.index == COMMAND_DOSE_RENEW:
        return doser_renew(&c.dose, now_ns)
    if item.index == COMMAND_DOSE_PART:
        return doser_part(&c.dose, item.channel, value)
    if item.index == COMMAND_DOSE_EXCHANGE:
        return doser_exchange(&c.dose, value, item.flags, stirred, now_ns)
    if item.index == COMMAND_PUMP:
        return doser_pump(&c.dose, item.channel, value)
    if item.index == COMMAND_VOLUME:
        status = volume_set(&c.dose.volume, item.channel, value)
        if status == 0 and item.channel == VOLUME_ML:
            liquid_resize(&c.heat.liquid, value)
        return status
    return doser_stop(&c.dose, value != 0.0, now_ns)


cdef inline int controllers_dose(Controllers* c, const TraceItem* item, Reading* reading) noexcept nogil:
    """A look at the doser, or a command to it; 1 when the account changed and is in `reading`."""
    cdef double before_ml = c.dose.volume.item[VOLUME_ML]
    cdef double out_ml
    c.dose.events = 0        # who wants to hear them has: they belong to one look
    if item.kind == TRACE_DOSE:
        doser_tick(&c.dose, item.flags, stir_permits_dose(c, item.value.i), item.value.i)
    else:
        c.status = dose_command(c, item)
        if item.index == COMMAND_VOLUME:
            doser_fill(&c.dose, c.command_ns, reading)
            return c.status == 0
    if c.dose.events == 0:
        return 0
    out_ml = before_ml + c.dose.step_in_ml - c.dose.volume.item[VOLUME_ML]
    liquid_exchange(&c.heat.liquid, c.dose.step_in_ml, out_ml)
    doser_fill(&c.dose, item.value.i if item.kind == TRACE_DOSE else c.command_ns, reading)
    return 1


cdef inline int controllers_command(Controllers* c, uint32_t code, int part, double value) noexcept nogil:
    """`part` is the command's channel. 0, or minus an errno and nothing changed."""
    if code == COMMAND_STIR_RPM:
        return dodge_target(&c.dodging, &c.stir, value, c.command_ns)
    if code == COMMAND_STIR_DUTY:
        return dodge_duty(&c.dodging, &c.stir, value, c.command_ns)
    if code == COMMAND_STIR_RAMP:
        return stir_ramp_rate(&c.stir, value)
    if code == COMMAND_STIR_CURVE:
        return stir_curve(&c.stir, part, value)
    if code == COMMAND_STIR_DODGE:
        return dodge_give(&c.dodging, &c.stir, part, value, c.command_ns)
    if code == COMMAND_HEAT_TARGET:
        return heat_target(&c.heat, value, c.command_ns)
    if code == COMMAND_HEAT_DUTY:
        return heat_duty(&c.heat, value, c.command_ns)
    if code == COMMAND_HEAT_STOP:
        return heat_stop(&c.heat)
    if code == COMMAND_HEAT_RENEW:
        return heat_renew(&c.heat, c.command_ns)
    if code == COMMAND_HEAT_UNLOCK:
        return heat_unlock(&c.heat)
    return dodge_stop(&c.dodging, &c.stir, c.command_ns)


cdef inline int controllers_apply(Controllers* c, const TraceItem* item, Reading* reading) noexcept nogil:
    """What one item of the actuator thread's trace does; 1 when it made a reading."""
    if item.kind == TRACE_EDGE:
        stir_edge(&c.stir, item.value.i)
    elif item.kind == TRACE_TICK:
        dodge_tick(&c.dodging, &c.stir, item.value.i)
        stir_tick(&c.stir, item.value.i, &c.stir_percent, &c.event, &c.event_value)
        c.heat_percent = heat_tick(
            &c.heat, stir_is_seen(&c.stir, item.value.i), not item.flags & TICK_NO_GUARD, item.value.i)
        return stir_reading(&c.stir, item.value.i, reading) or stir_turns(&c.stir, item.value.i, reading)
    elif item.kind == TRACE_TEMPERATURE:
        heat_reading(&c.heat, heat_word_degc(item.index), item.value.i)
        if c.heat.liquid.started:
            heat_fill(&c.heat, item.value.i, reading)
            return 1
    elif item.kind == TRACE_DOSE:
        return controllers_dose(c, item, reading)
    elif item.kind == TRACE_COMMAND and item.phase == 0:
        c.command_ns = item.value.i
    elif item.kind == TRACE_COMMAND and COMMAND_DOSE_ML <= item.index <= COMMAND_PUMP:
        return controllers_dose(c, item, reading)
    elif item.kind == TRACE_COMMAND:
        c.status = controllers_command(c, item.index, item.channel, item.value.f)
    return 0
