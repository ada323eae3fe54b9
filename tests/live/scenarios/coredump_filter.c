// A core dump of its own making.
#include "scenario.h"

static unsigned coredump_filter(void)
{
    unsigned value = 0;
    FILE *file = fopen("/proc/self/coredump_filter", "re");
    NEED(file != NULL && fscanf(file, "%x", &value) == 1);
    fclose(file);
    return value;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    FILE *file = fopen("/proc/self/coredump_filter", "we");
    NEED(file != NULL && fputs("0x51", file) >= 0 && fclose(file) == 0);
    scenario_ready();
    scenario_wait_moved();

    CHECK(coredump_filter() == 0x51, "it is %#x", coredump_filter());
    return scenario_end();
}
