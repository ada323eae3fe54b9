// A personality with a flag of its own.
#include <sys/personality.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(personality(ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS) != -1);
    scenario_ready();
    scenario_wait_moved();

    int persona = personality(0xffffffff);
    CHECK(persona == (ADDR_NO_RANDOMIZE | STICKY_TIMEOUTS), "it is %#x", persona);
    return scenario_end();
}
