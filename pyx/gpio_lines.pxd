# Why compiled: levels and edges of the board's lines, by the kernel's own interface (character device, uAPI v2).
# Thread rule: find, open and request are for the host thread before the loop lives; a request's descriptor then belongs
#   to one thread of the loop.
# Units: nanoseconds of CLOCK_MONOTONIC; lines by their number on the chip (BCM on a Pi), then by their place in the
#   request: bit i of a mask is the i-th line that was requested.
#
# Every function returns 0, a count or a descriptor when it worked, and minus an errno when it did not.

from libc.errno cimport EAGAIN, EINTR, EINVAL, ENODEV, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strncmp, strncpy

cdef extern from "<fcntl.h>" nogil:
    int c_open "open" (const char* path, int flags)
    int fcntl(int fd, int command, ...)
    int O_RDWR
    int O_CLOEXEC
    int O_NONBLOCK
    int F_GETFL
    int F_SETFL

cdef extern from "<unistd.h>" nogil:
    ssize_t c_read "read" (int fd, void* data, size_t size)
    int c_close "close" (int fd)

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<linux/gpio.h>" nogil:
    struct gpiochip_info:
        char name[32]
        char label[32]
        uint32_t lines
    struct gpio_v2_line_values:
        uint64_t bits
        uint64_t mask
    struct gpio_v2_line_attribute:
        uint32_t id
        uint64_t flags
        uint64_t values
        uint32_t debounce_period_us
    struct gpio_v2_line_config_attribute:
        gpio_v2_line_attribute attr
        uint64_t mask
    struct gpio_v2_line_config:
        uint64_t flags
        uint32_t num_attrs
        gpio_v2_line_config_attribute attrs[10]
    struct gpio_v2_line_request:
        uint32_t offsets[64]
        char consumer[32]
        gpio_v2_line_config config
        uint32_t num_lines
        uint32_t event_buffer_size
        int fd
    struct gpio_v2_line_info:
        char name[32]
        char consumer[32]
        uint32_t offset
        uint64_t flags
    struct gpio_v2_line_event:
        uint64_t timestamp_ns
        uint32_t id
        uint32_t offset
        uint32_t seqno
        uint32_t line_seqno
    unsigned long GPIO_GET_CHIPINFO_IOCTL
    unsigned long GPIO_V2_GET_LINEINFO_IOCTL
    unsigned long GPIO_V2_GET_LINE_IOCTL
    unsigned long GPIO_V2_LINE_SET_CONFIG_IOCTL
    unsigned long GPIO_V2_LINE_GET_VALUES_IOCTL
    unsigned long GPIO_V2_LINE_SET_VALUES_IOCTL
    uint64_t GPIO_V2_LINE_FLAG_USED
    uint64_t GPIO_V2_LINE_FLAG_ACTIVE_LOW
    uint64_t GPIO_V2_LINE_FLAG_INPUT
    uint64_t GPIO_V2_LINE_FLAG_OUTPUT
    uint64_t GPIO_V2_LINE_FLAG_EDGE_RISING
    uint64_t GPIO_V2_LINE_FLAG_EDGE_FALLING
    uint64_t GPIO_V2_LINE_FLAG_OPEN_DRAIN
    uint64_t GPIO_V2_LINE_FLAG_BIAS_PULL_UP
    uint64_t GPIO_V2_LINE_FLAG_BIAS_DISABLED
    uint32_t GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES

cdef enum:
    LINES_MAXIMUM = 64       # of one request
    EVENTS_PER_READ = 16     # taken from the kernel with one system call
    EVENT_QUEUE = 1024       # the kernel's limit; it holds 16 events unless more are asked for

# Edges of one line, as the kernel stamps them.
cdef struct EdgeQueue:
    int fd                   # of a request of this one line, non-blocking; negative: none
    uint32_t line_seqno      # of the last event
    uint32_t edges           # events taken and lost: number of the last edge since the request
    uint32_t lost            # events that fell out of the kernel's queue; only ever grows


cdef inline int gpio_open(const char* path) noexcept nogil:
    """Descriptor of a GPIO chip."""
    cdef int fd = c_open(path, O_RDWR | O_CLOEXEC)
    return fd if fd >= 0 else -errno


cdef inline int gpio_is_header(int chip) noexcept nogil:
    """Whether a chip has a Pi's header lines: its label is pinctrl-bcm2835, -bcm2711 or -rp1."""
    cdef gpiochip_info info
    memset(&info, 0, sizeof(info))
    if ioctl(chip, GPIO_GET_CHIPINFO_IOCTL, &info) < 0:
        return 0
    return strncmp(info.label, "pinctrl-bcm", 11) == 0 or strncmp(info.label, "pinctrl-rp", 10) == 0


cdef inline int gpio_is_bcm(int chip) noexcept nogil:
    """Whether it is the chip of a Pi before the fifth, whose register file is that of the BCM2835."""
    cdef gpiochip_info info
    memset(&info, 0, sizeof(info))
    return ioctl(chip, GPIO_GET_CHIPINFO_IOCTL, &info) >= 0 and strncmp(info.label, "pinctrl-bcm2", 12) == 0


cdef inline int gpio_find(int* number) noexcept nogil:
    """Open the chip that has a Pi's header lines, whatever its number; -ENODEV: there is none."""
    cdef char path[16]
    cdef int i, fd
    for i in range(32):
        memcpy(path, <const char*>"/dev/gpiochip", 13)
        path[13] = <char>(48 + (i // 10 if i >= 10 else i))
        path[14] = <char>(48 + i % 10) if i >= 10 else 0
        path[15] = 0
        fd = gpio_open(path)
        if fd < 0:
            continue
        if gpio_is_header(fd):
            number[0] = i
            return fd
        c_close(fd)
    return -ENODEV


cdef inline int gpio_line_info(int chip, uint32_t line, gpio_v2_line_info* info) noexcept nogil:
    """Name, user and flags of a line; a line in use has GPIO_V2_LINE_FLAG_USED, and info.consumer says by whom."""
    memset(info, 0, sizeof(gpio_v2_line_info))
    info.offset = line
    return 0 if ioctl(chip, GPIO_V2_GET_LINEINFO_IOCTL, info) >= 0 else -errno


cdef inline int gpio_hold(
        int chip, const uint32_t* lines, int count, uint64_t flags, uint64_t values, const char* consumer,
        uint32_t events) noexcept nogil:
    """Descriptor of a new request of some lines; -EBUSY: a line is in use.

    flags are GPIO_V2_LINE_FLAG_*, the same for all; values are what outputs begin with, at the moment that they become
    outputs; events is the room for unread edges (0: the kernel's own choice).
    """
    cdef gpio_v2_line_request request
    cdef int i
    if not 0 < count <= LINES_MAXIMUM:
        return -EINVAL
    memset(&request, 0, sizeof(request))
    for i in range(count):
        request.offsets[i] = lines[i]
    strncpy(request.consumer, consumer, sizeof(request.consumer) - 1)
    request.num_lines = <uint32_t>count
    request.event_buffer_size = events
    request.config.flags = flags
    if flags & GPIO_V2_LINE_FLAG_OUTPUT:
        request.config.num_attrs = 1
        request.config.attrs[0].attr.id = GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES
        request.config.attrs[0].attr.values = values
        request.config.attrs[0].mask = (<uint64_t>1 << (count - 1) << 1) - 1
    return request.fd if ioctl(chip, GPIO_V2_GET_LINE_IOCTL, &request) >= 0 else -errno


cdef inline int gpio_request(
        int chip, const uint32_t* lines, int count, uint64_t flags, uint64_t values, const char* consumer,
        uint32_t events) noexcept nogil:
    """As gpio_hold, and reading the descriptor does not wait."""
    cdef int fd = gpio_hold(chip, lines, count, flags, values, consumer, events)
    cdef int mode
    if fd < 0:
        return fd
    mode = fcntl(fd, F_GETFL)
    if mode < 0 or fcntl(fd, F_SETFL, mode | O_NONBLOCK) < 0:
        mode = errno
        c_close(fd)
        return -mode
    return fd


cdef inline int gpio_reconfigure(int fd, uint64_t flags, uint64_t values, uint64_t mask) noexcept nogil:
    """Other flags for all lines of a request; mask are the lines that have a value, where they become outputs."""
    cdef gpio_v2_line_config config
    memset(&config, 0, sizeof(config))
    config.flags = flags
    if flags & GPIO_V2_LINE_FLAG_OUTPUT:
        config.num_attrs = 1
        config.attrs[0].attr.id = GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES
        config.attrs[0].attr.values = values
        config.attrs[0].mask = mask
    return 0 if ioctl(fd, GPIO_V2_LINE_SET_CONFIG_IOCTL, &config) >= 0 else -errno


cdef inline int gpio_set(int fd, uint64_t mask, uint64_t bits) noexcept nogil:
    """Write the outputs in mask."""
    cdef gpio_v2_line_values values
    values.bits = bits
    values.mask = mask
    return 0 if ioctl(fd, GPIO_V2_LINE_SET_VALUES_IOCTL, &values) >= 0 else -errno


cdef inline int gpio_get(int fd, uint64_t mask, uint64_t* bits) noexcept nogil:
    """Levels of the lines in mask, inputs or outputs."""
    cdef gpio_v2_line_values values
    values.bits = 0
    values.mask = mask
    if ioctl(fd, GPIO_V2_LINE_GET_VALUES_IOCTL, &values) < 0:
        return -errno
    bits[0] = values.bits
    return 0


cdef inline void edges_init(EdgeQueue* queue, int fd) noexcept nogil:
    """A queue on a fresh request of one line with an EDGE flag."""
    queue.fd = fd
    queue.line_seqno = 0
    queue.edges = 0
    queue.lost = 0


cdef inline int edges_drain(EdgeQueue* queue, int64_t* stamps_ns, uint32_t* numbers, int room) noexcept nogil:
    """Take at most room edges, oldest first, without waiting; returns how many.

    A jump of numbers (from 1, may be NULL) says how many edges were lost before that one.
    """
    cdef gpio_v2_line_event events[EVENTS_PER_READ]
    cdef int taken = 0
    cdef int want, i
    cdef ssize_t got
    cdef uint32_t step
    if queue.fd < 0:
        return -ENODEV
    while taken < room:
        want = room - taken if room - taken < EVENTS_PER_READ else EVENTS_PER_READ
        got = c_read(queue.fd, events, <size_t>want * sizeof(gpio_v2_line_event))
        if got < 0:
            if errno == EAGAIN:
                break
            if errno == EINTR:
                continue
            return -errno
        got //= <ssize_t>sizeof(gpio_v2_line_event)
        for i in range(<int>got):
            step = events[i].line_seqno - queue.line_seqno
            queue.lost += step - 1
            queue.edges += step
            queue.line_seqno = events[i].line_seqno
            stamps_ns[taken] = <int64_t>events[i].timestamp_ns
            if numbers != NULL:
                numbers[taken] = queue.edges
            taken += 1
        if got < want:
            break
    return taken
