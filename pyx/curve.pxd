# Why compiled: a calibration turns each reading of a photodiode into a density, live and in replays.
# Thread rule: pure; the sampling thread (or a replay) runs it on state that it owns; curve_prepare is for the host.
# Units: x the density (or whatever the calibration's x is), y the uncalibrated value.
#
# All members have eight bytes and no pointers, so a curve travels through the trace word by word (TRACE_CURVE).

from libc.errno cimport EINVAL
from libc.math cimport NAN, fabs, isfinite, sqrt
from libc.stdint cimport int64_t
from libc.string cimport memset

cdef enum:
    CURVE_PIECES = 24        # cubic pieces between knots
    CURVE_COEFFICIENTS = 10  # of a polynomial
    CURVE_TURNS = 10         # ends of the range, and extrema within it
    CURVE_STEPS = 64         # of the root finding, at most

cdef enum:                   # Curve.kind
    CURVE_NONE = 0
    CURVE_POLYNOMIAL = 1
    CURVE_CUBICS = 2         # natural spline or Akima: both are cubics between knots

cdef enum:                   # what curve_inverse says of a y
    CURVE_INSIDE = 0
    CURVE_BELOW = 1          # x would be below the range
    CURVE_ABOVE = 2          # x would be above it
    CURVE_BEYOND = 3         # no x of the range gives it: it is past an extremum of the curve

cdef struct Cubics:
    int64_t pieces
    double knot[CURVE_PIECES + 1]
    double coefficient[4 * CURVE_PIECES]   # of each piece, lowest power first, in x - knot

cdef struct Curve:
    int64_t kind
    int64_t turns
    double intensity_percent         # of the LED when it was made
    double residual                  # standard deviation of its standards about it, unit of y; NaN: not known
    double turn_x[CURVE_TURNS]       # the range's low end, the extrema within, the high end
    double turn_y[CURVE_TURNS]
    Cubics cubics                    # of a polynomial: `pieces` coefficients, highest power first

cdef struct CurvePoint:
    double y
    double slope
    double bend                      # second derivative


cdef inline CurvePoint cubics_at(const Cubics* c, double x) noexcept nogil:
    """Value and derivatives; outside the knots the first or last cubic goes on."""
    cdef CurvePoint point
    cdef const double* k
    cdef double u
    cdef int64_t i = 0
    while i + 1 < c.pieces and x >= c.knot[i + 1]:
        i += 1
    k = &c.coefficient[4 * i]
    u = x - c.knot[i]
    point.y = k[0] + u * (k[1] + u * (k[2] + u * k[3]))
    point.slope = k[1] + u * (2.0 * k[2] + 3.0 * u * k[3])
    point.bend = 2.0 * k[2] + 6.0 * u * k[3]
    return point


cdef inline CurvePoint polynomial_at(const double* coefficient, int64_t count, double x) noexcept nogil:
    """Horner's scheme for value and derivatives; highest power first."""
    cdef CurvePoint point
    cdef double half_bend = 0.0
    cdef int64_t i
    point.y = 0.0
    point.slope = 0.0
    for i in range(count):
        half_bend = half_bend * x + point.slope
        point.slope = point.slope * x + point.y
        point.y = point.y * x + coefficient[i]
    point.bend = 2.0 * half_bend
    return point


cdef inline CurvePoint curve_at(const Curve* c, double x) noexcept nogil:
    if c.kind == CURVE_POLYNOMIAL:
        return polynomial_at(&c.cubics.coefficient[0], c.cubics.pieces, x)
    return cubics_at(&c.cubics, x)


cdef inline double curve_root(const Curve* c, double y, int64_t run, double start) noexcept nogil:
    """x of y within a monotone run of the curve, whose ends' y enclose it: Newton's steps, halving where they leave."""
    cdef double low = c.turn_x[run]
    cdef double high = c.turn_x[run + 1]
    cdef double rising = 1.0 if c.turn_y[run + 1] >= c.turn_y[run] else -1.0
    cdef double span = c.turn_y[run + 1] - c.turn_y[run]
    cdef double close_enough = 1e-15 * (fabs(low) + fabs(high)) + 1e-300
    cdef double x = start
    cdef double step
    cdef CurvePoint point
    cdef int i
    if not low < x < high:
        x = low + (high - low) * ((y - c.turn_y[run]) / span)
        if not low <= x <= high:
            x = 0.5 * (low + high)
    for i in range(CURVE_STEPS):
        point = curve_at(c, x)
        if point.y == y:
            return x
        if (point.y - y) * rising < 0.0:
            low = x
        else:
            high = x
        step = (y - point.y) / point.slope if point.slope != 0.0 else NAN
        if not low < x + step < high:
            step = 0.5 * (low + high) - x
        x += step
        if fabs(step) <= close_enough:
            break
    return x


cdef inline int curve_inverse(const Curve* c, double y, double previous, double* x) noexcept nogil:
    """The x that gives y, within the range; returns CURVE_*.

    Of several, the one nearest to `previous` (a culture moves on steadily), without one (NaN) the lowest. Where there
    is none, the end or extremum whose y is nearest.
    """
    cdef double best = NAN
    cdef double root, gap
    cdef double nearest = -1.0
    cdef int64_t i, at
    for i in range(c.turns - 1):
        if (c.turn_y[i] < y and c.turn_y[i + 1] < y) or (c.turn_y[i] > y and c.turn_y[i + 1] > y):
            continue
        root = curve_root(c, y, i, previous)
        if best != best or fabs(root - previous) < fabs(best - previous):
            best = root
    if best == best:
        x[0] = best
        return CURVE_INSIDE
    at = 0
    x[0] = c.turn_x[0]
    for i in range(c.turns):
        gap = fabs(c.turn_y[i] - y)
        if nearest < 0.0 or gap < nearest or (gap == nearest and fabs(c.turn_x[i] - previous) < fabs(x[0] - previous)):
            nearest = gap
            at = i
            x[0] = c.turn_x[i]
    if at == 0:
        return CURVE_BELOW
    return CURVE_ABOVE if at == c.turns - 1 else CURVE_BEYOND


cdef inline double curve_error(double error_y, const CurvePoint* point) noexcept nogil:
    """Standard error of x from that of y: error_y / |slope|, where the curve is straight.

    It is the root of |slope| e + |bend| e^2 / 2 = error_y, so at an extremum it is sqrt(2 error_y / |bend|).
    """
    cdef double slope = fabs(point.slope)
    cdef double down = slope + sqrt(slope * slope + 2.0 * fabs(point.bend) * error_y)
    return 2.0 * error_y / down if down > 0.0 else NAN


# --- for the host: checking, and finding the extrema -----------------------------------------------------------------

cdef inline int bisect_polynomial(
    const double* coefficient, int64_t count, double low, double high, double* root
) noexcept nogil:
    """1 and the root between two x of different sign, or 0."""
    cdef double at_low = polynomial_at(coefficient, count, low).y
    cdef double at_high = polynomial_at(coefficient, count, high).y
    cdef double middle, y
    cdef int i
    if at_low == 0.0 or (at_high != 0.0 and (at_low > 0.0) == (at_high > 0.0)):
        return 0
    for i in range(200):
        middle = 0.5 * (low + high)
        y = polynomial_at(coefficient, count, middle).y
        if (y < 0.0) == (at_low < 0.0):
            low = middle
        else:
            high = middle
    root[0] = 0.5 * (low + high)
    return 1


cdef inline int polynomial_extrema(
    const double* coefficient, int64_t count, double low, double high, double* extremum
) noexcept nogil:
    """Roots of the first derivative within (low, high), ascending: between those of the second, and so on down."""
    cdef double derived[CURVE_COEFFICIENTS]
    cdef double root[CURVE_COEFFICIENTS + 2]
    cdef double found[CURVE_COEFFICIENTS]
    cdef int64_t order, i, power, terms
    cdef int roots = 0
    cdef int n
    for order in range(count - 2, 0, -1):
        terms = count - order
        for i in range(terms):
            derived[i] = coefficient[i]
            for power in range(count - 1 - i, count - 1 - i - order, -1):
                derived[i] *= power
        root[0] = low
        for i in range(roots):
            root[i + 1] = found[i]
        root[roots + 1] = high
        n = 0
        for i in range(roots + 1):
            n += bisect_polynomial(&derived[0], terms, root[i], root[i + 1], &found[n])
        roots = n
    for i in range(roots):
        extremum[i] = found[i]
    return roots


cdef inline int cubic_extrema(const double* k, double low, double high, double* extremum) noexcept nogil:
    """Extrema of one cubic within (low, high), in x - knot, ascending."""
    cdef double a = 3.0 * k[3]
    cdef double b = 2.0 * k[2]
    cdef double square = b * b - 4.0 * a * k[1]
    cdef double root[2]
    cdef double q
    cdef int i
    cdef int n = 0
    if square < 0.0 or (a == 0.0 and b == 0.0):
        return 0
    q = -0.5 * (b + (sqrt(square) if b >= 0.0 else -sqrt(square)))
    root[0] = q / a if a != 0.0 else NAN
    root[1] = k[1] / q if q != 0.0 else NAN
    if root[0] > root[1]:
        root[0], root[1] = root[1], root[0]
    for i in range(2):
        if low < root[i] < high:
            extremum[n] = root[i]
            n += 1
    return n


cdef inline int curve_add_turn(Curve* c, double x) noexcept nogil:
    """Append a possible turn; one that goes on in the direction of the last two replaces the last."""
    cdef double y = curve_at(c, x).y
    cdef int64_t n = c.turns
    if not isfinite(y):
        return -EINVAL
    if n >= 1 and (y == c.turn_y[n - 1] or x <= c.turn_x[n - 1]):
        return 0
    if n >= 2 and (y > c.turn_y[n - 1]) == (c.turn_y[n - 1] > c.turn_y[n - 2]):
        n -= 1
    if n == CURVE_TURNS:
        return -EINVAL
    c.turn_x[n] = x
    c.turn_y[n] = y
    c.turns = n + 1
    return 0


cdef inline int cubics_check(const Cubics* c) noexcept nogil:
    """0, or -EINVAL where knots do not ascend or a number is not finite."""
    cdef int64_t i
    if not 1 <= c.pieces <= CURVE_PIECES or not isfinite(c.knot[0]):
        return -EINVAL
    for i in range(c.pieces):
        if not isfinite(c.knot[i + 1]) or not c.knot[i + 1] > c.knot[i]:
            return -EINVAL
    for i in range(4 * c.pieces):
        if not isfinite(c.coefficient[i]):
            return -EINVAL
    return 0


cdef inline int curve_prepare(Curve* c, double low, double high) noexcept nogil:
    """Check a curve whose coefficients are in place, and find its turns within low..high.

    Returns 0, or -EINVAL: numbers not finite, knots not ascending, an empty range, a constant, or more turns than a
    calibration has.
    """
    cdef double extremum[CURVE_COEFFICIENTS]
    cdef double start, end
    cdef int64_t i
    cdef int j, n
    cdef int status = 0
    if not isfinite(low) or not isfinite(high) or not low < high:
        return -EINVAL
    memset(&c.turn_x[0], 0, sizeof(c.turn_x) + sizeof(c.turn_y))
    c.turns = 0
    if c.kind == CURVE_POLYNOMIAL:
        if not 2 <= c.cubics.pieces <= CURVE_COEFFICIENTS:
            return -EINVAL
        for i in range(c.cubics.pieces):
            if not isfinite(c.cubics.coefficient[i]):
                return -EINVAL
        status = curve_add_turn(c, low)
        n = polynomial_extrema(&c.cubics.coefficient[0], c.cubics.pieces, low, high, &extremum[0])
        for j in range(n):
            status |= curve_add_turn(c, extremum[j])
    elif c.kind == CURVE_CUBICS and cubics_check(&c.cubics) == 0:
        status = curve_add_turn(c, low)
        for i in range(c.cubics.pieces):
            start = c.cubics.knot[i] if i and c.cubics.knot[i] > low else low
            end = c.cubics.knot[i + 1] if i + 1 < c.cubics.pieces and c.cubics.knot[i + 1] < high else high
            if start >= end:
                continue
            if start > low:
                status |= curve_add_turn(c, start)
            n = cubic_extrema(
                &c.cubics.coefficient[4 * i], start - c.cubics.knot[i], end - c.cubics.knot[i], &extremum[0])
            for j in range(n):
                status |= curve_add_turn(c, c.cubics.knot[i] + extremum[j])
    else:
        return -EINVAL
    status |= curve_add_turn(c, high)
    if status or c.turns < 2:
        return -EINVAL
    # the first and the last are the range's ends, also where the curve is level there
    c.turn_x[c.turns - 1] = high
    c.turn_y[c.turns - 1] = curve_at(c, high).y
    return 0
