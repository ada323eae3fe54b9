// All three interval timers run on with what they had left.
#include <signal.h>
#include <sys/time.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    struct itimerval hour = {{60, 250000}, {3600, 0}}, day = {{0, 0}, {86400, 0}};
    NEED(setitimer(ITIMER_REAL, &hour, NULL) == 0);
    NEED(setitimer(ITIMER_VIRTUAL, &day, NULL) == 0);
    NEED(setitimer(ITIMER_PROF, &day, NULL) == 0);
    scenario_ready();
    scenario_wait_moved();

    struct itimerval now;
    NEED(getitimer(ITIMER_REAL, &now) == 0);
    CHECK(now.it_interval.tv_sec == 60 && now.it_interval.tv_usec == 250000,
          "interval %ld.%06ld", now.it_interval.tv_sec, now.it_interval.tv_usec);
    CHECK(now.it_value.tv_sec >= 3000 && now.it_value.tv_sec <= 3600, "real: %ld s left",
          now.it_value.tv_sec);
    NEED(getitimer(ITIMER_VIRTUAL, &now) == 0);
    CHECK(now.it_value.tv_sec >= 86000, "virtual: %ld s left", now.it_value.tv_sec);
    CHECK(now.it_interval.tv_sec == 0, "virtual: interval %ld", now.it_interval.tv_sec);
    NEED(getitimer(ITIMER_PROF, &now) == 0);
    CHECK(now.it_value.tv_sec >= 86000, "profiling: %ld s left", now.it_value.tv_sec);
    return scenario_end();
}
