# Why compiled: turns the active calibrations (plain Python, from a file) into the structs of the estimators.
# Thread rule: the host thread; what is staged here is copied by the sampling thread on COMMAND_CURVE.
# Units: those of the calibration's own x and y.

from libc.math cimport NAN
from libc.stdint cimport int64_t
from libc.string cimport memset

from stirbar.rt.curve cimport (
    CURVE_COEFFICIENTS, CURVE_CUBICS, CURVE_PIECES, CURVE_POLYNOMIAL, Cubics, Curve, curve_prepare)
from stirbar.rt.fusion cimport FUSION_ANGLES, FusionModel, fusion_check


cdef inline int stage_cubics(Cubics* c, data) except -1:
    """`data`: {"knots": [n + 1], "coefficients": [n][4]}; ValueError for what is no piecewise cubic."""
    cdef int64_t i, j
    knots, pieces = data["knots"], data["coefficients"]
    if not 1 <= len(pieces) <= CURVE_PIECES or len(knots) != len(pieces) + 1:
        raise ValueError(
            f"{len(knots)} knots and {len(pieces)} pieces, expected 1 to {CURVE_PIECES} pieces and one more knot")
    c.pieces = len(pieces)
    for i in range(c.pieces + 1):
        c.knot[i] = float(knots[i])
    for i in range(c.pieces):
        if len(pieces[i]) != 4:
            raise ValueError(f"piece {i + 1} of the curve has {len(pieces[i])} coefficients, expected 4")
        for j in range(4):
            c.coefficient[4 * i + j] = float(pieces[i][j])
    return 0


cdef inline int stage_curve(Curve* curve, data) except -1:
    """`data`: {"type": poly, spline or akima, "coefficients", "knots", "domain": [low, high], "ir_led_intensity",
    "residual"}; ValueError for what is no calibration curve."""
    cdef int64_t i
    memset(curve, 0, sizeof(Curve))
    if data["type"] == "poly":
        coefficients = data["coefficients"]
        if not 2 <= len(coefficients) <= CURVE_COEFFICIENTS:
            raise ValueError(f"polynomial of {len(coefficients)} coefficients, expected 2 to {CURVE_COEFFICIENTS}")
        curve.kind = CURVE_POLYNOMIAL
        curve.cubics.pieces = len(coefficients)
        for i in range(curve.cubics.pieces):
            curve.cubics.coefficient[i] = float(coefficients[i])
    elif data["type"] in ("spline", "akima"):
        curve.kind = CURVE_CUBICS
        stage_cubics(&curve.cubics, data)
    else:
        raise ValueError(f"curve of type {data['type']!r}, expected poly, spline or akima")
    low, high = data["domain"]
    curve.intensity_percent = float(data["ir_led_intensity"])
    residual = data.get("residual")
    curve.residual = NAN if residual is None else float(residual)
    if curve_prepare(curve, float(low), float(high)):
        raise ValueError(
            f"the curve cannot be inverted on {float(low):g} to {float(high):g}: its numbers must be finite, its knots "
            "ascending, its range not empty, the curve not constant and not turning more than eight times")
    return 0


cdef inline int stage_fusion(FusionModel* model, data) except -1:
    """`data`: {"angles": [{"channel": 1..4, "low_scale", "mean", "log_sigma"}], "min_logc", "max_logc", "sigma_floor",
    "ir_led_intensity"}; ValueError for what is no estimator."""
    cdef int64_t a
    memset(model, 0, sizeof(FusionModel))
    angles = data["angles"]
    if not 1 <= len(angles) <= FUSION_ANGLES:
        raise ValueError(f"estimator of {len(angles)} angles, expected 1 to {FUSION_ANGLES}")
    model.angles = len(angles)
    for a in range(model.angles):
        model.channel[a] = int(angles[a]["channel"]) - 1
        model.low_scale[a] = float(angles[a]["low_scale"])
        stage_cubics(&model.mean[a], angles[a]["mean"])
        stage_cubics(&model.log_sigma[a], angles[a]["log_sigma"])
    model.lowest = float(data["min_logc"])
    model.highest = float(data["max_logc"])
    model.sigma_floor = float(data["sigma_floor"])
    model.intensity_percent = float(data["ir_led_intensity"])
    if fusion_check(model):
        raise ValueError(
            "the estimator's numbers must be finite, its knots ascending, min_logc below max_logc, sigma_floor and "
            "low_conc_scales above 0")
    return 0
