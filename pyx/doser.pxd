# Why compiled: a pump stops at its deadline, whatever Python does; what it moved is known to the microsecond.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: millilitres, nanoseconds of the loop's clock, duty in percent.
#
# One dose at a time, one pump at a time. Each run is armed first: its deadline stands where the guard sees it before
# the pump starts (IS-4). A dose that is cut takes out again what it has let in.

from libc.errno cimport EBUSY, EDOM, EHOSTDOWN, EINVAL, ENOLINK
from libc.math cimport fmin
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.dose_plan cimport (
    DOSE_CONTINUOUS, DOSE_EXCHANGE, DOSE_GRACE_MS, DOSE_LEAST_ML, DOSE_NONE, PART_AFTER, PART_NONE, PART_REPAIR,
    PUMP_DUTY_PERCENT, PUMP_GUESS_ML_PER_S, PUMP_ITEMS, DosePlan, DosePump, inflow_check, outflow_check,
    plan_exchange, plan_free_ml, plan_may_begin, plan_next, plan_repair, plan_single, plan_step, pump_ml, pump_s,
    pump_set)
from stirbar.rt.limits cimport DoseLimits, dose_limits_check
from stirbar.rt.types cimport (
    EVENT_DOSE_CUT, EVENT_DOSE_DONE, EVENT_DOSE_OWED, EVENT_DOSE_STEP, RECORD_VERSION, STREAM_VOLUME, Reading)
from stirbar.rt.volume cimport (
    DOSE_ALT_MEDIA, DOSE_MEDIA, DOSE_PUMPS, DOSE_WASTE, VOLUME_ALT_FRACTION, VOLUME_ALT_MEDIA_ML, VOLUME_MEDIA_ML,
    VOLUME_ML, VOLUME_OWED_ML, VOLUME_UNSEEN_ML, VOLUME_WASTE_ML, Volume, volume_pumped)

cdef enum:                   # Doser.stage
    STAGE_IDLE = 0
    STAGE_PAUSED = 1         # the next run is armed at due_ns
    STAGE_ARMED = 2          # its pump starts at due_ns
    STAGE_RUNNING = 3        # and stops at due_ns
    STAGE_HELD = 4           # nothing may run; at due_ns the dose is given up

cdef enum:                   # why a dose was cut: Doser.cut, argument of EVENT_DOSE_CUT
    CUT_NONE = 0
    CUT_STOPPED = 1          # by a command
    CUT_UNGUARDED = 2        # the guard is silent
    CUT_UNSTIRRED = 3        # nobody sees the stirrer turn
    CUT_PUMP = 4             # its output does not take orders
    CUT_FULL = 5             # the vial, or what may come in unseen
    CUT_LATE = 6             # the loop stood still
    CUT_LEASE = 7            # nobody asks for a continuous run any more
    CUTS = 8

cdef enum:                   # flags of a TRACE_DOSE
    DOSE_UNGUARDED = 1
    DOSE_REFUSED = 2         # the pump's output did not take its last order
    DOSE_LATE = 4            # the loop stood still

cdef enum:
    ARM_NS = 10000000        # from deadline to start
    GIVE_UP_NS = 600000000000        # so long a dose waits for the guard
    DOSE_EVENTS = 4
    PUMP_SPREAD_PERCENT = 5  # of a calibrated pump, from day to day; for the volume's standard error

cdef struct DoseEvent:
    int32_t code
    int32_t argument
    double value

cdef struct Doser:
    DoseLimits limits
    DosePump pump[DOSE_PUMPS]
    Volume volume
    DosePlan plan
    double pause_s           # after each inflow, to mix
    double part_ml[DOSE_PUMPS]       # of the exchange that is being asked for
    double in_ml             # of the dose under way
    double out_ml
    double step_in_ml        # in the last look, for who keeps account of heat
    int32_t stage
    int32_t cut              # CUT_*
    int32_t running          # pump that is to run now; -1: none
    int32_t events
    int64_t due_ns           # when something is to happen; INT64_MAX: nothing is
    int64_t deadline_ns      # of step_pump, from STAGE_ARMED on; 0: none
    int64_t on_ns
    int64_t rested_ns        # the next inflow begins no sooner
    int64_t ran_ns           # end of the last run of any pump; 0: there was none
    DoseEvent event[DOSE_EVENTS]


cdef inline int doser_init(Doser* d, const DoseLimits* limits, double pause_s) noexcept nogil:
    """An empty vial, nothing under way; 0, or -EDOM: a limit above its ceiling or out of order."""
    cdef int i
    memset(d, 0, sizeof(Doser))
    d.limits = limits[0]
    d.pause_s = pause_s
    d.running = -1
    d.due_ns = INT64_MAX
    for i in range(DOSE_PUMPS):
        d.pump[i].ml_per_s = PUMP_GUESS_ML_PER_S
        d.pump[i].duty_percent = 100.0
    if not 0.0 <= pause_s <= 3600.0:
        return -EDOM
    return dose_limits_check(limits)


cdef inline void doser_say(Doser* d, int code, int argument, double value) noexcept nogil:
    if d.events < DOSE_EVENTS:
        d.event[d.events].code = code
        d.event[d.events].argument = argument
        d.event[d.events].value = value
        d.events += 1


cdef inline bint doser_is_inflow(const Doser* d) noexcept nogil:
    return d.plan.step_pump != DOSE_WASTE


# --- the steps -------------------------------------------------------------------------------------------------------


cdef inline void doser_close(Doser* d) noexcept nogil:
    """The dose is over."""
    cdef double owed_ml = d.volume.item[VOLUME_OWED_ML]
    if d.plan.kind == DOSE_EXCHANGE and d.cut and owed_ml > DOSE_LEAST_ML:
        doser_say(d, EVENT_DOSE_OWED, d.cut, owed_ml)
    doser_say(d, EVENT_DOSE_DONE, d.cut, d.volume.item[VOLUME_ML])
    memset(&d.plan, 0, sizeof(DosePlan))
    d.stage = STAGE_IDLE
    d.running = -1
    d.deadline_ns = 0
    d.due_ns = INT64_MAX


cdef inline void doser_pause(Doser* d, int64_t until_ns) noexcept nogil:
    d.stage = STAGE_PAUSED
    d.due_ns = until_ns


cdef inline void doser_cut(Doser* d, int why, bint repairs, int64_t now_ns) noexcept nogil:
    """Nothing more comes in; what has come in is taken out again, where that is wanted and possible."""
    cdef double missing_ml = 0.0
    if d.cut == CUT_NONE:
        d.cut = why
        if d.plan.kind == DOSE_EXCHANGE:
            missing_ml = d.plan.want[DOSE_MEDIA] + d.plan.want[DOSE_ALT_MEDIA] - d.in_ml
        doser_say(d, EVENT_DOSE_CUT, why, missing_ml)
    d.running = -1
    d.deadline_ns = 0
    if repairs and plan_repair(&d.plan, &d.volume):
        doser_pause(d, now_ns)
    else:
        doser_close(d)


cdef inline void doser_moved(Doser* d, double seconds, int64_t now_ns) noexcept nogil:
    """A run has ended after so long: account for it."""
    cdef int pump = d.plan.step_pump
    cdef double ml = pump_ml(&d.pump[pump], seconds)
    volume_pumped(&d.volume, pump, ml)
    if pump == DOSE_WASTE:
        d.out_ml += ml
        if d.plan.kind == DOSE_EXCHANGE:
            d.volume.item[VOLUME_OWED_ML] = d.volume.item[VOLUME_OWED_ML] - ml if (
                d.volume.item[VOLUME_OWED_ML] > ml) else 0.0
    else:
        d.in_ml += ml
        d.step_in_ml += ml
        d.rested_ns = now_ns + <int64_t>(1e9 * d.limits.interval_s)
        if d.plan.kind == DOSE_EXCHANGE and d.plan.waste_factor > 0.0:
            d.volume.item[VOLUME_OWED_ML] += ml
    d.ran_ns = now_ns
    doser_say(d, EVENT_DOSE_STEP, pump, ml)


cdef inline void doser_off(Doser* d, int64_t now_ns) noexcept nogil:
    """The pump stops now; one that is far beyond its deadline was stopped by the guard."""
    cdef int64_t end_ns = now_ns
    if d.stage == STAGE_RUNNING:
        if end_ns > d.due_ns + <int64_t>DOSE_GRACE_MS * 1000000:
            end_ns = d.due_ns + <int64_t>DOSE_GRACE_MS * 1000000
        doser_moved(d, 1e-9 * <double>(end_ns - d.on_ns), end_ns)
    d.running = -1
    d.deadline_ns = 0


cdef inline void doser_arm(Doser* d, int64_t now_ns) noexcept nogil:
    """Set the deadline of the next run; or close, where there is none."""
    cdef bint found = plan_step(&d.plan, &d.volume, &d.limits, d.pump)
    while not found:
        if not plan_next(&d.plan, &d.volume):
            doser_close(d)
            return
        found = plan_step(&d.plan, &d.volume, &d.limits, d.pump)
    if doser_is_inflow(d) and inflow_check(
            &d.volume, &d.limits, &d.pump[d.plan.step_pump], pump_ml(&d.pump[d.plan.step_pump], d.plan.step_s), 0.0):
        doser_cut(d, CUT_FULL, True, now_ns)
        return
    d.stage = STAGE_ARMED
    d.due_ns = now_ns + ARM_NS
    d.deadline_ns = d.due_ns + <int64_t>(1e9 * d.plan.step_s)


cdef inline void doser_on(Doser* d, int64_t now_ns) noexcept nogil:
    d.stage = STAGE_RUNNING
    d.running = d.plan.step_pump
    d.on_ns = now_ns
    d.due_ns = now_ns + <int64_t>(1e9 * d.plan.step_s)
    d.deadline_ns = d.due_ns


cdef inline void doser_ran(Doser* d, int64_t now_ns) noexcept nogil:
    """A run has come to its end: close, or go on after a pause."""
    cdef DosePlan ahead
    doser_off(d, now_ns)
    ahead = d.plan
    if d.plan.kind == DOSE_CONTINUOUS:
        if plan_free_ml(&d.volume, &d.limits, &d.pump[d.plan.pump], d.plan.pump == DOSE_WASTE) < pump_ml(
                &d.pump[d.plan.pump], 0.1):
            doser_cut(d, CUT_FULL, False, now_ns)
        else:
            doser_cut(d, CUT_LEASE, False, now_ns)
    elif d.plan.left <= DOSE_LEAST_ML and not plan_next(&ahead, &d.volume):
        doser_close(d)
    else:
        doser_pause(d, now_ns + <int64_t>(1e9 * d.pause_s) if doser_is_inflow(d) else now_ns)


cdef inline void doser_tick(Doser* d, int flags, bint stirred, int64_t now_ns) noexcept nogil:
    """Something is due, or what is permitted has changed. `running` and `deadline_ns` say what is to be written."""
    d.step_in_ml = 0.0
    if d.stage == STAGE_IDLE:
        return
    if flags & DOSE_REFUSED:
        d.stage = STAGE_PAUSED       # it never ran: there is nothing to account for
        doser_off(d, now_ns)
        doser_cut(d, CUT_PUMP, doser_is_inflow(d), now_ns)
    elif flags & DOSE_LATE:
        doser_off(d, now_ns)
        doser_cut(d, CUT_LATE, True, now_ns)
    elif flags & DOSE_UNGUARDED:
        if d.stage != STAGE_HELD:
            doser_off(d, now_ns)
            doser_cut(d, CUT_UNGUARDED, True, now_ns)
            if d.stage != STAGE_IDLE:
                d.stage = STAGE_HELD
                d.due_ns = now_ns + GIVE_UP_NS
        elif now_ns >= d.due_ns:
            doser_close(d)
    elif not stirred and not d.cut and d.plan.kind == DOSE_EXCHANGE:
        doser_off(d, now_ns)
        doser_cut(d, CUT_UNSTIRRED, True, now_ns)
    elif d.stage == STAGE_HELD:
        doser_pause(d, now_ns)
    elif now_ns >= d.due_ns:
        if d.stage == STAGE_PAUSED:
            doser_arm(d, now_ns)
        elif d.stage == STAGE_ARMED:
            doser_on(d, now_ns)
        else:
            doser_ran(d, now_ns)


# --- commands --------------------------------------------------------------------------------------------------------


cdef inline int doser_begin(Doser* d, int status, int64_t now_ns) noexcept nogil:
    if status:
        memset(&d.plan, 0, sizeof(DosePlan))
        return status
    d.cut = CUT_NONE
    d.in_ml = d.out_ml = 0.0
    d.plan.part = PART_NONE
    doser_pause(d, now_ns)
    return 0


cdef inline int doser_permits(const Doser* d, int pump, int flags, bint stirred, int64_t now_ns) noexcept nogil:
    """0; -EBUSY, -EAGAIN, -ENOLINK: no guard, -EHOSTDOWN: the stirrer is asked to turn and nobody sees it."""
    if flags & DOSE_UNGUARDED:
        return -ENOLINK
    if not stirred and pump != DOSE_WASTE:
        return -EHOSTDOWN
    return plan_may_begin(&d.plan, pump != DOSE_WASTE, d.rested_ns, now_ns)


cdef inline int doser_dose(
        Doser* d, int pump, double amount, bint by_seconds, int flags, bint stirred, int64_t now_ns) noexcept nogil:
    """So many millilitres or seconds of one pump: 0, or minus an errno (docs/dosing.md) and nothing changed."""
    cdef int status
    if not 0 <= pump < DOSE_PUMPS:
        return -EINVAL
    status = doser_permits(d, pump, flags, stirred, now_ns)
    if status:
        return status
    return doser_begin(
        d, plan_single(&d.plan, &d.volume, &d.limits, d.pump, pump, amount, by_seconds), now_ns)


cdef inline int doser_part(Doser* d, int pump, double ml) noexcept nogil:
    """How much of one pump the exchange that is asked for next has."""
    if not 0 <= pump < DOSE_PUMPS:
        return -EINVAL
    d.part_ml[pump] = ml
    return 0


cdef inline int doser_exchange(Doser* d, double waste_factor, int flags, bint stirred, int64_t now_ns) noexcept nogil:
    """The exchange whose parts were given; waste is run waste_factor times more after the inflow."""
    cdef int status = doser_permits(d, DOSE_MEDIA, flags, stirred, now_ns)
    if status == 0:
        status = doser_begin(
            d, plan_exchange(&d.plan, &d.volume, &d.limits, d.pump, d.part_ml, waste_factor), now_ns)
    memset(d.part_ml, 0, sizeof(d.part_ml))
    return status


cdef inline int doser_continuous(Doser* d, int pump, int flags, bint stirred, int64_t now_ns) noexcept nogil:
    """Run a pump until its lease lapses, or the vial is full or empty."""
    cdef double free_s
    cdef int status
    if not 0 <= pump < DOSE_PUMPS:
        return -EINVAL
    status = doser_permits(d, pump, flags, stirred, now_ns)
    if status == 0 and pump == DOSE_WASTE:
        status = outflow_check(&d.volume, &d.limits, pump_ml(&d.pump[pump], d.limits.lease_s))
    elif status == 0:
        status = inflow_check(&d.volume, &d.limits, &d.pump[pump], pump_ml(&d.pump[pump], d.limits.lease_s), 0.0)
    if status:
        return status
    free_s = pump_s(&d.pump[pump], plan_free_ml(&d.volume, &d.limits, &d.pump[pump], pump == DOSE_WASTE))
    d.plan.kind = DOSE_CONTINUOUS
    d.plan.pump = d.plan.step_pump = pump
    d.plan.step_s = fmin(free_s, d.limits.lease_s)
    d.cut = CUT_NONE
    d.in_ml = d.out_ml = 0.0
    d.stage = STAGE_ARMED
    d.due_ns = now_ns + ARM_NS
    d.deadline_ns = d.due_ns + <int64_t>(1e9 * d.plan.step_s)
    return 0


cdef inline int doser_renew(Doser* d, int64_t now_ns) noexcept nogil:
    """The host thread still wants the continuous run: -EINVAL when there is none."""
    cdef double free_s
    cdef int pump = d.plan.pump
    if d.plan.kind != DOSE_CONTINUOUS:
        return -EINVAL
    if d.stage != STAGE_RUNNING:
        return 0
    free_s = pump_s(&d.pump[pump], plan_free_ml(&d.volume, &d.limits, &d.pump[pump], pump == DOSE_WASTE))
    d.due_ns = d.on_ns + <int64_t>(1e9 * fmin(free_s, 1e-9 * <double>(now_ns - d.on_ns) + d.limits.lease_s))
    d.deadline_ns = d.due_ns
    return 0


cdef inline int doser_stop(Doser* d, bint repairs, int64_t now_ns) noexcept nogil:
    """Stop at once; `repairs`: take out first what an exchange has let in. Without a dose nothing happens."""
    d.step_in_ml = 0.0
    if d.stage == STAGE_IDLE or (repairs and d.plan.part == PART_REPAIR):
        return 0
    doser_off(d, now_ns)
    doser_cut(d, CUT_STOPPED, repairs, now_ns)
    return 0


cdef inline int doser_pump(Doser* d, int channel, double value) noexcept nogil:
    """COMMAND_PUMP: -EBUSY while a dose is under way, -EDOM for a value that cannot be."""
    if not 0 <= channel < DOSE_PUMPS * PUMP_ITEMS:
        return -EINVAL
    if d.stage != STAGE_IDLE:
        return -EBUSY
    return pump_set(&d.pump[channel % DOSE_PUMPS], channel // DOSE_PUMPS, value)


cdef inline void doser_fill(const Doser* d, int64_t now_ns, Reading* reading) noexcept nogil:
    """The account as a reading: value the volume; signal_v the fraction of alternative media; reference_v, ambient_v
    and blank what media, alternative media and waste pump have moved in all; used what came in since the last evidence
    of the level, rejected what an exchange still owes, microlitres."""
    memset(reading, 0, sizeof(Reading))
    reading.stream = STREAM_VOLUME
    reading.version = RECORD_VERSION
    reading.monotonic_ns = now_ns
    reading.value = d.volume.item[VOLUME_ML]
    reading.se_instrument = reading.se_culture = <float>(
        0.01 * PUMP_SPREAD_PERCENT * d.volume.item[VOLUME_UNSEEN_ML])
    reading.signal_v = <float>d.volume.item[VOLUME_ALT_FRACTION]
    reading.reference_v = <float>d.volume.item[VOLUME_MEDIA_ML]
    reading.ambient_v = <float>d.volume.item[VOLUME_ALT_MEDIA_ML]
    reading.blank = <float>d.volume.item[VOLUME_WASTE_ML]
    reading.used = <uint32_t>(1e3 * fmin(d.volume.item[VOLUME_UNSEEN_ML], 4e6))
    reading.rejected = <uint32_t>(1e3 * d.volume.item[VOLUME_OWED_ML])
