// One thread in real time, one nice, one idle: each keeps what it has.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "scenario.h"

static volatile int set, go;
static int policy, priority, nice_value;

static void *in_real_time(void *argument)
{
    (void)argument;
    struct sched_param parameters = {.sched_priority = 7};
    NEED(sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &parameters) == 0);
    set++;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    policy = sched_getscheduler(0);
    sched_getparam(0, &parameters);
    priority = parameters.sched_priority;
    return NULL;
}

static void *nice_one(void *argument)
{
    (void)argument;
    NEED(setpriority(PRIO_PROCESS, syscall(SYS_gettid), 11) == 0);
    set++;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    nice_value = getpriority(PRIO_PROCESS, syscall(SYS_gettid));
    return NULL;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    pthread_t threads[2];
    NEED(pthread_create(&threads[0], NULL, in_real_time, NULL) == 0);
    NEED(pthread_create(&threads[1], NULL, nice_one, NULL) == 0);
    while (set < 2)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    struct sched_param none = {.sched_priority = 0};
    NEED(sched_setscheduler(0, SCHED_BATCH, &none) == 0);
    NEED(setpriority(PRIO_PROCESS, 0, 3) == 0);
    scenario_ready();
    scenario_wait_moved();

    CHECK(sched_getscheduler(0) == SCHED_BATCH, "the leader: %d", sched_getscheduler(0));
    CHECK(getpriority(PRIO_PROCESS, 0) == 3, "the leader's nice value is %d",
          getpriority(PRIO_PROCESS, 0));
    go = 1;
    for (int i = 0; i < 2; i++)
        NEED(pthread_join(threads[i], NULL) == 0);
    CHECK(policy == (SCHED_RR | SCHED_RESET_ON_FORK), "the policy is %#x", policy);
    CHECK(priority == 7, "the priority is %d", priority);
    CHECK(nice_value == 11, "the nice value is %d", nice_value);
    return scenario_end();
}
