# Why compiled: the loop's own estimators, on NumPy arrays, for tests, notebooks and replays on a desk.
# Thread rule: each object belongs to one thread at a time. The worker never loads this module.
# Units: codes, volts, nanoseconds, seconds, hertz, rpm; channels are 0..3.

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from stirbar.rt cimport (
    od_init, chop, converter_clock, culture_noise, mains, mains_run, od, od_price, od_state, od_window, robust,
)
from stirbar.rt.types cimport MAX_CHANNELS, Reading

from stirbar.core.records import READING_DTYPE

ROLES = {"unused": od_state.OD_UNUSED, "signal": od_state.OD_SIGNAL, "reference": od_state.OD_REFERENCE}
NORMALIZATIONS = {"unity": od_state.OD_UNITY, "classic": od_state.OD_CLASSIC, "regressed": od_state.OD_REGRESSED}
STATE_BYTES = sizeof(od_state.OdState)


cdef chop.ChopPlan chop_plan(double rate_hz, double mains_hz, double rpm, int discard, double aperture, double pwm_hz):
    cdef chop.ChopPlan plan
    chop.chop_plan_init(&plan, rate_hz, mains_hz, rpm)
    plan.discard = discard
    plan.aperture = aperture
    plan.pwm_hz = pwm_hz
    return plan


def choose_half_cycle(double rate_hz, double mains_hz=0.0, double rpm=0.0, int low=chop.HALF_CYCLE_LOW,
                      int high=chop.HALF_CYCLE_HIGH, int discard=1, double aperture=1.0, double pwm_hz=0.0):
    cdef chop.ChopPlan plan = chop_plan(rate_hz, mains_hz, rpm, discard, aperture, pwm_hz)
    plan.low = low
    plan.high = high
    return chop.choose_half_cycle(&plan)


def chop_cost(double rate_hz, int k, double mains_hz=0.0, double rpm=0.0, int discard=1, double aperture=1.0,
              double pwm_hz=0.0):
    cdef chop.ChopPlan plan = chop_plan(rate_hz, mains_hz, rpm, discard, aperture, pwm_hz)
    cdef double cost
    if k < 2 or k <= discard:
        raise ValueError(f"half-cycle of {k} conversions, expected at least 2, and more than the {discard} discarded")
    chop.chop_costs(&plan, k, 1, &cost)
    return cost


def chop_gain(double frequency_hz, double rate_hz, int k, int discard=1, double aperture=1.0):
    return chop.chop_response(frequency_hz, rate_hz, k, discard, aperture)


def chop_rejection_db(double frequency_hz, double rate_hz, int k, double window_s, int discard=1, double aperture=1.0):
    return chop.chop_rejection_db(frequency_hz, rate_hz, k, discard, aperture, window_s)


def chop_price(double rate_hz, int k, double window_s=1.0, double mains_hz=50.0, int discarded=1):
    cdef od_price.OdPrice price
    if od_price.od_price(rate_hz, k, discarded, window_s, mains_hz, &price) != 0:
        raise ValueError(f"rate {rate_hz}/s, k {k}, {discarded} discarded, window {window_s} s, mains {mains_hz} Hz: "
                         "expected rates and windows above 0, k above what is discarded, mains 45..65 Hz")
    return price


def classify(edges_ns, levels, starts_ns, ends_ns, int64_t guard_ns=30000, int64_t settle_ns=0):
    cdef chop.LedTrack track
    cdef const int64_t[:, ::1] edges = np.ascontiguousarray(edges_ns, dtype=np.int64).reshape(-1, 2)
    cdef const uint8_t[::1] level = np.ascontiguousarray(levels, dtype=np.uint8)
    cdef const int64_t[::1] start = np.ascontiguousarray(starts_ns, dtype=np.int64)
    cdef const int64_t[::1] end = np.ascontiguousarray(ends_ns, dtype=np.int64)
    cdef Py_ssize_t i
    cdef Py_ssize_t next_edge = 0
    phases = np.empty(start.shape[0], dtype=np.uint8)
    cdef uint8_t[::1] phase = phases
    chop.led_track_init(&track, guard_ns, settle_ns)
    for i in range(start.shape[0]):
        while next_edge < edges.shape[0] and edges[next_edge, 0] - guard_ns < end[i]:
            chop.led_track_edge(&track, edges[next_edge, 0], edges[next_edge, 1], level[next_edge])
            next_edge += 1
        phase[i] = chop.led_track_phase(&track, start[i], end[i])
    return phases


def tukey_mean(values, double scale, double start=float("nan")):
    cdef const double[::1] x = np.ascontiguousarray(values, dtype=np.float64)
    cdef OdChain window = OdChain(["signal"])
    cdef od_state.OdChannel* ch = &window.chain.channel[0]
    cdef od_state.OdSums sums
    cdef double level = start
    cdef double kept
    cdef int i
    if not 0 < x.shape[0] <= od_state.OD_RING or not scale > 0.0:
        raise ValueError(f"tukey_mean needs 1 to {od_state.OD_RING} values and a scale above 0, "
                         f"got {x.shape[0]} values and scale {scale}")
    if level != level:
        level = np.median(values)
    for i in range(<int>x.shape[0]):
        ch.entry[i].difference_v = x[i]
    ch.cursor = <int>(x.shape[0] % od_state.OD_RING)
    ch.entries = <int>x.shape[0]
    kept = od_window.od_iterate(NULL, ch, ch.entries, scale, 0, &level, &sums)
    return level, kept


def median(values):
    cdef double[::1] x = np.array(values, dtype=np.float64)
    if x.shape[0] == 0:
        raise ValueError("median of no values")
    return robust.median_in_place(&x[0], <int>x.shape[0])


def winsorised_scale(values, double centre, double start):
    cdef const double[::1] x = np.ascontiguousarray(values, dtype=np.float64)
    if x.shape[0] == 0:
        raise ValueError("winsorised_scale of no values")
    return robust.winsorised_scale(&x[0], <int>x.shape[0], centre, start)


def culture_density(means, double block_s=1.0):
    cdef culture_noise.CultureNoise noise
    cdef double mean
    culture_noise.culture_noise_clear(&noise, block_s, block_s)
    for mean in means:
        culture_noise.culture_noise_push(&noise, mean)
    return noise.density, noise.slope, noise.slope_se


cdef class ConverterClock:
    cdef converter_clock.ConverterClock clock

    def __cinit__(self, double rate_hz):
        if not rate_hz > 0.0:
            raise ValueError(f"converter rate of {rate_hz} Hz, expected above 0")
        converter_clock.converter_clock_init(&self.clock, rate_hz)

    def push(self, index, ready_ns):
        cdef const uint32_t[::1] number = np.ascontiguousarray(np.atleast_1d(index), dtype=np.uint32)
        cdef const int64_t[::1] stamp = np.ascontiguousarray(np.atleast_1d(ready_ns), dtype=np.int64)
        cdef Py_ssize_t i
        for i in range(number.shape[0]):
            converter_clock.converter_clock_push(&self.clock, number[i], stamp[i])
        return bool(self.clock.locked)

    def end_ns(self, uint32_t index):
        return converter_clock.converter_clock_end_ns(&self.clock, index)

    @property
    def next_ns(self):
        return converter_clock.converter_clock_next_ns(&self.clock)

    @property
    def rate_hz(self):
        return converter_clock.converter_clock_rate_hz(&self.clock)

    @property
    def period_ns(self):
        return self.clock.period_ns

    @property
    def jitter_ns(self):
        return self.clock.jitter_ns

    @property
    def locked(self):
        return bool(self.clock.locked)

    @property
    def relocks(self):
        return self.clock.relocks


cdef class MainsTracker:
    cdef mains.MainsLine line
    cdef mains_run.MainsChannel channel
    cdef double time_ns
    cdef uint32_t index

    def __cinit__(self, double forced_hz=0.0):
        mains.mains_line_init(&self.line, forced_hz)
        mains.mains_channel_init(&self.channel, &self.line)
        self.time_ns = 0.0
        self.index = 0

    def push(self, values, learn, double period_ns):
        cdef const double[::1] value = np.ascontiguousarray(values, dtype=np.float64)
        cdef const uint8_t[::1] off = np.ascontiguousarray(learn, dtype=np.uint8)
        cdef Py_ssize_t n = value.shape[0]
        cdef Py_ssize_t begin = 0
        cdef Py_ssize_t end
        cleaned = np.array(values, dtype=np.float64)
        cdef double[::1] out = cleaned
        if self.index == 0:
            mains_run.mains_resync(&self.channel, 0, 0, period_ns)
        while begin < n:
            end = begin + 1
            while end < n and end - begin < 64 and off[end] == off[begin]:
                end += 1
            mains_run.mains_run(&self.channel, &out[begin], <int>(end - begin), self.index, off[begin])
            self.index += <uint32_t>(end - begin)
            self.time_ns += (end - begin) * period_ns
            begin = end
            mains.mains_end_block(&self.channel, &self.line, self.index, <int64_t>self.time_ns, period_ns)
        return cleaned

    @property
    def frequency_hz(self):
        return self.line.frequency_hz

    @property
    def nominal_hz(self):
        return self.line.nominal_hz

    @property
    def deviation_hz(self):
        return self.line.variance ** 0.5

    @property
    def locked(self):
        return bool(self.line.locked)

    @property
    def decided(self):
        return bool(self.line.decided)

    @property
    def amplitudes(self):
        return [(self.channel.level_cosine[h] ** 2 + self.channel.level_sine[h] ** 2) ** 0.5
                for h in range(mains_run.HARMONICS)]


cdef class OdChain:
    cdef od_state.OdState chain

    def __cinit__(self, roles, angles=(0, 0, 0, 0), double window_s=1.0, double readings_per_second=10.0,
                  double mains_hz=0.0, normalization="unity", slower=(), double correlation=0.0):
        cdef od_state.OdConfig config
        cdef int i
        if len(roles) > MAX_CHANNELS:
            raise ValueError(f"{len(roles)} roles, there are {MAX_CHANNELS} channels")
        rates = [(readings_per_second, window_s), *slower]
        if len(rates) > od_state.OD_RATES:
            raise ValueError(f"{len(slower)} slower rates, there can be {od_state.OD_RATES - 1}")
        config.rates = <int>len(rates)
        for i in range(config.rates):
            config.readings_per_second[i], config.window_s[i] = rates[i]
        config.mains_hz = mains_hz
        config.normalization = NORMALIZATIONS[normalization]
        for i in range(MAX_CHANNELS):
            config.role[i] = ROLES[roles[i]] if i < len(roles) else od_state.OD_UNUSED
            config.angle[i] = angles[i] if i < len(angles) else 0
            config.correlation[i] = correlation
        if od_init.od_init(&self.chain, &config) != 0:
            raise ValueError("OdChain needs a signal channel, windows of 0.005..100 s, 0.01..150 readings a second, "
                             "mains_hz 0 or 45..65, correlation 0..0.9")

    def clock(self, int channel, uint32_t index0, int64_t t0_ns, double period_ns):
        od.od_clock(&self.chain, channel, index0, t0_ns, period_ns)

    def gain(self, int channel, double volts_per_code):
        od.od_gain(&self.chain, channel, volts_per_code)

    def blank(self, int channel, double value):
        od.od_blank(&self.chain, channel, value)

    def turn(self, double turn_s):
        od.od_turn(&self.chain, turn_s * 1e9)

    def led(self, double intensity_percent):
        od.od_led(&self.chain, intensity_percent)

    def push(self, channel, index, code, phase, clipped=None):
        cdef Py_ssize_t n = len(index)
        channel = np.broadcast_to(channel, (n,))
        cdef const uint8_t[::1] channels = np.ascontiguousarray(channel, dtype=np.uint8)
        cdef const uint32_t[::1] number = np.ascontiguousarray(index, dtype=np.uint32)
        cdef const int32_t[::1] codes = np.ascontiguousarray(code, dtype=np.int32)
        cdef const uint8_t[::1] phases = np.ascontiguousarray(phase, dtype=np.uint8)
        clipped = np.zeros(n) if clipped is None else clipped
        cdef const uint8_t[::1] clips = np.ascontiguousarray(clipped, dtype=np.uint8)
        cdef Py_ssize_t i
        cdef Py_ssize_t count = 0
        cdef Py_ssize_t room = 64
        dtype = np.dtype(READING_DTYPE)
        readings = np.zeros(room, dtype=dtype)
        cdef uint8_t[:, ::1] raw = readings.view(np.uint8).reshape(room, sizeof(Reading))
        cdef Reading reading
        for i in range(n):
            if od.od_push(&self.chain, channels[i], number[i], codes[i], phases[i], clips[i]):
                while od.od_take(&self.chain, &reading):
                    if count == room:
                        readings = np.concatenate([readings, np.zeros(room, dtype=dtype)])
                        room *= 2
                        raw = readings.view(np.uint8).reshape(room, sizeof(Reading))
                    memcpy(&raw[count, 0], &reading, sizeof(Reading))
                    count += 1
        return readings[:count].copy()

    def state(self):
        return (<char*>&self.chain)[:sizeof(od_state.OdState)]

    def restore(self, bytes state):
        if len(state) != sizeof(od_state.OdState):
            raise ValueError(f"state of {len(state)} bytes, this build has {sizeof(od_state.OdState)}")
        memcpy(&self.chain, <const char*>state, sizeof(od_state.OdState))

    def inspect(self, int channel=0):
        cdef od_state.OdChannel* ch = &self.chain.channel[channel]
        cdef od_state.OdNulls* nulls = &self.chain.rate[0].nulls
        cdef int i
        slots = [(ch.cursor - ch.entries + i + od_state.OD_RING) % od_state.OD_RING for i in range(ch.entries)]
        return {
            "difference_v": np.array([ch.entry[i].difference_v for i in slots]),
            "on_count": np.array([1.0 / ch.entry[i].on_inverse for i in slots]),
            "flags": np.array([ch.entry[i].flags for i in slots], dtype=np.uint8),
            "null_weight": np.array([self.chain.null_weight[i] for i in range(nulls.count)]),
            "spacing_s": self.chain.spacing_ns * 1e-9,
            "scale_v": ch.scale.value,
            "on_scale_v": ch.on_scale.value,
            "off_scale_v": ch.off_scale.value,
            "lit_scale_v": ch.lit_scale,
            "centre_v": ch.centre_v if ch.centred else None,
            "half_cycle": ch.half_cycle,
            "missing": ch.missing,
            "repeated": ch.repeated,
            "unchopped": bool(ch.unchopped),
            "mains_hz": self.chain.line.frequency_hz,
            "mains_locked": bool(self.chain.line.locked),
            "mains_power": np.array([ch.mains.power[i] for i in range(mains_run.HARMONICS)]),
            "reference_first_v": self.chain.reference_first_v,
            "grid_misses": self.chain.grid_misses,
            "untaken": self.chain.untaken,
        }
