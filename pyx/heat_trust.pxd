# Why compiled: whether the heater's sensor may be believed is decided before each write of the heater.
# Thread rule: pure functions on one flat struct; the actuator thread owns it. No clock, no I/O, no allocation.
# Units: degrees Celsius, nanoseconds of the loop's clock; duty 0..1.
#
# A sensor that answers with a frozen value is never old (IS-10), and a threshold on speed trips on a healthy heater. So
# the sensor is believed while the change that it shows over a minute agrees with what the model, left alone with the
# duty that was given, says it should be; and never while it gives the same value through a change of the duty.

from libc.math cimport fabs, isfinite
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.liquid cimport LIQUID_BOARD, LIQUID_LIQUID, LIQUID_STATES, LiquidState, liquid_rates

cdef enum:
    TRUST_BLOCK_S = 60
    TRUST_PROOF_S = 45               # by which a sensor that is not believed earns it: less than the blind time
    TRUST_STUCK_S = 60
    TRUST_STALE_MS = 5000            # without a reading for longer there is nothing to believe
    TRUST_IMPLAUSIBLE_COUNT = 3      # readings in a row that cannot be: the sensor is not believed
    TRUST_REJECTED_PARTS = 4         # more than a quarter of a block's readings cannot be: none of them is believed
    TRUST_RESTART_S = 60             # a level that stays after an impossible step is a new beginning
    TRUST_STUCK_CHANGE_PERCENT = 10  # of the duty, relative to its largest
    TRUST_STUCK_DUTY_PERCENT = 10    # below it a change moves the sensor by less than its step

cdef enum:                           # why the sensor is not believed
    DISTRUST_NONE = 0
    DISTRUST_NEW = 1                 # nothing was seen yet
    DISTRUST_STALE = 2
    DISTRUST_STUCK = 3
    DISTRUST_SLOPE = 4
    DISTRUST_JUMP = 5

cdef extern from *:
    """
    #ifndef STIRBAR_TRUST
    #define STIRBAR_TRUST
    #define STIRBAR_TRUST_LOW_DEGC (-10.0)
    #define STIRBAR_TRUST_HIGH_DEGC 110.0
    #define STIRBAR_TRUST_STEP_DEGC 3.0      /* from one reading to the next; at full duty a board gains 0.4 a second */
    #define STIRBAR_TRUST_SAME_DEGC 0.01     /* less than the sensor's step: the same value */
    #define STIRBAR_TRUST_SHARE 0.35         /* of the change that the model expects */
    #endif
    """
    const double TRUST_LOW_DEGC "STIRBAR_TRUST_LOW_DEGC"
    const double TRUST_HIGH_DEGC "STIRBAR_TRUST_HIGH_DEGC"
    const double TRUST_STEP_DEGC "STIRBAR_TRUST_STEP_DEGC"
    const double TRUST_SAME_DEGC "STIRBAR_TRUST_SAME_DEGC"
    const double TRUST_SHARE "STIRBAR_TRUST_SHARE"

cdef struct HeatTrust:
    double band_degc             # of the profile: what a healthy heater's minute may differ by
    double last_degc             # last plausible reading
    double shown_degc            # the value that may be stuck,
    double duty_low              # and the duties since it came
    double duty_high
    double model[LIQUID_STATES]  # left alone since the block began
    double begun_degc            # reading at the block's begin
    double blind_degc            # of the readings that cannot be, the first
    int64_t last_ns
    int64_t shown_ns
    int64_t block_ns             # 0: no block under way
    int64_t blind_ns
    uint32_t implausible         # in a row
    uint32_t rejected            # in this block
    uint32_t taken
    int32_t distrust             # DISTRUST_*
    double difference_degc       # of the last block: shown less expected


cdef inline void trust_init(HeatTrust* t, double band_degc) noexcept nogil:
    memset(t, 0, sizeof(HeatTrust))
    t.band_degc = band_degc
    t.distrust = DISTRUST_NEW


cdef inline void trust_lose(HeatTrust* t, int why) noexcept nogil:
    t.distrust = why
    t.block_ns = 0


cdef inline bint trust_is_plausible(HeatTrust* t, double degc, int64_t now_ns) noexcept nogil:
    """Whether a reading can be; one that stays where no heater could have brought it is believed after a minute."""
    if not isfinite(degc) or not TRUST_LOW_DEGC <= degc <= TRUST_HIGH_DEGC:
        return False
    if t.last_ns == 0 or fabs(degc - t.last_degc) <= TRUST_STEP_DEGC * (1.0 + 1e-9 * <double>(now_ns - t.last_ns)):
        t.blind_ns = 0
        return True
    if t.blind_ns == 0 or fabs(degc - t.blind_degc) > TRUST_STEP_DEGC:
        t.blind_ns = now_ns
        t.blind_degc = degc
    return now_ns - t.blind_ns >= <int64_t>TRUST_RESTART_S * 1000000000


cdef inline void trust_begin_block(HeatTrust* t, const LiquidState* liquid, double degc, int64_t now_ns) noexcept nogil:
    cdef int i
    for i in range(LIQUID_STATES):
        t.model[i] = liquid.x[i]
    t.begun_degc = degc
    t.block_ns = now_ns
    t.rejected = t.taken = 0


cdef inline void trust_watch_stuck(HeatTrust* t, double degc, double duty, int64_t now_ns) noexcept nogil:
    if fabs(degc - t.shown_degc) > TRUST_SAME_DEGC or t.shown_ns == 0:
        t.shown_degc = degc
        t.shown_ns = now_ns
        t.duty_low = t.duty_high = duty
        return
    if duty < t.duty_low:
        t.duty_low = duty
    if duty > t.duty_high:
        t.duty_high = duty
    if (now_ns - t.shown_ns >= <int64_t>TRUST_STUCK_S * 1000000000
            and 100.0 * t.duty_high >= TRUST_STUCK_DUTY_PERCENT
            and 100.0 * (t.duty_high - t.duty_low) > TRUST_STUCK_CHANGE_PERCENT * t.duty_high):
        trust_lose(t, DISTRUST_STUCK)


cdef inline void trust_end_block(HeatTrust* t, double degc) noexcept nogil:
    """A block has passed: does the sensor show what the model expects of the duty?"""
    cdef double expected = t.model[LIQUID_BOARD] - t.begun_degc
    t.difference_degc = degc - t.begun_degc - expected
    if t.rejected * TRUST_REJECTED_PARTS > t.rejected + t.taken:
        trust_lose(t, DISTRUST_JUMP)
    elif fabs(t.difference_degc) > t.band_degc + TRUST_SHARE * fabs(expected):
        trust_lose(t, DISTRUST_SLOPE)
    elif t.distrust != DISTRUST_STUCK or t.shown_ns == 0:
        t.distrust = DISTRUST_NONE


cdef inline void trust_advance(HeatTrust* t, double duty, double seconds) noexcept nogil:
    """Let the model go on by itself, at the duty that was given."""
    cdef double board_rate, liquid_rate
    if t.block_ns:
        liquid_rates(t.model, duty, &board_rate, &liquid_rate)
        t.model[LIQUID_BOARD] += board_rate * seconds
        t.model[LIQUID_LIQUID] += liquid_rate * seconds


cdef inline bint trust_reading(
    HeatTrust* t, const LiquidState* liquid, double degc, double duty, int64_t now_ns
) noexcept nogil:
    """A reading of the board's sensor; whether it is fit for the observer. The duty is the one in force until now."""
    if not trust_is_plausible(t, degc, now_ns):
        t.implausible += 1
        t.rejected += 1
        if t.implausible >= TRUST_IMPLAUSIBLE_COUNT:
            trust_lose(t, DISTRUST_JUMP)
        return False
    t.implausible = 0
    t.taken += 1
    t.last_degc = degc
    t.last_ns = now_ns
    trust_watch_stuck(t, degc, duty, now_ns)
    if t.distrust == DISTRUST_STUCK and t.shown_ns == now_ns:
        t.distrust = DISTRUST_NEW  # it moves again: a minute will tell
    if t.block_ns == 0:
        trust_begin_block(t, liquid, degc, now_ns)
    elif now_ns - t.block_ns >= <int64_t>(TRUST_PROOF_S if t.distrust else TRUST_BLOCK_S) * 1000000000:
        trust_end_block(t, degc)
        trust_begin_block(t, liquid, degc, now_ns)
    return True


cdef inline void trust_tick(HeatTrust* t, int64_t now_ns) noexcept nogil:
    """Notice that no reading comes."""
    if t.last_ns and now_ns - t.last_ns > <int64_t>TRUST_STALE_MS * 1000000 and t.distrust != DISTRUST_STALE:
        trust_lose(t, DISTRUST_STALE)
        t.shown_ns = 0
