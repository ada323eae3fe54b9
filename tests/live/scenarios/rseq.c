// The kernel goes on to say on which processor each thread is.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/rseq.h>
#include <sys/syscall.h>

#include "scenario.h"

static volatile int ran, go;
static int wrong;

static struct rseq *area(void)
{
    return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

static int wrong_processor(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(0, &set);
    volatile struct rseq *mine = area();
    mine->cpu_id = 4711; // the kernel writes the true one at the next return
    NEED(sched_setaffinity(0, sizeof set, &set) == 0);
    sched_yield();
    for (int i = 0; i < 1000 && mine->cpu_id == 4711; i++)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    return mine->cpu_id != 0;
}

static void *other(void *argument)
{
    (void)argument;
    ran = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    wrong = wrong_processor();
    return NULL;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    NEED(__rseq_size >= 20);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, other, NULL) == 0);
    while (!ran)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    scenario_ready();
    scenario_wait_moved();

    CHECK(!wrong_processor(), "the leader is on processor %u", area()->cpu_id);
    // Registering what is registered is EBUSY; anything else would be news.
    long again = syscall(SYS_rseq, area(), 32, 0, RSEQ_SIG);
    CHECK(again == -1 && errno == EBUSY, "registering again: %s", strerror(errno));
    go = 1;
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(!wrong, "the thread does not hear of its processor");
    return scenario_end();
}
