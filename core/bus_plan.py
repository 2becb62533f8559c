"""How long the transfers of a board's plan keep its I2C bus busy, and what chopped light costs in noise.

Times are those of the bits alone (nine for a byte with its acknowledge, one each for start and stop): what driver and
system call add, 30 to 110 us a transfer on a Pi, comes on top. A microcontroller that stretches the clock adds its own.

Synchronization: pure.
"""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.profiles import Profile

WRITE_BITS = 2  # start and stop
READ_PRESET_BITS = 9 * 3 + 2  # address and two bytes; the chip's pointer stands at the register already
READ_BITS = 9 * 2 + 9 * 3 + 3  # address, pointer, start again, address, two bytes
ADS_WRITE_BITS = 9 * 4 + WRITE_BITS  # address, pointer, two bytes
LED_BITS = {"dac43608": 9 * 4 + WRITE_BITS, "rp2040": 9 * 3 + WRITE_BITS}
RP2040_STRETCH_S = 1.8e-3  # of firmware 0.3, in each read; later ones answer at once
CLOCK_SPREAD = 0.10  # an ADS111x's oscillator may be so far off
WAKE_S = 25e-6  # an ADS111x, from power-down to the start of a conversion
SLOW_READS_HZ = 2.0  # temperature and its configuration, rail


def read_s(profile: Profile, section: str) -> float:
    """Bus time of fetching one conversion."""
    clock = float(profile.get("i2c", "clock_hz"))
    if profile.get(section, "chip") == "rp2040":
        return READ_BITS / clock + RP2040_STRETCH_S
    bits = READ_BITS + ADS_WRITE_BITS if profile.get(section, "pace") == "host" else READ_PRESET_BITS
    return bits / clock


def led_write_s(profile: Profile) -> float:
    """Bus time of one change of the light."""
    return float(LED_BITS[profile.get("led", "chip")] / profile.get("i2c", "clock_hz"))


def bus_share(profile: Profile, clock_spread: float = 0.0) -> float:
    """Share of the time that the bits of the plan take, with converters that are `clock_spread` too fast."""
    share = SLOW_READS_HZ * READ_BITS / profile.get("i2c", "clock_hz")
    chops = 0.0
    for section in (f"photodiode.{n}" for n in profile.channels()):
        free = profile.get(section, "pace") in ("ready", "pilot")
        rate = profile.get(section, "rate_hz") * (1.0 + clock_spread if free else 1.0)
        share += rate * read_s(profile, section)
        chops = max(chops, rate / profile.get(section, "half_cycle_low"))
    return float(share + chops * led_write_s(profile))


def _slowest_conversion_s(profile: Profile, section: str) -> float:
    return (1.0 + CLOCK_SPREAD) / float(profile.get(section, "conversion_hz")) + WAKE_S


def _sharing(profile: Profile, section: str) -> int:
    """Photodiodes that take turns at the converter of this one, itself counted."""
    converter = profile.get(section, "converter")
    return sum(profile.get(f"photodiode.{n}", "converter") == converter for n in profile.channels())


def shared_rate_limit(profile: Profile, section: str) -> float | None:
    """Highest rate of a photodiode that is converted one at a time, with the slowest oscillator; None: free-running."""
    if profile.get(section, "pace") != "host":
        return None
    turn_s = _slowest_conversion_s(profile, section) + read_s(profile, section)
    return 1.0 / (turn_s * _sharing(profile, section))


def discarded(profile: Profile, section: str, settle_ms: float | None = None) -> int:
    """Conversions that are lost to one change of the light; `settle_ms` as measured, or the profile's.

    Started one at a time: those that would begin before the light has settled, and the worker waits for it in the gap
    if that is long enough. Free-running: the one that the change falls into, and as many as settling outlasts it.
    """
    rate = float(profile.get(section, "rate_hz"))
    settle_s = 1e-3 * float(profile.get(section, "settle_ms") if settle_ms is None else settle_ms)
    pace = profile.get(section, "pace")
    if pace == "host":
        gap_s = 1.0 / (rate * _sharing(profile, section)) - _slowest_conversion_s(profile, section)
        return max(0, math.ceil((settle_s + led_write_s(profile) - gap_s) * rate))
    lost = math.ceil(settle_s * rate)
    return lost if pace == "smoothed" else max(1, lost)


def noise_over_b0(half_cycle: int, lost: int) -> float:
    """Standard error over that of always-on light: 2 / sqrt(1 - d/k), d of k conversions lost to each change (IS-16).

    Half of the conversions are dark, and the dark ones' noise is subtracted with them: a factor of two.
    """
    return 2.0 / math.sqrt(1.0 - lost / half_cycle) if lost < half_cycle else math.inf
