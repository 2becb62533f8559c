# Why compiled: what the loop has ordered of the simulated outputs, and when: what the fault tests hold to the envelope.
# Thread rule: the actuator thread writes; the host thread reads, in virtual time, between two runs of the loop.
# Units: nanoseconds of the loop's clock, duty in percent.

from libc.stdint cimport int32_t, int64_t, uint32_t

from stirbar.rt.ring cimport Ring, ring_init, ring_push

cdef enum:
    LOG_ROOM = 2048
    LOG_STIRRER = 0
    LOG_HEATER = 1
    LOG_PUMP = 2             # + DOSE_* of volume.pxd
    LOG_OUTPUTS = 5

cdef struct Order:
    int64_t time_ns
    double duty_percent
    int32_t output           # LOG_*
    int32_t pad

cdef struct SimLog:
    Ring ring
    Order order[LOG_ROOM]


cdef inline void log_init(SimLog* log) noexcept nogil:
    ring_init(&log.ring, <char*>log.order, sizeof(Order), LOG_ROOM)


cdef inline void log_order(SimLog* log, int output, double duty_percent, int64_t now_ns) noexcept nogil:
    """An order that finds no room is counted (Ring.dropped)."""
    cdef Order order
    order.time_ns = now_ns
    order.duty_percent = duty_percent
    order.output = output
    order.pad = 0
    ring_push(&log.ring, &order)
