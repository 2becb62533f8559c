# Why compiled: the loop's own converter clock without a ready line, and its gain ranging, for tests and notebooks.
# Thread rule: each object belongs to one thread at a time. The worker never loads this module.
# Units: nanoseconds, codes, hertz, volts.

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t

from stirbar.rt cimport gain, pilot, pilot_acquire

NOTHING = pilot.PILOT_NOTHING
NEW = pilot.PILOT_NEW
REPEATED = pilot.PILOT_REPEATED
UNSURE = pilot.PILOT_UNSURE
STATES = {pilot.PILOT_ACQUIRING: "acquiring", pilot.PILOT_TRYING: "trying", pilot.PILOT_LOCKED: "locked"}
STATE_BYTES = sizeof(pilot.Pilot)

GAIN_RANGES = gain.GAIN_RANGES
GAIN_AUTO = gain.GAIN_AUTO
GAIN_WRITE = gain.GAIN_WRITE
GAIN_LIGHT_OFF = gain.GAIN_LIGHT_OFF
GAIN_MOVED = gain.GAIN_MOVED
GAIN_OVER_VOLTAGE = gain.GAIN_OVER_VOLTAGE
GAIN_WARNING = gain.GAIN_WARNING
GAIN_IN_FORCE = gain.GAIN_IN_FORCE
GAIN_FRESH = gain.GAIN_FRESH
GAIN_FOREIGN = gain.GAIN_FOREIGN
GAIN_STATES = {gain.GAIN_PROBING: "probing", gain.GAIN_STEADY: "steady", gain.GAIN_COMPARING: "comparing",
               gain.GAIN_DARK: "dark", gain.GAIN_SHUT: "shut"}


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
            raise ValueError(f"{n} times, {codes.shape[0]} codes and {clips.shape[0]} clip flags: expected as many")
        said = np.empty(n, dtype=np.uint8)
        cdef uint8_t[::1] out = said
        for i in range(n):
            out[i] = <uint8_t>pilot.pilot_read(&self.clock, latch[i], codes[i], clips[i])
        return said

    def edge(self, int64_t from_ns, int64_t to_ns):
        pilot.pilot_edge(&self.clock, from_ns, to_ns)

    def end_ns(self, index):
        return pilot.pilot_end_ns(&self.clock, <unsigned int>(index & 0xFFFFFFFF))

    def next_ns(self, int64_t lead_ns=0):
        return pilot.pilot_next_ns(&self.clock, lead_ns)

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
        rates = 1e9 / a.centre_ns * (1.0 - a.tolerance + a.spacing * np.arange(pilot_acquire.ACQUISITION_RATES))
        return rates, np.array([a.re[i] + 1j * a.im[i] for i in range(pilot_acquire.ACQUISITION_RATES)])


cdef class GainChain:
    cdef gain.Gain ranging

    def __cinit__(self, full_scale_v=None, double rate_hz=860.0):
        cdef int fixed = gain.GAIN_AUTO
        if full_scale_v is not None:
            fixed = gain.gain_range(full_scale_v)
            if fixed < 0:
                raise ValueError(f"full scale of {full_scale_v} V, the converter has 6.144, 4.096, 2.048, 1.024, 0.512 "
                                 "and 0.256 V")
        gain.gain_init(&self.ranging, fixed, rate_hz)

    def chop(self):
        return gain.gain_chop(&self.ranging)

    def conversion(self, int32_t code, bint clipped, int phase):
        return gain.gain_conversion(&self.ranging, code, clipped, phase)

    def written(self, int64_t from_ns, int64_t to_ns):
        gain.gain_written(&self.ranging, from_ns, to_ns)

    def admit(self, int64_t begin_ns, int64_t end_ns):
        return gain.gain_admit(&self.ranging, begin_ns, end_ns)

    @property
    def full_scale_v(self):
        return gain.gain_full_scale_v(&self.ranging)

    @property
    def volts_per_code(self):
        return gain.gain_volts_per_code(&self.ranging)

    @property
    def multiple(self):
        return gain.gain_multiple(&self.ranging)

    @property
    def holds_light(self):
        return bool(gain.gain_holds_light(&self.ranging))

    @property
    def state(self):
        return GAIN_STATES[self.ranging.state]

    @property
    def level_v(self):
        return self.ranging.level_v

    @property
    def moves(self):
        return self.ranging.moves

    @property
    def corrections(self):
        return np.array([self.ranging.correction[i] for i in range(gain.GAIN_RANGES)])

    @property
    def ratios(self):
        return np.array([(self.ranging.ratio[i], self.ranging.ratio_weight[i] ** -0.5)
                         for i in range(1, gain.GAIN_RANGES)])
