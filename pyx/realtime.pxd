# Why compiled: gives the loop's threads their scheduling class, their processors and their memory.
# Thread rule: called by the host thread before and after the loop's threads live; stirbar_prefault by each of them.
# Units: priorities of SCHED_FIFO (1..99), bytes.

from libc.stdint cimport uint32_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    int pthread_join(pthread_t thread, void** result)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <malloc.h>
    #include <pthread.h>
    #include <sched.h>
    #include <signal.h>
    #include <string.h>
    #include <sys/mman.h>
    #ifndef MCL_ONFAULT
    #define MCL_ONFAULT 4
    #endif

    #define STIRBAR_STACK_BYTES (256 * 1024)
    /* the deepest chain of calls of either thread takes less than 24 kB (gcc -fstack-usage) */
    #define STIRBAR_PREFAULT_BYTES (48 * 1024)

    /* Touch the stack once, so that no tick ever has to wait for a page. */
    static void stirbar_prefault(void) {
        volatile char stack[STIRBAR_PREFAULT_BYTES];
        for (size_t i = 0; i < sizeof stack; i += 1024) stack[i] = 0;
    }

    /* Start a thread at a SCHED_FIFO priority (0: ordinary) on some processors (0: any), with all signals blocked.
       Returns 0 or an errno: EPERM where SCHED_FIFO is not granted. */
    static int stirbar_thread_start(pthread_t *thread, const char *name, int priority, unsigned cpus,
                                    void *(*run)(void *), void *context) {
        pthread_attr_t attributes;
        struct sched_param parameter;
        sigset_t all, before;
        int status;
        memset(&parameter, 0, sizeof parameter);
        parameter.sched_priority = priority;
        pthread_attr_init(&attributes);
        pthread_attr_setstacksize(&attributes, STIRBAR_STACK_BYTES);
        if (priority > 0) {
            pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
            pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
            pthread_attr_setschedparam(&attributes, &parameter);
        }
        if (cpus) {
            cpu_set_t set;
            CPU_ZERO(&set);
            for (unsigned i = 0; i < 32; i++) if (cpus & (1u << i)) CPU_SET(i, &set);
            pthread_attr_setaffinity_np(&attributes, sizeof set, &set);
        }
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        status = pthread_create(thread, &attributes, run, context);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        pthread_attr_destroy(&attributes);
        if (status == 0) pthread_setname_np(*thread, name);
        return status;
    }

    /* Give back what start-up used and freed. */
    static void stirbar_trim_memory(void) {
    #ifdef __GLIBC__
        malloc_trim(0);
    #endif
    }

    /* Lock memory as it is touched: a plain mlockall would fill every thread's whole stack with locked pages. */
    static int stirbar_lock_memory(void) {
        return mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) ? errno : 0;
    }
    """
    void stirbar_prefault() noexcept nogil
    int stirbar_thread_start(
        pthread_t* thread, const char* name, int priority, uint32_t cpus, void* (*run)(void*) noexcept nogil,
        void* context
    ) noexcept nogil
    void stirbar_trim_memory() noexcept nogil
    int stirbar_lock_memory() noexcept nogil
