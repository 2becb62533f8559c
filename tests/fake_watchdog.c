/* Preloaded into a program (LD_PRELOAD), this makes the file that STIRBAR_WATCHDOG names a hardware watchdog: what is
   asked of it is appended to what is written to it. STIRBAR_WATCHDOG_LONGEST: the longest time-out that it takes, s. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/watchdog.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int is_watchdog(int fd) {
    char link[64], path[256];
    const char *watchdog = getenv("STIRBAR_WATCHDOG");
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = watchdog ? readlink(link, path, sizeof path - 1) : -1;
    return length > 0 && (size_t)length == strlen(watchdog) && !memcmp(path, watchdog, length);
}

int ioctl(int fd, unsigned long request, ...) {
    int (*real)(int, unsigned long, ...) = (int (*)(int, unsigned long, ...))dlsym(RTLD_NEXT, "ioctl");
    const char *text = getenv("STIRBAR_WATCHDOG_LONGEST");
    int longest = text ? atoi(text) : 15;
    char said[32];
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (!is_watchdog(fd)) return real(fd, request, argument);
    if (request == WDIOC_GETSUPPORT) {
        ((struct watchdog_info *)argument)->options = WDIOF_MAGICCLOSE | WDIOF_SETTIMEOUT;
        return 0;
    }
    if (request != WDIOC_SETTIMEOUT) return real(fd, request, argument);
    int length = snprintf(said, sizeof said, "<%d>", *(int *)argument);
    if (*(int *)argument > longest) *(int *)argument = longest;
    return write(fd, said, (size_t)length) == length ? 0 : -1;
}
