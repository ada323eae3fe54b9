// It does not mind being woken a little later.
#include <sys/prctl.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(prctl(PR_SET_TIMERSLACK, 123456, 0, 0, 0) == 0);
    scenario_ready();
    scenario_wait_moved();

    int slack_ns = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    CHECK(slack_ns == 123456, "it is %d", slack_ns);
    return scenario_end();
}
