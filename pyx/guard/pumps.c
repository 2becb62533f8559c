/* The off-deadlines of the pumps: a pump runs only until a moment that the worker wrote down before it started it.
 *
 * The worker writes them into its page, words 1 to 3: milliseconds of CLOCK_MONOTONIC, low 32 bits, 0: not armed. They
 * hold whatever the heartbeat says. A pump that is not armed is written off at each look, one that is armed when its
 * deadline has passed by PUMP_GRACE_NS; the words themselves are the worker's alone.
 */

#include "guard.h"

#include <stddef.h>
#include <string.h>

#define PUMP_WORD 1                      /* of the first pump in the worker's page */
#define PUMP_GRACE_MS 50
#define PUMP_GRACE_NS (PUMP_GRACE_MS * 1000000LL)

struct pump {
    const char *name;
    int64_t on_ms;                       /* the longest that it may be armed for */
    const struct line *line;             /* it has one of the two, or none */
    const struct pwm *pwm;
    uint32_t before;                     /* its word when the worker came: of an earlier one, until it changes */
    int armed_by_worker;                 /* it has changed since */
    uint32_t said;                       /* the deadline that was complained of */
};

int pumps_failed;
static struct pump pumps[PUMPS] = {
    {.name = "media", .on_ms = PUMP_ON_CEILING_MS},
    {.name = "alt_media", .on_ms = PUMP_ON_CEILING_MS},
    {.name = "waste", .on_ms = PUMP_ON_CEILING_MS},
};

/* The longest that a pump may be on. Returns -1 when there is no such pump, -2 when the time is out of bounds. */
int limit_pump(const char *name, long on_ms) {
    for (int i = 0; i < PUMPS; i++) {
        if (strcmp(pumps[i].name, name)) continue;
        if (on_ms < 1 || on_ms > PUMP_ON_CEILING_MS) return -2;
        pumps[i].on_ms = on_ms;
        return 0;
    }
    return -1;
}

/* Which of the outputs are pumps. */
void find_pumps(void) {
    for (int i = 0; i < PUMPS; i++) {
        for (int j = 0; j < line_count; j++)
            if (strcmp(lines[j].name, pumps[i].name) == 0) pumps[i].line = &lines[j];
        for (int j = 0; j < pwm_count; j++)
            if (strcmp(pwms[j].name, pumps[i].name) == 0) pumps[i].pwm = &pwms[j];
    }
}

/* A worker came: what the page says now is not its word. */
void forget_pumps(const uint32_t *page) {
    for (int i = 0; i < PUMPS; i++) {
        pumps[i].before = __atomic_load_n(&page[PUMP_WORD + i], __ATOMIC_RELAXED);
        pumps[i].armed_by_worker = 0;
        pumps[i].said = 0;
    }
}

static uint32_t deadline_of(struct pump *pump, const uint32_t *word) {
    uint32_t deadline = __atomic_load_n(word, __ATOMIC_RELAXED);
    pump->armed_by_worker |= deadline != pump->before;
    return pump->armed_by_worker ? deadline : 0;
}

static const char *what_became(int failed) {
    return failed ? "it did not take the order to go off" : "switched off";
}

/* Switch off each pump that may not be on. Returns when a deadline passes next, INT64_MAX: none. */
int64_t tend_pumps(const uint32_t *page, int pid, int64_t at_ns) {
    int64_t next_ns = INT64_MAX, at_ms = at_ns / 1000000;
    pumps_failed = 0;
    for (int i = 0; i < PUMPS; i++) {
        struct pump *pump = &pumps[i];
        uint32_t deadline = deadline_of(pump, &page[PUMP_WORD + i]);
        int64_t ahead_ms = (int32_t)(deadline - (uint32_t)at_ms), off_ns = (at_ms + ahead_ms) * 1000000 + PUMP_GRACE_NS;
        int too_far = ahead_ms > pump->on_ms + PUMP_GRACE_MS;
        int failed;
        if (pump->line == NULL && pump->pwm == NULL) continue;
        if (deadline && !too_far && at_ns < off_ns) {
            next_ns = off_ns < next_ns ? off_ns : next_ns;
            continue;
        }
        failed = (pump->line ? line_off(pump->line) : 0) + (pump->pwm ? pwm_off(pump->pwm) : 0);
        pumps_failed += failed != 0;
        if (deadline == pump->said) continue;
        pump->said = deadline;
        if (deadline && too_far)
            say("worker %d: %s was to be on for %lld ms, more than its %lld ms: %s", pid, pump->name, (long long)ahead_ms,
                (long long)pump->on_ms, what_became(failed));
        else if (deadline)
            say("worker %d: %s was to be off %lld ms ago: %s", pid, pump->name, (long long)-ahead_ms,
                what_became(failed));
    }
    return next_ns;
}
