/* The command line. `stirbar guard` writes it (core/guard_command.py). */

#include "guard.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#ifndef STIRBAR_VERSION
#define STIRBAR_VERSION "unknown"
#endif

#define PWM_PERIOD_NS 4000000ul          /* of a channel that has none yet */

const char *chip_path = "/dev/gpiochip0", *socket_path, *watchdog_path;
int64_t kill_ns = 30000000000LL;
int once;

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

static int add_on_time(const char *text) {
    char name[24], *end = NULL;
    const char *value = named(text, name, sizeof name);
    long on_ms = value ? strtol(value, &end, 10) : 0;
    int status = value && *end == 0 ? limit_pump(name, on_ms) : -1;
    if (status == -2) say("--on-time=%s: a pump may be on for 1 to %d ms in one piece", text, PUMP_ON_CEILING_MS);
    return status;
}

const char *usage =
    "usage: " NAME " --socket PATH [--chip /dev/gpiochipN] [--line NAME=NUMBER]... [--pwm NAME=/sys/..../pwmN[@PERIOD_NS]]...\n"
    "    [--on-time PUMP=MILLISECONDS]... [--kill-after SECONDS] [--dac /dev/i2c-N:ADDRESS:BYTES]...\n"
    "    [--watchdog DEVICE] [--once]\n"
    "Holds the lines and PWM channels of everything that heats, pumps or stirs, off, and hands them to one worker at a\n"
    "time; switches them off when the worker hangs up, dies or has no heartbeat for 3 s, and a pump (media, alt_media,\n"
    "waste) at its deadline; then writes the bytes to the LED drivers. A worker that stays silent is killed (30 s). With\n"
    "--once: switches everything off and ends. Started by `stirbar guard`.\n";

int read_arguments(int count, char **arguments) {
    static const struct option options[] = {
        {"socket", required_argument, NULL, 's'},   {"chip", required_argument, NULL, 'c'},
        {"line", required_argument, NULL, 'l'},     {"pwm", required_argument, NULL, 'p'},
        {"on-time", required_argument, NULL, 'o'},  {"dac", required_argument, NULL, 'd'},
        {"watchdog", required_argument, NULL, 'w'}, {"once", no_argument, &once, 1},
        {"kill-after", required_argument, NULL, 'k'},
        {"version", no_argument, NULL, 'v'},        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(count, arguments, "", options, NULL)) != -1) {
        if (option == 'v' || option == 'h') {
            fputs(option == 'v' ? NAME " " STIRBAR_VERSION "\n" : usage, stdout);
            exit(0);
        }
        if (option == 0) continue;
        if (option == 's') {
            socket_path = optarg;
        } else if (option == 'c') {
            chip_path = optarg;
        } else if (option == 'k') {
            kill_ns = strtol(optarg, NULL, 10) * 1000000000LL;
            if (kill_ns < KILL_LEAST_NS) {
                say("--kill-after=%s: at least %d s", optarg, (int)(KILL_LEAST_NS / 1000000000));
                return -1;
            }
        } else if (option == 'w') {
            watchdog_path = optarg;
        } else if (option == '?') {
            return -1;
        } else if (option == 'o') {
            int status = add_on_time(optarg);
            if (status == -1) say("%s: not media, alt_media or waste=MILLISECONDS", optarg);
            if (status) return -1;
        } else if (option == 'd') {
            if (add_dac(optarg)) {
                say("%s: not BUS:ADDRESS:BYTES such as /dev/i2c-1:0x49:0100ff, or one too many", optarg);
                return -1;
            }
        } else if (option == 'l' ? add_line(optarg) : add_pwm(optarg)) {
            say("%s: not NAME=%s, or one too many", optarg, option == 'l' ? "NUMBER" : "PATH");
            return -1;
        }
    }
    if (socket_path == NULL || strlen(socket_path) >= sizeof(((struct sockaddr_un *)0)->sun_path)) {
        say("--socket PATH is needed, of at most %zu bytes", sizeof(((struct sockaddr_un *)0)->sun_path) - 1);
        return -1;
    }
    return optind == count ? 0 : -1;
}
