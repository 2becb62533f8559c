"""Hardware profiles: which chip, line and address a board has for each task, and the rates that it can keep.

    profile = load_profile("model1.5")
    profile.get("photodiode.1", "address")  # 72

A profile is an INI file in core/hardware/, or the user's own. `extends = NAME` takes over another one key by key. Every
problem is reported at once, with file, line, key, what is allowed and what to do.
"""

from __future__ import annotations

import os

from stirbar.core.config import ConfigError
from stirbar.core.config_values import nearest, parse_value
from stirbar.core.ini import IniFile
from stirbar.core.schema_keys import Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stirbar.core.config import Config

    Name = tuple[str, str]

DIRECTORY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hardware")
PROFILES = ("hat1.0", "hat1.1", "hat1.2", "model1.5", "xr1.5", "eyespy", "simulated", "custom-example")
SIMULATED = "simulated"
AUTO = "auto"
LINES = 58  # of a Raspberry Pi's header and beyond

# What protects a vial where software cannot; core/protection.py says what each is.
PROTECTIONS = ("gate_pull_downs", "thermal_cut_out", "efflux_tube", "bund", "boot_levels", "level_sensor")
ANSWERS = ("yes", "no", "unknown")

ADC_CHIPS = ("ads1115", "ads1114", "rp2040")


def _line(name: str) -> Key:
    return Key(name, "int", 0, "", "", 0, LINES - 1)


def _choice(name: str, *choices: str) -> Key:
    return Key(name, "choice", "", "", choices=choices)


def _whole(name: str, low: int, high: int, unit: str = "") -> Key:
    return Key(name, "int", 0, "", unit, low, high)


def _real(name: str, low: float, high: float, unit: str) -> Key:
    return Key(name, "float", 0.0, "", unit, low, high)


def _text(name: str) -> Key:
    return Key(name, "text", "", "")


_CHIP = _choice("chip", *ADC_CHIPS)
_ADDRESS = Key("address", "address", "", "")
_INPUT = _whole("input", 0, 3)

# section without its number: its keys; custom-example.ini says what each means
TABLE: dict[str, tuple[Key, ...]] = {
    "profile": (_text("title"), _text("extends"), _text("hat_version")),
    "i2c": (
        _whole("bus", 0, 63),
        _whole("clock_hz", 10_000, 1_000_000, "Hz"),
        _whole("timeout_ms", 10, 100, "ms"),
        _choice("recovery", "registers", "lines", "none"),
    ),
    "gpio": (_text("chip"), _line("hall"), _line("button"), _line("pcb_led")),
    "photodiode": (
        _CHIP,
        _ADDRESS,
        _INPUT,
        _line("ready_line"),
        _choice("pace", "ready", "pilot", "host", "smoothed"),
        _whole("converter", 0, 3),
        _real("rate_hz", 0.1, 4000.0, "Hz"),
        _real("conversion_hz", 1.0, 4000.0, "Hz"),
        _real("full_scale_v", 0.256, 6.144, "V"),
        _real("settle_ms", 0.0, 5000.0, "ms"),
        _whole("half_cycle_low", 2, 64, "conversions"),
        _whole("half_cycle_high", 2, 64, "conversions"),
    ),
    "led": (
        _choice("chip", "dac43608", "rp2040"),
        _ADDRESS,
        *(_whole(letter, 0, 7) for letter in "abcd"),
        _choice("ir", "a", "b", "c", "d"),
    ),
    "temperature": (_choice("chip", "", "tmp1075"), _ADDRESS),
    "rail": (_CHIP, _ADDRESS, _INPUT, _real("divider", 0.001, 1.0, "V/V")),
    "version_sense": (_CHIP, _ADDRESS, _INPUT),
    "pwm": (
        _choice("device", "stirring", "media", "alt_media", "waste", "heating"),
        _line("line"),
        _choice("kind", "line", "sysfs"),
        _text("sysfs_chip"),
        _whole("sysfs_channel", 0, 7),
        _real("frequency_hz", 1.0, 40_000.0, "Hz"),
    ),
    "protection": tuple(_choice(key, *ANSWERS) for key in PROTECTIONS),
    "plan": (_real("noise_over_b0", 1.0, 100.0, "x"), _text("note")),
}
NUMBERED = {"photodiode": 4, "pwm": 5}
# What holds where no file has a value; everything else is then absent.
DEFAULTS: dict[Name, Any] = {
    ("i2c", "bus"): 1,
    ("i2c", "clock_hz"): 100_000,
    ("i2c", "timeout_ms"): 20,
    ("gpio", "chip"): AUTO,
    ("rail", "divider"): 0.134,
    ("led", "ir"): "a",
}
SECTIONS: tuple[str, ...] = tuple(
    section
    for kind in TABLE
    for section in ([f"{kind}.{n}" for n in range(1, NUMBERED[kind] + 1)] if kind in NUMBERED else [kind])
)
# The key without which the rest of a section means nothing.
PRESENCE = {"photodiode": "chip", "led": "chip", "temperature": "chip", "rail": "chip", "version_sense": "chip"} | {
    "pwm": "device"
}


class ProfileError(ConfigError):
    """The profile cannot be used; `problems` holds one sentence each."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        if len(problems) > 1:
            self.args = ("\n".join([f"{len(problems)} problems in the hardware profile:", *problems]),)


def kind_of(section: str) -> str:
    """`photodiode.2` -> `photodiode`."""
    return section.partition(".")[0]


def find_key(section: str, name: str) -> Key | None:
    """The key of a section such as photodiode.2; None if there is none of that name."""
    if section not in SECTIONS:
        return None
    return next((key for key in TABLE[kind_of(section)] if key.name == name), None)


class Profile:
    """The values of one board. Made by `load_profile`; not changed afterwards.

    `name` is that of a shipped profile or the path of a file, `path` the file, `warnings` what deserves attention.

    Synchronization: read only after load, any thread.
    """

    __slots__ = ("_sources", "_values", "name", "path", "warnings")

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self.path = path
        self.warnings: list[str] = []
        self._values: dict[Name, Any] = {}
        self._sources: dict[Name, tuple[str, int]] = {}

    def get(self, section: str, key: str) -> Any:
        """The value: int, float or str, as the table says; None where it is absent, or the part that it belongs to is.

        Raises KeyError for what profiles do not have.
        """
        if find_key(section, key) is None:
            raise KeyError(f"a hardware profile has no [{section}] {key}")
        presence = PRESENCE.get(kind_of(section))
        if presence and self._values.get((section, presence)) is None:
            return None
        value = self._values.get((section, key))
        return DEFAULTS.get((section, key)) if value is None else value

    def has(self, section: str) -> bool:
        """Whether the board has this photodiode, driver, sensor or PWM channel."""
        presence = PRESENCE.get(kind_of(section))
        return presence is None or self.get(section, presence) is not None

    def source(self, section: str, key: str) -> str:
        """Where a value comes from: `file:line`, or `default`."""
        name, line = self._sources.get((section, key), ("default", 0))
        return f"{name}:{line}" if line else name

    def channels(self) -> list[int]:
        """The photodiodes that there are, 1 to 4."""
        return [n for n in range(1, NUMBERED["photodiode"] + 1) if self.has(f"photodiode.{n}")]

    def pwm(self, device: str) -> str | None:
        """The section of the PWM channel that drives a device."""
        return next((name for name in SECTIONS if kind_of(name) == "pwm" and self.get(name, "device") == device), None)

    def items(self) -> list[tuple[str, str, Any]]:
        """(section, key, value) of everything that is present."""
        found = [(section, key.name) for section in SECTIONS for key in TABLE[kind_of(section)]]
        values = [(section, key, self.get(section, key)) for section, key in found]
        return [entry for entry in values if entry[2] is not None]

    def digest(self) -> str:
        """16 hex digits that change with any value (64-bit FNV-1a)."""
        state = 0xCBF29CE484222325
        for byte in "\n".join(f"{section}.{key}={value!r}" for section, key, value in self.items()).encode():
            state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
        return f"{state:016x}"


def _parse(key: Key, text: str) -> Any:
    """The typed value of a text that is not empty. Raises ValueError with what is wrong and what to write."""
    if key.type != "address":
        return parse_value(key, text)
    try:
        address = int(text, 16) if text.lower().startswith("0x") else -1
    except ValueError:
        address = -1
    if not 0x03 <= address <= 0x77:
        raise ValueError("is not allowed; write an I2C address from 0x03 to 0x77")
    return address


def _find(name: str, beside: str) -> str:
    """The file of a profile; raises ProfileError for a name that is none."""
    if name in PROFILES:
        return os.path.join(DIRECTORY, f"{name}.ini")
    if os.sep not in name and not name.endswith(".ini"):
        raise ProfileError(
            f"there is no hardware profile '{name}'{nearest(name, PROFILES)}; known are {', '.join(PROFILES)}, and the"
            " path of a file with / in it"
        )
    return os.path.join(beside, os.path.expanduser(name))


def _read(path: str) -> IniFile:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return IniFile(file.read(), path)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except ValueError as error:
        raise ProfileError(f"{path!r}: is not the name of a file: {error}") from None


def _chain(path: str) -> list[IniFile]:
    """The file and what it extends, lowest layer first."""
    files: list[IniFile] = []
    while True:
        if any(file.name == path for file in files):
            raise ProfileError(f"{files[-1].name}: [profile] extends leads back to {path}; end the circle")
        files.append(_read(path))
        item = files[-1].get("profile", "extends")
        if item is None or not item.value:
            return files[::-1]
        try:
            path = _find(item.value, os.path.dirname(path))
        except ProfileError as error:
            raise ProfileError(f"{path}:{item.line}: [profile] extends = {item.value}: {error}") from None


def _take(profile: Profile, file: IniFile) -> list[tuple[int, str]]:
    """Lay one file over the values; returns (line, problem)."""
    problems = [(line, f"{file.name}:{line}: {text}") for line, text in file.problems]
    for section, line in file.sections().items():
        if section not in SECTIONS:
            fault = f"{file.name}:{line}: a hardware profile has no section [{section}]{nearest(section, SECTIONS)}"
            problems.append((line, fault))
    for item in file.items:
        if item.section not in SECTIONS:
            continue
        where = f"{file.name}:{item.line}: [{item.section}] {item.key} = {item.value}:"
        key = find_key(item.section, item.key)
        if key is None:
            names = [one.name for one in TABLE[kind_of(item.section)]]
            hint = nearest(item.key, names) or f"; known are {', '.join(names)}"
            problems.append((item.line, f"{where} there is no key '{item.key}' in [{item.section}]{hint}"))
            continue
        try:
            profile._values[item.section, item.key] = _parse(key, item.value) if item.value else None
            profile._sources[item.section, item.key] = (file.name, item.line)
        except ValueError as error:
            problems.append((item.line, f"{where} {error}"))
    return problems


def load_profile(name: str) -> Profile:
    """Read and check a profile: one of PROFILES, or the path of a file. Raises ProfileError with every problem.

    The rules between keys are for files of the user's own: the shipped ones are tested against them.
    """
    path = _find(name, "")
    profile = Profile(name, path)
    problems = [text for file in _chain(path) for _, text in sorted(_take(profile, file))]
    if not problems and name not in PROFILES:
        from stirbar.core.profile_rules import check

        problems = check(profile)
    if problems:
        raise ProfileError(*problems)
    return profile


def choose(config: Config, remembered: bool = False) -> Profile:
    """The profile that `[unit] hardware` and `simulate` ask for; `auto` looks at the board.

    `remembered`: where a board was found since the start of the machine, take that and leave the bus alone, for who
    may run beside a worker. Raises ProfileError when there is none, or no board was found.
    """
    name = str(config.get("unit", "hardware"))
    if config.get("unit", "simulate"):
        return load_profile(SIMULATED if name == AUTO else name)
    if name == SIMULATED:
        raise ProfileError(
            f"{config.source('unit', 'hardware')}: [unit] hardware = {name} is no real board; add --simulate, or write"
            " auto"
        )
    if name != AUTO:
        return load_profile(name)
    from stirbar.core import detection

    found = detection.recall(config) if remembered else ""
    if found:
        return load_profile(found)
    profile = detection.detect().profile()
    detection.remember(config, profile.name)
    return profile


def gpio_chip_path(profile: Profile) -> str:
    """The character device of the header's lines. Raises ProfileError when it cannot be found."""
    from stirbar.core.detection import gpio_chip_path

    return gpio_chip_path(str(profile.get("gpio", "chip")))


def pwm_chip(profile: Profile, section: str) -> int:
    """N of the pwmchipN that a PWM channel of kind sysfs is on."""
    from stirbar.core.detection import pwm_chip

    return pwm_chip(str(profile.get(section, "sysfs_chip")))


def detect(bus: int = 1) -> Detection:
    """Look at the HAT's identity and at the bus; says which profile fits and why. The worker must not run."""
    from stirbar.core.detection import detect as look

    return look(bus)


if TYPE_CHECKING:
    from stirbar.core.detection import Detection
