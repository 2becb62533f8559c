/* Preloaded into a program (LD_PRELOAD), this and shim_paths.c turn its system calls on the board's devices into
   requests to the board's server (wire.h): /dev/gpiochipN, /dev/i2c-N, and the files of the kernel that describe the
   board. All else goes where it always went. STIRBAR_BOARD names the server's directory; without it nothing is touched.
   Here: the connection, and calls on descriptors. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/gpio.h>
#include <linux/i2c-dev.h>
#include <linux/i2c.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

enum { HIGH_DESCRIPTOR = 700, MESSAGES = 42, LONGEST = 8192 };

const char *board;
static char prefix[64];
static size_t prefix_length;
static __thread int connection = -1;
static pthread_key_t thread_end;

/* ---- the connection ----------------------------------------------------------------------------------------------- */

static void hang_up(void *unused) {
    (void)unused;
    if (connection >= 0) close(connection);
    connection = -1;
}

__attribute__((constructor)) static void begin(void) {
    board = getenv("STIRBAR_BOARD");
    if (!board || !*board) {
        board = NULL;
        return;
    }
    prefix_length = (size_t)handle_prefix(prefix, sizeof prefix, board);
    pthread_key_create(&thread_end, hang_up);
    pthread_atfork(NULL, NULL, (void (*)(void))hang_up);        /* a child asks for itself */
}

static int connected(void) {
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int low, error;
    if (connection >= 0) return 0;
    low = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (low < 0) return -1;
    snprintf(address.sun_path, sizeof address.sun_path, "%s/rpc", board);
    if (connect(low, (struct sockaddr *)&address, sizeof address)) {
        error = errno;
        close(low);
        errno = error;
        return -1;
    }
    connection = fcntl(low, F_DUPFD_CLOEXEC, HIGH_DESCRIPTOR);  /* out of the way of programs that count */
    if (connection >= 0) close(low);
    else connection = low;
    pthread_setspecific(thread_end, &connection);
    return 0;
}

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* Sends the head and parts out[1..], receives the reply's head and parts in[1..]. The result, or -1 and errno. */
static int ask(uint32_t op, uint32_t handle, uint32_t argument, uint32_t index, struct iovec *out, int parts_out,
               struct iovec *in, int parts_in, uint32_t *flags, int *descriptor) {
    struct { uint32_t op, handle, argument, index, bytes, unused; int64_t at_ns; } request = {
        op, handle, argument, index, 0, 0, clock_ns() };
    struct { int32_t result; uint32_t flags, bytes, unused; } reply = { 0 };
    union { struct cmsghdr head; char bytes[CMSG_SPACE(sizeof(int))]; } control;
    struct msghdr sent = { .msg_iov = out, .msg_iovlen = (size_t)parts_out };
    struct msghdr received = { .msg_iov = in, .msg_iovlen = (size_t)parts_in, .msg_control = &control,
                               .msg_controllen = sizeof control };
    ssize_t length;
    _Static_assert(sizeof request == REQUEST_HEAD && sizeof reply == REPLY_HEAD, "heads as in wire.h");
    if (connected()) return -1;
    for (int i = 1; i < parts_out; i++) request.bytes += (uint32_t)out[i].iov_len;
    out[0] = (struct iovec){ &request, sizeof request };
    in[0] = (struct iovec){ &reply, sizeof reply };
    do length = sendmsg(connection, &sent, MSG_NOSIGNAL); while (length < 0 && errno == EINTR);
    if (length >= 0)
        do length = recvmsg(connection, &received, MSG_CMSG_CLOEXEC); while (length < 0 && errno == EINTR);
    if (length < (ssize_t)sizeof reply) {
        hang_up(NULL);
        errno = ENODEV;         /* the board has gone */
        return -1;
    }
    if (flags) *flags = reply.flags;
    if (reply.flags & REPLY_DESCRIPTOR && descriptor) memcpy(descriptor, CMSG_DATA(&control.head), sizeof *descriptor);
    if (reply.result >= 0) return reply.result;
    errno = -reply.result;
    return -1;
}

/* What a descriptor is, and its handle; 0: not ours. */
static int what_is(int fd, uint32_t *handle) {
    struct sockaddr_un peer;
    socklen_t length = sizeof peer - 1;
    unsigned what = 0;
    int error = errno;
    const size_t head = offsetof(struct sockaddr_un, sun_path) + 1;
    if (board && getpeername(fd, (struct sockaddr *)&peer, &length) == 0 && peer.sun_family == AF_UNIX &&
        length > head + prefix_length && !peer.sun_path[0] && !memcmp(peer.sun_path + 1, prefix, prefix_length)) {
        ((char *)&peer)[length] = 0;
        if (sscanf(peer.sun_path + 1 + prefix_length, "%u.%u", handle, &what) != 2) what = 0;
    }
    errno = error;
    return (int)what;
}

/* ---- I2C ---------------------------------------------------------------------------------------------------------- */

struct part {
    int read, slave;            /* slave: to the address that I2C_SLAVE set */
    uint16_t address, length;
    void *data;
};

static int transfer(uint32_t handle, const struct part *parts, int count) {
    struct message messages[MESSAGES];
    struct iovec out[1 + 2 * MESSAGES], in[1 + MESSAGES];
    int sent = 1, received = 1;
    size_t all = 0;
    for (int i = 0; i < count; i++) {
        const struct part *part = &parts[i];
        all += part->length + sizeof *messages;
        messages[i] = (struct message){ part->address, (uint16_t)((part->read ? MESSAGE_READ : 0) |
                                        (part->slave ? MESSAGE_TO_SLAVE : 0)), part->length, 0 };
        out[sent++] = (struct iovec){ &messages[i], sizeof *messages };
        if (part->read) in[received++] = (struct iovec){ part->data, part->length };
        else out[sent++] = (struct iovec){ part->data, part->length };
    }
    if (all > WIRE_BYTES) {
        errno = EINVAL;
        return -1;
    }
    return ask(OP_TRANSFER, handle, (uint32_t)count, 0, out, sent, in, received, NULL, NULL);
}

static int rdwr(uint32_t handle, const struct i2c_rdwr_ioctl_data *data) {
    struct part parts[MESSAGES];
    if (!data->msgs || !data->nmsgs || data->nmsgs > MESSAGES) {
        errno = EINVAL;
        return -1;
    }
    for (uint32_t i = 0; i < data->nmsgs; i++) {
        const struct i2c_msg *message = &data->msgs[i];
        if (message->len > LONGEST) {
            errno = EINVAL;
            return -1;
        }
        parts[i] = (struct part){ message->flags & I2C_M_RD, 0, message->addr, message->len, message->buf };
    }
    return transfer(handle, parts, (int)data->nmsgs);
}

/* SMBus as the kernel makes it of plain transfers, without packet error checking. */
static int smbus(uint32_t handle, const struct i2c_smbus_ioctl_data *it) {
    uint8_t out[I2C_SMBUS_BLOCK_MAX + 1] = { it->command };
    int read = it->read_write == I2C_SMBUS_READ, result;
    union i2c_smbus_data *data = it->data;
    struct part parts[2] = { { 0, 1, 0, 1, out }, { 1, 1, 0, 0, data } };
    switch (it->size) {
    case I2C_SMBUS_QUICK:
        parts[0] = (struct part){ read, 1, 0, 0, out };
        return transfer(handle, parts, 1) < 0 ? -1 : 0;
    case I2C_SMBUS_BYTE:
        if (read) parts[0] = (struct part){ 1, 1, 0, 1, &data->byte };
        return transfer(handle, parts, 1) < 0 ? -1 : 0;
    case I2C_SMBUS_BYTE_DATA:
        out[1] = read ? 0 : data->byte;
        parts[1].length = 1;
        break;
    case I2C_SMBUS_WORD_DATA:
        if (!read) memcpy(out + 1, &data->word, 2);
        parts[1].length = 2;
        break;
    case I2C_SMBUS_I2C_BLOCK_DATA:
        if (!data->block[0] || data->block[0] > I2C_SMBUS_BLOCK_MAX) {
            errno = EINVAL;
            return -1;
        }
        if (!read) memcpy(out + 1, data->block + 1, data->block[0]);
        parts[1].length = data->block[0];
        parts[1].data = data->block + 1;
        break;
    default:
        errno = EOPNOTSUPP;
        return -1;
    }
    if (!read) parts[0].length = (uint16_t)(1 + parts[1].length);
    result = transfer(handle, parts, read ? 2 : 1);
    return result < 0 ? -1 : 0;
}

static int i2c_ioctl(uint32_t handle, unsigned long request, void *argument) {
    struct iovec out[1], in[1];
    switch (request) {
    case I2C_RDWR:
        return rdwr(handle, argument);
    case I2C_SMBUS:
        return smbus(handle, argument);
    case I2C_FUNCS:
        *(unsigned long *)argument = I2C_FUNC_I2C | (I2C_FUNC_SMBUS_EMUL & ~I2C_FUNC_SMBUS_PEC);
        return 0;
    case I2C_SLAVE:
    case I2C_SLAVE_FORCE:
    case I2C_TIMEOUT:
    case I2C_RETRIES:
        return ask(OP_ADAPTER, handle, (uint32_t)request, (uint32_t)(uintptr_t)argument, out, 1, in, 1, NULL, NULL);
    default:
        errno = ENOTTY;         /* as i2c-dev says */
        return -1;
    }
}

/* ---- GPIO --------------------------------------------------------------------------------------------------------- */

static int gpio_ioctl(uint32_t op, uint32_t handle, unsigned long request, void *argument) {
    if (_IOC_TYPE(request) != 0xB4) {
        errno = EINVAL;         /* as gpiolib says */
        return -1;
    }
    struct iovec out[2] = { { 0 }, { argument, _IOC_SIZE(request) } }, in[2] = { { 0 }, out[1] };
    int descriptor = -1, result = ask(op, handle, (uint32_t)request, 0, out, 2, in, 2, NULL, &descriptor);
    if (result >= 0 && request == GPIO_V2_GET_LINE_IOCTL)
        ((struct gpio_v2_line_request *)argument)->fd = descriptor;
    return result;
}

static ssize_t read_events(int fd, uint32_t handle, void *buffer, size_t bytes) {
    const size_t event = sizeof(struct gpio_v2_line_event);
    struct iovec out[1], in[2] = { { 0 }, { buffer, bytes } };
    if (bytes < event) {
        errno = EINVAL;
        return -1;
    }
    for (;;) {
        struct pollfd wait = { fd, POLLIN, 0 };
        uint32_t flags = 0;
        char byte;
        ssize_t any = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
        if (any == 0) errno = ENODEV;
        if (any == 0 || (any < 0 && errno != EAGAIN)) return -1;
        if (any < 0) {
            if (fcntl(fd, F_GETFL) & O_NONBLOCK) {
                errno = EAGAIN;
                return -1;
            }
            if (poll(&wait, 1, -1) < 0) return -1;
            continue;
        }
        int count = ask(OP_EVENTS, handle, (uint32_t)(bytes / event), 0, out, 1, in, 2, &flags, NULL);
        if (flags & REPLY_DRAINED) recv(fd, &byte, 1, MSG_DONTWAIT);
        if (count) return count < 0 ? -1 : count * (ssize_t)event;
        if (fcntl(fd, F_GETFL) & O_NONBLOCK) {
            errno = EAGAIN;             /* another thread took it */
            return -1;
        }
    }
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

int open_device(uint32_t what, long number, int flags) {
    struct iovec out[1], in[1];
    int descriptor = -1;
    if (ask(OP_OPEN, 0, what, (uint32_t)number, out, 1, in, 1, NULL, &descriptor) < 0) return -1;
    if (!(flags & O_CLOEXEC)) fcntl(descriptor, F_SETFD, 0);
    if (flags & O_NONBLOCK) fcntl(descriptor, F_SETFL, O_NONBLOCK);
    return descriptor;
}

/* ---- calls on descriptors ----------------------------------------------------------------------------------------- */

int ioctl(int fd, unsigned long request, ...) {
    REAL(int, "ioctl", int, unsigned long, ...);
    uint32_t handle;
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    /* What every descriptor knows stays with the kernel. */
    if (request != FIOCLEX && request != FIONCLEX && request != FIONBIO) switch (what_is(fd, &handle)) {
    case OPEN_I2C: return i2c_ioctl(handle, request, argument);
    case OPEN_GPIO: return gpio_ioctl(OP_GPIO, handle, request, argument);
    case HELD_LINES: return gpio_ioctl(OP_LINE, handle, request, argument);
    }
    return real(fd, request, argument);
}

int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    struct iovec out[1], in[1];
    uint32_t handle;
    if (what_is(fd, &handle) != OPEN_I2C) return real(fd, operation);
    return ask(OP_ADAPTER, handle, ADAPTER_LOCK, (uint32_t)operation, out, 1, in, 1, NULL, NULL);
}

ssize_t read(int fd, void *buffer, size_t bytes) {
    REAL(ssize_t, "read", int, void *, size_t);
    struct part part = { 1, 1, 0, (uint16_t)(bytes < LONGEST ? bytes : LONGEST), buffer };
    uint32_t handle;
    switch (what_is(fd, &handle)) {
    case OPEN_I2C: return transfer(handle, &part, 1) < 0 ? -1 : part.length;
    case HELD_LINES: return read_events(fd, handle, buffer, bytes);
    case OPEN_GPIO: errno = EAGAIN; return -1;          /* nobody watches lines here */
    }
    return real(fd, buffer, bytes);
}

ssize_t __read_chk(int fd, void *buffer, size_t bytes, size_t room) {
    if (bytes > room) abort();
    return read(fd, buffer, bytes);
}

/* Whether a descriptor is a file of the board that takes writes; its path on the board. */
static int takes_writes(int fd, char *path, size_t room) {
    char link[64];
    struct stat status;
    int error = errno, is;
    size_t own = board ? strlen(board) : 0;
    if (!board || fstat(fd, &status) || !S_ISREG(status.st_mode) || !(status.st_mode & S_ISVTX)) {
        errno = error;
        return 0;
    }
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, room - 1);
    path[length > 0 ? length : 0] = 0;
    is = !strncmp(path, board, own) && !strncmp(path + own, "/tree/", 6);
    if (is) memmove(path, path + own + 5, strlen(path + own + 5) + 1);
    errno = error;
    return is;
}

static ssize_t write_sysfs(char *path, const void *text, size_t bytes) {
    struct iovec out[3] = { { 0 }, { path, strlen(path) + 1 }, { (void *)text, bytes } }, in[1];
    return ask(OP_SYSFS, 0, 0, 0, out, 3, in, 1, NULL, NULL) < 0 ? -1 : (ssize_t)bytes;
}

ssize_t write(int fd, const void *buffer, size_t bytes) {
    REAL(ssize_t, "write", int, const void *, size_t);
    struct part part = { 0, 1, 0, (uint16_t)(bytes < LONGEST ? bytes : LONGEST), (void *)buffer };
    char path[PATH_ROOM];
    uint32_t handle;
    switch (what_is(fd, &handle)) {
    case OPEN_I2C: return transfer(handle, &part, 1) < 0 ? -1 : part.length;
    case OPEN_GPIO: case HELD_LINES: errno = EINVAL; return -1;
    }
    return takes_writes(fd, path, sizeof path) ? write_sysfs(path, buffer, bytes) : real(fd, buffer, bytes);
}

#define PWRITE(name) \
    ssize_t name(int fd, const void *buffer, size_t bytes, off64_t offset) { \
        REAL(ssize_t, #name, int, const void *, size_t, off64_t); \
        char path[PATH_ROOM]; \
        return takes_writes(fd, path, sizeof path) ? write_sysfs(path, buffer, bytes) : real(fd, buffer, bytes, offset); \
    }
PWRITE(pwrite)
PWRITE(pwrite64)
