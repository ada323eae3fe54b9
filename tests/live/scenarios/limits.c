// Soft limits lower than the default, some of them lower than what is in use.
#include <sys/resource.h>

#include "scenario.h"

static const struct {
    int resource;
    rlim_t soft;
} wanted[] = {
    {RLIMIT_CORE, 0},           {RLIMIT_NOFILE, 5},    {RLIMIT_STACK, 1 << 20},
    {RLIMIT_FSIZE, 123456},     {RLIMIT_CPU, 1000},    {RLIMIT_MEMLOCK, 4096},
    {RLIMIT_SIGPENDING, 17},    {RLIMIT_NPROC, 30000}, {RLIMIT_AS, (rlim_t)1 << 40},
};
enum { COUNT = sizeof wanted / sizeof *wanted };

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(dup2(open("/dev/null", O_RDONLY), 100) == 100); // above its limit afterwards
    struct rlimit before[COUNT];
    for (int i = 0; i < COUNT; i++) {
        NEED(getrlimit(wanted[i].resource, &before[i]) == 0);
        struct rlimit limit = {wanted[i].soft, before[i].rlim_max};
        if (limit.rlim_cur > limit.rlim_max)
            limit.rlim_cur = limit.rlim_max;
        NEED(setrlimit(wanted[i].resource, &limit) == 0);
        before[i] = limit;
    }
    scenario_ready();
    scenario_wait_moved();

    for (int i = 0; i < COUNT; i++) {
        struct rlimit now;
        NEED(getrlimit(wanted[i].resource, &now) == 0);
        CHECK(now.rlim_cur == before[i].rlim_cur, "limit %d is %lu", wanted[i].resource,
              (unsigned long)now.rlim_cur);
        CHECK(now.rlim_max >= before[i].rlim_cur, "hard limit %d is %lu",
              wanted[i].resource, (unsigned long)now.rlim_max);
    }
    CHECK(fcntl(100, F_GETFD) != -1, "descriptor 100 is gone");
    return scenario_end();
}
