// Killed sooner than others.
#include "scenario.h"

static int oom_score_adj(void)
{
    int value = -9999;
    FILE *file = fopen("/proc/self/oom_score_adj", "re");
    NEED(file != NULL && fscanf(file, "%d", &value) == 1);
    fclose(file);
    return value;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    FILE *file = fopen("/proc/self/oom_score_adj", "we");
    NEED(file != NULL && fputs("321", file) >= 0 && fclose(file) == 0);
    scenario_ready();
    scenario_wait_moved();

    CHECK(oom_score_adj() == 321, "it is %d", oom_score_adj());
    return scenario_end();
}
