/* Why a program of its own: it must be able to switch everything off while the worker is dead, stopped or stuck, so it
 *   shares no process, no cgroup and no lock with it, and nothing here can wait for memory, for a file or for a log.
 * Thread rule: one thread, above the loop's two. After `serve` has begun it opens no file and allocates nothing.
 * Units: nanoseconds of CLOCK_MONOTONIC; lines by their number on the chip (BCM on a Pi).
 *
 * A request of a GPIO line is exclusive. So this program requests the lines of everything that heats, pumps or stirs,
 * low, and hands duplicates of the descriptors to one worker at a time. Either can switch a line off at any moment.
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/gpio.h>
#include <malloc.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
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
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef STIRBAR_VERSION
#define STIRBAR_VERSION "unknown"
#endif

#define NAME "stirbar-guard"
#define PROTOCOL 2
#define PRIORITY 48                      /* between the interrupt threads (50) and the loop (47, 45) */
#define LINES_MAXIMUM 16
#define PWMS_MAXIMUM 8
#define PWM_PERIOD_NS 4000000ul          /* of a channel that has none yet */
#define EXPORT_TRIES 100                 /* udev needs a moment to hand a new PWM channel to its group */
#define EXPORT_WAIT_NS 20000000
#define PAGE_BYTES 4096
#define LOOK_NS 100000000LL              /* how often the heartbeat is looked at */
#define SILENCE_NS (3000000000LL - LOOK_NS)  /* with it: off within 3 s of the last beat */
#define MESSAGE_BYTES 256                /* less than PIPE_BUF: written whole or not at all */
#define HELLO_BYTES 1024

struct line {
    char name[24];
    unsigned offset;
    int fd;
};

struct pwm {
    char name[24];
    char path[160];
    unsigned long period_ns;
    int period, duty_cycle, enable;
};

/* The worker that has the outputs. pid stays after it hung up, for as long as it lives: it still has descriptors. */
struct worker {
    int connection;                      /* -1: hung up, or none */
    int pidfd;                           /* -1: none, or the kernel has no pidfds (before 5.3) */
    pid_t pid;                           /* 0: none */
    uint32_t beat;                       /* the heartbeat when it last changed */
    int64_t beat_ns;
    int beating;                         /* it has changed since the worker came */
    int silent;                          /* outputs are off for want of a heartbeat */
};

static struct line lines[LINES_MAXIMUM];
static struct pwm pwms[PWMS_MAXIMUM];
static int line_count, pwm_count;
static const char *chip_path = "/dev/gpiochip0", *socket_path;
static int listener = -1, signals = -1, heartbeat_fd = -1, watch_fd = -1;
static uint32_t *heartbeat;              /* written by the worker */
static uint32_t *watch;                  /* our own, so that the worker sees whether we are alive */
static struct worker worker = {-1, -1, 0, 0, 0, 0, 0};
static unsigned unsaid;                  /* messages that standard error had no room for */

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Say one line, unless standard error would make us wait for it. */
static void say(const char *format, ...) {
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

/* ---- outputs -------------------------------------------------------------------------------------------------------- */

static int write_text(int fd, const char *text) {
    ssize_t length = (ssize_t)strlen(text);
    return pwrite(fd, text, length, 0) == length ? 0 : -errno;
}

static int write_number(int fd, unsigned long number) {
    char text[24];
    snprintf(text, sizeof text, "%lu", number);
    return write_text(fd, text);
}

/* Everything off, in the order of the command line: lines, then PWM. Returns the number of writes that failed. */
static int make_safe(void) {
    int failed = 0;
    for (int i = 0; i < line_count; i++) {
        struct gpio_v2_line_values low = {.bits = 0, .mask = 1};
        failed += ioctl(lines[i].fd, GPIO_V2_LINE_SET_VALUES_IOCTL, &low) < 0;
    }
    for (int i = 0; i < pwm_count; i++) {
        failed += write_text(pwms[i].duty_cycle, "0") < 0;
        failed += write_text(pwms[i].enable, "0") < 0;
    }
    return failed;
}

/* Everything off, and say why and how long it took. */
static void make_safe_for(const char *why, int pid) {
    int64_t begun_ns = now_ns();
    int failed = make_safe();
    long took_us = (long)((now_ns() - begun_ns) / 1000);
    if (failed)
        say("worker %d %s: %d of %d outputs did not take the order to go off", pid, why, failed,
            line_count + 2 * pwm_count);
    else
        say("worker %d %s: outputs off (took %ld us)", pid, why, took_us);
}

static int request_lines(void) {
    struct gpiochip_info chip;
    int fd = open(chip_path, O_RDWR | O_CLOEXEC);
    memset(&chip, 0, sizeof chip);
    if (fd < 0 || ioctl(fd, GPIO_GET_CHIPINFO_IOCTL, &chip) < 0) {
        say("cannot use the GPIO chip %s: %s", chip_path, strerror(errno));
        return -1;
    }
    for (int i = 0; i < line_count; i++) {
        struct gpio_v2_line_request request;
        struct gpio_v2_line_info info;
        memset(&request, 0, sizeof request);
        request.offsets[0] = lines[i].offset;
        request.num_lines = 1;
        strcpy(request.consumer, NAME);
        request.config.flags = GPIO_V2_LINE_FLAG_OUTPUT;  /* without values: low from its first moment as an output */
        if (ioctl(fd, GPIO_V2_GET_LINE_IOCTL, &request) == 0) {
            lines[i].fd = request.fd;
            continue;
        }
        if (errno == EBUSY) {
            memset(&info, 0, sizeof info);
            info.offset = lines[i].offset;
            ioctl(fd, GPIO_V2_GET_LINEINFO_IOCTL, &info);
            say("line %u (%s) of %s is in use by '%s': end that program%s", lines[i].offset, lines[i].name, chip_path,
                info.consumer[0] ? info.consumer : "the kernel",
                strcmp(info.consumer, NAME) ? "" : " (a guard, or a worker that has outlived its guard)");
        } else if (lines[i].offset >= chip.lines) {
            say("%s has no line %u (%s): it has %u", chip_path, lines[i].offset, lines[i].name, chip.lines);
        } else {
            say("cannot request line %u (%s) of %s: %s", lines[i].offset, lines[i].name, chip_path, strerror(errno));
        }
        close(fd);
        return -1;
    }
    close(fd);
    return 0;
}

/* An attribute of a PWM channel, open for ever; right after the export udev may not have given it to us yet. */
static int open_attribute(const struct pwm *pwm, const char *attribute) {
    char path[200];
    struct timespec pause = {0, EXPORT_WAIT_NS};
    int fd = -1;
    snprintf(path, sizeof path, "%s/%s", pwm->path, attribute);
    for (int i = 0; i < EXPORT_TRIES && fd < 0; i++) {
        fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0 && errno != EACCES && errno != ENOENT) break;
        if (fd < 0) nanosleep(&pause, NULL);
    }
    if (fd < 0) say("cannot open %s (%s): %s", path, pwm->name, strerror(errno));
    return fd;
}

/* Let the kernel make the channel's directory: its number goes into `export` beside it. */
static int export_pwm(const struct pwm *pwm) {
    char path[200];
    const char *leaf = strrchr(pwm->path, '/');
    int fd, status;
    if (access(pwm->path, F_OK) == 0) return 0;
    if (leaf == NULL || strncmp(leaf, "/pwm", 4) != 0) {
        say("%s is no PWM channel (%s): a path such as /sys/class/pwm/pwmchip0/pwm0 is needed", pwm->path, pwm->name);
        return -1;
    }
    snprintf(path, sizeof path, "%.*s/export", (int)(leaf - pwm->path), pwm->path);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    status = fd < 0 ? -errno : write_text(fd, leaf + 4);
    if (fd >= 0) close(fd);
    if (status) say("cannot have the channel %s (%s): %s: %s", pwm->path, pwm->name, path, strerror(-status));
    return status;
}

static int open_pwm(struct pwm *pwm) {
    char text[24] = "";
    int polarity, status = 0;
    if (export_pwm(pwm)) return -1;
    pwm->period = open_attribute(pwm, "period");
    if (pwm->period < 0) return -1;
    pwm->duty_cycle = open_attribute(pwm, "duty_cycle");
    pwm->enable = open_attribute(pwm, "enable");
    polarity = open_attribute(pwm, "polarity");
    if (pwm->duty_cycle < 0 || pwm->enable < 0 || polarity < 0) return -1;
    /* inversed, a duty of 0 is full power */
    if (pread(polarity, text, sizeof text - 1, 0) < 0 || strncmp(text, "normal", 6)) {
        write_text(pwm->enable, "0");
        status = write_text(polarity, "normal");
    }
    close(polarity);
    memset(text, 0, sizeof text);
    /* the kernel takes no duty, not even 0, for a channel without a period */
    if (pread(pwm->period, text, sizeof text - 1, 0) < 0 || atol(text) == 0)
        status = status ? status : write_number(pwm->period, pwm->period_ns);
    status = status ? status : write_text(pwm->duty_cycle, "0");
    status = status ? status : write_text(pwm->enable, "0");
    status = status ? status : write_number(pwm->period, pwm->period_ns);
    if (status) say("cannot set the channel %s (%s): %s", pwm->path, pwm->name, strerror(-status));
    return status;
}

/* ---- worker --------------------------------------------------------------------------------------------------------- */

/* Give the worker a name and a descriptor for each output and, last, the pages of both heartbeats. */
static int hand_over(int connection) {
    char text[HELLO_BYTES];
    int fds[LINES_MAXIMUM + 3 * PWMS_MAXIMUM + 2], count = 0;
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
    length += snprintf(text + length, sizeof text - length, "heartbeat\nwatch\n");
    fds[count++] = heartbeat_fd;
    fds[count++] = watch_fd;
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
    worker.beating = worker.silent = 0;
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
    if (worker.connection >= 0)
        hang_up("died");
    else
        make_safe();
    close(worker.pidfd);
    worker.pidfd = -1;
    worker.pid = 0;
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

static void serve(void) {
    for (;;) {
        struct pollfd waiting[4] = {
            {worker.connection, POLLIN, 0}, {worker.pidfd, POLLIN, 0}, {signals, POLLIN, 0}, {listener, POLLIN, 0}};
        int ready = poll(waiting, 4, worker.connection >= 0 ? (int)(LOOK_NS / 1000000) : -1);
        if (ready < 0 && errno != EINTR) {
            make_safe();
            say("cannot wait for events: %s; outputs off", strerror(errno));
            exit(1);
        }
        if (ready > 0 && waiting[0].revents) listen_to_worker(waiting[0].revents);
        if (ready > 0 && waiting[1].revents) bury();
        if (ready > 0 && waiting[2].revents) break;
        if (worker.connection >= 0) tend_heartbeat(now_ns());
        __atomic_store_n(watch, *watch + 1, __ATOMIC_RELAXED);
        if (ready > 0 && waiting[3].revents) admit();
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
    if (heartbeat == NULL || watch == NULL) return -1;
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

/* NAME=VALUE: copy the name, return where the value begins; NULL when it is none. */
static const char *named(const char *text, char *name, size_t size) {
    const char *equals = strchr(text, '=');
    if (equals == NULL || equals == text || (size_t)(equals - text) >= size || equals[1] == 0) return NULL;
    memcpy(name, text, equals - text);
    name[equals - text] = 0;
    return equals + 1;
}

static int add_line(const char *text) {
    struct line *line = &lines[line_count];
    const char *value;
    char *end;
    if (line_count == LINES_MAXIMUM || (value = named(text, line->name, sizeof line->name)) == NULL) return -1;
    line->offset = (unsigned)strtoul(value, &end, 10);
    line_count++;
    return *end ? -1 : 0;
}

static int add_pwm(const char *text) {
    struct pwm *pwm = &pwms[pwm_count];
    const char *value, *at;
    char *end = NULL;
    size_t length;
    if (pwm_count == PWMS_MAXIMUM || (value = named(text, pwm->name, sizeof pwm->name)) == NULL) return -1;
    at = strchr(value, '@');
    length = at ? (size_t)(at - value) : strlen(value);
    if (length == 0 || length >= sizeof pwm->path) return -1;
    memcpy(pwm->path, value, length);
    pwm->period_ns = at ? strtoul(at + 1, &end, 10) : PWM_PERIOD_NS;
    pwm_count++;
    return (end && *end) || pwm->period_ns == 0 ? -1 : 0;
}

static const char *usage =
    "usage: " NAME " --socket PATH [--chip /dev/gpiochipN] [--line NAME=NUMBER]... [--pwm NAME=/sys/..../pwmN[@PERIOD_NS]]...\n"
    "Holds the lines and PWM channels of everything that heats, pumps or stirs, off, and hands them to one worker at a\n"
    "time; switches them off when the worker hangs up, dies or has no heartbeat for 3 s. Started by `stirbar guard`.\n";

static int read_arguments(int count, char **arguments) {
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'}, {"chip", required_argument, NULL, 'c'},
        {"line", required_argument, NULL, 'l'},   {"pwm", required_argument, NULL, 'p'},
        {"version", no_argument, NULL, 'v'},      {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        if (option == 'v' || option == 'h') {
            fputs(option == 'v' ? NAME " " STIRBAR_VERSION "\n" : usage, stdout);
            exit(0);
        }
        if (option == 's') {
            socket_path = optarg;
        } else if (option == 'c') {
            chip_path = optarg;
        } else if (option == '?' || (option == 'l' ? add_line(optarg) : add_pwm(optarg))) {
            if (option != '?') say("%s: not NAME=%s, or one too many", optarg, option == 'l' ? "NUMBER" : "PATH");
            return -1;
        }
    }
    if (socket_path == NULL || strlen(socket_path) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        say("--socket PATH is needed, of at most %zu bytes", sizeof(((struct sockaddr_un *)0)->sun_path) - 1);
        return -1;
    }
    return optind == count ? 0 : -1;
}

int main(int count, char **arguments) {
    malloc_trim(0);  /* the C library takes 132 kB before main, which nothing here uses and which would be locked */
    if (read_arguments(count, arguments)) {
        fputs(usage, stderr);
        return 2;
    }
    if (take_lock() || (line_count && request_lines())) return 1;
    for (int i = 0; i < pwm_count; i++)
        if (open_pwm(&pwms[i])) return 1;
    if (open_signals() || open_pages() || open_socket()) return 1;
    become_urgent();
    tell_ready();
    say("holds %d lines of %s and %d PWM channels, all off; workers connect at %s", line_count, chip_path, pwm_count,
        socket_path);
    serve();
    int failed = make_safe();
    if (unsaid) say("%u messages were lost: nobody read standard error", unsaid);
    say(failed ? "ends; %d outputs did not take the order to go off" : "ends; outputs off", failed);
    unlink(socket_path);
    return failed ? 1 : 0;
}
