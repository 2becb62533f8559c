# Why compiled: the LED channels are on the sampling thread's bus, and change only where that disturbs no measurement.
# Thread rule: the sampling thread.
# Units: nanoseconds of the loop's clock, percent of LED intensity.
#
# leds.pxd decides what a channel is to give; light.pxd (sampler_let_leds) says when a chop period begins.

from libc.errno cimport EAGAIN
from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.leds cimport LED_CHANNELS, led_percent, leds_decide, leds_next, leds_wanted, leds_written
from stirbar.rt.ports cimport port_event
from stirbar.rt.sampler_state cimport RETRY_NS, SLOW_LEDS, Sampler
from stirbar.rt.types cimport (
    EVENT_LED_CHANGED, EVENT_LED_LAPSED, EVENT_LED_LAPSED_OVER, EVENT_LED_LOCKED, EVENT_LED_LOST, EVENT_LED_LOST_OVER)

cdef enum:
    LEDS_LATEST_NS = 2000000000   # so long a change waits for a chop period, where none comes
    LEDS_LOOK_NS = 1000000000     # while one waits


cdef inline void sampler_led_told(Sampler* s, int channel, int status, double percent, int64_t now_ns) noexcept nogil:
    """Tell the host what the driver said to a change."""
    cdef uint32_t bit = <uint32_t>1 << channel
    if status:
        s.bus_errors += 1
        s.leds_retry_ns = now_ns + RETRY_NS
        if not s.leds_lost & bit:
            s.leds_lost |= bit
            port_event(&s.port, now_ns, EVENT_LED_LOST, channel, 0, percent)
        return
    if s.leds_lost & bit:
        s.leds_lost &= ~bit
        port_event(&s.port, now_ns, EVENT_LED_LOST_OVER, channel, 0, percent)
    port_event(&s.port, now_ns, EVENT_LED_CHANGED, channel, 0, percent)


cdef inline void sampler_write_led(Sampler* s, int64_t now_ns) noexcept nogil:
    """One transfer for a channel that is to change; what then still waits goes into the next gap."""
    cdef int channel, status
    cdef double percent
    if not s.leds.pending:
        return
    channel = leds_next(&s.leds)
    percent = led_percent(leds_wanted(&s.leds, channel))
    if channel == s.leds.config.od:
        status = s.hal.led_write(s.hal.context, percent, now_ns)
    else:
        status = s.hal.led_channel_write(s.hal.context, channel, percent, now_ns)
    if status == 0:
        leds_written(&s.leds, channel)
        s.leds.pending_ns = now_ns  # the others have had their turn
    if status != -EAGAIN:
        sampler_led_told(s, channel, status, percent, now_ns)
    if s.leds.pending and now_ns >= s.leds_retry_ns:
        s.slow_due |= <uint32_t>1 << SLOW_LEDS


cdef inline void sampler_say_leds(Sampler* s, uint32_t channels, int code, int64_t now_ns) noexcept nogil:
    """One event for each of these channels (bits)."""
    cdef int i
    for i in range(LED_CHANNELS):
        if channels >> i & 1:
            port_event(&s.port, now_ns, code, i, 0, led_percent(s.leds.asked[i]))


cdef inline void sampler_tend_leds(Sampler* s, int64_t now_ns) noexcept nogil:
    """A lease, a command or the measurement may have changed what the channels are to give: written at once where
    nothing is measured, else with a chop period, and at last without one."""
    cdef uint32_t lapsed = s.leds.lapsed
    cdef uint32_t held = s.leds.held
    cdef int _i
    leds_decide(&s.leds, s.sampling, now_ns)
    sampler_say_leds(s, s.leds.lapsed & ~lapsed, EVENT_LED_LAPSED, now_ns)
    sampler_say_leds(s, lapsed & ~s.leds.lapsed, EVENT_LED_LAPSED_OVER, now_ns)
    sampler_say_leds(s, s.leds.held & ~held, EVENT_LED_LOCKED, now_ns)
    if not s.leds.pending:
        return
    if not s.sampling or now_ns - s.leds.pending_ns >= LEDS_LATEST_NS:
        s.slow_forced += s.sampling != 0
        for _i in range(2 * LED_CHANNELS):
            if now_ns >= s.leds_retry_ns:
                sampler_write_led(s, now_ns)
        s.slow_due &= ~(<uint32_t>1 << SLOW_LEDS)
    if s.leds.pending and s.leds.look_ns > now_ns + LEDS_LOOK_NS:
        s.leds.look_ns = now_ns + LEDS_LOOK_NS
