// A lock held by a thread that ends is freed by the kernel, which finds it by the list.
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/syscall.h>

#include "scenario.h"

static pthread_mutex_t lock;
static volatile int held, go;

static void *holder(void *argument)
{
    (void)argument;
    NEED(pthread_mutex_lock(&lock) == 0);
    held = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    return NULL; // without unlocking
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    NEED(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
    NEED(pthread_mutex_init(&lock, &attributes) == 0);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, holder, NULL) == 0);
    while (!held)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    void *before, *now;
    size_t size;
    NEED(syscall(SYS_get_robust_list, 0, &before, &size) == 0);
    scenario_ready();
    scenario_wait_moved();

    NEED(syscall(SYS_get_robust_list, 0, &now, &size) == 0);
    CHECK(now == before, "the list is at %p, not %p", now, before);
    go = 1;
    NEED(pthread_join(thread, NULL) == 0);
    int taken = pthread_mutex_lock(&lock);
    CHECK(taken == EOWNERDEAD, "locking gave %s", strerrorname_np(taken));
    return scenario_end();
}
