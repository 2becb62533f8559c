# Why compiled: the loop's own curves and fused estimate, on NumPy arrays, for fits, tests and notebooks.
# Thread rule: an object belongs to one thread at a time. The worker never loads this module.
# Units: x the density, y the uncalibrated value; natural logarithms of values, log10 of concentrations.

import numpy as np

from libc.math cimport NAN
from libc.string cimport memset

from stirbar.rt cimport curve as kernel, reference
from stirbar.rt.fusion cimport (
    FUSION_IDLE, Fusion, FusionEstimate, FusionInput, fusion_cost, fusion_estimate, fusion_start,
    fusion_work)
from stirbar.rt.stage cimport stage_curve, stage_fusion

INSIDE, BELOW, ABOVE, BEYOND = kernel.CURVE_INSIDE, kernel.CURVE_BELOW, kernel.CURVE_ABOVE, kernel.CURVE_BEYOND
PIECES, COEFFICIENTS = kernel.CURVE_PIECES, kernel.CURVE_COEFFICIENTS
CURVE_BYTES, FUSION_BYTES = sizeof(kernel.Curve), sizeof(Fusion)


cdef class Curve:
    cdef kernel.Curve curve

    def __init__(self, data):
        stage_curve(&self.curve, data)

    @property
    def turns(self):
        return np.array([(self.curve.turn_x[i], self.curve.turn_y[i]) for i in range(self.curve.turns)])

    def at(self, x):
        cdef const double[::1] given = np.ascontiguousarray(x, dtype=np.float64).ravel()
        cdef double[:, ::1] out
        cdef kernel.CurvePoint point
        cdef Py_ssize_t i
        result = np.empty((given.shape[0], 3))
        out = result
        for i in range(given.shape[0]):
            point = kernel.curve_at(&self.curve, given[i])
            out[i, 0] = point.y
            out[i, 1] = point.slope
            out[i, 2] = point.bend
        return result.reshape(*np.shape(x), 3)

    def inverse(self, y, double previous=NAN):
        cdef const double[::1] given = np.ascontiguousarray(y, dtype=np.float64).ravel()
        cdef double[::1] out
        cdef int[::1] where
        cdef Py_ssize_t i
        found = np.empty(given.shape[0])
        places = np.empty(given.shape[0], dtype=np.intc)
        out = found
        where = places
        for i in range(given.shape[0]):
            where[i] = kernel.curve_inverse(&self.curve, given[i], previous, &out[i])
            previous = out[i]
        return found.reshape(np.shape(y)), places.reshape(np.shape(y))

    def error(self, double error_y, double x):
        cdef kernel.CurvePoint point = kernel.curve_at(&self.curve, x)
        return kernel.curve_error(error_y, &point)


cdef class FusedEstimator:
    cdef Fusion fusion

    def __init__(self, data):
        memset(&self.fusion, 0, sizeof(Fusion))
        stage_fusion(&self.fusion.model, data)
        fusion_start(&self.fusion)
        while self.fusion.stage != FUSION_IDLE:
            fusion_work(&self.fusion)

    cdef int _read(self, FusionInput* given, log_values, errors, culture) except -1:
        cdef int a
        memset(given, 0, sizeof(FusionInput))
        if len(log_values) != self.fusion.model.angles:
            raise ValueError(f"{len(log_values)} values for {self.fusion.model.angles} angles")
        for a in range(<int>self.fusion.model.angles):
            given.log_value[a] = log_values[a]
            given.error[a] = errors[a] if errors is not None else 0.0
            given.culture[a] = culture[a] if culture is not None else 0.0
        return 0

    def cost(self, log_values, double log_concentration):
        cdef FusionInput given
        self._read(&given, log_values, None, None)
        return fusion_cost(&self.fusion.model, &given, log_concentration)

    def estimate(self, log_values, errors=None, culture=None):
        cdef FusionInput given
        cdef FusionEstimate e
        self._read(&given, log_values, errors, culture)
        fusion_estimate(&self.fusion, &given, &e)
        return {
            "concentration": e.concentration, "log_concentration": e.log_concentration, "error": e.error,
            "culture": e.culture, "model": e.model, "edge": e.edge, "disagree": bool(e.disagree),
        }


cdef class ReferenceRegression:
    cdef reference.ReferenceFit fit

    def __cinit__(self, double given=NAN):
        reference.reference_init(&self.fit)
        reference.reference_give(&self.fit, given)

    def push(self, signal_v, reference_v, reference_se, usable=None):
        cdef const double[::1] signal = np.ascontiguousarray(signal_v, dtype=np.float64)
        cdef const double[::1] light = np.ascontiguousarray(reference_v, dtype=np.float64)
        cdef const double[::1] error = np.ascontiguousarray(np.broadcast_to(reference_se, light.shape[0]), np.float64)
        cdef const unsigned char[::1] quiet = np.ascontiguousarray(
            np.ones(light.shape[0]) if usable is None else usable, dtype=np.uint8)
        cdef Py_ssize_t i
        cdef double[::1] out
        values = np.empty(signal.shape[0])
        out = values
        for i in range(signal.shape[0]):
            reference.reference_push(&self.fit, signal[i], light[i], error[i], quiet[i])
            reference.reference_follow(&self.fit, light[i], light[0])
            out[i] = signal[i] * light[0] / light[i] * reference.reference_factor(&self.fit, light[i])
        return values

    def light(self):
        reference.reference_light(&self.fit)

    def give(self, double coefficient):
        reference.reference_give(&self.fit, coefficient)

    @property
    def coefficient(self):
        return self.fit.coefficient

    @property
    def learned(self):
        return self.fit.learned

    @property
    def learned_se(self):
        return self.fit.learned_se

    @property
    def stretches(self):
        return self.fit.stretches
