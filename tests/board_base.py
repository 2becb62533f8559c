"""What is common to the benches of the fake board and of the simulator kernel; board_bench.py says how to use them."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

FOREVER = 0xFFFFFFFF  # operations, for fail_next
MOTOR, HEATER = 17, 18  # BCM lines that the stirrer and the heater follow


class Layout(NamedTuple):
    """A board of the field: chips on the bus, lines (BCM), version in the HAT's EEPROM."""

    chips: str
    hall: int = 21
    button: int = 4
    led: int = 23
    product_version: str = "0x0011"
    ready: tuple[tuple[int, int], ...] = ()


LAYOUTS = {
    "all": Layout("48:ads1115,49:dac43608,4f:tmp1075,2c:pico", 25, 24),
    "hat1.0": Layout("48:ads1115,49:dac43608,4f:tmp1075", 25, 24, product_version="0x0010"),
    "hat1.1": Layout("2c:pico,4f:tmp1075"),
    "hat1.2": Layout("2c:pico,4f:tmp1075", product_version="0x0012"),
    "model1.5": Layout("2c:pico,48:ads1114,49:ads1114,4f:tmp1075"),
    "xr1.5": Layout("2c:pico,48:ads1114,49:ads1114,4a:ads1114,4b:ads1114,4f:tmp1075"),
    "eyespy": Layout("48:ads1115,2c:pico,4f:tmp1075", ready=((0x48, 27),)),
}


def layout(name: str) -> Layout:
    """The layout of a board, or of a list of chips such as ``48:ads1114,4f:tmp1075``."""
    if ":" in name:
        return Layout(name, 25, 24)
    try:
        return LAYOUTS[name]
    except KeyError:
        known = ", ".join(LAYOUTS)
        raise ValueError(f"board {name!r}: none of {known}, nor a list such as 48:ads1115,4f:tmp1075") from None


class Conversion(NamedTuple):
    """One conversion that an ADS111x made."""

    number: int  # 1: the first since the board began
    begin_ns: int  # CLOCK_MONOTONIC
    end_ns: int
    volts: float  # mean of the input, before rounding
    code: int


class Edge(NamedTuple):
    """A change of an output line."""

    stamp_ns: int  # CLOCK_MONOTONIC
    level: int


class Transfer(NamedTuple):
    """A combined transfer on the bus."""

    begin_ns: int  # CLOCK_MONOTONIC
    end_ns: int
    result: int  # number of messages, or minus an errno
    messages: list[tuple[int, bool, bytes]]  # address, whether it is a read, bytes; none for a read that failed


class Record:
    """What happened on the board during ``with bench.record() as record``; complete after the block."""

    def __init__(self) -> None:
        self.transfers: list[Transfer] = []
        self.lines: dict[int, list[Edge]] = {}

    def edges(self, line: int) -> list[Edge]:
        """Changes that the program made on an output line."""
        return self.lines.get(line, [])


class Bench:
    """The bench side of a board. Synchronization: one thread."""

    where = ""

    def __init__(self, name: str, ready: dict[int, int], environment: dict[str, str]) -> None:
        self.profile = name  # the board's name, or the list of its chips
        self.layout = layout(name)
        self.ready = ready  # address of a converter -> line of its ALERT/RDY
        self.environment = environment  # for processes that shall meet this board
        self.hall, self.button, self.led = self.layout.hall, self.layout.button, self.layout.led
        pairs = (item.split(":") for item in self.layout.chips.split(","))
        self.chips = {int(address, 16): kind for address, kind in pairs}

    def write(self, path: str, value: object) -> None:
        raise NotImplementedError

    def read(self, path: str) -> str:
        raise NotImplementedError

    def number(self, path: str) -> int:
        """What a path holds, as a whole number."""
        return int(self.read(path))

    # --- lines ---------------------------------------------------------------------------------------------------

    def drive(self, line: int, level: bool | int) -> None:
        """Sets what an input line reads."""
        self.write(f"gpio/sim_gpio{line}/pull", "pull-up" if level else "pull-down")

    def level(self, line: int) -> int:
        """The level of any line now."""
        return self.number(f"gpio/sim_gpio{line}/value")

    def strict_gpio(self, on: bool) -> None:
        """Whether a released output falls back to its pull (mainline); off: keeps its level (Raspberry Pi OS)."""
        raise NotImplementedError

    # --- chips ---------------------------------------------------------------------------------------------------

    def chip(self, address: int, name: str) -> str:
        """The path of something of a chip."""
        return f"board/i2c-1/{address:02x}/{name}"

    def unplug(self, address: int) -> None:
        """Takes a chip off the bus: it does not acknowledge, its outputs are dead."""
        self.write(self.chip(address, "unplugged"), 1)

    def replug(self, address: int) -> None:
        """Puts it back, as after power-on."""
        self.write(self.chip(address, "unplugged"), 0)

    def set_volts(self, address: int, channel: int, volts: float) -> None:
        """The dark level of a converter's input."""
        self.write(self.chip(address, f"ain{channel}_uv"), round(volts * 1e6))

    def set_ambient(self, address: int, channel: int, volts: float, volts_per_s: float = 0.0) -> None:
        """Room light on a converter's input from now on, a level or a ramp."""
        self.write(self.chip(address, f"ain{channel}_ambient_uv"), f"{round(volts * 1e6)} {round(volts_per_s * 1e6)}")

    def set_hum(self, address: int, channel: int, *tones: tuple[float, float, float]) -> None:
        """Sine waves on a converter's input: (volts of amplitude, Hz, degrees at CLOCK_MONOTONIC 0), at most four."""
        text = " ".join(f"{round(volts * 1e6)}:{round(hz * 1e3)}:{round(deg * 1e3)}" for volts, hz, deg in tones)
        self.write(self.chip(address, f"ain{channel}_tone"), text + "\n")

    def set_noise(self, address: int, channel: int, volts: float) -> None:
        """White noise on a converter's input: sigma of one conversion at 860/s."""
        self.write(self.chip(address, f"ain{channel}_noise_nv"), round(volts * 1e9))

    def led_to_photodiode(
        self, led: tuple[int, int], photodiode: tuple[int, int], volts: float, *more: tuple[tuple[int, int], float]
    ) -> None:
        """An LED output (address of its driver, channel) at full code gives so many volts on a converter's input.

        The converter's input is (address, channel). `more`: further LEDs on the same input, each with its volts;
        those of an earlier call are forgotten.
        """
        lights = [(led, volts), *more]
        text = " ".join(f"{address:x}:{channel}:{round(v / 255 * 1e9)}" for (address, channel), v in lights)
        self.write(self.chip(photodiode[0], f"ain{photodiode[1]}_led"), text + "\n")

    def led_code(self, address: int, channel: int) -> int | None:
        """Code on an output of an LED driver, None: powered down."""
        code = self.number(self.chip(address, f"dac{channel}"))
        return None if code < 0 else code

    def set_celsius(self, address: int, celsius: float) -> None:
        """Temperature of a TMP1075 that no heater model owns."""
        self.write(self.chip(address, "temp_mc"), round(celsius * 1000))

    def register(self, address: int, register: int) -> int:
        """A chip's register as the chip has it, without a transfer."""
        return int(self.read(self.chip(address, "regs")).splitlines()[register].split()[1], 16)

    def conversions(self, address: int) -> list[Conversion]:
        """The last 2048 conversions of an ADS111x."""
        rows = (row.split() for row in self.read(self.chip(address, "conversions")).splitlines())
        return [Conversion(int(n), int(a), int(b), int(nv) / 1e9, int(code)) for n, a, b, nv, code in rows]

    def record(self) -> contextlib.AbstractContextManager[Record]:
        """Records transfers and the edges of output lines."""
        raise NotImplementedError

    # --- faults --------------------------------------------------------------------------------------------------

    def fail(self, where: str, count: int = FOREVER, errno: int | None = None) -> None:
        """Fails the next operations of ``i2c-1``, of a chip (``i2c-1/48``) or of ``pwm``; 0 ends it."""
        if errno is not None:
            self.write(f"board/{where}/fail_errno", errno)
        self.write(f"board/{where}/fail_next", count)

    def stick_sda(self, clocks: int = 9) -> None:
        """A chip holds SDA low until SCL (line 3) was raised by hand so often; 0: it lets go."""
        self.write("board/i2c-1/sda_stuck", clocks)

    def stretch(self, address: int, microseconds: int) -> None:
        """A chip holds SCL low for so long in each message."""
        self.write(self.chip(address, "stretch_us"), microseconds)

    def plant(self) -> None:
        """The stirrer follows line 17 and drives the hall line; the heater follows line 18 and warms the TMP1075."""
        for name, value in (("hall", self.hall), ("gpio", MOTOR)):
            self.write(f"board/stir/{name}", value)
        self.write("board/heat/gpio", HEATER)
        self.write("board/heat/chip", 0x4F)

    # --- a fresh board -------------------------------------------------------------------------------------------

    def reset(self, plant: bool = False, bus_hz: int = 100_000, strict: bool = False) -> None:
        """Everything as at power-on, all chips in place, no light, no fault."""
        self.write("board/i2c-1/sda_stuck", 0)
        self.write("board/i2c-1/bus_hz", bus_hz)
        self.strict_gpio(strict)
        for where in ("i2c-1", "pwm", *(f"i2c-1/{address:02x}" for address in self.chips)):
            for name, value in (("fail_next", 0), ("fail_errno", 5 if where == "pwm" else 121), ("delay_us", 0)):
                self.write(f"board/{where}/{name}", value)
        self._reset_plant()
        for address, kind in self.chips.items():
            self._reset_chip(address, kind)
        for line in range(28):
            if line not in self.ready.values():
                self.drive(line, line in (2, 3, self.hall))
        if plant:
            self.plant()

    def _reset_plant(self) -> None:
        settings = {
            "stir": {"gpio": -1, "pwm": -1, "hall": -1, "full_mhz": 50_000, "dead_ppm": 100_000, "start_ppm": 150_000,
                     "tau_ms": 400, "jitter_us": 0, "magnets": 1, "stall": 1},
            "heat": {"chip": 0, "gpio": -1, "pwm": -1, "ambient_mc": 22_000, "full_mc": 30_000, "tau_ms": 600_000},
        }  # fmt: skip
        for which, values in settings.items():
            for name, value in values.items():
                self.write(f"board/{which}/{name}", value)
        self.write("board/stir/stall", 0)

    def _reset_chip(self, address: int, kind: str) -> None:
        inputs = {"ads1115": 4, "ads1114": 2, "pico": 4}.get(kind, 0)
        for channel in range(inputs):
            for name, value in (("uv", 0), ("noise_nv", 0), ("led", "\n"), ("tone", "\n"), ("ambient_uv", "0 0")):
                self.write(self.chip(address, f"ain{channel}_{name}"), value)
        more = {"ads1115": "osc_ppm", "ads1114": "osc_ppm", "pico": "window_us"}
        if kind in more:
            self.write(self.chip(address, more[kind]), 0)
        if kind == "tmp1075":
            self.set_celsius(address, 25)
        self.stretch(address, 0)
        self.unplug(address)
        self.replug(address)


def ready_text(ready: dict[int, int]) -> str:
    """The wiring of ALERT/RDY as run.sh -a takes it."""
    return ",".join(f"{address:x}:{line}" for address, line in sorted(ready.items()))


def ready_of(text: str) -> dict[int, int]:
    """The same, read back."""
    pairs = (item.split(":") for item in text.split(",") if item)
    return {int(address, 16): int(line) for address, line in pairs}
