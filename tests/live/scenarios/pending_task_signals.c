// Signals sent to one thread, blocked: that thread has them, and no other.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

#include "scenario.h"

static volatile int waiting, go;
static int seen, value, foreign;

static void *other(void *argument)
{
    (void)argument;
    waiting = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    sigset_t one;
    siginfo_t info;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN + 1);
    sigaddset(&one, SIGUSR2);
    struct timespec now = {0, 0};
    while (sigtimedwait(&one, &info, &now) > 0) {
        if (info.si_signo == SIGUSR2)
            foreign++;
        else if (++seen)
            value = info.si_value.sival_int;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    sigset_t all;
    sigfillset(&all);
    NEED(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, other, NULL) == 0);
    while (!waiting)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    NEED(pthread_sigqueue(thread, SIGRTMIN + 1, (union sigval){.sival_int = 5}) == 0);
    NEED(syscall(SYS_tgkill, getpid(), getpid(), SIGUSR2) == 0);
    scenario_ready();
    scenario_wait_moved();

    go = 1;
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(seen == 1 && value == 5, "the thread got %d, value %d", seen, value);
    CHECK(foreign == 0, "the thread got the leader's signal");
    sigset_t pending;
    NEED(sigpending(&pending) == 0);
    CHECK(sigismember(&pending, SIGUSR2) == 1, "the leader's signal is gone");
    CHECK(sigismember(&pending, SIGRTMIN + 1) == 0, "the leader has the thread's signal");
    return scenario_end();
}
