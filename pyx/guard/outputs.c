/* The lines and PWM channels of everything that heats, pumps or stirs: held, and switched off. */

#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/gpio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define EXPORT_TRIES 100                 /* udev needs a moment to hand a new PWM channel to its group */
#define EXPORT_WAIT_NS 20000000

struct line lines[LINES_MAXIMUM];
struct pwm pwms[PWMS_MAXIMUM];
int line_count, pwm_count, outputs_failed;

static int write_text(int fd, const char *text) {
    ssize_t length = (ssize_t)strlen(text);
    return pwrite(fd, text, length, 0) == length ? 0 : -errno;
}

static int write_number(int fd, unsigned long number) {
    char text[24];
    snprintf(text, sizeof text, "%lu", number);
    return write_text(fd, text);
}

/* Off, now. Returns the number of writes that failed. */
int line_off(const struct line *line) {
    struct gpio_v2_line_values low = {.bits = 0, .mask = 1};
    return ioctl(line->fd, GPIO_V2_LINE_SET_VALUES_IOCTL, &low) < 0;
}

int pwm_off(const struct pwm *pwm) {
    int failed = write_text(pwm->duty_cycle, "0") < 0;
    return failed + (write_text(pwm->enable, "0") < 0);
}

/* Everything off, in the order of the command line: lines, then PWM. Returns the number of writes that failed. */
int make_safe(void) {
    int failed = 0;
    for (int i = 0; i < line_count; i++) failed += line_off(&lines[i]);
    for (int i = 0; i < pwm_count; i++) failed += pwm_off(&pwms[i]);
    outputs_failed = failed;
    return failed;
}

/* Everything off, then the order for the LEDs, and say why and how long it took. */
void make_safe_for(const char *why, int pid) {
    int64_t begun_ns = now_ns();
    int failed = make_safe();
    long took_us = (long)((now_ns() - begun_ns) / 1000);
    order_dacs();
    if (failed)
        say("worker %d %s: %d of %d outputs did not take the order to go off", pid, why, failed,
            line_count + 2 * pwm_count);
    else
        say("worker %d %s: outputs off (took %ld us)", pid, why, took_us);
}

/* Hold one line, low from its first moment as an output. */
static int request_line(int chip_fd, const char *chip_path, unsigned chip_lines, struct line *line) {
    struct gpio_v2_line_request request;
    struct gpio_v2_line_info info;
    memset(&request, 0, sizeof request);
    request.offsets[0] = line->offset;
    request.num_lines = 1;
    strcpy(request.consumer, NAME);
    request.config.flags = GPIO_V2_LINE_FLAG_OUTPUT;  /* without values: low */
    if (ioctl(chip_fd, GPIO_V2_GET_LINE_IOCTL, &request) == 0) {
        line->fd = request.fd;
        return 0;
    }
    if (errno == EBUSY) {
        memset(&info, 0, sizeof info);
        info.offset = line->offset;
        ioctl(chip_fd, GPIO_V2_GET_LINEINFO_IOCTL, &info);
        say("line %u (%s) of %s is in use by '%s': end that program%s", line->offset, line->name, chip_path,
            info.consumer[0] ? info.consumer : "the kernel",
            strcmp(info.consumer, NAME) ? "" : " (a guard, or a worker that has outlived its guard)");
    } else if (line->offset >= chip_lines) {
        say("%s has no line %u (%s): it has %u", chip_path, line->offset, line->name, chip_lines);
    } else {
        say("cannot request line %u (%s) of %s: %s", line->offset, line->name, chip_path, strerror(errno));
    }
    return -1;
}

/* Hold the lines, all that can be had or none after the first that cannot. Returns how many could not be had. */
int request_lines(const char *chip_path, int all) {
    struct gpiochip_info chip;
    int fd = open(chip_path, O_RDWR | O_CLOEXEC), failed = 0;
    memset(&chip, 0, sizeof chip);
    if (fd < 0 || ioctl(fd, GPIO_GET_CHIPINFO_IOCTL, &chip) < 0) {
        say("cannot use the GPIO chip %s: %s", chip_path, strerror(errno));
        failed = line_count;
    }
    for (int i = 0; i < line_count && failed < (all ? line_count : 1); i++)
        failed += request_line(fd, chip_path, chip.lines, &lines[i]) != 0;
    if (fd >= 0) close(fd);
    return failed;
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

int open_pwm(struct pwm *pwm) {
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
