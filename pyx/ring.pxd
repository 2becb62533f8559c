# Why compiled: the loop's only way to the host thread and back; it must never wait.
# Thread rule: one thread pushes, one other thread pops; each index has one writer. 32-bit indices, so that ARMv6 needs
#   no lock. Items are copied whole.
# Units: items of item_size bytes; capacity is a power of two.

from libc.stdint cimport uint32_t
from libc.string cimport memcpy

cdef extern from *:
    """
    static inline unsigned stirbar_load_acquire(const unsigned *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline unsigned stirbar_load_relaxed(const unsigned *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void stirbar_store_release(unsigned *p, unsigned v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void stirbar_store_relaxed(unsigned *p, unsigned v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    static inline void stirbar_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint32_t stirbar_load_acquire(const uint32_t* p) noexcept nogil
    uint32_t stirbar_load_relaxed(const uint32_t* p) noexcept nogil
    void stirbar_store_release(uint32_t* p, uint32_t value) noexcept nogil
    void stirbar_store_relaxed(uint32_t* p, uint32_t value) noexcept nogil
    void stirbar_fence() noexcept nogil

cdef struct Ring:
    char* items
    uint32_t item_size
    uint32_t capacity
    uint32_t pad0[12]      # head and tail on cache lines of their own
    uint32_t head          # written by the producer: items pushed
    uint32_t dropped       # written by the producer: items that found the ring full
    uint32_t pad1[14]
    uint32_t tail          # written by the consumer: items popped
    uint32_t pad2[15]


cdef inline int ring_init(Ring* ring, char* items, uint32_t item_size, uint32_t capacity) noexcept nogil:
    """Attach memory of item_size * capacity bytes; -1 when capacity is no power of two."""
    if capacity == 0 or capacity & (capacity - 1):
        return -1
    ring.items = items
    ring.item_size = item_size
    ring.capacity = capacity
    ring.head = 0
    ring.tail = 0
    ring.dropped = 0
    return 0


cdef inline int ring_push(Ring* ring, const void* item) noexcept nogil:
    """1 when the item was taken, 0 when the ring was full (counted)."""
    cdef uint32_t head = ring.head
    if head - stirbar_load_acquire(&ring.tail) >= ring.capacity:
        stirbar_store_relaxed(&ring.dropped, ring.dropped + 1)
        return 0
    memcpy(ring.items + <size_t>(head & (ring.capacity - 1)) * ring.item_size, item, ring.item_size)
    stirbar_store_release(&ring.head, head + 1)
    return 1


cdef inline int ring_pop(Ring* ring, void* item) noexcept nogil:
    """1 when an item was copied out, 0 when the ring was empty."""
    cdef uint32_t tail = ring.tail
    if stirbar_load_acquire(&ring.head) == tail:
        return 0
    memcpy(item, ring.items + <size_t>(tail & (ring.capacity - 1)) * ring.item_size, ring.item_size)
    stirbar_store_release(&ring.tail, tail + 1)
    return 1


cdef inline uint32_t ring_count(Ring* ring) noexcept nogil:
    """Items that wait; exact for the consumer."""
    return stirbar_load_acquire(&ring.head) - stirbar_load_relaxed(&ring.tail)


cdef inline uint32_t ring_pop_many(Ring* ring, char* out, uint32_t room) noexcept nogil:
    """Copy up to `room` items in order; returns how many."""
    cdef uint32_t tail = ring.tail
    cdef uint32_t waiting = stirbar_load_acquire(&ring.head) - tail
    cdef uint32_t n = waiting if waiting < room else room
    cdef uint32_t at = tail & (ring.capacity - 1)
    cdef uint32_t first = ring.capacity - at
    if first > n:
        first = n
    memcpy(out, ring.items + <size_t>at * ring.item_size, <size_t>first * ring.item_size)
    memcpy(out + <size_t>first * ring.item_size, ring.items, <size_t>(n - first) * ring.item_size)
    stirbar_store_release(&ring.tail, tail + n)
    return n
