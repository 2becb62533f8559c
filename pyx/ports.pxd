# Why compiled: one thread's way to and from the host thread: commands in; readings, events and trace out.
# Thread rule: the loop's thread that owns the port uses the functions here; the host thread only the rings' other ends,
#   and a snapshot after it has seen its trace item.
# Units: nanoseconds of the loop's clock; sequence numbers count per stream.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from stirbar.rt.ring cimport (
    Ring, ring_count, ring_init, ring_pop, ring_push, stirbar_fence, stirbar_store_relaxed)
from stirbar.rt.types cimport (
    STREAM_MODULATION4, TRACE_SNAPSHOT, Command, Event, Reading, TraceItem)

cdef enum:
    COMMAND_ROOM = 64
    READING_ROOM = 512       # at most, of one port: 25 s of two photodiodes at 10 readings a second
    EVENT_ROOM = 64
    STREAM_COUNT = STREAM_MODULATION4 + 1
    SNAPSHOT_PERIOD_S = 5    # a recording can begin, and go on after a hole, at each of these

cdef struct Port:
    Ring commands
    Ring readings
    Ring events
    Ring trace
    char* snapshot           # of `state`, by the number snapshot_number
    uint64_t sequences[STREAM_COUNT]
    int64_t trace_until_ns   # 0: no trace
    int64_t snapshot_at_ns
    const void* state        # what a snapshot is of
    uint32_t state_bytes
    uint32_t snapshot_number
    uint32_t trace_broken    # the trace ring was full: nothing more until a snapshot fits
    uint32_t experiment
    uint32_t flags           # set in every reading


cdef inline size_t port_memory_bytes(uint32_t reading_room, uint32_t trace_room, uint32_t state_bytes) noexcept nogil:
    """Memory that port_init wants."""
    return (
        COMMAND_ROOM * sizeof(Command) + reading_room * sizeof(Reading) + EVENT_ROOM * sizeof(Event)
        + trace_room * sizeof(TraceItem) + state_bytes
    )


cdef inline void port_init(
    Port* port, char* memory, uint32_t reading_room, uint32_t trace_room,
    const void* state, uint32_t state_bytes, uint32_t flags
) noexcept nogil:
    """Empty rings in the memory given, which is touched, so that no page fault is left for later; all but that of trace
    and snapshot (port_touch_trace).

    reading_room (at most READING_ROOM) and trace_room are powers of two.
    """
    memset(port, 0, sizeof(Port))
    memset(memory, 0, port_memory_bytes(reading_room, 0, 0))
    ring_init(&port.readings, memory, sizeof(Reading), reading_room)
    memory += reading_room * sizeof(Reading)
    ring_init(&port.commands, memory, sizeof(Command), COMMAND_ROOM)
    memory += COMMAND_ROOM * sizeof(Command)
    ring_init(&port.events, memory, sizeof(Event), EVENT_ROOM)
    memory += EVENT_ROOM * sizeof(Event)
    ring_init(&port.trace, memory, sizeof(TraceItem), trace_room)
    port.snapshot = memory + trace_room * sizeof(TraceItem)
    port.state = state
    port.state_bytes = state_bytes
    port.flags = flags


cdef inline void port_touch_trace(Port* port) noexcept nogil:
    """Touch what a trace will be written to: it is a fifth of a megabyte that most workers never need. The host thread,
    before it sends the first COMMAND_TRACE."""
    memset(port.trace.items, 0, port.trace.capacity * sizeof(TraceItem))
    memset(port.snapshot, 0, port.state_bytes)


cdef inline int port_command(Port* port, Command* command) noexcept nogil:
    """1 and the next command, or 0."""
    return ring_pop(&port.commands, command)


cdef inline void port_event(
    Port* port, int64_t now_ns, int code, int argument, int source, double value
) noexcept nogil:
    cdef Event event
    event.monotonic_ns = now_ns
    event.value = value
    event.argument = argument
    event.code = <uint16_t>code
    event.source = <uint16_t>source
    ring_push(&port.events, &event)


cdef inline void port_reading(Port* port, Reading* reading) noexcept nogil:
    """Number a reading, stamp it with the experiment and hand it on; one that finds no room leaves a hole."""
    reading.sequence = port.sequences[reading.stream]
    port.sequences[reading.stream] += 1
    reading.experiment = port.experiment
    reading.flags |= port.flags
    ring_push(&port.readings, reading)


cdef inline void trace_int(
    TraceItem* item, int kind, int channel, int phase, int flags, uint32_t index, int64_t value
) noexcept nogil:
    item.kind = <uint8_t>kind
    item.channel = <uint8_t>channel
    item.phase = <uint8_t>phase
    item.flags = <uint8_t>flags
    item.index = index
    item.value.i = value


cdef inline void trace_float(
    TraceItem* item, int kind, int channel, int phase, uint32_t index, double value
) noexcept nogil:
    trace_int(item, kind, channel, phase, 0, index, 0)
    item.value.f = value


cdef inline void port_trace(Port* port, const TraceItem* item) noexcept nogil:
    """Write an item to the trace, while one was asked for."""
    if port.trace_until_ns and not port.trace_broken and not ring_push(&port.trace, item):
        port.trace_broken = 1


cdef inline void port_snapshot(Port* port, int64_t now_ns) noexcept nogil:
    """Copy the estimators' state and mark the place in the trace; retried each tick while the trace ring is full."""
    cdef TraceItem item
    cdef uint32_t broken = port.trace_broken
    if broken and ring_count(&port.trace) > port.trace.capacity // 2:
        return
    port.trace_broken = 0
    stirbar_store_relaxed(&port.snapshot_number, port.snapshot_number + 1)
    stirbar_fence()  # a host that is late enough to see the copy change sees the number change too
    memcpy(port.snapshot, port.state, port.state_bytes)
    trace_int(&item, TRACE_SNAPSHOT, 0, 0, 1 if broken else 0, port.snapshot_number, now_ns)
    port_trace(port, &item)
    port.snapshot_at_ns = now_ns + <int64_t>SNAPSHOT_PERIOD_S * 1000000000


cdef inline void port_trace_tend(Port* port, int64_t now_ns) noexcept nogil:
    """Once a tick, before anything of that tick is traced: ends the trace, or takes the snapshot that is due."""
    if port.trace_until_ns == 0:
        return
    if now_ns >= port.trace_until_ns:
        port.trace_until_ns = 0
    elif port.trace_broken or now_ns >= port.snapshot_at_ns:
        port_snapshot(port, now_ns)


cdef inline void port_trace_for(Port* port, int64_t now_ns, double seconds) noexcept nogil:
    """Trace at least for so long from now: several may ask, and none ends what another asked for."""
    cdef bint was_off = port.trace_until_ns == 0
    cdef int64_t until_ns = now_ns + <int64_t>(seconds * 1e9)
    if seconds <= 0 or until_ns <= port.trace_until_ns:
        return
    port.trace_until_ns = until_ns
    if was_off:
        port_snapshot(port, now_ns)
