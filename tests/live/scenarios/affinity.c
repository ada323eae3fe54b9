// Bound to one processor; another thread is not.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>

#include "scenario.h"

static volatile int ran, go;
static int allowed;

static void *free_one(void *argument)
{
    (void)argument;
    ran = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    cpu_set_t set;
    NEED(sched_getaffinity(0, sizeof set, &set) == 0);
    allowed = CPU_COUNT(&set);
    return NULL;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, free_one, NULL) == 0);
    while (!ran)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    cpu_set_t set;
    NEED(sched_getaffinity(0, sizeof set, &set) == 0);
    int all = CPU_COUNT(&set);
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    NEED(sched_setaffinity(0, sizeof set, &set) == 0);
    scenario_ready();
    scenario_wait_moved();

    NEED(sched_getaffinity(0, sizeof set, &set) == 0);
    CHECK(CPU_COUNT(&set) == 1 && CPU_ISSET(0, &set), "%d processors", CPU_COUNT(&set));
    go = 1;
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(allowed >= 1 && (all == 1 || allowed > 1), "the free one has %d", allowed);
    return scenario_end();
}
