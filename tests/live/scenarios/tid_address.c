// pthread_join(3) waits for the word that the kernel clears at a thread's end.
#include <pthread.h>
#include <sys/prctl.h>

#include "scenario.h"

#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

static volatile int ran, go;

static void *other(void *argument)
{
    ran = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    return argument;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, other, (void *)&go) == 0);
    while (!ran)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    int *before, *now;
    NEED(prctl(PR_GET_TID_ADDRESS, &before, 0, 0, 0) == 0);
    scenario_ready();
    scenario_wait_moved();

    NEED(prctl(PR_GET_TID_ADDRESS, &now, 0, 0, 0) == 0);
    CHECK(now == before, "the word is at %p, not %p", (void *)now, (void *)before);
    go = 1;
    void *result = NULL;
    CHECK(pthread_join(thread, &result) == 0, "it cannot be joined");
    CHECK(result == &go, "it gave %p", result);
    return scenario_end();
}
