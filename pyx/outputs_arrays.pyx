# Why compiled: the loop's outputs as a Python object, for tests and for checking a board; the worker never loads it.
# Thread rule: one thread per object.
# Units: nanoseconds of CLOCK_MONOTONIC, duty in percent of the period.
"""The outputs of the loop on their own: slow PWM, kernel PWM and the hall sensor's edges."""

from libc.stdint cimport INT64_MAX, int64_t, uint32_t
from libc.string cimport memset

from stirbar.rt.clock cimport Clock, clock_real
from stirbar.rt.configure_outputs cimport configure_outputs, output_device
from stirbar.rt.gpio_lines cimport c_close, gpio_open
from stirbar.rt.hal cimport HalCounters
from stirbar.rt.histogram cimport HISTOGRAM_BINS, Histogram, histogram_edge_ns
from stirbar.rt.outputs cimport (
    Outputs, outputs_add_hall, outputs_add_kernel, outputs_add_line, outputs_close, outputs_duty, outputs_edges_read,
    outputs_init, outputs_period, outputs_pulse)
from stirbar.rt.pulse_lock cimport locked_period_ns as pulse_locked_period_ns
from stirbar.rt.sleep_policy cimport SleepPolicy
from stirbar.rt.tasks cimport Task, drive

import os

NEVER_NS = INT64_MAX


def locked_period_ns(int64_t chop_period_ns, int64_t wanted_ns):
    """The PWM period next to the wanted one that chopping removes (pulse_lock.pxd).

    Synchronization: pure.
    """
    return pulse_locked_period_ns(chop_period_ns, wanted_ns)


cdef void pulse_tick(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    policy.target_ns = outputs_pulse(<Outputs*>context, now_ns)


cdef int checked(int status, what) except -1:
    if status < 0:
        raise OSError(-status, f"{what}: {os.strerror(-status)}")
    return status


cdef class OutputLines:
    """Outputs on descriptors that the guard gave, and the hall sensor.

    Devices are named as in hardware profiles. Methods raise OSError with the kernel's errno (ENODEV: there is no such
    output). Synchronization: one thread.
    """
    cdef Outputs outputs
    cdef HalCounters hal_counters
    cdef Histogram late

    def __init__(self):
        memset(&self.hal_counters, 0, sizeof(HalCounters))
        memset(&self.late, 0, sizeof(Histogram))
        outputs_init(&self.outputs, &self.hal_counters)

    def configure(self, profile, guard):
        """Add what a profile (core/profiles.py) has and the guard (core/guard.py) gave; returns how many outputs."""
        return configure_outputs(&self.outputs, profile, guard)

    def add_line(self, device, int fd, int64_t period_ns, int64_t phase_ns=0):
        """A device on a GPIO line: fd is a request of that line alone."""
        checked(outputs_add_line(&self.outputs, output_device(device), fd, period_ns, phase_ns), device)

    def add_kernel(self, device, int period_fd, int duty_fd, int enable_fd, int64_t period_ns):
        """A device on a kernel PWM channel: its attributes, open for writing."""
        checked(outputs_add_kernel(
            &self.outputs, output_device(device), period_fd, duty_fd, enable_fd, period_ns), device)

    def add_hall(self, chip, uint32_t line):
        """Request the hall sensor's line of a chip such as /dev/gpiochip0."""
        cdef int fd = checked(gpio_open(os.fsencode(chip)), chip)
        cdef int status = outputs_add_hall(&self.outputs, fd, line)
        c_close(fd)
        checked(status, f"line {line} of {chip}")

    def duty(self, device, double percent, int64_t now_ns):
        """Let a device run at a duty from its next cycle on; 0 switches it off at once."""
        checked(outputs_duty(&self.outputs, output_device(device), percent, now_ns), device)

    def period(self, device, int64_t period_ns):
        """Period from the next cycle on; 0: the one it was added with."""
        checked(outputs_period(&self.outputs, output_device(device), period_ns), device)

    def pulse(self, int64_t now_ns):
        """Write the edges that are due; returns when the next one is, or NEVER_NS."""
        return outputs_pulse(&self.outputs, now_ns)

    def run_until(self, int64_t until_ns):
        """Write edges as they fall due until then, as the actuator thread does."""
        cdef Task task
        cdef Task* table[1]
        cdef Clock clock
        cdef uint32_t running = 1
        memset(&task, 0, sizeof(task))
        clock_real(&clock)
        task.run = pulse_tick
        task.context = &self.outputs
        task.lateness = &self.late
        task.policy.target_ns = outputs_pulse(&self.outputs, clock.now_ns(clock.context))
        table[0] = &task
        with nogil:
            drive(table, 1, &clock, until_ns, &running)

    def level(self, device):
        """What was last written to a device's line."""
        return self.outputs.output[output_device(device)].level

    def edges(self, int64_t now_ns, int room=64):
        """Stamps of the hall sensor's edges since the last call, at most `room` (up to 512), in order."""
        cdef int64_t stamps_ns[512]
        cdef int i, count
        count = checked(outputs_edges_read(&self.outputs, now_ns, stamps_ns, min(room, 512)), "hall sensor")
        return [stamps_ns[i] for i in range(count)]

    def counters(self):
        """What went wrong: {"edges_lost", "pulses_late", "line_errors"}."""
        return {name: dict(self.hal_counters)[name] for name in ("edges_lost", "pulses_late", "line_errors")}

    def lateness(self):
        """How late run_until wrote: [(low_ns, high_ns, count), ...] and the worst, ns."""
        cdef int i
        counts = [
            (histogram_edge_ns(i), histogram_edge_ns(i + 1), self.late.counts[i])
            for i in range(HISTOGRAM_BINS) if self.late.counts[i]
        ]
        return counts, self.late.worst_ns

    def close(self):
        """Everything off, and the hall sensor given back; returns how many outputs refused."""
        return outputs_close(&self.outputs)
