# Why compiled: the loop itself: pick the next task, sleep until its target, run it.
# Thread rule: one thread drives one table; a virtual clock lets one thread drive the tables of all.
# Units: nanoseconds of the loop's clock.

from libc.stdint cimport INT64_MAX, int64_t, uint32_t

from stirbar.rt.clock cimport Clock
from stirbar.rt.histogram cimport Histogram, histogram_add
from stirbar.rt.ring cimport stirbar_load_relaxed
from stirbar.rt.sleep_policy cimport SleepPolicy

cdef struct Task:
    # runs the task and sets its next target; now_ns is when it was woken
    void (*run)(void* context, SleepPolicy* policy, int64_t now_ns) noexcept nogil
    void* context
    SleepPolicy policy
    uint32_t ticks
    Histogram* lateness      # shared by the tasks of one thread


cdef inline Task* next_task(Task** table, int count) noexcept nogil:
    """The task with the earliest target; the first in the table among equals."""
    cdef Task* earliest = table[0]
    cdef int i
    for i in range(1, count):
        if table[i].policy.target_ns < earliest.policy.target_ns:
            earliest = table[i]
    return earliest


cdef inline int drive(
    Task** table, int count, const Clock* clock, int64_t until_ns, const uint32_t* running
) noexcept nogil:
    """Run tasks in order of their targets until one would be later than until_ns, or running falls to 0.

    Returns 0, or the errno of a sleep that failed.
    """
    cdef Task* task
    cdef int64_t now_ns
    cdef int status
    while stirbar_load_relaxed(running):
        task = next_task(table, count)
        if task.policy.target_ns > until_ns:
            return clock.sleep_until_ns(clock.context, until_ns) if until_ns != INT64_MAX else 0
        status = clock.sleep_until_ns(clock.context, task.policy.target_ns)
        if status:
            return status
        now_ns = clock.now_ns(clock.context)
        histogram_add(task.lateness, now_ns - task.policy.target_ns)
        task.ticks += 1
        task.run(task.context, &task.policy, now_ns)
    return 0
