/* Preloaded into the simulator kernel, an ordinary program, on hosts whose processor has more register state (AMX)
   than that kernel was built for: a process's state can only be set as a whole there (EFAULT otherwise), so what the
   kernel gives is completed by what the process has. Without it the kernel panics at its first process. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { XSTATE = 0x202, PRESENT_AT = 512, UP_TO_PROTECTION_KEYS = 0x2ff };

static long (*real)(enum __ptrace_request, ...);

static long set_state(pid_t pid, void *what, const struct iovec *given) {
    static __thread uint8_t all[16384];
    struct iovec full = { all, sizeof all };
    uint64_t present;
    if (real(PTRACE_GETREGSET, pid, what, &full) < 0) return -1;
    if (given->iov_len >= full.iov_len) return real(PTRACE_SETREGSET, pid, what, given);
    memcpy(all, given->iov_base, given->iov_len);
    memcpy(&present, all + PRESENT_AT, sizeof present);
    present &= UP_TO_PROTECTION_KEYS;
    memcpy(all + PRESENT_AT, &present, sizeof present);
    return real(PTRACE_SETREGSET, pid, what, &full);
}

long ptrace(enum __ptrace_request request, ...) {
    va_list list;
    va_start(list, request);
    pid_t pid = va_arg(list, pid_t);
    void *address = va_arg(list, void *), *data = va_arg(list, void *);
    va_end(list);
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (uintptr_t)address == XSTATE) return set_state(pid, address, data);
    return real(request, pid, address, data);
}
