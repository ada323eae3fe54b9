// It adopts orphans, and does without huge pages.
#include <sys/prctl.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    NEED(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0);
    scenario_ready();
    scenario_wait_moved();

    int subreaper = -1;
    NEED(prctl(PR_GET_CHILD_SUBREAPER, &subreaper, 0, 0, 0) == 0);
    CHECK(subreaper == 1, "subreaper: %d", subreaper);
    int disabled = prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0);
    CHECK(disabled == 1, "huge pages disabled: %d", disabled);
    return scenario_end();
}
