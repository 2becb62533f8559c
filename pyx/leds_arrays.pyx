# Why compiled: the LED channels' rules as a Python object, for tests and notebooks.
# Thread rule: one thread per object.
# Units: time in nanoseconds, percent 0..100.
"""The LED channels' part of the loop on its own; the worker never loads this module."""

from libc.stdint cimport int64_t, uint32_t

from stirbar.rt.leds cimport (
    LED_CHANNELS, LED_FULL_CODE, LedConfig, Leds, led_code, led_percent, leds_decide, leds_init, leds_next, leds_renew,
    leds_set, leds_wanted, leds_written)
from stirbar.rt.limits cimport LED_INTENSITY_CEILING_PERCENT, LED_LEASE_S

CHANNELS = "ABCD"
STEPS = LED_FULL_CODE
LEASE_S = LED_LEASE_S
CEILING_PERCENT = LED_INTENSITY_CEILING_PERCENT


def quantised(double percent):
    """The intensity that the driver makes of one that was asked for."""
    return led_percent(led_code(percent))


cdef uint32_t bits(letters):
    return sum([1 << CHANNELS.index(letter) for letter in letters])


cdef str letters(uint32_t channels):
    return "".join([CHANNELS[i] for i in range(LED_CHANNELS) if channels >> i & 1])


cdef class LedRules:
    """Four LED channels, named by their letters: `od` is the OD LED ("" for none), those of `locked` are dark while
    optical density is measured. ValueError for a maximum above the ceiling.

    Synchronization: not thread-safe; no clock, no I/O.
    """

    cdef Leds state

    def __init__(self, *, present="ABCD", od="A", locked="", maximum_percent=(100.0, 100.0, 100.0, 100.0)):
        cdef LedConfig config
        cdef int i
        config.present = bits(present)
        config.locked = bits(locked)
        config.od = CHANNELS.index(od) if od else -1
        for i in range(LED_CHANNELS):
            config.maximum_percent[i] = maximum_percent[i]
        if leds_init(&self.state, &config):
            raise ValueError(f"maximum_percent {maximum_percent}: 0 to {CEILING_PERCENT} each")

    def set(self, str channel, double percent, int64_t now_ns, bint measuring=False):
        """Ask for an intensity: 0, or minus an errno."""
        return leds_set(&self.state, CHANNELS.index(channel), percent, measuring, now_ns)

    def renew(self, channels, int64_t now_ns):
        """The host thread's lease on these channels."""
        leds_renew(&self.state, bits(channels), now_ns)

    def decide(self, int64_t now_ns, bint measuring=False):
        """The channels that are to be written now, and what each is to have: {channel: percent}."""
        cdef int i
        leds_decide(&self.state, measuring, now_ns)
        return {CHANNELS[i]: led_percent(leds_wanted(&self.state, i))
                for i in range(LED_CHANNELS) if self.state.pending >> i & 1}

    def write_next(self):
        """The driver took the change of the channel that is next: its letter."""
        cdef int channel = leds_next(&self.state)
        leds_written(&self.state, channel)
        return CHANNELS[channel]

    @property
    def given_percent(self):
        """What each channel gives."""
        return [led_percent(self.state.code[i]) for i in range(LED_CHANNELS)]

    @property
    def lapsed(self):
        """Channels that are dark for want of a lease."""
        return letters(self.state.lapsed)

    @property
    def held(self):
        """Channels that are dark for the measurement."""
        return letters(self.state.held)

    @property
    def pending_ns(self):
        """Since when a change waits; only while one does."""
        return self.state.pending_ns

    @property
    def look_ns(self):
        """Before which nothing changes by itself."""
        return self.state.look_ns
