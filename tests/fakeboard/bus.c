/* The I2C bus: one transfer at a time, at bus_hz. A write acts when its last bit is through, a read takes the value
   at the start of its data; the program gets its answer when the whole transfer is over. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "board.h"

struct fault bus_fault = { .error = EREMOTEIO };
uint32_t bus_hz = 100000, sda_stuck;
int scl_line = 3, sda_line = 2;

static int64_t timeout_ns = 1000000000, free_ns;
static struct transfer *current, *waiting;

static int64_t bits_ns(int bits) {
    return bus_hz ? bits * (1000000000LL / bus_hz) : 0;
}

/* How the transfer under way will go, and when. */
static void begin(void) {
    struct transfer *transfer = current;
    int64_t t = transfer->asked_ns > free_ns ? transfer->asked_ns : free_ns;
    const struct chip *last = NULL;
    int result = fault_hit(&bus_fault);
    /* A program that was held up between reading the clock and asking: its bits go out after what has happened. */
    if (t + bits_ns(11) < board_now_ns) t = board_now_ns - bits_ns(11);
    transfer->begin_ns = t;
    t += bus_fault.delay_us * 1000LL;
    if (sda_stuck) {
        t += timeout_ns;
        result = -ETIMEDOUT;
    }
    for (int i = 0; i < transfer->count && !result; i++) {
        bool read = transfer->flags[i] & MESSAGE_READ, call = !transfer->address[i] && !read;
        struct chip *chip = chip_at(transfer->address[i]);
        if (!chip && !call) {
            result = -EREMOTEIO;                        /* nobody acknowledges */
        } else if (chip && chip != last) {
            result = fault_hit(&chip->fault);
            t += chip->fault.delay_us * 1000LL;
        }
        last = chip;
        t += bits_ns(11);
        if (result) break;
        if (chip && chip->stretch_us * 1000LL > timeout_ns) {
            t += timeout_ns;
            result = -ETIMEDOUT;
            break;
        }
        if (chip) t += chip->stretch_us * 1000LL;
        transfer->at_ns[i] = read ? t : t + bits_ns(9 * transfer->length[i]);
        t += bits_ns(9 * transfer->length[i]);
        transfer->reached = i + 1;
    }
    transfer->end_ns = t;
    transfer->result = result ? result : transfer->count;
}

void bus_submit(struct transfer *transfer) {
    struct transfer **end = &waiting;
    transfer->next = NULL;
    transfer->reached = transfer->done = 0;
    if (!current) {
        current = transfer;
        begin();
        return;
    }
    while (*end) end = &(*end)->next;
    *end = transfer;
}

void bus_forget(void *owner) {
    if (current && current->owner == owner) current->owner = NULL;
    for (struct transfer *transfer = waiting; transfer; transfer = transfer->next)
        if (transfer->owner == owner) transfer->owner = NULL;
}

int64_t bus_next(void) {
    if (!current) return NEVER;
    return current->done < current->reached ? current->at_ns[current->done] : current->end_ns;
}

int64_t bus_answer_ns(void) {
    return current ? current->end_ns : NEVER;
}

static void general_call(const struct transfer *transfer, int i) {
    if (transfer->length[i] != 1 || transfer->data[i][0] != 6) return;
    light_settle(transfer->at_ns[i]);
    for (struct chip *chip = chips; chip < chips + chip_count; chip++) chip_reset(chip, transfer->at_ns[i]);
    light_changed(transfer->at_ns[i]);
}

/* What happens at bus_next(). */
void bus_event(void) {
    struct transfer *transfer = current;
    int i = transfer->done;
    if (i == transfer->reached) {
        free_ns = transfer->end_ns;
        record_transfer(transfer);
        current = waiting;
        if (current) {
            waiting = current->next;
            begin();
        }
        transfer_finished(transfer);
        return;
    }
    struct chip *chip = chip_at(transfer->address[i]);
    bool read = transfer->flags[i] & MESSAGE_READ;
    transfer->done++;
    if (!transfer->address[i] && !read) general_call(transfer, i);
    else if (!chip) transfer->result = -EREMOTEIO;      /* pulled out meanwhile */
    else if (read) chip_read(chip, transfer->data[i], transfer->length[i], transfer->at_ns[i]);
    else chip_write(chip, transfer->data[i], transfer->length[i], transfer->at_ns[i]);
}

void bus_set_timeout(unsigned long tens_of_ms) {
    timeout_ns = (int64_t)tens_of_ms * 10000000;
}

/* ---- a chip that holds SDA low ---------------------------------------------------------------------------------- */

void bus_stick(uint32_t clocks, int64_t t) {
    sda_stuck = clocks;
    line_drive(sda_line, !clocks, t);
    if (!clocks) line_let_go(sda_line);
}

void bus_clocked(int64_t t) {
    if (sda_stuck) bus_stick(sda_stuck - 1, t);
}
