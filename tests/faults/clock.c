/* A wall clock that jumps while a program runs. Preloaded into it (LD_PRELOAD); the test writes the
 * offset into the file that SKERRY_TEST_CLOCK names. CLOCK_MONOTONIC is left alone, as a real jump
 * leaves it. adjtimex(2) says that the clock is synchronised, or not, as the test wants. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

struct told {
    int64_t offset_ns;
    int64_t synchronised; /* 0: no, 1: yes, 2: as the kernel says */
};

static const struct told *told(void)
{
    static const struct told nothing = {0, 2};
    static const struct told *volatile known;
    if (known == NULL) {
        const char *path = getenv("SKERRY_TEST_CLOCK");
        int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        void *map = file < 0 ? MAP_FAILED : mmap(NULL, sizeof nothing, PROT_READ, MAP_SHARED, file, 0);
        if (file >= 0)
            close(file);
        known = map == MAP_FAILED ? &nothing : map;
    }
    return known;
}

static int64_t offset(void)
{
    return __atomic_load_n(&told()->offset_ns, __ATOMIC_ACQUIRE);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (code == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + offset();
        now->tv_sec = ns / 1000000000;
        now->tv_nsec = ns % 1000000000;
    }
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out != NULL)
        *out = now.tv_sec;
    return now.tv_sec;
}

int adjtimex(struct timex *state)
{
    static int (*real)(struct timex *);
    if (real == NULL)
        real = (int (*)(struct timex *))dlsym(RTLD_NEXT, "adjtimex");
    int code = real(state);
    int64_t wanted = __atomic_load_n(&told()->synchronised, __ATOMIC_ACQUIRE);
    if (wanted == 1) {
        state->status &= ~STA_UNSYNC;
        return TIME_OK;
    }
    if (wanted == 0) {
        state->status |= STA_UNSYNC;
        return TIME_ERROR;
    }
    return code;
}
