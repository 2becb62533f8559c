# Why compiled: turns a hardware profile into a board with its bus, its lines and its chips.
# Thread rule: the host thread, before the loop's threads live and after they have ended.
# Units: those of the profile's keys.

from libc.errno cimport EAGAIN, EBUSY, ENODEV, ENOENT, errno
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.ads111x cimport ads111x_config, ads111x_init, ads111x_set_single
from stirbar.rt.board cimport (
    CHIP_ADS, CHIP_DAC43608, CHIP_NONE, CHIP_RP2040, Board, BoardChannel, Source, board_dark)
from stirbar.rt.configure_outputs cimport configure_outputs
from stirbar.rt.dac43608 cimport dac43608_init, dac43608_power
from stirbar.rt.gpio_lines cimport (
    EVENT_QUEUE, GPIO_V2_LINE_FLAG_BIAS_PULL_UP, GPIO_V2_LINE_FLAG_EDGE_FALLING, GPIO_V2_LINE_FLAG_INPUT, O_CLOEXEC,
    O_RDWR, c_close, c_open, gpio_find, gpio_is_bcm, gpio_line_info, gpio_open, gpio_request, gpio_v2_line_info)
from stirbar.rt.hal cimport PACE_HOST, PACE_PILOT, PACE_READY, PACE_SMOOTHED, HalCounters
from stirbar.rt.hardware cimport Hardware
from stirbar.rt.i2c_bus cimport RECOVERY_LINES, RECOVERY_NONE, RECOVERY_REGISTERS, I2cBus, i2c_open, i2c_wire_ns
from stirbar.rt.outputs cimport outputs_add_hall, outputs_close, outputs_init
from stirbar.rt.leds cimport LED_CHANNELS
from stirbar.rt.rp2040 cimport MCU_INPUTS, MCU_LEDS, rp2040_init, rp2040_light, rp2040_read, rp2040_start
from stirbar.rt.tmp1075 cimport tmp1075_init, tmp1075_start
from stirbar.rt.types cimport MAX_CHANNELS

import os

cdef extern from "<sys/file.h>" nogil:
    int flock(int fd, int operation)
    int LOCK_EX
    int LOCK_NB

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    void* MAP_FAILED

cdef enum:
    REGISTERS_BYTES = 4096
    I2C_SDA_PIN = 2            # of bus 1 on a Pi's header
    I2C_SCL_PIN = 3


cdef inline dict paces():
    return {"ready": PACE_READY, "pilot": PACE_PILOT, "host": PACE_HOST, "smoothed": PACE_SMOOTHED}


cdef inline void forget_board(Board* board) noexcept:
    """A board of which nothing is open."""
    cdef int i
    memset(board, 0, sizeof(Board))
    board.bus.fd = board.bus.gpio = -1
    board.bus.counters = &board.counters
    for i in range(MAX_CHANNELS):
        board.ads[i].ready.fd = -1
    for i in range(LED_CHANNELS):
        board.channel_output[i] = -1


cdef inline void close_board(Board* board) noexcept:
    """Light off, then everything closed; what was counted stays. Safe to call twice."""
    cdef int i
    if board.bus.fd >= 0:
        if board.led_chip != CHIP_NONE:
            board_dark(board)
        c_close(board.bus.fd)
    for i in range(MAX_CHANNELS):
        if board.ads[i].ready.fd >= 0:
            c_close(board.ads[i].ready.fd)
        board.ads[i].ready.fd = -1
    if board.bus.gpio >= 0:
        c_close(board.bus.gpio)
    if board.bus.registers != NULL:
        munmap(board.bus.registers, REGISTERS_BYTES)
    board.bus.fd = board.bus.gpio = -1
    board.bus.registers = NULL
    board.bus.recovery = RECOVERY_NONE
    board.led_chip = CHIP_NONE


# --- the bus and the chip of the lines -------------------------------------------------------------------------------

cdef inline str open_bus_reason(str path, int code):
    """Why a bus could not be opened, and what to do."""
    remedy = {
        "ENOENT": "there is no such device: enable I2C (dtparam=i2c_arm=on in /boot/firmware/config.txt, or"
                  " raspi-config) and load i2c-dev",
        "EACCES": "permission denied: add this user to the group i2c",
        "EPERM": "permission denied: add this user to the group i2c",
    }.get(errno_name(code), os.strerror(code))
    return f"cannot open {path}: {remedy}; or run with --simulate for a simulated vial"


cdef inline str lock_holder(int fd):
    """The process that holds the lock of an open file, as the kernel lists them; where it does not, another worker."""
    inode = f":{os.fstat(fd).st_ino}"
    with open("/proc/locks") as locks:
        for line in locks:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(inode):
                return f"another worker (process {fields[4]})"
    return "another worker"


cdef inline str errno_name(int code):
    import errno as names
    return names.errorcode.get(code, str(code))


cdef inline int open_bus(Board* board, profile) except -1:
    cdef int status
    path = f"/dev/i2c-{profile.get('i2c', 'bus')}"
    status = i2c_open(&board.bus, path.encode(), profile.get("i2c", "clock_hz"), profile.get("i2c", "timeout_ms"))
    if status:
        raise ConnectionError(open_bus_reason(path, -status))
    if flock(board.bus.fd, LOCK_EX | LOCK_NB) < 0 and errno == EAGAIN:
        raise ConnectionError(
            f"{lock_holder(board.bus.fd)} has {path}: one worker drives a board; stop it, or run with --simulate for a"
            " simulated vial")
    return 0


cdef inline int open_gpio(Board* board, profile) except -1:
    """The chip of the header's lines; a board that has no use for one may be without."""
    cdef int number = -1
    cdef int fd, i
    needed = profile.get("i2c", "recovery") == "lines"
    for i in range(MAX_CHANNELS):
        needed = needed or profile.get(f"photodiode.{i + 1}", "ready_line") is not None
    where = str(profile.get("gpio", "chip"))
    if where == "auto":
        fd = gpio_find(&number)
        where = "any /dev/gpiochip that has a Pi's header lines (pinctrl-bcm2835, -bcm2711 or -rp1)"
    else:
        where = f"/dev/gpiochip{where}" if where.isdigit() else where
        fd = gpio_open(where.encode())
    if fd < 0 and needed:
        raise ConnectionError(
            f"cannot open {where} ({os.strerror(-fd)}): add this user to the group gpio, or say in the profile which"
            " it is ([gpio] chip); or run with --simulate for a simulated vial")
    board.bus.gpio = fd
    return 0


cdef inline str configure_recovery(Board* board, profile):
    """How a held bus is freed; a sentence where it cannot be as the profile or the platform wants it, else empty. The
    registers can give the pins back to the adapter; lines do so only where they never left it, so that a profile must
    ask for them."""
    cdef int fd
    cdef int failed = 0
    cdef void* registers
    cdef bint can = gpio_is_bcm(board.bus.gpio)
    how = profile.get("i2c", "recovery")
    board.bus.sda = I2C_SDA_PIN
    board.bus.scl = I2C_SCL_PIN
    if how == "lines":
        board.bus.recovery = RECOVERY_LINES
    if how == "registers" and not can:
        return ("a held bus cannot be freed: [i2c] recovery = registers is for the GPIO chip of a Pi before the fifth;"
                " write none or lines")
    if how != "registers" and (how is not None or not can or profile.get("i2c", "bus") != 1):
        return ""
    fd = c_open(b"/dev/gpiomem", O_RDWR | O_CLOEXEC)
    if fd < 0 and errno == ENOENT and how is None:
        return ""  # a kernel that has none: there is nothing to be set right
    if fd < 0:
        failed = errno
    else:
        registers = mmap(NULL, REGISTERS_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        failed = errno if registers == MAP_FAILED else 0
        c_close(fd)
    if failed:
        return (f"a held bus cannot be freed: /dev/gpiomem: {os.strerror(failed)}; add this user to the group gpio and"
                " DeviceAllow=/dev/gpiomem rw to the worker's unit, or write recovery = none into [i2c] of the profile")
    board.bus.registers = <uint32_t*>registers
    board.bus.recovery = RECOVERY_REGISTERS
    return ""


# --- chips -----------------------------------------------------------------------------------------------------------

cdef inline int ready_line(Board* board, int line) except -1:
    """Request the line of a converter's ALERT/RDY: its descriptor."""
    cdef uint32_t offset = <uint32_t>line
    cdef gpio_v2_line_info info
    cdef int fd = gpio_request(
        board.bus.gpio, &offset, 1,
        GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_EDGE_FALLING | GPIO_V2_LINE_FLAG_BIAS_PULL_UP, 0,
        b"stirbar ready", EVENT_QUEUE)
    if fd >= 0:
        return fd
    user = ""
    if fd == -EBUSY and gpio_line_info(board.bus.gpio, offset, &info) == 0:
        user = f" by '{info.consumer.decode(errors='replace')}'"
    raise ConnectionError(
        f"line {line} (ALERT/RDY) cannot be requested: {'it is in use' + user if fd == -EBUSY else os.strerror(-fd)};"
        " release it, or change ready_line in the profile")


cdef inline int converter_of(Board* board, int address, line) except -1:
    """Place of the ADS111x at an address; a new one where there is none yet."""
    cdef int i
    for i in range(board.ads_count):
        if board.ads[i].device.address == address:
            return i
    if board.ads_count == MAX_CHANNELS:
        raise ConnectionError(f"the profile has more than {MAX_CHANNELS} ADS111x")
    ads111x_init(&board.ads[board.ads_count], &board.bus, address, -1 if line is None else ready_line(board, line))
    board.ads_count += 1
    return board.ads_count - 1


cdef inline int configure_source(Board* board, Source* source, profile, str section) except -1:
    """An input; source.chip stays CHIP_NONE where the profile has none. Returns 0."""
    chip = profile.get(section, "chip")
    source.chip = CHIP_NONE
    if chip is None:
        return 0
    address = profile.get(section, "address")
    source.input = profile.get(section, "input") or 0
    if chip == "rp2040":
        source.chip = CHIP_RP2040
        rp2040_init(&board.mcu, &board.bus, address)
        return 0
    source.chip = CHIP_ADS
    if chip == "ads1114":
        source.input = -1
    line = profile.get(section, "ready_line") if section.startswith("photodiode") else None
    source.converter = converter_of(board, address, line)
    return 0


cdef inline int configure_channel(Board* board, int index, profile) except -1:
    cdef BoardChannel* c = &board.channel[index]
    section = f"photodiode.{index + 1}"
    configure_source(board, &c.source, profile, section)
    if c.source.chip == CHIP_NONE:
        return 0
    c.plan.pace = paces()[profile.get(section, "pace")]
    c.plan.converter = profile.get(section, "converter")
    c.plan.rate_hz = profile.get(section, "rate_hz")
    c.plan.conversion_hz = profile.get(section, "conversion_hz")
    c.plan.settle_ns = <int64_t>(1e6 * profile.get(section, "settle_ms"))
    c.full_scale_v = profile.get(section, "full_scale_v")
    if c.plan.pace == PACE_READY and board.ads[c.source.converter].ready.fd < 0:
        raise ConnectionError(f"the profile paces photodiode {index + 1} by ALERT/RDY, but names no ready_line")
    if c.source.chip == CHIP_RP2040:
        c.plan.read_ns = i2c_wire_ns(&board.bus, 2, 3)
    elif ads111x_config(c.full_scale_v, c.plan.conversion_hz, c.source.input) < 0:
        raise ConnectionError(
            f"photodiode {index + 1}: an ADS111x has no conversion_hz = {c.plan.conversion_hz:g} with full_scale_v ="
            f" {c.full_scale_v:g}")
    else:
        c.plan.read_ns = i2c_wire_ns(&board.bus, 1, 2)
    c.plan.light_ns = i2c_wire_ns(&board.bus, 1, 3 if board.led_chip == CHIP_DAC43608 else 2)
    return 0


cdef inline void lend_rail(Board* board) noexcept:
    """Mark the photodiodes whose converter, begun conversion by conversion, measures the rail as well."""
    cdef BoardChannel* c
    cdef int i
    for i in range(MAX_CHANNELS):
        c = &board.channel[i]
        c.plan.lends_rail = (
            c.source.chip == CHIP_ADS and c.plan.pace == PACE_HOST and board.rail.chip == CHIP_ADS
            and c.source.converter == board.rail.converter)


cdef inline int configure_led(Board* board, profile) except -1:
    cdef int i
    chip = profile.get("led", "chip")
    if chip is None:
        return 0
    ir = profile.get("led", "ir")
    board.led_output = -1
    for i, letter in enumerate("abcd"):
        output = profile.get("led", letter)
        if output is None:
            continue
        if chip == "rp2040" and output >= MCU_LEDS:
            raise ConnectionError(f"the RP2040 has no LED output {output}: [led] {letter} can be 0 to {MCU_LEDS - 1}")
        if letter == ir:
            board.led_output = output
        else:
            board.channel_output[i] = output
    if board.led_output < 0:
        raise ConnectionError(f"the profile measures with LED {ir}, which has no output")
    if chip == "rp2040":
        board.led_chip = CHIP_RP2040
        rp2040_init(&board.mcu, &board.bus, profile.get("led", "address"))
    else:
        board.led_chip = CHIP_DAC43608
        dac43608_init(&board.dac, &board.bus, profile.get("led", "address"))
    return 0


# --- who answers -----------------------------------------------------------------------------------------------------

cdef inline int dark_leds(Board* board) noexcept:
    """Every LED of the board off, whatever an earlier program left on: 0, or minus an errno."""
    cdef int status = 0
    cdef int i
    if board.led_chip == CHIP_DAC43608:
        return dac43608_power(&board.dac)
    for i in range(MCU_LEDS):
        status = rp2040_light(&board.mcu, i, 0) or status
    return status


cdef inline void learn_answers(Board* board) noexcept:
    """Look at each of the microcontroller's inputs, which first answers are looked at twice, now that nobody waits for
    the bus; and learn how long it holds the clock: its quickest answer."""
    cdef int32_t raw = 0
    cdef int64_t latched_ns = 0
    cdef int64_t quickest_ns = 0
    cdef int64_t took_ns
    cdef int i
    for i in range(MCU_INPUTS):
        if rp2040_read(&board.mcu, i, &raw, &latched_ns) < 0:
            return
        took_ns = board.bus.ended_ns - board.bus.began_ns
        if i == 0 or took_ns < quickest_ns:
            quickest_ns = took_ns
    for i in range(MAX_CHANNELS):
        if board.channel[i].source.chip == CHIP_RP2040 and board.channel[i].plan.read_ns < quickest_ns:
            board.channel[i].plan.read_ns = quickest_ns


cdef inline list look_for_chips(Board* board, profile):
    """Ask every chip of the profile once; returns (what, status) of each."""
    cdef int i, status
    found = []
    if board.led_chip != CHIP_NONE:
        status = dark_leds(board)
        found.append((f"{profile.get('led', 'chip')} at {profile.get('led', 'address'):#04x} (LEDs)", status))
    for i in range(board.ads_count):
        board.bus.down_until_ns = 0
        status = ads111x_set_single(&board.ads[i], 1.024, 860.0)
        found.append((f"ADS111x at {board.ads[i].device.address:#04x} (converter)", status))
    if board.mcu.device.bus != NULL:
        board.bus.down_until_ns = 0
        status = rp2040_start(&board.mcu)
        if status == 0:
            learn_answers(board)
        found.append((f"RP2040 at {board.mcu.device.address:#04x} (microcontroller; is its firmware loaded?)", status))
    if board.has_temperature:
        board.bus.down_until_ns = 0
        status = tmp1075_start(&board.tmp)
        found.append((f"TMP1075 at {board.tmp.device.address:#04x} (heater board's sensor)", status))
    return found


cdef inline list open_board(Board* board, profile):
    """Open what the profile names, with every LED off. Returns a sentence for each chip that does not answer, and one
    where a held bus cannot be freed as it should.

    Raises ConnectionError, one sentence, where the board cannot be used at all; nothing is then left open.
    """
    cdef int i
    name = getattr(profile, "name", "?")
    forget_board(board)
    try:
        open_bus(board, profile)
        open_gpio(board, profile)
        held = configure_recovery(board, profile)
        configure_led(board, profile)
        for i in range(MAX_CHANNELS):
            configure_channel(board, i, profile)
        configure_source(board, &board.rail, profile, "rail")
        configure_source(board, &board.version, profile, "version_sense")
        lend_rail(board)
        board.rail_divider = profile.get("rail", "divider") or 1.0
        if profile.get("temperature", "chip") is not None:
            board.has_temperature = 1
            tmp1075_init(&board.tmp, &board.bus, profile.get("temperature", "address"))
        found = look_for_chips(board, profile)
        if found and all([status for _, status in found]):
            raise ConnectionError(
                f"no board found: on /dev/i2c-{profile.get('i2c', 'bus')} profile '{name}' looks for"
                f" {', '.join([what for what, _ in found])}, and none answers ({os.strerror(-found[0][1])}); is the HAT"
                " on and powered, is it another one (`stirbar hardware detect`)? Or run with --simulate for a simulated"
                " vial")
    except BaseException:
        close_board(board)
        raise
    missing = [f"{what} does not answer as it should: {os.strerror(-status)}" for what, status in found if status]
    return missing + [held] if held else missing


# --- with its outputs ------------------------------------------------------------------------------------------------

cdef inline void forget_hardware(Hardware* hardware) noexcept:
    forget_board(&hardware.board)
    outputs_init(&hardware.outputs, &hardware.board.counters)


cdef inline void close_hardware(Hardware* hardware) noexcept:
    """Light and outputs off, everything closed that is ours. Safe to call twice."""
    outputs_close(&hardware.outputs)
    close_board(&hardware.board)


cdef inline list open_hardware(Hardware* hardware, profile, guard):
    """The board of a profile, and the outputs that the guard gave (None: there are none). Returns what is missing, one
    sentence each; raises ConnectionError, with nothing left open."""
    cdef int status
    forget_hardware(hardware)
    missing = open_board(&hardware.board, profile)
    try:
        line = profile.get("gpio", "hall")
        if line is not None:
            status = -ENODEV if hardware.board.bus.gpio < 0 else outputs_add_hall(
                &hardware.outputs, hardware.board.bus.gpio, line)
            if status:
                missing.append(f"line {line} (hall sensor) cannot be requested: {os.strerror(-status)}; rpm is unknown")
        if guard is not None:
            configure_outputs(&hardware.outputs, profile, guard)
    except BaseException:
        close_hardware(hardware)
        raise
    return missing


cdef inline dict hardware_counters(const Hardware* hardware, const HalCounters* c):
    """What goes wrong below the interface, and how busy the bus is, by name; nothing for a simulated vial (no c)."""
    cdef const I2cBus* bus = &hardware.board.bus
    if c == NULL:
        return {}
    return {
        "bus_transfer_errors": c.bus_errors,
        "bus_timeouts": c.bus_timeouts,
        "bus_recoveries": c.bus_recoveries,
        "bus_transfers": bus.transfers,
        "bus_busy_ms": bus.busy_ms,
        "bus_waits": bus.waited,
        "ready_lost": c.ready_lost,
        "edges_lost": c.edges_lost,
        "garbage": c.garbage,
        "pulses_late": c.pulses_late,
        "line_errors": c.line_errors,
    }
