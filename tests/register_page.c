/* A chip that holds SDA low behind the GPIO registers of a BCM2835, as a page of memory that answers.

   Preloaded into a process (LD_PRELOAD); the page is the file that STIRBAR_PAGE names. Whoever frees a bus reads the
   clock between two changes of a pin, and there the page is looked at: pins follow their function, and after
   page[CLOCKS] rises of SCL the chip lets go of SDA. page[RISES] and page[STOPS] count what was seen. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { FUNCTIONS = 0, LEVELS = 13, CLOCKS = 16, RISES, STOPS, SDA = 2, SCL = 3, OUTPUT = 1 };

static volatile uint32_t *page;

__attribute__((constructor)) static void open_page(void) {
    const char *path = getenv("STIRBAR_PAGE");
    int descriptor = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *memory = descriptor < 0 ? MAP_FAILED : mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (memory != MAP_FAILED) page = memory;
    close(descriptor);
}

static int driven_low(int pin) { return (page[FUNCTIONS] >> 3 * pin & 7) == OUTPUT; }

static void look(void) {
    uint32_t before = page[LEVELS], now = 0;
    if (!driven_low(SCL)) now |= 1u << SCL;
    if (now & ~before & 1u << SCL) page[RISES]++;
    if (!driven_low(SDA) && page[RISES] >= page[CLOCKS]) now |= 1u << SDA;
    if (page[RISES] >= page[CLOCKS] && now & ~before & 1u << SDA && before & now & 1u << SCL) page[STOPS]++;
    page[LEVELS] = now;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (page) look();
    return syscall(SYS_clock_gettime, clock, now);
}
