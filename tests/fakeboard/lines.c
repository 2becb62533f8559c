/* GPIO lines and what requests of them (uAPI v2) see. An input line's level is its pull, which the bench or a chip
   sets; a request's bias sets the pull too, unless a chip drives the line. An output keeps its level when its request
   is closed, as on Raspberry Pi OS, unless strict_gpiod is on. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "board.h"

#define DIRECTIONS (GPIO_V2_LINE_FLAG_INPUT | GPIO_V2_LINE_FLAG_OUTPUT)
#define EDGES (GPIO_V2_LINE_FLAG_EDGE_RISING | GPIO_V2_LINE_FLAG_EDGE_FALLING)
#define BIASES (GPIO_V2_LINE_FLAG_BIAS_PULL_UP | GPIO_V2_LINE_FLAG_BIAS_PULL_DOWN | GPIO_V2_LINE_FLAG_BIAS_DISABLED)
#define DRIVES (GPIO_V2_LINE_FLAG_OPEN_DRAIN | GPIO_V2_LINE_FLAG_OPEN_SOURCE)
#define KNOWN (DIRECTIONS | EDGES | BIASES | DRIVES | GPIO_V2_LINE_FLAG_ACTIVE_LOW | \
               GPIO_V2_LINE_FLAG_EVENT_CLOCK_REALTIME)

struct request_of_lines {
    int count, offsets[GPIO_V2_LINES_MAX];
    uint32_t line_number[GPIO_V2_LINES_MAX], number;    /* of the last event */
    struct gpio_v2_line_event *queue;
    uint32_t room, first, used;
    void *owner;
    /* Edges that a stalled host made late come a few at a time, so that the queue overflows only where the program
       itself is late. */
    struct gpio_v2_line_event *late;
    uint32_t late_room, late_first, late_used;
    int64_t late_next_ns;
    struct request_of_lines *next;
};

static const int64_t LATE_NS = 2000000, LATE_PAUSE_NS = 1000000;
enum { LATE_AT_ONCE = 4 };

static struct request_of_lines *all_requests;

struct line lines[LINES];

static bool active_low(const struct line *line) {
    return line->flags & GPIO_V2_LINE_FLAG_ACTIVE_LOW;
}

/* ---- events ------------------------------------------------------------------------------------------------------- */

static uint64_t stamp(const struct line *line, int64_t t) {
    struct timespec real, monotonic;
    if (!(line->flags & GPIO_V2_LINE_FLAG_EVENT_CLOCK_REALTIME)) return (uint64_t)t;
    clock_gettime(CLOCK_REALTIME, &real);
    clock_gettime(CLOCK_MONOTONIC, &monotonic);
    return (uint64_t)(t + (real.tv_sec - monotonic.tv_sec) * 1000000000LL + real.tv_nsec - monotonic.tv_nsec);
}

/* A full queue loses its oldest event; the line's numbers show it. */
static void enqueue(struct request_of_lines *held, const struct gpio_v2_line_event *event) {
    if (held->used == held->room) {
        held->first++;
        held->used--;
    }
    held->queue[(held->first + held->used++) & (held->room - 1)] = *event;
    if (held->used == 1) events_waiting(held->owner);
}

static void postpone(struct request_of_lines *held, const struct gpio_v2_line_event *event) {
    if (!held->late_used) {
        held->late_first = 0;
        held->late_next_ns = clock_ns();
    }
    if (held->late_first + held->late_used == held->late_room) {
        held->late_room = held->late_room ? 2 * held->late_room : 64;
        held->late = realloc(held->late, held->late_room * sizeof *held->late);
    }
    held->late[held->late_first + held->late_used++] = *event;
}

void lines_deliver(int64_t now) {
    for (struct request_of_lines *held = all_requests; held; held = held->next) {
        if (!held->late_used || held->late_next_ns > now) continue;
        for (int i = 0; i < LATE_AT_ONCE && held->late_used; i++, held->late_used--)
            enqueue(held, &held->late[held->late_first++]);
        held->late_next_ns = now + LATE_PAUSE_NS;
    }
}

int64_t lines_next(void) {
    int64_t next = NEVER;
    for (struct request_of_lines *held = all_requests; held; held = held->next)
        if (held->late_used && held->late_next_ns < next) next = held->late_next_ns;
    return next;
}

static void put_event(int offset, int64_t t) {
    const struct line *line = &lines[offset];
    struct request_of_lines *held = line->holder;
    bool active = line->level != active_low(line);
    if (!held || line->output) return;
    if (!(line->flags & (active ? GPIO_V2_LINE_FLAG_EDGE_RISING : GPIO_V2_LINE_FLAG_EDGE_FALLING))) return;
    struct gpio_v2_line_event event = {
        .timestamp_ns = stamp(line, t),
        .id = active ? GPIO_V2_LINE_EVENT_RISING_EDGE : GPIO_V2_LINE_EVENT_FALLING_EDGE,
        .offset = offset,
        .seqno = ++held->number,
        .line_seqno = ++held->line_number[line->holder_index],
    };
    if (held->late_used || clock_ns() - t > LATE_NS) postpone(held, &event);
    else enqueue(held, &event);
}

int lines_events(struct request_of_lines *held, struct gpio_v2_line_event *events, int room, bool *drained) {
    int count = 0;
    bool any = held->used;
    while (count < room && held->used) {
        events[count++] = held->queue[held->first++ & (held->room - 1)];
        held->used--;
    }
    *drained = any && !held->used;
    return count;
}

/* ---- levels ------------------------------------------------------------------------------------------------------- */

void line_pull(int offset, bool up, int64_t t) {
    struct line *line = &lines[offset];
    line->pulled_up = up;
    if ((line->holder && line->output) || line->level == up) return;
    line->level = up;
    put_event(offset, t);
}

void line_drive(int offset, bool level, int64_t t) {
    if (offset < 0 || offset >= LINES) return;
    lines[offset].driven = true;
    line_pull(offset, level, t);
}

void line_let_go(int offset) {
    lines[offset].driven = false;
}

static void put_level(int offset, bool level, int64_t t) {
    struct line *line = &lines[offset];
    if (line->level == level) return;
    plant_settle(t);
    line->level = level;
    record_edge(offset, level, t);
    line_changed(offset, t);
}

/* ---- requests ----------------------------------------------------------------------------------------------------- */

/* Flags of the index-th line: the first attribute that names it, else the default. */
static uint64_t flags_of(const struct gpio_v2_line_config *config, int index) {
    for (uint32_t i = 0; i < config->num_attrs; i++)
        if (config->attrs[i].attr.id == GPIO_V2_LINE_ATTR_ID_FLAGS && config->attrs[i].mask >> index & 1)
            return config->attrs[i].attr.flags;
    return config->flags;
}

static bool output_of(const struct gpio_v2_line_config *config, int index) {
    for (uint32_t i = 0; i < config->num_attrs; i++)
        if (config->attrs[i].attr.id == GPIO_V2_LINE_ATTR_ID_OUTPUT_VALUES && config->attrs[i].mask >> index & 1)
            return config->attrs[i].attr.values >> index & 1;
    return false;
}

static bool flags_valid(uint64_t flags) {
    uint64_t biases = flags & BIASES;
    if (flags & ~KNOWN) return false;
    if ((flags & DIRECTIONS) == DIRECTIONS) return false;
    if (flags & EDGES && (!(flags & GPIO_V2_LINE_FLAG_INPUT))) return false;
    if (flags & DRIVES && (!(flags & GPIO_V2_LINE_FLAG_OUTPUT) || (flags & DRIVES) == DRIVES)) return false;
    return !(biases & (biases - 1)) && (!biases || flags & DIRECTIONS);
}

static bool config_valid(const struct gpio_v2_line_config *config, int count) {
    if (config->num_attrs > GPIO_V2_LINE_NUM_ATTRS_MAX) return false;
    for (int i = 0; i < 5; i++)
        if (config->padding[i]) return false;
    for (int i = 0; i < count; i++)
        if (!flags_valid(flags_of(config, i))) return false;
    return true;
}

static void apply(struct request_of_lines *held, const struct gpio_v2_line_config *config, int64_t t) {
    for (int i = 0; i < held->count; i++) {
        int offset = held->offsets[i];
        struct line *line = &lines[offset];
        uint64_t flags = flags_of(config, i);
        line->flags &= ~EDGES;          /* edges are looked for once the bias has settled */
        if (flags & BIASES & ~GPIO_V2_LINE_FLAG_BIAS_DISABLED && !line->driven)
            line_pull(offset, flags & GPIO_V2_LINE_FLAG_BIAS_PULL_UP, t);
        line->flags = flags;
        if (line->flags & GPIO_V2_LINE_FLAG_OUTPUT) {
            line->output = true;
            put_level(offset, output_of(config, i) != active_low(line), t);
        } else if (line->flags & GPIO_V2_LINE_FLAG_INPUT) {
            line->output = false;
        }
    }
}

static bool free_to_take(int offset, int64_t t) {
    struct request_of_lines *held = lines[offset].holder;
    if (!held) return true;
    if (!holder_hung_up(held->owner)) return false;
    lines_release(held, t);             /* it was closed, but its hang-up has not been seen yet */
    return true;
}

static uint32_t queue_room(const struct gpio_v2_line_request *request) {
    uint32_t wanted = request->event_buffer_size ? request->event_buffer_size : request->num_lines * 16, room = 1;
    if (wanted > GPIO_V2_LINES_MAX * 16) wanted = GPIO_V2_LINES_MAX * 16;
    while (room < wanted) room *= 2;
    return room;
}

struct request_of_lines *lines_request(struct gpio_v2_line_request *request, int64_t t, int *error) {
    *error = -EINVAL;
    if (!request->num_lines || request->num_lines > GPIO_V2_LINES_MAX) return NULL;
    for (int i = 0; i < 5; i++)
        if (request->padding[i]) return NULL;
    if (!config_valid(&request->config, (int)request->num_lines)) return NULL;
    for (uint32_t i = 0; i < request->num_lines; i++)
        if (request->offsets[i] >= LINES) return NULL;
    *error = -EBUSY;
    for (uint32_t i = 0; i < request->num_lines; i++) {
        if (!free_to_take((int)request->offsets[i], t)) return NULL;
        for (uint32_t k = 0; k < i; k++)
            if (request->offsets[k] == request->offsets[i]) return NULL;
    }
    struct request_of_lines *held = calloc(1, sizeof *held);
    held->room = queue_room(request);
    held->queue = calloc(held->room, sizeof *held->queue);
    held->count = (int)request->num_lines;
    for (int i = 0; i < held->count; i++) {
        struct line *line = &lines[held->offsets[i] = (int)request->offsets[i]];
        line->holder = held;
        line->holder_index = i;
        memcpy(line->consumer, request->consumer, sizeof line->consumer);
        line->consumer[sizeof line->consumer - 1] = 0;
    }
    held->next = all_requests;
    all_requests = held;
    apply(held, &request->config, t);
    *error = 0;
    return held;
}

void lines_bind(struct request_of_lines *held, void *owner) {
    held->owner = owner;
}

void *lines_owner(struct request_of_lines *held) {
    return held->owner;
}

void lines_release(struct request_of_lines *held, int64_t t) {
    for (int i = 0; i < held->count; i++) {
        int offset = held->offsets[i];
        struct line *line = &lines[offset];
        if (line->holder != held) continue;
        line->holder = NULL;
        line->flags = 0;
        memset(line->consumer, 0, sizeof line->consumer);
        if (!line->output || !settings.strict_gpio) continue;
        line->output = false;
        put_level(offset, line->pulled_up, t);
    }
    held->count = 0;
}

void lines_free(struct request_of_lines *held) {
    struct request_of_lines **it = &all_requests;
    while (*it && *it != held) it = &(*it)->next;
    if (*it) *it = held->next;
    free(held->late);
    free(held->queue);
    free(held);
}

int lines_configure(struct request_of_lines *held, const struct gpio_v2_line_config *config, int64_t t) {
    if (!config_valid(config, held->count)) return -EINVAL;
    apply(held, config, t);
    return 0;
}

int lines_get(struct request_of_lines *held, struct gpio_v2_line_values *values) {
    uint64_t all = held->count == 64 ? ~0ULL : (1ULL << held->count) - 1;
    if (!(values->mask & all)) return -EINVAL;
    values->bits = 0;
    for (int i = 0; i < held->count; i++) {
        const struct line *line = &lines[held->offsets[i]];
        if (values->mask >> i & 1) values->bits |= (uint64_t)(line->level != active_low(line)) << i;
    }
    return 0;
}

int lines_set(struct request_of_lines *held, const struct gpio_v2_line_values *values, int64_t t) {
    int set = 0;
    for (int i = 0; i < held->count; i++) {
        if (!(values->mask >> i & 1)) continue;
        if (!(lines[held->offsets[i]].flags & GPIO_V2_LINE_FLAG_OUTPUT)) return -EPERM;
        set++;
    }
    if (!set) return -EINVAL;
    for (int i = 0; i < held->count; i++)
        if (values->mask >> i & 1)
            put_level(held->offsets[i], (values->bits >> i & 1) != active_low(&lines[held->offsets[i]]), t);
    return 0;
}

int lines_info(struct gpio_v2_line_info *info) {
    if (info->offset >= LINES) return -EINVAL;
    const struct line *line = &lines[info->offset];
    uint32_t offset = info->offset;
    memset(info, 0, sizeof *info);
    info->offset = offset;
    if (offset < 28) snprintf(info->name, sizeof info->name, "GPIO%u", offset);
    memcpy(info->consumer, line->consumer, sizeof info->consumer);
    info->flags = line->flags & ~DIRECTIONS;
    info->flags |= line->output ? GPIO_V2_LINE_FLAG_OUTPUT : GPIO_V2_LINE_FLAG_INPUT;
    if (line->holder) info->flags |= GPIO_V2_LINE_FLAG_USED;
    return 0;
}
