# Why compiled: the sampling thread's own code on a vial behind a bus that takes time, for tests and rate plans.
# Thread rule: the caller's thread plays the sampling thread. The worker never loads this module.
# Units: nanoseconds of the bench's clock, volts, percent.
"""The sampler on a bench: virtual time in which each transfer takes its time on the bus, and is written down."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, ETIMEDOUT
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free

import numpy as np

from stirbar.rt.clock cimport WAKE_LATE_ROOM, Clock, VirtualTime, clock_virtual
from stirbar.rt.configure cimport running_mean_correlation
from stirbar.rt.hal cimport PACE_HOST, PACE_PILOT, PACE_READY, PACE_SMOOTHED, AdcPlan, Conversion, Hal
from stirbar.rt.histogram cimport Histogram
from stirbar.rt.leds cimport LedConfig, led_percent, leds_init
from stirbar.rt.light_path cimport (
    LightPath, LightSearch, light_path_add, light_path_clear, light_path_share, light_search_begin, light_search_step)
from stirbar.rt.od_init cimport od_init
from stirbar.rt.od_state cimport OD_REFERENCE, OD_SIGNAL, OD_UNITY, OD_UNUSED, OdConfig
from stirbar.rt.ports cimport READING_ROOM, port_init, port_memory_bytes
from stirbar.rt.ring cimport Ring, ring_pop, ring_pop_many, ring_push
from stirbar.rt.sampler_state cimport Sampler
from stirbar.rt.sampling cimport housekeeping_tick, sampling_tick, temperature_tick
from stirbar.rt.sim cimport Sim, SimConfig, sim_hal, sim_init, sim_set
from stirbar.rt.sim_parameters cimport PARAM_COUNT
from stirbar.rt.sleep_policy cimport sleep_for_ever, sleep_on_grid
from stirbar.rt.tasks cimport Task, drive
from stirbar.rt.types cimport MAX_CHANNELS, Command, Event, Reading, TraceItem

PACES = {"ready": PACE_READY, "pilot": PACE_PILOT, "host": PACE_HOST, "smoothed": PACE_SMOOTHED}
KINDS = ("read", "convert", "start", "gain", "light", "temperature", "rail", "check", "led")
TRANSFER_DTYPE = np.dtype([("begin_ns", "<i8"), ("end_ns", "<i8"), ("kind", "<i4"), ("channel", "<i4")])

cdef enum:
    READ = 0
    CONVERT = 1
    START = 2
    GAIN = 3
    LIGHT = 4
    TEMPERATURE = 5
    RAIL = 6
    CHECK = 7
    LED = 8
    RAIL_CONVERTS_NS = 1300000
    TRACE_ROOM = 65536
    TASKS = 3
    TIMEOUT_NS = 20000000

cdef struct Transfer:
    int64_t begin_ns
    int64_t end_ns
    int32_t kind
    int32_t channel

# The bus: every transfer moves the clock on, then does what it is for.
cdef struct Bus:
    VirtualTime time
    Hal vial
    AdcPlan plan[MAX_CHANNELS]
    int64_t slow_ns
    int64_t check_ns
    int64_t rail_ready_ns
    uint8_t stuck[MAX_CHANNELS]      # a transfer to it ends with the adapter's time-out
    uint8_t led_stages               # an LED channel is lit in two transfers, as a DAC's
    uint8_t led_staged               # bits: the first is done
    uint8_t led_refuses
    Transfer* log
    int64_t count
    int64_t room


cdef int64_t bus_take(Bus* bus, int kind, int channel, int64_t ns) noexcept nogil:
    """One transfer; when it ends."""
    cdef Transfer* transfer
    if kind < LIGHT and bus.stuck[channel]:
        ns = TIMEOUT_NS
    if bus.count < bus.room:
        transfer = &bus.log[bus.count]
        transfer.begin_ns = bus.time.now_ns
        transfer.end_ns = bus.time.now_ns + ns
        transfer.kind = kind
        transfer.channel = channel
    bus.count += 1
    bus.time.now_ns += ns
    return bus.time.now_ns


cdef int bus_adc_plan(void* context, int channel, AdcPlan* plan) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    return bus.vial.adc_plan(bus.vial.context, channel, plan)


cdef int bus_adc_start(
        void* context, int channel, double full_scale_v, double rate_hz, int64_t now_ns) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    now_ns = bus_take(bus, START, channel, bus.plan[channel].light_ns)
    return -ETIMEDOUT if bus.stuck[channel] else bus.vial.adc_start(
        bus.vial.context, channel, full_scale_v, rate_hz, now_ns)


cdef int bus_adc_gain(void* context, int channel, double full_scale_v, int64_t now_ns) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    now_ns = bus_take(bus, GAIN, channel, bus.plan[channel].light_ns)
    return -ETIMEDOUT if bus.stuck[channel] else bus.vial.adc_gain(bus.vial.context, channel, full_scale_v, now_ns)


cdef int bus_adc_convert(void* context, int channel, int64_t now_ns) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    now_ns = bus_take(bus, CONVERT, channel, bus.plan[channel].light_ns)
    return -ETIMEDOUT if bus.stuck[channel] else bus.vial.adc_convert(bus.vial.context, channel, now_ns)


cdef int bus_adc_read(void* context, int channel, int64_t now_ns, Conversion* conversion) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    now_ns = bus_take(bus, READ, channel, bus.plan[channel].read_ns)
    return -ETIMEDOUT if bus.stuck[channel] else bus.vial.adc_read(bus.vial.context, channel, now_ns, conversion)


cdef int bus_led_write(void* context, double intensity_percent, int64_t now_ns) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    now_ns = bus_take(bus, LIGHT, -1, bus.plan[0].light_ns)
    return bus.vial.led_write(bus.vial.context, intensity_percent, now_ns)


cdef int bus_led_channel_write(void* context, int channel, double percent, int64_t now_ns) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    now_ns = bus_take(bus, LED, channel, bus.plan[0].light_ns)
    if bus.led_refuses:
        return -ETIMEDOUT
    if bus.led_stages and percent > 0.0 and not bus.led_staged >> channel & 1:
        bus.led_staged |= 1 << channel
        return -EAGAIN
    bus.led_staged &= ~(1 << channel)
    return bus.vial.led_channel_write(bus.vial.context, channel, percent, now_ns)


cdef int bus_temperature_read(void* context, int64_t now_ns, double* celsius) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    now_ns = bus_take(bus, TEMPERATURE, -1, bus.slow_ns)
    return bus.vial.temperature_read(bus.vial.context, now_ns, celsius)


cdef int bus_check(void* context, int64_t now_ns) noexcept nogil:
    bus_take(<Bus*>context, CHECK, -1, (<Bus*>context).check_ns)
    return 0


cdef int bus_rail_convert(void* context, int64_t now_ns) noexcept nogil:
    """Where the photodiodes' converter does it, as one of their conversions; else nothing has to be begun."""
    cdef Bus* bus = <Bus*>context
    if bus.plan[0].lends_rail:
        bus.rail_ready_ns = bus_take(bus, RAIL, -1, bus.plan[0].light_ns) + RAIL_CONVERTS_NS
    return 0


cdef int bus_rail_read(void* context, int64_t now_ns, double* volts) noexcept nogil:
    cdef Bus* bus = <Bus*>context
    if bus.time.now_ns < bus.rail_ready_ns:
        return -EAGAIN
    bus_take(bus, RAIL, -1, bus.plan[0].read_ns if bus.plan[0].lends_rail else bus.slow_ns)
    volts[0] = 5.0
    return 0


cdef bytes drain(Ring* ring, size_t size, uint32_t room):
    from_ring = PyBytes_FromStringAndSize(NULL, room * size)
    count = ring_pop_many(ring, <char*>from_ring, room)
    return from_ring[:count * size]


cdef class SamplerBench:
    """A vial and the sampling thread's three tasks, without the actuator thread.

    Synchronization: none; one thread.
    """
    cdef Bus bus
    cdef Hal hal
    cdef Sim sim
    cdef Sampler* sampler
    cdef Clock clock
    cdef Histogram lateness
    cdef Task tasks[TASKS]
    cdef char* memory
    cdef uint32_t stirring_off
    cdef uint32_t dosing
    cdef uint32_t turn_us
    cdef uint32_t unlocked_mhz
    cdef uint32_t ids

    def __cinit__(self, *_, **__):
        self.sampler = <Sampler*>calloc(1, sizeof(Sampler))
        self.bus.room = 2000000
        self.bus.log = <Transfer*>calloc(self.bus.room, sizeof(Transfer))
        self.memory = <char*>calloc(
            1, port_memory_bytes(READING_ROOM, TRACE_ROOM, sizeof(self.sampler.estimators)))
        if self.sampler == NULL or self.bus.log == NULL or self.memory == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.sampler)
        free(self.bus.log)
        free(self.memory)

    def __init__(self, plans, angles, parameters, *, seed=1, late_ns=None, double mains_hz=50.0, double rpm=0.0,
                 int half_cycle=0, int low=4, int high=9, double full_scale_v=1.024, double led_duty=50.0,
                 double window_s=1.0, double readings_per_second=10.0, int64_t slow_ns=470000, int64_t check_ns=0,
                 bint led_stages=False, uint32_t leds_locked=0):
        cdef LedConfig leds
        cdef SimConfig config
        cdef OdConfig od
        cdef Sampler* s = self.sampler
        cdef int i
        clock_virtual(&self.clock, &self.bus.time, 1000000000)
        if late_ns is not None:
            parts = (np.arange(WAKE_LATE_ROOM) + 0.5) / WAKE_LATE_ROOM
            quantiles = np.quantile(np.asarray(late_ns, dtype=np.float64), parts)
            for i in range(WAKE_LATE_ROOM):
                self.bus.time.late_ns[i] = <uint32_t>quantiles[i]
            self.bus.time.draw = 2463534242
        config.seed = seed
        od = OdConfig()
        for i in range(MAX_CHANNELS):
            config.angle[i] = s.config.angle[i] = angles[i] if i < len(angles) else -1
            plan = plans[i] if i < len(plans) else plans[0]
            self.bus.plan[i] = AdcPlan(
                PACES[plan["pace"]], plan.get("converter", i), plan.get("lends_rail", 0), plan["rate_hz"],
                plan["conversion_hz"],
                plan.get("read_ns", 0), plan.get("light_ns", 0), plan.get("settle_ns", 0))
            config.plan[i] = self.bus.plan[i]
            od.correlation[i] = running_mean_correlation(&self.bus.plan[i])
            s.config.full_scale_v[i] = full_scale_v
            od.role[i] = (
                OD_UNUSED if config.angle[i] < 0 else OD_REFERENCE if config.angle[i] == 0 else OD_SIGNAL)
            od.angle[i] = <uint16_t>max(config.angle[i], 0)
        for i in range(PARAM_COUNT):
            config.parameter[i] = parameters[i]
        if sim_init(&self.sim, &config, self.bus.time.now_ns):
            raise ValueError("the vial refuses these plans, angles or parameters")
        s.master = [i for i in range(MAX_CHANNELS) if s.config.angle[i] > 0][0]
        s.config.mains_hz = mains_hz
        s.config.rpm = rpm
        s.config.half_cycle = half_cycle
        s.config.half_cycle_low = low
        s.config.half_cycle_high = high
        s.config.led_duty_percent = led_duty
        s.config.window_s = window_s
        od.rates = 1
        od.window_s[0] = window_s
        od.readings_per_second[0] = readings_per_second
        od.mains_hz = mains_hz
        od.normalization = OD_UNITY
        if od_init(&s.estimators.od, &od):
            raise ValueError("the estimators refuse this window or rate")
        leds.present = 15
        leds.locked = leds_locked
        leds.od = 0
        for i in range(4):
            leds.maximum_percent[i] = 100.0
        leds_init(&s.leds, &leds)
        self.bus.led_stages = led_stages
        self.bus.slow_ns = slow_ns
        self.bus.check_ns = check_ns
        self._wire()

    def _wire(self):
        cdef Sampler* s = self.sampler
        cdef int i
        sim_hal(&self.sim, &self.bus.vial)
        self.hal = self.bus.vial
        self.hal.context = &self.bus
        self.hal.adc_plan = bus_adc_plan
        self.hal.adc_start = bus_adc_start
        self.hal.adc_gain = bus_adc_gain
        self.hal.adc_convert = bus_adc_convert
        self.hal.adc_read = bus_adc_read
        self.hal.led_write = bus_led_write
        self.hal.led_channel_write = bus_led_channel_write
        self.hal.temperature_read = bus_temperature_read
        self.hal.temperature_check = bus_check
        self.hal.led_check = bus_check
        self.hal.rail_convert = bus_rail_convert
        self.hal.rail_read = bus_rail_read
        s.hal = &self.hal
        s.clock = &self.clock
        s.stirring_off = &self.stirring_off
        s.dosing = &self.dosing
        s.turn_us = &self.turn_us
        s.unlocked_mhz = &self.unlocked_mhz
        s.conversions = &self.tasks[0].policy
        s.temperature = &self.tasks[2].policy
        port_init(&s.port, self.memory, READING_ROOM, TRACE_ROOM, &s.estimators, sizeof(s.estimators), 0)
        self.tasks[0].run = sampling_tick
        self.tasks[1].run = housekeeping_tick
        self.tasks[2].run = temperature_tick
        sleep_for_ever(&self.tasks[0].policy)
        sleep_on_grid(&self.tasks[1].policy, self.bus.time.now_ns, 20000000)
        sleep_on_grid(&self.tasks[2].policy, self.bus.time.now_ns, 1000000000)
        for i in range(TASKS):
            self.tasks[i].context = s
            self.tasks[i].lateness = &self.lateness

    def push(self, int code, double value, int channel=0, int index=0):
        """Give the sampler a command."""
        cdef Command command = Command(0, <uint16_t>code, <uint16_t>channel, index, value)
        self.ids += 1
        command.id = self.ids
        ring_push(&self.sampler.port.commands, &command)

    def set(self, int parameter, double value):
        """Change a parameter of the vial now."""
        if sim_set(&self.sim, parameter, value):
            raise ValueError(f"the vial has no parameter {parameter} of {value}")

    def stick(self, int channel, bint stuck):
        """Let every transfer to a converter end with the adapter's time-out of 20 ms, or no longer."""
        self.bus.stuck[channel] = stuck

    def refuse_leds(self, bint refuse):
        """Let the driver refuse every change of an LED channel, or no longer."""
        self.bus.led_refuses = refuse

    def stir(self, double rpm, double unlocked_hz=0.0):
        """What the actuator thread says from now on: the stirrer's speed, and its PWM's frequency where that is not
        locked to the light."""
        self.turn_us = <uint32_t>(60e6 / rpm) if rpm > 0.0 else 0
        self.unlocked_mhz = <uint32_t>(1e3 * unlocked_hz)

    def run(self, double seconds):
        """Run on; returns (readings, trace, events): packed readings and trace items, and a list of (monotonic_ns,
        value, argument, code, source)."""
        cdef Task* table[TASKS]
        cdef uint32_t running = 1
        cdef int64_t end_ns = self.bus.time.now_ns + <int64_t>(1e9 * seconds)
        cdef int64_t until_ns
        cdef Event event
        cdef int i
        for i in range(TASKS):
            table[i] = &self.tasks[i]
        readings, trace, events = [], [], []
        while self.bus.time.now_ns < end_ns:
            until_ns = min(end_ns, self.bus.time.now_ns + 1000000000)
            with nogil:
                drive(table, TASKS, &self.clock, until_ns, &running)
            readings.append(drain(&self.sampler.port.readings, sizeof(Reading), READING_ROOM))
            trace.append(drain(&self.sampler.port.trace, sizeof(TraceItem), TRACE_ROOM))
            while ring_pop(&self.sampler.port.events, &event):
                events.append((event.monotonic_ns, event.value, event.argument, event.code, event.source))
        return b"".join(readings), b"".join(trace), events

    def now_ns(self):
        return self.bus.time.now_ns

    def transfers(self):
        """What went over the bus since the start, TRANSFER_DTYPE, in order; `kind` is an index of KINDS."""
        count = min(self.bus.count, self.bus.room)
        data = PyBytes_FromStringAndSize(<char*>self.bus.log, count * sizeof(Transfer))
        return np.frombuffer(data, TRANSFER_DTYPE)

    def look(self):
        """The sampler's own figures: {name: value}; lists are by channel."""
        cdef Sampler* s = self.sampler
        return {
            "half_cycle": s.half_cycle,
            "discard": s.discard,
            "settle_ns": s.settle_ns,
            "tau_ns": s.light_path.tau_ns,
            "master": s.master,
            "led_on": bool(s.led.on),
            "leds": [led_percent(s.leds.code[i]) for i in range(4)],
            "leds_pending": s.leds.pending,
            "led_seconds": s.led_seconds,
            "chop_period_ns": s.chop_period_ns,
            "slow_forced": s.slow_forced,
            "rail_v": s.rail_v,
            "bus_errors": s.bus_errors,
            "conversions": [s.channel[i].conversions for i in range(MAX_CHANNELS)],
            "missed": [s.channel[i].missed for i in range(MAX_CHANNELS)],
            "lost": [bool(s.channel[i].lost) for i in range(MAX_CHANNELS)],
            "adc_period_s": [self.sim.adc[i].period_s for i in range(MAX_CHANNELS)],
        }


def light_share(lag_ns, double aperture_ns, double half_ns, double tau_ns):
    """Share of the step seen by conversions that begin `lag_ns` after the edge."""
    return np.array([light_path_share(lag, aperture_ns, half_ns, tau_ns) for lag in np.asarray(lag_ns, dtype=float)])


def fit_light_path(lag_ns, codes, on, double aperture_ns, double half_ns, double delay_step_ns=0.0):
    """The light path from conversions of one channel: `lag_ns` (n,) from the last edge of the light to the begin of
    each, int64; `codes` (n,) int32; `on` (n,) 1 where that edge was to on. Returns tau_ns (NaN: not to be told),
    delay_ns, settle_ns and signal (the step over its standard error)."""
    cdef LightPath path
    cdef LightSearch search
    cdef const int64_t[::1] lag = np.ascontiguousarray(lag_ns, dtype=np.int64)
    cdef const int32_t[::1] code = np.ascontiguousarray(codes, dtype=np.int32)
    cdef const uint8_t[::1] level = np.ascontiguousarray(on, dtype=np.uint8)
    cdef Py_ssize_t i
    if not len(lag) == len(code) == len(level):
        raise ValueError(f"{len(lag)} lags, {len(code)} codes and {len(level)} levels: one of each is needed")
    light_path_clear(&path, aperture_ns, half_ns)
    for i in range(lag.shape[0]):
        light_path_add(&path, lag[i], code[i], level[i] != 0)
    light_search_begin(&search, aperture_ns, delay_step_ns)
    while not light_search_step(&search, &path, 1):
        pass
    return {"tau_ns": search.best.tau_ns, "delay_ns": search.best.delay_ns, "settle_ns": search.best.settle_ns,
            "signal": search.best.signal}
