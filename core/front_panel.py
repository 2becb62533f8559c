"""Button and LED of a board: presses as events; blinks that say which unit it is, and what is wrong with it.

The worker claims both lines from the kernel: a press makes a descriptor readable, and nothing wakes between presses.
lgpio, which `stirbar hardware check` takes where it is installed, would cost the worker 1.1 MB and 50 wake-ups/s.

Synchronization: one thread at a time.
"""

from __future__ import annotations

import os

from stirbar.core.gpio_lines import FALLING, INPUT, OUTPUT, PULL_UP, RISING, Line, LineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

    from stirbar.core.profiles import Profile

BLINK_NS = 250_000_000  # half a period
PAUSE_NS = 500_000_000  # after blinks that belong together
FAULT_LONG_NS = 2_000_000_000
FAULT_PAUSE_NS = 1_000_000_000
IDENTIFY_NS = 4 * (4 * BLINK_NS + PAUSE_NS)
DEBOUNCE_NS = 20_000_000


def fault_level(codes: Collection[int], now_ns: int) -> bool:
    """Whether the LED is on at a time while these error codes last: one after the other, smallest first, for ever.

    A code is the field's: on for 2 s, then as many blinks of 0.25 s as its number, each after 0.25 s of darkness.
    """
    if not codes:
        return False
    turns = [FAULT_LONG_NS + 2 * code * BLINK_NS + FAULT_PAUSE_NS for code in sorted(codes)]
    at_ns = now_ns % sum(turns)
    for code, turn_ns in zip(sorted(codes), turns, strict=True):
        if at_ns < turn_ns:
            blinking = FAULT_LONG_NS <= at_ns < FAULT_LONG_NS + 2 * code * BLINK_NS
            return at_ns < FAULT_LONG_NS or (blinking and (at_ns - FAULT_LONG_NS) // BLINK_NS % 2 == 1)
        at_ns -= turn_ns
    return False


def identify_level(since_ns: int) -> bool:
    """Whether the LED is on so long after it was asked which unit this is: four times two blinks of 0.25 s."""
    at_ns = since_ns % (4 * BLINK_NS + PAUSE_NS)
    return 0 <= since_ns < IDENTIFY_NS and at_ns < 4 * BLINK_NS and at_ns // BLINK_NS % 2 == 0


class LgpioLine:
    """A line by lgpio, with the same functions as `gpio_lines.Line`. Raises LineError."""

    __slots__ = ("_handle", "_lgpio", "number")

    def __init__(self, lgpio: Any, chip: str, number: int, output: bool) -> None:
        self._lgpio = lgpio
        self._handle = -1
        self.number = number
        try:
            self._handle = lgpio.gpiochip_open(int(chip.removeprefix("/dev/gpiochip")))
            if output:
                lgpio.gpio_claim_output(self._handle, number, 0)
            else:
                lgpio.gpio_claim_input(self._handle, number, lgpio.SET_PULL_UP)
        except lgpio.error as error:
            if self._handle >= 0:
                self.close()
            raise LineError(0, f"line {number} of {chip} by lgpio: {error}") from None

    def value(self) -> int:
        return int(self._lgpio.gpio_read(self._handle, self.number))

    def set(self, level: int) -> None:
        self._lgpio.gpio_write(self._handle, self.number, level)

    def close(self) -> None:
        self._lgpio.gpiochip_close(self._handle)

    def __enter__(self) -> LgpioLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_line(chip: str, number: int, output: bool) -> LgpioLine | Line:
    """A line for a command: by lgpio where it is installed, else from the kernel. Raises LineError."""
    import tempfile

    os.environ.setdefault("LG_WD", tempfile.gettempdir())  # lgpio leaves a pipe in its working directory
    try:
        import lgpio
    except ImportError:
        return Line(chip, number, OUTPUT if output else INPUT | PULL_UP)
    return LgpioLine(lgpio, chip, number, output)


class Panel:
    """Button and LED as the worker's host thread has them.

    `button_descriptor` is readable when the button was pressed or let go (-1: no button); `pressed` is its state.
    The LED is on while the button is pressed, blinks after `identify`, else tells the error codes in `faults`. Raises
    LineError.
    """

    __slots__ = ("_button", "_changed_ns", "_identify_ns", "_led", "faults", "pressed")

    def __init__(self, chip: str, button: int | None, led: int | None) -> None:
        self._led = Line(chip, led, OUTPUT, "stirbar-panel") if led is not None else None
        self._button: Line | None = None
        try:
            if button is not None:
                self._button = Line(chip, button, INPUT | PULL_UP | RISING | FALLING, "stirbar-panel")
        except LineError:
            if self._led is not None:
                self._led.close()
            raise
        self._identify_ns: int | None = None
        self.faults: frozenset[int] = frozenset()
        self._changed_ns = 0
        self.pressed = False

    @property
    def button_descriptor(self) -> int:
        return -1 if self._button is None else self._button.descriptor

    @property
    def has_led(self) -> bool:
        return self._led is not None

    def identify(self, now_ns: int) -> float:
        """Blink from now on; `step` does it. Returns for how many seconds."""
        self._identify_ns = now_ns
        return IDENTIFY_NS / 1e9

    def step(self, now_ns: int) -> list[bool]:
        """Bring the LED up to date; returns the button's changes since the last step, True for a press.

        Edges within 20 ms of the one before are the contacts' bouncing; the state that lasts is the level at the end.
        """
        changes = self._changes()
        if self._led is not None:
            self._led.set(int(self.pressed or self._blinks(now_ns)))
        return changes

    def _blinks(self, now_ns: int) -> bool:
        if self._identify_ns is not None:
            since_ns = now_ns - self._identify_ns
            if since_ns < IDENTIFY_NS:
                return identify_level(since_ns)
            self._identify_ns = None
        return fault_level(self.faults, now_ns)

    def _changes(self) -> list[bool]:
        found: list[bool] = []
        if self._button is None:
            return found
        for stamp, rising in self._button.events():
            if stamp - self._changed_ns >= DEBOUNCE_NS and self.pressed == rising:
                self.pressed = not rising
                found.append(self.pressed)
                self._changed_ns = stamp
        if found or self._changed_ns:
            level = not self._button.value()
            if level != self.pressed:
                self.pressed = level
                found.append(level)
        return found

    def close(self) -> None:
        """LED off, lines free."""
        if self._led is not None:
            self._led.set(0)
            self._led.close()
        if self._button is not None:
            self._button.close()


def open_panel(profile: Profile) -> tuple[Panel | None, str]:
    """The panel of a board, or None and why there is none; a worker runs without one, too."""
    from stirbar.core.profiles import ProfileError, gpio_chip_path

    button, led = profile.get("gpio", "button"), profile.get("gpio", "pcb_led")
    if button is None and led is None:
        return None, ""
    try:
        return Panel(gpio_chip_path(profile), button, led), ""
    except (LineError, ProfileError) as error:
        return None, f"no button and LED: {error.args[-1]}"
