/* The board's state and what its parts ask of each other. One thread; nanoseconds of CLOCK_MONOTONIC.

   Nothing moves between calls: board_advance(t) brings everything up to the moment t in the order in which it happens,
   and every change names the moment at which it takes effect, so a server that runs late changes no result. */

#ifndef BOARD_H
#define BOARD_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <linux/gpio.h>

#include "wire.h"

#define NEVER INT64_MAX

enum { CHIPS = 8, INPUTS = 4, LIGHTS = 8, TONES = 4, LOGGED = 2048, LINES = 58, MESSAGES = 42, PWM_CHANNELS = 4 };

enum { ADS1115, ADS1114, TMP1075, DAC43608, PICO, KINDS };

/* Fails the next operations with an errno; UINT32_MAX: all of them. */
struct fault {
    uint32_t next, error, delay_us, count;
};

struct input {
    double dark_uv, noise_nv;                          /* noise: sigma of a mean over 1/860 s */
    double ambient_uv, slope_uv_s;                     /* since ambient_ns */
    int64_t ambient_ns;
    int lights, tones;
    struct { int address, channel; double nv; } light[LIGHTS];          /* nV per DAC code */
    struct { double uv, hz, degrees; } tone[TONES];
    double steady_nv;                                  /* dark + ambient + lights as they are */
};

struct conversion {
    uint64_t number;
    int64_t begin_ns, end_ns;
    double nv;
    int code;
};

struct chip {
    int kind, address;
    bool unplugged;
    uint8_t pointer;
    uint16_t reg[16];
    int output[8];                                     /* DAC codes, -1: powered down */
    int temperature_mc;
    uint32_t stretch_us;
    struct fault fault;
    /* converters */
    struct input input[INPUTS];
    int osc_ppm;
    bool converting, again;                            /* again: a single shot was asked for meanwhile */
    uint16_t running;                                  /* configuration of the conversion under way */
    int64_t begin_ns, period_ns, summed_ns;
    double sum[INPUTS];                                /* nV ns from begin to summed */
    uint64_t conversions, edges;
    struct conversion log[LOGGED];
    /* ALERT/RDY */
    int ready_line, ready_level;
    bool shot_done;
    int64_t pulse_end_ns;
    /* the microcontroller's own averaging */
    int window_us, ema_ppm;
    double mean_nv[INPUTS];
};

extern struct chip chips[CHIPS];
extern int chip_count;

struct request_of_lines;

struct line {
    char consumer[GPIO_MAX_NAME_SIZE];
    bool output, level, pulled_up, driven;             /* driven: by a chip, so a bias does not move it */
    uint64_t flags;
    struct request_of_lines *holder;
    int holder_index;
    /* what a motor or a heater makes of it */
    bool risen;
    int64_t rise_ns, edge_ns;
    double high_ns, all_ns, duty;
};

extern struct line lines[LINES];

struct pwm_channel {
    bool exported, enabled, inversed;
    uint64_t period_ns, duty_ns;
};

extern struct pwm_channel pwm[PWM_CHANNELS];
extern struct fault pwm_fault;

struct stirrer {
    int pwm, gpio, hall, full_mhz, dead_ppm, start_ppm, tau_ms, jitter_us, magnets, stall;
    int edges;
    double hz, turns, next_turns, nominal_turns;       /* turns of the next edge of the hall line */
    bool low;
    int64_t at_ns;
};

struct heater {
    int pwm, gpio, chip, ambient_mc, full_mc, tau_ms;
    double now_mc;
    int64_t at_ns;                                     /* 0: not begun */
};

extern struct stirrer stirrer;
extern struct heater heater;

struct settings {
    const char *directory, *gpio_label, *model, *product_version;
    int gpio_number, i2c_number, pwm_number, hall;
    bool strict_gpio, plant;
    uint64_t seed;
};

extern struct settings settings;

/* board.c */
int board_begin(const char *chip_list, const char *ready_list);    /* 0, or -1 and a message on stderr */
void board_advance(int64_t t);
extern int64_t board_now_ns;                /* how far it is */
int64_t board_next(void);                   /* when somebody must be told something, NEVER: nothing moves */
int64_t clock_ns(void);
int make_path(const char *directory, const char *path);
int write_file(const char *path, const void *data, size_t bytes);
int tree_begin(void);
double uniform(void);                       /* 0..1 */
double gauss(void);
int fault_hit(struct fault *fault);         /* 0 or minus an errno; counts */

/* chips.c */
extern const char *const kind_names[KINDS];
bool is_ads(const struct chip *chip);
struct chip *chip_at(int address);          /* NULL: absent or unplugged */
void chip_reset(struct chip *chip, int64_t t);
void chip_write(struct chip *chip, const uint8_t *data, int length, int64_t t);
void chip_read(struct chip *chip, uint8_t *data, int length, int64_t t);

/* analog.c */
void light_settle(int64_t t);               /* before anything that an input depends on changes */
void light_changed(int64_t t);              /* after it */
int64_t converter_next(const struct chip *chip);
int64_t converter_next_edge(const struct chip *chip);
void converter_event(struct chip *chip);
void ads_power_on(struct chip *chip, int64_t t);
void ads_write(struct chip *chip, int reg, uint16_t value, int64_t t);
uint16_t ads_read(const struct chip *chip, int reg);
uint16_t pico_read(struct chip *chip, int channel, int64_t t);

/* bus.c */
extern struct fault bus_fault;
extern uint32_t bus_hz, sda_stuck;
extern int scl_line, sda_line;
struct transfer {
    int count, result;
    int address[MESSAGES], flags[MESSAGES], length[MESSAGES];
    uint8_t *data[MESSAGES];                /* into bytes */
    uint8_t bytes[WIRE_BYTES];
    int64_t asked_ns, begin_ns, at_ns[MESSAGES], end_ns;
    int reached, done;                      /* messages that reach a chip; of these done */
    void *owner;                            /* whom to answer, NULL: nobody */
    struct transfer *next;
};
void bus_submit(struct transfer *transfer);
void bus_forget(void *owner);
int64_t bus_next(void);                     /* the next message's or end's moment */
int64_t bus_answer_ns(void);                /* when the transfer under way ends */
void bus_event(void);
void bus_set_timeout(unsigned long tens_of_ms);
void bus_stick(uint32_t clocks, int64_t t);
void bus_clocked(int64_t t);                /* the program raised SCL by hand */
void transfer_finished(struct transfer *transfer);      /* server.c: answers, frees */

/* lines.c */
struct request_of_lines *lines_request(struct gpio_v2_line_request *request, int64_t t, int *error);
void lines_release(struct request_of_lines *held, int64_t t);      /* the lines; held itself stays */
void lines_free(struct request_of_lines *held);
int lines_get(struct request_of_lines *held, struct gpio_v2_line_values *values);
int lines_set(struct request_of_lines *held, const struct gpio_v2_line_values *values, int64_t t);
int lines_configure(struct request_of_lines *held, const struct gpio_v2_line_config *config, int64_t t);
int lines_events(struct request_of_lines *held, struct gpio_v2_line_event *events, int room, bool *drained);
int lines_info(struct gpio_v2_line_info *info);
void lines_deliver(int64_t now);            /* edges that a stall of the host made late */
int64_t lines_next(void);
void lines_bind(struct request_of_lines *held, void *owner);
void *lines_owner(struct request_of_lines *held);
void line_drive(int offset, bool level, int64_t t);     /* a chip drives it */
void line_let_go(int offset);
void line_pull(int offset, bool up, int64_t t);         /* the bench */
void events_waiting(void *owner);           /* server.c: an empty queue has got an event */
bool holder_hung_up(void *owner);           /* server.c */
double line_duty(int offset, int64_t t);

/* plant.c */
void plant_settle(int64_t t);               /* before a duty cycle or a setting changes */
void line_changed(int offset, int64_t t);   /* the program's output line has a new level */
int64_t hall_next(void);
double pwm_duty(int channel);

/* pwm.c */
int pwm_begin(void);
int sysfs_write(const char *path, const char *text, int64_t t);

/* record.c */
void record_begin(bool on);
void record_edge(int offset, bool level, int64_t t);
void record_transfer(const struct transfer *transfer);
void record_read(bool of_lines, size_t from, FILE *out);

/* control.c */
int control_read(const char *path, FILE *out);                          /* 0 or minus an errno */
int control_write(const char *path, const char *value);

#endif
