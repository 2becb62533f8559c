/* The interposer's calls with paths: which are the board's, and where their files really are. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shim.h"

static int under(const char *path, const char *root) {
    size_t length = strlen(root);
    return !strncmp(path, root, length) && (!path[length] || path[length] == '/');
}

/* Number of a device "<stem>N", else -1. */
static long device(const char *path, const char *stem) {
    size_t length = strlen(stem);
    char *end;
    if (strncmp(path, stem, length) || !path[length]) return -1;
    long number = strtol(path + length, &end, 10);
    return *end ? -1 : number;
}

static const char *in_tree(char *room, const char *path) {
    snprintf(room, PATH_ROOM, "%s/tree%s", board, path);
    return room;
}

/* Where a file of the board really is; other paths come back as they are. */
static const char *place(const char *path, char *room) {
    static const char *const roots[] = { "/proc/device-tree", "/sys/class/pwm", "/sys/bus/i2c", "/sys/class/i2c-dev" };
    static const char alias[] = "/sys/firmware/devicetree/base";
    if (!board || !path || path[0] != '/') return path;
    for (size_t i = 0; i < sizeof roots / sizeof *roots; i++)
        if (under(path, roots[i])) return in_tree(room, path);
    if (!under(path, alias)) return path;
    snprintf(room, PATH_ROOM, "%s/tree/proc/device-tree%s", board, path + strlen(alias));
    return room;
}

/* The same for calls that only ask what is there: a device of the board looks like one. */
static const char *place_to_look(const char *path, char *room) {
    REAL(int, "access", const char *, int);
    if (!board || !path) return path;
    if (device(path, "/dev/gpiochip") < 0 && device(path, "/dev/i2c-") < 0) return place(path, room);
    return real(in_tree(room, path), F_OK) ? room : "/dev/null";
}

typedef int opener(int directory, const char *path, int flags, mode_t mode);

static int open_any(opener *real, int directory, const char *path, int flags, mode_t mode) {
    char room[PATH_ROOM];
    if (board && path) {
        long number = device(path, "/dev/i2c-");
        if (number >= 0) return open_device(OPEN_I2C, number, flags);
        number = device(path, "/dev/gpiochip");
        if (number >= 0) return open_device(OPEN_GPIO, number, flags);
        const char *moved = place(path, room);
        if (moved != path) {
            path = moved;
            flags &= ~(O_TRUNC | O_CREAT);      /* as sysfs does */
        }
    }
    return real(directory, path, flags, mode);
}

static int real_openat(int directory, const char *path, int flags, mode_t mode) {
    REAL(int, "openat64", int, const char *, int, ...);
    return real(directory, path, flags, mode);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list list; \
        va_start(list, flags); \
        mode = va_arg(list, mode_t); \
        va_end(list); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags) \
        return open_any(real_openat, AT_FDCWD, path, flags, mode); \
    }
#define OPENAT(name) \
    int name(int directory, const char *path, int flags, ...) { \
        MODE(flags) \
        return open_any(real_openat, directory, path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int __open_2(const char *path, int flags) { return open_any(real_openat, AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_any(real_openat, AT_FDCWD, path, flags, 0); }
int __openat_2(int at, const char *path, int flags) { return open_any(real_openat, at, path, flags, 0); }
int __openat64_2(int at, const char *path, int flags) { return open_any(real_openat, at, path, flags, 0); }

/* Reading only: a stream's writes do not pass here. */
#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(FILE *, #name, const char *, const char *); \
        char room[PATH_ROOM]; \
        return real(place(path, room), mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    char room[PATH_ROOM];
    if (board && (!strcmp(path, "/dev") || !strcmp(path, "/dev/"))) return real(in_tree(room, "/dev"));
    return real(place(path, room));
}

int access(const char *path, int mode) {
    REAL(int, "access", const char *, int);
    char room[PATH_ROOM];
    return real(place_to_look(path, room), mode);
}

int faccessat(int directory, const char *path, int mode, int flags) {
    REAL(int, "faccessat", int, const char *, int, int);
    char room[PATH_ROOM];
    return real(directory, place_to_look(path, room), mode, flags);
}

#define STAT(name, type) \
    int name(const char *path, struct type *status) { \
        REAL(int, #name, const char *, struct type *); \
        char room[PATH_ROOM]; \
        return real(place_to_look(path, room), status); \
    }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)

#define STATAT(name, type) \
    int name(int directory, const char *path, struct type *status, int flags) { \
        REAL(int, #name, int, const char *, struct type *, int); \
        char room[PATH_ROOM]; \
        return real(directory, place_to_look(path, room), status, flags); \
    }
STATAT(fstatat, stat)
STATAT(fstatat64, stat64)

int statx(int directory, const char *path, int flags, unsigned mask, struct statx *status) {
    REAL(int, "statx", int, const char *, int, unsigned, struct statx *);
    char room[PATH_ROOM];
    return real(directory, place_to_look(path, room), flags, mask, status);
}

ssize_t readlink(const char *path, char *buffer, size_t bytes) {
    REAL(ssize_t, "readlink", const char *, char *, size_t);
    char room[PATH_ROOM];
    return real(place(path, room), buffer, bytes);
}
