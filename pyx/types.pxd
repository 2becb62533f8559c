# Why compiled: these structs cross the boundary between the loop's threads, the host thread and the wire.
# Thread rule: plain data, copied by value; never shared.
# Units: *_ns nanoseconds, *_v volts, *_s seconds, *_hz hertz, angle in degrees.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    RECORD_VERSION = 1      # of Reading, TraceItem and the batch header; see docs/protocol.md
    MAX_CHANNELS = 4        # photodiode channels 1..4, held at index 0..3
    SNAPSHOT_BYTES = 114688  # room for the state of the estimators of all channels

# Streams: one number and one name each, in core/records.py too (a test holds them equal).
cdef enum:
    STREAM_OD1 = 1          # optical density of photodiode channels 1..4
    STREAM_OD2 = 2
    STREAM_OD3 = 3
    STREAM_OD4 = 4
    STREAM_OD_FUSED = 5     # one concentration from several angles
    STREAM_RPM = 8          # stirring speed
    STREAM_TEMPERATURE = 9  # of the heater board
    STREAM_LIQUID = 10      # of the liquid, as estimated
    STREAM_VOLUME = 11      # of the liquid, by the pumps' account
    STREAM_TURNS = 12       # what the times of the stirrer's turns do
    STREAM_GROWTH_RATE = 13  # of the culture, 1/h
    STREAM_OD_FILTERED = 14  # optical density as the growth rate's filter has it, relative to that at its start
    STREAM_EVENT = 16
    STREAM_STATUS = 17
    STREAM_RAW = 18         # trace of the sampling thread
    STREAM_EDGES = 19       # trace of the actuator thread
    STREAM_VITALS = 20      # of the computer under the worker: made by the host thread
    STREAM_OD1_RATE1 = 32   # optical density at the first slower rate, channels 1..4; then at the second and third
    STREAM_OD2_RATE1 = 33
    STREAM_OD3_RATE1 = 34
    STREAM_OD4_RATE1 = 35
    STREAM_OD1_RATE2 = 36
    STREAM_OD2_RATE2 = 37
    STREAM_OD3_RATE2 = 38
    STREAM_OD4_RATE2 = 39
    STREAM_OD1_RATE3 = 40
    STREAM_OD2_RATE3 = 41
    STREAM_OD3_RATE3 = 42
    STREAM_OD4_RATE3 = 43
    STREAM_MODULATION1 = 44  # of the light through channels 1..4, by the stir bar
    STREAM_MODULATION2 = 45
    STREAM_MODULATION3 = 46
    STREAM_MODULATION4 = 47

# Flags of a reading.
cdef enum:
    FLAG_SATURATED = 1 << 0        # a conversion reached the converter's limit
    FLAG_DARK = 1 << 1             # no light was seen, the LED was never on, or its driver does not answer
    FLAG_BUBBLES = 1 << 2          # more than a quarter of the on conversions were rejected
    FLAG_DOSING = 1 << 3           # a pump ran within the window, or so shortly before that the vial was not mixed
    FLAG_AMBIENT_STEP = 1 << 4     # a step of ambient light was cut out
    FLAG_WARMING = 1 << 5          # the LED has not settled
    FLAG_STIRRING_OFF = 1 << 6
    FLAG_GAP = 1 << 7              # conversions are missing within the window
    FLAG_UNCALIBRATED = 1 << 8     # value is normalised scatter, not OD600
    FLAG_STALE_REFERENCE = 1 << 9  # the reference photodiode is absent or has stopped
    FLAG_UNCHOPPED = 1 << 10       # always-on light: ambient light is inside the value
    FLAG_STALLED = 1 << 11
    FLAG_SENSOR_LOST = 1 << 12
    FLAG_SIMULATED = 1 << 13
    FLAG_BLANKED = 1 << 14         # a blank was subtracted
    FLAG_MAINS_UNLOCKED = 1 << 15  # mains frequency not tracked yet; nominal used
    FLAG_BELOW_CURVE = 1 << 16     # outside the calibration: value is the low end of its range
    FLAG_ABOVE_CURVE = 1 << 17     # its high end; both flags: beyond the curve's own top or bottom within the range
    FLAG_UNOBSERVED = 1 << 18      # liquid: its temperature is known to no better than half a degree

cdef packed struct Reading:          # 88 bytes
    uint64_t sequence                # per stream and run, from 0, without gaps unless the ring dropped
    int64_t monotonic_ns             # end of the window, CLOCK_MONOTONIC
    int64_t wall_ns                  # the same instant, Unix time; filled by the host thread
    double value
    float se_instrument              # standard error of the light in this window, unit of value
    float se_culture                 # standard error as a measure of the culture, unit of value
    float window_s
    float noise_bandwidth_hz         # equivalent noise bandwidth of the window
    float signal_v                   # od: on minus off, or the uncalibrated value; fused: se by its model; rpm: duty
    float reference_v                # od: reference photodiode; rpm: speed asked for; else NaN
    float ambient_v                  # od: level of the off phase; else NaN
    float blank                      # what was subtracted, unit of value; 0 without FLAG_BLANKED
    uint32_t used                    # conversions (or edges) that made the value
    uint32_t rejected                # conversions rejected as bubbles
    uint32_t flags
    uint32_t experiment              # index of the experiment at the time of measuring; its name is in the batch header
    uint16_t stream
    uint16_t angle                   # of the photodiode; 0 where there is none
    uint16_t half_cycle              # k: conversions in half a chop cycle; 0 where there is none
    uint16_t version

# What the estimators saw, in order: enough to repeat every reading bit by bit.
cdef enum:
    TRACE_CONVERSION = 1     # index, code, phase
    TRACE_CLOCK = 2          # index0 and t0_ns: end of conversion index0
    TRACE_PERIOD = 3         # period_ns of the converter, follows TRACE_CLOCK
    TRACE_GAIN = 4           # volts per code
    TRACE_EDGE = 5           # tachometer edge, time in ns
    TRACE_COMMAND = 6        # index: command code, channel, value
    TRACE_TICK = 7           # the actuator's control tick, time in ns
    TRACE_SNAPSHOT = 8       # index: number of the snapshot of the estimators taken at this point
    TRACE_CURVE = 9          # a calibration. channel: slot, phase: PART_*, index: word, value: its 8 bytes
    TRACE_TURN = 10          # value: time of a turn of the stirrer, microseconds; 0 when it does not turn
    TRACE_TEMPERATURE = 11   # value: of the heater board, as the actuator thread took it over, time in ns follows
    TRACE_DOSE = 12          # the doser is looked at, time in ns; flags: DOSE_* of doser.pxd

cdef union TraceValue:
    int64_t i
    double f

cdef packed struct TraceItem:        # 16 bytes
    uint8_t kind
    uint8_t channel                  # 0..3; of a curve its slot, of a command to the stirrer its part
    uint8_t phase                    # PHASE_*
    uint8_t flags                    # bit 0: the converter clipped
    uint32_t index
    TraceValue value

# TraceItem.phase of a TRACE_CURVE.
cdef enum:
    PART_WORD = 0
    PART_CLEAR = 1           # the slot is empty from here on
    PART_DONE = 2            # all words are there: in force from here on

# Light during a conversion.
cdef enum:
    PHASE_OFF = 0
    PHASE_ON = 1
    PHASE_EDGE = 2           # the LED changed within it, or its light has not settled: not used

# Host thread -> loop. Answered by one event with the same id.
cdef enum:
    COMMAND_EXPERIMENT = 1   # index: number of the experiment
    COMMAND_OD_START = 2
    COMMAND_OD_STOP = 3
    COMMAND_BLANK = 4        # channel, value (unit of the reading's value); NaN clears it
    COMMAND_LED = 5          # value: intensity of the OD LED, percent
    COMMAND_TRACE = 6        # value: seconds from now during which at least the trace is written
    COMMAND_STIR_RPM = 7     # value: target rpm
    COMMAND_STIR_DUTY = 8    # value: open-loop duty, percent
    COMMAND_STIR_STOP = 9
    COMMAND_TEMPERATURE = 10  # value: 1 reads the sensor, 0 stops
    COMMAND_SIMULATION = 11   # index: parameter of the simulated vial, value
    COMMAND_CURVE = 12        # what the host has staged becomes words of a slot of the estimators
    COMMAND_REFERENCE = 13    # channel, value: coefficient of the reference (reference.pxd); NaN: learn it
    COMMAND_HEAT_TARGET = 14  # value: of the liquid, degC
    COMMAND_HEAT_DUTY = 15    # value: percent, without a controller; the envelope holds
    COMMAND_HEAT_STOP = 16
    COMMAND_HEAT_RENEW = 17   # the host thread lives
    COMMAND_HEAT_UNLOCK = 18  # a person has acknowledged that the board was too hot
    COMMAND_DOSE_ML = 20      # channel: pump, value: mL; of the sampling thread's trace: 1 while it doses, else 0
    COMMAND_DOSE_SECONDS = 21  # channel: pump, value: s
    COMMAND_DOSE_CONTINUOUS = 22   # channel: pump; until its lease lapses
    COMMAND_DOSE_RENEW = 23   # the host thread wants it to run on
    COMMAND_DOSE_PART = 24    # channel: pump, value: mL of the exchange that is asked for next
    COMMAND_DOSE_EXCHANGE = 25     # value: how often the waste is run again after the inflow
    COMMAND_DOSE_STOP = 26    # value: 0 at once, 1 taking out first what an exchange has let in
    COMMAND_VOLUME = 27       # channel: VOLUME_* of volume.pxd, value
    COMMAND_PUMP = 28         # channel: pump + 3 * PUMP_* of dose_plan.pxd, value
    COMMAND_LED_SET = 30      # channel 0..3, value: intensity of an LED channel, percent
    COMMAND_LED_RENEW = 31    # index, bits: the host thread lives, and wants the light of these channels
    COMMAND_STIR_RAMP = 35    # value: rpm per second by which the stirrer's speed may change; 0: at once
    COMMAND_STIR_CURVE = 36   # channel: part of a stirring calibration (feed_forward.pxd), value
    COMMAND_STIR_DODGE = 37   # channel: part of a schedule of speeds (dodging.pxd), value

cdef struct Command:
    uint32_t id
    uint16_t code
    uint16_t channel
    int32_t index
    double value

# Loop -> host thread.
cdef enum:
    EVENT_COMMAND_DONE = 1     # argument: id
    EVENT_COMMAND_REFUSED = 2  # argument: id, value: limit
    EVENT_STIR_KICK = 3        # argument: stalls in a row
    EVENT_STIR_STALL = 4       # argument: how many in a row
    EVENT_STIR_FAULT = 5       # argument: stalls in a row
    EVENT_STIR_RUNNING = 6     # value: rpm
    EVENT_RATE_LOCKED = 7      # argument: channel, value: conversions per second
    EVENT_HALF_CYCLE = 8       # argument: k, value: chop frequency in Hz
    EVENT_SENSOR_LOST = 9      # argument: STREAM_*
    EVENT_SENSOR_BACK = 10
    EVENT_SATURATED = 11       # argument: channel
    EVENT_REFERENCE_ERROR = 20  # argument: channel, value: standard error of what EVENT_REFERENCE says next
    EVENT_REFERENCE = 21       # argument: channel, value: coefficient of the reference as learned
    EVENT_GAIN = 12            # argument: channel, value: full scale in volts
    EVENT_OVER_VOLTAGE = 13    # argument: channel, value: volts; the light stays off
    EVENT_HIGH_VOLTAGE = 14    # argument: channel, value: volts
    EVENT_LIGHT_PATH = 16      # argument: d, value: time constant in ms
    EVENT_LIGHT_LOST = 17      # the LED's driver does not answer
    EVENT_LIGHT_BACK = 18
    EVENT_HEAT_LIMITED = 32    # argument: which HEAT_* reason began, by its bit; value: the heater board, degC
    EVENT_HEAT_FREED = 33      # the same, ended
    EVENT_DOSE_STEP = 34       # argument: pump, value: mL that it has moved
    EVENT_DOSE_DONE = 35       # argument: CUT_* of doser.pxd, value: volume of the liquid, mL
    EVENT_DOSE_CUT = 36        # argument: CUT_*, value: mL of an exchange that did not come in
    EVENT_DOSE_OWED = 37       # argument: CUT_*, value: mL that came in and were not taken out
    EVENT_LIMITS_RESTORED = 38  # the envelope's limits had changed in memory; they are back, no heat, no inflow
    EVENT_LED_CHANGED = 50     # argument: LED channel 0..3, value: percent that it has now
    EVENT_LED_LAPSED = 51      # argument: LED channel; nobody renewed its lease: it goes dark
    EVENT_LED_LAPSED_OVER = 52  # argument: LED channel; somebody did
    EVENT_LED_LOCKED = 53      # argument: LED channel; it is dark while optical density is measured
    EVENT_LED_LOST = 54        # argument: LED channel whose driver refused a change; tried again each second
    EVENT_LED_LOST_OVER = 55   # argument: LED channel; it took it

cdef packed struct Event:
    int64_t monotonic_ns
    double value
    int32_t argument
    uint16_t code
    uint16_t source            # STREAM_* it is about, or 0
