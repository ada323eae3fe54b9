// Not to be looked into.
#include <sys/prctl.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    scenario_ready();
    scenario_wait_moved();

    int dumpable = prctl(PR_GET_DUMPABLE, 0, 0, 0, 0);
    CHECK(dumpable == 0, "it is %d", dumpable);
    return scenario_end();
}
