/* Converters and what they see. A code is the mean of the input over the conversion: what is constant or a ramp is
   summed piece by piece, between one change of the light and the next; hum is averaged in closed form; noise is drawn
   once per mean, with a sigma that falls with the root of the time. */

#include <errno.h>
#include <linux/gpio.h>
#include <math.h>
#include <string.h>

#include "board.h"

enum { CONFIG = 1, LOW = 2, HIGH = 3 };
enum { SINGLE_SHOT = 0x0100, START = 0x8000, ACTIVE_HIGH = 0x0008, PULSE_NS = 8000 };

static double ramp_nv(const struct input *input, int64_t t) {
    return input->slope_uv_s && t > input->ambient_ns ? input->slope_uv_s * 1e-6 * (double)(t - input->ambient_ns) : 0;
}

/* Mean of all sine waves over begin..end; their phase is that at time 0. */
static double hum_nv(const struct input *input, int64_t begin, int64_t end) {
    double mean = 0;
    for (int i = 0; i < input->tones; i++) {
        long double middle = ((long double)begin + end) / 2e9L;
        double half = M_PI * input->tone[i].hz * (double)(end - begin) * 1e-9;
        double phase = 2 * M_PI * (double)fmodl(middle * input->tone[i].hz, 1) + input->tone[i].degrees * M_PI / 180;
        mean += input->tone[i].uv * 1000 * sin(phase) * (half > 1e-9 ? sin(half) / half : 1);
    }
    return mean;
}

static double noise_nv(const struct input *input, int64_t length_ns) {
    double share = length_ns ? 1e9 / 860 / (double)length_ns : 1;
    return input->noise_nv ? input->noise_nv * sqrt(share) * gauss() : 0;
}

static int64_t ads_period(const struct chip *chip) {
    static const int rates[8] = { 8, 16, 32, 64, 128, 250, 475, 860 };
    int rate = rates[chip->running >> 5 & 7];
    int64_t nominal = (1000000000 + rate / 2) / rate;
    return nominal + nominal * chip->osc_ppm / 1000000;
}

/* The inputs of the conversion under way; negative: -1 for a single-ended one. An ADS1114 has no multiplexer. */
static void ads_inputs(const struct chip *chip, int *positive, int *negative) {
    static const signed char pairs[8][2] = { { 0, 1 }, { 0, 3 }, { 1, 3 }, { 2, 3 },
                                             { 0, -1 }, { 1, -1 }, { 2, -1 }, { 3, -1 } };
    int which = chip->kind == ADS1114 ? 0 : chip->running >> 12 & 7;
    *positive = pairs[which][0];
    *negative = pairs[which][1];
}

static void begin(struct chip *chip, int64_t t) {
    chip->converting = true;
    chip->begin_ns = chip->summed_ns = t;
    chip->period_ns = chip->kind == PICO ? chip->window_us * 1000LL : ads_period(chip);
    memset(chip->sum, 0, sizeof chip->sum);
}

static void sum_until(struct chip *chip, int64_t t) {
    int64_t from = chip->summed_ns;
    if (!chip->converting || t <= from) return;
    for (int i = 0; i < INPUTS; i++) {
        const struct input *input = &chip->input[i];
        chip->sum[i] += (input->steady_nv + ramp_nv(input, from + (t - from) / 2)) * (double)(t - from);
    }
    chip->summed_ns = t;
}

static double mean_nv(const struct chip *chip, int i, int64_t end) {
    const struct input *input = &chip->input[i];
    return chip->sum[i] / (double)chip->period_ns + hum_nv(input, chip->begin_ns, end) +
           noise_nv(input, chip->period_ns);
}

/* ---- ALERT/RDY ------------------------------------------------------------------------------------------------ */

static bool ready_mode(const struct chip *chip) {
    return chip->ready_line >= 0 && !chip->unplugged && (chip->reg[CONFIG] & 3) != 3 && chip->reg[HIGH] & 0x8000 &&
           !(chip->reg[LOW] & 0x8000);
}

static void ready_show(struct chip *chip, bool asserted, int64_t t) {
    bool level = !ready_mode(chip) || asserted == !!(chip->reg[CONFIG] & ACTIVE_HIGH);
    if (chip->ready_line < 0) return;
    if (level != chip->ready_level) line_drive(chip->ready_line, level, t);
    chip->ready_level = level;
}

static void ready_conversion(struct chip *chip, bool single, int64_t end) {
    if (single) chip->shot_done = true;
    if (!ready_mode(chip)) return;
    ready_show(chip, true, end);
    chip->edges++;
    if (!single) chip->pulse_end_ns = end + PULSE_NS;
}

/* ---- conversions ------------------------------------------------------------------------------------------------ */

static void ads_latch(struct chip *chip, int64_t end) {
    static const int full_scale_mv[8] = { 6144, 4096, 2048, 1024, 512, 256, 256, 256 };
    struct conversion *entry = &chip->log[chip->conversions++ % LOGGED];
    double code, full_nv = full_scale_mv[chip->running >> 9 & 7] * 1e6;
    int positive, negative;
    ads_inputs(chip, &positive, &negative);
    double nv = mean_nv(chip, positive, end);
    if (negative >= 0) nv -= mean_nv(chip, negative, end);
    code = round(nv * 32768 / full_nv);
    code = fmin(fmax(code, -32768), 32767);
    chip->reg[0] = (uint16_t)(int16_t)code;
    *entry = (struct conversion){ chip->conversions, chip->begin_ns, end, nv, (int)code };
}

static void pico_latch(struct chip *chip, int64_t end) {
    double share = chip->ema_ppm && chip->conversions ? chip->ema_ppm * 1e-6 : 1;
    for (int i = 0; i < INPUTS; i++) chip->mean_nv[i] += share * (mean_nv(chip, i, end) - chip->mean_nv[i]);
    chip->conversions++;
}

int64_t converter_next(const struct chip *chip) {
    int64_t end = chip->converting ? chip->begin_ns + chip->period_ns : NEVER;
    return chip->pulse_end_ns < end ? chip->pulse_end_ns : end;
}

/* When somebody who waits at the line must be told. */
int64_t converter_next_edge(const struct chip *chip) {
    if (chip->ready_line < 0) return NEVER;
    return is_ads(chip) && ready_mode(chip) ? converter_next(chip) : chip->pulse_end_ns;
}

/* What happens at converter_next(). */
void converter_event(struct chip *chip) {
    int64_t end = converter_next(chip);
    bool single = is_ads(chip) && chip->running & SINGLE_SHOT;
    if (end == chip->pulse_end_ns) {
        chip->pulse_end_ns = NEVER;
        ready_show(chip, false, end);
        return;
    }
    sum_until(chip, end);
    if (chip->kind == PICO) {
        pico_latch(chip, end);
        begin(chip, end);
        return;
    }
    ads_latch(chip, end);
    if (single) {
        chip->converting = false;
    } else {
        chip->running = chip->reg[CONFIG];      /* new settings count from here on */
        begin(chip, end);
        if (chip->running & SINGLE_SHOT) {
            chip->converting = chip->again;
            single = !chip->again;
        }
        chip->again = false;
    }
    ready_conversion(chip, single, end);
}

void light_settle(int64_t t) {
    for (int i = 0; i < chip_count; i++) sum_until(&chips[i], t);
}

void light_changed(int64_t t) {
    for (struct chip *chip = chips; chip < chips + chip_count; chip++) {
        for (struct input *input = chip->input; input < chip->input + INPUTS; input++) {
            input->steady_nv = (input->dark_uv + input->ambient_uv) * 1000;
            for (int i = 0; i < input->lights; i++) {
                const struct chip *lamp = chip_at(input->light[i].address);
                if (lamp && lamp->output[input->light[i].channel] > 0)
                    input->steady_nv += input->light[i].nv * lamp->output[input->light[i].channel];
            }
        }
        if (chip->kind != PICO) continue;
        if (chip->window_us <= 0 || chip->unplugged) chip->converting = false;
        else if (!chip->converting) begin(chip, t);
    }
}

/* ---- registers ---------------------------------------------------------------------------------------------------- */

void ads_power_on(struct chip *chip, int64_t t) {
    chip->reg[CONFIG] = chip->running = 0x0583;
    chip->reg[LOW] = 0x8000;
    chip->reg[HIGH] = 0x7fff;
    chip->converting = chip->again = chip->shot_done = false;
    chip->pulse_end_ns = NEVER;
    ready_show(chip, false, t);
}

void ads_write(struct chip *chip, int reg, uint16_t value, int64_t t) {
    if (reg == 0) return;                       /* the result cannot be written */
    if (reg != CONFIG) {
        chip->reg[reg & 3] = value;
    } else {
        chip->reg[CONFIG] = value & ~START;
        if (chip->converting && !(chip->running & SINGLE_SHOT)) {
            chip->again = value & START && value & SINGLE_SHOT;
        } else if (!(value & SINGLE_SHOT) || value & START) {
            chip->running = chip->reg[CONFIG];
            chip->shot_done = false;
            begin(chip, t);
        }
    }
    if (chip->pulse_end_ns == NEVER)
        ready_show(chip, chip->shot_done && !chip->converting && chip->reg[CONFIG] & SINGLE_SHOT, t);
}

uint16_t ads_read(const struct chip *chip, int reg) {
    uint16_t idle = chip->reg[CONFIG] & SINGLE_SHOT && !chip->converting ? START : 0;
    return (reg & 3) == CONFIG ? chip->reg[CONFIG] | idle : chip->reg[reg & 3];
}

uint16_t pico_read(struct chip *chip, int channel, int64_t t) {
    const struct input *input = &chip->input[channel];
    double nv = chip->converting ? chip->mean_nv[channel]
                                 : input->steady_nv + ramp_nv(input, t) + hum_nv(input, t, t) + noise_nv(input, 0);
    return (uint16_t)fmin(fmax(trunc(nv * 4095 * 32 / 3.3e9), 0), 65535);
}
