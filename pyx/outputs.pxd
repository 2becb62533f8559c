# Why compiled: line writes at absolute deadlines make the slow PWM of stirrer, heater and pumps; Python would delay it.
# Thread rule: the actuator thread; init, add and close are for the host thread while the loop does not run.
# Units: nanoseconds of CLOCK_MONOTONIC, duty in percent of the period.
#
# The descriptors come from the guard (pyx/guard/guard.c); only the hall sensor's line is requested here. Functions
# return 0 or a count, and minus an errno.

from libc.errno cimport EINVAL, EIO, ENODEV, errno
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.gpio_lines cimport (
    GPIO_V2_LINE_FLAG_BIAS_PULL_UP, GPIO_V2_LINE_FLAG_EDGE_FALLING, GPIO_V2_LINE_FLAG_INPUT, EdgeQueue, c_close,
    edges_drain, edges_init, gpio_request, gpio_set)
from stirbar.rt.hal cimport HalCounters

cdef extern from "<unistd.h>" nogil:
    ssize_t c_pwrite "pwrite" (int fd, const void* data, size_t size, long offset)

cdef enum:                   # what moves; at most one output each
    OUTPUT_STIRRING = 0
    OUTPUT_HEATING = 1
    OUTPUT_MEDIA = 2
    OUTPUT_ALT_MEDIA = 3
    OUTPUT_WASTE = 4
    OUTPUTS = 5

cdef enum:                   # Output.kind
    OUTPUT_ABSENT = 0
    OUTPUT_LINE = 1          # a GPIO line, written at each edge of its PWM
    OUTPUT_KERNEL = 2        # a PWM channel of the kernel's: one write a change

cdef enum:
    HALL_QUEUE = 256         # edges that the kernel holds for us: 4 s at 60 a second
    PERIOD_LOW_NS = 1000000  # a line cannot be pulsed faster than 1 kHz without being late most of the time

cdef struct Output:
    int32_t kind
    int32_t level            # of a line: what was written last
    int fd                   # OUTPUT_LINE: the line's request; OUTPUT_KERNEL: the channel's duty_cycle
    int period_fd            # OUTPUT_KERNEL
    int enable_fd
    int32_t enabled
    double duty_percent      # asked for; in force from the next cycle on, 0 at once
    int64_t own_period_ns    # the profile's
    int64_t next_period_ns   # from the next cycle on
    int64_t period_ns        # of the cycle under way
    int64_t phase_ns         # from rest, cycles begin at multiples of the period plus this
    int64_t cycle_ns         # when the cycle under way began
    int64_t due_ns           # of the next edge; INT64_MAX: none

cdef struct Outputs:
    Output output[OUTPUTS]
    EdgeQueue hall
    HalCounters* counters


cdef inline int pwm_write(int fd, int64_t number) noexcept nogil:
    """Write an attribute of a kernel PWM channel: decimal, at offset 0 of a file that is open already."""
    cdef char text[20]
    cdef int at = sizeof(text)
    cdef ssize_t written
    while True:
        at -= 1
        text[at] = <char>(48 + number % 10)
        number //= 10
        if number == 0:
            break
    written = c_pwrite(fd, &text[at], sizeof(text) - at, 0)
    if written < 0:
        return -errno
    return 0 if written == <ssize_t>sizeof(text) - at else -EIO


cdef inline int64_t output_on_ns(const Output* output, int64_t period_ns) noexcept nogil:
    return <int64_t>(0.01 * output.duty_percent * <double>period_ns + 0.5)


cdef inline int output_level(Output* output, int level) noexcept nogil:
    output.level = level
    return gpio_set(output.fd, 1, level)


cdef inline int output_begin(Output* output, int64_t cycle_ns, int64_t now_ns) noexcept nogil:
    """The cycle that contains now, begun at cycle_ns, with the duty and the period that were asked for."""
    cdef int64_t on_ns
    output.cycle_ns = cycle_ns
    output.period_ns = output.next_period_ns
    on_ns = output_on_ns(output, output.period_ns)
    if on_ns >= output.period_ns:
        output.due_ns = cycle_ns + output.period_ns  # written again each cycle: the guard may have switched it off
        return output_level(output, 1)
    if now_ns - cycle_ns >= on_ns:
        output.due_ns = cycle_ns + output.period_ns
        return output_level(output, 0)
    output.due_ns = cycle_ns + on_ns
    return output_level(output, 1)


cdef inline int output_edge(Output* output, int64_t now_ns) noexcept nogil:
    """The edge that is due. Cycles that passed unwritten are skipped; the phase is kept."""
    cdef int64_t end_ns = output.cycle_ns + output.period_ns
    if now_ns < end_ns:
        output.due_ns = end_ns
        return output_level(output, 0)
    if now_ns - end_ns >= output.next_period_ns:
        end_ns += (now_ns - end_ns) // output.next_period_ns * output.next_period_ns
    return output_begin(output, end_ns, now_ns)


cdef inline int kernel_set(Output* output, double duty_percent, int64_t period_ns) noexcept nogil:
    """Duty and period of a kernel channel: at no time a duty longer than the period, which the kernel refuses."""
    cdef int status = 0
    output.duty_percent = duty_percent
    if period_ns > output.period_ns:
        status = pwm_write(output.period_fd, period_ns)
    if status == 0:
        status = pwm_write(output.fd, output_on_ns(output, period_ns))
    if status == 0 and period_ns < output.period_ns:
        status = pwm_write(output.period_fd, period_ns)
    if status == 0:
        output.period_ns = period_ns
        if duty_percent > 0 and not output.enabled:
            status = pwm_write(output.enable_fd, 1)
            output.enabled = status == 0
    return status


cdef inline int output_off(Output* output) noexcept nogil:
    """Off, now."""
    cdef int status, disabled
    output.duty_percent = 0
    if output.kind == OUTPUT_LINE:
        output.due_ns = INT64_MAX
        return output_level(output, 0)
    if output.kind == OUTPUT_KERNEL:
        status = pwm_write(output.fd, 0)
        disabled = pwm_write(output.enable_fd, 0)
        output.enabled = 0
        return status if status else disabled
    return 0


cdef inline int outputs_duty(Outputs* outputs, int device, double duty_percent, int64_t now_ns) noexcept nogil:
    """Let a device run at a duty: 0 switches it off at once, a change is in force from its next cycle on."""
    cdef Output* output = &outputs.output[device]
    if not 0.0 <= duty_percent <= 100.0:
        return -EINVAL
    if duty_percent == 0.0:
        return output_off(output)
    if output.kind == OUTPUT_ABSENT:
        return -ENODEV
    if output.kind == OUTPUT_KERNEL:
        return kernel_set(output, duty_percent, output.period_ns)
    output.duty_percent = duty_percent
    if output.due_ns != INT64_MAX:
        return 0
    return output_begin(output, now_ns - (now_ns - output.phase_ns) % output.next_period_ns, now_ns)


cdef inline int outputs_period(Outputs* outputs, int device, int64_t period_ns) noexcept nogil:
    """Period of a device's PWM from its next cycle on; 0: the profile's own."""
    cdef Output* output = &outputs.output[device]
    if output.kind == OUTPUT_ABSENT:
        return -ENODEV
    if period_ns == 0:
        period_ns = output.own_period_ns
    if period_ns < 0 or (output.kind == OUTPUT_LINE and period_ns < PERIOD_LOW_NS):
        return -EINVAL
    if output.kind == OUTPUT_KERNEL:
        return kernel_set(output, output.duty_percent, period_ns)
    output.next_period_ns = period_ns
    return 0


cdef inline bint outputs_can_pulse(const Outputs* outputs, int device, int64_t period_ns) noexcept nogil:
    """Whether a device's PWM can have this period."""
    return outputs.output[device].kind != OUTPUT_LINE or period_ns >= PERIOD_LOW_NS


# --- what stands behind Hal ------------------------------------------------------------------------------------------


cdef inline int64_t outputs_pulse(Outputs* outputs, int64_t now_ns) noexcept nogil:
    """Hal.pulse: write the edges that are due; returns when the next one is."""
    cdef int64_t next_ns = INT64_MAX
    cdef Output* output
    cdef int i
    for i in range(OUTPUTS):
        output = &outputs.output[i]
        if output.kind != OUTPUT_LINE:
            continue
        if now_ns >= output.due_ns:
            if now_ns - output.due_ns > output.period_ns // 10 and output.duty_percent < 100.0:
                outputs.counters.pulses_late += 1
            if output_edge(output, now_ns):
                outputs.counters.line_errors += 1
        if output.due_ns < next_ns:
            next_ns = output.due_ns
    return next_ns


cdef inline int outputs_stirrer_period(Outputs* outputs, int64_t period_ns, int64_t now_ns) noexcept nogil:
    """Hal.stirrer_period"""
    return outputs_period(outputs, OUTPUT_STIRRING, period_ns)


cdef inline int outputs_edges_read(Outputs* outputs, int64_t now_ns, int64_t* stamps_ns, int room) noexcept nogil:
    """Hal.edges_read: what the kernel has stamped, without waiting."""
    cdef int count = edges_drain(&outputs.hall, stamps_ns, NULL, room)
    outputs.counters.edges_lost = outputs.hall.lost
    return count


# --- host thread -----------------------------------------------------------------------------------------------------


cdef inline void outputs_init(Outputs* outputs, HalCounters* counters) noexcept nogil:
    """No outputs and no hall sensor yet; counters must outlive it."""
    memset(outputs, 0, sizeof(Outputs))
    edges_init(&outputs.hall, -1)
    outputs.counters = counters


cdef inline int outputs_add_line(
        Outputs* outputs, int device, int fd, int64_t period_ns, int64_t phase_ns) noexcept nogil:
    """A device on a GPIO line, low now; fd is a request of this one line, and stays the caller's to close."""
    cdef Output* output = &outputs.output[device]
    if period_ns < PERIOD_LOW_NS or phase_ns < 0:
        return -EINVAL
    output.kind = OUTPUT_LINE
    output.fd = fd
    output.own_period_ns = output.next_period_ns = output.period_ns = period_ns
    output.phase_ns = phase_ns
    output.due_ns = INT64_MAX
    return output_off(output)


cdef inline int outputs_add_kernel(
        Outputs* outputs, int device, int period_fd, int duty_fd, int enable_fd, int64_t period_ns) noexcept nogil:
    """A device on a PWM channel of the kernel's, off now; its open attributes stay the caller's to close."""
    cdef Output* output = &outputs.output[device]
    cdef int status
    if period_ns <= 0:
        return -EINVAL
    output.kind = OUTPUT_KERNEL
    output.fd = duty_fd
    output.period_fd = period_fd
    output.enable_fd = enable_fd
    output.own_period_ns = output.next_period_ns = output.period_ns = period_ns
    output.due_ns = INT64_MAX
    status = output_off(output)
    return status if status else pwm_write(period_fd, period_ns)


cdef inline int outputs_add_hall(Outputs* outputs, int chip, uint32_t line) noexcept nogil:
    """Request the hall sensor's line: falling edges, one for each pass of a magnet, stamped by the kernel."""
    cdef int fd = gpio_request(
        chip, &line, 1, GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_EDGE_FALLING | GPIO_V2_LINE_FLAG_BIAS_PULL_UP, 0,
        "stirbar hall", HALL_QUEUE)
    if fd < 0:
        return fd
    edges_init(&outputs.hall, fd)
    return 0


cdef inline int outputs_off(Outputs* outputs) noexcept nogil:
    """Everything off; returns how many outputs refused."""
    cdef int i
    cdef int refused = 0
    for i in range(OUTPUTS):
        refused += output_off(&outputs.output[i]) != 0
    outputs.counters.line_errors += <uint32_t>refused
    return refused


cdef inline int outputs_close(Outputs* outputs) noexcept nogil:
    """Everything off, and the hall sensor's line given back; returns how many outputs refused."""
    cdef int i
    cdef int refused = outputs_off(outputs)
    for i in range(OUTPUTS):
        outputs.output[i].kind = OUTPUT_ABSENT
    if outputs.hall.fd >= 0:
        c_close(outputs.hall.fd)
        outputs.hall.fd = -1
    return refused
