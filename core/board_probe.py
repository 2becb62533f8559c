"""Measuring on a board while no worker runs: single conversions, light, ALERT/RDY edges, the converter's own rate.

Units: volts, percent, seconds, hertz. Everything switches off again what it switched on.

Synchronization: none; one thread at a time.
"""

from __future__ import annotations

import time

from stirbar.core import gpio_lines
from stirbar.core.chips import MCU_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.i2c_bus import I2cBus
    from stirbar.core.profiles import Profile

# ADS111x, data sheet SBAS444: configuration register
OS = 0x8000
SINGLE = 0x0100
COMPARATOR_OFF = 0x0003
INPUT_0 = 0x4000  # against ground; inputs follow in steps of 0x1000
RATES_HZ = (8, 16, 32, 64, 128, 250, 475, 860)
FULL_SCALES_V = (6.144, 4.096, 2.048, 1.024, 0.512, 0.256)
CONVERSION, CONFIG, LOW, HIGH = 0, 1, 2, 3
POWERED_DOWN = INPUT_0 | SINGLE | 7 << 5 | COMPARATOR_OFF

DAC_CONFIG, DAC_OUTPUT = 1, 8
MCU_ADC = 4
MCU_VOLTS = 3.3
CONVERSION_SPREAD = 1.3  # a conversion that takes longer than this times nominal is none


class ProbeError(OSError):
    """A device answers, but not as it should."""


def config_word(number: int, full_scale_v: float, rate_hz: float, flags: int) -> int:
    """The configuration register for an input (0..3)."""
    gain = min(range(6), key=lambda n: abs(FULL_SCALES_V[n] - full_scale_v))
    return (INPUT_0 + (number << 12)) | gain << 9 | RATES_HZ.index(round(rate_hz)) << 5 | flags


def timed_convert(
    bus: I2cBus, address: int, number: int, full_scale_v: float, rate_hz: float
) -> tuple[float, float, float]:
    """The volts, the time.monotonic() at which the conversion began, and that of the read that found it done."""
    bus.write_word(address, CONFIG, config_word(number, full_scale_v, rate_hz, OS | SINGLE | COMPARATOR_OFF))
    start = time.monotonic()
    time.sleep(0.8 / rate_hz)
    limit = start + 0.05 + CONVERSION_SPREAD / rate_hz
    while not bus.read_word(address, CONFIG) & OS:
        if time.monotonic() > limit:
            raise ProbeError(f"the converter at {address:#x} does not finish a conversion; is it an ADS111x?")
    done = time.monotonic()
    code = int.from_bytes(bus.read_register(address, CONVERSION), "big", signed=True)
    return code * full_scale_v / 32768.0, start, done


def power_down(bus: I2cBus, address: int) -> None:
    """An ADS111x as after power-on, pointer at its conversions."""
    bus.write_word(address, LOW, 0x8000)
    bus.write_word(address, HIGH, 0x7FFF)
    bus.write_word(address, CONFIG, POWERED_DOWN)
    bus.transfer(address, b"\0")


def oscillator_ratio(bus: I2cBus, address: int, number: int, trials: int = 5) -> float:
    """The converter's clock over its nominal one, to about 1 %: the slowest conversions, timed by asking when they end.

    A conversion ends before the read that sees it: by half a read on average, and by that read's second half.
    """
    rate_hz = 8.0
    asked, spans = [], []
    for _ in range(trials):
        before = time.monotonic()
        bus.read_word(address, CONFIG)
        asked.append(time.monotonic() - before)
        _, start, done = timed_convert(bus, address, number, 4.096, rate_hz)
        spans.append(done - start)
    ask_s, span_s = min(asked), sorted(spans)[trials // 2]
    return 1.0 / (rate_hz * (span_s - ask_s))


def ready_edges(
    bus: I2cBus, address: int, number: int, chip: str, line: int, seconds: float = 0.3
) -> tuple[int, float]:
    """ALERT/RDY edges on a line while the converter free-runs at 860/s: how many, and their rate.

    Raises LineError when the line cannot be had. The converter is powered down afterwards.
    """
    with gpio_lines.Line(chip, line, gpio_lines.INPUT | gpio_lines.PULL_UP | gpio_lines.FALLING) as ready:
        try:
            bus.write_word(address, LOW, 0x0000)
            bus.write_word(address, HIGH, 0x8000)
            bus.write_word(address, CONFIG, config_word(number, 4.096, 860.0, 0))
            edges = ready.collect(seconds)
        finally:
            power_down(bus, address)
    if len(edges) < 2:
        return len(edges), 0.0
    return len(edges), (len(edges) - 1 + ready.lost) / ((edges[-1][0] - edges[0][0]) * 1e-9)


class Converter:
    """What reads one input that a profile names: a photodiode, the rail."""

    __slots__ = ("address", "bus", "chip", "firmware", "full_scale_v", "input", "section")

    def __init__(self, bus: I2cBus, profile: Profile, section: str) -> None:
        self.bus = bus
        self.section = section
        self.chip: str = profile.get(section, "chip")
        self.address: int = profile.get(section, "address")
        self.input: int = profile.get(section, "input") or 0
        self.full_scale_v = 4.096
        self.firmware = (0, 0)
        if self.chip == "rp2040":
            minor, major = bus.read_register(self.address, MCU_VERSION)
            self.firmware = (major, minor)
            self.full_scale_v = MCU_VOLTS * 65536.0 / (4095.0 * self.scale())

    def scale(self) -> int:
        """Counts for each count of the microcontroller's 12 bits."""
        return 32 if self.firmware >= (0, 4) else 16

    def range_for(self, volts: float) -> float:
        """Choose the smallest full scale that `volts` leave a tenth of; returns it."""
        if self.chip != "rp2040":
            fitting = [scale for scale in FULL_SCALES_V if scale * 0.9 > volts]
            self.full_scale_v = min(fitting, default=FULL_SCALES_V[0])
        return self.full_scale_v

    def volts(self) -> float:
        return self.sample()[1]

    def sample(self) -> tuple[float, float]:
        """time.monotonic() at the begin of the conversion (of the microcontroller: at the read), and the volts."""
        if self.chip == "rp2040":
            low, high = self.bus.read_register(self.address, MCU_ADC + self.input)
            return time.monotonic(), (high << 8 | low) * MCU_VOLTS / (4095.0 * self.scale())
        volts, start, _ = timed_convert(self.bus, self.address, self.input, self.full_scale_v, 860.0)
        return start, volts

    def clips(self, volts: float) -> bool:
        return volts > 0.995 * self.full_scale_v

    def resolution_v(self) -> float:
        """One code; of the microcontroller the step that averaging does not remove."""
        return 8e-3 if self.chip == "rp2040" else self.full_scale_v / 32768.0


class Light:
    """The OD LED of a profile; dark when left. `with Light(bus, profile) as light: light.set(80.0)`."""

    __slots__ = ("address", "bus", "chip", "output")

    def __init__(self, bus: I2cBus, profile: Profile) -> None:
        self.bus = bus
        self.chip: str = profile.get("led", "chip")
        self.address: int = profile.get("led", "address")
        self.output: int = profile.get("led", profile.get("led", "ir"))

    def set(self, percent: float) -> None:
        """Intensity in percent; 0 is the driver's power-down, as the worker uses it."""
        code = round(2.55 * percent)
        if self.chip == "rp2040":
            self.bus.transfer(self.address, bytes((self.output, code)))
            return
        if code:
            self.bus.write_word(self.address, DAC_OUTPUT + self.output, code << 4)
        down = 0xFF & ~(1 << self.output if code else 0)
        self.bus.write_word(self.address, DAC_CONFIG, down)

    def __enter__(self) -> Light:
        self.set(0.0)
        return self

    def __exit__(self, *_: object) -> None:
        self.set(0.0)
