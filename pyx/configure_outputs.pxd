# Why compiled: turns a hardware profile and what the guard gave into the struct of the loop's outputs.
# Thread rule: the host thread, before the loop's threads live.
# Units: those of the profile's keys.

from libc.errno cimport EINVAL
from libc.stdint cimport int64_t

from stirbar.rt.outputs cimport OUTPUTS, Outputs, outputs_add_kernel, outputs_add_line

cdef extern from *:
    """
    /* in the order of OUTPUT_* (outputs.pxd) */
    static const char *stirbar_output_names[] = {"stirring", "heating", "media", "alt_media", "waste"};
    """
    const char** stirbar_output_names


cdef inline int output_device(str name) except -1:
    """OUTPUT_* of a device's name in profiles; KeyError for a name that is none."""
    cdef int device
    for device in range(OUTPUTS):
        if stirbar_output_names[device].decode() == name:
            return device
    raise KeyError(name)


cdef inline int configure_outputs(Outputs* outputs, profile, guard) except -1:
    """Add the profile's PWM channels for which the guard (core/guard.py) gave descriptors, off; returns how many.

    Their phases are spread, so that no two cycles begin together. ValueError: a frequency that a line cannot have;
    OSError: an output that does not take its first order.
    """
    cdef int device, status
    cdef int added = 0
    cdef int64_t period_ns
    for device in range(OUTPUTS):
        name = stirbar_output_names[device].decode()
        section = profile.pwm(name)
        if section is None:
            continue
        period_ns = <int64_t>(1e9 / profile.get(section, "frequency_hz") + 0.5)
        is_line = profile.get(section, "kind") == "line"
        given = (guard.lines if is_line else guard.pwms).get(name)
        if given is None:
            continue
        if is_line:
            status = outputs_add_line(outputs, device, given, period_ns, period_ns // OUTPUTS * device)
        else:
            status = outputs_add_kernel(outputs, device, given[0], given[1], given[2], period_ns)
        if status == -EINVAL and is_line:
            raise ValueError(
                f"{profile.source(section, 'frequency_hz')}: [{section}] frequency_hz is too high for timed line"
                " writes; write at most 1000, or kind = sysfs")
        if status:
            raise OSError(-status, f"the output for {name} cannot be written")
        added += 1
    return added
