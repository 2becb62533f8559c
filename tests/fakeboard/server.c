/* The board as a process: server <directory> [key=value ..]; keys are in options below.

   <directory>/rpc is for programs under the interposer (wire.h), <directory>/control for the bench: a message
   "R path" is answered by "0 text", "W path value" by "0 ", both by "-errno " if that did not work. The process says
   "ready" on its standard output, and ends when its standard input does. */

#define _GNU_SOURCE
#include <errno.h>
#include <linux/i2c-dev.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <unistd.h>

#include "board.h"

enum kind { LISTENS_RPC, LISTENS_CONTROL, PROGRAM, BENCH, HANDLE, TIMER, PARENT };

struct peer {
    enum kind kind;
    int socket;
    bool asked;                         /* PROGRAM: request holds one that was not handled yet */
    struct request *request;
    /* HANDLE */
    uint32_t handle, what;
    int slave;
    bool locked;                        /* by flock(); exclusive, whoever waits is refused */
    struct request_of_lines *held;
};

static int poller, timer;
static struct peer **handles;
static uint32_t handle_count;
static struct reply reply;

static struct peer *watch(enum kind kind, int socket, uint32_t events) {
    struct peer *peer = calloc(1, sizeof *peer);
    struct epoll_event event = { .events = events, .data.ptr = peer };
    peer->kind = kind;
    peer->socket = socket;
    epoll_ctl(poller, EPOLL_CTL_ADD, socket, &event);
    return peer;
}

/* ---- answers ------------------------------------------------------------------------------------------------------ */

static void answer(struct peer *program, int descriptor) {
    struct iovec part = { &reply, REPLY_HEAD + reply.bytes };
    union { struct cmsghdr head; char bytes[CMSG_SPACE(sizeof(int))]; } control = { 0 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
    if (descriptor >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        control.head = (struct cmsghdr){ CMSG_LEN(sizeof descriptor), SOL_SOCKET, SCM_RIGHTS };
        memcpy(CMSG_DATA(&control.head), &descriptor, sizeof descriptor);
        reply.flags |= REPLY_DESCRIPTOR;
    }
    sendmsg(program->socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void answer_result(struct peer *program, int result) {
    reply.result = result;
    reply.flags = reply.bytes = 0;
    answer(program, -1);
}

static void answer_struct(struct peer *program, int result, const void *data, size_t bytes) {
    reply.result = result;
    reply.flags = 0;
    reply.bytes = (uint32_t)bytes;
    memcpy(reply.data, data, bytes);
    answer(program, -1);
}

/* ---- handles: what a program holds open --------------------------------------------------------------------------- */

/* Makes a handle's pair of sockets; the program's end, or minus an errno. */
static int handle_new(uint32_t what, struct peer **made) {
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    char *text = name.sun_path + 1;
    int pair[2], length;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair)) return -errno;
    length = handle_prefix(text, sizeof name.sun_path - 1, settings.directory);
    length += snprintf(text + length, sizeof name.sun_path - 1 - (size_t)length, "%u.%u", handle_count, what);
    if (bind(pair[0], (struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length))) {
        int error = errno;
        close(pair[0]);
        close(pair[1]);
        return -error;
    }
    *made = watch(HANDLE, pair[0], EPOLLRDHUP);
    (*made)->what = what;
    (*made)->handle = handle_count;
    (*made)->slave = -1;
    handles = realloc(handles, (handle_count + 1) * sizeof(struct peer *));
    handles[handle_count++] = *made;
    return pair[1];
}

static struct peer *handle_of(const struct request *request, uint32_t what) {
    struct peer *handle = request->handle < handle_count ? handles[request->handle] : NULL;
    return handle && handle->what == what ? handle : NULL;
}

static void handle_close(struct peer *handle) {
    handles[handle->handle] = NULL;
    if (handle->held) {
        lines_release(handle->held, clock_ns());
        lines_free(handle->held);
    }
}

bool holder_hung_up(void *owner) {
    struct pollfd it = { ((struct peer *)owner)->socket, POLLRDHUP, 0 };
    return poll(&it, 1, 0) > 0 && it.revents & (POLLHUP | POLLRDHUP);
}

void events_waiting(void *owner) {
    if (owner) send(((struct peer *)owner)->socket, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* ---- requests ----------------------------------------------------------------------------------------------------- */

static void handle_answer(struct peer *program, int descriptor, const void *data, size_t bytes) {
    reply.result = descriptor < 0 ? descriptor : 0;
    reply.flags = 0;
    reply.bytes = (uint32_t)bytes;
    memcpy(reply.data, data, bytes);
    answer(program, descriptor);
    if (descriptor >= 0) close(descriptor);
}

static void do_open(struct peer *program, const struct request *request) {
    struct peer *handle;
    int number = request->argument == OPEN_I2C ? settings.i2c_number : settings.gpio_number;
    if ((int)request->index != number) answer_result(program, -ENOENT);
    else handle_answer(program, handle_new(request->argument, &handle), "", 0);
}

static void do_lines_request(struct peer *program, struct gpio_v2_line_request *wanted, int64_t t) {
    struct peer *handle;
    int error;
    struct request_of_lines *held = lines_request(wanted, t, &error);
    if (!held) {
        answer_result(program, error);
        return;
    }
    error = handle_new(HELD_LINES, &handle);
    if (error < 0) {
        lines_release(held, t);
        lines_free(held);
    } else {
        handle->held = held;
        lines_bind(held, handle);
    }
    handle_answer(program, error, wanted, sizeof *wanted);
}

static void do_gpio(struct peer *program, struct request *request) {
    struct gpiochip_info chip = { .lines = LINES };
    struct gpio_v2_line_info info;
    if (!handle_of(request, OPEN_GPIO)) {
        answer_result(program, -ENODEV);
    } else if (request->argument == GPIO_GET_CHIPINFO_IOCTL) {
        snprintf(chip.name, sizeof chip.name, "gpiochip%d", settings.gpio_number);
        snprintf(chip.label, sizeof chip.label, "%s", settings.gpio_label);
        answer_struct(program, 0, &chip, sizeof chip);
    } else if (request->argument == GPIO_V2_GET_LINEINFO_IOCTL) {
        memcpy(&info, request->data, sizeof info);
        int result = lines_info(&info);
        answer_struct(program, result, &info, sizeof info);
    } else if (request->argument == GPIO_V2_GET_LINE_IOCTL) {
        do_lines_request(program, (struct gpio_v2_line_request *)request->data, request->at_ns);
    } else {
        answer_result(program, -EINVAL);
    }
}

static void do_line(struct peer *program, struct request *request) {
    struct peer *handle = handle_of(request, HELD_LINES);
    struct gpio_v2_line_values *values = (struct gpio_v2_line_values *)request->data;
    int result = -ENODEV;
    size_t bytes = 0;
    if (handle) switch (request->argument) {
    case GPIO_V2_LINE_GET_VALUES_IOCTL:
        result = lines_get(handle->held, values);
        bytes = sizeof *values;
        break;
    case GPIO_V2_LINE_SET_VALUES_IOCTL:
        result = lines_set(handle->held, values, request->at_ns);
        break;
    case GPIO_V2_LINE_SET_CONFIG_IOCTL:
        result = lines_configure(handle->held, (struct gpio_v2_line_config *)request->data, request->at_ns);
        break;
    default:
        result = -EINVAL;
    }
    answer_struct(program, result, values, bytes);
}

static void do_events(struct peer *program, const struct request *request) {
    const struct peer *handle = handle_of(request, HELD_LINES);
    const size_t event = sizeof(struct gpio_v2_line_event);
    int room = request->argument < WIRE_BYTES / event ? (int)request->argument : (int)(WIRE_BYTES / event);
    bool drained = false;
    reply.result = handle ? lines_events(handle->held, (struct gpio_v2_line_event *)reply.data, room, &drained)
                          : -ENODEV;
    reply.bytes = handle ? (uint32_t)((size_t)reply.result * event) : 0;
    reply.flags = drained ? REPLY_DRAINED : 0;
    answer(program, -1);
}

static int adapter_lock(struct peer *handle, int operation) {
    handle->locked = false;
    if (operation & LOCK_UN) return 0;
    for (uint32_t i = 0; i < handle_count; i++)
        if (handles[i] && handles[i]->what == OPEN_I2C && handles[i]->locked && !holder_hung_up(handles[i]))
            return -EWOULDBLOCK;
    handle->locked = true;
    return 0;
}

static void do_adapter(struct peer *program, const struct request *request) {
    struct peer *handle = handle_of(request, OPEN_I2C);
    int result = 0;
    if (!handle) result = -ENODEV;
    else if (request->argument == ADAPTER_LOCK) result = adapter_lock(handle, (int)request->index);
    else if (request->argument == I2C_TIMEOUT) bus_set_timeout(request->index);
    else if (request->argument != I2C_SLAVE && request->argument != I2C_SLAVE_FORCE) result = 0;
    else if (request->index > 0x7f) result = -EINVAL;
    else handle->slave = (int)request->index;
    answer_result(program, result);
}

static void do_transfer(struct peer *program, const struct request *request) {
    const struct peer *handle = handle_of(request, OPEN_I2C);
    struct transfer *transfer = malloc(sizeof *transfer);
    size_t from = 0, used = 0;
    int bad = handle ? 0 : -ENODEV;
    transfer->count = (int)request->argument;
    transfer->owner = program;
    transfer->asked_ns = request->at_ns;
    for (int i = 0; i < transfer->count && !bad; i++) {
        struct message message;
        memcpy(&message, request->data + from, sizeof message);
        from += sizeof message;
        transfer->address[i] = message.flags & MESSAGE_TO_SLAVE ? handle->slave : message.address;
        transfer->flags[i] = message.flags;
        transfer->length[i] = message.length;
        transfer->data[i] = transfer->bytes + used;
        used += message.length;
        if (used > WIRE_BYTES) bad = -EINVAL;
        else if (!(message.flags & MESSAGE_READ)) {
            memcpy(transfer->data[i], request->data + from, message.length);
            from += message.length;
        }
    }
    if (!bad) {
        bus_submit(transfer);
        return;
    }
    free(transfer);
    answer_result(program, bad);
}

void transfer_finished(struct transfer *transfer) {
    reply.result = transfer->result;
    reply.flags = reply.bytes = 0;
    for (int i = 0; i < transfer->count && transfer->result > 0; i++) {
        if (!(transfer->flags[i] & MESSAGE_READ)) continue;
        memcpy(reply.data + reply.bytes, transfer->data[i], (size_t)transfer->length[i]);
        reply.bytes += (uint32_t)transfer->length[i];
    }
    if (transfer->owner) answer(transfer->owner, -1);
    free(transfer);
}

static void do_sysfs(struct peer *program, struct request *request) {
    const char *path = (const char *)request->data;
    request->data[request->bytes < WIRE_BYTES ? request->bytes : WIRE_BYTES - 1] = 0;
    answer_result(program, sysfs_write(path, path + strlen(path) + 1, request->at_ns));
}

static void do_request(struct peer *program) {
    struct request *request = program->request;
    int64_t now = clock_ns();
    if (request->at_ns > now) request->at_ns = now;
    if (request->op != OP_TRANSFER) board_advance(request->at_ns);
    switch (request->op) {
    case OP_OPEN: do_open(program, request); break;
    case OP_GPIO: do_gpio(program, request); break;
    case OP_LINE: do_line(program, request); break;
    case OP_EVENTS: do_events(program, request); break;
    case OP_ADAPTER: do_adapter(program, request); break;
    case OP_TRANSFER: do_transfer(program, request); break;
    case OP_SYSFS: do_sysfs(program, request); break;
    default: answer_result(program, -ENOSYS);
    }
}

/* ---- the bench ---------------------------------------------------------------------------------------------------- */

static void do_bench(struct peer *bench) {
    static char text[4096];
    ssize_t length = recv(bench->socket, text, sizeof text - 1, MSG_DONTWAIT);
    char *answered = NULL, *value, refusal[16];
    size_t bytes = 0;
    int result = -EINVAL;
    if (length < 2) return;
    text[length] = 0;
    FILE *out = open_memstream(&answered, &bytes);
    fputs("0 ", out);
    if (text[0] == 'R') {
        result = control_read(text + 2, out);
    } else if (text[0] == 'W' && (value = strchr(text + 2, ' '))) {
        *value = 0;
        result = control_write(text + 2, value + 1);
    }
    fclose(out);
    if (result) send(bench->socket, refusal, (size_t)snprintf(refusal, sizeof refusal, "%d ", result), MSG_NOSIGNAL);
    else send(bench->socket, answered, bytes, MSG_NOSIGNAL);
    free(answered);
}

/* ---- the process -------------------------------------------------------------------------------------------------- */

static int listen_at(const char *name, enum kind kind) {
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int bytes = 1 << 20, it = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", settings.directory, name) >=
        (int)sizeof address.sun_path) {
        fprintf(stderr, "fake board: %s: the directory's name is too long for a socket\n", settings.directory);
        return -1;
    }
    setsockopt(it, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    if (bind(it, (struct sockaddr *)&address, sizeof address) || listen(it, 64)) {
        perror(address.sun_path);
        return -1;
    }
    watch(kind, it, EPOLLIN);
    return 0;
}

static void accept_from(const struct peer *listener) {
    int bytes = 1 << 20, it = accept4(listener->socket, NULL, NULL, SOCK_CLOEXEC);
    if (it < 0) return;
    setsockopt(it, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    watch(listener->kind == LISTENS_RPC ? PROGRAM : BENCH, it, EPOLLIN | EPOLLRDHUP);
}

static void forget(struct peer *peer) {
    if (peer->kind == HANDLE) handle_close(peer);
    else bus_forget(peer);
    close(peer->socket);
    free(peer->request);
    free(peer);
}

static int by_time(const void *a, const void *b) {
    int64_t x = (*(struct peer *const *)a)->request->at_ns, y = (*(struct peer *const *)b)->request->at_ns;
    return x < y ? -1 : x > y;
}

static void receive(struct peer *program, struct peer **asking, int *count) {
    if (!program->request) program->request = malloc(sizeof *program->request);
    if (recv(program->socket, program->request, sizeof *program->request, MSG_DONTWAIT) >= (ssize_t)REQUEST_HEAD)
        asking[(*count)++] = program;
}

/* Everything that is there, oldest request first. 0 when the parent has gone. */
static int serve(void) {
    struct epoll_event events[64];
    struct peer *asking[64];
    int asked = 0, count = epoll_wait(poller, events, 64, -1);
    char unused[8];
    if (count < 0) return 1;            /* stopped and continued: first see who asked meanwhile */
    for (int i = 0; i < count; i++) {   /* what was closed was closed before anything was asked */
        struct peer *peer = events[i].data.ptr;
        if (peer->kind != HANDLE) continue;
        forget(peer);
        events[i].data.ptr = NULL;
    }
    for (int i = 0; i < count; i++) {
        struct peer *peer = events[i].data.ptr;
        if (!peer || !(events[i].events & EPOLLIN)) continue;
        if (peer->kind == PROGRAM) receive(peer, asking, &asked);
        else if (peer->kind == LISTENS_RPC || peer->kind == LISTENS_CONTROL) accept_from(peer);
        else if (peer->kind == TIMER && read(timer, unused, sizeof unused) < 0) continue;
    }
    qsort(asking, (size_t)asked, sizeof *asking, by_time);
    for (int i = 0; i < asked; i++) do_request(asking[i]);
    for (int i = 0; i < count; i++) {
        struct peer *peer = events[i].data.ptr;
        if (!peer) continue;
        if (peer->kind == BENCH && events[i].events & EPOLLIN) do_bench(peer);
        if (peer->kind == PARENT && read(peer->socket, unused, sizeof unused) <= 0) return 0;
        if (events[i].events & (EPOLLRDHUP | EPOLLHUP) && peer->kind != PARENT) forget(peer);
    }
    board_advance(clock_ns());
    int64_t next = board_next();
    struct itimerspec when = { .it_value = { next / 1000000000, next % 1000000000 } };
    timerfd_settime(timer, TFD_TIMER_ABSTIME, next == NEVER ? &(struct itimerspec){ 0 } : &when, NULL);
    return 1;
}

static int option(const char *text, const char **chip_list, const char **ready_list) {
    const struct { const char *key; const char **text; int *number; } options[] = {
        { "chips", chip_list, NULL }, { "ready", ready_list, NULL }, { "gpio_label", &settings.gpio_label, NULL },
        { "model", &settings.model, NULL }, { "product_version", &settings.product_version, NULL },
        { "hall", NULL, &settings.hall }, { "gpio_number", NULL, &settings.gpio_number },
        { "i2c_number", NULL, &settings.i2c_number }, { "pwm_number", NULL, &settings.pwm_number },
        { "bus_hz", NULL, (int *)&bus_hz },
    };
    const char *value = strchr(text, '=');
    size_t length = value ? (size_t)(value - text) : 0;
    if (!value) return -1;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (strlen(options[i].key) != length || strncmp(options[i].key, text, length)) continue;
        if (options[i].text) *options[i].text = value + 1;
        else *options[i].number = atoi(value + 1);
        return 0;
    }
    if (!strncmp(text, "strict=", 7)) settings.strict_gpio = atoi(value + 1);
    else if (!strncmp(text, "plant=", 6)) settings.plant = atoi(value + 1);
    else if (!strncmp(text, "seed=", 5)) settings.seed = strtoull(value + 1, NULL, 0);
    else return -1;
    return 0;
}

int main(int count, char **arguments) {
    const char *chip_list = "48:ads1115,49:dac43608,4f:tmp1075,2c:pico", *ready_list = "";
    struct sched_param above_all = { .sched_priority = 60 };
    if (count < 2) return 2;
    settings.directory = arguments[1];
    for (int i = 2; i < count; i++)
        if (option(arguments[i], &chip_list, &ready_list)) {
            fprintf(stderr, "fake board: %s: no such option\n", arguments[i]);
            return 2;
        }
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN);                    /* the terminal's; the parent's end is ours */
    sched_setscheduler(0, SCHED_FIFO, &above_all);      /* hardware waits for no program; without the right: it may */
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    watch(TIMER, timer, EPOLLIN);
    watch(PARENT, STDIN_FILENO, EPOLLIN);
    if (listen_at("rpc", LISTENS_RPC) || listen_at("control", LISTENS_CONTROL)) return 1;
    if (board_begin(chip_list, ready_list)) return 1;
    puts("ready");
    fflush(stdout);
    while (serve()) continue;
    return 0;
}
