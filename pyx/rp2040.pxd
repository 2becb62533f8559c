# Why compiled: on some boards a microcontroller stands between the photodiodes, the LEDs and the bus.
# Thread rule: the sampling thread.
# Units: raw answers of 16 bits; LED codes of 8 bits; volts; nanoseconds of CLOCK_MONOTONIC.
#
# The RP2040 of a Pioreactor HAT 1.1 or 1.2: registers 0..3 are LED duties, 4..7 inputs (low byte first), 8 the
# firmware's version. It stretches the clock while it answers (1.8 ms in firmware 0.3). A BCM2835 to BCM2711 as master
# may then cut a clock pulse short, and a bit is lost or shifted (raspberrypi/linux issues 254, 4884): what it says is
# looked at twice where it cannot well be.

from libc.errno cimport EIO
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from stirbar.rt.i2c_bus cimport (
    I2cBus, I2cDevice, device_init, device_transfer, device_write, i2c_instant_ns, i2c_msg, message_read, message_write)

cdef extern from *:
    """
    #define STIRBAR_RP2040_REFERENCE_V 3.3
    #define STIRBAR_RP2040_COUNTS 4095.0
    """
    const double RP2040_REFERENCE_V "STIRBAR_RP2040_REFERENCE_V"
    const double RP2040_COUNTS "STIRBAR_RP2040_COUNTS"

cdef enum:
    MCU_INPUT = 4              # registers
    MCU_VERSION = 8
    MCU_LEDS = 4
    MCU_INPUTS = 4
    MCU_JUMP = 4096            # a change between two reads that is looked at again
    MCU_GARBAGE_LIMIT = 8      # impossible answers in a row
    ANSWER_LOST = 0            # neither look can be believed
    ANSWER_STEP = 1            # both can
    ANSWER_GARBLED = 2         # only the second

cdef struct Rp2040:
    I2cDevice device
    int32_t scale              # of a 12-bit count; 0: the firmware's version is not known
    int32_t maximum            # that an input's answer can be
    int32_t[4] last            # answer of each input; -1: none
    int32_t[4] doubted         # that rp2040_read_once has to confirm; -1: none
    int garbage                # impossible answers in a row
    uint8_t version_major
    uint8_t version_minor


cdef inline void rp2040_init(Rp2040* chip, I2cBus* bus, int address) noexcept nogil:
    cdef int i
    device_init(&chip.device, bus, address)
    chip.scale = 0
    chip.garbage = 0
    for i in range(MCU_INPUTS):
        chip.last[i] = -1
        chip.doubted[i] = -1


cdef inline int rp2040_ask(Rp2040* chip, int register, int32_t* raw) noexcept nogil:
    """A register's two bytes; always with its number, for firmware may count it up."""
    cdef uint8_t[2] bytes
    cdef uint8_t pointer = <uint8_t>register
    cdef i2c_msg[2] messages
    cdef int status
    message_write(&messages[0], &chip.device, &pointer, 1)
    message_read(&messages[1], &chip.device, bytes, 2)
    status = device_transfer(&chip.device, messages, 2)
    if status == 0:
        raw[0] = bytes[1] << 8 | bytes[0]
    return status


cdef inline int rp2040_start(Rp2040* chip) noexcept nogil:
    """Learn the firmware's version, told the same twice; 0, or minus an errno."""
    cdef int32_t first = -1
    cdef int32_t again = -1
    cdef int status = rp2040_ask(chip, MCU_VERSION, &first)
    if status == 0:
        status = rp2040_ask(chip, MCU_VERSION, &again)
    if status:
        return status
    if first != again or first == 0 or first == 0xffff:
        chip.device.bus.counters.garbage += 1
        return -EIO
    chip.version_major = <uint8_t>(first >> 8)
    chip.version_minor = <uint8_t>(first & 0xff)
    chip.scale = 32 if chip.version_major > 0 or chip.version_minor >= 4 else 16
    chip.maximum = 65520 if chip.scale == 16 else 65535
    return 0


cdef inline double rp2040_volts_per_raw(const Rp2040* chip) noexcept nogil:
    return RP2040_REFERENCE_V / (RP2040_COUNTS * chip.scale)


cdef inline int32_t distance(int32_t a, int32_t b) noexcept nogil:
    return a - b if a > b else b - a


cdef inline int rp2040_judge(int32_t last, int32_t first, int32_t again, int32_t maximum) noexcept nogil:
    """What a second look says of an answer that is far from the last one (-1: there is none): ANSWER_*.

    The microcontroller's running mean goes a quarter of the rest at a time, so that after a true step it goes on in the
    same direction, each time less far; an answer of which a bit was lost does not come again.
    """
    if again > maximum:
        return ANSWER_LOST
    if first <= maximum:
        if distance(again, first) <= MCU_JUMP:
            return ANSWER_STEP
        if last >= 0 and (again > first) == (first > last) and distance(again, first) < distance(first, last):
            return ANSWER_STEP
    if last >= 0 and distance(again, last) <= MCU_JUMP:
        return ANSWER_GARBLED
    return ANSWER_LOST


cdef inline int rp2040_look(Rp2040* chip, int input, int32_t* raw, int64_t* latched_ns) noexcept nogil:
    """One answer and when it was latched; 0, or minus an errno, and the firmware is asked for its version again."""
    cdef int status = rp2040_ask(chip, MCU_INPUT + input, raw)
    if status:
        chip.scale = 0
    latched_ns[0] = i2c_instant_ns(chip.device.bus, 2, 3, 30)
    return status


cdef inline bint rp2040_doubts(const Rp2040* chip, int input, int32_t answer) noexcept nogil:
    """Whether an answer is to be confirmed by a second look."""
    cdef int32_t last = chip.last[input]
    return last < 0 or answer > chip.maximum or distance(answer, last) > MCU_JUMP


cdef inline int rp2040_confirm(Rp2040* chip, int input, int32_t first, int32_t again) noexcept nogil:
    """What a second look says: 1 it is believed, 0 neither is; -EIO: too often in a row."""
    cdef int verdict = rp2040_judge(chip.last[input], first, again, chip.maximum)
    chip.device.bus.counters.garbage += verdict != ANSWER_STEP
    if verdict != ANSWER_LOST:
        return 1
    chip.last[input] = -1
    chip.garbage += 1
    if chip.garbage < MCU_GARBAGE_LIMIT:
        return 0
    chip.garbage = 0
    chip.scale = 0
    return -EIO


cdef inline int rp2040_read(Rp2040* chip, int input, int32_t* raw, int64_t* latched_ns) noexcept nogil:
    """An input's answer: 1; 0 where none can be believed; or minus an errno."""
    cdef int32_t first = -1
    cdef int status
    if chip.scale == 0:
        return -EIO
    status = rp2040_look(chip, input, &first, latched_ns)
    if status:
        return status
    raw[0] = first
    if rp2040_doubts(chip, input, first):
        status = rp2040_look(chip, input, raw, latched_ns)
        if status:
            return status
        status = rp2040_confirm(chip, input, first, raw[0])
        if status != 1:
            return status
    chip.garbage = 0
    chip.last[input] = raw[0]
    return 1


cdef inline int rp2040_read_once(Rp2040* chip, int input, int32_t* raw) noexcept nogil:
    """As rp2040_read, one transfer at a time: 0 where the next call has to confirm it."""
    cdef int32_t first = chip.doubted[input]
    cdef int64_t latched_ns = 0
    cdef int status
    if chip.scale == 0:
        return -EIO
    status = rp2040_look(chip, input, raw, &latched_ns)
    if status:
        return status
    chip.doubted[input] = -1
    if first >= 0:
        status = rp2040_confirm(chip, input, first, raw[0])
        if status != 1:
            return status
    elif rp2040_doubts(chip, input, raw[0]):
        chip.doubted[input] = raw[0]
        return 0
    chip.garbage = 0
    chip.last[input] = raw[0]
    return 1


cdef inline int rp2040_light(Rp2040* chip, int output, uint8_t code) noexcept nogil:
    """Duty of one LED, in 256ths; 0 is dark."""
    cdef uint8_t[2] bytes
    bytes[0] = <uint8_t>output
    bytes[1] = code
    return device_write(&chip.device, bytes, 2)
