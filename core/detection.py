"""Which board is there: the HAT's identity from the device tree, the chips on the bus, the chip of the header's lines.

Synchronization: none; for the start of a process, and for commands while no worker runs.
"""

from __future__ import annotations

import errno
import fcntl
import os

from stirbar.core import chips, identity, paths
from stirbar.core.board_probe import ready_edges
from stirbar.core.i2c_bus import BusError, I2cBus
from stirbar.core.ini import write_atomically
from stirbar.core.profiles import PROFILES, SIMULATED, Profile, ProfileError, load_profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config

MEMORY = "board"  # in the runtime directory
DEVICE_TREE = "/proc/device-tree"
GPIO_CHIPS = 8
READY_S = 0.03  # 25 conversions
GPIO_GET_CHIPINFO = 0x8044B401
HEADER_LABELS = ("pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835")
PWM_CLASS = "/sys/class/pwm"
PWM_DEVICES = (
    "1f00098000.pwm",
    "fe20c000.pwm",
    "3f20c000.pwm",
    "2020c000.pwm",
)  # of the header: Pi 5, 4, 2 and 3, 0 and 1
PWM_REMEDY = "write dtoverlay=pwm-2chan,pin=12,func=4,pin2=13,func2=4 into /boot/firmware/config.txt and start again"
BOARDS = tuple(name for name in PROFILES if name not in (SIMULATED, "custom-example"))


def read_tree(name: str) -> str:
    """A text of the device tree, empty where there is none."""
    try:
        with open(f"{DEVICE_TREE}/{name}", "rb") as file:
            return file.read().rstrip(b"\0").decode(errors="replace").strip()
    except OSError:
        return ""


class Hat:
    """What the HAT's EEPROM says; `version` as in 1.1, empty when it says none."""

    __slots__ = ("product", "vendor", "version", "version_text")

    def __init__(self) -> None:
        self.vendor = read_tree("hat/vendor")
        self.product = read_tree("hat/product")
        self.version_text = read_tree("hat/product_ver")
        try:
            number = int(self.version_text, 0)
            self.version = f"{number >> 4}.{number & 15}"
        except ValueError:
            self.version = ""

    def __bool__(self) -> bool:
        return bool(self.vendor or self.product)

    def __str__(self) -> str:
        if not self:
            return f"none in {DEVICE_TREE}/hat"
        version = f" {self.version}" if self.version else ""
        return f"{self.vendor}, {self.product}{version} (product_ver {self.version_text or 'missing'})"


class Fit:
    """How well one profile fits: `missing` and `present` are (section, chip, address), `extra` converters that it does
    not name, `silent` its ALERT/RDY lines on which no edge came.
    """

    __slots__ = ("conflict", "extra", "missing", "name", "present", "profile", "required_missing", "silent")

    def __init__(self, profile: Profile, found: dict[int, chips.Chip], hat: Hat) -> None:
        self.profile = profile
        self.name = profile.name
        self.present: list[tuple[str, str, int]] = []
        self.missing: list[tuple[str, str, int]] = []
        self.required_missing = False
        for section in parts(profile):
            chip, address = profile.get(section, "chip"), profile.get(section, "address")
            there = found.get(address)
            if there is not None and there.kind == chips.family(chip):
                self.present.append((section, chip, address))
                continue
            self.missing.append((section, chip, address))
            self.required_missing |= section.startswith("photodiode") or section == "led"
        named = {address for _, _, address in self.present}
        converters = [chip for chip in found.values() if chip.kind == "ads111x"]
        self.extra = [chip.address for chip in converters if chip.address not in named]
        self.silent: list[int] = []
        versions = [text.strip() for text in str(profile.get("profile", "hat_version") or "").split(",")]
        self.conflict = bool(hat.version) and hat.version not in versions

    def is_good(self) -> bool:
        """Whether photodiodes and LED driver are all there, and no converter is left over."""
        return not (self.required_missing or self.conflict or self.extra or self.silent)

    def devices(self) -> int:
        """Different chips that are there."""
        return len({address for _, _, address in self.present})

    def reason(self, hat: Hat) -> str:
        if self.conflict:
            return f"is not for HAT {hat.version}"
        if self.missing:
            gone = dict.fromkeys(f"{chip} at {address:#x} ([{section}])" for section, chip, address in self.missing)
            return f"misses {', '.join(gone)}"
        if self.silent:
            return f"no ALERT/RDY edge came on line {', '.join(map(str, self.silent))}"
        if self.extra:
            left = ", ".join(f"{address:#x}" for address in self.extra)
            return f"has all of its chips, but does not know the converter at {left}"
        chips_there = dict.fromkeys(f"{chip} at {address:#x}" for _, chip, address in self.present)
        return f"has all of {', '.join(chips_there)}"


def parts(profile: Profile) -> list[str]:
    """The sections of what is on the bus."""
    names = [f"photodiode.{n}" for n in profile.channels()]
    return names + [name for name in ("led", "temperature", "rail", "version_sense") if profile.has(name)]


class Detection:
    """What was seen: `model` of the Pi, `hat`, `found` chips, `fits` of all boards, best first; `fault` of the bus."""

    __slots__ = ("bus", "fault", "fits", "found", "hat", "model")

    def __init__(self, bus: int) -> None:
        self.bus = bus
        self.model = read_tree("model")
        self.hat = Hat()
        self.found: list[chips.Chip] = []
        self.fits: list[Fit] = []
        self.fault = ""

    def best(self) -> Fit | None:
        """The good fit that has most of its chips; None: no board, or one with a part missing."""
        return next((fit for fit in self.fits if fit.is_good()), None)

    def seen(self) -> str:
        """The chips in words."""
        if self.fault:
            return self.fault
        return ", ".join(f"{chip.kind or 'unknown'} at {chip.address:#x}" for chip in self.found) or "nothing"

    def profile(self) -> Profile:
        """The profile of the best fit; raises ProfileError that says what was looked for."""
        fit = self.best()
        if fit is None:
            raise ProfileError(
                f"no board found: HAT {self.hat}; on /dev/i2c-{self.bus}: {self.seen()}; looked for"
                f" {', '.join(BOARDS)}. Check the board with `stirbar hardware detect`, name its profile with [unit]"
                " hardware, or simulate one with --simulate"
            )
        return fit.profile


def _confirm_ready(bus: I2cBus, fit: Fit) -> None:
    """A converter with ALERT/RDY wired looks like one without, until it converts: note the lines that stay silent."""
    for section in (f"photodiode.{n}" for n in fit.profile.channels()):
        line = fit.profile.get(section, "ready_line")
        if line is None:
            continue
        address, number = fit.profile.get(section, "address"), fit.profile.get(section, "input") or 0
        try:
            chip = gpio_chip_path(str(fit.profile.get("gpio", "chip")))
            edges, _ = ready_edges(bus, address, number, chip, line, READY_S)
        except (OSError, ProfileError):
            edges = 0
        if edges < 2:
            fit.silent.append(line)


def detect(bus: int = 1) -> Detection:
    """Look at device tree and bus. Never raises for a board that is not there: `fault` says what is wrong."""
    result = Detection(bus)
    profiles = [load_profile(name) for name in BOARDS]
    wanted = sorted({profile.get(section, "address") for profile in profiles for section in parts(profile)})
    fits: list[Fit] = []
    try:
        with I2cBus(bus) as opened:
            result.found = chips.look(opened, wanted)
            by_address = {chip.address: chip for chip in result.found}
            fits = [Fit(profile, by_address, result.hat) for profile in profiles]
            for fit in fits:
                if fit.is_good():
                    _confirm_ready(opened, fit)
    except (BusError, chips.BusHeld) as error:
        result.fault = str(error.strerror or error)
        fits = [Fit(profile, {}, result.hat) for profile in profiles]
    result.fits = sorted(
        fits,
        key=lambda fit: (
            fit.conflict,
            fit.required_missing,
            bool(fit.extra or fit.silent),
            -fit.devices(),
            len(fit.missing),
        ),
    )
    return result


def _memory(config: Config) -> str:
    return os.path.join(paths.runtime_directory(config), MEMORY)


def remember(config: Config, name: str) -> None:
    """Leave the name of the board that was found to other processes of this unit, until the machine starts again."""
    write_atomically(_memory(config), f"{identity.boot_id().hex()} {name}\n")


def recall(config: Config) -> str:
    """The name that was remembered since the machine started, or nothing."""
    try:
        with open(_memory(config), encoding="ascii", errors="replace") as file:
            boot, _, name = file.read().strip().partition(" ")
    except OSError:
        return ""
    return name if boot == identity.boot_id().hex() and name in BOARDS else ""


def gpio_label(path: str) -> str:
    """The label of a GPIO chip. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        info = bytearray(68)
        fcntl.ioctl(descriptor, GPIO_GET_CHIPINFO, info)
    finally:
        os.close(descriptor)
    return info[32:64].split(b"\0", 1)[0].decode(errors="replace")


def gpio_chip_path(name: str) -> str:
    """The device of the header's lines: a number, a path, or `auto`: the one whose label is that of a Pi's header.

    Raises ProfileError when there is none.
    """
    if name != "auto":
        return f"/dev/gpiochip{name}" if name.isdigit() else name
    labels: list[str] = []
    for number in range(GPIO_CHIPS):
        path = f"/dev/gpiochip{number}"
        try:
            label = gpio_label(path)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise ProfileError(f"{path}: not permitted; add this user to the group gpio and log in again") from None
            continue
        if label in HEADER_LABELS:
            return path
        labels.append(f"{path} ({label})")
    raise ProfileError(
        f"no GPIO chip of a Raspberry Pi's header was found ({', '.join(labels) or 'there is no /dev/gpiochip0'}); name"
        " it with [gpio] chip in the hardware profile"
    )


def pwm_chip(name: str) -> int:
    """N of /sys/class/pwm/pwmchipN: a number, or `auto`: the header's. Raises ProfileError when there is none."""
    if name != "auto":
        return int(name)
    try:
        numbers = sorted(int(entry[7:]) for entry in os.listdir(PWM_CLASS) if entry.startswith("pwmchip"))
    except OSError:
        numbers = []
    for number in numbers:
        if any(device in os.path.realpath(f"{PWM_CLASS}/pwmchip{number}") for device in PWM_DEVICES):
            return number
    if len(numbers) == 1:
        return numbers[0]
    raise ProfileError(f"{PWM_CLASS} has {len(numbers) or 'no'} chips and none is known as the header's; {PWM_REMEDY}")
