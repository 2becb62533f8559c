/* PWM channels as sysfs shows them: plain files that programs read, whose writes come here. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "board.h"

struct pwm_channel pwm[PWM_CHANNELS];
struct fault pwm_fault = { .error = EIO };

static const char *const attributes[] = { "period", "duty_cycle", "enable", "polarity" };

/* An attribute that can be written has the sticky bit: by that the interposer knows it. */
static int put(const char *path, const char *text) {
    char name[512];
    if (write_file(path, text, strlen(text))) return -1;
    snprintf(name, sizeof name, "%s/tree%s", settings.directory, path);
    return chmod(name, 01644);
}

static void chip_path(char *path, size_t room, const char *name) {
    snprintf(path, room, "/sys/class/pwm/pwmchip%d/%s", settings.pwm_number, name);
}

static void show(int channel) {
    const struct pwm_channel *it = &pwm[channel];
    char name[64], path[128], text[32];
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "pwm%d/%s", channel, attributes[i]);
        chip_path(path, sizeof path, name);
        if (i == 3) snprintf(text, sizeof text, "%s\n", it->inversed ? "inversed" : "normal");
        else snprintf(text, sizeof text, "%llu\n", (unsigned long long)(i == 0 ? it->period_ns
                                                                        : i == 1 ? it->duty_ns : it->enabled));
        put(path, text);
    }
}

static void hide(int channel) {
    char name[64], path[512];
    int used = snprintf(path, sizeof path, "%s/tree", settings.directory);
    for (int i = 0; i < 4; i++) {
        snprintf(name, sizeof name, "pwm%d/%s", channel, attributes[i]);
        chip_path(path + used, sizeof path - (size_t)used, name);
        unlink(path);
    }
    snprintf(name, sizeof name, "pwm%d", channel);
    chip_path(path + used, sizeof path - (size_t)used, name);
    rmdir(path);
}

int pwm_begin(void) {
    char path[128], text[16];
    int bad = 0;
    snprintf(text, sizeof text, "%d\n", PWM_CHANNELS);
    chip_path(path, sizeof path, "npwm");
    bad |= write_file(path, text, strlen(text));
    chip_path(path, sizeof path, "export");
    bad |= put(path, "");
    chip_path(path, sizeof path, "unexport");
    bad |= put(path, "");
    return bad;
}

static int apply(int channel, const struct pwm_channel *wanted, int64_t t) {
    int result;
    if (wanted->enabled && (!wanted->period_ns || wanted->duty_ns > wanted->period_ns)) return -EINVAL;
    result = fault_hit(&pwm_fault);
    if (result) return result;
    plant_settle(t);
    pwm[channel] = *wanted;
    show(channel);
    return 0;
}

static int attribute_write(int channel, const char *name, const char *text, int64_t t) {
    struct pwm_channel wanted = pwm[channel];
    char *end;
    unsigned long long number = strtoull(text, &end, 10);
    bool is_number = end != text && (!*end || !strcmp(end, "\n"));
    if (!strcmp(name, "polarity")) {
        if (!strncmp(text, "normal", 6)) wanted.inversed = false;
        else if (!strncmp(text, "inversed", 8)) wanted.inversed = true;
        else return -EINVAL;
        return apply(channel, &wanted, t);
    }
    if (!is_number) return -EINVAL;
    if (!strcmp(name, "period")) wanted.period_ns = number;
    else if (!strcmp(name, "duty_cycle")) wanted.duty_ns = number;
    else if (!strcmp(name, "enable") && number < 2) wanted.enabled = number;
    else return -EINVAL;
    return apply(channel, &wanted, t);
}

int sysfs_write(const char *path, const char *text, int64_t t) {
    char base[128], name[32];
    unsigned channel;
    chip_path(base, sizeof base, "");
    if (strncmp(path, base, strlen(base))) return -EACCES;
    path += strlen(base);
    if (sscanf(path, "pwm%u/%31s", &channel, name) == 2)
        return channel < PWM_CHANNELS && pwm[channel].exported ? attribute_write((int)channel, name, text, t) : -ENODEV;
    if (sscanf(text, "%u", &channel) != 1) return -EINVAL;
    if (channel >= PWM_CHANNELS) return -ENODEV;
    if (!strcmp(path, "export")) {
        if (pwm[channel].exported) return -EBUSY;
        pwm[channel].exported = true;
        show((int)channel);
    } else if (!strcmp(path, "unexport")) {
        if (!pwm[channel].exported) return -ENODEV;
        pwm[channel].exported = false;
        hide((int)channel);
    } else {
        return -EACCES;
    }
    return 0;
}
