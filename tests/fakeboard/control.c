/* The bench's side: paths as under /run/hil of the simulator kernel, whose README gives their units. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "board.h"

struct number {
    const char *name;
    void *value;                    /* int32_t or uint32_t; NULL ends a table */
    bool read_only;
};

static int find_number(const struct number *table, const char *name, const struct number **found) {
    for (*found = table; (*found)->name; (*found)++)
        if (!strcmp(name, (*found)->name)) return 0;
    return -ENOENT;
}

static int set_number(const struct number *number, const char *text) {
    char *end;
    long long value = strtoll(text, &end, 0);
    if (number->read_only) return -EACCES;
    if (end == text) return -EINVAL;
    *(uint32_t *)number->value = (uint32_t)value;
    return 0;
}

#define FAULT(f) { "fail_next", &(f).next }, { "fail_errno", &(f).error }, { "delay_us", &(f).delay_us }, \
                 { "count", &(f).count, true }

/* Reads or writes one number of a table; value NULL: reads. Unsigned numbers are those of the fault tables. */
static int table_access(const struct number *table, const char *name, const char *value, FILE *out) {
    const struct number *number;
    int missing = find_number(table, name, &number);
    bool is_unsigned = !strncmp(name, "fail_", 5);
    if (missing) return missing;
    if (value) return set_number(number, value);
    if (is_unsigned) fprintf(out, "%u\n", *(uint32_t *)number->value);
    else fprintf(out, "%d\n", *(int32_t *)number->value);
    return 0;
}

/* ---- one input of a converter ------------------------------------------------------------------------------------- */

static int set_lights(struct input *input, const char *text) {
    struct input wanted = *input;
    unsigned address, channel;
    int used;
    double nv;
    for (wanted.lights = 0; sscanf(text, " %x:%u:%lf%n", &address, &channel, &nv, &used) == 3; text += used) {
        if (wanted.lights == LIGHTS || channel > 7) return -EINVAL;
        wanted.light[wanted.lights].address = (int)address;
        wanted.light[wanted.lights].channel = (int)channel;
        wanted.light[wanted.lights++].nv = nv;
    }
    if (text[strspn(text, " \n")]) return -EINVAL;
    *input = wanted;
    return 0;
}

static int set_tones(struct input *input, const char *text) {
    struct input wanted = *input;
    char copy[256], *rest = copy, *item;
    snprintf(copy, sizeof copy, "%s", text);
    wanted.tones = 0;
    while ((item = strsep(&rest, " \n"))) {
        double uv, mhz, degrees = 0;
        if (!*item) continue;
        if (wanted.tones == TONES || sscanf(item, "%lf:%lf:%lf", &uv, &mhz, &degrees) < 2) return -EINVAL;
        wanted.tone[wanted.tones].uv = uv;
        wanted.tone[wanted.tones].hz = mhz / 1000;
        wanted.tone[wanted.tones++].degrees = degrees / 1000;
    }
    *input = wanted;
    return 0;
}

static int set_ambient(struct input *input, const char *text, int64_t t) {
    double level, slope = 0;
    if (sscanf(text, "%lf %lf", &level, &slope) < 1) return -EINVAL;
    input->ambient_uv = level;
    input->slope_uv_s = slope;
    input->ambient_ns = t;
    return 0;
}

static int input_write(struct input *input, const char *what, const char *value, int64_t t) {
    if (!strcmp(what, "led")) return set_lights(input, value);
    if (!strcmp(what, "tone")) return set_tones(input, value);
    if (!strcmp(what, "ambient_uv")) return set_ambient(input, value, t);
    if (!strcmp(what, "uv")) input->dark_uv = atof(value);
    else if (!strcmp(what, "noise_nv")) input->noise_nv = atof(value);
    else return -ENOENT;
    return 0;
}

static int input_read(const struct input *input, const char *what, FILE *out) {
    if (!strcmp(what, "led")) {
        for (int i = 0; i < input->lights; i++)
            fprintf(out, "%02x:%d:%.0f ", input->light[i].address, input->light[i].channel, input->light[i].nv);
        fputc('\n', out);
    } else if (!strcmp(what, "tone")) {
        for (int i = 0; i < input->tones; i++)
            fprintf(out, "%.0f:%.0f:%.0f ", input->tone[i].uv, input->tone[i].hz * 1e3, input->tone[i].degrees * 1e3);
        fputc('\n', out);
    } else if (!strcmp(what, "ambient_uv")) {
        fprintf(out, "%.0f %.0f\n", input->ambient_uv, input->slope_uv_s);
    } else if (!strcmp(what, "uv")) {
        fprintf(out, "%.0f\n", input->dark_uv);
    } else if (!strcmp(what, "noise_nv")) {
        fprintf(out, "%.0f\n", input->noise_nv);
    } else {
        return -ENOENT;
    }
    return 0;
}

/* ---- one chip ----------------------------------------------------------------------------------------------------- */

static bool has_input(const struct chip *chip, unsigned i) {
    return i < (chip->kind == ADS1115 || chip->kind == PICO ? 4U : chip->kind == ADS1114 ? 2U : 0U);
}

static int conversions_read(const struct chip *chip, FILE *out) {
    for (uint64_t i = chip->conversions > LOGGED ? chip->conversions - LOGGED : 0; i < chip->conversions; i++) {
        const struct conversion *c = &chip->log[i % LOGGED];
        fprintf(out, "%llu %lld %lld %.0f %d\n", (unsigned long long)c->number, (long long)c->begin_ns,
                (long long)c->end_ns, c->nv, c->code);
    }
    return 0;
}

static int chip_numbers(struct chip *chip, const char *name, const char *value, FILE *out) {
    const struct number table[] = {
        FAULT(chip->fault),
        { "stretch_us", &chip->stretch_us },
        { chip->kind == TMP1075 ? "temp_mc" : "", &chip->temperature_mc },
        { is_ads(chip) ? "osc_ppm" : "", &chip->osc_ppm },
        { chip->kind == PICO ? "window_us" : "", &chip->window_us },
        { chip->kind == PICO ? "ema_ppm" : "", &chip->ema_ppm },
        { NULL },
    };
    return table_access(table, name, value, out);
}

static int chip_access(struct chip *chip, const char *name, const char *value, FILE *out, int64_t t) {
    unsigned i;
    char what[16];
    if (sscanf(name, "ain%u_%15s", &i, what) == 2) {
        if (!has_input(chip, i)) return -ENOENT;
        return value ? input_write(&chip->input[i], what, value, t) : input_read(&chip->input[i], what, out);
    }
    if (!strcmp(name, "unplugged")) {
        if (!value) return fprintf(out, "%d\n", chip->unplugged) < 0 ? -EIO : 0;
        chip->unplugged = atoi(value);
        chip_reset(chip, t);                    /* power lost, or just back */
        return 0;
    }
    if (value || strcmp(name, "count") == 0) return chip_numbers(chip, name, value, out);
    if (sscanf(name, "dac%u", &i) == 1 && i < (chip->kind == DAC43608 ? 8U : chip->kind == PICO ? 4U : 0U))
        fprintf(out, "%d\n", chip->output[i]);
    else if (!strcmp(name, "type")) fprintf(out, "%s\n", kind_names[chip->kind]);
    else if (!strcmp(name, "regs")) for (i = 0; i < 16; i++) fprintf(out, "%x %04x\n", i, chip->reg[i]);
    else if (is_ads(chip) && !strcmp(name, "nconv")) fprintf(out, "%llu\n", (unsigned long long)chip->conversions);
    else if (is_ads(chip) && !strcmp(name, "nedges")) fprintf(out, "%llu\n", (unsigned long long)chip->edges);
    else if (is_ads(chip) && !strcmp(name, "conversions")) conversions_read(chip, out);
    else return chip_numbers(chip, name, value, out);
    return 0;
}

/* ---- the rest of the board ---------------------------------------------------------------------------------------- */

static int bus_access(const char *name, const char *value, FILE *out, int64_t t) {
    const struct number table[] = { FAULT(bus_fault), { "bus_hz", &bus_hz }, { NULL } };
    unsigned address;
    char rest[32];
    if (sscanf(name, "%2x/%31s", &address, rest) == 2) {
        for (struct chip *chip = chips; chip < chips + chip_count; chip++)
            if (chip->address == (int)address) return chip_access(chip, rest, value, out, t);
        return -ENOENT;
    }
    if (strcmp(name, "sda_stuck")) return table_access(table, name, value, out);
    if (value) bus_stick((uint32_t)strtoul(value, NULL, 0), t);
    else fprintf(out, "%u\n", sda_stuck);
    return 0;
}

static int plant_access(const char *name, const char *value, FILE *out) {
    int speed_mhz = (int)(stirrer.hz * 1000);
    const struct number stir_table[] = {
        { "pwm", &stirrer.pwm }, { "gpio", &stirrer.gpio }, { "hall", &stirrer.hall },
        { "full_mhz", &stirrer.full_mhz }, { "dead_ppm", &stirrer.dead_ppm }, { "start_ppm", &stirrer.start_ppm },
        { "tau_ms", &stirrer.tau_ms }, { "jitter_us", &stirrer.jitter_us }, { "magnets", &stirrer.magnets },
        { "stall", &stirrer.stall }, { "speed_mhz", &speed_mhz, true }, { "edges", &stirrer.edges, true }, { NULL },
    };
    const struct number heat_table[] = {
        { "pwm", &heater.pwm }, { "gpio", &heater.gpio }, { "chip", &heater.chip },
        { "ambient_mc", &heater.ambient_mc }, { "full_mc", &heater.full_mc }, { "tau_ms", &heater.tau_ms }, { NULL },
    };
    if (!strncmp(name, "stir/", 5)) return table_access(stir_table, name + 5, value, out);
    return table_access(heat_table, name + 5, value, out);
}

static int pwm_access(const char *name, const char *value, FILE *out) {
    const struct number table[] = { FAULT(pwm_fault), { NULL } };
    unsigned channel;
    char what[16];
    if (sscanf(name, "%u/%15s", &channel, what) != 2) return table_access(table, name, value, out);
    if (channel >= PWM_CHANNELS) return -ENOENT;
    if (value) return -EACCES;
    if (!strcmp(what, "period_ns")) fprintf(out, "%llu\n", (unsigned long long)pwm[channel].period_ns);
    else if (!strcmp(what, "duty_ns")) fprintf(out, "%llu\n", (unsigned long long)pwm[channel].duty_ns);
    else if (!strcmp(what, "enabled")) fprintf(out, "%d\n", pwm[channel].enabled);
    else if (!strcmp(what, "inversed")) fprintf(out, "%d\n", pwm[channel].inversed);
    else return -ENOENT;
    return 0;
}

static int line_access(const char *name, const char *value, FILE *out, int64_t t) {
    unsigned offset;
    char what[16];
    if (sscanf(name, "sim_gpio%u/%15s", &offset, what) != 2 || offset >= LINES) return -ENOENT;
    if (!strcmp(what, "pull")) {
        if (!value) fprintf(out, "%s\n", lines[offset].pulled_up ? "pull-up" : "pull-down");
        else if (!strncmp(value, "pull-up", 7)) line_pull((int)offset, true, t);
        else if (!strncmp(value, "pull-down", 9)) line_pull((int)offset, false, t);
        else return -EINVAL;
        return 0;
    }
    if (strcmp(what, "value")) return -ENOENT;
    if (value) return -EACCES;
    fprintf(out, "%d\n", lines[offset].level);
    return 0;
}

static int record_access(const char *name, const char *value, FILE *out) {
    size_t from = 0;
    if (!strcmp(name, "on")) {
        if (!value) return -EACCES;
        record_begin(atoi(value));
    } else if (!value && sscanf(name, "edges/%zu", &from) == 1) {
        record_read(true, from, out);
    } else if (!value && sscanf(name, "transfers/%zu", &from) == 1) {
        record_read(false, from, out);
    } else {
        return -ENOENT;
    }
    return 0;
}

static int access_path(const char *path, const char *value, FILE *out, int64_t t) {
    char prefix[32];
    int used = snprintf(prefix, sizeof prefix, "i2c-%d/", settings.i2c_number);
    if (!strncmp(path, "gpio/", 5)) return line_access(path + 5, value, out, t);
    if (!strncmp(path, "record/", 7)) return record_access(path + 7, value, out);
    if (strncmp(path, "board/", 6)) return -ENOENT;
    path += 6;
    if (!strcmp(path, "strict")) {
        if (value) settings.strict_gpio = atoi(value);
        else fprintf(out, "%d\n", settings.strict_gpio);
        return 0;
    }
    if (!strncmp(path, prefix, (size_t)used)) return bus_access(path + used, value, out, t);
    if (!strncmp(path, "pwm/", 4)) return pwm_access(path + 4, value, out);
    if (!strncmp(path, "stir/", 5) || !strncmp(path, "heat/", 5)) return plant_access(path, value, out);
    return -ENOENT;
}

int control_read(const char *path, FILE *out) {
    int64_t t = clock_ns();
    board_advance(t);
    return access_path(path, NULL, out, t);
}

int control_write(const char *path, const char *value) {
    int64_t t = clock_ns();
    board_advance(t);
    light_settle(t);                    /* what was until now counts as it was */
    int result = access_path(path, value, NULL, t);
    light_changed(t);
    return result;
}
