// A handler, its flags and its mask; an ignored signal; a default one.
#include <signal.h>

#include "scenario.h"

static volatile sig_atomic_t caught, blocked_meanwhile;

static void on_usr1(int number, siginfo_t *info, void *context)
{
    (void)context;
    sigset_t mask;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    caught = number == SIGUSR1 && info->si_value.sival_int == 7;
    blocked_meanwhile = sigismember(&mask, SIGUSR2) && !sigismember(&mask, SIGUSR1);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    struct sigaction action = {.sa_sigaction = on_usr1,
                               .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER};
    sigaddset(&action.sa_mask, SIGUSR2);
    NEED(sigaction(SIGUSR1, &action, NULL) == 0);
    NEED(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    NEED(signal(SIGRTMAX, SIG_IGN) != SIG_ERR);
    scenario_ready();
    scenario_wait_moved();

    struct sigaction now;
    NEED(sigaction(SIGUSR1, NULL, &now) == 0);
    CHECK(now.sa_sigaction == on_usr1, "handler %p", (void *)now.sa_sigaction);
    CHECK((now.sa_flags & ~0x04000000) == action.sa_flags, "flags %#x", now.sa_flags);
    CHECK(sigismember(&now.sa_mask, SIGUSR2) == 1, "SIGUSR2 is not in the mask");
    NEED(sigaction(SIGPIPE, NULL, &now) == 0);
    CHECK(now.sa_handler == SIG_IGN, "SIGPIPE: %p", (void *)now.sa_handler);
    NEED(sigaction(SIGRTMAX, NULL, &now) == 0);
    CHECK(now.sa_handler == SIG_IGN, "SIGRTMAX: %p", (void *)now.sa_handler);
    NEED(sigaction(SIGUSR2, NULL, &now) == 0);
    CHECK(now.sa_handler == SIG_DFL, "SIGUSR2: %p", (void *)now.sa_handler);
    NEED(sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 7}) == 0);
    CHECK(caught, "SIGUSR1 was not handled");
    CHECK(blocked_meanwhile, "another mask was in force in the handler");
    return scenario_end();
}
