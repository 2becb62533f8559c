# Why compiled: feeds recorded traces to the estimators that the loop runs.
# Thread rule: the caller's; an instance belongs to one thread.
# Units: as in the trace (types.pxd).
"""Readings again from a trace; never loaded by a worker."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

from stirbar.rt.configure cimport configure_od, configure_stirring
from stirbar.rt.configure_dosing cimport configure_dosing
from stirbar.rt.configure_heat cimport configure_heat
from stirbar.rt.controllers cimport Controllers, controllers_apply
from stirbar.rt.estimators cimport Estimators, estimators_apply, estimators_take
from stirbar.rt.heating cimport HeatConfig, heat_init
from stirbar.rt.od_init cimport od_init
from stirbar.rt.od_state cimport OdConfig
from stirbar.rt.stirring cimport StirConfig, stir_init
from stirbar.rt.types cimport Reading, TraceItem

cdef extern from *:
    """
    #ifndef STIRBAR_BUILD_ID
    #define STIRBAR_BUILD_ID "unknown"
    #endif
    """
    const char* STIRBAR_BUILD_ID


cdef class Replay:
    """The estimators of one of the loop's threads, fed by hand.

    `edges` chooses the actuator thread's (rpm, liquid), else the sampling thread's (OD). They start as a run does, by
    the config, or from a snapshot by `restore`.

    Synchronization: none; one thread at a time.
    """
    cdef Estimators estimators
    cdef Controllers controllers
    cdef bint edges

    def __init__(self, bint edges, config):
        cdef OdConfig od
        cdef StirConfig stir
        cdef HeatConfig heat
        self.edges = edges
        memset(&self.estimators, 0, sizeof(Estimators))
        memset(&self.controllers, 0, sizeof(Controllers))
        configure_od(&od, config)
        configure_stirring(&stir, config)
        configure_heat(&heat, config)
        if od_init(&self.estimators.od, &od) or stir_init(&self.controllers.stir, &stir) or heat_init(
                &self.controllers.heat, &heat):
            raise ValueError("the configuration is outside what the estimators can do")
        configure_dosing(&self.controllers.dose, config)

    def restore(self, bytes state):
        """Go on from a snapshot. Raises ValueError when it is not of this build's size."""
        cdef size_t expected = sizeof(Controllers) if self.edges else sizeof(Estimators)
        if len(state) != expected:
            raise ValueError(
                f"snapshot of {len(state)} bytes, this build's state has {expected}: "
                "replay it with the build that recorded it"
            )
        if self.edges:
            memcpy(&self.controllers, <const char*>state, expected)
        else:
            memcpy(&self.estimators, <const char*>state, expected)

    def state(self):
        """The state as a snapshot has it."""
        if self.edges:
            return PyBytes_FromStringAndSize(<const char*>&self.controllers, sizeof(Controllers))
        return PyBytes_FromStringAndSize(<const char*>&self.estimators, sizeof(Estimators))

    def feed(self, bytes items):
        """Apply packed trace items in order; returns the packed readings that they made.

        `sequence`, `wall_ns` and `experiment` are 0: the estimators do not know them. Raises ValueError when the length
        is no multiple of an item's.
        """
        cdef const TraceItem* item = <const TraceItem*><const char*>items
        cdef Py_ssize_t count = len(items) // <Py_ssize_t>sizeof(TraceItem)
        cdef Py_ssize_t i
        cdef Reading reading
        if len(items) % sizeof(TraceItem):
            raise ValueError(f"trace of {len(items)} bytes is no multiple of {sizeof(TraceItem)}")
        readings = []
        for i in range(count):
            if self.edges:
                if controllers_apply(&self.controllers, &item[i], &reading):
                    readings.append(packed(&reading))
            elif estimators_apply(&self.estimators, &item[i]):
                while estimators_take(&self.estimators, &reading):
                    readings.append(packed(&reading))
        return b"".join(readings)

    @staticmethod
    def build_id():
        """Names the compiled code, as `Loop.build_id` does."""
        return STIRBAR_BUILD_ID.decode()


cdef bytes packed(Reading* reading):
    reading.sequence = 0
    reading.wall_ns = 0
    reading.experiment = 0
    return PyBytes_FromStringAndSize(<const char*>reading, sizeof(Reading))
