# Why compiled: a real board as the loop sees it: what the sampling thread reads and what the actuator thread moves.
# Thread rule: the board is the sampling thread's, the outputs are the actuator thread's; they share nothing but
#   counters, each of which one of them writes.
# Units: nanoseconds of CLOCK_MONOTONIC, percent 0..100.

from libc.errno cimport ENODEV
from libc.stdint cimport int64_t

from stirbar.rt.board cimport Board, board_hal
from stirbar.rt.hal cimport Hal
from stirbar.rt.outputs cimport (
    OUTPUT_ABSENT, OUTPUT_HEATING, OUTPUT_MEDIA, OUTPUT_STIRRING, Outputs, outputs_duty, outputs_edges_read,
    outputs_pulse, outputs_stirrer_period)

cdef struct Hardware:
    Board board              # first: the sampling thread's functions take the context for a Board
    Outputs outputs


cdef inline int hardware_edges_read(void* context, int64_t now_ns, int64_t* stamps_ns, int room) noexcept nogil:
    """A board without a hall sensor has no edges."""
    cdef Outputs* outputs = &(<Hardware*>context).outputs
    return outputs_edges_read(outputs, now_ns, stamps_ns, room) if outputs.hall.fd >= 0 else 0


cdef inline int hardware_write(Outputs* outputs, int device, double duty_percent, int64_t now_ns) noexcept nogil:
    """What the board does not have is off."""
    if outputs.output[device].kind == OUTPUT_ABSENT:
        return 0 if duty_percent == 0 else -ENODEV
    return outputs_duty(outputs, device, duty_percent, now_ns)


cdef inline int hardware_stirrer_write(void* context, double duty_percent, int64_t now_ns) noexcept nogil:
    return hardware_write(&(<Hardware*>context).outputs, OUTPUT_STIRRING, duty_percent, now_ns)


cdef inline int hardware_heater_write(void* context, double duty_percent, int64_t now_ns) noexcept nogil:
    return hardware_write(&(<Hardware*>context).outputs, OUTPUT_HEATING, duty_percent, now_ns)


cdef inline int hardware_pump_write(void* context, int pump, double duty_percent, int64_t now_ns) noexcept nogil:
    return hardware_write(&(<Hardware*>context).outputs, OUTPUT_MEDIA + pump, duty_percent, now_ns)


cdef inline int64_t hardware_pulse(void* context, int64_t now_ns) noexcept nogil:
    return outputs_pulse(&(<Hardware*>context).outputs, now_ns)


cdef inline int hardware_stirrer_period(void* context, int64_t period_ns, int64_t now_ns) noexcept nogil:
    """Without a stirrer there is nothing to keep in step."""
    cdef Outputs* outputs = &(<Hardware*>context).outputs
    if outputs.output[OUTPUT_STIRRING].kind == OUTPUT_ABSENT:
        return 0
    return outputs_stirrer_period(outputs, period_ns, now_ns)


cdef inline void hardware_hal(Hardware* hardware, Hal* hal) noexcept nogil:
    hal.context = hardware
    board_hal(&hardware.board, hal)
    hal.edges_read = hardware_edges_read
    hal.stirrer_write = hardware_stirrer_write
    hal.heater_write = hardware_heater_write
    hal.pump_write = hardware_pump_write
    hal.pulse = hardware_pulse
    hal.stirrer_period = hardware_stirrer_period
