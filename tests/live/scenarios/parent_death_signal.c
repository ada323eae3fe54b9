// It wants to hear of its parent's end; here that is left out, or set again.
#include <signal.h>
#include <sys/prctl.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1, 0, 0, 0) == 0);
    scenario_ready();
    scenario_wait_moved();

    int number = -1;
    NEED(prctl(PR_GET_PDEATHSIG, &number, 0, 0, 0) == 0);
    CHECK(number == SIGUSR1 || number == 0, "it is %d", number);
    return scenario_end();
}
