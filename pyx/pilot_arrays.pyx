# Why compiled: the loop's own converter clock without a ready line, and its gain ranging, for tests and notebooks.
# Thread rule: each object belongs to one thread at a time. The worker never loads this module.
# Units: nanoseconds, codes, hertz, volts.

import numpy as np

from libc.stdint cimport int64_t, uint8_t, int32_t

from stirbar.rt cimport pilot, pilot_acquire

NOTHING = pilot.PILOT_NOTHING
NEW = pilot.PILOT_NEW
REPEATED = pilot.PILOT_REPEATED
UNSURE = pilot.PILOT_UNSURE
STATES = {pilot.PILOT_ACQUIRING: "acquiring", pilot.PILOT_TRYING: "trying", pilot.PILOT_LOCKED: "locked"}
STATE_BYTES = sizeof(pilot.Pilot)


cdef class PilotChain:
    cdef pilot.Pilot clock

    def __cinit__(self, double rate_hz, int64_t settle_ns=0, int64_t now_ns=0):
        if not rate_hz > 0.0:
            raise ValueError(f"converter rate of {rate_hz} Hz, expected above 0")
        if settle_ns < 0:
            raise ValueError(f"light that settles in {settle_ns} ns, expected 0 or more")
        pilot.pilot_init(&self.clock, rate_hz, settle_ns, now_ns)

    def read(self, int64_t latch_ns, int32_t code, bint clipped=False):
        return pilot.pilot_read(&self.clock, latch_ns, code, clipped)

    def reads(self, latch_ns, code, clipped=None):
        cdef const int64_t[::1] latch = np.ascontiguousarray(latch_ns, dtype=np.int64)
        cdef const int32_t[::1] codes = np.ascontiguousarray(code, dtype=np.int32)
        cdef Py_ssize_t n = latch.shape[0]
        clipped = np.zeros(n) if clipped is None else clipped
        cdef const uint8_t[::1] clips = np.ascontiguousarray(clipped, dtype=np.uint8)
        cdef Py_ssize_t i
        if codes.shape[0] != n or clips.shape[0] != n:
            raise ValueError(f"{n} times, {codes.shape[0]} codes and {clips.shape[0]} clip flags: expected equal lengths")
        said = np.empty(n, dtype=np.uint8)
        cdef uint8_t[::1] out = said
        for i in range(n):
            out[i] = <uint8_t>pilot.pilot_read(&self.clock, latch[i], codes[i], clips[i])
        return said

    def edge(self, int64_t from_ns, int64_t to_ns):
        pilot.pilot_edge(&self.clock, from_ns, to_ns)

    def end_ns(self, index):
        return pilot.pilot_end_ns(&self.clock, <unsigned int>(index & 0xFFFFFFFF))

    @property
    def next_ns(self):
        return pilot.pilot_next_ns(&self.clock)

    @property
    def next_edge_ns(self):
        return pilot.pilot_next_edge_ns(&self.clock)

    @property
    def index(self):
        return self.clock.last_index

    @property
    def state(self):
        return STATES[self.clock.state]

    @property
    def locked(self):
        return self.clock.state == pilot.PILOT_LOCKED

    @property
    def rate_hz(self):
        return pilot.pilot_rate_hz(&self.clock)

    @property
    def period_ns(self):
        return self.clock.period_ns

    @property
    def end_sd_ns(self):
        return pilot.pilot_end_sd_ns(&self.clock)

    @property
    def period_sd_ns(self):
        return pilot.pilot_period_sd_ns(&self.clock)

    @property
    def edge_sd_ns(self):
        return self.clock.edge_variance ** 0.5

    @property
    def swing(self):
        return self.clock.swing

    @property
    def noise(self):
        return self.clock.noise_square ** 0.5

    @property
    def guard(self):
        return self.clock.guard

    def counters(self):
        cdef pilot.Pilot* p = &self.clock
        return {"missed": p.missed, "repeated": p.repeated, "unsure": p.unsure, "outliers": p.outliers,
                "faint": p.faint, "locks": p.locks, "corrections": p.corrections}

    def correct(self, int conversions, double residual_ns):
        pilot.pilot_advance(&self.clock, conversions)
        pilot.pilot_correct(&self.clock, residual_ns)

    def covariance(self):
        return np.array([[self.clock.end_variance, self.clock.cross_variance],
                         [self.clock.cross_variance, self.clock.period_variance]])

    def periodogram(self):
        cdef pilot_acquire.Acquisition* a = &self.clock.acquisition
        cdef int i
        rates = 1e9 / a.nominal_ns * (1.0 - a.tolerance + a.spacing * np.arange(pilot_acquire.ACQUISITION_RATES))
        return rates, np.array([a.re[i] + 1j * a.im[i] for i in range(pilot_acquire.ACQUISITION_RATES)])
