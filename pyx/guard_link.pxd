# Why compiled: a worker takes its outputs from the guard without loading Python's socket module (0.2 MB).
# Thread rule: the host thread, before the loop's threads live; the heartbeat's page is then the actuator thread's.
# Units: milliseconds; messages are text, see docs/determinism.md.

from libc.stdint cimport uint32_t

cdef enum:
    GUARD_TEXT = 1024            # bytes of the guard's message, at most
    GUARD_DESCRIPTORS = 64

cdef extern from *:
    """
    #include <errno.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <sys/time.h>
    #include <sys/un.h>
    #include <unistd.h>

    /* Connect, and take the one message that the guard begins with. Returns the connection, or minus an errno
       (EAGAIN: no message in time); `length` bytes of text, `count` descriptors that are the caller's to close. */
    static int stirbar_guard_connect(const char *path, int timeout_ms, char *text, int *length, int *fds, int *count) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        struct timeval timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
        union { struct cmsghdr header; char bytes[CMSG_SPACE(64 * sizeof(int))]; } control;
        struct iovec part = {text, 1024};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                                 .msg_controllen = sizeof control};
        ssize_t got = -1;
        int fd, status;
        *length = *count = 0;
        if (strlen(path) >= sizeof address.sun_path) return -ENAMETOOLONG;
        strcpy(address.sun_path, path);
        fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0) return -errno;
        status = setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
        if (status == 0) status = connect(fd, (struct sockaddr *)&address, sizeof address);
        while (status == 0 && (got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {}
        if (got <= 0) {
            status = got == 0 ? ECONNRESET : errno;
            close(fd);
            return -status;
        }
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
            if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
            *count = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(c), *count * sizeof(int));
        }
        *length = (int)got;
        return fd;
    }

    /* Map a page of the guard's; NULL and errno when that fails. */
    static unsigned *stirbar_page_map(int fd, int writable) {
        void *page = mmap(NULL, 4096, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
        return page == MAP_FAILED ? NULL : (unsigned *)page;
    }
    static void stirbar_page_unmap(const unsigned *page) { munmap((void *)page, 4096); }
    """
    int stirbar_guard_connect(
        const char* path, int timeout_ms, char* text, int* length, int* fds, int* count) noexcept nogil
    uint32_t* stirbar_page_map(int fd, int writable) noexcept nogil
    void stirbar_page_unmap(const uint32_t* page) noexcept nogil
