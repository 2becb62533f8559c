# Why compiled: decides, between ticks, when the loop wakes next.
# Thread rule: pure functions on a plain struct; one per task.
# Units: nanoseconds of the loop's clock.
#
# A task on a grid that is late skips whole periods and keeps its phase: running missed ticks back to back would make
# every one of them late. A task that follows the converter names its next target itself.

from libc.stdint cimport int64_t, uint32_t, INT64_MAX

cdef struct SleepPolicy:
    int64_t target_ns        # when the task wants to run next
    int64_t period_ns        # of the grid; 0: the task names each target
    uint32_t overruns        # whole periods that were skipped


cdef inline void sleep_on_grid(SleepPolicy* policy, int64_t first_ns, int64_t period_ns) noexcept nogil:
    policy.target_ns = first_ns
    policy.period_ns = period_ns
    policy.overruns = 0


cdef inline void sleep_next(SleepPolicy* policy, int64_t now_ns) noexcept nogil:
    """Advance to the next grid point after now_ns, counting those that were passed over."""
    cdef int64_t skipped
    policy.target_ns += policy.period_ns
    if policy.target_ns <= now_ns:
        skipped = (now_ns - policy.target_ns) // policy.period_ns + 1
        policy.target_ns += skipped * policy.period_ns
        policy.overruns += <uint32_t>skipped


cdef inline void sleep_until(SleepPolicy* policy, int64_t wanted_ns, int64_t earliest_ns) noexcept nogil:
    """Follow a clock that is not ours: the target is taken as it is, but never before earliest_ns."""
    policy.target_ns = wanted_ns if wanted_ns > earliest_ns else earliest_ns


cdef inline void sleep_for_ever(SleepPolicy* policy) noexcept nogil:
    policy.target_ns = INT64_MAX
