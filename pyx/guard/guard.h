/* What the parts of the guard share. Why a program of its own: guard.c. */

#ifndef STIRBAR_GUARD_H
#define STIRBAR_GUARD_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdint.h>

#define NAME "stirbar-guard"
#define LINES_MAXIMUM 16
#define PWMS_MAXIMUM 8
#define KILL_LEAST_NS 4000000000LL       /* later than the outputs go off for want of a heartbeat */
#define PUMPS 3                          /* media, alt_media, waste: the order of their words in the worker's page */
#define PUMP_ON_CEILING_MS 60000         /* longer than that no pump is on in one piece, whatever the configuration says */

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

/* guard.c */
int64_t now_ns(void);
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* outputs.c */
extern struct line lines[LINES_MAXIMUM];
extern struct pwm pwms[PWMS_MAXIMUM];
extern int line_count, pwm_count;
extern int outputs_failed;               /* writes of the last make_safe: 0, and everything is off */
int request_lines(const char *chip_path, int all);
int open_pwm(struct pwm *pwm);
int line_off(const struct line *line);
int pwm_off(const struct pwm *pwm);
int make_safe(void);
void make_safe_for(const char *why, int pid);

/* pumps.c */
extern int pumps_failed;                 /* pumps that had to go off and did not take the order */
int limit_pump(const char *name, long on_ms);
void find_pumps(void);
void forget_pumps(const uint32_t *page);
int64_t tend_pumps(const uint32_t *page, int pid, int64_t at_ns);

/* dac.c */
extern int dac_done_fd;
int add_dac(const char *text);
void open_dacs(void);
int start_dacs(void);
void order_dacs(void);
int tend_dacs(int64_t at_ns);
int finish_dacs(void);

/* watchdog.c */
void open_watchdog(const char *path);
int64_t tend_watchdog(int64_t at_ns, int may_feed);
void close_watchdog(int outputs_off);

/* arguments.c */
extern const char *chip_path, *socket_path, *watchdog_path, *usage;
extern int once;
extern int64_t kill_ns;                  /* after so long without a heartbeat the worker is killed, and restarted by systemd */
int read_arguments(int count, char **arguments);

#endif
