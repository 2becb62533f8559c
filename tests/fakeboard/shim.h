/* What the two halves of the interposer share. */

#ifndef SHIM_H
#define SHIM_H

#include <dlfcn.h>
#include <stdint.h>

#include "wire.h"

enum { PATH_ROOM = 512 };

extern const char *board;       /* the server's directory, NULL: nothing is touched */

/* A descriptor for a device of the board, or -1 and errno. */
int open_device(uint32_t what, long number, int flags);

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, name)

#endif
