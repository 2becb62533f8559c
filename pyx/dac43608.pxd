# Why compiled: the light changes up to 430 times a second, at an instant that the estimators must know.
# Thread rule: the sampling thread.
# Units: codes of 8 bits, outputs 0..7.
#
# TI SLASEQ4A. Off is the output's power-down (10 kOhm to ground): its code 0 may leave the buffer's offset on the LED.
# Codes are kept through power-down, so a change of light is one transfer: the register of power-down bits.

from libc.errno cimport EAGAIN, EIO
from libc.stdint cimport int64_t, uint8_t, uint16_t

from stirbar.rt.i2c_bus cimport I2cBus, I2cDevice, device_init, device_read16, device_write16

cdef enum:
    DAC_CONFIG = 1             # registers
    DAC_DATA = 8               # of output 0; code in bits 11..4
    DAC_POWERED_DOWN = 0x00ff  # config: a bit for each output; bit 8, all of the chip, stays 0
    DAC_UNKNOWN = -1
    DAC_TRUST_NS = 1000000000  # a code older than this is written again before the output is powered

cdef struct Dac43608:
    I2cDevice device
    uint16_t config            # power-down bits as they shall be
    int config_known           # the chip has them
    int[8] code                # as the chip has it, or DAC_UNKNOWN
    int64_t[8] written_ns


cdef inline void dac43608_forget(Dac43608* dac) noexcept nogil:
    """The chip may have lost its power."""
    cdef int i
    dac.config_known = 0
    for i in range(8):
        dac.code[i] = DAC_UNKNOWN


cdef inline void dac43608_init(Dac43608* dac, I2cBus* bus, int address) noexcept nogil:
    device_init(&dac.device, bus, address)
    dac.config = DAC_POWERED_DOWN
    dac43608_forget(dac)


cdef inline int dac43608_power(Dac43608* dac) noexcept nogil:
    cdef int status = device_write16(&dac.device, DAC_CONFIG, dac.config)
    dac.config_known = status == 0
    if status:
        dac43608_forget(dac)
    return status


cdef inline int dac43608_check(Dac43608* dac) noexcept nogil:
    """Whether the chip holds what was written to it: 0, or minus an errno; -EIO: it does not, and all is written anew
    with the next change of light."""
    cdef uint16_t value = 0
    cdef int status
    if not dac.config_known:
        return 0
    dac.device.pointer = -1
    status = device_read16(&dac.device, DAC_CONFIG, &value)
    dac.device.pointer = -1
    if status == 0 and (value & 0x01ff) != dac.config:
        dac.device.bus.counters.garbage += 1
        status = -EIO
    if status:
        dac43608_forget(dac)
    return status


cdef inline int dac43608_off(Dac43608* dac, int output) noexcept nogil:
    """Power one output down: one transfer."""
    dac.config |= <uint16_t>(1 << output)
    return dac43608_power(dac)


cdef inline int dac43608_on(Dac43608* dac, int output, uint8_t code, int64_t now_ns) noexcept nogil:
    """Power one output up at a code: one transfer, two where the code is new."""
    cdef uint16_t bit = <uint16_t>(1 << output)
    cdef int status
    if dac.code[output] != code or now_ns - dac.written_ns[output] > DAC_TRUST_NS:
        status = device_write16(&dac.device, DAC_DATA + output, <uint16_t>(code << 4))
        if status:
            dac43608_forget(dac)
            return status
        dac.code[output] = code
        dac.written_ns[output] = now_ns
        if dac.config_known and not dac.config & bit:
            return 0
    dac.config &= <uint16_t>~bit
    return dac43608_power(dac)


cdef inline int dac43608_refresh(Dac43608* dac, int output, uint8_t code, int64_t now_ns) noexcept nogil:
    """Write a code, whatever the output's power: one transfer."""
    cdef int status = device_write16(&dac.device, DAC_DATA + output, <uint16_t>(code << 4))
    if status:
        dac43608_forget(dac)
        return status
    dac.code[output] = code
    dac.written_ns[output] = now_ns
    return 0


cdef inline int dac43608_turn(Dac43608* dac, int output, uint8_t code, int64_t now_ns) noexcept nogil:
    """One transfer on the way to a code, 0 is off: 0 when it is there, -EAGAIN when it takes another one."""
    cdef int was_down = dac.config >> output & 1
    cdef int64_t age_ns = now_ns - dac.written_ns[output]
    cdef int status
    if code == 0:
        return dac43608_off(dac, output)
    if dac.code[output] == code and (not was_down or age_ns <= DAC_TRUST_NS):
        return dac43608_on(dac, output, code, dac.written_ns[output])
    status = dac43608_refresh(dac, output, code, now_ns)
    return -EAGAIN if status == 0 and (was_down or not dac.config_known) else status
