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
PWM_CLASS = "/sys/class/pwm"


def program() -> str:
    """Path of the compiled guard. Raises FileNotFoundError when this stirbar was built without it."""
    import stirbar.rt

    path = os.path.join(os.path.dirname(os.path.abspath(stirbar.rt.__file__ or "")), "guard", "stirbar-guard")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path} is missing: build stirbar again (`pip install .`) with a C compiler at hand")
    return path


def arguments(config: Config, profile: Profile) -> list[str]:
    """The guard's own command line for a board. Raises ProfileError when a chip that it needs is not there."""
    from stirbar.core.guard import socket_path
    from stirbar.core.profiles import gpio_chip_path, pwm_chip

    lines: list[str] = []
    pwms: list[str] = []
    for device in ORDER:
        section = profile.pwm(device)
        if section is None:
            continue
        if profile.get(section, "kind") == "line":
            lines.append(f"--line={device}={profile.get(section, 'line')}")
        else:
            path = f"{PWM_CLASS}/pwmchip{pwm_chip(profile, section)}/pwm{profile.get(section, 'sysfs_channel')}"
            pwms.append(f"--pwm={device}={path}@{round(1e9 / profile.get(section, 'frequency_hz'))}")
    chip = [f"--chip={gpio_chip_path(profile)}"] if lines else []
    return [program(), f"--socket={socket_path(config)}", *chip, *lines, *pwms]


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
    parser.add_argument("--show", action="store_true", help="print the guard's command line and end")
    add_config_options(parser)
    options = parser.parse_args(argv)
    try:
        config = config_from_arguments(options)
        if config.get("unit", "simulate"):
            raise ConfigError("[unit] simulate = 1: a simulated vial has no lines to hold; the worker needs no guard")
        command = arguments(config, profiles.choose(config, remembered=True))
    except (ConfigError, OSError) as error:
        print(f"stirbar guard: {error}", file=sys.stderr)
        return 1
    if not options.show:
        os.execv(command[0], command)
    print(shlex.join(command))
    return 0
