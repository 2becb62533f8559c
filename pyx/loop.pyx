# Why compiled: holds the loop's state and its two threads; the only extension that a worker loads.
# Thread rule: all of it is for the host thread; the loop's threads run what actuators.pxd and sampling.pxd define.
# Units: nanoseconds of the loop's clock.
"""The compiled loop of a worker: real threads on a Pi, or lock-step in virtual time."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport NAN, isnan
from libc.stdint cimport INT64_MAX, int64_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free

from stirbar.rt.actuators cimport (
    DEADLINE_WORD, Actuators, actuators_dose, actuators_off, actuators_tick, doses_tick, pulses_tick)
from stirbar.rt.batches cimport follows, sort_by_stream
from stirbar.rt.configure cimport (
    configure_od, configure_plan, configure_sampling, configure_slow_light, configure_stirring)
from stirbar.rt.configure_dosing cimport configure_dosing
from stirbar.rt.configure_heat cimport configure_heat
from stirbar.rt.configure_leds cimport configure_leds
from stirbar.rt.configure_board cimport close_hardware, forget_hardware, hardware_counters, open_hardware
from stirbar.rt.chop cimport chop_rejection_db
from stirbar.rt.clock cimport (
    CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME, WAKE_LATE_ROOM, Clock, VirtualTime, clock_real, clock_virtual,
    read_clock_ns)
from stirbar.rt.envelope cimport Envelope, envelope_of, stirbar_read_only, stirbar_read_only_free
from stirbar.rt.doser cimport DOSE_LATE, STAGE_IDLE
from stirbar.rt.guard_link cimport (
    GUARD_DESCRIPTORS, GUARD_TEXT, stirbar_guard_connect, stirbar_page_map, stirbar_page_unmap)
from stirbar.rt.hal cimport Hal
from stirbar.rt.hardware cimport Hardware, hardware_hal
from stirbar.rt.heat_trust cimport DISTRUST_NONE
from stirbar.rt.heating cimport HeatConfig, heat_init
from stirbar.rt.histogram cimport HISTOGRAM_BINS, Histogram, histogram_edge_ns
from stirbar.rt.od_init cimport od_init
from stirbar.rt.od_price cimport OdPrice, od_price
from stirbar.rt.od_state cimport OdConfig
from stirbar.rt.outputs cimport OUTPUT_STIRRING, outputs_can_pulse
from stirbar.rt.ports cimport READING_ROOM, STREAM_COUNT, Port, port_init, port_memory_bytes, port_touch_trace
from stirbar.rt.realtime cimport (
    pthread_join, pthread_t, stirbar_lock_memory, stirbar_prefault, stirbar_thread_start, stirbar_trim_memory)
from stirbar.rt.ring cimport (
    ring_count, ring_pop, ring_pop_many, ring_push, stirbar_fence, stirbar_load_relaxed,
    stirbar_store_relaxed)
from stirbar.rt.curve cimport Curve
from stirbar.rt.estimators cimport SLOT_FUSION
from stirbar.rt.fusion cimport FusionModel
from stirbar.rt.leds cimport LED_CHANNELS, LedConfig, led_code, led_percent, leds_init
from stirbar.rt.light cimport sampler_light
from stirbar.rt.sampler_state cimport Sampler, Staged, sampler_rate_hz
from stirbar.rt.sampling cimport housekeeping_tick, sampling_tick, temperature_tick
from stirbar.rt.sim cimport Sim, SimConfig, sim_hal, sim_init, sim_set
from stirbar.rt.sim_log cimport Order
from stirbar.rt.sim_parameters cimport PARAM_COUNT
from stirbar.rt.sleep_policy cimport sleep_for_ever, sleep_on_grid
from stirbar.rt.stage cimport stage_curve, stage_fusion
from stirbar.rt.stirring cimport StirConfig, stir_init
from stirbar.rt.tasks cimport Task, drive
from stirbar.rt.volume cimport DOSE_PUMPS
from stirbar.rt.types cimport (
    COMMAND_TRACE, FLAG_SIMULATED, MAX_CHANNELS, TRACE_SNAPSHOT, Command, Event, Reading, TraceItem)

import errno
import os

cdef extern from *:
    """
    #ifndef STIRBAR_BUILD_ID
    #define STIRBAR_BUILD_ID "unknown"
    #endif
    """
    const char* STIRBAR_BUILD_ID

cdef enum:
    SAMPLING = 0
    ACTUATORS = 1
    THREADS = 2
    TASK_CONVERSIONS = 0
    TASK_HOUSEKEEPING = 1
    TASK_TEMPERATURE = 2
    TASK_ACTUATORS = 3
    TASK_PULSES = 4
    TASK_DOSES = 5
    TASKS = 6
    FIRST_ACTUATOR_TASK = TASK_ACTUATORS
    HOUSEKEEPING_NS = 20000000
    SAMPLING_TRACE_ROOM = 4096      # 2 s of two photodiodes at 950 conversions a second
    ACTUATORS_TRACE_ROOM = 1024     # 9 s of ticks
    ACTUATORS_READING_ROOM = 256    # four minutes of rpm
    SNAPSHOT_COPY_TRIES = 3
    STAGED_WORDS = 160              # of a calibration that one tick takes over

# Where virtual time begins: not 0, which some state takes for "never"; and the date that it shows.
cdef int64_t VIRTUAL_START_NS = 1000000000
cdef int64_t VIRTUAL_EPOCH_NS = 1767225600000000000  # 2026-01-01T00:00:00Z

cdef struct ThreadRun:
    Task* table[TASKS]
    int count
    const Clock* clock
    const uint32_t* running
    int status

cdef struct LoopState:
    Clock clock
    VirtualTime virtual_time
    Hal hal
    Hardware hardware
    Sim sim
    Sampler sampler
    Actuators actuators
    Histogram lateness[THREADS]
    Task tasks[TASKS]
    ThreadRun thread_run[THREADS]
    ThreadRun together
    uint32_t running
    Reading drained[READING_ROOM]

cdef union Calibration:
    Curve curve
    FusionModel fusion


cdef void* run_thread(void* context) noexcept nogil:
    cdef ThreadRun* run = <ThreadRun*>context
    stirbar_prefault()
    run.status = drive(run.table, run.count, run.clock, INT64_MAX, run.running)
    return NULL


cdef int simulate(void* context, int parameter, double value) noexcept nogil:
    return sim_set(<Sim*>context, parameter, value)


class HardwareError(Exception):
    """No board, or a board that cannot do what the config asks for."""


cdef class Loop:
    """The loop with its hardware (`[unit] simulate` chooses the simulated vial) and its two threads.

    `profile` (core/profiles.py) says which board the hardware is, or the vial's converters are like (None: two with
    ready lines). `guard` (core/guard.py, stays the caller's) holds a board's outputs; without one nothing moves.
    `missing` has a sentence for each part of the board that does not answer. `virtual` gives the vial a clock of its
    own that only `run_until` moves. Raises HardwareError where there is no board.

    Synchronization: all methods are for one thread, the host thread.
    """
    cdef LoopState* state
    cdef char* port_memory[THREADS]
    cdef pthread_t threads[THREADS]
    cdef bint is_virtual
    cdef bint is_simulated
    cdef bint started
    cdef int priorities[THREADS]
    cdef uint32_t cpus
    cdef bint lock_memory
    cdef int latency_fd
    cdef object latency_us
    cdef tuple simulation_names
    cdef readonly list missing
    cdef object profile
    cdef unsigned long long trace_sequences[THREADS]
    cdef bint trace_touched[THREADS]
    cdef bytes calibration

    def __cinit__(self, config, *, profile=None, guard=None, bint virtual=False):
        self.latency_fd = -1
        self.is_virtual = virtual
        self.state = <LoopState*>calloc(1, sizeof(LoopState))
        if self.state == NULL:
            raise MemoryError()
        forget_hardware(&self.state.hardware)

    def __init__(self, config, *, profile=None, guard=None, bint virtual=False):
        self.missing = []
        self.profile = profile
        self.is_simulated = bool(config.get("unit", "simulate"))
        if not self.is_simulated and (profile is None or virtual):
            raise HardwareError(
                "a board needs a hardware profile and real time: name one in [unit] hardware, or run with --simulate"
                " for a simulated vial")
        if virtual:
            clock_virtual(&self.state.clock, &self.state.virtual_time, VIRTUAL_START_NS)
        else:
            clock_real(&self.state.clock)
        self.priorities[SAMPLING] = config.get("loop.config", "priority_sampling")
        self.priorities[ACTUATORS] = config.get("loop.config", "priority_actuators")
        self.cpus = cpu_mask(config.get("loop.config", "cpu_affinity"))
        self.lock_memory = config.get("loop.config", "lock_memory")
        self.latency_us = config.get("loop.config", "cpu_dma_latency_us")
        self._configure_sampler(config)
        self._configure_actuators(config)
        if self.is_simulated:
            self._configure_simulation(config)
        self._make_ports()
        self._make_tasks(config)
        if guard is not None:
            self._watch_guard(guard)
        if not self.is_simulated:
            self._open_hardware(profile, guard)

    def __dealloc__(self):
        if self.state == NULL:
            return
        if self.started:
            self._join()
        if self.state.actuators.heartbeat != NULL:
            stirbar_page_unmap(self.state.actuators.heartbeat)
        if self.state.actuators.guard_beat != NULL:
            stirbar_page_unmap(self.state.actuators.guard_beat)
        if self.state.actuators.envelope != NULL:
            stirbar_read_only_free(self.state.actuators.envelope)
        close_hardware(&self.state.hardware)
        free(self.port_memory[SAMPLING])
        free(self.port_memory[ACTUATORS])
        free(self.state)

    # --- from the config ---------------------------------------------------------------------------------------------

    def _configure_sampler(self, config):
        cdef Sampler* s = &self.state.sampler
        cdef OdConfig od
        cdef LedConfig leds
        configure_leds(&leds, config, self.profile)
        if leds_init(&s.leds, &leds):
            raise ValueError("[leds.config] is outside the LEDs' envelope")
        s.master = configure_sampling(&s.config, config, self.profile)
        s.rail_v = NAN
        s.rail_lender = -1
        configure_od(&od, config)
        configure_slow_light(&od, self.profile)
        if od_init(&s.estimators.od, &od):
            raise ValueError(
                "[od_reading.config] or [od_config.photodiode_channel] is outside what the estimators can do")

    def _configure_actuators(self, config):
        cdef Actuators* a = &self.state.actuators
        cdef StirConfig stir
        cdef HeatConfig heat
        cdef Envelope envelope
        configure_stirring(&stir, config)
        if stir_init(&a.controllers.stir, &stir):
            raise ValueError("[stirring.config] or [stirring.pid] is outside the controller's envelope")
        configure_heat(&heat, config)
        if heat_init(&a.controllers.heat, &heat):
            raise ValueError("[temperature_automation.config] is outside the heater's envelope")
        configure_dosing(&a.controllers.dose, config)
        envelope_of(&a.controllers, &envelope)
        a.envelope = <const Envelope*>stirbar_read_only(&envelope, sizeof(Envelope))
        if a.envelope == NULL:
            raise OSError(errno.ENOMEM, "cannot make the limits read-only")
        a.stir_percent = a.heat_percent = a.pump = a.guard_wake = -1

    def _open_hardware(self, profile, guard):
        cdef Sampler* s = &self.state.sampler
        for i in range(MAX_CHANNELS):
            if s.config.angle[<int>i] >= 0 and profile.get(f"photodiode.{i + 1}", "chip") is None:
                raise HardwareError(
                    f"profile '{profile.name}' has no photodiode {i + 1}: leave [od_config.photodiode_channel] {i + 1}"
                    " empty, or choose another [unit] hardware")
        try:
            self.missing = open_hardware(&self.state.hardware, profile, guard)
        except ConnectionError as error:
            raise HardwareError(str(error)) from None
        if not outputs_can_pulse(
                &self.state.hardware.outputs, OUTPUT_STIRRING, self.state.actuators.stirrer_period_ns):
            raise HardwareError(
                f"[stirring.config] pwm_hz is too high: '{profile.name}' pulses the stirrer's line by timed writes;"
                " write at most 1000")
        hardware_hal(&self.state.hardware, &self.state.hal)

    def _configure_simulation(self, config):
        cdef SimConfig sim
        cdef int i
        # the section's keys: the seed, then the parameters in the order of PARAM_* (a test holds them equal)
        keys = [(key, value) for section, key, value in config.items() if section == "simulation"]
        if len(keys) != PARAM_COUNT + 1 or keys[0][0] != "seed":
            raise ValueError(f"[simulation] has {len(keys)} keys, this build knows a seed and {PARAM_COUNT} parameters")
        self.simulation_names = tuple([key for key, _ in keys[1:]])
        sim.seed = keys[0][1]
        for i in range(MAX_CHANNELS):
            sim.angle[i] = self.state.sampler.config.angle[i]
            configure_plan(&sim.plan[i], self.profile if sim.angle[i] >= 0 else None, i)
        for i in range(PARAM_COUNT):
            sim.parameter[i] = keys[i + 1][1]
        if sim_init(&self.state.sim, &sim, self.now_ns()):
            raise ValueError("[simulation] is outside what the model can do")
        sim_hal(&self.state.sim, &self.state.hal)

    def _make_ports(self):
        cdef LoopState* state = self.state
        cdef uint32_t flags = FLAG_SIMULATED if self.is_simulated else 0
        self.port_memory[SAMPLING] = <char*>calloc(
            1, port_memory_bytes(READING_ROOM, SAMPLING_TRACE_ROOM, sizeof(state.sampler.estimators)))
        self.port_memory[ACTUATORS] = <char*>calloc(
            1, port_memory_bytes(ACTUATORS_READING_ROOM, ACTUATORS_TRACE_ROOM, sizeof(state.actuators.controllers)))
        if self.port_memory[SAMPLING] == NULL or self.port_memory[ACTUATORS] == NULL:
            raise MemoryError()
        port_init(&state.sampler.port, self.port_memory[SAMPLING], READING_ROOM, SAMPLING_TRACE_ROOM,
                  &state.sampler.estimators, sizeof(state.sampler.estimators), flags)
        port_init(&state.actuators.port, self.port_memory[ACTUATORS], ACTUATORS_READING_ROOM, ACTUATORS_TRACE_ROOM,
                  &state.actuators.controllers, sizeof(state.actuators.controllers), flags)

    def _make_tasks(self, config):
        cdef LoopState* state = self.state
        cdef Task* task
        cdef int i
        cdef int64_t now_ns = self.now_ns()
        cdef int64_t control_ns = <int64_t>(config.get("loop.config", "control_period_ms") * 1000000)
        state.sampler.clock = &state.clock
        state.sampler.hal = &state.hal
        state.sampler.stirring_off = &state.actuators.stirring_off
        state.sampler.stirring_off_told = 2
        state.sampler.turn_us = &state.actuators.turn_us
        state.sampler.unlocked_mhz = &state.actuators.unlocked_mhz
        state.actuators.stirring_off = 1
        state.actuators.hal = &state.hal
        if self.is_simulated:
            state.sampler.simulate = state.actuators.simulate = simulate
            state.sampler.simulated = state.actuators.simulated = &state.sim
        state.actuators.pulses = &state.tasks[TASK_PULSES].policy
        state.actuators.doses = &state.tasks[TASK_DOSES].policy
        state.sampler.dosing = &state.actuators.dosing
        state.actuators.board_word = &state.sampler.board_word
        state.actuators.chop_period_ns = &state.sampler.chop_period_ns
        state.actuators.locked_chop_ns = 0xFFFFFFFF  # no period was chosen yet
        state.actuators.stirrer_period_ns = <int64_t>(1e9 / config.get("stirring.config", "pwm_hz"))
        state.sampler.conversions = &state.tasks[TASK_CONVERSIONS].policy
        state.sampler.temperature = &state.tasks[TASK_TEMPERATURE].policy
        state.tasks[TASK_CONVERSIONS].run = sampling_tick
        state.tasks[TASK_HOUSEKEEPING].run = housekeeping_tick
        state.tasks[TASK_TEMPERATURE].run = temperature_tick
        state.tasks[TASK_ACTUATORS].run = actuators_tick
        state.tasks[TASK_PULSES].run = pulses_tick
        state.tasks[TASK_DOSES].run = doses_tick
        sleep_for_ever(&state.tasks[TASK_DOSES].policy)
        sleep_for_ever(&state.tasks[TASK_PULSES].policy)
        sleep_for_ever(&state.tasks[TASK_CONVERSIONS].policy)
        sleep_on_grid(&state.tasks[TASK_HOUSEKEEPING].policy, now_ns, HOUSEKEEPING_NS)
        sleep_on_grid(&state.tasks[TASK_TEMPERATURE].policy, now_ns,
                      <int64_t>(config.get("temperature_automation.config", "interval_s") * 1000000000))
        sleep_on_grid(&state.tasks[TASK_ACTUATORS].policy, now_ns, control_ns)
        for i in range(TASKS):
            task = &state.tasks[i]
            task.context = &state.actuators if i >= FIRST_ACTUATOR_TASK else <void*>&state.sampler
            thread = ACTUATORS if i >= FIRST_ACTUATOR_TASK else SAMPLING
            task.lateness = &state.lateness[<int>thread]
            add_task(&state.thread_run[<int>thread], task)
            add_task(&state.together, task)
        state.thread_run[SAMPLING].clock = state.thread_run[ACTUATORS].clock = state.together.clock = &state.clock
        state.thread_run[SAMPLING].running = state.thread_run[ACTUATORS].running = &state.running

    def _watch_guard(self, guard):
        """Let the actuator thread count its ticks into the guard's page, and look at the guard's own."""
        cdef Actuators* a = &self.state.actuators
        a.heartbeat = stirbar_page_map(guard.heartbeat, 1)
        a.guard_beat = stirbar_page_map(guard.watch, 0)
        if a.heartbeat == NULL or a.guard_beat == NULL:
            raise OSError(errno.ENOMEM, "cannot map the guard's pages")
        a.beats = stirbar_load_relaxed(a.heartbeat)
        a.guard_wake = guard.wake
        for i in range(DOSE_PUMPS):
            stirbar_store_relaxed(&a.heartbeat[DEADLINE_WORD + <int>i], 0)

    # --- running -----------------------------------------------------------------------------------------------------

    def start(self):
        """Start the two threads; returns what the system refused: a list of (what, errno).

        Raises OSError when a thread cannot be started at all.
        """
        cdef LoopState* state = self.state
        cdef int i, status
        cdef int64_t now_ns = self.now_ns()
        cdef const char* names[THREADS]
        names[SAMPLING] = "stirbar-sample"
        names[ACTUATORS] = "stirbar-act"
        refused = []
        stirbar_trim_memory()
        if self.lock_memory:
            status = stirbar_lock_memory()
            if status:
                refused.append(("locking memory", status))
        self._hold_latency(refused)
        for i in range(TASKS):
            if state.tasks[i].policy.period_ns:
                state.tasks[i].policy.target_ns = now_ns
        stirbar_store_relaxed(&state.running, 1)
        self.started = True
        for i in (ACTUATORS, SAMPLING):
            status = stirbar_thread_start(
                &self.threads[i], names[i], self.priorities[i], self.cpus, run_thread, &state.thread_run[i])
            if status == errno.EPERM and self.priorities[i] > 0:
                refused.append((f"real-time priority {self.priorities[i]} for {names[i].decode()}", status))
                status = stirbar_thread_start(
                    &self.threads[i], names[i], 0, self.cpus, run_thread, &state.thread_run[i])
            if status:
                raise OSError(status, f"cannot start the thread {names[i].decode()}: {os.strerror(status)}")
        return refused

    def _hold_latency(self, refused):
        """Ask the kernel to keep the processor out of deep sleep for as long as the worker lives."""
        if self.latency_us < 0:
            return
        try:
            self.latency_fd = os.open("/dev/cpu_dma_latency", os.O_WRONLY | os.O_CLOEXEC)
            os.write(self.latency_fd, int(self.latency_us).to_bytes(4, "little"))
        except OSError as error:
            refused.append(("holding /dev/cpu_dma_latency", error.errno))

    cdef void _join(self) noexcept:
        cdef LoopState* state = self.state
        stirbar_store_relaxed(&state.running, 0)
        with nogil:
            pthread_join(self.threads[SAMPLING], NULL)
            pthread_join(self.threads[ACTUATORS], NULL)
        self.started = False

    def stop(self):
        """End the threads, switch the OD LED and the outputs off, let go of the board. Safe to call twice."""
        if self.started:
            self._join()
        actuators_dose(&self.state.actuators, DOSE_LATE, self.now_ns())
        if self.is_simulated:
            sampler_light(&self.state.sampler, 0)
            actuators_off(&self.state.actuators, self.now_ns())
        close_hardware(&self.state.hardware)
        if self.latency_fd >= 0:
            os.close(self.latency_fd)
            self.latency_fd = -1

    def run_until(self, int64_t until_ns):
        """Virtual time: run both threads' tasks in lock-step, up to and including this instant."""
        cdef LoopState* state = self.state
        cdef uint32_t running = 1
        if not self.is_virtual:
            raise RuntimeError("run_until needs a loop in virtual time")
        with nogil:
            drive(state.together.table, state.together.count, &state.clock, until_ns, &running)

    def wake_late(self, late_ns):
        """Virtual time: let each sleep end late by one of these times (ns, at most 1024 quantiles of a distribution),
        drawn with equal chance. Raises ValueError for none or too many."""
        cdef int i
        if not 0 < len(late_ns) <= WAKE_LATE_ROOM:
            raise ValueError(f"{len(late_ns)} quantiles of lateness; 1 to {WAKE_LATE_ROOM} can be given")
        for i in range(WAKE_LATE_ROOM):
            self.state.virtual_time.late_ns[i] = late_ns[i * len(late_ns) // WAKE_LATE_ROOM]
        self.state.virtual_time.draw = 2463534242

    # --- clocks ------------------------------------------------------------------------------------------------------

    def now_ns(self):
        """Now, on the loop's clock."""
        return self.state.clock.now_ns(self.state.clock.context)

    def clock_triple(self):
        """CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC and CLOCK_REALTIME, read together, ns."""
        cdef int64_t now_ns
        if self.is_virtual:
            now_ns = self.now_ns()
            return now_ns, now_ns, VIRTUAL_EPOCH_NS + now_ns
        return read_clock_ns(CLOCK_MONOTONIC_RAW), read_clock_ns(CLOCK_MONOTONIC), read_clock_ns(CLOCK_REALTIME)

    # --- to and from the loop ----------------------------------------------------------------------------------------

    cdef Port* _port(self, int thread) noexcept:
        return &self.state.actuators.port if thread == ACTUATORS else &self.state.sampler.port

    def push(self, int thread, uint32_t identifier, int code, int channel, int index, double value):
        """Give a thread (0 sampling, 1 actuators) a command; False when its ring is full."""
        cdef Command command
        if code == COMMAND_TRACE and not self.trace_touched[thread]:
            port_touch_trace(self._port(thread))
            self.trace_touched[thread] = True
        command.id = identifier
        command.code = <uint16_t>code
        command.channel = <uint16_t>channel
        command.index = index
        command.value = value
        return bool(ring_push(&self._port(thread).commands, &command))

    def prepare_calibration(self, int slot, data):
        """Get a calibration ready for a slot (0..3 photodiode channels, 4 fused estimator); `data` is as for stage.pxd,
        None for none. Returns how many parts are to be staged; raises ValueError for what cannot be applied."""
        cdef Calibration made
        cdef Py_ssize_t size = sizeof(FusionModel) if slot == SLOT_FUSION else sizeof(Curve)
        if not 0 <= slot <= SLOT_FUSION:
            raise ValueError(f"no slot {slot} for a calibration")
        if data is None:
            size = 0
        elif slot == SLOT_FUSION:
            stage_fusion(&made.fusion, data)
        else:
            stage_curve(&made.curve, data)
        self.calibration = PyBytes_FromStringAndSize(<char*>&made, size)
        return max(1, (size // 8 + STAGED_WORDS - 1) // STAGED_WORDS)

    def stage_calibration(self, int slot, int part):
        """Stage a part of what was prepared; then push COMMAND_CURVE, and leave it until that is answered."""
        cdef Staged* staged = &self.state.sampler.staged
        cdef Py_ssize_t words = len(self.calibration) // 8
        if not 0 <= part <= words // STAGED_WORDS:
            raise ValueError(f"the calibration has no part {part}")
        staged.slot = slot
        staged.first = part * STAGED_WORDS
        staged.word = <const int64_t*><const char*>self.calibration + staged.first
        staged.count = min(words - staged.first, STAGED_WORDS)
        staged.last = words > 0 and staged.first + staged.count == words

    def drain_events(self):
        """Events since the last call: a list of (monotonic_ns, value, argument, code, source)."""
        cdef Event event
        cdef int thread
        events = []
        for thread in range(THREADS):
            while ring_pop(&self._port(thread).events, &event):
                events.append((event.monotonic_ns, event.value, event.argument, event.code, event.source))
        return events

    def drain_readings(self):
        """Readings since the last call, in batches of one stream, one experiment and contiguous sequence numbers:
        a list of (stream, experiment, count, first_sequence, packed readings)."""
        cdef Reading* drained = self.state.drained
        cdef uint32_t count, i, first
        cdef int thread
        cdef int64_t offset_ns
        batches = []
        _, monotonic_ns, realtime_ns = self.clock_triple()
        offset_ns = realtime_ns - monotonic_ns
        for thread in range(THREADS):
            count = ring_pop_many(&self._port(thread).readings, <char*>drained, READING_ROOM)
            for i in range(count):
                drained[i].wall_ns = drained[i].monotonic_ns + offset_ns
            sort_by_stream(drained, count)
            first = 0
            for i in range(1, count + 1):
                if i == count or not follows(&drained[i - 1], &drained[i]):
                    batches.append((
                        drained[first].stream, drained[first].experiment, i - first, drained[first].sequence,
                        PyBytes_FromStringAndSize(<char*>&drained[first], (i - first) * sizeof(Reading)),
                    ))
                    first = i
        return batches

    def drain_trace(self, int thread):
        """Trace items since the last call, or None: (sequence of the first, packed items, snapshots among them).

        A snapshot is (number, sequence of its item, state).
        """
        cdef Port* port = self._port(thread)
        cdef uint32_t count = ring_count(&port.trace)
        cdef TraceItem* items
        cdef uint32_t i
        if count == 0:
            return None
        data = PyBytes_FromStringAndSize(NULL, count * sizeof(TraceItem))
        items = <TraceItem*><char*>data
        count = ring_pop_many(&port.trace, <char*>items, count)
        first = self.trace_sequences[thread]
        self.trace_sequences[thread] += count
        snapshots = []
        for i in range(count):
            if items[i].kind == TRACE_SNAPSHOT:
                state = PyBytes_FromStringAndSize(port.snapshot, port.state_bytes)
                stirbar_fence()
                # the next snapshot, seconds later, is made in the same place: a copy that came too late may be torn
                if stirbar_load_relaxed(&port.snapshot_number) == items[i].index:
                    snapshots.append((items[i].index, first + i, state))
        return first, data, snapshots

    # --- looking -----------------------------------------------------------------------------------------------------

    def counters(self):
        """Everything that is counted, by name; each only ever grows."""
        cdef LoopState* state = self.state
        cdef Sampler* s = &state.sampler
        cdef int i
        conversions = missed = 0
        for i in range(MAX_CHANNELS):
            conversions += s.channel[i].conversions
            missed += s.channel[i].missed
        ticks = sum([state.tasks[i].ticks for i in range(TASKS)])
        dropped = 0
        for i in range(THREADS):
            dropped += self._port(i).readings.dropped + self._port(i).events.dropped
        bus = {"bus_transfers": state.sim.bus_transfers, "bus_busy_ms": state.sim.bus_busy_ms}
        below = bus if self.is_simulated else hardware_counters(&state.hardware, state.hal.counters)
        return below | {
            "ticks": ticks,
            "overruns": sum([state.tasks[i].policy.overruns for i in range(TASKS)]),
            "conversions": conversions,
            "missed_conversions": missed,
            "ring_drops": dropped,
            "trace_drops": state.sampler.port.trace.dropped + state.actuators.port.trace.dropped,
            "bus_errors": s.bus_errors + state.actuators.bus_errors,
            "slow_reads_forced": s.slow_forced,
        }

    def lateness(self, int thread):
        """The lateness histogram of a thread: {"counts": [[low_ns, high_ns, count], ...], "worst_ns"}."""
        cdef Histogram* histogram = &self.state.lateness[thread]
        cdef int i
        counts = [
            [histogram_edge_ns(i), histogram_edge_ns(i + 1), histogram.counts[i]]
            for i in range(HISTOGRAM_BINS) if histogram.counts[i]
        ]
        return {"counts": counts, "worst_ns": histogram.worst_ns}

    def sequences(self):
        """One past the last sequence number of each stream of readings: {stream: end}."""
        cdef int thread, stream
        ends = {}
        for thread in range(THREADS):
            for stream in range(STREAM_COUNT):
                if self._port(thread).sequences[stream]:
                    ends[stream] = self._port(thread).sequences[stream]
        return ends

    def channels(self):
        """The photodiode channels in use: a list of (channel 1..4, angle in degrees; 0 is the reference)."""
        cdef int i
        return [(i + 1, self.state.sampler.config.angle[i])
                for i in range(MAX_CHANNELS) if self.state.sampler.config.angle[i] >= 0]

    def volts_per_code(self):
        """What a conversion's code stands for: {channel: volts}, None where the range follows the light (the trace
        says it then)."""
        cdef int i
        cdef double full_scale_v
        found = {}
        for i in range(MAX_CHANNELS):
            full_scale_v = self.state.sampler.config.full_scale_v[i]
            found[i + 1] = full_scale_v / 32768.0 if full_scale_v else None
        return found

    def half_cycle(self):
        """k in force: conversions in half a chop cycle."""
        return self.state.sampler.half_cycle

    def price(self):
        """What chopping costs the first rate's windows, for the k and the converter's rate that are in force
        (od_price.pxd): {name: value}, empty where nothing is chopped yet."""
        cdef Sampler* s = &self.state.sampler
        cdef OdPrice price
        cdef double mains = s.estimators.od.line.nominal_hz
        if od_price(sampler_rate_hz(s, s.master), s.half_cycle, s.discard, s.estimators.od.config.window_s[0], mains,
                    &price):
            return {}
        return price

    def chop(self):
        """How the light is chopped: half_cycle (k), discard (d), frequency_hz, time constant of the light path
        (light_path_ms, None while it is not known), settle_ms, and what is left of ambient light that varies at 0.1, 1
        and 5 Hz in a reading (rejection_db)."""
        cdef Sampler* s = &self.state.sampler
        cdef double rate_hz = sampler_rate_hz(s, s.master)
        cdef double aperture = s.channel[s.master].aperture_ns / s.channel[s.master].period_ns
        if s.half_cycle == 0:
            return None
        return {
            "half_cycle": s.half_cycle,
            "discard": s.discard,
            "frequency_hz": rate_hz / (2 * s.half_cycle),
            "light_path_ms": None if isnan(s.light_path.tau_ns) else 1e-6 * s.light_path.tau_ns,
            "settle_ms": 1e-6 * s.settle_ns,
            "rejection_db": [
                chop_rejection_db(hertz, rate_hz, s.half_cycle, s.discard, aperture, s.config.window_s)
                for hertz in (0.1, 1.0, 5.0)
            ],
        }

    def heat_limited(self):
        """Why the heater has less than was asked for: the bits of heat_protect.pxd, as far as they were told."""
        return self.state.actuators.heat_reasons

    def heat_trusted(self):
        """Whether the heater's sensor is believed (heat_trust.pxd)."""
        return self.state.actuators.controllers.heat.trust.distrust == DISTRUST_NONE

    def limits(self):
        """What heater, pumps and stirrer are held to (limits.pxd): {name: {limit: value}}; nothing changes it while the
        loop runs."""
        cdef const Envelope* envelope = self.state.actuators.envelope
        stirrer = {"duty_maximum_percent": envelope.stir_duty_maximum_percent, "rpm_maximum": envelope.stir_rpm_maximum}
        return {"heater": envelope.heat, "pumps": envelope.dose, "stirrer": stirrer}

    def limits_address(self):
        """Where they lie, for a test that tries to write there, and (in the loop's own state) beside it."""
        return <size_t>self.state.actuators.envelope, <size_t>&self.state.actuators.controllers.dose.limits

    def dosing(self):
        """Whether a dose is under way."""
        return self.state.actuators.controllers.dose.stage != STAGE_IDLE

    def led_seconds(self):
        """For how long the OD LED was lit since the start, as seconds at full intensity."""
        return stirbar_load_relaxed(&self.state.sampler.led_seconds)

    def leds(self):
        """The LED channels of the hardware and what each gives: {"B": percent}. The OD LED's is what it was set to by
        hand; the light of the measurement does not count."""
        cdef Sampler* s = &self.state.sampler
        cdef int i
        return {"ABCD"[i]: led_percent(stirbar_load_relaxed(&s.leds.code[i]))
                for i in range(LED_CHANNELS) if s.leds.config.present >> i & 1}

    def od_led(self):
        """The channel of the OD LED, A..D; empty where there is none."""
        cdef int i = self.state.sampler.leds.config.od
        return "ABCD"[i] if i >= 0 else ""

    def rail_v(self):
        """Voltage of the PWM rail; None where the board cannot tell."""
        return None if isnan(self.state.sampler.rail_v) or self.state.sampler.rail_absent else self.state.sampler.rail_v

    def simulated(self):
        """Whether the hardware is the simulated vial."""
        return bool(self.is_simulated)

    def simulation_values(self):
        """Parameters of the simulated vial in force: {name: value}; none on a board."""
        if not self.is_simulated:
            return {}
        return {name: self.state.sim.parameter[i] for i, name in enumerate(self.simulation_names)}

    def simulated_orders(self):
        """What the loop has ordered of the simulated outputs since the last call: a list of (time_ns, output, duty in
        percent), output as LOG_* of sim_log.pxd; the last may be how many found no room, as (time_ns, -1, count)."""
        cdef Order order
        orders = []
        while ring_pop(&self.state.sim.log.ring, &order):
            orders.append((order.time_ns, order.output, order.duty_percent))
        if self.state.sim.log.ring.dropped:
            orders.append((self.now_ns(), -1, self.state.sim.log.ring.dropped))
        return orders

    def simulated_truth(self):
        """What is really so in the simulated vial: {name: value}; in virtual time."""
        cdef Sim* sim = &self.state.sim
        return {
            "volume_ml": sim.culture.volume_ml,
            "board_degc": sim.thermal.board_degc,
            "liquid_degc": sim.thermal.liquid_degc,
            "pumped_ml": [1e-6 * sim.pumps.delivered_nl[i] for i in range(DOSE_PUMPS)],
        }

    def code_addresses(self):
        """Where compiled functions lie, for a profiler that has no symbols: {"vial": [...], "ticks": [...]}."""
        cdef Hal* hal = &self.state.hal
        vial = [<size_t>hal.adc_start, <size_t>hal.adc_read, <size_t>hal.led_write, <size_t>hal.led_channel_write,
                <size_t>hal.temperature_read, <size_t>hal.edges_read, <size_t>hal.stirrer_write,
                <size_t>hal.heater_write, <size_t>hal.pump_write]
        return {"vial": vial, "ticks": [<size_t>self.state.tasks[i].run for i in range(TASKS)]}

    def build_id(self):
        """Names the compiled code: equal ids give bit-identical replays on one architecture."""
        return STIRBAR_BUILD_ID.decode()


def led_intensity(double percent):
    """The intensity that the LEDs' driver makes of one that is asked for: a step of 8 bits."""
    return led_percent(led_code(percent))


def guard_connect(bytes path, int timeout_ms):
    """Connect to the guard and take its first message: (connection, text, [descriptors]). Raises OSError."""
    cdef char text[GUARD_TEXT]
    cdef int fds[GUARD_DESCRIPTORS]
    cdef int length, count, i
    cdef int connection = stirbar_guard_connect(path, timeout_ms, text, &length, fds, &count)
    if connection < 0:
        raise OSError(-connection, os.strerror(-connection))
    return connection, text[:length], [fds[i] for i in range(count)]


cdef void add_task(ThreadRun* run, Task* task) noexcept:
    run.table[run.count] = task
    run.count += 1


def cpu_mask(text):
    """Processors as the config lists them ("0,2-3"), as a bit mask; 0 for any. Raises ValueError beyond 31."""
    mask = 0
    for part in str(text or "").replace(" ", "").split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        for number in range(int(first), int(last or first) + 1):
            if not 0 <= number < 32:
                raise ValueError(f"[loop.config] cpu_affinity names processor {number}; 0 to 31 can be named")
            mask |= 1 << number
    return mask
