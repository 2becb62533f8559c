# Why compiled: the loop's only way to hardware; behind it stands a Pi, a simulated vial, or a recording.
# Thread rule: each function belongs to the one thread named beside it; a board may not share state between the two
#   threads except through single-writer 32-bit values.
# Units: nanoseconds of the loop's clock, volts, percent 0..100, degrees Celsius. Channels are 0..3.
#
# Every function returns 0 or a count when it worked, and minus an errno when it did not (-ENODEV: the board has no such
# thing). None blocks for longer than the bus's time-out (20 ms).

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef enum:                 # AdcPlan.pace: who says when a conversion ends
    PACE_READY = 0         # free-running; the converter's ALERT/RDY line, stamped by the kernel
    PACE_PILOT = 1         # free-running and silent: the light's own edges (pilot.pxd)
    PACE_HOST = 2          # single-shot: adc_convert starts each conversion
    PACE_SMOOTHED = 3      # a microcontroller's running mean, looked at whenever the host likes

# How a channel is sampled on this board.
cdef struct AdcPlan:
    int32_t pace
    int32_t converter      # channels with equal numbers share one converter and take turns (PACE_HOST)
    int32_t lends_rail     # PACE_HOST: its converter measures the PWM rail as well, where a conversion is left out
    double rate_hz         # distinct conversions a second of this channel that are planned, nominal
    double conversion_hz   # the chip's own rate: 1 / conversion_hz is how long it integrates
    int64_t read_ns        # bus time of adc_read
    int64_t light_ns       # bus time of led_write
    int64_t settle_ns      # of the light path after a change of the LED, to 0.1 %, as the profile says

cdef struct Conversion:
    int64_t ready_ns   # end of the conversion; PACE_PILOT and PACE_SMOOTHED: when the chip latched what was read
    int64_t begin_ns   # PACE_HOST: when it began, else 0
    uint32_t index     # PACE_READY, PACE_HOST: counts conversions, a jump says how many were missed; else counts reads
    int32_t code       # two's complement, left-justified to 16 bits
    uint8_t clipped    # 1: the code is at the converter's limit

# What goes wrong below the interface; single writer each, only ever grow.
cdef struct HalCounters:
    uint32_t bus_errors        # transfers that failed
    uint32_t bus_timeouts      # of these, by time-out
    uint32_t bus_recoveries    # times that SCL was clocked by hand
    uint32_t ready_lost        # ALERT/RDY edges that fell out of the kernel's queue
    uint32_t edges_lost        # tachometer edges that did
    uint32_t garbage           # answers that cannot be
    uint32_t pulses_late       # slow PWM edges written later than a tenth of their period
    uint32_t line_errors       # writes of lines and PWM channels that failed

cdef struct Hal:
    void* context
    HalCounters* counters      # NULL: nothing is counted
    # --- sampling thread: the I2C bus ---
    int (*adc_plan)(void* context, int channel, AdcPlan* plan) noexcept nogil
    # start conversion of a channel at a full scale (PACE_HOST: set up only)
    int (*adc_start)(void* context, int channel, double full_scale_v, double rate_hz, int64_t now_ns) noexcept nogil
    # another full scale; free-running converters: from the conversion after the one under way on
    int (*adc_gain)(void* context, int channel, double full_scale_v, int64_t now_ns) noexcept nogil
    # PACE_HOST: begin one conversion
    int (*adc_convert)(void* context, int channel, int64_t now_ns) noexcept nogil
    # fetch the newest conversion: 1 there is one that was not fetched before, 0 there is none.
    # PACE_PILOT and PACE_SMOOTHED: 1 at each read, whether the register has changed or not
    int (*adc_read)(void* context, int channel, int64_t now_ns, Conversion* conversion) noexcept nogil
    # set the OD LED; the light changes before this returns; 0 is the driver's power-down, truly dark
    int (*led_write)(void* context, double intensity_percent, int64_t now_ns) noexcept nogil
    # set an LED channel (0..3: A..D), in steps of LED_FULL_CODE; -EAGAIN: not yet, it takes another transfer
    int (*led_channel_write)(void* context, int channel, double percent, int64_t now_ns) noexcept nogil
    int (*temperature_read)(void* context, int64_t now_ns, double* celsius) noexcept nogil
    # see that the chip holds what was written to it, and write it anew where it does not
    int (*temperature_check)(void* context, int64_t now_ns) noexcept nogil
    int (*led_check)(void* context, int64_t now_ns) noexcept nogil
    # voltage of the PWM rail: begin to measure it, then fetch it. -EAGAIN: not there yet; -EBUSY: its converter is at
    # work for a photodiode
    int (*rail_convert)(void* context, int64_t now_ns) noexcept nogil
    int (*rail_read)(void* context, int64_t now_ns, double* volts) noexcept nogil
    # --- actuator thread: GPIO and PWM ---
    # fetch tachometer edges in order; returns how many, at most room
    int (*edges_read)(void* context, int64_t now_ns, int64_t* stamps_ns, int room) noexcept nogil
    int (*stirrer_write)(void* context, double duty_percent, int64_t now_ns) noexcept nogil
    int (*heater_write)(void* context, double duty_percent, int64_t now_ns) noexcept nogil
    # a pump (DOSE_* of volume.pxd) at a duty, 0: off
    int (*pump_write)(void* context, int pump, double duty_percent, int64_t now_ns) noexcept nogil
    # slow PWM by timed line writes: do what is due, return when to be called next (INT64_MAX: nothing pulses);
    # NULL: the board has none
    int64_t (*pulse)(void* context, int64_t now_ns) noexcept nogil
    # period of the stirrer's PWM from its next cycle on; 0: the profile's own
    int (*stirrer_period)(void* context, int64_t period_ns, int64_t now_ns) noexcept nogil
