"""`stirbar guard`: become the guard of this unit, with the lines that its hardware profile names."""

from __future__ import annotations

import os
import shlex
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.config import Config
    from stirbar.core.profiles import Profile

# What does most harm goes off first.
ORDER = ("heating", "media", "alt_media", "waste", "stirring")
PUMPS = ("media", "alt_media", "waste")
PWM_CLASS = "/sys/class/pwm"
WATCHDOGS = ("/dev/watchdog", "/dev/watchdog0")  # two names of the same
# What puts all LEDs of a driver out: the register of power-down bits; the duty of each of four.
LEDS_OUT = {"dac43608": ("0100ff",), "rp2040": ("0000", "0100", "0200", "0300")}


def program() -> str:
    """Path of the compiled guard. Raises FileNotFoundError when this stirbar was built without it."""
    import stirbar.rt

    path = os.path.join(os.path.dirname(os.path.abspath(stirbar.rt.__file__ or "")), "guard", "stirbar-guard")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing: build stirbar again (`pip install .`) with a C compiler at hand")
    return path


def arguments(config: Config, profile: Profile) -> tuple[list[str], list[str]]:
    """The guard's own command line for a board, and a sentence for each output that cannot be used.

    A device whose kernel PWM is not there keeps its line, held low: a pump on a pin that nobody holds may run.
    Raises ProfileError when the board's lines are not there.
    """
    from stirbar.core.guard import socket_path
    from stirbar.core.profiles import ProfileError, gpio_chip_path, pwm_chip

    lines: list[str] = []
    pwms: list[str] = []
    warnings: list[str] = []
    for device in ORDER:
        section = profile.pwm(device)
        if section is None:
            continue
        line = f"--line={device}={profile.get(section, 'line')}"
        if profile.get(section, "kind") == "line":
            lines.append(line)
            continue
        try:
            path = f"{PWM_CLASS}/pwmchip{pwm_chip(profile, section)}/pwm{profile.get(section, 'sysfs_channel')}"
        except ProfileError as error:
            lines.append(line)
            warnings.append(f"{device} stays off, its line {profile.get(section, 'line')} is held low: {error}")
            continue
        pwms.append(f"--pwm={device}={path}@{round(1e9 / profile.get(section, 'frequency_hz'))}")
    chip = [f"--chip={gpio_chip_path(profile)}"] if lines else []
    on_ms = round(1e3 * float(config.get("dosing_automation.config", "maximum_on_time_s")))
    limits = [f"--on-time={device}={on_ms}" for device in PUMPS if profile.pwm(device) is not None]
    watchdog: list[str] = []
    heats_or_pumps = any(profile.pwm(device) is not None for device in ("heating", *PUMPS))
    if heats_or_pumps and config.get("guard.config", "hardware_watchdog"):
        watchdog = [f"--watchdog={path}" for path in WATCHDOGS if os.path.exists(path)][:1]
        if not watchdog:
            warnings.append(
                "no hardware watchdog, /dev/watchdog: a kernel that stands still leaves the outputs as they are"
            )
    leds: list[str] = []
    if profile.has("led"):
        driver = f"/dev/i2c-{profile.get('i2c', 'bus')}:{profile.get('led', 'address'):#04x}"
        leds = [f"--dac={driver}:{message}" for message in LEDS_OUT[profile.get("led", "chip")]]
    return [program(), f"--socket={socket_path(config)}", *chip, *lines, *pwms, *limits, *leds, *watchdog], warnings


def main(argv: list[str]) -> int:
    """`stirbar guard`"""
    import argparse

    from stirbar.core import profiles
    from stirbar.core.config import ConfigError, add_config_options, config_from_arguments

    parser = argparse.ArgumentParser(
        prog="stirbar guard",
        description="Hold the lines of heater, pumps and stirrer, off, and hand them to the worker; switch them off"
        " when the worker ends or hangs.",
    )
    parser.add_argument("--once", action="store_true", help="switch everything off, LEDs as well, and end")
    parser.add_argument("--show", action="store_true", help="print the guard's command line and end")
    add_config_options(parser)
    options = parser.parse_args(argv)
    try:
        config = config_from_arguments(options)
        if config.get("unit", "simulate"):
            raise ConfigError("[unit] simulate = 1: a simulated vial has no lines to hold; the worker needs no guard")
        command, warnings = arguments(config, profiles.choose(config, remembered=True))
    except (ConfigError, OSError) as error:
        print(f"stirbar guard: {error}", file=sys.stderr)
        return 1
    for warning in warnings:
        print(f"stirbar guard: {warning}", file=sys.stderr)
    if options.once:
        command.append("--once")
    if not options.show:
        os.execv(command[0], command)
    print(shlex.join(command))
    return 0
