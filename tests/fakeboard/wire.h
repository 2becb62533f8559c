/* What the interposer (shim.c) in a program says to the board's server (server.c).

   One connection (SOCK_SEQPACKET, <directory>/rpc) per thread of a program: one request, one reply. A descriptor that
   the program holds for a device or for requested lines is one end of a socket pair whose other end, with the server,
   is bound to the abstract name "stirbar-board:<hash of directory>:<handle>.<what>". Any process finds the handle by
   getpeername(), whether it got the descriptor by open(), dup(), fork() or SCM_RIGHTS; the server sees the last
   close() as a hang-up; and poll() says when edge events wait, because the server then puts one byte in. */

#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { ADAPTER_LOCK = 1 };              /* flock(): index is its operation */

enum {
    OP_OPEN,          /* argument: what, index: number of the device -> descriptor */
    OP_GPIO,          /* argument: ioctl of a GPIO chip, data: its struct -> the struct, perhaps a descriptor */
    OP_LINE,          /* argument: ioctl of requested lines, data: its struct -> the struct */
    OP_EVENTS,        /* argument: how many at most -> events; flag REPLY_DRAINED: take the byte out */
    OP_ADAPTER,       /* argument: I2C_SLAVE, I2C_TIMEOUT .., or ADAPTER_LOCK; index: its argument */
    OP_TRANSFER,      /* argument: number of messages, data: struct message and bytes of each -> bytes read */
    OP_SYSFS          /* data: path, 0, text written */
};

enum { OPEN_I2C = 1, OPEN_GPIO, HELD_LINES };

enum { REPLY_DRAINED = 1, REPLY_DESCRIPTOR = 2 };

enum { MESSAGE_READ = 1, MESSAGE_TO_SLAVE = 2 /* to the address that I2C_SLAVE set */ };

enum { WIRE_BYTES = 42 * 1024 };

struct request {
    uint32_t op, handle, argument, index, bytes, unused;
    int64_t at_ns;    /* CLOCK_MONOTONIC when the program called */
    uint8_t data[WIRE_BYTES];
};

struct reply {
    int32_t result;   /* 0 or a count, or minus an errno */
    uint32_t flags, bytes, unused;
    uint8_t data[WIRE_BYTES];
};

struct message {
    uint16_t address, flags, length, unused;
};

#define REQUEST_HEAD offsetof(struct request, data)
#define REPLY_HEAD offsetof(struct reply, data)

/* What the names of a board's sockets begin with, without the leading zero byte of an abstract name. */
static inline int handle_prefix(char *name, size_t room, const char *directory) {
    uint64_t hash = 1469598103934665603ULL;
    const char *c;
    for (c = directory; *c; c++) hash = (hash ^ (uint8_t)*c) * 1099511628211ULL;
    return snprintf(name, room, "stirbar-board:%016llx:", (unsigned long long)hash);
}

#endif
