/* The hardware watchdog: a kernel or a processor that stands still is reset, for pins keep their level meanwhile.
 *
 * It is opened when the lines are held, so that whoever opens it can also switch them off, and fed only while the
 * worker's heartbeat is good or everything is known to be off. Units: nanoseconds; the driver's are seconds.
 */

#include "guard.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/watchdog.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define TIMEOUT_S 10                     /* a Pi's reaches 15 s */
#define FEEDS 5                          /* in a time-out */

static int fd = -1, magic, starved;
static int64_t fed_ns, every_ns;

/* What may be refused: said once, and we go on. */
void open_watchdog(const char *path) {
    struct watchdog_info info;
    int timeout_s = TIMEOUT_S;
    if (path == NULL) return;
    memset(&info, 0, sizeof info);
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, WDIOC_GETSUPPORT, &info) < 0 ||
        (ioctl(fd, WDIOC_SETTIMEOUT, &timeout_s) < 0 && ioctl(fd, WDIOC_GETTIMEOUT, &timeout_s) < 0) || timeout_s < 1) {
        say("no hardware watchdog: %s: %s%s; a kernel that stands still leaves the outputs as they are", path,
            strerror(errno), errno == EBUSY ? " (systemd's RuntimeWatchdogSec?)" : "");
        if (fd >= 0) close(fd);
        fd = -1;
        return;
    }
    magic = info.options & WDIOF_MAGICCLOSE;
    every_ns = timeout_s * 1000000000LL / FEEDS;
    fed_ns = now_ns();
    if (timeout_s != TIMEOUT_S)
        say("the hardware watchdog resets after %d s, not after the %d s that were asked for", timeout_s, TIMEOUT_S);
}

/* Feed it when that is due and may be. Returns how long until the next time, ns; -1: there is none. */
int64_t tend_watchdog(int64_t at_ns, int may_feed) {
    if (fd < 0) return -1;
    if (starved == may_feed)
        say(may_feed ? "the hardware watchdog is fed again" : "the hardware watchdog is not fed any more: outputs may be on");
    starved = !may_feed;
    if (starved) return every_ns;
    if (at_ns - fed_ns >= every_ns) {
        if (write(fd, "", 1) != 1) say("the hardware watchdog cannot be fed: %s", strerror(errno));
        fed_ns = at_ns;
    }
    return fed_ns + every_ns - at_ns;
}

/* At the end: stop it when everything is off, else let it reset the machine. */
void close_watchdog(int outputs_off) {
    if (fd < 0) return;
    if (!outputs_off)
        say("the hardware watchdog goes on, and resets this machine: outputs may be on");
    else if (!magic || write(fd, "V", 1) != 1)
        say("the hardware watchdog cannot be stopped: it resets this machine unless a guard starts at once");
    close(fd);
}
