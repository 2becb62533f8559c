# Why compiled: the heater's sensor shares the photodiodes' bus, so their thread reads it.
# Thread rule: the sampling thread.
# Units: degrees Celsius.
#
# TI SBOS854. The pointer stays at the temperature: a read is 29 bits, 49 after a check of the configuration.

from libc.errno cimport EIO
from libc.stdint cimport int16_t, uint16_t

from stirbar.rt.i2c_bus cimport I2cBus, I2cDevice, device_init, device_read16, device_write16

cdef extern from *:
    """
    #define STIRBAR_TMP1075_LSB_DEGC 0.0625
    """
    const double TMP1075_LSB_DEGC "STIRBAR_TMP1075_LSB_DEGC"

cdef enum:
    TMP_TEMPERATURE = 0        # registers
    TMP_CONFIG = 1
    TMP_DEVICE_ID = 15
    TMP_SLOW = 0x6000          # config: a conversion each 220 ms; it warms itself less than with one each 27.5 ms
    TMP_CONFIG_BITS = 0x7f00   # those that hold what was written
    TMP_IDENTITY = 0x7500
    TMP_LOWEST_DEGC = -55
    TMP_HIGHEST_DEGC = 128

cdef struct Tmp1075:
    I2cDevice device
    int started


cdef inline void tmp1075_init(Tmp1075* chip, I2cBus* bus, int address) noexcept nogil:
    device_init(&chip.device, bus, address)
    chip.started = 0


cdef inline int tmp1075_check(Tmp1075* chip) noexcept nogil:
    """Whether it is a TMP1075 that measures: 0, or minus an errno; -EIO: it holds another configuration."""
    cdef uint16_t value = 0
    cdef int status = device_read16(&chip.device, TMP_CONFIG, &value)
    if status == 0 and (value & TMP_CONFIG_BITS) != TMP_SLOW:
        chip.device.bus.counters.garbage += 1
        status = -EIO
    chip.started = status == 0
    return status


cdef inline int tmp1075_start(Tmp1075* chip) noexcept nogil:
    cdef uint16_t value = 0
    cdef int status = device_read16(&chip.device, TMP_DEVICE_ID, &value)
    if status == 0 and value != TMP_IDENTITY:
        chip.device.bus.counters.garbage += 1
        status = -EIO
    if status == 0:
        status = device_write16(&chip.device, TMP_CONFIG, TMP_SLOW)
    return status if status else tmp1075_check(chip)


cdef inline int tmp1075_read(Tmp1075* chip, double* celsius) noexcept nogil:
    """0, or minus an errno; -EIO: an answer that cannot be. A chip that was found without its configuration is set up
    again."""
    cdef uint16_t value = 0
    cdef int status = 0
    if not chip.started:
        status = tmp1075_start(chip)
    if status == 0:
        status = device_read16(&chip.device, TMP_TEMPERATURE, &value)
    if status:
        chip.started = 0
        return status
    celsius[0] = <int16_t>value * (TMP1075_LSB_DEGC / 16)
    if value & 15 or not TMP_LOWEST_DEGC <= celsius[0] < TMP_HIGHEST_DEGC:
        chip.device.bus.counters.garbage += 1
        chip.started = 0
        return -EIO
    return 0
