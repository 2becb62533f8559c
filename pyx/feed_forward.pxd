# Why compiled: the duty that a speed needs, asked for by the stirrer's controller on every edge.
# Thread rule: pure functions on one flat struct; the thread that owns the struct calls them.
# Units: rpm, duty in percent.
#
# A table of duties at equal steps of speed, straight between them and beyond its ends. The line of the config is a
# table of two points.

from libc.errno cimport EDOM, EINVAL

cdef enum:
    FORWARD_POINTS = 16
    FORWARD_LOW = 16       # parts of a table as it is given: the duties 0..15, then the speeds of the first and last
    FORWARD_HIGH = 17      # the last part puts it in force
    FORWARD_PARTS = 18
    FORWARD_LINE = 18      # and the line of the config again

cdef struct FeedForward:
    int points
    double low_rpm               # of the first point
    double per_rpm               # points a rpm
    double percent_per_rpm       # mean slope
    double idle_percent          # duty at which a turning rotor just keeps turning: the table at rest, at least 0
    double duty_percent[FORWARD_POINTS]
    double given[FORWARD_PARTS]  # of a table that is not whole yet


cdef inline double forward_percent(const FeedForward* f, double rpm) noexcept nogil:
    """The duty for a speed."""
    cdef double at = (rpm - f.low_rpm) * f.per_rpm
    cdef int i = 0
    if at >= f.points - 1:
        i = f.points - 2
    elif at > 0.0:
        i = <int>at
    return f.duty_percent[i] + (at - i) * (f.duty_percent[i + 1] - f.duty_percent[i])


cdef inline void forward_line(FeedForward* f, double offset_percent, double percent_per_rpm) noexcept nogil:
    """A straight line: offset at rest."""
    f.points = 2
    f.low_rpm = 0.0
    f.per_rpm = 1e-3
    f.percent_per_rpm = percent_per_rpm
    f.idle_percent = offset_percent
    f.duty_percent[0] = offset_percent
    f.duty_percent[1] = offset_percent + 1000.0 * percent_per_rpm


cdef inline int forward_give(FeedForward* f, int part, double value) noexcept nogil:
    """Take one part of a table; 1 when it was the last and the table is in force, 0 before.

    -EINVAL: no such part; -EDOM: the table does not rise, or is outside 0..100 %: the one in force stays.
    """
    cdef int i
    if not 0 <= part < FORWARD_PARTS:
        return -EINVAL
    f.given[part] = value
    if part < FORWARD_HIGH:
        return 0
    if not (0.0 <= f.given[FORWARD_LOW] and f.given[FORWARD_LOW] + 1.0 <= value <= 1e5):
        return -EDOM
    if not (0.0 <= f.given[0] and f.given[FORWARD_POINTS - 1] <= 100.0):
        return -EDOM
    for i in range(1, FORWARD_POINTS):
        if not f.given[i] > f.given[i - 1]:
            return -EDOM
    f.points = FORWARD_POINTS
    f.low_rpm = f.given[FORWARD_LOW]
    f.per_rpm = (FORWARD_POINTS - 1) / (value - f.low_rpm)
    for i in range(FORWARD_POINTS):
        f.duty_percent[i] = f.given[i]
    f.percent_per_rpm = (f.given[FORWARD_POINTS - 1] - f.given[0]) / (value - f.low_rpm)
    f.idle_percent = max(0.0, forward_percent(f, 0.0))
    return 1
