/* Counts, per thread name, calls that the loop's threads may not make: allocation, memory mapping and locks.

   Preloaded into a process (LD_PRELOAD); the counts are in the file that STIRBAR_COUNTS names: an array
   uint32_t counts[3][16] for the threads "stirbar-sample", "stirbar-act" and all others, in the order of the enum. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MALLOC, CALLOC, REALLOC, FREE, MEMALIGN, MMAP, MUNMAP, BRK, MUTEX, CONDITION, SEMAPHORE, KINDS = 16 };

static uint32_t (*counts)[KINDS];

static void count(int kind) {
    char name[16] = "";
    int thread = 2;
    if (!counts) return;
    prctl(PR_GET_NAME, name);
    if (!strcmp(name, "stirbar-sample")) thread = 0;
    else if (!strcmp(name, "stirbar-act")) thread = 1;
    __atomic_fetch_add(&counts[thread][kind], 1, __ATOMIC_RELAXED);
}

__attribute__((constructor)) static void open_counts(void) {
    const char *path = getenv("STIRBAR_COUNTS");
    size_t size = 3 * KINDS * sizeof(uint32_t);
    int descriptor = path ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (descriptor < 0 || ftruncate(descriptor, size)) return;
    void *memory = (void *)syscall(SYS_mmap, NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (memory != MAP_FAILED) counts = memory;
    close(descriptor);
}

/* glibc's own names: dlsym would allocate while malloc is being looked up */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

void *malloc(size_t size) { count(MALLOC); return __libc_malloc(size); }
void *calloc(size_t n, size_t size) { count(CALLOC); return __libc_calloc(n, size); }
void *realloc(void *p, size_t size) { count(REALLOC); return __libc_realloc(p, size); }
void free(void *p) { count(FREE); __libc_free(p); }
void *memalign(size_t alignment, size_t size) { count(MEMALIGN); return __libc_memalign(alignment, size); }
void *aligned_alloc(size_t alignment, size_t size) { count(MEMALIGN); return __libc_memalign(alignment, size); }
int posix_memalign(void **p, size_t alignment, size_t size) {
    count(MEMALIGN);
    *p = __libc_memalign(alignment, size);
    return *p ? 0 : 12;
}

#define NEXT(result, name, ...) \
    static result (*next)(__VA_ARGS__); \
    if (!next) next = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void *mmap(void *at, size_t size, int protection, int flags, int descriptor, off_t offset) {
    count(MMAP);
    NEXT(void *, "mmap", void *, size_t, int, int, int, off_t);
    return next(at, size, protection, flags, descriptor, offset);
}
int munmap(void *at, size_t size) {
    count(MUNMAP);
    NEXT(int, "munmap", void *, size_t);
    return next(at, size);
}
int brk(void *end) {
    count(BRK);
    NEXT(int, "brk", void *);
    return next(end);
}
void *sbrk(intptr_t by) {
    count(BRK);
    NEXT(void *, "sbrk", intptr_t);
    return next(by);
}
int pthread_mutex_lock(pthread_mutex_t *mutex) {
    count(MUTEX);
    NEXT(int, "pthread_mutex_lock", pthread_mutex_t *);
    return next(mutex);
}
int pthread_cond_wait(pthread_cond_t *condition, pthread_mutex_t *mutex) {
    count(CONDITION);
    NEXT(int, "pthread_cond_wait", pthread_cond_t *, pthread_mutex_t *);
    return next(condition, mutex);
}
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until) {
    count(CONDITION);
    NEXT(int, "pthread_cond_timedwait", pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    return next(condition, mutex, until);
}
int sem_wait(sem_t *semaphore) {
    count(SEMAPHORE);
    NEXT(int, "sem_wait", sem_t *);
    return next(semaphore);
}
