// It has registered for the expedited barriers, and uses one after the move.
#include <linux/membarrier.h>
#include <sys/syscall.h>

#include "scenario.h"

static long membarrier(int command)
{
    return syscall(SYS_membarrier, command, 0, 0);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    if (!scenario_bare) {
        NEED(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) == 0);
        NEED(membarrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE) == 0);
    }
    scenario_ready();
    scenario_wait_moved();

    CHECK(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0, "%s", strerror(errno));
    CHECK(membarrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE) == 0, "%s",
          strerror(errno));
    CHECK(membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED) == 0, "%s", strerror(errno));
    return scenario_end();
}
