/* The LED drivers: one attempt to put them out, by a thread of its own, for somebody may hold the bus.
 *
 * Best effort, after the lines and PWM channels and never before them; what became of it is said. The descriptors are
 * open and the messages made before the guard serves. Thread rule: the main thread orders and says, the other one
 * transfers; an order and its result cross by two eventfds and `done`.
 */

#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/i2c-dev.h>
#include <linux/i2c.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define DACS_MAXIMUM 8
#define DAC_BYTES 8
#define DAC_PRIORITY 47                  /* below the guard's main thread: a busy bus never delays a line */
#define DAC_WAIT_NS 3000000000LL
#define STACK_BYTES (32 * 1024)

struct dac {
    char bus[64];
    int fd;                              /* -1: the bus could not be opened */
    unsigned address;
    uint8_t bytes[DAC_BYTES];
    unsigned length;
    int status;                          /* of the last attempt: 0 or an errno */
};

int dac_done_fd = -1;
static struct dac dacs[DACS_MAXIMUM];
static int dac_count, order_fd = -1;
static char stack[STACK_BYTES] __attribute__((aligned(4096)));
static uint32_t ordered;                 /* attempts, of which */
static uint32_t done;                    /* so many are over; the thread's */
static int64_t ordered_ns;
static int late_said;

/* BUS:ADDRESS:BYTES in hexadecimal digits: what puts a driver's LEDs out. Returns -1 when it is something else. */
int add_dac(const char *text) {
    struct dac *dac = &dacs[dac_count];
    const char *colon = strchr(text, ':'), *digits;
    char *end, pair[3] = "";
    if (dac_count == DACS_MAXIMUM || colon == NULL || (size_t)(colon - text) >= sizeof dac->bus) return -1;
    memcpy(dac->bus, text, colon - text);
    dac->address = (unsigned)strtoul(colon + 1, &end, 0);
    if (end == colon + 1 || *end != ':' || dac->address > 0x7f) return -1;
    for (digits = end + 1; digits[0] && digits[1] && dac->length < DAC_BYTES; digits += 2) {
        memcpy(pair, digits, 2);
        dac->bytes[dac->length++] = (uint8_t)strtoul(pair, &end, 16);
        if (*end) return -1;
    }
    dac->fd = -1;
    dac_count++;
    return *digits || dac->length == 0 ? -1 : 0;
}

static int transfer(struct dac *dac) {
    struct i2c_msg message = {.addr = (uint16_t)dac->address, .len = (uint16_t)dac->length, .buf = dac->bytes};
    struct i2c_rdwr_ioctl_data one = {&message, 1};
    if (dac->fd < 0) return ENODEV;
    return ioctl(dac->fd, I2C_RDWR, &one) < 0 ? errno : 0;
}

/* The thread: waits for orders for ever. Orders that come together are one attempt. */
static void *put_out(void *unused) {
    uint64_t orders, one = 1;
    (void)unused;
    for (;;) {
        if (read(order_fd, &orders, sizeof orders) != sizeof orders) continue;
        for (int i = 0; i < dac_count; i++) __atomic_store_n(&dacs[i].status, transfer(&dacs[i]), __ATOMIC_RELAXED);
        __atomic_store_n(&done, done + (uint32_t)orders, __ATOMIC_RELEASE);
        while (write(dac_done_fd, &one, sizeof one) < 0 && errno == EINTR) {}
    }
    return NULL;
}

/* A bus that cannot be opened is said, and no reason not to guard the rest. */
void open_dacs(void) {
    for (int i = 0; i < dac_count; i++) {
        dacs[i].fd = open(dacs[i].bus, O_RDWR | O_CLOEXEC);
        if (dacs[i].fd < 0)
            say("cannot open %s: %s; the LED driver 0x%02x is not put out by this guard", dacs[i].bus, strerror(errno),
                dacs[i].address);
    }
}

/* Begin the thread; it inherits the right to real time that this one has. */
int start_dacs(void) {
    struct sched_param parameter = {.sched_priority = DAC_PRIORITY};
    pthread_attr_t attributes;
    pthread_t thread;
    int status;
    if (dac_count == 0) return 0;
    order_fd = eventfd(0, EFD_CLOEXEC);
    dac_done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_attr_init(&attributes);
    status = order_fd < 0 || dac_done_fd < 0 ? errno : pthread_attr_setstack(&attributes, stack, sizeof stack);
    if (status == 0) status = pthread_create(&thread, &attributes, put_out, NULL);
    if (status) {
        say("cannot begin a thread for the LED drivers: %s", strerror(status));
        return -1;
    }
    /* refused where the guard's own priority was, which has been said */
    pthread_setschedparam(thread, SCHED_FIFO, &parameter);
    return 0;
}

/* One more attempt; never waits. */
void order_dacs(void) {
    uint64_t one = 1;
    if (dac_count == 0) return;
    if (__atomic_load_n(&done, __ATOMIC_ACQUIRE) == ordered) ordered_ns = now_ns();
    if (write(order_fd, &one, sizeof one) == sizeof one) ordered++;
}

/* Say which drivers refused, one line for each. Returns how many orders did. */
static int say_refusals(void) {
    int refused = 0, before = 0;
    for (int i = 0; i < dac_count; i++) {
        int status = __atomic_load_n(&dacs[i].status, __ATOMIC_RELAXED);
        refused += status != 0;
        if (status && !(before == status && dacs[i].address == dacs[i - 1].address))
            say("the LED driver 0x%02x of %s did not take the order to go off: %s", dacs[i].address, dacs[i].bus,
                strerror(status));
        before = status;
    }
    return refused;
}

/* Say what became of the orders, when they are over or have taken long. Returns whether some are under way. */
int tend_dacs(int64_t at_ns) {
    uint64_t attempts;
    int over = dac_done_fd >= 0 && read(dac_done_fd, &attempts, sizeof attempts) > 0;
    int pending = __atomic_load_n(&done, __ATOMIC_ACQUIRE) != ordered;
    if (pending && !late_said && at_ns - ordered_ns >= DAC_WAIT_NS) {
        say("the LED drivers have not taken the order to go off for 3 s: the bus is held");
        late_said = 1;
    }
    if (pending || !over) return pending;
    late_said = 0;
    if (say_refusals() == 0) say("LEDs off (%lld us after the order)", (long long)(at_ns - ordered_ns) / 1000);
    return 0;
}

/* At the end: wait for what is under way, for as long as it may take. Returns the number of orders that were in vain. */
int finish_dacs(void) {
    struct pollfd over = {dac_done_fd, POLLIN, 0};
    int64_t until_ns = now_ns() + DAC_WAIT_NS, left_ns;
    int failed = 0, pending;
    while ((pending = tend_dacs(now_ns())) && (left_ns = until_ns - now_ns()) > 0)
        poll(&over, 1, (int)(left_ns / 1000000) + 1);
    for (int i = 0; i < dac_count; i++) failed += pending || __atomic_load_n(&dacs[i].status, __ATOMIC_RELAXED);
    return failed;
}
