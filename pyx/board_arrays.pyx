# Why compiled: lets tests, `stirbar hardware check` and NumPy users drive a real board's functions one by one.
# Thread rule: an instance belongs to one thread; not while a worker drives the board.
# Units: nanoseconds of CLOCK_MONOTONIC, volts, percent of LED intensity, degrees Celsius; channels are 1..4.
"""A real board's converters, LED and sensors for NumPy users; never loaded by a worker."""

from libc.errno cimport EAGAIN, EBUSY
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset

import os

import numpy as np

from stirbar.rt.ads111x cimport ReadyTrack, ready_track_init, ready_track_push
from stirbar.rt.board cimport (
    CHIP_ADS, Board as CBoard, Source, board_dark, board_hal, board_sense_begin, board_sense_fetch)
from stirbar.rt.clock cimport CLOCK_MONOTONIC, read_clock_ns, real_sleep_until_ns
from stirbar.rt.configure_board cimport close_board, forget_board, open_board
from stirbar.rt.gpio_lines cimport (
    GPIO_V2_LINE_FLAG_EDGE_FALLING, GPIO_V2_LINE_FLAG_EDGE_RISING, GPIO_V2_LINE_FLAG_INPUT, GPIO_V2_LINE_FLAG_OUTPUT,
    EdgeQueue, c_close, edges_drain, edges_init, gpio_find, gpio_get, gpio_open, gpio_request, gpio_set)
from stirbar.rt.hal cimport PACE_HOST, AdcPlan, Conversion, Hal, HalCounters
from stirbar.rt.i2c_bus cimport I2cBus, recover_by_registers
from stirbar.rt.rp2040 cimport rp2040_judge

CONVERSION_DTYPE = np.dtype([
    ("ready_ns", "i8"), ("begin_ns", "i8"), ("index", "u4"), ("code", "i4"), ("clipped", "u1"), ("asked_ns", "i8"),
])
PACES = ("ready", "pilot", "host", "smoothed")


cdef int check(int status) except? -1:
    if status < 0:
        raise OSError(-status, os.strerror(-status))
    return status


cdef class Board:
    """The board of a profile (anything with `get(section, key)` and `name`), every LED off.

    `warnings` has a sentence for each chip that does not answer. Raises ConnectionError where there is no board.

    Synchronization: one thread.
    """
    cdef CBoard board
    cdef Hal hal
    cdef readonly list warnings

    def __cinit__(self, profile):
        forget_board(&self.board)

    def __init__(self, profile):
        close_board(&self.board)
        memset(&self.hal, 0, sizeof(Hal))
        self.hal.context = &self.board
        self.warnings = open_board(&self.board, profile)
        board_hal(&self.board, &self.hal)

    def __dealloc__(self):
        close_board(&self.board)

    def close(self):
        """LED off, everything closed. Safe to call twice."""
        close_board(&self.board)

    def plan(self, int channel):
        """How a channel is sampled: a dict of AdcPlan's fields. Raises OSError (ENODEV) where there is none."""
        cdef AdcPlan plan
        check(self.hal.adc_plan(self.hal.context, channel - 1, &plan))
        return {"pace": PACES[plan.pace], "converter": plan.converter, "rate_hz": plan.rate_hz,
                "conversion_hz": plan.conversion_hz, "read_ns": plan.read_ns, "light_ns": plan.light_ns,
                "settle_ns": plan.settle_ns}

    def start(self, int channel, double full_scale_v, double rate_hz=0.0):
        """Start a converter; rate 0 is the profile's. Raises OSError."""
        check(self.hal.adc_start(self.hal.context, channel - 1, full_scale_v, rate_hz, read_clock_ns(CLOCK_MONOTONIC)))

    def gain(self, int channel, double full_scale_v):
        """Another full scale. Raises OSError."""
        check(self.hal.adc_gain(self.hal.context, channel - 1, full_scale_v, read_clock_ns(CLOCK_MONOTONIC)))

    def convert(self, int channel):
        """Begin one conversion (pace host). Raises OSError."""
        check(self.hal.adc_convert(self.hal.context, channel - 1, read_clock_ns(CLOCK_MONOTONIC)))

    def read(self, int channel):
        """(ready_ns, begin_ns, index, code, clipped) of a conversion that was not fetched before, or None.

        Raises OSError.
        """
        cdef Conversion c
        if check(self.hal.adc_read(self.hal.context, channel - 1, read_clock_ns(CLOCK_MONOTONIC), &c)) == 0:
            return None
        return c.ready_ns, c.begin_ns, c.index, c.code, bool(c.clipped)

    def collect(self, int channel, int count, *, double interval_us=200.0, double timeout_s=10.0):
        """`count` conversions as a structured array (CONVERSION_DTYPE), asked for each `interval_us` on a fixed grid;
        fewer when the time is over. With pace host each is begun when the one before was read. Raises OSError."""
        cdef Conversion c
        cdef AdcPlan plan
        cdef int64_t interval_ns = <int64_t>(1000 * interval_us)
        cdef int64_t next_ns = read_clock_ns(CLOCK_MONOTONIC)
        cdef int64_t end_ns = next_ns + <int64_t>(1e9 * timeout_s)
        cdef int64_t now_ns
        cdef int status
        cdef int begun = 0
        cdef int done = 0
        check(self.hal.adc_plan(self.hal.context, channel - 1, &plan))
        rows = np.zeros(count, CONVERSION_DTYPE)
        while done < count and next_ns < end_ns:
            with nogil:
                real_sleep_until_ns(NULL, next_ns)
                now_ns = read_clock_ns(CLOCK_MONOTONIC)
                status = 0
                if plan.pace == PACE_HOST and not begun:
                    status = self.hal.adc_convert(self.hal.context, channel - 1, now_ns)
                    begun = status == 0
                if status == 0:
                    status = self.hal.adc_read(self.hal.context, channel - 1, now_ns, &c)
            if check(status):
                rows[done] = (c.ready_ns, c.begin_ns, c.index, c.code, c.clipped, now_ns)
                done += 1
                begun = 0
            next_ns = max(next_ns + interval_ns, now_ns - 10 * interval_ns)
        return rows[:done]

    def light(self, double percent):
        """Set the OD LED. Raises OSError."""
        check(self.hal.led_write(self.hal.context, percent, read_clock_ns(CLOCK_MONOTONIC)))

    def dark(self):
        """The OD LED off, whatever it takes. Raises OSError."""
        check(board_dark(&self.board))

    def temperature(self):
        """Of the heater board. Raises OSError."""
        cdef double celsius = 0
        check(self.hal.temperature_read(self.hal.context, read_clock_ns(CLOCK_MONOTONIC), &celsius))
        return celsius

    def rail(self):
        """Volts of the PWM rail. Raises OSError."""
        return self._sense(&self.board.rail) / self.board.rail_divider

    cdef double _sense(self, const Source* source) except *:
        """Begin, wait and fetch; while the converter works for a photodiode that comes first."""
        cdef double volts = 0
        cdef int status
        if source.chip == CHIP_ADS and self.board.ads[source.converter].began_ns:
            check(-EBUSY)
        check(board_sense_begin(&self.board, source))
        while True:
            status = board_sense_fetch(&self.board, source, read_clock_ns(CLOCK_MONOTONIC), &volts)
            if status != -EAGAIN:
                check(status)
                return volts
            real_sleep_until_ns(NULL, read_clock_ns(CLOCK_MONOTONIC) + 100000)

    def check_chips(self):
        """What is written to temperature sensor and LED driver is there, or written anew. Raises OSError."""
        check(self.hal.temperature_check(self.hal.context, read_clock_ns(CLOCK_MONOTONIC)))
        check(self.hal.led_check(self.hal.context, read_clock_ns(CLOCK_MONOTONIC)))

    def version_volts(self):
        """Volts at the input that tells the HAT's version. Raises OSError."""
        return self._sense(&self.board.version)

    def firmware(self):
        """(major, minor) of the microcontroller's firmware; (0, 0) where there is none."""
        return self.board.mcu.version_major, self.board.mcu.version_minor

    def counters(self):
        """What is counted, by name: HalCounters, and the bus's transfers, busy time and waits."""
        cdef HalCounters* c = &self.board.counters
        return {"bus_errors": c.bus_errors, "bus_timeouts": c.bus_timeouts, "bus_recoveries": c.bus_recoveries,
                "ready_lost": c.ready_lost, "garbage": c.garbage, "bus_transfers": self.board.bus.transfers,
                "bus_busy_ms": self.board.bus.busy_ms, "bus_waits": self.board.bus.waited,
                "bus_worst_us": self.board.bus.worst_us}


cdef class Lines:
    """Some lines of a GPIO chip (a number; None is that of the header): outputs with first values, or inputs.

    `edges`: "", "falling", "rising", for one input only; `queue` is the room for unread edges (0: the kernel's 16).
    Raises OSError.

    Synchronization: one thread.
    """
    cdef int chip
    cdef int fd
    cdef int count
    cdef EdgeQueue queue

    def __cinit__(self):
        self.chip = self.fd = -1

    def __init__(self, lines, *, bint output=False, uint64_t values=0, str edges="", int queue=0, number=None):
        cdef uint32_t[64] offsets
        cdef int found = -1
        cdef int i
        cdef uint64_t flags = GPIO_V2_LINE_FLAG_OUTPUT if output else GPIO_V2_LINE_FLAG_INPUT
        if not 0 < len(lines) <= 64:
            raise ValueError("a request is of 1 to 64 lines")
        for i in range(len(lines)):
            offsets[i] = lines[i]
        if edges:
            flags |= {"falling": GPIO_V2_LINE_FLAG_EDGE_FALLING, "rising": GPIO_V2_LINE_FLAG_EDGE_RISING}[edges]
        self.count = len(lines)
        self.chip = check(gpio_find(&found) if number is None else gpio_open(f"/dev/gpiochip{number}".encode()))
        self.fd = check(gpio_request(self.chip, offsets, self.count, flags, values, b"stirbar test", queue))
        edges_init(&self.queue, self.fd)

    def __dealloc__(self):
        self.close()

    def close(self):
        """Release the lines. Safe to call twice."""
        for fd in (self.fd, self.chip):
            if fd >= 0:
                c_close(fd)
        self.chip = self.fd = -1

    def set(self, uint64_t mask, uint64_t bits):
        """Write outputs. Raises OSError."""
        check(gpio_set(self.fd, mask, bits))

    def get(self):
        """Levels as bits, in the order of the request. Raises OSError."""
        cdef uint64_t bits = 0
        check(gpio_get(self.fd, (<uint64_t>1 << (self.count - 1) << 1) - 1, &bits))
        return bits

    def take_edges(self, int room=64):
        """(stamps in ns, numbers from 1) of edges that were waiting. Raises OSError."""
        cdef int64_t[1024] stamps
        cdef uint32_t[1024] numbers
        cdef int i
        cdef int count = check(edges_drain(&self.queue, stamps, numbers, min(room, 1024)))
        return [stamps[i] for i in range(count)], [numbers[i] for i in range(count)]

    @property
    def lost(self):
        """Edges that fell out of the kernel's queue."""
        return self.queue.lost


def ready_numbers(stamps_ns, double conversion_hz):
    """Numbers of the conversions whose ends these edges are (int64[n], ns); -1 for an edge that is none's."""
    cdef ReadyTrack track
    cdef int64_t stamp
    ready_track_init(&track, conversion_hz)
    numbers = []
    for stamp in stamps_ns:
        numbers.append(track.index if ready_track_push(&track, stamp) else -1)
    return np.array(numbers, np.int64)


def judge_answers(int last, int first, int again, int maximum=65535):
    """What a second look at a RP2040's answer says: "lost", "step" (both are true), "garbled" (only the second is)."""
    return ("lost", "step", "garbled")[rp2040_judge(last, first, again, maximum)]


def free_bus(uint32_t[::1] registers):
    """Clock a held bus free by a register file (at least 14 words, changed in place): 1 it was held and is free, 0 it
    was not held, -1 it stays held."""
    cdef I2cBus bus
    cdef int status
    if registers.shape[0] < 14:
        raise ValueError(f"a register file has 14 words at least, not {registers.shape[0]}")
    memset(&bus, 0, sizeof(bus))
    bus.sda = 2
    bus.scl = 3
    bus.registers = &registers[0]
    status = recover_by_registers(&bus)
    return status if status >= 0 else -1
