# Why compiled: a converter without a ready line is read at the pace of the clock that its light tells.
# Thread rule: the sampling thread; it owns the I2C bus.
# Units: nanoseconds of the loop's clock, volts, conversions.
#
# PACE_PILOT     the register is read in each conversion; pilot.pxd says which one it holds (IS-22). Also here, for
#                every pace: what gain.pxd decides is done before the tick ends.

from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.gain cimport (
    GAIN_LIGHT_OFF, GAIN_MOVED, GAIN_OVER_VOLTAGE, GAIN_WARNING, GAIN_WRITE, gain_full_scale_v, gain_holds_light,
    gain_look, gain_looked, gain_multiple, gain_volts_per_code, gain_written)
from stirbar.rt.hal cimport PACE_PILOT, Conversion
from stirbar.rt.light cimport (
    sampler_choose_half_cycle, sampler_edge, sampler_half_cycle, sampler_has_moved, sampler_light, sampler_publish_chop)
from stirbar.rt.pilot cimport (
    PILOT_LOCKED, PILOT_NEW, Pilot, pilot_end_ns, pilot_forget, pilot_next_edge_ns, pilot_next_ns, pilot_rate_hz,
    pilot_read)
from stirbar.rt.ports cimport port_event
from stirbar.rt.sampler_state cimport (
    Channel, Sampler, sampler_conversion, sampler_feed_float, sampler_light_unknown, sampler_may_light, sampler_model,
    sampler_number, sampler_wants_model)
from stirbar.rt.sampling_paces cimport sampler_lost, sampler_revive
from stirbar.rt.types cimport (
    EVENT_GAIN, EVENT_HIGH_VOLTAGE, EVENT_OVER_VOLTAGE, EVENT_RATE_LOCKED, STREAM_OD1, TRACE_GAIN)

cdef extern from *:
    """
    #define STIRBAR_PILOT_SILENCE_NS 2000000000LL  /* a converter whose clock is not found for so long is lost */
    """
    const int64_t PILOT_SILENCE_NS "STIRBAR_PILOT_SILENCE_NS"


# --- ranges ---

cdef inline void sampler_write_gain(Sampler* s, int index) noexcept nogil:
    """Write the range that is wanted; one that is refused is tried again in the next tick."""
    cdef Channel* channel = &s.channel[index]
    cdef int64_t before_ns = s.clock.now_ns(s.clock.context)
    if channel.lost:
        return
    if s.hal.adc_gain(s.hal.context, index, gain_full_scale_v(&channel.gain), before_ns):
        s.bus_errors += 1
        channel.acts |= GAIN_WRITE
        s.acting = 1
        return
    gain_written(&channel.gain, before_ns, s.clock.now_ns(s.clock.context))
    if channel.plan.pace == PACE_PILOT:
        pilot_forget(&channel.pilot)


cdef inline void sampler_act(Sampler* s, int index) noexcept nogil:
    """Do and tell what a channel's gain ranging decided in this tick; the light first."""
    cdef Channel* channel = &s.channel[index]
    cdef int acts = channel.acts
    cdef int64_t now_ns
    channel.acts = 0
    if acts & GAIN_LIGHT_OFF and s.led.on:
        sampler_light(s, 0)
    if acts & GAIN_WRITE:
        sampler_write_gain(s, index)
    now_ns = s.clock.now_ns(s.clock.context)
    if acts & GAIN_MOVED:
        port_event(&s.port, now_ns, EVENT_GAIN, index + 1, STREAM_OD1 + index, gain_full_scale_v(&channel.gain))
    if acts & GAIN_OVER_VOLTAGE:
        port_event(&s.port, now_ns, EVENT_OVER_VOLTAGE, index + 1, STREAM_OD1 + index, channel.gain.level_v)
    if acts & GAIN_WARNING:
        port_event(&s.port, now_ns, EVENT_HIGH_VOLTAGE, index + 1, STREAM_OD1 + index, channel.gain.level_v)


cdef inline void sampler_tend_gain(Sampler* s) noexcept nogil:
    """Before the tick ends: what the ranges of all channels want; mostly nothing."""
    cdef Channel* channel
    cdef int i
    cdef int held = 0
    if not s.acting and not s.held:
        return
    s.acting = 0
    for i in range(s.active_count):
        channel = &s.channel[s.active[i]]
        if channel.acts:
            sampler_act(s, s.active[i])
        if channel.ranged and gain_holds_light(&channel.gain):
            held = 1
    s.held = held


# --- the light ---

cdef inline bint pilot_chops_next(const Sampler* s, int index) noexcept nogil:
    """Whether the next conversion of this channel ends a half-cycle."""
    cdef const Channel* channel = &s.channel[index]
    return index == s.master and channel.pilot.state == PILOT_LOCKED and (
        <int>(channel.last_index + 1 - s.toggled_index) >= sampler_half_cycle(s))


cdef inline void pilot_light(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """The master changes the light before it reads: then the light changes in the middle of a conversion, where that
    costs only one and tells most. While the master's clock is sought, the light goes by time."""
    cdef Channel* channel = &s.channel[index]
    if index != s.master:
        return
    if pilot_chops_next(s, index):
        s.toggled_index = channel.last_index + 1
        sampler_edge(s)
    elif channel.pilot.state != PILOT_LOCKED and not s.held and sampler_may_light(s, now_ns) and (
            now_ns >= pilot_next_edge_ns(&channel.pilot)):
        s.paused = 0
        sampler_light(s, not s.led.on)


# --- conversions ---

cdef inline void pilot_conversion(Sampler* s, int index, const Conversion* conversion, int64_t now_ns) noexcept nogil:
    """A conversion that has a number."""
    cdef Channel* channel = &s.channel[index]
    cdef Pilot* pilot = &channel.pilot
    cdef int64_t end_ns = pilot_end_ns(pilot, pilot.last_index)
    cdef uint32_t number = sampler_number(channel, pilot.last_index, end_ns, now_ns)
    if sampler_wants_model(channel, number):
        sampler_model(s, index, number, end_ns, pilot.period_ns)
        channel.aperture_ns = channel.period_ns
        if index == s.master:
            if sampler_has_moved(s):
                sampler_choose_half_cycle(s, now_ns)
            else:
                sampler_publish_chop(s)
    sampler_conversion(s, index, number, end_ns - <int64_t>pilot.period_ns, end_ns, conversion, now_ns)


cdef inline void pilot_seek(Sampler* s, int index, const Conversion* conversion, int64_t now_ns) noexcept nogil:
    """A look at a register whose conversions have no numbers yet."""
    cdef Channel* channel = &s.channel[index]
    channel.modelled = 0
    if index != s.master:
        s.seeking |= <uint32_t>1 << index
    if channel.ranged:
        if gain_looked(&channel.gain, conversion.ready_ns, channel.pilot.nominal_ns):
            sampler_feed_float(s, TRACE_GAIN, index, 0, gain_volts_per_code(&channel.gain))
            pilot_forget(&channel.pilot)
        channel.acts |= gain_look(&channel.gain, conversion.code, conversion.clipped)
        s.acting |= channel.acts
    if s.held or s.paused or sampler_light_unknown(s):  # it answers, but has no light to tell its clock by
        channel.heard_ns = now_ns
    elif now_ns - channel.heard_ns > PILOT_SILENCE_NS:
        sampler_lost(s, index, now_ns)


cdef inline void pilot_schedule(Sampler* s, int index) noexcept nogil:
    """When this channel is to be read next."""
    cdef Channel* channel = &s.channel[index]
    cdef int64_t lead_ns = channel.plan.light_ns if pilot_chops_next(s, index) else 0
    cdef int64_t edge_ns
    channel.due_ns = pilot_next_ns(&channel.pilot, lead_ns)
    if index == s.master and channel.pilot.state != PILOT_LOCKED and not s.held:
        edge_ns = pilot_next_edge_ns(&channel.pilot)
        if not sampler_may_light(s, edge_ns):
            edge_ns = s.light_retry_ns
        channel.due_ns = edge_ns if edge_ns < channel.due_ns else channel.due_ns
    channel.expected_ns = channel.due_ns


cdef inline void sampler_pilot(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """Change the light when it is time, then read a silent converter."""
    cdef Channel* channel = &s.channel[index]
    cdef Conversion conversion
    cdef int said, was_locked, status
    if channel.lost and not sampler_revive(s, index, now_ns):
        return
    pilot_light(s, index, now_ns)
    was_locked = channel.pilot.state == PILOT_LOCKED
    now_ns = s.clock.now_ns(s.clock.context)
    status = s.hal.adc_read(s.hal.context, index, now_ns, &conversion)
    if status < 0:
        s.bus_errors += 1
        sampler_lost(s, index, now_ns)
        return
    said = pilot_read(
        &channel.pilot, conversion.ready_ns, conversion.code * gain_multiple(&channel.gain), conversion.clipped)
    if channel.pilot.state != PILOT_LOCKED:
        pilot_seek(s, index, &conversion, now_ns)
        if channel.lost:
            return
    elif not was_locked:
        s.seeking &= ~(<uint32_t>1 << index)
        port_event(&s.port, now_ns, EVENT_RATE_LOCKED, index + 1, STREAM_OD1 + index, pilot_rate_hz(&channel.pilot))
    if said == PILOT_NEW:
        pilot_conversion(s, index, &conversion, now_ns)
    pilot_schedule(s, index)
