# Why compiled: each kind of converter is asked at the moment when its next conversion is there.
# Thread rule: the sampling thread; it owns the I2C bus.
# Units: nanoseconds of the loop's clock, volts, conversions.
#
# PACE_READY      the converter's clock leads; it is tracked from the ready stamps (IS-23)
# PACE_HOST       we begin each conversion, on a grid of our own; channels of one converter take turns (IS-21)
# PACE_SMOOTHED   a microcontroller's running mean, looked at on a grid of our own (IS-24)

from libc.errno cimport EAGAIN
from libc.math cimport NAN
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t

from stirbar.rt.converter_clock cimport (
    converter_clock_init, converter_clock_next_ns, converter_clock_push, converter_clock_rate_hz)
from stirbar.rt.gain cimport gain_full_scale_v, gain_resume, gain_volts_per_code
from stirbar.rt.hal cimport PACE_HOST, PACE_PILOT, Conversion
from stirbar.rt.light cimport (
    EDGE_AFTER, READ_AFTER, sampler_choose_half_cycle, sampler_edge, sampler_half_cycle, sampler_has_moved,
    sampler_light, sampler_publish_chop)
from stirbar.rt.pilot cimport pilot_init
from stirbar.rt.ports cimport port_event, trace_int
from stirbar.rt.sampler_state cimport (
    RETRY_NS, SILENCE_NS, SLOW_RAIL, Channel, HostGrid, Sampler, host_begin_ns, sampler_conversion, sampler_feed,
    sampler_feed_float, sampler_model, sampler_number, sampler_wants_model)
from stirbar.rt.types cimport (
    EVENT_RATE_LOCKED, EVENT_SENSOR_BACK, EVENT_SENSOR_LOST, PHASE_EDGE, STREAM_OD1, TRACE_CONVERSION, TRACE_GAIN,
    TraceItem)

cdef enum:
    HOST_LENT = 2            # Channel.begun
    HOST_ASKS = 4            # for a conversion that should be there
    HOST_POLL_NS = 100000    # between them

cdef extern from *:
    """
    #define STIRBAR_HOST_SLOWEST 1.12   /* times the nominal integration time: the converter's clock is 10 % off */
    #define STIRBAR_HOST_WAKE_NS 30000  /* of a converter, before it integrates */
    """
    const double HOST_SLOWEST "STIRBAR_HOST_SLOWEST"
    const int64_t HOST_WAKE_NS "STIRBAR_HOST_WAKE_NS"


# --- lost and found ---

cdef inline int sampler_other_master(const Sampler* s) noexcept nogil:
    """A photodiode that measures and is not lost; -1: there is none."""
    cdef int i
    for i in range(s.active_count):
        if s.config.angle[s.active[i]] > 0 and not s.channel[s.active[i]].lost:
            return s.active[i]
    return -1


cdef inline void sampler_pass_pace(Sampler* s) noexcept nogil:
    """The light goes at the pace of another photodiode; without any it is switched off."""
    cdef int other = sampler_other_master(s)
    if other < 0:
        if s.led.on:
            sampler_light(s, 0)
        return
    if other != s.master:
        s.master = other
        s.toggled_index = (
            s.grid.turn if s.channel[other].plan.pace == PACE_HOST else s.channel[other].last_index)
        s.rate_chosen_hz = 1.0  # k is chosen again with the next clock model


cdef inline void sampler_lost(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """A converter that fails or has fallen silent is asked again once a second; the others go on."""
    cdef Channel* channel = &s.channel[index]
    channel.expected_ns = channel.due_ns = now_ns + RETRY_NS
    channel.begun = 0
    if index == s.rail_lender:
        s.rail_v = NAN
    s.seeking &= ~(<uint32_t>1 << index)
    if not channel.lost:
        channel.lost = 1
        port_event(&s.port, now_ns, EVENT_SENSOR_LOST, 0, STREAM_OD1 + index, 0)
    if index == s.master:
        sampler_pass_pace(s)


cdef inline int sampler_begin(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """Start a converter anew; 0, or minus an errno."""
    cdef Channel* channel = &s.channel[index]
    cdef double full_scale_v = s.config.full_scale_v[index]
    cdef int status
    if channel.ranged:
        gain_resume(&channel.gain)
        full_scale_v = gain_full_scale_v(&channel.gain)
        sampler_feed_float(s, TRACE_GAIN, index, 0, gain_volts_per_code(&channel.gain))
    else:
        sampler_feed_float(s, TRACE_GAIN, index, 0, full_scale_v / 32768.0)
    status = s.hal.adc_start(s.hal.context, index, full_scale_v, channel.plan.conversion_hz, now_ns)
    channel.acts = 0
    converter_clock_init(&channel.clock, channel.plan.conversion_hz)
    if channel.plan.pace == PACE_PILOT:
        pilot_init(&channel.pilot, channel.plan.conversion_hz, channel.plan.settle_ns, now_ns)
    channel.started = 0
    channel.modelled = 0
    channel.heard_ns = now_ns
    channel.expected_ns = now_ns
    channel.due_ns = now_ns + s.poll_ns
    channel.begun = 0
    s.bus_errors += status != 0
    return status


cdef inline int sampler_revive(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """Start a lost converter; whether it answers."""
    if sampler_begin(s, index, now_ns):
        sampler_lost(s, index, now_ns)
        return 0
    s.channel[index].lost = 0
    s.light_retry_ns = now_ns  # the light may have come back with it
    port_event(&s.port, now_ns, EVENT_SENSOR_BACK, 0, STREAM_OD1 + index, 0)
    if s.channel[s.master].lost:
        sampler_pass_pace(s)
    return 1


# --- PACE_READY ---

cdef inline void sampler_ready(Sampler* s, int index, const Conversion* conversion, int64_t now_ns) noexcept nogil:
    """Time a conversion by its ready stamp."""
    cdef Channel* channel = &s.channel[index]
    cdef int64_t end_ns
    cdef int was_locked = channel.clock.locked
    cdef uint32_t number = sampler_number(channel, conversion.index, conversion.ready_ns, now_ns)
    if not converter_clock_push(&channel.clock, number, conversion.ready_ns):
        channel.modelled = 0
        return
    if not was_locked:
        port_event(&s.port, now_ns, EVENT_RATE_LOCKED, index + 1, STREAM_OD1 + index,
                   converter_clock_rate_hz(&channel.clock))
    end_ns = channel.clock.origin_ns + <int64_t>channel.clock.end_ns
    if sampler_wants_model(channel, number):
        sampler_model(s, index, number, end_ns, channel.clock.period_ns)
        channel.aperture_ns = channel.period_ns
        if index == s.master:
            if sampler_has_moved(s):
                sampler_choose_half_cycle(s, now_ns)
            else:
                sampler_publish_chop(s)
    sampler_conversion(s, index, number, end_ns - <int64_t>channel.clock.period_ns, end_ns, conversion, now_ns)


cdef inline bint sampler_ends_half(const Sampler* s, int index) noexcept nogil:
    """Whether the next conversion of this channel ends a half-cycle: the light then changes before it is read."""
    cdef const Channel* channel = &s.channel[index]
    return s.light_first and index == s.master and channel.clock.locked and channel.modelled and (
        <int32_t>(channel.last_index + 1 - s.toggled_index) >= sampler_half_cycle(s))


cdef inline void sampler_fetch(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """Read a converter whose next conversion should be ready, and say when it wants to be read again.

    Where the bus has room for it, the light changes before the conversion that ends a half-cycle is read: the sooner,
    the more of the next one's time is left to settle in.
    """
    cdef Channel* channel = &s.channel[index]
    cdef Conversion conversion
    cdef double after
    cdef int status
    if channel.lost and not sampler_revive(s, index, now_ns):
        return
    if sampler_ends_half(s, index):
        s.toggled_index = channel.last_index + 1
        sampler_edge(s)
    status = s.hal.adc_read(s.hal.context, index, now_ns, &conversion)
    if status == 1:
        sampler_ready(s, index, &conversion, now_ns)
        if channel.clock.locked:
            channel.expected_ns = converter_clock_next_ns(&channel.clock)
            after = EDGE_AFTER if sampler_ends_half(s, index) else READ_AFTER
            channel.due_ns = channel.expected_ns + <int64_t>(after * channel.clock.period_ns)
        else:
            channel.expected_ns = now_ns
            channel.due_ns = now_ns + s.poll_ns
    elif status < 0:
        s.bus_errors += 1
        sampler_lost(s, index, now_ns)
    elif now_ns - channel.heard_ns > SILENCE_NS:
        sampler_lost(s, index, now_ns)
    else:
        channel.due_ns = now_ns + s.poll_ns


# --- PACE_SMOOTHED ---

cdef inline void sampler_look(Sampler* s, int index, int64_t now_ns) noexcept nogil:
    """Look at a running mean; the next look is one period of the grid later."""
    cdef Channel* channel = &s.channel[index]
    cdef Conversion conversion
    cdef int64_t target_ns = channel.expected_ns
    cdef int64_t period_ns = <int64_t>channel.period_ns
    cdef int64_t passed
    cdef uint32_t number
    cdef int status
    if channel.lost:
        if not sampler_revive(s, index, now_ns):
            return
        target_ns = now_ns
    status = s.hal.adc_read(s.hal.context, index, now_ns, &conversion)
    if status < 0:
        s.bus_errors += 1
        sampler_lost(s, index, now_ns)
        return
    if status == 1:
        number = sampler_number(channel, channel.looks, conversion.ready_ns, now_ns)
        if sampler_wants_model(channel, number):
            sampler_model(s, index, number, target_ns, channel.period_ns)
            if index == s.master and sampler_has_moved(s):
                sampler_choose_half_cycle(s, now_ns)
        sampler_conversion(s, index, number, conversion.ready_ns, conversion.ready_ns, &conversion, now_ns)
    passed = (now_ns - target_ns) // period_ns + 1
    channel.looks += <uint32_t>passed
    channel.expected_ns = channel.due_ns = target_ns + passed * period_ns


# --- PACE_HOST ---

cdef inline int host_convert(Sampler* s, int64_t now_ns) noexcept nogil:
    """Begin a conversion of each converter that has a channel in this slot; returns how many were begun."""
    cdef Channel* channel
    cdef int begun = 0
    cdef int64_t begin_ns
    cdef int i, index, lent, status
    for i in range(s.active_count):
        index = s.active[i]
        channel = &s.channel[index]
        if channel.plan.pace != PACE_HOST or channel.slot != s.grid.slot:
            continue
        if channel.lost and (now_ns < channel.expected_ns or not sampler_revive(s, index, now_ns)):
            continue
        lent = index == s.rail_lender and channel.modelled and s.slow_due >> SLOW_RAIL & 1
        begin_ns = s.clock.now_ns(s.clock.context)
        if lent:
            s.slow_due &= ~(<uint32_t>1 << SLOW_RAIL)
            status = s.hal.rail_convert(s.hal.context, begin_ns)
        else:
            status = s.hal.adc_convert(s.hal.context, index, begin_ns)
        if status:
            s.bus_errors += 1
            sampler_lost(s, index, now_ns)
            continue
        channel.begun = HOST_LENT if lent else 1
        begun += 1
    return begun


cdef inline void host_conversion(
    Sampler* s, int index, const Conversion* conversion, int64_t now_ns
) noexcept nogil:
    """Time a conversion: its clock is the grid, its aperture decides its phase."""
    cdef Channel* channel = &s.channel[index]
    cdef uint32_t number = sampler_number(channel, s.grid.turn, conversion.begin_ns, now_ns)
    if sampler_wants_model(channel, number):
        sampler_model(s, index, number, host_begin_ns(&s.grid) + <int64_t>channel.aperture_ns, s.grid.turn_ns)
        if index == s.master and sampler_has_moved(s):
            sampler_choose_half_cycle(s, now_ns)
    sampler_conversion(
        s, index, number, conversion.begin_ns,
        conversion.begin_ns + <int64_t>(HOST_SLOWEST * channel.aperture_ns), conversion, now_ns)


cdef inline int host_rail(Sampler* s, int index) noexcept nogil:
    """Fetch the rail's voltage: as adc_read. To the estimators the conversion that was left out for it is one that is
    not used, as those at an edge of the light."""
    cdef Channel* channel = &s.channel[index]
    cdef TraceItem item
    cdef double volts = NAN
    cdef int status = s.hal.rail_read(s.hal.context, s.clock.now_ns(s.clock.context), &volts)
    if status == -EAGAIN:
        return 0
    s.rail_v = volts
    if status:
        return status
    channel.last_index = s.grid.turn + channel.index_offset
    if not s.paused:
        trace_int(&item, TRACE_CONVERSION, index, PHASE_EDGE, 0, channel.last_index, 0)
        sampler_feed(s, &item)
    return 1


cdef inline int host_read(Sampler* s, int64_t now_ns) noexcept nogil:
    """Fetch what was begun in this slot; returns how many conversions are not there yet."""
    cdef Conversion conversion
    cdef Channel* channel
    cdef int waiting = 0
    cdef int i, index, lent, status
    for i in range(s.active_count):
        index = s.active[i]
        channel = &s.channel[index]
        if not channel.begun or channel.slot != s.grid.slot:
            continue
        lent = channel.begun == HOST_LENT
        if lent:
            status = host_rail(s, index)
        else:
            status = s.hal.adc_read(s.hal.context, index, s.clock.now_ns(s.clock.context), &conversion)
        if status == 0:
            waiting += 1
            continue
        channel.begun = 0
        if status < 0:
            s.bus_errors += 1
            sampler_lost(s, index, now_ns)
        elif not lent:
            host_conversion(s, index, &conversion, now_ns)
    return waiting


cdef inline void host_give_up(Sampler* s, int64_t now_ns) noexcept nogil:
    """What did not come in this slot will not; a channel that is silent for long is lost."""
    cdef Channel* channel
    cdef int i
    for i in range(s.active_count):
        channel = &s.channel[s.active[i]]
        if channel.begun and channel.slot == s.grid.slot:
            channel.begun = 0
            if now_ns - channel.heard_ns > SILENCE_NS:
                sampler_lost(s, s.active[i], now_ns)


cdef inline void host_advance(Sampler* s, int64_t now_ns) noexcept nogil:
    """On to the next slot; at the end of a turn the light may change, before the next conversion begins."""
    cdef HostGrid* grid = &s.grid
    grid.reading = 0
    grid.asked = 0
    grid.slot += 1
    if grid.slot < grid.slots:
        return
    grid.slot = 0
    grid.turn += 1
    if s.channel[s.master].plan.pace != PACE_HOST:
        return
    if <int32_t>(grid.turn - s.toggled_index) >= s.half_cycle and sampler_other_master(s) >= 0:
        s.toggled_index = grid.turn
        sampler_edge(s)


cdef inline void host_tick(Sampler* s, int64_t now_ns) noexcept nogil:
    """Begin and fetch what is due on the grid; sets when it is to be called next."""
    cdef HostGrid* grid = &s.grid
    cdef int64_t late_ns
    cdef int _step
    if now_ns < grid.next_ns:
        return
    for _step in range(2 * grid.slots):
        if not grid.reading:
            late_ns = now_ns - host_begin_ns(grid)
            if late_ns < 0:
                break
            if late_ns >= <int64_t>grid.turn_ns:  # whole turns are lost, the phase is kept
                grid.turn += <uint32_t>(late_ns / grid.turn_ns)
            if host_convert(s, now_ns) == 0:
                host_advance(s, now_ns)
            else:
                grid.reading = 1
                grid.next_ns = s.clock.now_ns(s.clock.context) + grid.answer_ns
                return
        else:
            if host_read(s, now_ns) and grid.asked < HOST_ASKS:
                grid.asked += 1
                grid.next_ns = now_ns + HOST_POLL_NS
                return
            host_give_up(s, now_ns)
            host_advance(s, now_ns)
        now_ns = s.clock.now_ns(s.clock.context)
    grid.next_ns = host_begin_ns(grid)


cdef inline void host_plan(Sampler* s, int64_t now_ns) noexcept nogil:
    """Give each channel that we pace its place in a turn."""
    cdef HostGrid* grid = &s.grid
    cdef Channel* channel
    cdef int taken[8]
    cdef double rate_hz = 0.0
    cdef double slowest_ns = 0.0
    cdef int i, converter
    for i in range(8):
        taken[i] = 0
    s.rail_lender = -1
    grid.slots = 0
    grid.slot = 0
    grid.turn = 0
    grid.reading = 0
    grid.asked = 0
    grid.next_ns = INT64_MAX
    for i in range(s.active_count):
        channel = &s.channel[s.active[i]]
        if channel.plan.pace != PACE_HOST:
            continue
        if channel.plan.lends_rail:
            s.rail_lender = s.active[i]
        converter = channel.plan.converter & 7
        channel.slot = taken[converter]
        taken[converter] += 1
        grid.slots = taken[converter] if taken[converter] > grid.slots else grid.slots
        rate_hz = channel.plan.rate_hz
        slowest_ns = channel.aperture_ns if channel.aperture_ns > slowest_ns else slowest_ns
        channel.due_ns = channel.expected_ns = INT64_MAX
    if grid.slots == 0:
        return
    grid.turn_ns = 1e9 / rate_hz
    grid.slot_ns = <int64_t>(grid.turn_ns / grid.slots)
    grid.answer_ns = <int64_t>(HOST_SLOWEST * slowest_ns) + HOST_WAKE_NS
    grid.origin_ns = grid.next_ns = now_ns
