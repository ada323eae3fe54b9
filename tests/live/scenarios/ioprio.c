// Its reading and writing come last.
#include <sys/syscall.h>

#include "scenario.h"

enum { WHO_PROCESS = 1, CLASS_BEST_EFFORT = 2 << 13 };

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(syscall(SYS_ioprio_set, WHO_PROCESS, 0, CLASS_BEST_EFFORT | 6) == 0);
    scenario_ready();
    scenario_wait_moved();

    long priority = syscall(SYS_ioprio_get, WHO_PROCESS, 0);
    CHECK(priority == (CLASS_BEST_EFFORT | 6), "it is %#lx", priority);
    return scenario_end();
}
