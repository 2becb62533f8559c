# Why compiled: what each LED channel may give is decided in the loop, whatever the host thread does or no longer does.
# Thread rule: the sampling thread; `code` is read by the host thread as 32-bit values.
# Units: percent 0..100, codes of the driver's 8 bits, nanoseconds of the loop's clock. Channels A..D are 0..3.
#
# Pure: no clock, no I/O. A channel gives what it was asked for while its lease lasts; a locked one is dark for as long
# as optical density is measured, and the OD LED then belongs to the measurement.

from libc.errno cimport EBUSY, EDOM, ENODEV
from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from stirbar.rt.limits cimport LED_INTENSITY_CEILING_PERCENT, LED_LEASE_S
from stirbar.rt.ring cimport stirbar_store_relaxed

cdef enum:
    LED_CHANNELS = 4
    LED_FULL_CODE = 255

cdef struct LedConfig:
    uint32_t present                      # bits: the board has this channel
    uint32_t locked                       # bits: dark while optical density is measured
    int od                                # channel of the OD LED; -1: the board measures with none
    double[LED_CHANNELS] maximum_percent

cdef struct Leds:
    LedConfig config
    uint32_t[LED_CHANNELS] asked
    int64_t[LED_CHANNELS] until_ns        # of the lease
    uint32_t[LED_CHANNELS] code           # that the driver has
    uint32_t pending                      # bits: it is to have another one
    uint32_t lapsed                       # bits: dark for want of a lease,
    uint32_t held                         # or for the measurement
    int64_t pending_ns                    # since when one of them is pending
    int64_t look_ns                       # before which nothing changes by itself


cdef inline uint32_t led_code(double percent) noexcept nogil:
    """The driver's code nearest to an intensity; what is not dark never becomes so."""
    cdef uint32_t code = <uint32_t>(percent * (LED_FULL_CODE / 100.0) + 0.5)
    return 1 if code == 0 and percent > 0.0 else code


cdef inline double led_percent(uint32_t code) noexcept nogil:
    """The intensity that a code gives."""
    return code * (100.0 / LED_FULL_CODE)


cdef inline int leds_init(Leds* leds, const LedConfig* config) noexcept nogil:
    """All dark; 0, or -EDOM: a maximum is no number or above the ceiling."""
    cdef int i
    for i in range(LED_CHANNELS):
        if not 0.0 <= config.maximum_percent[i] <= LED_INTENSITY_CEILING_PERCENT:
            return -EDOM
        leds.asked[i] = leds.code[i] = 0
        leds.until_ns[i] = 0
    leds.config = config[0]
    leds.pending = leds.lapsed = leds.held = 0
    leds.pending_ns = 0
    leds.look_ns = INT64_MAX
    return 0


cdef inline int leds_set(Leds* leds, int channel, double percent, bint measuring, int64_t now_ns) noexcept nogil:
    """Ask for an intensity, with a lease from now on. 0; -ENODEV: no such channel; -EBUSY: it is the measurement's;
    -EDOM: above its maximum, or no number."""
    if not 0 <= channel < LED_CHANNELS or not leds.config.present >> channel & 1:
        return -ENODEV
    if measuring and channel == leds.config.od:
        return -EBUSY
    if not 0.0 <= percent <= leds.config.maximum_percent[channel]:
        return -EDOM
    leds.asked[channel] = led_code(percent)
    leds.until_ns[channel] = now_ns + <int64_t>LED_LEASE_S * 1000000000
    return 0


cdef inline void leds_renew(Leds* leds, uint32_t channels, int64_t now_ns) noexcept nogil:
    """The host thread lives, and wants the light of these channels (bits)."""
    cdef int i
    for i in range(LED_CHANNELS):
        if channels >> i & 1:
            leds.until_ns[i] = now_ns + <int64_t>LED_LEASE_S * 1000000000


cdef inline uint32_t leds_wanted(const Leds* leds, int channel) noexcept nogil:
    """The code that a channel is to have, by its lease and by the measurement."""
    return 0 if (leds.lapsed | leds.held) >> channel & 1 else leds.asked[channel]


cdef inline void leds_decide(Leds* leds, bint measuring, int64_t now_ns) noexcept nogil:
    """Which channels are to have another code now, and which are dark although they were asked for light. What was
    asked of the OD LED ends with the measurement that takes it."""
    cdef uint32_t was_pending = leds.pending
    cdef int i
    leds.lapsed = leds.held = leds.pending = 0
    leds.look_ns = INT64_MAX
    for i in range(LED_CHANNELS):
        if measuring and i == leds.config.od:
            leds.asked[i] = 0
            stirbar_store_relaxed(&leds.code[i], 0)
            continue
        if leds.asked[i]:
            leds.lapsed |= <uint32_t>(now_ns >= leds.until_ns[i]) << i
            leds.held |= (leds.config.locked >> i & 1 if measuring else 0) << i
            if now_ns < leds.until_ns[i] < leds.look_ns:
                leds.look_ns = leds.until_ns[i]
        leds.pending |= <uint32_t>(leds_wanted(leds, i) != leds.code[i]) << i
    if leds.pending and not was_pending:
        leds.pending_ns = now_ns


cdef inline int leds_next(const Leds* leds) noexcept nogil:
    """The channel that is to be written next; only while one is pending."""
    cdef int i = 0
    while not leds.pending >> i & 1:
        i += 1
    return i


cdef inline void leds_written(Leds* leds, int channel) noexcept nogil:
    """The driver has what this channel is to have."""
    stirbar_store_relaxed(&leds.code[channel], leds_wanted(leds, channel))
    leds.pending &= ~(<uint32_t>1 << channel)
