"""`stirbar hardware check`: lines of the header, button, LED, PWM, and with --move the stirrer and its sensor.

Synchronization: none; one thread at a time.
"""

from __future__ import annotations

import os
import time

from stirbar.core import front_panel
from stirbar.core.check_report import FAIL, NOTE, OK, SKIP, WARN, Finding, judge
from stirbar.core.detection import PWM_CLASS, PWM_REMEDY, gpio_label
from stirbar.core.gpio_lines import FALLING, INPUT, OUTPUT, PULL_UP, Line, LineError, line_user
from stirbar.core.profiles import ProfileError, gpio_chip_path, pwm_chip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from stirbar.core.profiles import Profile

GUARD = "stirbar-guard"
REGISTERS = "/dev/gpiomem"
REGISTER_LABELS = "pinctrl-bcm2"  # of the chips whose registers are those of the BCM2835
BLINKS = 3
BLINK_S = 0.15
MOVE_S = 3.0
MOVE_DUTY = 0.6
EDGES_LOW = 4
FREE_REMEDY = "stop that program, or the overlay that takes the line, before the worker starts"


def _named_lines(profile: Profile) -> list[tuple[str, str, int]]:
    """(section, key, line) of all lines that the worker or the guard will claim."""
    names = [("gpio", key) for key in ("hall", "button", "pcb_led")]
    names += [(f"photodiode.{n}", "ready_line") for n in profile.channels()]
    names += [(f"pwm.{n}", "line") for n in range(1, 6) if profile.get(f"pwm.{n}", "kind") == "line"]
    values = [(section, key, profile.get(section, key)) for section, key in names]
    return [entry for entry in values if entry[2] is not None]


def check_free(profile: Profile, chip: str) -> Iterator[Finding]:
    """Whether each line exists and nobody else holds it."""
    label, held, wrong = chip, [], []
    lines = _named_lines(profile)
    for section, key, line in lines:
        try:
            user = line_user(chip, line)
        except OSError as error:
            wrong.append(f"{line} ([{section}] {key}: {error.strerror})")
            continue
        if user and not user.startswith(GUARD):
            held.append(f"{line} ([{section}] {key}) by '{user}'")
    numbers = ", ".join(str(line) for _, _, line in lines)
    if wrong:
        yield Finding(
            FAIL, f"lines of {label}", f"cannot be used: {', '.join(wrong)}", "all exist", "correct the profile"
        )
    yield judge(
        not held,
        f"lines {numbers} of {label}",
        f"held: {', '.join(held)}" if held else "free, or the guard's",
        "nobody else holds them",
        FREE_REMEDY,
    )


def check_recovery(profile: Profile, label: str) -> Finding:
    """Whether a bus whose SDA a chip holds low can be freed as the worker will try."""
    what, how = "freeing a held bus", profile.get("i2c", "recovery")
    can = label.startswith(REGISTER_LABELS)
    if how == "none":
        return Finding(NOTE, what, "not wanted by [i2c] recovery")
    if how == "lines":
        return Finding(OK, what, "by lines 2 and 3")
    if how is None and (not can or profile.get("i2c", "bus") != 1):
        return Finding(NOTE, what, f"not possible on bus {profile.get('i2c', 'bus')} with {label}")
    if not can:
        return Finding(
            WARN,
            what,
            f"[i2c] recovery = registers, but the lines are those of {label}",
            "a Pi before the fifth",
            "write recovery = none into [i2c] of the profile",
        )
    try:
        os.close(os.open(REGISTERS, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if how is None and isinstance(error, FileNotFoundError):
            return Finding(NOTE, what, f"not possible: this kernel has no {REGISTERS}")
        return Finding(WARN, what, f"{REGISTERS}: {error.strerror}", "can be opened", "add this user to the group gpio")
    return Finding(OK, what, f"by the GPIO registers ({REGISTERS}), pins 2 and 3")


def check_panel(profile: Profile, chip: str) -> Iterator[Finding]:
    """The button's level, and three blinks of the LED."""
    button, led = profile.get("gpio", "button"), profile.get("gpio", "pcb_led")
    for line, what in ((button, "button"), (led, "LED on the board")):
        if line is None:
            yield Finding(SKIP, what, "the profile has none")
    try:
        if button is not None:
            with front_panel.open_line(chip, button, False) as opened:
                level = opened.value()
            yield judge(
                level == 1,
                f"button on line {button}",
                "not pressed" if level else "pressed",
                "not pressed",
                "let go of it; if nobody presses it, the line is another or shorted: check [gpio] button",
                WARN,
            )
        if led is not None:
            with front_panel.open_line(chip, led, True) as opened:
                how = type(opened).__name__
                for level in (1, 0) * BLINKS:
                    opened.set(level)
                    time.sleep(BLINK_S)
            via = "lgpio" if how == "LgpioLine" else "the kernel's lines"
            yield Finding(NOTE, f"LED on line {led}", f"blinked {BLINKS} times by {via}: did you see it?")
    except LineError as error:
        yield Finding(FAIL, "button and LED", str(error.strerror), "free", FREE_REMEDY)


def check_pwm(profile: Profile) -> Iterator[Finding]:
    """The kernel's PWM channels that the profile names."""
    for section in (f"pwm.{n}" for n in range(1, 6) if profile.get(f"pwm.{n}", "kind") == "sysfs"):
        what = f"PWM of [{section}] ({profile.get(section, 'device')})"
        channel = profile.get(section, "sysfs_channel")
        try:
            path = f"{PWM_CLASS}/pwmchip{pwm_chip(profile, section)}"
            with open(f"{path}/npwm", encoding="ascii") as file:
                count = int(file.read())
        except ProfileError as error:
            yield Finding(FAIL, what, str(error), "there", PWM_REMEDY)
            continue
        except OSError as error:
            yield Finding(FAIL, what, f"{error.filename}: {error.strerror}", "there", PWM_REMEDY)
            continue
        writable = os.access(f"{path}/export", os.W_OK)
        text = f"channel {channel} of {count} of {path}" + ("" if writable else ", not writable")
        remedy = (
            PWM_REMEDY
            if channel >= count
            else "let the group gpio write /sys/class/pwm by a udev rule (docs/hardware.md)"
        )
        yield judge(channel < count and writable, what, text, "there and writable", remedy)


def _turn(line: Line, hall: Line, frequency_hz: float) -> int:
    """Drive the stirrer by timed writes; returns the hall edges of the second half."""
    period = 1.0 / frequency_hz
    start = time.monotonic()
    due = start
    counted = 0
    try:
        while (now := time.monotonic()) < start + MOVE_S:
            line.set(1)
            time.sleep(max(0.0, due + MOVE_DUTY * period - now))
            line.set(0)
            edges = hall.events()
            counted += len(edges) if now > start + 0.5 * MOVE_S else 0
            due += period
            time.sleep(max(0.0, due - time.monotonic()))
    finally:
        line.set(0)
    return counted


def check_stirrer(profile: Profile, chip: str, move: bool) -> Iterator[Finding]:
    """With --move: turn the stirrer for three seconds and count what its sensor sees."""
    section, hall = profile.pwm("stirring"), profile.get("gpio", "hall")
    what = "stirrer and hall sensor"
    if section is None or hall is None:
        yield Finding(SKIP, what, "the profile has none")
        return
    if not move:
        yield Finding(SKIP, what, "nothing was moved; --move turns the stirrer for 3 s")
        return
    if profile.get(section, "kind") != "line":
        yield Finding(SKIP, what, "the stirrer is on the kernel's PWM; start the worker to try it")
        return
    try:
        with (
            Line(chip, profile.get(section, "line"), OUTPUT) as output,
            Line(chip, hall, INPUT | PULL_UP | FALLING) as input,
        ):
            counted = _turn(output, input, profile.get(section, "frequency_hz"))
    except LineError as error:
        yield Finding(FAIL, what, str(error.strerror), "free", FREE_REMEDY)
        return
    yield judge(
        counted >= EDGES_LOW,
        what,
        f"{counted} edges in {0.5 * MOVE_S:g} s at {100 * MOVE_DUTY:.0f} % duty"
        + (f", about {60.0 * counted / (0.5 * MOVE_S):.0f} rpm with one magnet" if counted else ""),
        f"{EDGES_LOW} edges or more",
        "see whether it turns: if not, check the stirrer's plug and the PWM rail; if it does, the sensor's plug",
    )


def check_lines(profile: Profile, move: bool) -> Iterator[Finding]:
    """Everything about lines."""
    try:
        chip = gpio_chip_path(profile)
        label = gpio_label(chip)
    except ProfileError as error:
        yield Finding(FAIL, "GPIO chip", str(error), "there", "see docs/hardware.md")
        return
    except OSError as error:
        yield Finding(FAIL, "GPIO chip", f"{chip}: {error.strerror}", "there", "correct [gpio] chip in the profile")
        return
    yield Finding(OK, "GPIO chip", f"{chip}, {label}")
    yield check_recovery(profile, label)
    yield from check_free(profile, chip)
    yield from check_panel(profile, chip)
    yield from check_pwm(profile)
    yield from check_stirrer(profile, chip, move)
