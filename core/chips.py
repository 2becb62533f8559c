"""Which chip answers at an address: told by its registers, because addresses overlap.

Only reads, apart from the register pointers, which are left where a worker expects them.

Synchronization: as the bus's.
"""

from __future__ import annotations

from stirbar.core.i2c_bus import ABSENT, HELD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stirbar.core.i2c_bus import I2cBus

FIRST, LAST = 0x08, 0x77  # addresses that a device may have
TIMEOUTS = 3  # so many in a row mean that the bus is held, not that a chip is slow
ADS_RESET = 0x8583
ADS_CONFIG, ADS_LOW, ADS_HIGH = 1, 2, 3
TMP_DEVICE_ID, TMP1075_ID = 0x0F, 0x7500
DAC_STATUS, DAC_ID_MASK = 2, 0xFFC0
DAC_IDS = {0x0500: "DAC43608", 0x0300: "DAC53608"}
MCU_VERSION = 8
MCU_ADDRESS = 0x2C
# What else is often met on this bus, by its address alone.
USUAL = {
    0x20: "port expander (PCF8574, MCP23017)",
    0x36: "fuel gauge",
    0x3C: "OLED display",
    0x3D: "OLED display",
    0x40: "INA219 or humidity sensor",
    0x44: "humidity sensor",
    0x50: "EEPROM",
    0x57: "EEPROM",
    0x60: "DAC or motor driver",
    0x68: "real-time clock",
    0x76: "pressure sensor",
    0x77: "pressure sensor",
}


class Chip:
    """One address that answers: `kind` as in profiles (`ads111x` for both of them), or "" if it is not known.

    `firmware` is (major, minor) of a rp2040, else None.
    """

    __slots__ = ("address", "detail", "firmware", "kind")

    def __init__(self, address: int, kind: str, detail: str, firmware: tuple[int, int] | None = None) -> None:
        self.address = address
        self.kind = kind
        self.detail = detail
        self.firmware = firmware


class BusHeld(OSError):
    """Every transfer times out: something holds the bus."""


def family(chip: str) -> str:
    """What a chip of a profile is told by: an ADS1114 answers like an ADS1115."""
    return "ads111x" if chip in ("ads1114", "ads1115") else chip


def answers(bus: I2cBus, address: int) -> bool:
    """Whether a device acknowledges a read of one byte. Raises OSError for anything but silence."""
    try:
        bus.transfer(address, length=1)
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return True


def _ads(bus: I2cBus, address: int) -> Chip | None:
    low, high = bus.read_word(address, ADS_LOW), bus.read_word(address, ADS_HIGH)
    reset = (low, high) == (0x8000, 0x7FFF)
    ready = bool(high & 0x8000) and not low & 0x8000
    config = bus.read_word(address, ADS_CONFIG)
    bus.transfer(address, b"\0")
    if not reset and not ready:
        return None
    state = "as after power-on" if config | 0x8000 == ADS_RESET else f"set up: {config:#06x}"
    return Chip(address, "ads111x", f"ADS1114 or ADS1115, {state}{', ALERT/RDY on' if ready else ''}")


def _tmp1075(bus: I2cBus, address: int) -> Chip | None:
    if bus.read_word(address, TMP_DEVICE_ID) != TMP1075_ID:
        return None
    raw = int.from_bytes(bus.read_register(address, 0), "big", signed=True)
    return Chip(address, "tmp1075", f"TMP1075, {raw / 256.0:.2f} C")


def _dac43608(bus: I2cBus, address: int) -> Chip | None:
    name = DAC_IDS.get(bus.read_word(address, DAC_STATUS) & DAC_ID_MASK)
    if name is None:
        return None
    down = bus.read_word(address, 1) & 0xFF
    lit = "".join("abcdefgh"[n] for n in range(8) if not down >> n & 1)
    return Chip(address, "dac43608", f"{name} or of its family, outputs {'on: ' + lit if lit else 'powered down'}")


def _rp2040(bus: I2cBus, address: int) -> Chip | None:
    minor, major = bus.read_register(address, MCU_VERSION)
    if major > 9 or minor > 99 or not (major or minor):
        return None
    return Chip(address, "rp2040", f"RP2040 of the HAT, firmware {major}.{minor}", (major, minor))


def identify(bus: I2cBus, address: int) -> Chip:
    """What a device that answers is. Raises OSError when it stops answering."""
    tests = []
    if 0x48 <= address <= 0x4F:
        tests = [_tmp1075]
        if address <= 0x4B:
            tests += [_dac43608, _ads]
    elif address == MCU_ADDRESS:
        tests = [_rp2040]
    for test in tests:
        chip = test(bus, address)
        if chip is not None:
            return chip
    usual = USUAL.get(address)
    return Chip(address, "", f"unknown; such an address is usual for: {usual}" if usual else "unknown")


def look(bus: I2cBus, addresses: range | list[int] = range(FIRST, LAST + 1)) -> list[Chip]:
    """Everything that answers. Raises BusHeld when transfers time out one after the other."""
    found: list[Chip] = []
    timeouts = 0
    for address in addresses:
        try:
            if answers(bus, address):
                found.append(identify(bus, address))
            timeouts = 0
        except OSError as error:
            timeouts = timeouts + 1 if error.errno in HELD else 0
            if timeouts >= TIMEOUTS:
                raise BusHeld(
                    error.errno,
                    f"{bus.path}: every transfer times out: SDA or SCL is held low. Take the power from the board and"
                    " give it back; if that does not help, unplug one device after the other",
                ) from None
            found.append(Chip(address, "", f"answers badly: {error.strerror}"))
    return found
