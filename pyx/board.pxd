# Why compiled: the sampling thread's side of a real board, behind the interface of hal.pxd.
# Thread rule: filled by the host thread (configure_board.pxd) before the loop lives, and after it has ended; else the
#   sampling thread's alone.
# Units: nanoseconds of CLOCK_MONOTONIC, volts, percent 0..100, degrees Celsius.

from libc.errno cimport EAGAIN, EBUSY, EINVAL, EIO, ENODEV
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from stirbar.rt.ads111x cimport (
    ADS_SINGLE, Ads111x, ads111x_convert, ads111x_gain, ads111x_gain_bits, ads111x_rate_bits,
    ads111x_read_ready, ads111x_read_silent, ads111x_read_single, ads111x_set_single, ads111x_start_free)
from stirbar.rt.clock cimport CLOCK_MONOTONIC, read_clock_ns
from stirbar.rt.dac43608 cimport (
    DAC_POWERED_DOWN, Dac43608, dac43608_check, dac43608_off, dac43608_on, dac43608_refresh,
    dac43608_turn)
from stirbar.rt.hal cimport (
    PACE_HOST, PACE_PILOT, PACE_READY, PACE_SMOOTHED, AdcPlan, Conversion, Hal, HalCounters)
from stirbar.rt.i2c_bus cimport I2cBus, I2cDevice, i2c_wire_ns
from stirbar.rt.leds cimport LED_CHANNELS, led_code
from stirbar.rt.rp2040 cimport Rp2040, rp2040_light, rp2040_read, rp2040_read_once, rp2040_start, rp2040_volts_per_raw
from stirbar.rt.tmp1075 cimport Tmp1075, tmp1075_check, tmp1075_read
from stirbar.rt.types cimport MAX_CHANNELS

cdef extern from *:
    """
    #define STIRBAR_SENSE_V 4.096   /* full scale at which rail and version sense are measured */
    """
    const double SENSE_V "STIRBAR_SENSE_V"

cdef enum:
    CHIP_NONE = 0
    CHIP_ADS = 1
    CHIP_RP2040 = 2
    CHIP_DAC43608 = 3
    CHIP_TMP1075 = 4
    DARK_RETRY_NS = 50000000   # a light that could not be switched off is tried again so often

# An input of some converter.
cdef struct Source:
    int chip                   # CHIP_NONE, CHIP_ADS, CHIP_RP2040
    int converter              # place in Board.ads
    int input                  # 0..3; -1: the chip has only one

cdef struct BoardChannel:
    Source source
    AdcPlan plan
    double full_scale_v
    double codes_per_raw       # CHIP_RP2040
    uint32_t reads

cdef struct Board:
    I2cBus bus
    HalCounters counters
    BoardChannel[MAX_CHANNELS] channel
    Ads111x[MAX_CHANNELS] ads  # one of each address
    int ads_count
    Rp2040 mcu
    Dac43608 dac
    Tmp1075 tmp
    int led_chip               # CHIP_NONE, CHIP_DAC43608, CHIP_RP2040
    int led_output
    int[LED_CHANNELS] channel_output  # of the LED channels A..D; -1: the board has no such channel
    uint8_t[LED_CHANNELS] channel_code  # that each was given; the OD LED's own is `light`
    uint32_t led_checks
    int has_temperature
    Source rail
    Source version
    double rail_divider
    int light                  # code that the LED has; 0 dark; -1 unknown: a write has failed
    int dark_owed              # it was to be dark and is not known to be
    int64_t dark_retry_ns


# --- LED -------------------------------------------------------------------------------------------------------------

cdef inline int board_light(Board* board, int code, int64_t now_ns) noexcept nogil:
    cdef int status = -ENODEV
    if board.led_chip == CHIP_DAC43608 and code:
        status = dac43608_on(&board.dac, board.led_output, <uint8_t>code, now_ns)
    elif board.led_chip == CHIP_DAC43608:
        status = dac43608_off(&board.dac, board.led_output)
    elif board.led_chip == CHIP_RP2040:
        status = rp2040_light(&board.mcu, board.led_output, <uint8_t>code)
    board.light = -1 if status else code
    board.dark_owed = status != 0 and code == 0
    board.dark_retry_ns = now_ns + DARK_RETRY_NS
    return status


cdef inline void board_tend(Board* board, int64_t now_ns) noexcept nogil:
    """Switch a light off that could not be switched off when it was to be."""
    if board.dark_owed and now_ns >= board.dark_retry_ns:
        board_light(board, 0, now_ns)


cdef inline int board_led_write(void* context, double intensity_percent, int64_t now_ns) noexcept nogil:
    cdef Board* board = <Board*>context
    if not 0.0 <= intensity_percent <= 100.0:
        return -EINVAL
    return board_light(board, <int>led_code(intensity_percent), now_ns)


cdef inline int board_led_channel_write(void* context, int channel, double percent, int64_t now_ns) noexcept nogil:
    cdef Board* board = <Board*>context
    cdef int output = board.channel_output[channel] if 0 <= channel < LED_CHANNELS else -1
    cdef int status
    cdef uint8_t code
    if output < 0 or board.led_chip == CHIP_NONE:
        return -ENODEV
    if not 0.0 <= percent <= 100.0:
        return -EINVAL
    code = <uint8_t>led_code(percent)
    if board.led_chip == CHIP_DAC43608:
        status = dac43608_turn(&board.dac, output, code, now_ns)
    else:
        status = rp2040_light(&board.mcu, output, code)
    if status == 0:
        board.channel_code[channel] = code
    return status


cdef inline int board_others_dark(Board* board) noexcept nogil:
    """Every LED channel off; on a DAC with the write that switches the OD LED off."""
    cdef int status = 0
    cdef int i
    board.dac.config = DAC_POWERED_DOWN
    for i in range(LED_CHANNELS):
        if board.led_chip == CHIP_RP2040 and board.channel_code[i]:
            status = rp2040_light(&board.mcu, board.channel_output[i], 0) or status
    return status


cdef inline int board_dark(Board* board) noexcept nogil:
    """The last word: off, whatever the chip is thought to be; tried three times, twice where it works."""
    cdef int64_t now_ns
    cdef int status = -ENODEV
    cdef int i
    for i in range(3):
        now_ns = read_clock_ns(CLOCK_MONOTONIC)
        board.bus.down_until_ns = 0
        board.dac.device.retry_ns = 0
        board.mcu.device.retry_ns = 0
        status = board_others_dark(board)
        status = board_light(board, 0, now_ns) or status
        if status == 0 and i > 0:
            break
    return status


# --- converters ------------------------------------------------------------------------------------------------------

cdef inline BoardChannel* board_channel(void* context, int channel) noexcept nogil:
    """A photodiode's channel, or NULL where the board has none."""
    if not 0 <= channel < MAX_CHANNELS or (<Board*>context).channel[channel].source.chip == CHIP_NONE:
        return NULL
    return &(<Board*>context).channel[channel]


cdef inline int board_adc_plan(void* context, int channel, AdcPlan* plan) noexcept nogil:
    cdef BoardChannel* c = board_channel(context, channel)
    if c == NULL:
        return -ENODEV
    plan[0] = c.plan
    return 0


cdef inline int board_mcu_range(Board* board, BoardChannel* c, double full_scale_v) noexcept nogil:
    """The microcontroller has one range; full scale is only that of the codes."""
    if not 0.0 < full_scale_v <= 10.0:
        return -EINVAL
    c.full_scale_v = full_scale_v
    c.codes_per_raw = rp2040_volts_per_raw(&board.mcu) * 32768.0 / full_scale_v
    return 0


cdef inline int board_adc_start(
        void* context, int channel, double full_scale_v, double rate_hz, int64_t now_ns) noexcept nogil:
    """A rate that the chip does not have, or one above the profile's, is the profile's."""
    cdef Board* board = <Board*>context
    cdef BoardChannel* c = board_channel(context, channel)
    cdef Ads111x* chip
    cdef int status
    board_tend(board, now_ns)
    if c == NULL:
        return -ENODEV
    if c.source.chip == CHIP_RP2040:
        status = rp2040_start(&board.mcu)
        return status if status else board_mcu_range(board, c, full_scale_v)
    if ads111x_rate_bits(rate_hz) < 0 or rate_hz > c.plan.conversion_hz:
        rate_hz = c.plan.conversion_hz
    chip = &board.ads[c.source.converter]
    if c.plan.pace == PACE_HOST:
        status = ads111x_set_single(chip, full_scale_v, rate_hz)
    else:
        status = ads111x_start_free(chip, full_scale_v, rate_hz, c.source.input)
    if status == 0:
        c.full_scale_v = full_scale_v
    return status


cdef inline int board_adc_gain(void* context, int channel, double full_scale_v, int64_t now_ns) noexcept nogil:
    cdef Board* board = <Board*>context
    cdef BoardChannel* c = board_channel(context, channel)
    cdef int status = 0
    if c == NULL:
        return -ENODEV
    if c.source.chip == CHIP_RP2040:
        return board_mcu_range(board, c, full_scale_v)
    if ads111x_gain_bits(full_scale_v) < 0:
        return -EINVAL
    if c.plan.pace != PACE_HOST:
        status = ads111x_gain(&board.ads[c.source.converter], full_scale_v)
    if status == 0:
        c.full_scale_v = full_scale_v
    return status


cdef inline int board_adc_convert(void* context, int channel, int64_t now_ns) noexcept nogil:
    cdef Board* board = <Board*>context
    cdef BoardChannel* c = board_channel(context, channel)
    if c == NULL or c.plan.pace != PACE_HOST:
        return -ENODEV
    return ads111x_convert(&board.ads[c.source.converter], c.full_scale_v, c.source.input)


cdef inline int board_mcu_read(Board* board, BoardChannel* c, Conversion* conversion) noexcept nogil:
    cdef int32_t raw = 0
    cdef int64_t latched_ns = 0
    cdef double code
    cdef int status = rp2040_read(&board.mcu, c.source.input, &raw, &latched_ns)
    if status != 1:
        return status
    code = raw * c.codes_per_raw
    conversion.clipped = raw >= board.mcu.maximum or code >= 32767.0
    conversion.code = 32767 if code >= 32767.0 else <int32_t>(code + 0.5)
    conversion.ready_ns = latched_ns
    conversion.begin_ns = 0
    c.reads += 1
    conversion.index = c.reads
    return 1


cdef inline int board_adc_read(void* context, int channel, int64_t now_ns, Conversion* conversion) noexcept nogil:
    cdef Board* board = <Board*>context
    cdef BoardChannel* c = board_channel(context, channel)
    if board.dark_owed:
        board_tend(board, now_ns)
    if c == NULL:
        return -ENODEV
    if c.plan.pace == PACE_READY:
        return ads111x_read_ready(&board.ads[c.source.converter], now_ns, conversion)
    if c.plan.pace == PACE_PILOT:
        return ads111x_read_silent(&board.ads[c.source.converter], now_ns, conversion)
    if c.plan.pace == PACE_HOST:
        return ads111x_read_single(&board.ads[c.source.converter], now_ns, conversion)
    return board_mcu_read(board, c, conversion)


# --- slow things -----------------------------------------------------------------------------------------------------

cdef inline int board_temperature_read(void* context, int64_t now_ns, double* celsius) noexcept nogil:
    cdef Board* board = <Board*>context
    board_tend(board, now_ns)
    return tmp1075_read(&board.tmp, celsius) if board.has_temperature else -ENODEV


cdef inline int board_temperature_check(void* context, int64_t now_ns) noexcept nogil:
    cdef Board* board = <Board*>context
    return tmp1075_check(&board.tmp) if board.has_temperature and board.tmp.started else 0


cdef inline int board_led_check(void* context, int64_t now_ns) noexcept nogil:
    """A driver that does not hold what was written to it gets the light anew; every other time one of the channels that
    are lit, in turn, gets its code again, which a driver loses with its power."""
    cdef Board* board = <Board*>context
    cdef int channel = board.led_checks >> 1 & (LED_CHANNELS - 1)
    cdef int status = 0
    board.led_checks += 1
    if board.led_checks & 1 and board.channel_code[channel]:
        if board.led_chip == CHIP_DAC43608:
            return dac43608_refresh(&board.dac, board.channel_output[channel], board.channel_code[channel], now_ns)
        return rp2040_light(&board.mcu, board.channel_output[channel], board.channel_code[channel])
    if board.led_chip == CHIP_DAC43608:
        status = dac43608_check(&board.dac)
    return board_light(board, 0 if board.light < 0 else board.light, now_ns) if status else 0


cdef inline int board_sense_begin(Board* board, const Source* source) noexcept nogil:
    """Begin to measure an input that no photodiode uses: 0, or minus an errno; -EBUSY: its converter runs free."""
    cdef Ads111x* chip
    cdef int status
    if source.chip == CHIP_NONE:
        return -ENODEV
    if source.chip == CHIP_RP2040:
        return rp2040_start(&board.mcu) if board.mcu.scale == 0 else 0
    chip = &board.ads[source.converter]
    if chip.known and not chip.config & ADS_SINGLE:
        return -EBUSY
    status = 0 if chip.known else ads111x_set_single(chip, SENSE_V, 860.0)
    return status if status else ads111x_convert(chip, SENSE_V, source.input)


cdef inline int board_sense_fetch(Board* board, const Source* source, int64_t now_ns, double* volts) noexcept nogil:
    """Voltage of what was begun; -EAGAIN: not there yet, -EBUSY: the converter has begun something else since."""
    cdef Ads111x* chip
    cdef Conversion conversion
    cdef int32_t raw = 0
    cdef int status
    if source.chip == CHIP_NONE:
        return -ENODEV
    if source.chip == CHIP_RP2040:
        status = rp2040_read_once(&board.mcu, source.input, &raw)
        if status != 1:
            return status if status else -EAGAIN
        volts[0] = raw * rp2040_volts_per_raw(&board.mcu)
        return 0
    chip = &board.ads[source.converter]
    if chip.began_ns == 0:
        return -EBUSY
    conversion.code = 0
    status = ads111x_read_single(chip, now_ns, &conversion)
    if status != 1:
        return status if status else -EAGAIN
    volts[0] = conversion.code * (SENSE_V / 32768.0)
    return 0


cdef inline int board_rail_convert(void* context, int64_t now_ns) noexcept nogil:
    cdef Board* board = <Board*>context
    return board_sense_begin(board, &board.rail)


cdef inline int board_rail_read(void* context, int64_t now_ns, double* volts) noexcept nogil:
    cdef Board* board = <Board*>context
    cdef int status = board_sense_fetch(board, &board.rail, now_ns, volts)
    if status == 0:
        volts[0] /= board.rail_divider
    return status


cdef inline void board_hal(Board* board, Hal* hal) noexcept nogil:
    """The sampling thread's side of the interface; hal.context must begin with this board."""
    hal.counters = &board.counters
    hal.adc_plan = board_adc_plan
    hal.adc_start = board_adc_start
    hal.adc_gain = board_adc_gain
    hal.adc_convert = board_adc_convert
    hal.adc_read = board_adc_read
    hal.led_write = board_led_write
    hal.led_channel_write = board_led_channel_write
    hal.temperature_read = board_temperature_read
    hal.temperature_check = board_temperature_check
    hal.led_check = board_led_check
    hal.rail_convert = board_rail_convert
    hal.rail_read = board_rail_read
