/* Puts the board together and moves it forward. */

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "board.h"

static const int64_t LOOK_NS = 100000000;       /* converters that nobody watches are brought up to date so often */

struct settings settings = {
    .gpio_label = "pinctrl-bcm2711", .model = "Raspberry Pi 4 Model B Rev 1.4",
    .product_version = "0x0011", .i2c_number = 1, .hall = 25, .seed = 1,
};

int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* ---- chance: splitmix64 ------------------------------------------------------------------------------------------- */

double uniform(void) {
    uint64_t z = settings.seed += 0x9e3779b97f4a7c15ULL;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
    return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

double gauss(void) {
    double radius = sqrt(-2 * log(1 - uniform()));
    return radius * cos(2 * M_PI * uniform());
}

int fault_hit(struct fault *fault) {
    fault->count++;
    if (!fault->next) return 0;
    if (fault->next != UINT32_MAX) fault->next--;
    return -(int)(fault->error ? fault->error : EREMOTEIO);
}

/* ---- time --------------------------------------------------------------------------------------------------------- */

int64_t board_now_ns;

void board_advance(int64_t t) {
    if (t > board_now_ns) board_now_ns = t;
    for (;;) {
        struct chip *first = NULL;
        int64_t next = bus_next();
        for (struct chip *chip = chips; chip < chips + chip_count; chip++) {
            int64_t moment = converter_next(chip);
            if (moment > next) continue;        /* a conversion that ends as a message does ends first */
            next = moment;
            first = chip;
        }
        if (next > t || next == NEVER) break;
        if (first) converter_event(first);
        else bus_event();
    }
    plant_settle(t);
    lines_deliver(t);
}

int64_t board_next(void) {
    int64_t next = bus_answer_ns(), hall = hall_next(), late = lines_next(), now = clock_ns();
    if (hall < next) next = hall;
    if (late < next) next = late;
    for (const struct chip *chip = chips; chip < chips + chip_count; chip++) {
        int64_t edge = converter_next_edge(chip);
        if (edge < next) next = edge;
        if (converter_next(chip) != NEVER && next > now + LOOK_NS) next = now + LOOK_NS;
    }
    return next;
}

/* ---- what there is ------------------------------------------------------------------------------------------------ */

static int add_chip(const char *text) {
    char kind[16];
    unsigned address;
    struct chip *chip = &chips[chip_count];
    if (sscanf(text, "%x:%15s", &address, kind) != 2 || address < 3 || address > 0x77 || chip_count == CHIPS) return -1;
    if (chip_at((int)address)) return -1;
    for (chip->kind = 0; chip->kind < KINDS; chip->kind++)
        if (!strcmp(kind, kind_names[chip->kind])) break;
    if (chip->kind == KINDS) return -1;
    chip->address = (int)address;
    chip->fault.error = EREMOTEIO;
    chip->temperature_mc = 25000;
    chip->ready_line = chip->ready_level = -1;
    chip->pulse_end_ns = NEVER;
    chip_reset(chip, clock_ns());
    chip_count++;
    return 0;
}

static int add_ready(const char *text) {
    unsigned address;
    int line;
    struct chip *chip;
    if (sscanf(text, "%x:%d", &address, &line) != 2 || line < 0 || line >= LINES) return -1;
    chip = chip_at((int)address);
    if (!chip || !is_ads(chip)) return -1;
    chip->ready_line = line;
    ads_power_on(chip, clock_ns());             /* the line rests high */
    return 0;
}

static int each(const char *list, int (*add)(const char *)) {
    char copy[256], *rest = copy, *item;
    snprintf(copy, sizeof copy, "%s", list);
    while ((item = strsep(&rest, ",")))
        if (*item && add(item)) {
            fprintf(stderr, "fake board: %s: not address:kind or address:line of a chip\n", item);
            return -1;
        }
    return 0;
}

int board_begin(const char *chip_list, const char *ready_list) {
    int64_t now = clock_ns();
    stirrer.at_ns = now;
    line_pull(sda_line, true, now);
    line_pull(scl_line, true, now);
    line_pull(settings.hall, true, now);
    if (each(chip_list, add_chip) || each(ready_list, add_ready)) return -1;
    if (settings.plant) {
        stirrer.hall = settings.hall;
        stirrer.gpio = 17;
        heater.chip = 0x4f;
        heater.gpio = 18;
    }
    light_changed(now);
    return tree_begin() || pwm_begin() ? -1 : 0;
}

/* ---- files that programs read ------------------------------------------------------------------------------------- */

int make_path(const char *directory, const char *path) {
    char name[512];
    snprintf(name, sizeof name, "%s/tree%s", directory, path);
    for (char *c = name + strlen(directory) + 1; (c = strchr(c, '/')); c++) {
        *c = 0;
        if (mkdir(name, 0755) && errno != EEXIST) return -1;
        *c = '/';
    }
    return 0;
}

/* Makes or overwrites a file of the tree in place, so that a descriptor that is open reads the new text. */
int write_file(const char *path, const void *data, size_t bytes) {
    char name[512];
    int file;
    if (make_path(settings.directory, path)) return -1;
    snprintf(name, sizeof name, "%s/tree%s", settings.directory, path);
    file = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (file < 0) return -1;
    int bad = pwrite(file, data, bytes, 0) != (ssize_t)bytes || ftruncate(file, (off_t)bytes);
    close(file);
    return bad ? -1 : 0;
}

static int write_device_tree(const char *name, const char *text) {
    char path[128];
    snprintf(path, sizeof path, "/proc/device-tree/%s", name);
    return write_file(path, text, strlen(text) + 1);
}

int tree_begin(void) {
    char path[128], name[64];
    const uint8_t hz[4] = { (uint8_t)(bus_hz >> 24), (uint8_t)(bus_hz >> 16), (uint8_t)(bus_hz >> 8), (uint8_t)bus_hz };
    int bad = write_device_tree("model", settings.model);
    if (*settings.product_version) {
        bad |= write_device_tree("hat/vendor", "Pioreactor Inc.");
        bad |= write_device_tree("hat/product", "Pioreactor HAT");
        bad |= write_device_tree("hat/product_id", "0x0001");
        bad |= write_device_tree("hat/product_ver", settings.product_version);
    }
    snprintf(path, sizeof path, "/dev/gpiochip%d", settings.gpio_number);
    bad |= write_file(path, "", 0);
    snprintf(path, sizeof path, "/dev/i2c-%d", settings.i2c_number);
    bad |= write_file(path, "", 0);
    snprintf(path, sizeof path, "/sys/bus/i2c/devices/i2c-%d/of_node/clock-frequency", settings.i2c_number);
    bad |= write_file(path, hz, sizeof hz);
    snprintf(path, sizeof path, "/sys/bus/i2c/devices/i2c-%d/name", settings.i2c_number);
    snprintf(name, sizeof name, "bcm2835 (i2c@7e804000)\n");
    bad |= write_file(path, name, strlen(name));
    return bad;
}
