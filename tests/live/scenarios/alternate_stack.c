// A handler that runs on a stack of its own; another thread has none.
#include <pthread.h>
#include <signal.h>

#include "scenario.h"

static char stack[1 << 16];
static volatile int ran, go;
static volatile sig_atomic_t on_it;
static stack_t others;

static void on_usr1(int number)
{
    (void)number;
    char here;
    on_it = &here >= stack && &here < stack + sizeof stack;
}

static void *other(void *argument)
{
    (void)argument;
    ran = 1;
    while (!go)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    sigaltstack(NULL, &others);
    return NULL;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    pthread_t thread;
    NEED(pthread_create(&thread, NULL, other, NULL) == 0);
    while (!ran)
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    stack_t wanted = {.ss_sp = stack, .ss_size = sizeof stack}, now;
    NEED(sigaltstack(&wanted, NULL) == 0);
    struct sigaction action = {.sa_handler = on_usr1, .sa_flags = SA_ONSTACK};
    NEED(sigaction(SIGUSR1, &action, NULL) == 0);
    scenario_ready();
    scenario_wait_moved();

    NEED(sigaltstack(NULL, &now) == 0);
    CHECK(now.ss_sp == stack && now.ss_size == sizeof stack && now.ss_flags == 0,
          "%p, %zu bytes, flags %#x", now.ss_sp, now.ss_size, now.ss_flags);
    NEED(raise(SIGUSR1) == 0);
    CHECK(on_it, "the handler ran on the common stack");
    go = 1;
    NEED(pthread_join(thread, NULL) == 0);
    CHECK(others.ss_flags == SS_DISABLE, "the thread's flags are %#x", others.ss_flags);
    return scenario_end();
}
