// More descriptors than the default limit allows: they need the room to be restored.
#include <sys/resource.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    struct rlimit limit, now;
    NEED(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max;
    NEED(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int high = (int)(limit.rlim_cur < 5000 ? limit.rlim_cur : 5000) - 1;
    NEED(dup2(open("/dev/null", O_RDONLY), high) == high);
    scenario_ready();
    scenario_wait_moved();

    NEED(getrlimit(RLIMIT_NOFILE, &now) == 0);
    CHECK(now.rlim_cur == limit.rlim_cur, "the limit is %lu", (unsigned long)now.rlim_cur);
    CHECK(fcntl(high, F_GETFD) != -1, "descriptor %d is gone", high);
    return scenario_end();
}
