# Why compiled: what a dose is made of and whether it may be, decided where it is done.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: millilitres, seconds, nanoseconds of the loop's clock; duty in percent.
#
# A dose is done in rounds, so that no more than a subdose comes in before the waste pump runs again; an exchange's
# round is waste, media, alternative media, and waste once more (IS-12). doser.pxd runs the steps.

from libc.errno cimport EAGAIN, EBUSY, EDOM, EDQUOT, EINVAL, ENODATA, ENOSPC, ERANGE
from libc.math cimport ceil, fmax, fmin, isfinite
from libc.stdint cimport int32_t, int64_t

from stirbar.rt.limits cimport DoseLimits
from stirbar.rt.volume cimport (
    DOSE_ALT_MEDIA, DOSE_MEDIA, DOSE_PUMPS, DOSE_WASTE, VOLUME_EFFLUX_ML, VOLUME_ML, VOLUME_OWED_ML, VOLUME_UNSEEN_ML,
    Volume, volume_after)

cdef enum:                   # Doser.kind
    DOSE_NONE = 0
    DOSE_SINGLE = 1          # one pump, so many millilitres or seconds
    DOSE_EXCHANGE = 2
    DOSE_CONTINUOUS = 3      # one pump, for as long as somebody asks for it

cdef enum:                   # Doser.part: of a round
    PART_NONE = -1
    PART_FIRST = 0           # of an exchange: waste
    PART_MEDIA = 1
    PART_ALT_MEDIA = 2
    PART_AFTER = 3           # waste again
    PARTS = 4
    PART_REPAIR = 5          # after a cut: take out what came in

cdef enum:                   # items of COMMAND_PUMP: channel = pump + DOSE_PUMPS * item
    PUMP_ML_PER_S = 0        # of its calibration; 0: it has none, and the flow is a guess
    PUMP_OFFSET_ML = 1       # of the calibration's straight line
    PUMP_DUTY_PERCENT = 2
    PUMP_ITEMS = 3

cdef enum:
    DOSE_GRACE_MS = 50       # the guard cuts so long after the deadline
    ROUNDS_CEILING = 1000

cdef extern from *:
    """
    #define STIRBAR_PUMP_GUESS_ML_PER_S 0.0911   /* the field's default calibration */
    #define STIRBAR_PUMP_CEILING_ML_PER_S 20.0
    #define STIRBAR_PUMP_OFFSET_CEILING_ML 1.0
    #define STIRBAR_DOSE_LEAST_ML 1e-6
    """
    const double PUMP_GUESS_ML_PER_S "STIRBAR_PUMP_GUESS_ML_PER_S"
    const double PUMP_CEILING_ML_PER_S "STIRBAR_PUMP_CEILING_ML_PER_S"
    const double PUMP_OFFSET_CEILING_ML "STIRBAR_PUMP_OFFSET_CEILING_ML"
    const double DOSE_LEAST_ML "STIRBAR_DOSE_LEAST_ML"

cdef struct DosePump:
    double ml_per_s
    double offset_ml
    double duty_percent
    int32_t calibrated

# What is under way, without its timing.
cdef struct DosePlan:
    int32_t kind
    int32_t by_seconds
    int32_t pump             # of a single dose
    int32_t rounds
    int32_t round
    int32_t part
    int32_t step_pump
    double want[DOSE_PUMPS]  # mL, or seconds
    double waste_factor      # how often the waste is run again after the inflow
    double left              # of the part, mL or seconds
    double step_s            # of the step


cdef inline double pump_ml(const DosePump* pump, double seconds) noexcept nogil:
    """What a pump moves in one run."""
    return fmax(0.0, pump.ml_per_s * seconds + pump.offset_ml) if seconds > 0.0 else 0.0


cdef inline double pump_s(const DosePump* pump, double ml) noexcept nogil:
    """How long a pump runs for a volume."""
    return fmax(0.0, (ml - pump.offset_ml) / pump.ml_per_s)


cdef inline double pump_overrun_ml(const DosePump* pump) noexcept nogil:
    """What may come on top, when the loop dies and the guard must cut."""
    return pump.ml_per_s * 1e-3 * DOSE_GRACE_MS


cdef inline int pump_set(DosePump* pump, int item, double value) noexcept nogil:
    """0, or -EDOM and nothing changed."""
    if not isfinite(value):
        return -EDOM
    if item == PUMP_ML_PER_S and 0.0 <= value <= PUMP_CEILING_ML_PER_S:
        pump.calibrated = value > 0.0
        pump.ml_per_s = value if value > 0.0 else PUMP_GUESS_ML_PER_S
    elif item == PUMP_OFFSET_ML and -PUMP_OFFSET_CEILING_ML <= value <= PUMP_OFFSET_CEILING_ML:
        pump.offset_ml = value
    elif item == PUMP_DUTY_PERCENT and 0.0 < value <= 100.0:
        pump.duty_percent = value
    else:
        return -EDOM
    return 0


# --- may it be? ------------------------------------------------------------------------------------------------------


cdef inline int inflow_check(
        const Volume* v, const DoseLimits* limits, const DosePump* pump, double at_once_ml,
        double in_all_ml) noexcept nogil:
    """0; -ENOSPC: it does not fit into the vial; -EDQUOT: too much would have come in without evidence of the level."""
    if v.item[VOLUME_ML] + at_once_ml + pump_overrun_ml(pump) > limits.volume_maximum_ml:
        return -ENOSPC
    if limits.unseen_maximum_ml > 0.0 and v.item[VOLUME_UNSEEN_ML] + in_all_ml > limits.unseen_maximum_ml:
        return -EDQUOT
    return 0


cdef inline int outflow_check(const Volume* v, const DoseLimits* limits, double ml) noexcept nogil:
    """0, or -ERANGE: less than the least volume would stay."""
    cdef double after = volume_after(v, DOSE_WASTE, ml)
    return -ERANGE if after < limits.volume_minimum_ml and after < v.item[VOLUME_ML] else 0


cdef inline int plan_rounds(double amount, double at_most) noexcept nogil:
    """In how many equal parts an amount is done, or -EDOM."""
    cdef double rounds = ceil(amount / at_most - 1e-9)
    return -EDOM if not rounds <= ROUNDS_CEILING else <int>fmax(1.0, rounds)


cdef inline int plan_single(
        DosePlan* plan, const Volume* v, const DoseLimits* limits, const DosePump* pumps, int pump, double amount,
        bint by_seconds) noexcept nogil:
    """One pump: 0, or minus an errno (docs/dosing.md) and nothing changed."""
    cdef double ml = pump_ml(&pumps[pump], amount) if by_seconds else amount
    cdef int rounds, status
    if not isfinite(amount) or not amount > 0.0:
        return -EDOM
    if not by_seconds and not pumps[pump].calibrated:
        return -ENODATA
    if pump == DOSE_WASTE:
        rounds = 1
        status = outflow_check(v, limits, ml)
    else:
        rounds = plan_rounds(ml, limits.subdose_maximum_ml)
        status = inflow_check(v, limits, &pumps[pump], ml, ml)
    if status or rounds < 0:
        return status if status else rounds
    plan.kind = DOSE_SINGLE
    plan.pump = pump
    plan.by_seconds = by_seconds
    plan.rounds = rounds
    plan.want[pump] = amount
    return 0


cdef inline int plan_exchange(
        DosePlan* plan, const Volume* v, const DoseLimits* limits, const DosePump* pumps, const double* want_ml,
        double waste_factor) noexcept nogil:
    """Waste, media, waste: 0, or minus an errno and nothing changed; less waste than inflow is -EINVAL."""
    cdef double in_ml = want_ml[DOSE_MEDIA] + want_ml[DOSE_ALT_MEDIA]
    cdef int rounds, status, i
    for i in range(DOSE_PUMPS):
        if not isfinite(want_ml[i]) or not want_ml[i] >= 0.0:
            return -EDOM
        if want_ml[i] > 0.0 and not pumps[i].calibrated:
            return -ENODATA
    if not want_ml[DOSE_WASTE] > 0.0 or not 0.0 <= waste_factor <= 10.0:
        return -EDOM
    if want_ml[DOSE_WASTE] < in_ml - 1e-9:
        return -EINVAL
    rounds = plan_rounds(in_ml, limits.subdose_maximum_ml)
    if rounds < 0:
        return rounds
    for i in range(DOSE_WASTE):
        if want_ml[i] > 0.0:
            status = inflow_check(v, limits, &pumps[i], in_ml / rounds, in_ml)
            if status:
                return status
    status = outflow_check(v, limits, want_ml[DOSE_WASTE] / rounds)
    if status:
        return status
    plan.kind = DOSE_EXCHANGE
    plan.by_seconds = 0
    plan.rounds = rounds
    plan.waste_factor = waste_factor
    for i in range(DOSE_PUMPS):
        plan.want[i] = want_ml[i]
    return 0


cdef inline double plan_free_ml(
        const Volume* v, const DoseLimits* limits, const DosePump* pump, bint is_waste) noexcept nogil:
    """How much a pump may still move now."""
    cdef double room
    if is_waste:
        if v.item[VOLUME_EFFLUX_ML] >= limits.volume_minimum_ml:
            return limits.volume_maximum_ml
        return fmax(0.0, v.item[VOLUME_ML] - limits.volume_minimum_ml)
    room = limits.volume_maximum_ml - pump_overrun_ml(pump) - v.item[VOLUME_ML]
    if limits.unseen_maximum_ml > 0.0:
        room = fmin(room, limits.unseen_maximum_ml - v.item[VOLUME_UNSEEN_ML])
    return fmax(0.0, room)


# --- step by step ----------------------------------------------------------------------------------------------------


cdef inline int part_pump(const DosePlan* plan) noexcept nogil:
    """Which pump a part of the round is for."""
    if plan.kind != DOSE_EXCHANGE:
        return plan.pump
    if plan.part == PART_MEDIA:
        return DOSE_MEDIA
    return DOSE_ALT_MEDIA if plan.part == PART_ALT_MEDIA else DOSE_WASTE


cdef inline double part_amount(const DosePlan* plan, const Volume* v) noexcept nogil:
    cdef double amount = plan.want[part_pump(plan)] / plan.rounds
    if plan.kind != DOSE_EXCHANGE:
        return amount if plan.part == PART_FIRST else 0.0
    if plan.part == PART_AFTER:
        return amount * plan.waste_factor
    if plan.part == PART_FIRST and plan.round == 0:
        return amount + v.item[VOLUME_OWED_ML]
    return amount


cdef inline bint plan_next(DosePlan* plan, const Volume* v) noexcept nogil:
    """Go on to the next part that moves anything; 0: there is none."""
    while plan.round < plan.rounds:
        plan.part += 1
        if plan.part == PARTS:
            plan.part = PART_NONE
            plan.round += 1
            continue
        plan.left = part_amount(plan, v)
        if plan.left > DOSE_LEAST_ML:
            return True
    return False


cdef inline bint plan_step(
        DosePlan* plan, const Volume* v, const DoseLimits* limits, const DosePump* pumps) noexcept nogil:
    """The next run of a pump within the part: pump and seconds; 0: nothing is left of it, or may be."""
    cdef int pump = part_pump(plan)
    cdef double free_s = limits.on_maximum_s
    cdef double done
    if plan.left <= DOSE_LEAST_ML:
        return False
    if pump == DOSE_WASTE:   # an inflow that does not fit is a fault; the last of the waste is just not there
        free_s = pump_s(&pumps[pump], plan_free_ml(v, limits, &pumps[pump], True))
    plan.step_pump = pump
    plan.step_s = plan.left if plan.by_seconds else pump_s(&pumps[pump], plan.left)
    plan.step_s = fmin(plan.step_s, limits.on_maximum_s)
    done = plan.step_s if plan.by_seconds else pump_ml(&pumps[pump], plan.step_s)
    plan.left = plan.left - done if plan.step_s <= free_s and done > 0.0 else 0.0
    plan.step_s = fmin(plan.step_s, free_s)
    return plan.step_s > 0.0


cdef inline bint plan_repair(DosePlan* plan, const Volume* v) noexcept nogil:
    """After a cut: what came in and was not taken out. 0: nothing is to be done."""
    if plan.kind != DOSE_EXCHANGE or plan.part == PART_REPAIR:
        return False
    plan.part = PART_REPAIR
    plan.round = plan.rounds
    plan.by_seconds = 0
    plan.left = v.item[VOLUME_OWED_ML] * fmax(1.0, plan.waste_factor)
    return plan.left > DOSE_LEAST_ML


cdef inline int plan_may_begin(const DosePlan* plan, bint is_inflow, int64_t rested_ns, int64_t now_ns) noexcept nogil:
    """-EBUSY: another dose is under way; -EAGAIN: the pumps have not rested long enough."""
    if plan.kind != DOSE_NONE:
        return -EBUSY
    return -EAGAIN if is_inflow and now_ns < rested_ns else 0
