# Why compiled: the one way by which what was measured becomes readings, live and in a replay alike.
# Thread rule: the sampling thread; in a replay its caller. What the actuator thread applies: controllers.pxd.
# Units: as in the trace (types.pxd): nanoseconds of the loop's clock, volts per code, the unit of each command.
#
# A trace item is applied by the same function when it happens and when it is read from a recording, so a replay from a
# snapshot of the struct repeats every reading bit by bit.

from libc.math cimport NAN
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcpy, memset

from stirbar.rt.curve cimport (
    CURVE_ABOVE, CURVE_BELOW, CURVE_BEYOND, CURVE_NONE, Curve, CurvePoint, curve_at, curve_error, curve_inverse)
from stirbar.rt.fusion cimport FUSION_IDLE, Fusion, FusionModel, fusion_give, fusion_start, fusion_take, fusion_work
from stirbar.rt.od cimport OdState, od_blank, od_clock, od_gain, od_led, od_push, od_take, od_turn
from stirbar.rt.reference cimport reference_give
from stirbar.rt.types cimport (
    COMMAND_BLANK, COMMAND_DOSE_ML, COMMAND_LED, COMMAND_REFERENCE, COMMAND_STIR_STOP, FLAG_ABOVE_CURVE,
    FLAG_BELOW_CURVE, FLAG_BLANKED, FLAG_DOSING, FLAG_STIRRING_OFF, FLAG_UNCALIBRATED, MAX_CHANNELS, PART_CLEAR,
    PART_DONE, STREAM_OD1, STREAM_OD1_RATE1, STREAM_OD4_RATE3, TRACE_CLOCK, TRACE_COMMAND, TRACE_CONVERSION,
    TRACE_CURVE, TRACE_GAIN, TRACE_PERIOD, TRACE_TURN, Reading, TraceItem)

cdef enum:
    SLOT_FUSION = MAX_CHANNELS   # of a TRACE_CURVE; before it the calibrations of the channels

cdef struct Estimators:
    OdState od
    int64_t t0_ns            # of the TRACE_CLOCK item that waits for its TRACE_PERIOD
    uint32_t index0
    uint32_t flags           # FLAG_STIRRING_OFF and FLAG_DOSING, as the actuator thread says
    int64_t mixed_ns         # of the last reading that was made while it dosed
    uint32_t calibrated      # channels whose curve is in force, by bit
    Curve curve[MAX_CHANNELS]
    double density[MAX_CHANNELS]     # the last that the curve gave; NaN: none yet
    Fusion fusion

cdef inline int estimators_curve(Estimators* e, const TraceItem* item) noexcept nogil:
    """One part of a calibration: its slot is emptied, filled word by word, and put in force. Returns 0: no reading."""
    cdef char* slot
    cdef size_t room
    if item.channel < MAX_CHANNELS:
        slot = <char*>&e.curve[item.channel]
        room = sizeof(Curve)
    elif item.channel == SLOT_FUSION:
        slot = <char*>&e.fusion.model
        room = sizeof(FusionModel)
    else:
        return 0
    if item.phase == PART_CLEAR:
        memset(slot, 0, room)
        if item.channel == SLOT_FUSION:
            e.fusion.in_force = 0
            e.fusion.stage = FUSION_IDLE
        else:
            e.calibrated &= ~(<uint32_t>1 << item.channel)
            e.density[item.channel] = NAN
    elif item.phase == PART_DONE:
        if item.channel == SLOT_FUSION:
            fusion_start(&e.fusion)
        elif e.curve[item.channel].kind != CURVE_NONE:
            e.calibrated |= <uint32_t>1 << item.channel
    elif <size_t>item.index < room // 8:
        memcpy(slot + 8 * <size_t>item.index, &item.value, 8)
    return 0


cdef inline int estimators_apply(Estimators* e, const TraceItem* item) noexcept nogil:
    """What one item of the sampling thread's trace does; returns how many readings are ready (estimators_take)."""
    cdef int count
    if item.kind == TRACE_CONVERSION:
        count = od_push(&e.od, item.channel, item.index, <int>item.value.i, item.phase, item.flags & 1)
        if e.fusion.stage != FUSION_IDLE:
            count += fusion_work(&e.fusion)
        return count
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
        elif item.index == COMMAND_REFERENCE and item.channel < MAX_CHANNELS:
            reference_give(&e.od.reference_fit[item.channel], item.value.f)
        elif item.index == COMMAND_STIR_STOP:
            e.flags = e.flags & FLAG_DOSING | (FLAG_STIRRING_OFF if item.value.f != 0 else 0)
        elif item.index == COMMAND_DOSE_ML:
            e.flags = e.flags & FLAG_STIRRING_OFF | (FLAG_DOSING if item.value.f != 0 else 0)
    elif item.kind == TRACE_CURVE:
        return estimators_curve(e, item)
    return 0


cdef inline void calibrate(Estimators* e, int channel, Reading* reading, double blank) noexcept nogil:
    """Value and errors by the channel's curve. A blank is not subtracted: the curve has its own."""
    cdef const Curve* curve = &e.curve[channel]
    cdef CurvePoint point
    cdef double value = reading.value + blank
    cdef double x
    cdef int where = curve_inverse(curve, value, e.density[channel], &x)
    point = curve_at(curve, x)
    e.density[channel] = x
    reading.signal_v = <float>value
    reading.value = x
    reading.se_instrument = <float>curve_error(reading.se_instrument, &point)
    reading.se_culture = <float>curve_error(reading.se_culture, &point)
    reading.blank = 0.0
    reading.flags &= ~<uint32_t>(FLAG_UNCALIBRATED | FLAG_BLANKED)
    if where == CURVE_BELOW or where == CURVE_BEYOND:
        reading.flags |= FLAG_BELOW_CURVE
    if where == CURVE_ABOVE or where == CURVE_BEYOND:
        reading.flags |= FLAG_ABOVE_CURVE


cdef inline int stream_channel(int stream) noexcept nogil:
    """The photodiode channel (0..3) whose density a stream is, at any of the rates, or -1."""
    if STREAM_OD1 <= stream < STREAM_OD1 + MAX_CHANNELS:
        return stream - STREAM_OD1
    if STREAM_OD1_RATE1 <= stream <= STREAM_OD4_RATE3:
        return (stream - STREAM_OD1_RATE1) % MAX_CHANNELS
    return -1


cdef inline int estimators_take(Estimators* e, Reading* reading) noexcept nogil:
    """1 and the next reading that is ready, or 0."""
    cdef double blank
    cdef int channel
    if not od_take(&e.od, reading):
        return fusion_take(&e.fusion, reading)
    reading.flags |= e.flags
    if e.flags & FLAG_DOSING:
        e.mixed_ns = reading.monotonic_ns if reading.monotonic_ns > e.mixed_ns else e.mixed_ns
    elif reading.monotonic_ns - <int64_t>(1e9 * reading.window_s) < e.mixed_ns:
        reading.flags |= FLAG_DOSING
    channel = stream_channel(reading.stream)
    if channel < 0:
        return 1
    blank = e.od.channel[channel].blank if reading.flags & FLAG_BLANKED else 0.0
    if e.fusion.in_force and e.fusion.model.intensity_percent == e.od.led_percent and reading.stream < STREAM_OD1_RATE1:
        fusion_give(&e.fusion, reading, e.od.grid_ns, blank)
    if e.calibrated >> channel & 1 and e.curve[channel].intensity_percent == e.od.led_percent:
        calibrate(e, channel, reading, blank)
    return 1
