# Why compiled: every conversion is fetched over this bus, and no Python may stand between two transfers.
# Thread rule: opened by the host thread before the loop lives; then the sampling thread's alone.
# Units: nanoseconds of CLOCK_MONOTONIC; register values are 16 bits, most significant byte first on the wire.
#
# Every function returns 0 or a descriptor when it worked, and minus an errno when it did not. A transfer costs at most
# the adapter's time-out (I2C_TIMEOUT, 20 ms by default) and is repeated only where failing was quick.

from libc.errno cimport EAGAIN, ENODEV, ENXIO, EREMOTEIO, ETIMEDOUT, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from stirbar.rt.clock cimport CLOCK_MONOTONIC, read_clock_ns
from stirbar.rt.gpio_lines cimport (
    GPIO_V2_LINE_FLAG_INPUT, GPIO_V2_LINE_FLAG_OUTPUT, O_CLOEXEC, O_RDWR, c_close, c_open, gpio_get,
    gpio_hold, gpio_reconfigure, gpio_set, ioctl)
from stirbar.rt.hal cimport HalCounters

cdef extern from "<linux/i2c.h>" nogil:
    struct i2c_msg:
        uint16_t addr
        uint16_t flags
        uint16_t len
        uint8_t* buf
    uint16_t I2C_M_RD

cdef extern from "<linux/i2c-dev.h>" nogil:
    struct i2c_rdwr_ioctl_data:
        i2c_msg* msgs
        uint32_t nmsgs
    unsigned long I2C_RDWR
    unsigned long I2C_TIMEOUT
    unsigned long I2C_RETRIES

cdef enum:
    I2C_BUSY_NS = 1000000      # over the time on the wire: a transfer that took so much longer had to wait for someone
    I2C_DOWN_NS = 900000000    # a bus or a device that cost a time-out is left alone for so long: tried once a second
    RECOVERY_CLOCKS = 9        # a byte and its acknowledgement: what a chip in mid-read may still want to send
    RECOVERY_HALF_NS = 5000    # of SCL's period
    RECOVERY_NONE = 0
    RECOVERY_LINES = 1         # SDA and SCL requested from the GPIO chip; where that leaves the pins with the adapter
    RECOVERY_REGISTERS = 2     # the GPIO registers of a BCM2835 to BCM2711, which can give the pins back
    GPFSEL0 = 0                # words of that register file: three bits of function for each of pins 0 to 9
    GPCLR0 = 10
    GPLEV0 = 13
    FUNCTION_INPUT = 0
    FUNCTION_OUTPUT = 1
    FUNCTION_I2C = 4           # ALT0

cdef struct I2cBus:
    int fd
    int recovery               # RECOVERY_*
    int gpio                   # RECOVERY_LINES: descriptor of the chip
    uint32_t sda               # its line numbers
    uint32_t scl
    uint32_t* registers        # RECOVERY_REGISTERS
    HalCounters* counters
    int64_t bit_ns             # of SCL's period
    int64_t began_ns           # of the last transfer, as the caller saw it
    int64_t ended_ns
    int64_t down_until_ns      # nothing is tried before
    uint32_t timeouts          # in a row
    uint32_t transfers
    uint32_t busy_ms           # time spent in transfers
    uint32_t busy_rest_ns
    uint32_t waited            # transfers that had to wait: someone else uses the bus
    uint32_t worst_us          # the longest transfer that succeeded

# One chip: its address, and where its register pointer is known to stand.
cdef struct I2cDevice:
    I2cBus* bus
    uint16_t address
    int pointer                # register that a plain read fetches; -1: unknown
    int64_t retry_ns           # after a time-out nothing is tried before


cdef inline int i2c_open(I2cBus* bus, const char* path, int clock_hz, int timeout_ms) noexcept nogil:
    """Open a bus and bound its transfers; the time-out is the adapter's, in steps of 10 ms, and stays."""
    bus.fd = c_open(path, O_RDWR | O_CLOEXEC)
    if bus.fd < 0:
        return -errno
    bus.bit_ns = 1000000000 // clock_hz
    if ioctl(bus.fd, I2C_TIMEOUT, <unsigned long>((timeout_ms + 9) // 10)) < 0 or ioctl(
            bus.fd, I2C_RETRIES, <unsigned long>0) < 0:
        return -errno
    return 0


cdef inline int64_t i2c_wire_ns(const I2cBus* bus, int messages, int bytes) noexcept nogil:
    """Time on the wire: an address and its acknowledgement for each message, nine bits a byte, starts and a stop."""
    return bus.bit_ns * (10 * messages + 9 * bytes + 1)


# --- a held bus ------------------------------------------------------------------------------------------------------

cdef inline void recovery_wait() noexcept nogil:
    cdef int64_t until_ns = read_clock_ns(CLOCK_MONOTONIC) + RECOVERY_HALF_NS
    while read_clock_ns(CLOCK_MONOTONIC) < until_ns:
        pass


cdef inline int recover_by_lines(I2cBus* bus) noexcept nogil:
    """1: SDA was low and is free; 0: it was not low; -ETIMEDOUT: it stays low, or SCL is held; or minus an errno."""
    cdef uint64_t level = 1
    cdef int scl, _i
    cdef int status = -ETIMEDOUT
    cdef int sda = gpio_hold(bus.gpio, &bus.sda, 1, GPIO_V2_LINE_FLAG_INPUT, 0, b"stirbar i2c", 0)
    if sda < 0:
        return sda
    if gpio_get(sda, 1, &level) or level & 1:
        c_close(sda)
        return 0
    scl = gpio_hold(bus.gpio, &bus.scl, 1, GPIO_V2_LINE_FLAG_INPUT, 0, b"stirbar i2c", 0)
    if scl < 0:
        c_close(sda)
        return scl
    # a chip that holds SCL must not be driven against
    if gpio_get(scl, 1, &level) == 0 and level & 1 and gpio_reconfigure(scl, GPIO_V2_LINE_FLAG_OUTPUT, 1, 1) == 0:
        for _i in range(RECOVERY_CLOCKS):
            gpio_set(scl, 1, 0)
            recovery_wait()
            gpio_set(scl, 1, 1)
            recovery_wait()
            if gpio_get(sda, 1, &level) == 0 and level & 1:
                status = 1
                break
    # a stop condition, so that every chip waits for a start again: SDA rises while SCL is high
    if status == 1 and gpio_reconfigure(sda, GPIO_V2_LINE_FLAG_OUTPUT, 0, 1) == 0:
        recovery_wait()
        gpio_reconfigure(sda, GPIO_V2_LINE_FLAG_INPUT, 0, 0)
        recovery_wait()
    gpio_reconfigure(scl, GPIO_V2_LINE_FLAG_INPUT, 0, 0)
    c_close(scl)
    c_close(sda)
    return status


cdef inline void pin_function(uint32_t* registers, uint32_t pin, uint32_t function) noexcept nogil:
    cdef volatile uint32_t* select = &registers[GPFSEL0]
    select[0] = (select[0] & ~(<uint32_t>7 << (3 * pin))) | function << (3 * pin)


cdef inline int pin_is_high(uint32_t* registers, uint32_t pin) noexcept nogil:
    cdef volatile uint32_t* level = &registers[GPLEV0]
    return (level[0] >> pin) & 1


cdef inline int recover_by_registers(I2cBus* bus) noexcept nogil:
    """As recover_by_lines; an output that is always low and an input with a pull-up make an open drain."""
    cdef volatile uint32_t* clear = &bus.registers[GPCLR0]
    cdef int status = -ETIMEDOUT
    cdef int _i
    if pin_is_high(bus.registers, bus.sda):
        return 0
    clear[0] = <uint32_t>1 << bus.sda | <uint32_t>1 << bus.scl
    pin_function(bus.registers, bus.sda, FUNCTION_INPUT)
    for _i in range(RECOVERY_CLOCKS):
        pin_function(bus.registers, bus.scl, FUNCTION_OUTPUT)
        recovery_wait()
        pin_function(bus.registers, bus.scl, FUNCTION_INPUT)
        recovery_wait()
        if pin_is_high(bus.registers, bus.sda):
            status = 1
            break
    if status == 1:
        pin_function(bus.registers, bus.sda, FUNCTION_OUTPUT)
        recovery_wait()
        pin_function(bus.registers, bus.sda, FUNCTION_INPUT)
        recovery_wait()
    pin_function(bus.registers, bus.sda, FUNCTION_I2C)
    pin_function(bus.registers, bus.scl, FUNCTION_I2C)
    return status


cdef inline void i2c_timed_out(I2cBus* bus) noexcept nogil:
    """Free a bus whose SDA is held low, where the platform lets us; leave one alone that stays held."""
    cdef int status = -ENODEV
    bus.counters.bus_timeouts += 1
    bus.timeouts += 1
    if bus.recovery == RECOVERY_LINES:
        status = recover_by_lines(bus)
    elif bus.recovery == RECOVERY_REGISTERS:
        status = recover_by_registers(bus)
    if status == 1:
        bus.counters.bus_recoveries += 1
        bus.timeouts = 0
    elif status == -ETIMEDOUT or bus.timeouts > 1:
        bus.down_until_ns = bus.ended_ns + I2C_DOWN_NS


# --- transfers -------------------------------------------------------------------------------------------------------

cdef inline int i2c_transfer(I2cBus* bus, i2c_msg* messages, int count) noexcept nogil:
    """One combined transfer: messages joined by repeated starts."""
    cdef i2c_rdwr_ioctl_data data
    cdef int64_t duration_ns, wire_ns
    cdef int bytes = 0
    cdef int status = 0
    cdef int i
    bus.began_ns = read_clock_ns(CLOCK_MONOTONIC)
    if bus.began_ns < bus.down_until_ns:
        return -ETIMEDOUT
    data.msgs = messages
    data.nmsgs = <uint32_t>count
    if ioctl(bus.fd, I2C_RDWR, &data) < 0:
        status = -errno
    bus.ended_ns = read_clock_ns(CLOCK_MONOTONIC)
    bus.transfers += 1
    duration_ns = bus.ended_ns - bus.began_ns
    bus.busy_rest_ns += <uint32_t>duration_ns
    bus.busy_ms += bus.busy_rest_ns // 1000000
    bus.busy_rest_ns %= 1000000
    if status:
        bus.counters.bus_errors += 1
        if status == -ETIMEDOUT:
            i2c_timed_out(bus)
        return status
    bus.timeouts = 0
    for i in range(count):
        bytes += messages[i].len
    wire_ns = i2c_wire_ns(bus, count, bytes)
    bus.waited += duration_ns > wire_ns + (wire_ns >> 1) + I2C_BUSY_NS
    if duration_ns > <int64_t>bus.worst_us * 1000:
        bus.worst_us = <uint32_t>(duration_ns // 1000)
    return 0


cdef inline int64_t i2c_instant_ns(const I2cBus* bus, int messages, int bytes, int bits) noexcept nogil:
    """When so many bits of the last transfer were through: what the system took is taken to lie half before, half after
    the time on the wire."""
    cdef int64_t spare_ns = bus.ended_ns - bus.began_ns - i2c_wire_ns(bus, messages, bytes)
    if spare_ns < 0:
        spare_ns = 0
    return bus.began_ns + (spare_ns >> 1) + bits * bus.bit_ns


cdef inline void device_init(I2cDevice* device, I2cBus* bus, int address) noexcept nogil:
    device.bus = bus
    device.address = <uint16_t>address
    device.pointer = -1
    device.retry_ns = 0


cdef inline int device_transfer(I2cDevice* device, i2c_msg* messages, int count) noexcept nogil:
    """A transfer with one chip; once again where it was not acknowledged: that is quick, and may be a disturbance."""
    cdef int status
    if read_clock_ns(CLOCK_MONOTONIC) < device.retry_ns:
        return -ETIMEDOUT
    status = i2c_transfer(device.bus, messages, count)
    if status == -EREMOTEIO or status == -ENXIO or status == -EAGAIN:
        status = i2c_transfer(device.bus, messages, count)
    if status:
        device.pointer = -1
        if status == -ETIMEDOUT and device.bus.timeouts:
            device.retry_ns = device.bus.ended_ns + I2C_DOWN_NS
    else:
        device.retry_ns = 0
    return status


cdef inline void message_write(i2c_msg* message, const I2cDevice* device, uint8_t* bytes, int count) noexcept nogil:
    message.addr = device.address
    message.flags = 0
    message.len = <uint16_t>count
    message.buf = bytes


cdef inline void message_read(i2c_msg* message, const I2cDevice* device, uint8_t* bytes, int count) noexcept nogil:
    message_write(message, device, bytes, count)
    message.flags = I2C_M_RD


cdef inline int device_write(I2cDevice* device, uint8_t* bytes, int count) noexcept nogil:
    """Write bytes, the first of which is the register."""
    cdef i2c_msg message
    cdef int status
    message_write(&message, device, bytes, count)
    status = device_transfer(device, &message, 1)
    if status == 0:
        device.pointer = bytes[0]
    return status


cdef inline int device_write16(I2cDevice* device, int register, uint16_t value) noexcept nogil:
    cdef uint8_t[3] bytes
    bytes[0] = <uint8_t>register
    bytes[1] = <uint8_t>(value >> 8)
    bytes[2] = <uint8_t>(value & 0xff)
    return device_write(device, bytes, 3)


cdef inline int device_write16_then_point(I2cDevice* device, int register, uint16_t value, int pointer) noexcept nogil:
    """Write a register and leave the pointer at another one, in one transfer."""
    cdef uint8_t[4] bytes
    cdef i2c_msg[2] messages
    cdef int status
    bytes[0] = <uint8_t>register
    bytes[1] = <uint8_t>(value >> 8)
    bytes[2] = <uint8_t>(value & 0xff)
    bytes[3] = <uint8_t>pointer
    message_write(&messages[0], device, bytes, 3)
    message_write(&messages[1], device, bytes + 3, 1)
    status = device_transfer(device, messages, 2)
    if status == 0:
        device.pointer = pointer
    return status


cdef inline int device_read16(I2cDevice* device, int register, uint16_t* value) noexcept nogil:
    """Read a register; without writing the pointer where it stands there already (29 bits on the wire, not 49)."""
    cdef uint8_t[2] bytes
    cdef uint8_t pointer = <uint8_t>register
    cdef i2c_msg[2] messages
    cdef int status
    message_write(&messages[0], device, &pointer, 1)
    message_read(&messages[1], device, bytes, 2)
    if device.pointer == register:
        status = device_transfer(device, &messages[1], 1)
    else:
        status = device_transfer(device, messages, 2)
    if status == 0:
        device.pointer = register
        value[0] = <uint16_t>(bytes[0] << 8 | bytes[1])
    return status
