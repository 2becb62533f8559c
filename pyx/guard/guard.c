/* Why a program of its own: it must be able to switch everything off while the worker is dead, stopped or stuck, so it
 *   shares no process, no cgroup and no lock with it, and nothing here can wait for memory, for a file or for a log.
 * Thread rule: one thread, above the loop's two, and below it one that may wait for the I2C bus (dac.c). After `serve`
 *   has begun it opens no file and allocates nothing.
 * Units: nanoseconds of CLOCK_MONOTONIC; lines by their number on the chip (BCM on a Pi).
 *
 * A request of a GPIO line is exclusive. So this program requests the lines of everything that heats, pumps or stirs,
 * low, and hands duplicates of the descriptors to one worker at a time. Either can switch a line off at any moment.
 */

#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#define PROTOCOL 3
#define PRIORITY 48                      /* between the interrupt threads (50) and the loop (47, 45) */
#define PAGE_BYTES 4096
#define LOOK_NS 100000000LL              /* how often the heartbeat and the pumps are looked at */
#define SILENCE_NS (3000000000LL - 2 * LOOK_NS)  /* a look, and one that is late: off within 3 s of the last beat */
#define MESSAGE_BYTES 256                /* less than PIPE_BUF: written whole or not at all */
#define HELLO_BYTES 1024

/* The worker that has the outputs. pid stays after it hung up, for as long as it lives: it still has descriptors. */
struct worker {
    int connection;                      /* -1: hung up, or none */
    int pidfd;                           /* -1: none, or the kernel has no pidfds (before 5.3) */
    pid_t pid;                           /* 0: none */
    uint32_t beat;                       /* the heartbeat when it last changed */
    int64_t beat_ns;
    int beating;                         /* it has changed since the worker came */
    int silent;                          /* outputs are off for want of a heartbeat */
    int killed;
};

static int listener = -1, signals = -1, heartbeat_fd = -1, watch_fd = -1, wake_fd = -1;
static uint32_t *heartbeat;              /* written by the worker: its beat, and the deadlines of its pumps */
static uint32_t *watch;                  /* our own, so that the worker sees whether we are alive */
static struct worker worker = {-1, -1, 0, 0, 0, 0, 0, 0};
static unsigned unsaid;                  /* messages that standard error had no room for */

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Say one line, unless standard error would make us wait for it. */
void say(const char *format, ...) {
    char text[MESSAGE_BYTES];
    struct pollfd room = {STDERR_FILENO, POLLOUT, 0};
    va_list arguments;
    int length = snprintf(text, sizeof text, NAME ": "), added;
    va_start(arguments, format);
    added = vsnprintf(text + length, sizeof text - length - 1, format, arguments);
    va_end(arguments);
    length += added < (int)sizeof text - length - 2 ? added : (int)sizeof text - length - 2;
    text[length++] = '\n';
    if (poll(&room, 1, 0) != 1 || !(room.revents & POLLOUT) || write(STDERR_FILENO, text, length) != length) unsaid++;
}

/* ---- worker --------------------------------------------------------------------------------------------------------- */

/* Give the worker a name and a descriptor for each output and, last, both pages and the event by which it wakes us. */
static int hand_over(int connection) {
    char text[HELLO_BYTES];
    int fds[LINES_MAXIMUM + 3 * PWMS_MAXIMUM + 3], count = 0;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof fds)];
    } control;
    struct iovec part = {text, 0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes};
    struct cmsghdr *rights = &control.header;
    int length = snprintf(text, sizeof text, NAME " %d\n", PROTOCOL);
    for (int i = 0; i < line_count; i++) {
        length += snprintf(text + length, sizeof text - length, "line %s\n", lines[i].name);
        fds[count++] = lines[i].fd;
    }
    for (int i = 0; i < pwm_count; i++) {
        length += snprintf(text + length, sizeof text - length, "pwm %s\n", pwms[i].name);
        fds[count++] = pwms[i].period;
        fds[count++] = pwms[i].duty_cycle;
        fds[count++] = pwms[i].enable;
    }
    length += snprintf(text + length, sizeof text - length, "heartbeat\nwatch\nwake\n");
    fds[count++] = heartbeat_fd;
    fds[count++] = watch_fd;
    fds[count++] = wake_fd;
    part.iov_len = length;
    memset(&control, 0, sizeof control);
    message.msg_controllen = CMSG_SPACE(count * sizeof(int));
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(rights), fds, count * sizeof(int));
    return sendmsg(connection, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == length ? 0 : -errno;
}

static void refuse(int connection, int pid) {
    char text[MESSAGE_BYTES];
    int length = worker.connection >= 0
        ? snprintf(text, sizeof text, "refused the outputs belong to the worker with process number %d", worker.pid)
        : snprintf(text, sizeof text, "refused process %d has given the outputs back but still lives and could write to "
                   "them: end it", worker.pid);
    if (send(connection, text, length, MSG_NOSIGNAL | MSG_DONTWAIT) != length) unsaid++;
    say("process %d refused: process %d has the outputs", pid, worker.pid);
    close(connection);
}

static void admit(void) {
    struct ucred peer = {0, 0, 0};
    socklen_t size = sizeof peer;
    int status, connection = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection < 0) return;
    if (getsockopt(connection, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) peer.pid = 0;
    if (worker.connection >= 0 || (worker.pid && worker.pid != peer.pid)) {
        refuse(connection, peer.pid);
        return;
    }
    if (worker.pid == 0) worker.pidfd = (int)syscall(SYS_pidfd_open, peer.pid, 0);
    worker.pid = peer.pid;
    worker.connection = connection;
    worker.beat = __atomic_load_n(heartbeat, __ATOMIC_RELAXED);
    worker.beat_ns = now_ns();
    worker.beating = worker.silent = worker.killed = 0;
    forget_pumps(heartbeat);
    status = hand_over(connection);
    if (status)
        say("worker %d did not take the outputs: %s", worker.pid, strerror(-status));
    else
        say("worker %d has the outputs", worker.pid);
}

static void hang_up(const char *why) {
    make_safe_for(why, worker.pid);
    close(worker.connection);
    worker.connection = -1;
    if (worker.pidfd < 0) worker.pid = 0;
}

/* The process is gone, and with it every descriptor it had. */
static void bury(void) {
    if (worker.connection >= 0) {
        hang_up("died");
    } else {
        make_safe();
        order_dacs();
    }
    close(worker.pidfd);
    worker.pidfd = -1;
    worker.pid = 0;
}

/* One that stays silent does not come back by itself: without it systemd can start another. */
static void kill_worker(int64_t silent_ns) {
    int failed = worker.pidfd >= 0 ? (int)syscall(SYS_pidfd_send_signal, worker.pidfd, SIGKILL, NULL, 0)
                                   : kill(worker.pid, SIGKILL);
    worker.killed = 1;
    make_safe();
    say(failed ? "worker %d has had no heartbeat for %lld s and cannot be killed" :
        "worker %d has had no heartbeat for %lld s: killed", worker.pid, (long long)silent_ns / 1000000000);
}

static void tend_heartbeat(int64_t at_ns) {
    uint32_t beat = __atomic_load_n(heartbeat, __ATOMIC_RELAXED);
    if (beat != worker.beat) {
        if (worker.silent)
            say("worker %d beats again after %lld ms", worker.pid, (long long)(at_ns - worker.beat_ns) / 1000000);
        worker.beat = beat;
        worker.beat_ns = at_ns;
        worker.beating = 1;
        worker.silent = 0;
    } else if (at_ns - worker.beat_ns >= SILENCE_NS) {
        /* again at each look: a loop that is stopped in the middle of a tick may write once more when it goes on */
        if (worker.silent || !worker.beating)  /* one that still starts has switched nothing on */
            make_safe();
        else
            make_safe_for("has had no heartbeat for 3 s", worker.pid);
        worker.silent = worker.beating;
        if (worker.silent && !worker.killed && at_ns - worker.beat_ns >= kill_ns) kill_worker(at_ns - worker.beat_ns);
    }
}

static void listen_to_worker(short events) {
    char byte;
    ssize_t got = recv(worker.connection, &byte, 1, MSG_DONTWAIT);
    if (got > 0)
        hang_up("sent what this guard does not understand");
    else if (got == 0 || (errno != EAGAIN && errno != EINTR) || (events & (POLLHUP | POLLERR)))
        hang_up("hung up");
}

/* Look at the worker that has the outputs. Returns when the next look is due. */
static int64_t look_at_worker(int64_t at_ns) {
    int64_t next_ns;
    tend_heartbeat(at_ns);
    next_ns = tend_pumps(heartbeat, worker.pid, at_ns);
    return next_ns < at_ns + LOOK_NS ? next_ns : at_ns + LOOK_NS;
}

/* Look at everything. Returns how long until the next look, ns; -1: until something happens. */
static int64_t look(void) {
    int64_t at_ns = now_ns(), wait_ns = -1, feed_ns;
    int beats = worker.connection >= 0 && at_ns - worker.beat_ns < SILENCE_NS;
    if (worker.connection >= 0) {
        wait_ns = look_at_worker(at_ns) - at_ns;
    } else if (worker.pid || outputs_failed) {
        /* one that hung up and lives on still has descriptors, and may be in the middle of a tick */
        make_safe();
        wait_ns = LOOK_NS;
    }
    if (tend_dacs(at_ns) && wait_ns < 0) wait_ns = LOOK_NS;
    feed_ns = tend_watchdog(at_ns, (beats || !outputs_failed) && !pumps_failed);
    return feed_ns >= 0 && (wait_ns < 0 || feed_ns < wait_ns) ? feed_ns : wait_ns;
}

static void serve(void) {
    int64_t wait_ns = 0;
    uint64_t wakes;
    for (;;) {
        struct pollfd waiting[6] = {{worker.connection, POLLIN, 0}, {worker.pidfd, POLLIN, 0}, {signals, POLLIN, 0},
                                    {listener, POLLIN, 0}, {wake_fd, POLLIN, 0}, {dac_done_fd, POLLIN, 0}};
        struct timespec timeout = {wait_ns / 1000000000, wait_ns % 1000000000};
        int ready = ppoll(waiting, 6, wait_ns < 0 ? NULL : &timeout, NULL);
        if (ready < 0 && errno != EINTR) {
            make_safe();
            say("cannot wait for events: %s; outputs off", strerror(errno));
            exit(1);
        }
        if (ready > 0 && waiting[0].revents) listen_to_worker(waiting[0].revents);
        if (ready > 0 && waiting[1].revents) bury();
        if (ready > 0 && waiting[2].revents) break;
        /* before the deadlines are read: one that is armed after that wakes us again */
        if (ready > 0 && waiting[4].revents)
            while (read(wake_fd, &wakes, sizeof wakes) > 0) {}
        wait_ns = look();
        __atomic_store_n(watch, *watch + 1, __ATOMIC_RELAXED);
        if (ready > 0 && waiting[3].revents) {
            admit();
            wait_ns = 0;
        }
    }
}

/* ---- start and end -------------------------------------------------------------------------------------------------- */

static int take_lock(void) {
    char path[sizeof(((struct sockaddr_un *)0)->sun_path) + 8];
    int fd;
    snprintf(path, sizeof path, "%s.lock", socket_path);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0640);
    if (fd < 0) {
        say("cannot make %s: %s", path, strerror(errno));
        return -1;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        say("another guard already serves %s", socket_path);
        return -1;
    }
    return 0;
}

static int open_socket(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    mode_t mask = umask(0117);
    int status;
    strncpy(address.sun_path, socket_path, sizeof address.sun_path - 1);
    unlink(socket_path);
    listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    status = listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 4) < 0;
    if (status) say("cannot listen at %s: %s", socket_path, strerror(errno));
    umask(mask);
    return status;
}

/* A page to share with the worker; NULL where there is none. */
static uint32_t *open_page(const char *name, int *fd, int protection) {
    void *page;
    *fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0 || ftruncate(*fd, PAGE_BYTES) < 0) {
        say("no memory for %s: %s", name, strerror(errno));
        return NULL;
    }
    /* its size is sealed: a worker cannot pull the page from under us */
    fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    page = mmap(NULL, PAGE_BYTES, protection, MAP_SHARED, *fd, 0);
    if (page == MAP_FAILED) {
        say("cannot map %s: %s", name, strerror(errno));
        return NULL;
    }
    return page;
}

static int open_pages(void) {
    heartbeat = open_page("stirbar-heartbeat", &heartbeat_fd, PROT_READ);
    watch = open_page("stirbar-watch", &watch_fd, PROT_READ | PROT_WRITE);
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0) say("cannot make an event to be woken by: %s", strerror(errno));
    if (heartbeat == NULL || watch == NULL || wake_fd < 0) return -1;
    /* only we write our own; kernels before 5.1 cannot keep the worker from it */
    fcntl(watch_fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
    fcntl(watch_fd, F_ADD_SEALS, F_SEAL_SEAL);
    fcntl(heartbeat_fd, F_ADD_SEALS, F_SEAL_SEAL);
    return 0;
}

static int open_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (signals < 0) say("cannot watch signals: %s", strerror(errno));
    return signals < 0;
}

/* What may be refused: said once, and we go on. */
static void become_urgent(void) {
    struct sched_param parameter = {.sched_priority = PRIORITY};
    volatile char stack[32 * 1024];
    if (mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
        say("locking memory refused (%s): under memory pressure it may be late", strerror(errno));
    for (size_t i = 0; i < sizeof stack; i += 1024) stack[i] = 0;
    now_ns();  /* the page that the clock is read from cannot be locked, but it stays once it was touched */
    if (sched_setscheduler(0, SCHED_FIFO, &parameter) < 0)
        say("real-time priority %d refused (%s): while something computes it may be late", PRIORITY, strerror(errno));
}

/* Tell systemd (Type=notify) that the lines are held: what is ordered after us may start. */
static void tell_ready(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *path = getenv("NOTIFY_SOCKET");
    size_t length = path ? strlen(path) : 0;
    int fd;
    if (length == 0 || length >= sizeof address.sun_path) return;
    memcpy(address.sun_path, path, length);
    if (path[0] == '@') address.sun_path[0] = 0;
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return;
    if (sendto(fd, "READY=1", 7, MSG_NOSIGNAL, (struct sockaddr *)&address,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length)) < 0)
        say("cannot tell systemd that it is ready: %s", strerror(errno));
    close(fd);
}

/* Everything off, whatever of it can be had, and the end: at boot, and after a guard. Returns how many could not. */
static int switch_off_once(void) {
    int failed = line_count ? request_lines(chip_path, 1) : 0;
    for (int i = 0; i < pwm_count; i++) failed += open_pwm(&pwms[i]) != 0;
    if (failed)
        say("%d of %d outputs could not be switched off", failed, line_count + pwm_count);
    else
        say("%d lines of %s and %d PWM channels are off", line_count, chip_path, pwm_count);
    open_dacs();
    if (start_dacs()) return failed + 1;
    order_dacs();
    return failed + finish_dacs();
}

int main(int count, char **arguments) {
    malloc_trim(0);  /* the C library takes 132 kB before main, which nothing here uses and which would be locked */
    if (read_arguments(count, arguments)) {
        fputs(usage, stderr);
        return 2;
    }
    if (take_lock()) return 1;
    if (once) return switch_off_once() ? 1 : 0;
    if (line_count && request_lines(chip_path, 0)) return 1;
    for (int i = 0; i < pwm_count; i++)
        if (open_pwm(&pwms[i])) return 1;
    open_dacs();
    find_pumps();
    if (open_signals() || open_pages() || open_socket()) return 1;
    become_urgent();
    if (start_dacs()) return 1;
    open_watchdog(watchdog_path);
    tell_ready();
    say("holds %d lines of %s and %d PWM channels, all off; workers connect at %s", line_count, chip_path, pwm_count,
        socket_path);
    serve();
    int failed = make_safe();
    order_dacs();
    close_watchdog(failed == 0);
    failed += finish_dacs();
    if (unsaid) say("%u messages were lost: nobody read standard error", unsaid);
    say(failed ? "ends; %d outputs did not take the order to go off" : "ends; outputs off", failed);
    unlink(socket_path);
    return failed ? 1 : 0;
}
