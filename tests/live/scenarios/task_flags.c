// A thread that may not read the time stamp counter and hears early of broken memory.
#include <pthread.h>
#include <sys/prctl.h>

#include "scenario.h"

static volatile int set, go;
static int tsc, early;

static void *other(void *argument)
{
    (void)argument;
    NEED(prctl(PR_SET_TSC, PR_TSC_SIGSEGV, 0, 0, 0) == 0);
    NEED(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
    set = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    prctl(PR_GET_TSC, &tsc, 0, 0, 0);
    early = prctl(PR_MCE_KILL_GET, 0, 0, 0, 0);
    return NULL;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, other, NULL) == 0);
    while (!set)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    scenario_ready();
    scenario_wait_moved();

    int leaders = 0;
    NEED(prctl(PR_GET_TSC, &leaders, 0, 0, 0) == 0);
    CHECK(leaders == PR_TSC_ENABLE, "the leader's time stamp counter: %d", leaders);
    go = 1;
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(tsc == PR_TSC_SIGSEGV, "the thread's time stamp counter: %d", tsc);
    CHECK(early == PR_MCE_KILL_EARLY, "the thread hears %d", early);
    return scenario_end();
}
