"""`stirbar hardware check`: who is on the bus, how fast it is, and whether its answers can be trusted.

Synchronization: none; one thread at a time.
"""

from __future__ import annotations

import os
import time

from stirbar.core import bus_plan, chips
from stirbar.core.check_report import FAIL, NOTE, OK, SKIP, WARN, Finding, judge
from stirbar.core.detection import Fit, Hat, detect, parts
from stirbar.core.schema_keys import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from stirbar.core.i2c_bus import I2cBus
    from stirbar.core.profiles import Profile

LONG_READ, SHORT_READ = 64, 2  # bytes; their difference is bus time alone
SPEED_TOLERANCE = 0.15
REPEATS = 10
ANSWERS = 100
STRETCH_S = 3e-4
LATE = 5.0  # times the median
SPEED_REMEDY = (
    "write dtparam=i2c_arm_baudrate={} into /boot/firmware/config.txt and start again, or change [i2c] clock_hz"
)
STRETCH_REMEDY = (
    "the BCM2835's I2C corrupts transfers whose clock is stretched: load firmware 0.4 or later into the RP2040, or"
    " lower the bus clock, or use the overlay i2c-gpio"
)


def check_devices(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """Each device of the profile: present, missing, or something else in its place."""
    found = {chip.address: chip for chip in chips.look(bus)}
    named = {profile.get(section, "address") for section in parts(profile)}
    users: dict[tuple[str, int], list[str]] = {}
    for section in parts(profile):
        users.setdefault((profile.get(section, "chip"), profile.get(section, "address")), []).append(f"[{section}]")
    for (chip, address), sections in users.items():
        yield _device(chip, address, sections, found, named)
    for one in found.values():
        if one.address not in named:
            yield Finding(NOTE, f"device at {one.address:#x}", f"{one.detail}; the profile does not name it")
    yield from _other_profile(profile, bus)


def _device(chip: str, address: int, sections: list[str], found: dict[int, chips.Chip], named: set[int]) -> Finding:
    what = f"{chip} at {address:#x} ({', '.join(sections)})"
    there = found.get(address)
    if there is not None and there.kind == chips.family(chip):
        return Finding(OK, what, there.detail)
    others = [one.address for one in found.values() if one.kind == chips.family(chip) and one.address not in named]
    if there is not None:
        text, remedy = f"{there.detail} answers instead", "choose the profile of this board, or correct its address"
    elif others:
        text = f"missing, but there is one at {', '.join(map(hex, others))} that the profile does not name"
        remedy = f"write address = {others[0]:#x} into {sections[0]}, or set the chip's ADDR pin"
    else:
        text, remedy = "missing", "check plug and cable; take the power away and give it back"
    return Finding(FAIL, what, text, "answers", remedy)


def _other_profile(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """Whether another board fits better, as a model at an XR's addresses does."""
    result = detect(bus.number)
    own = Fit(profile, {chip.address: chip for chip in result.found}, Hat())
    best = result.best()
    if best is None or best.name == profile.name or best.devices() <= own.devices():
        return
    yield Finding(
        WARN,
        "profile",
        f"{best.name} fits better: it {best.reason(result.hat)}",
        f"{profile.name} fits best",
        f"write hardware = {best.name} into [unit], or take the surplus board off",
    )


def _clock_hz(bus: I2cBus, address: int) -> float:
    """From the shortest long read and the shortest short one, taken until neither gets shorter: the rest is the
    machine's doing.
    """
    best = {LONG_READ: 1.0, SHORT_READ: 1.0}
    stale = 0
    while stale < REPEATS:
        stale += 1
        for length, before in list(best.items()):
            start = time.monotonic()
            bus.transfer(address, length=length)
            seconds = time.monotonic() - start
            if seconds < before:
                best[length] = seconds
                stale = stale if seconds > 0.98 * before else 0
    return 9.0 * (LONG_READ - SHORT_READ) / max(best[LONG_READ] - best[SHORT_READ], 1e-9)


def check_speed(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """Clock of the bus by transfer time, and the share of it that the plan takes."""
    planned = profile.get("i2c", "clock_hz")
    quiet = [s for s in parts(profile) if profile.get(s, "chip") != "rp2040"]
    present = [profile.get(s, "address") for s in quiet if chips.answers(bus, profile.get(s, "address"))]
    if not present:
        yield Finding(SKIP, "bus clock", "no chip but the RP2040 answers, and it stretches the clock")
    else:
        clock = _clock_hz(bus, present[0])
        yield judge(
            abs(clock / planned - 1.0) <= SPEED_TOLERANCE,
            "bus clock",
            f"{clock / 1e3:.1f} kHz",
            f"{planned / 1e3:g} kHz within {100 * SPEED_TOLERANCE:.0f} %",
            SPEED_REMEDY.format(planned),
        )
    share = bus_plan.bus_share(profile, bus_plan.CLOCK_SPREAD)
    yield judge(
        share <= 0.8,
        "bus time of the plan",
        f"{100 * share:.0f} % with the fastest converters",
        "80 %",
        "lower rate_hz and conversion_hz in the profile, or raise the bus clock",
        WARN,
    )


def _reference_read(bus: I2cBus, address: int, chip: str) -> tuple[int, int]:
    """(register, bytes) whose content stands still, for asking the same again and again."""
    if chip == "rp2040":
        return chips.MCU_VERSION, 2
    return (chips.TMP_DEVICE_ID if chip == "tmp1075" else chips.ADS_CONFIG), 2


def check_answers(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """The same question many times: every answer the same, none late; and how long the RP2040 holds the clock."""
    clock = profile.get("i2c", "clock_hz")
    asked: set[int] = set()
    for section in parts(profile):
        chip, address = profile.get(section, "chip"), profile.get(section, "address")
        if address in asked or not chips.answers(bus, address):
            continue
        asked.add(address)
        register, length = _reference_read(bus, address, chip)
        seen: dict[bytes, int] = {}
        failed, spans = 0, []
        for _ in range(ANSWERS):
            start = time.monotonic()
            try:
                answer = bus.read_register(address, register, length)
                seen[answer] = seen.get(answer, 0) + 1
            except OSError:
                failed += 1
            spans.append(time.monotonic() - start)
        if chip in ("ads1114", "ads1115"):
            bus.transfer(address, b"\0")
        spans.sort()
        odd = ANSWERS - failed - max(seen.values(), default=0)
        median, late = spans[ANSWERS // 2], sum(span > LATE * spans[ANSWERS // 2] for span in spans)
        yield judge(
            not failed and not odd,
            f"answers of {chip} at {address:#x}",
            f"{failed} failed, {odd} different, {late} later than {number(LATE)} x the median of {1e3 * median:.2f} ms",
            f"none of {ANSWERS} failed or different",
            "check the cable's length and the pull-ups (1.8 to 4.7 kOhm); see docs/hardware.md for the BCM2835's fault",
        )
        if chip == "rp2040":
            yield _stretch(bus, spans[0] - bus_plan.READ_BITS / clock)


def _stretch(bus: I2cBus, stretch_s: float) -> Finding:
    faulty = "bcm2835" in bus.adapter()
    bad = stretch_s > STRETCH_S
    text = f"{1e3 * max(0.0, stretch_s):.2f} ms a read beyond its bits"
    status = OK if not bad else FAIL if faulty else WARN
    return Finding(status, "clock stretching of the RP2040", text, f"{1e3 * STRETCH_S:g} ms", STRETCH_REMEDY)


def _holders(path: str) -> list[str]:
    """Other processes that have a device open, as far as we may see."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            for descriptor in os.listdir(f"/proc/{entry}/fd"):
                if os.readlink(f"/proc/{entry}/fd/{descriptor}") == path:
                    with open(f"/proc/{entry}/comm", encoding="utf-8", errors="replace") as file:
                        found.append(f"{file.read().strip()} (process {entry})")
                    break
        except OSError:
            continue
    return found


def check_foreign(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """Other users of the bus: programs that have it open, kernel drivers bound to its devices."""
    holders = _holders(bus.path)
    yield judge(
        not holders,
        f"other programs at {bus.path}",
        ", ".join(holders) or "none seen",
        "none: the bus is the worker's alone",
        "stop them while the worker runs",
    )
    drivers = []
    for section in parts(profile):
        device = f"/sys/bus/i2c/devices/{bus.number}-{profile.get(section, 'address'):04x}/driver"
        if os.path.islink(device):
            drivers.append(f"{os.path.basename(os.path.realpath(device))} at {profile.get(section, 'address'):#x}")
    yield judge(
        not drivers,
        "kernel drivers on the devices",
        ", ".join(dict.fromkeys(drivers)) or "none",
        "none",
        "remove the overlay that loads them from /boot/firmware/config.txt",
    )


def check_bus(profile: Profile, bus: I2cBus) -> Iterator[Finding]:
    """Everything about the bus."""
    yield Finding(
        NOTE,
        "adapter",
        f"{bus.adapter() or 'unnamed'}, {bus.path}; time-out set to {profile.get('i2c', 'timeout_ms')} ms, no retries",
    )
    yield from check_devices(profile, bus)
    yield from check_foreign(profile, bus)
    yield from check_speed(profile, bus)
    yield from check_answers(profile, bus)
