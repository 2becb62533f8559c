"""Rules between keys of a hardware profile: what one board cannot have at once.

Each test yields (section, key, what is wrong and what to do).
"""

from __future__ import annotations

from stirbar.core.schema import ADC_FULL_SCALES_V, ADC_RATES_HZ
from stirbar.core.schema_keys import number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from stirbar.core.profiles import Profile

    Fault = tuple[str, str, str]

# chip: addresses that its pins can choose
ADDRESSES = {
    "ads1115": range(0x48, 0x4C),
    "ads1114": range(0x48, 0x4C),
    "dac43608": range(0x48, 0x4C),
    "tmp1075": range(0x48, 0x50),
    "rp2040": range(0x08, 0x78),
}
ADS = ("ads1115", "ads1114")
BUS_LINES = {1: (2, 3)}  # the lines that carry a bus of the header


def _own(profile: Profile, section: str, *keys: str) -> bool:
    """Whether the file itself says one of these, not what it extends: of two that collide it is the one to blame."""
    return any(profile.source(section, key).startswith(f"{profile.path}:") for key in keys)


def _photodiodes(profile: Profile, *keys: str) -> list[str]:
    """The photodiodes; those that the file itself says one of `keys` of last."""
    sections = [f"photodiode.{n}" for n in profile.channels()]
    return sorted(sections, key=lambda section: _own(profile, section, *keys))


def _parts(profile: Profile) -> list[str]:
    """Everything that is on the bus; what the file itself names last."""
    others = [name for name in ("led", "temperature", "rail", "version_sense") if profile.has(name)]
    sections = [*_photodiodes(profile), *others]
    return sorted(sections, key=lambda section: _own(profile, section, "chip", "address", "input"))


REQUIRED: dict[str, tuple[str, ...]] = {
    "photodiode": (
        "address", "pace", "converter", "rate_hz", "conversion_hz", "full_scale_v", "settle_ms", "half_cycle_low",
        "half_cycle_high",
    ),
    "led": ("address", "ir"),
    "temperature": ("address",),
    "rail": ("address", "divider"),
    "version_sense": ("address",),
    "pwm": ("line", "kind", "frequency_hz"),
}  # fmt: skip


def _complete(profile: Profile) -> Iterator[Fault]:
    for section in [*_parts(profile), *(f"pwm.{n}" for n in range(1, 6) if profile.has(f"pwm.{n}"))]:
        for key in REQUIRED[section.partition(".")[0]]:
            if profile.get(section, key) is None:
                yield section, key, f"is missing, and [{section}] needs it; add it, or leave the whole part out"
    if not profile.channels():
        yield "profile", "title", "the board has no photodiode; give one of [photodiode.1] to [photodiode.4] a chip"
    if not profile.has("led"):
        yield "profile", "title", "the board has no LED driver; add [led] with chip and address"


def _addresses(profile: Profile) -> Iterator[Fault]:
    owner: dict[int, tuple[str, str]] = {}
    inputs: dict[tuple[int, int], str] = {}
    for section in _parts(profile):
        chip, address = profile.get(section, "chip"), profile.get(section, "address")
        if address is None:
            continue
        if address not in ADDRESSES[chip]:
            allowed = ADDRESSES[chip]
            yield (
                section,
                "address",
                f"{address:#x} is none that a {chip} can have; write {allowed[0]:#x} to {allowed[-1]:#x}",
            )
        other, other_chip = owner.setdefault(address, (section, chip))
        if other_chip != chip:
            yield (
                section,
                "address",
                f"{address:#x} is that of the {other_chip} of [{other}] already; two chips cannot share an address",
            )
        if section in ("led", "temperature"):
            continue
        number_in = profile.get(section, "input") or 0
        if chip == "ads1114" and number_in:
            yield section, "input", "an ads1114 has one input; write 0, or leave it empty"
        taken = inputs.setdefault((address, number_in), section)
        if taken != section:
            yield section, "input", f"input {number_in} of {address:#x} is that of [{taken}] already; give it another"


def _lines(profile: Profile) -> Iterator[Fault]:
    bus = profile.get("i2c", "bus")
    owner: dict[int, str] = dict.fromkeys(BUS_LINES.get(bus, ()), f"I2C bus {bus}")
    ready: dict[int, int] = {}  # line: the converter that it tells of, for photodiodes that share one
    names = [("gpio", key) for key in ("hall", "button", "pcb_led")]
    names += [(section, "ready_line") for section in _photodiodes(profile)]
    names += [(f"pwm.{n}", "line") for n in range(1, 6)]
    for section, key in sorted(names, key=lambda name: _own(profile, *name)):
        line = profile.get(section, key)
        if line is None:
            continue
        converter = profile.get(section, "converter") if key == "ready_line" else None
        shared = converter is not None and ready.setdefault(line, converter) == converter
        if shared and owner.get(line, "").endswith("ready_line"):
            continue
        other = owner.setdefault(line, f"[{section}] {key}")
        if other != f"[{section}] {key}":
            yield section, key, f"line {line} is that of {other} already; every line has one task"


def _paces(profile: Profile) -> Iterator[Fault]:
    for section in _photodiodes(profile):
        chip, pace = profile.get(section, "chip"), profile.get(section, "pace")
        if pace is None:
            continue
        if (pace == "smoothed") != (chip == "rp2040"):
            allowed = "smoothed" if chip == "rp2040" else "ready, pilot or host"
            yield section, "pace", f"a {chip} cannot be read so; write {allowed}"
        if pace == "ready" and profile.get(section, "ready_line") is None:
            yield section, "ready_line", "is missing, and pace = ready needs it; add the line, or write pace = pilot"
        low, high = profile.get(section, "half_cycle_low"), profile.get(section, "half_cycle_high")
        if low is not None and high is not None and low > high:
            yield section, "half_cycle_low", f"{low} is above half_cycle_high ({high}); swap them"
        if chip in ADS:
            yield from _ads(profile, section)


def _ads(profile: Profile, section: str) -> Iterator[Fault]:
    rate, own = profile.get(section, "rate_hz"), profile.get(section, "conversion_hz")
    full_scale = profile.get(section, "full_scale_v")
    if own is not None and number(own) not in ADC_RATES_HZ:
        yield section, "conversion_hz", f"{number(own)} Hz is none of the chip's; write {', '.join(ADC_RATES_HZ)}"
    if full_scale is not None and number(full_scale) not in ADC_FULL_SCALES_V:
        yield (
            section,
            "full_scale_v",
            f"{number(full_scale)} V is none of the chip's; write {', '.join(ADC_FULL_SCALES_V)}",
        )
    if rate is not None and own is not None and rate > own:
        yield section, "rate_hz", f"{number(rate)} Hz is more than conversion_hz ({number(own)} Hz); lower it"


def _converters(profile: Profile) -> Iterator[Fault]:
    by_number: dict[int, str] = {}
    by_address: dict[int, str] = {}
    for section in _photodiodes(profile, "converter", "address", "pace"):
        converter, address = profile.get(section, "converter"), profile.get(section, "address")
        if profile.get(section, "chip") not in ADS or converter is None or address is None:
            continue
        other = by_number.setdefault(converter, section)
        if profile.get(other, "address") != address:
            yield section, "converter", f"{converter} is that of [{other}] at another address; give it another number"
        other = by_address.setdefault(address, section)
        if profile.get(other, "converter") != converter:
            yield section, "converter", f"[{other}] shares the chip at {address:#x}: both need the same number"
        if other != section and "host" not in (profile.get(section, "pace"), profile.get(other, "pace")):
            yield section, "pace", f"[{other}] shares the converter: they take turns, so both need pace = host"


def _pwm(profile: Profile) -> Iterator[Fault]:
    devices: dict[str, str] = {}
    channels: dict[tuple[str, int], str] = {}
    present = [f"pwm.{n}" for n in range(1, 6) if profile.has(f"pwm.{n}")]
    for section in sorted(present, key=lambda name: _own(profile, name, "device", "sysfs_chip", "sysfs_channel")):
        device = profile.get(section, "device")
        other = devices.setdefault(device, section)
        if other != section:
            yield section, "device", f"{device} is driven by [{other}] already; keep one of them"
        if profile.get(section, "kind") != "sysfs":
            continue
        chip, channel = profile.get(section, "sysfs_chip"), profile.get(section, "sysfs_channel")
        if channel is None or chip is None:
            yield section, "sysfs_channel", "kind = sysfs needs sysfs_chip (a number, or auto) and sysfs_channel"
            continue
        if chip != "auto" and not chip.isdigit():
            yield section, "sysfs_chip", f"'{chip}' is neither a number nor auto"
        other = channels.setdefault((chip, channel), section)
        if other != section:
            yield section, "sysfs_channel", f"channel {channel} is that of [{other}] already; give it another"


def _others(profile: Profile) -> Iterator[Fault]:
    chip = profile.get("gpio", "chip")
    if chip != "auto" and not chip.isdigit() and not chip.startswith("/"):
        yield "gpio", "chip", f"'{chip}' is neither auto nor a number nor a path"
    if profile.get("i2c", "timeout_ms") % 10:
        yield "i2c", "timeout_ms", "the kernel counts it in 10 ms; write a multiple of 10"
    ir = profile.get("led", "ir")
    if profile.has("led") and profile.get("led", ir) is None:
        yield "led", "ir", f"channel {ir} has no output; write '{ir} = ' and its number"


def _bus(profile: Profile) -> Iterator[Fault]:
    from stirbar.core.bus_plan import bus_share, shared_rate_limit

    share = bus_share(profile)
    if share > 1.0:
        yield (
            "i2c",
            "clock_hz",
            f"the plan keeps the bus busy for {100.0 * share:.0f} % of the time; lower rate_hz and conversion_hz of"
            " the photodiodes, or raise clock_hz",
        )
    for section in _photodiodes(profile):
        limit = shared_rate_limit(profile, section)
        if limit and profile.get(section, "rate_hz") > limit:
            yield section, "rate_hz", f"above what the shared converter can do over this bus; write {limit:.0f} or less"


def check(profile: Profile) -> list[str]:
    """What is wrong with a profile, one sentence each with file, line and key."""
    faults = [fault for test in (_complete, _others) for fault in test(profile)]
    if not faults:
        faults = [fault for test in (_addresses, _lines, _paces, _converters, _pwm) for fault in test(profile)]
    if not faults:
        faults = list(_bus(profile))
    problems = []
    for section, key, text in faults:
        source = profile.source(section, key)
        where = profile.path if source == "default" else source
        problems.append(f"{where}: [{section}] {key}: {text}")
    return problems
