// Counters keep their counts, all 64 bits, and how they count down.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/eventfd.h>

enum { COUNTER = 10, SEMAPHORE = 11, LARGE = 12, BRIMFUL = 13 };

#define LARGE_COUNT ((1ULL << 33) + 1)

static void eventfd_at(int number, uint64_t count, int flags)
{
    int fd = eventfd(0, flags);
    NEED(fd >= 0 && dup2(fd, number) == number);
    close(fd);
    NEED(write(number, &count, sizeof count) == sizeof count);
}

static void arrange(void)
{
    eventfd_at(COUNTER, 5, 0);
    eventfd_at(SEMAPHORE, 3, EFD_SEMAPHORE | EFD_NONBLOCK);
    eventfd_at(LARGE, LARGE_COUNT, 0);
    eventfd_at(BRIMFUL, UINT64_MAX - 1, EFD_NONBLOCK);
}

static uint64_t value(int fd)
{
    uint64_t count = 0;
    CHECK(read(fd, &count, sizeof count) == sizeof count, "fd %d: %s", fd,
          strerror(errno));
    return count;
}

static void check(void)
{
    uint64_t one = 1, count;
    CHECK((count = value(COUNTER)) == 5, "%llu", (unsigned long long)count);
    CHECK(write(COUNTER, &one, sizeof one) == sizeof one, "%s", strerror(errno));
    CHECK((count = value(COUNTER)) == 1, "%llu", (unsigned long long)count);
    for (int i = 0; i < 3; i++)
        CHECK((count = value(SEMAPHORE)) == 1, "%llu", (unsigned long long)count);
    CHECK(read(SEMAPHORE, &count, sizeof count) < 0 && errno == EAGAIN, "%s",
          strerror(errno));
    CHECK((count = value(LARGE)) == LARGE_COUNT, "%llu", (unsigned long long)count);
    CHECK(write(BRIMFUL, &one, sizeof one) < 0 && errno == EAGAIN, "%s",
          strerror(errno));
    CHECK((count = value(BRIMFUL)) == UINT64_MAX - 1, "%llu", (unsigned long long)count);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    if (!scenario_bare)
        arrange();
    scenario_ready();
    scenario_wait_moved();
    check();
    return scenario_end();
}
