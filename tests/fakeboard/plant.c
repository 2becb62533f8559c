/* What follows the program's outputs: a motor whose magnets pass a hall sensor, and a heater under a TMP1075. Both are
   first-order lags, solved exactly between one change of their duty cycle and the next. */

#include <math.h>
#include <stdlib.h>

#include "board.h"

static const int64_t LEVEL_NS = 250000000;      /* a line without edges for so long is a level */
static const double STEP_S = 0.02, LOW_SHARE = 0.3;

struct stirrer stirrer = { .pwm = -1, .gpio = -1, .hall = -1, .full_mhz = 50000, .dead_ppm = 100000,
                           .start_ppm = 150000, .tau_ms = 400, .magnets = 1 };
struct heater heater = { .pwm = -1, .gpio = -1, .ambient_mc = 22000, .full_mc = 30000, .tau_ms = 600000 };

/* ---- duty cycles -------------------------------------------------------------------------------------------------- */

double pwm_duty(int channel) {
    if (channel < 0 || channel >= PWM_CHANNELS || !pwm[channel].enabled || !pwm[channel].period_ns) return 0;
    double duty = (double)pwm[channel].duty_ns / (double)pwm[channel].period_ns;
    return pwm[channel].inversed ? 1 - duty : duty;
}

double line_duty(int offset, int64_t t) {
    const struct line *line = &lines[offset];
    return t > line->edge_ns + LEVEL_NS ? line->output && line->level : line->duty;
}

static double duty(int channel, int offset, int64_t t) {
    return offset >= 0 && offset < LINES ? line_duty(offset, t) : pwm_duty(channel);
}

/* When a line that is still taken for PWM will turn out to be a level. */
static int64_t turns_level(int offset, int64_t t) {
    if (offset < 0 || offset >= LINES || t > lines[offset].edge_ns + LEVEL_NS) return NEVER;
    return lines[offset].edge_ns + LEVEL_NS + 1;
}

void line_changed(int offset, int64_t t) {
    struct line *line = &lines[offset];
    if (line->level) {
        if (line->risen && t > line->rise_ns && t - line->rise_ns < LEVEL_NS) {
            line->high_ns += (double)(line->edge_ns - line->rise_ns);
            line->all_ns += (double)(t - line->rise_ns);
            line->duty = line->high_ns / line->all_ns;
            line->high_ns *= 0.875;         /* a mean over some ten cycles */
            line->all_ns *= 0.875;
        }
        line->risen = true;
        line->rise_ns = t;
        if (offset == scl_line) bus_clocked(t);
    }
    line->edge_ns = t;
}

/* ---- stirrer ------------------------------------------------------------------------------------------------------ */

static double stirrer_goal(int64_t t) {
    double share = duty(stirrer.pwm, stirrer.gpio, t), dead = stirrer.dead_ppm * 1e-6;
    if (stirrer.stall || share <= dead || (stirrer.hz == 0 && share < stirrer.start_ppm * 1e-6)) return 0;
    return stirrer.full_mhz * 1e-3 * (share - dead) / fmax(1 - dead, 1e-6);
}

static double stirrer_tau(void) {
    return (stirrer.tau_ms > 1 ? stirrer.tau_ms : 1) * 1e-3;
}

/* Turns made in so many seconds from the present speed towards the goal. */
static double turns_in(double goal, double seconds) {
    double tau = stirrer_tau();
    return goal * seconds - (stirrer.hz - goal) * tau * expm1(-seconds / tau);
}

static void next_edge(void) {
    double part = 1.0 / (stirrer.magnets > 1 ? stirrer.magnets : 1) * (stirrer.low ? LOW_SHARE : 1 - LOW_SHARE);
    double wobble = stirrer.jitter_us ? stirrer.jitter_us * 1e-6 * gauss() * stirrer.hz : 0;
    stirrer.nominal_turns += part;
    stirrer.next_turns = stirrer.nominal_turns + fmin(fmax(wobble, -part / 4), part / 4);
}

/* Seconds until the next edge of the hall line, if that is within limit, else limit. */
static double until_edge(double goal, double limit) {
    double left = stirrer.next_turns - stirrer.turns, low = 0, high = limit;
    if (left <= 0) return 0;
    if (turns_in(goal, limit) < left) return limit;
    while (high - low > 2e-10) {
        double middle = (low + high) / 2;
        if (turns_in(goal, middle) < left) low = middle;
        else high = middle;
    }
    return high;
}

static void stirrer_step(double goal, double seconds) {
    stirrer.turns += turns_in(goal, seconds);
    stirrer.hz = goal + (stirrer.hz - goal) * exp(-seconds / stirrer_tau());
    if (stirrer.stall) stirrer.hz = 0;
    if (fabs(goal - stirrer.hz) < fmax(goal / 20000, 0.02)) stirrer.hz = goal;
}

static void hall_edge(void) {
    stirrer.turns = stirrer.next_turns;
    stirrer.low = !stirrer.low;
    stirrer.edges += stirrer.low;
    if (stirrer.hall >= 0) line_drive(stirrer.hall, !stirrer.low, stirrer.at_ns);
    next_edge();
    if (stirrer.turns < 1000) return;
    stirrer.next_turns -= stirrer.turns;
    stirrer.nominal_turns -= stirrer.turns;
    stirrer.turns = 0;
}

static void stirrer_settle(int64_t t) {
    while (stirrer.at_ns < t) {
        double goal = stirrer_goal(stirrer.at_ns), step, limit;
        int64_t end = turns_level(stirrer.gpio, stirrer.at_ns), whole;
        if (end > t) end = t;
        if (stirrer.hz == 0 && goal == 0) {
            stirrer.at_ns = end;
            continue;
        }
        limit = fmin((double)(end - stirrer.at_ns) * 1e-9, STEP_S);
        step = until_edge(goal, limit);
        whole = (int64_t)ceil(step * 1e9);
        if (stirrer.at_ns + whole > end) whole = end - stirrer.at_ns;
        stirrer_step(goal, step);
        stirrer.at_ns += whole;
        if (step < limit) hall_edge();
        else if (whole == 0) stirrer.at_ns++;
    }
}

/* When the hall line may change next: never later than it does. */
int64_t hall_next(void) {
    double goal = stirrer_goal(stirrer.at_ns);
    int64_t level = turns_level(stirrer.gpio, stirrer.at_ns), edge;
    if (stirrer.hall < 0) return NEVER;
    if (stirrer.hz == 0 && goal == 0) return level;
    edge = stirrer.at_ns + (int64_t)(until_edge(goal, STEP_S) * 1e9) + 1;
    return edge < level ? edge : level;
}

/* ---- heater ------------------------------------------------------------------------------------------------------- */

static void heater_settle(int64_t t) {
    struct chip *chip = heater.chip ? chip_at(heater.chip) : NULL;
    double tau = (heater.tau_ms > 1 ? heater.tau_ms : 1) * 1e-3;
    if (!chip || chip->kind != TMP1075) {
        heater.at_ns = 0;
        return;
    }
    if (!heater.at_ns) {
        heater.at_ns = t;
        heater.now_mc = heater.ambient_mc;
    }
    while (heater.at_ns < t) {
        int64_t end = turns_level(heater.gpio, heater.at_ns);
        double goal = heater.ambient_mc + heater.full_mc * duty(heater.pwm, heater.gpio, heater.at_ns);
        if (end > t) end = t;
        heater.now_mc = goal + (heater.now_mc - goal) * exp(-(double)(end - heater.at_ns) * 1e-9 / tau);
        heater.at_ns = end;
    }
    chip->temperature_mc = (int)floor(heater.now_mc);
}

void plant_settle(int64_t t) {
    stirrer_settle(t);
    heater_settle(t);
}
