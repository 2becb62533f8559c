# Why compiled: the loop's only source of time; a Pi's hours and a simulated day go through the same code.
# Thread rule: now_ns may be called from any thread; sleep_until_ns only by the thread that drives tasks.
# Units: nanoseconds of CLOCK_MONOTONIC, or of the virtual clock's own count.

from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint32_t

cdef extern from "time.h" nogil:
    ctypedef int clockid_t
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(clockid_t clock, timespec* now)
    int clock_nanosleep(clockid_t clock, int flags, const timespec* request, timespec* remain)
    clockid_t CLOCK_MONOTONIC
    clockid_t CLOCK_MONOTONIC_RAW
    clockid_t CLOCK_REALTIME
    int TIMER_ABSTIME

cdef struct Clock:
    int64_t (*now_ns)(void* context) noexcept nogil
    int (*sleep_until_ns)(void* context, int64_t target_ns) noexcept nogil  # 0, or an errno
    void* context

cdef enum:
    WAKE_LATE_ROOM = 1024    # quantiles of the lateness that a virtual sleep has

cdef struct VirtualTime:
    int64_t now_ns
    uint32_t late_ns[WAKE_LATE_ROOM]
    uint32_t draw            # state of the generator that picks one; 0: never late


cdef inline int64_t read_clock_ns(clockid_t clock) noexcept nogil:
    cdef timespec t
    clock_gettime(clock, &t)
    return <int64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef inline int64_t real_now_ns(void* context) noexcept nogil:
    return read_clock_ns(CLOCK_MONOTONIC)


cdef inline int real_sleep_until_ns(void* context, int64_t target_ns) noexcept nogil:
    cdef timespec t
    cdef int status = EINTR
    t.tv_sec = target_ns // 1000000000
    t.tv_nsec = target_ns % 1000000000
    while status == EINTR:
        status = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL)
    return status


cdef inline int64_t virtual_now_ns(void* context) noexcept nogil:
    return (<VirtualTime*>context).now_ns


cdef inline int virtual_sleep_until_ns(void* context, int64_t target_ns) noexcept nogil:
    cdef VirtualTime* time = <VirtualTime*>context
    if target_ns > time.now_ns:
        time.now_ns = target_ns
        if time.draw:
            # xorshift (Marsaglia 2003)
            time.draw ^= time.draw << 13
            time.draw ^= time.draw >> 17
            time.draw ^= time.draw << 5
            time.now_ns += time.late_ns[time.draw % WAKE_LATE_ROOM]
    return 0


cdef inline void clock_real(Clock* clock) noexcept nogil:
    clock.now_ns = real_now_ns
    clock.sleep_until_ns = real_sleep_until_ns
    clock.context = NULL


cdef inline void clock_virtual(Clock* clock, VirtualTime* time, int64_t start_ns) noexcept nogil:
    time.now_ns = start_ns
    time.draw = 0
    clock.now_ns = virtual_now_ns
    clock.sleep_until_ns = virtual_sleep_until_ns
    clock.context = time
