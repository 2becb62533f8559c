# Why compiled: turns configuration and hardware profile into the struct of the LED channels.
# Thread rule: the host thread, before the loop's threads live.
# Units: percent.

from libc.stdint cimport uint32_t
from libc.string cimport memset

from stirbar.rt.leds cimport LedConfig


cdef inline int configure_leds(LedConfig* leds, config, profile) except -1:
    """Which channels the board has, which of them is the OD LED, and what each may give. Without a profile: all four,
    A the OD LED."""
    cdef int i
    memset(leds, 0, sizeof(LedConfig))
    locked = str(config.get("leds.config", "lock_during_od")).upper()
    has_leds = profile is None or profile.get("led", "chip") is not None
    ir = "a" if profile is None else profile.get("led", "ir")
    leds.od = "abcd".index(ir) if has_leds else -1
    for i, letter in enumerate("ABCD"):
        present = has_leds and (profile is None or profile.get("led", letter.lower()) is not None)
        leds.present |= <uint32_t>present << i
        leds.locked |= <uint32_t>(letter in locked) << i
        leds.maximum_percent[i] = config.get("leds.config", f"maximum_percent_{letter}")
    return 0
