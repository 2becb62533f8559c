# Why compiled: lets tests and NumPy users drive the loop's own ring, histogram, sleep policy and task driver.
# Thread rule: an instance belongs to one thread, but for Ring: one thread pushes, one other pops.
# Units: nanoseconds of whatever clock the caller means.
"""The loop's small parts for NumPy users; never loaded by a worker."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

import numpy as np

from stirbar.rt cimport histogram as h
from stirbar.rt cimport ring as r
from stirbar.rt cimport sleep_policy as s
from stirbar.rt.clock cimport Clock, VirtualTime, clock_virtual
from stirbar.rt.tasks cimport Task, drive
from stirbar.rt.types cimport Command, Event, Reading, TraceItem

HISTOGRAM_BINS = h.HISTOGRAM_BINS

cdef enum:
    TASKS_MAXIMUM = 16


cdef class Ring:
    """A ring of `capacity` items (a power of two) of `item_size` bytes, its indices counted from `start`.

    Synchronization: one thread calls push and produce, one other pop, pop_many and consume.
    """
    cdef r.Ring ring
    cdef char* memory

    def __init__(self, uint32_t item_size, uint32_t capacity, uint32_t start=0):
        if self.memory != NULL:
            raise RuntimeError("a Ring is made once")
        self.memory = <char*>calloc(max(capacity, 1), max(item_size, 1))
        if self.memory == NULL:
            raise MemoryError()
        if r.ring_init(&self.ring, self.memory, item_size, capacity):
            raise ValueError(f"capacity must be a power of two, not {capacity}")
        self.ring.head = self.ring.tail = start

    def __dealloc__(self):
        free(self.memory)

    def push(self, bytes item):
        """False, and counted, when the ring is full. Raises ValueError for an item of another size."""
        if len(item) != self.ring.item_size:
            raise ValueError(f"item of {len(item)} bytes, expected {self.ring.item_size}")
        return bool(r.ring_push(&self.ring, <const char*>item))

    def pop(self):
        """The oldest item, or None."""
        item = PyBytes_FromStringAndSize(NULL, self.ring.item_size)
        return item if r.ring_pop(&self.ring, <char*>item) else None

    def pop_many(self, uint32_t room):
        """Up to `room` items, packed."""
        items = PyBytes_FromStringAndSize(NULL, room * self.ring.item_size)
        return items[:r.ring_pop_many(&self.ring, <char*>items, room) * self.ring.item_size]

    def __len__(self):
        return r.ring_count(&self.ring)

    @property
    def dropped(self):
        """Items that found the ring full."""
        return self.ring.dropped

    def produce(self, uint64_t first, uint64_t count):
        """Push the numbers first, first + 1, ... (items of 8 bytes) without the GIL, again and again when full."""
        cdef uint64_t i
        self._numbers_only()
        with nogil:
            for i in range(first, first + count):
                while not r.ring_push(&self.ring, &i):
                    pass

    def consume(self, uint64_t first, uint64_t count, uint32_t batch):
        """Pop `count` numbers without the GIL, up to `batch` at a time; returns how many were not the next one."""
        cdef uint64_t numbers[256]
        cdef uint64_t expected = first, wrong = 0
        cdef uint32_t room, n, i
        self._numbers_only()
        if not 1 <= batch <= 256:
            raise ValueError(f"batch must be 1 to 256, not {batch}")
        with nogil:
            while expected - first < count:
                room = <uint32_t>min(<uint64_t>batch, count - (expected - first))
                if batch == 1:
                    n = r.ring_pop(&self.ring, &numbers[0])
                else:
                    n = r.ring_pop_many(&self.ring, <char*>&numbers[0], room)
                for i in range(n):
                    wrong += numbers[i] != expected
                    expected += 1
        return wrong

    def _numbers_only(self):
        if self.ring.item_size != sizeof(uint64_t):
            raise ValueError(f"this needs items of 8 bytes, not {self.ring.item_size}")


cdef class Histogram:
    """The loop's lateness histogram.

    Synchronization: none; one thread.
    """
    cdef h.Histogram histogram

    def __cinit__(self):
        memset(&self.histogram, 0, sizeof(self.histogram))

    def add(self, const int64_t[::1] values_ns):
        """Count values, int64 ns, shape (n,); negative ones are counted in `early`."""
        cdef Py_ssize_t i
        with nogil:
            for i in range(values_ns.shape[0]):
                h.histogram_add(&self.histogram, values_ns[i])

    @property
    def counts(self):
        """A copy of the bins, uint32, shape (HISTOGRAM_BINS,)."""
        return np.array(<uint32_t[:h.HISTOGRAM_BINS]>&self.histogram.counts[0])

    @property
    def early(self):
        return self.histogram.early

    @property
    def worst_ns(self):
        return self.histogram.worst_ns


def histogram_bin(int64_t value_ns):
    """Bin of a value >= 0 ns."""
    return h.histogram_bin(value_ns)


def histogram_edges_ns():
    """Lower edges of the bins, int64, shape (HISTOGRAM_BINS,)."""
    return np.array([h.histogram_edge_ns(i) for i in range(h.HISTOGRAM_BINS)], dtype=np.int64)


cdef class SleepPolicy:
    """One task's sleep policy.

    Synchronization: none; one thread.
    """
    cdef s.SleepPolicy policy

    def __init__(self, int64_t first_ns, int64_t period_ns):
        s.sleep_on_grid(&self.policy, first_ns, period_ns)

    def next(self, int64_t now_ns):
        """Advance to the next grid point after now_ns; returns it."""
        s.sleep_next(&self.policy, now_ns)
        return self.policy.target_ns

    def until(self, int64_t wanted_ns, int64_t now_ns):
        """Follow another clock; returns the target."""
        s.sleep_until(&self.policy, wanted_ns, now_ns)
        return self.policy.target_ns

    def for_ever(self):
        """Sleep until someone sets another target; returns the target."""
        s.sleep_for_ever(&self.policy)
        return self.policy.target_ns

    @property
    def target_ns(self):
        return self.policy.target_ns

    @property
    def overruns(self):
        return self.policy.overruns


cdef struct Recorder:
    VirtualTime* time
    int64_t* woken_ns        # of every run of every task, in order
    int64_t* task
    int64_t* count
    int64_t room
    int64_t cost_ns
    int64_t number


cdef void record_run(void* context, s.SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    cdef Recorder* recorder = <Recorder*>context
    if recorder.count[0] < recorder.room:
        recorder.woken_ns[recorder.count[0]] = now_ns
        recorder.task[recorder.count[0]] = recorder.number
    recorder.count[0] += 1
    recorder.time.now_ns += recorder.cost_ns
    s.sleep_next(policy, recorder.time.now_ns)


def drive_tasks(
    const int64_t[::1] first_ns, const int64_t[::1] period_ns, const int64_t[::1] cost_ns, int64_t until_ns,
    int64_t room
):
    """Run tasks on grids in virtual time from 0 to until_ns with the loop's own driver.

    The arrays have one entry a task (at most 16), int64 ns; each run of a task takes its cost_ns. Returns woken_ns
    and task of the first `room` runs in order, shape (n,), then each task's ticks and overruns, the histogram's counts,
    and where the clock ended.
    """
    cdef int count = <int>first_ns.shape[0]
    cdef VirtualTime time
    cdef Clock clock
    cdef h.Histogram lateness
    cdef Recorder recorder[TASKS_MAXIMUM]
    cdef Task tasks[TASKS_MAXIMUM]
    cdef Task* table[TASKS_MAXIMUM]
    cdef int64_t runs = 0
    cdef uint32_t running = 1
    cdef int i, status
    if not 1 <= count <= TASKS_MAXIMUM or period_ns.shape[0] != count or cost_ns.shape[0] != count:
        raise ValueError(f"drive_tasks takes 1 to {TASKS_MAXIMUM} tasks with a first, a period and a cost each")
    cdef int64_t[::1] woken = np.zeros(max(room, 1), dtype=np.int64)
    cdef int64_t[::1] which = np.zeros(max(room, 1), dtype=np.int64)
    memset(&lateness, 0, sizeof(lateness))
    memset(tasks, 0, sizeof(tasks))
    clock_virtual(&clock, &time, 0)
    for i in range(count):
        recorder[i] = Recorder(&time, &woken[0], &which[0], &runs, room, cost_ns[i], i)
        s.sleep_on_grid(&tasks[i].policy, first_ns[i], period_ns[i])
        tasks[i].run = record_run
        tasks[i].context = &recorder[i]
        tasks[i].lateness = &lateness
        table[i] = &tasks[i]
    with nogil:
        status = drive(table, count, &clock, until_ns, &running)
    if status:
        raise OSError(status, "the driver's sleep failed")
    n = min(runs, room)
    return (
        np.asarray(woken)[:n], np.asarray(which)[:n],
        np.array([tasks[i].ticks for i in range(count)]), np.array([tasks[i].policy.overruns for i in range(count)]),
        np.array(<uint32_t[:h.HISTOGRAM_BINS]>&lateness.counts[0]), time.now_ns,
    )


def struct_layouts():
    """How the compiler lays out the records: {struct: (bytes, {field: (offset, bytes)})}."""
    cdef Reading g
    cdef TraceItem t
    cdef Event e
    cdef char* o = <char*>&g
    reading = {
        "sequence": (<char*>&g.sequence - o, sizeof(g.sequence)),
        "monotonic_ns": (<char*>&g.monotonic_ns - o, sizeof(g.monotonic_ns)),
        "wall_ns": (<char*>&g.wall_ns - o, sizeof(g.wall_ns)),
        "value": (<char*>&g.value - o, sizeof(g.value)),
        "se_instrument": (<char*>&g.se_instrument - o, sizeof(g.se_instrument)),
        "se_culture": (<char*>&g.se_culture - o, sizeof(g.se_culture)),
        "window_s": (<char*>&g.window_s - o, sizeof(g.window_s)),
        "noise_bandwidth_hz": (<char*>&g.noise_bandwidth_hz - o, sizeof(g.noise_bandwidth_hz)),
        "signal_v": (<char*>&g.signal_v - o, sizeof(g.signal_v)),
        "reference_v": (<char*>&g.reference_v - o, sizeof(g.reference_v)),
        "ambient_v": (<char*>&g.ambient_v - o, sizeof(g.ambient_v)),
        "blank": (<char*>&g.blank - o, sizeof(g.blank)),
        "used": (<char*>&g.used - o, sizeof(g.used)),
        "rejected": (<char*>&g.rejected - o, sizeof(g.rejected)),
        "flags": (<char*>&g.flags - o, sizeof(g.flags)),
        "experiment": (<char*>&g.experiment - o, sizeof(g.experiment)),
        "stream": (<char*>&g.stream - o, sizeof(g.stream)),
        "angle": (<char*>&g.angle - o, sizeof(g.angle)),
        "half_cycle": (<char*>&g.half_cycle - o, sizeof(g.half_cycle)),
        "version": (<char*>&g.version - o, sizeof(g.version)),
    }
    o = <char*>&t
    trace = {
        "kind": (<char*>&t.kind - o, sizeof(t.kind)),
        "channel": (<char*>&t.channel - o, sizeof(t.channel)),
        "phase": (<char*>&t.phase - o, sizeof(t.phase)),
        "flags": (<char*>&t.flags - o, sizeof(t.flags)),
        "index": (<char*>&t.index - o, sizeof(t.index)),
        "value": (<char*>&t.value - o, sizeof(t.value)),
    }
    o = <char*>&e
    event = {
        "monotonic_ns": (<char*>&e.monotonic_ns - o, sizeof(e.monotonic_ns)),
        "value": (<char*>&e.value - o, sizeof(e.value)),
        "argument": (<char*>&e.argument - o, sizeof(e.argument)),
        "code": (<char*>&e.code - o, sizeof(e.code)),
        "source": (<char*>&e.source - o, sizeof(e.source)),
    }
    return {
        "Reading": (sizeof(Reading), reading),
        "TraceItem": (sizeof(TraceItem), trace),
        "Command": (sizeof(Command), {}),
        "Event": (sizeof(Event), event),
    }
