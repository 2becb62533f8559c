# Why compiled: the doser of the loop as a Python object, for tests, notebooks and benchmarks.
# Thread rule: one thread per object.
# Units: time in nanoseconds, millilitres, seconds.
"""The pumps' part of the loop on its own; the worker never loads this module."""

from libc.stdint cimport INT64_MAX, int64_t

from stirbar.rt.doser cimport (
    CUTS, DOSE_LATE, DOSE_REFUSED, DOSE_UNGUARDED, Doser, doser_continuous, doser_dose, doser_exchange, doser_init,
    doser_part, doser_pump, doser_renew, doser_stop, doser_tick)
from stirbar.rt.limits cimport (
    PUMP_LEASE_CEILING_MS, PUMP_ON_CEILING_S, SUBDOSE_CEILING_ML, VOLUME_CEILING_ML, DoseLimits)
from stirbar.rt.types cimport EVENT_DOSE_CUT, EVENT_DOSE_DONE, EVENT_DOSE_OWED, EVENT_DOSE_STEP
from stirbar.rt.volume cimport DOSE_PUMPS, VOLUME_ITEMS, volume_set

PUMPS = ("media", "alt_media", "waste")
STAGES = ("idle", "paused", "armed", "running", "held")
ITEMS = ("volume_ml", "alt_media_fraction", "media_ml", "alt_media_ml", "waste_ml", "unseen_ml", "efflux_ml", "owed_ml")
CUT_NAMES = ("none", "stopped", "unguarded", "unstirred", "pump", "full", "late", "lease")
ON_CEILING_S = PUMP_ON_CEILING_S
LEASE_CEILING_MS = PUMP_LEASE_CEILING_MS
VOLUME_MOST_ML = VOLUME_CEILING_ML
SUBDOSE_MOST_ML = SUBDOSE_CEILING_ML
UNGUARDED, REFUSED, LATE = DOSE_UNGUARDED, DOSE_REFUSED, DOSE_LATE
_EVENTS = {EVENT_DOSE_STEP: "step", EVENT_DOSE_DONE: "done", EVENT_DOSE_CUT: "cut", EVENT_DOSE_OWED: "owed"}


cdef class DoserBench:
    """The doser: commands and looks in, which pump is to run and until when out.

    `limits` are the fields of DoseLimits (limits.pxd). ValueError where one is missing or out of order. A command
    returns 0, or minus an errno. Synchronization: not thread-safe; no clock, no I/O.
    """

    cdef Doser state

    def __init__(self, *, limits, double pause_s=5.0, double ml_per_s=0.5, volume=None):
        cdef DoseLimits made = limits
        cdef int pump
        assert len(ITEMS) == VOLUME_ITEMS and len(CUT_NAMES) == CUTS
        if doser_init(&self.state, &made, pause_s):
            raise ValueError(f"outside the pumps' envelope, or limits out of order: {limits}, pause {pause_s} s")
        for pump in range(DOSE_PUMPS):
            self.pump(pump, 0, ml_per_s)
        for name, value in (volume or {}).items():
            self.set_volume(name, value)

    def set_volume(self, str item, double value):
        return volume_set(&self.state.volume, ITEMS.index(item), value)

    def pump(self, int pump, int item, double value):
        """Set a number of a pump: 0 mL/s, 1 offset in mL, 2 duty in percent."""
        return doser_pump(&self.state, pump + DOSE_PUMPS * item, value)

    def dose(self, int pump, double amount, int64_t now_ns, *, bint by_seconds=False, int flags=0, bint stirred=True):
        return doser_dose(&self.state, pump, amount, by_seconds, flags, stirred, now_ns)

    def exchange(self, parts_ml, double waste_factor, int64_t now_ns, *, int flags=0, bint stirred=True):
        for pump, ml in enumerate(parts_ml):
            status = doser_part(&self.state, pump, ml)
            if status:
                return status
        return doser_exchange(&self.state, waste_factor, flags, stirred, now_ns)

    def continuous(self, int pump, int64_t now_ns, *, int flags=0, bint stirred=True):
        return doser_continuous(&self.state, pump, flags, stirred, now_ns)

    def renew(self, int64_t now_ns):
        return doser_renew(&self.state, now_ns)

    def stop(self, int64_t now_ns, *, bint repairs=False):
        return doser_stop(&self.state, repairs, now_ns)

    def tick(self, int64_t now_ns, *, int flags=0, bint stirred=True):
        """Look at the doser; returns the events: a list of (name, argument, value)."""
        doser_tick(&self.state, flags, stirred, now_ns)
        return self.events()

    def events(self):
        """What was said since the last call."""
        said = [(_EVENTS[self.state.event[i].code], self.state.event[i].argument, self.state.event[i].value)
                for i in range(self.state.events)]
        self.state.events = 0
        return said

    @property
    def running(self):
        """The pump that is to run now (0..2), or None."""
        return None if self.state.running < 0 else self.state.running

    @property
    def due_ns(self):
        """When to look next, or None."""
        return None if self.state.due_ns == INT64_MAX else self.state.due_ns

    @property
    def deadline(self):
        """(pump, ns) of the deadline that the guard sees, or None."""
        return (self.state.plan.step_pump, self.state.deadline_ns) if self.state.deadline_ns else None

    @property
    def stage(self):
        return STAGES[self.state.stage]

    @property
    def volume(self):
        """The account, by the names of ITEMS."""
        return {name: self.state.volume.item[i] for i, name in enumerate(ITEMS)}
