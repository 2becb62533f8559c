# Why compiled: the loop's only way to hardware; behind it stands a Pi, a simulated vial, or a recording.
# Thread rule: each function belongs to the one thread named beside it; a board may not share state between the two
#   threads except through single-writer 32-bit values.
# Units: nanoseconds of the loop's clock, volts, percent 0..100, degrees Celsius. Channels are 0..3.
#
# Every function returns 0 or a count when it worked, and minus an errno when it did not. None blocks for longer than
# the bus's time-out (20 ms).

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef struct Conversion:
    int64_t ready_ns   # when the converter finished it (edge of ALERT/RDY), on the loop's clock
    uint32_t index     # counts the converter's own conversions; a jump says how many were missed
    int32_t code       # two's complement, left-justified to 16 bits
    uint8_t clipped    # 1: the code is at the converter's limit

cdef struct Hal:
    void* context
    # --- sampling thread: the I2C bus ---
    # start continuous conversion of a channel at a full scale; returns 0
    int (*adc_start)(void* context, int channel, double full_scale_v, double rate_hz, int64_t now_ns) noexcept nogil
    # fetch the newest conversion: 1 there is one that was not fetched before, 0 there is none
    int (*adc_read)(void* context, int channel, int64_t now_ns, Conversion* conversion) noexcept nogil
    # set the OD LED; the light changes before this returns
    int (*led_write)(void* context, double intensity_percent, int64_t now_ns) noexcept nogil
    int (*temperature_read)(void* context, int64_t now_ns, double* celsius) noexcept nogil
    # --- actuator thread: GPIO and PWM ---
    # fetch tachometer edges in order; returns how many, at most room
    int (*edges_read)(void* context, int64_t now_ns, int64_t* stamps_ns, int room) noexcept nogil
    int (*stirrer_write)(void* context, double duty_percent, int64_t now_ns) noexcept nogil
