# Why compiled: 860 conversions a second and photodiode are fetched from these chips, each one once and with its time.
# Thread rule: the sampling thread; started and read by nobody else.
# Units: nanoseconds of CLOCK_MONOTONIC, volts of full scale, hertz; codes are 16 bits, two's complement.
#
# ADS1115 (four inputs) and ADS1114 (one): registers and timing from their data sheet, TI SBAS444D.

from libc.errno cimport EINVAL, EIO
from libc.math cimport fabs
from libc.stdint cimport int16_t, int32_t, int64_t, uint16_t, uint32_t

from stirbar.rt.gpio_lines cimport EdgeQueue, edges_drain, edges_init
from stirbar.rt.hal cimport Conversion
from stirbar.rt.i2c_bus cimport (
    I2cBus, I2cDevice, device_init, device_read16, device_write16, device_write16_then_point, i2c_instant_ns)

cdef extern from *:
    """
    #ifndef STIRBAR_ADS111X
    #define STIRBAR_ADS111X
    static const double ads111x_full_scale_v[6] = {6.144, 4.096, 2.048, 1.024, 0.512, 0.256};
    static const double ads111x_rate_hz[8] = {8.0, 16.0, 32.0, 64.0, 128.0, 250.0, 475.0, 860.0};
    #define STIRBAR_ADS_SLOWEST 1.12   /* of the nominal time of a conversion: the oscillator is good to 10 % */
    #define STIRBAR_ADS_FASTEST 0.89
    #endif
    """
    const double ads111x_full_scale_v[6]
    const double ads111x_rate_hz[8]
    const double ADS_SLOWEST "STIRBAR_ADS_SLOWEST"
    const double ADS_FASTEST "STIRBAR_ADS_FASTEST"

cdef enum:
    ADS_CONVERSION = 0         # registers
    ADS_CONFIG = 1
    ADS_LO_THRESH = 2
    ADS_HI_THRESH = 3
    ADS_OS = 0x8000            # config: write 1 to begin a conversion; reads 0 while one is under way
    ADS_SINGLE = 0x0100        # one conversion, then power-down; else continuous
    ADS_NO_ALERT = 0x0003      # COMP_QUE: ALERT/RDY stays open
    ADS_HI_READY = 0x8000      # with these thresholds ALERT/RDY says that a conversion is ready
    ADS_LO_READY = 0x0000
    ADS_WAKE_NS = 50000        # from power-down
    ADS_DRAIN = 16             # edges taken at once
    ADS_SAME_CODES = 64        # so many equal codes in a row: is it still converting?
    ADS_CHECK_NS = 1000000000  # asked at most so often

# The converter's ready edges, numbered by its conversions: what the line missed or made up is seen in the time.
cdef struct ReadyTrack:
    double period_ns           # nominal, then as measured
    int64_t stamp_ns           # of the last edge
    uint32_t index             # of the conversion that it ended
    uint32_t begun

cdef struct Ads111x:
    I2cDevice device
    EdgeQueue ready            # its fd is negative where no line is wired
    ReadyTrack track
    double conversion_hz
    uint16_t config            # as last written, without OS
    uint16_t known             # config holds
    int32_t last_code
    uint32_t same              # equal codes in a row
    uint32_t reads
    uint32_t waiting           # track.index was not fetched yet
    int64_t checked_ns
    int64_t began_ns           # of the single conversion under way, or 0
    uint32_t begun             # single conversions


cdef inline int ads111x_gain_bits(double full_scale_v) noexcept nogil:
    """Config bits of a full scale, or -EINVAL for one that the chip does not have."""
    cdef int i
    for i in range(6):
        if fabs(ads111x_full_scale_v[i] - full_scale_v) < 1e-6:
            return i << 9
    return -EINVAL


cdef inline int ads111x_rate_bits(double rate_hz) noexcept nogil:
    """Config bits of a data rate, or -EINVAL for one that the chip does not have."""
    cdef int i
    for i in range(8):
        if fabs(ads111x_rate_hz[i] - rate_hz) < 1e-6:
            return i << 5
    return -EINVAL


cdef inline int ads111x_config(double full_scale_v, double rate_hz, int input) noexcept nogil:
    """Config of continuous conversion; input 0..3 against ground, or -1 where the chip has only one."""
    cdef int gain = ads111x_gain_bits(full_scale_v)
    cdef int rate = ads111x_rate_bits(rate_hz)
    if gain < 0 or rate < 0 or input > 3:
        return -EINVAL
    return gain | rate | ((4 + input) << 12 if input >= 0 else 0)


cdef inline void ads111x_init(Ads111x* chip, I2cBus* bus, int address, int ready_fd) noexcept nogil:
    device_init(&chip.device, bus, address)
    edges_init(&chip.ready, ready_fd)
    chip.known = 0
    chip.began_ns = 0
    chip.begun = 0
    chip.reads = 0
    chip.checked_ns = 0


cdef inline void ready_track_init(ReadyTrack* track, double conversion_hz) noexcept nogil:
    track.period_ns = 1e9 / conversion_hz
    track.index = 0
    track.begun = 0


cdef inline uint32_t ready_track_push(ReadyTrack* track, int64_t stamp_ns) noexcept nogil:
    """Number an edge by the time since the last one: how many conversions ended since; 0: no conversion's edge.

    The first edge has number 0. A lost edge leaves a gap of its length; a glitch, less than half a period after an
    edge, is none.
    """
    cdef double since
    cdef uint32_t steps
    if not track.begun:
        track.begun = 1
        track.stamp_ns = stamp_ns
        return 1
    since = <double>(stamp_ns - track.stamp_ns)
    if since < 0.5 * track.period_ns:
        return 0
    steps = <uint32_t>(since / track.period_ns + 0.5) if since < 4e9 * track.period_ns else 1
    if steps == 1:
        track.period_ns += 0.0625 * (since - track.period_ns)
    track.index += steps
    track.stamp_ns = stamp_ns
    return steps


cdef inline int ads111x_is(Ads111x* chip, uint16_t config, int ready) noexcept nogil:
    """Whether the chip holds what was written: 0, or minus an errno; -EIO: it holds something else."""
    cdef uint16_t value = 0
    cdef int status = device_read16(&chip.device, ADS_CONFIG, &value)
    if status == 0 and (value & ~ADS_OS) != config:
        status = -EIO
    if status == 0 and ready:
        status = device_read16(&chip.device, ADS_HI_THRESH, &value)
        if status == 0 and value != ADS_HI_READY:
            status = -EIO
    if status == -EIO:
        chip.device.bus.counters.garbage += 1
        chip.known = 0
    return status


cdef inline int ads111x_forget_edges(Ads111x* chip) noexcept nogil:
    """Take edges that are older than a start; 0, or minus an errno."""
    cdef int64_t[ADS_DRAIN] stamps
    cdef int taken = ADS_DRAIN
    while taken == ADS_DRAIN:
        taken = edges_drain(&chip.ready, stamps, NULL, ADS_DRAIN)
    return taken if taken < 0 else 0


cdef inline int ads111x_start_free(
        Ads111x* chip, double full_scale_v, double conversion_hz, int input) noexcept nogil:
    """Convert continuously; the register pointer stays at the conversions. ALERT/RDY is used where it is wired."""
    cdef int config = ads111x_config(full_scale_v, conversion_hz, input)
    cdef int ready = chip.ready.fd >= 0
    cdef int status
    if config < 0:
        return config
    if not ready:
        config |= ADS_NO_ALERT
    chip.known = 0
    chip.began_ns = 0
    if ready:
        status = device_write16(&chip.device, ADS_LO_THRESH, ADS_LO_READY)
        if status == 0:
            status = device_write16(&chip.device, ADS_HI_THRESH, ADS_HI_READY)
        if status:
            return status
    status = device_write16(&chip.device, ADS_CONFIG, <uint16_t>config)
    if status == 0:
        status = ads111x_is(chip, <uint16_t>config, ready)
    if status == 0 and ready:
        status = ads111x_forget_edges(chip)
    if status:
        return status
    chip.config = <uint16_t>config
    chip.known = 1
    chip.conversion_hz = conversion_hz
    chip.waiting = 0
    chip.same = 0
    ready_track_init(&chip.track, conversion_hz)
    return 0


cdef inline int ads111x_gain(Ads111x* chip, double full_scale_v) noexcept nogil:
    """Another full scale; counts from the conversion after the one under way on (single-shot: from the next one)."""
    cdef int gain = ads111x_gain_bits(full_scale_v)
    cdef int status
    if gain < 0:
        return gain
    if not chip.known:
        return -EIO
    gain |= chip.config & ~0x0e00
    if not chip.config & ADS_SINGLE:
        status = device_write16_then_point(&chip.device, ADS_CONFIG, <uint16_t>gain, ADS_CONVERSION)
        if status:
            return status
    chip.config = <uint16_t>gain
    return 0


cdef inline int ads111x_fetch(Ads111x* chip, Conversion* conversion) noexcept nogil:
    """Read the conversion register: code and clipped; 0, or minus an errno."""
    cdef uint16_t value = 0
    cdef int status = device_read16(&chip.device, ADS_CONVERSION, &value)
    if status == 0:
        conversion.code = <int16_t>value
        conversion.clipped = value == 0x7fff or value == 0x8000
        conversion.begin_ns = 0
        chip.reads += 1
    return status


cdef inline int ads111x_still_converts(Ads111x* chip, int32_t code, int64_t now_ns) noexcept nogil:
    """A chip that lost its power for a moment answers, but with one code for ever: 0, or -EIO."""
    if code != chip.last_code:
        chip.last_code = code
        chip.same = 0
        return 0
    chip.same += 1
    if chip.same < ADS_SAME_CODES or now_ns - chip.checked_ns < ADS_CHECK_NS:
        return 0
    chip.checked_ns = now_ns
    return ads111x_is(chip, chip.config, 0)


cdef inline int ads111x_read_silent(Ads111x* chip, int64_t now_ns, Conversion* conversion) noexcept nogil:
    """No ready line: what the register holds, and when the chip latched it (at the start of the data)."""
    cdef int status
    if not chip.known:
        return -EIO
    status = ads111x_fetch(chip, conversion)
    if status:
        return status
    conversion.ready_ns = i2c_instant_ns(chip.device.bus, 1, 2, 10)
    conversion.index = chip.reads
    status = ads111x_still_converts(chip, conversion.code, now_ns)
    return status if status else 1


# --- with ALERT/RDY --------------------------------------------------------------------------------------------------

cdef inline int ads111x_take_edges(Ads111x* chip, int64_t early_ns, int64_t late_ns, ReadyTrack* before) noexcept nogil:
    """Take the edges that are waiting; before becomes the track as it was at early_ns. Returns how many edges lie
    between early_ns and late_ns, or minus an errno."""
    cdef int64_t[ADS_DRAIN] stamps
    cdef int taken = ADS_DRAIN
    cdef int between = 0
    cdef int i
    while taken == ADS_DRAIN:
        taken = edges_drain(&chip.ready, stamps, NULL, ADS_DRAIN)
        if taken < 0:
            return taken
        for i in range(taken):
            if ready_track_push(&chip.track, stamps[i]) == 0:
                chip.device.bus.counters.garbage += 1
                continue
            chip.waiting = 1
            if stamps[i] <= early_ns:
                before[0] = chip.track
            elif stamps[i] <= late_ns:
                between += 1
    return between


cdef inline int ads111x_read_ready(Ads111x* chip, int64_t now_ns, Conversion* conversion) noexcept nogil:
    """The newest conversion and its edge's stamp: 1; 0 where there is none that was not fetched before.

    Between the edge and the read the next conversion may have ended. Where the next edge can have come before the end
    of the answer, the edges say whose code it is; where they cannot, the conversion is given up.
    """
    cdef ReadyTrack owner
    cdef uint32_t lost = chip.ready.lost
    cdef int64_t early_ns, late_ns
    cdef int status
    if not chip.known:
        return -EIO
    status = ads111x_take_edges(chip, now_ns, now_ns, &owner)
    chip.device.bus.counters.ready_lost += chip.ready.lost - lost
    if status < 0 or not chip.waiting:
        return status if status < 0 else 0
    status = ads111x_fetch(chip, conversion)
    if status:
        return status
    owner = chip.track
    chip.waiting = 0
    early_ns = chip.device.bus.began_ns + 10 * chip.device.bus.bit_ns
    late_ns = chip.device.bus.ended_ns  # the data sheet does not say when within its answer the chip latches it
    if late_ns > owner.stamp_ns + <int64_t>(0.9 * chip.track.period_ns):
        lost = chip.ready.lost
        status = ads111x_take_edges(chip, early_ns, late_ns, &owner)
        chip.device.bus.counters.ready_lost += chip.ready.lost - lost
        if status:
            return status if status < 0 else 0
        if early_ns > owner.stamp_ns + <int64_t>(1.1 * chip.track.period_ns):
            # an edge is overdue: it is not known whether the code is the next conversion's
            return 0
        chip.waiting = chip.track.index != owner.index
    conversion.ready_ns = owner.stamp_ns
    conversion.index = owner.index
    return 1


# --- one conversion at a time ----------------------------------------------------------------------------------------

cdef inline int ads111x_set_single(Ads111x* chip, double full_scale_v, double conversion_hz) noexcept nogil:
    """Stop converting, and see that the chip is there and takes a configuration."""
    cdef int config = ads111x_config(full_scale_v, conversion_hz, 0)
    cdef int status
    if config < 0:
        return config
    config |= ADS_SINGLE | ADS_NO_ALERT
    chip.known = 0
    chip.began_ns = 0
    status = device_write16(&chip.device, ADS_CONFIG, <uint16_t>config)
    if status == 0:
        status = ads111x_is(chip, <uint16_t>config, 0)
    if status:
        return status
    chip.config = <uint16_t>config
    chip.conversion_hz = conversion_hz
    chip.known = 1
    return 0


cdef inline int ads111x_convert(Ads111x* chip, double full_scale_v, int input) noexcept nogil:
    """Begin one conversion of an input (-1: the only one); the pointer is set while it converts."""
    cdef int gain = ads111x_gain_bits(full_scale_v)
    cdef int status
    if gain < 0:
        return gain
    if not chip.known:
        return -EIO
    chip.config = <uint16_t>(chip.config & 0x01ff | gain | ((4 + input) << 12 if input >= 0 else 0))
    status = device_write16_then_point(&chip.device, ADS_CONFIG, chip.config | ADS_OS, ADS_CONVERSION)
    if status:
        chip.began_ns = 0
        return status
    chip.began_ns = i2c_instant_ns(chip.device.bus, 2, 4, 37)
    chip.begun += 1
    return 0


cdef inline int ads111x_read_single(Ads111x* chip, int64_t now_ns, Conversion* conversion) noexcept nogil:
    """The conversion that was begun: 1; 0 while it is not ready, or where none was begun."""
    cdef uint16_t value = 0
    cdef double nominal_ns = 1e9 / chip.conversion_hz
    cdef int status
    if chip.began_ns == 0:
        return 0
    if now_ns - chip.began_ns < <int64_t>(ADS_FASTEST * nominal_ns):
        return 0
    if now_ns - chip.began_ns < <int64_t>(ADS_SLOWEST * nominal_ns) + ADS_WAKE_NS:
        status = device_read16(&chip.device, ADS_CONFIG, &value)
        if status:
            return status
        if not value & ADS_OS:
            return 0
    status = ads111x_fetch(chip, conversion)
    if status:
        return status
    conversion.begin_ns = chip.began_ns
    conversion.ready_ns = chip.began_ns + <int64_t>nominal_ns
    if conversion.ready_ns > chip.device.bus.began_ns:
        conversion.ready_ns = chip.device.bus.began_ns
    conversion.index = chip.begun - 1
    chip.began_ns = 0
    return 1
