// Signals sent to the process, blocked: each must be there once, with its value.
#include <signal.h>

#include "scenario.h"

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    sigset_t all;
    sigfillset(&all);
    NEED(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
    NEED(kill(getpid(), SIGUSR1) == 0);
    for (int i = 1; i <= 3; i++)
        NEED(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i}) == 0);
    NEED(sigqueue(getpid(), SIGTERM, (union sigval){.sival_int = 9}) == 0);
    scenario_ready();
    scenario_wait_moved();

    sigset_t pending;
    NEED(sigpending(&pending) == 0);
    CHECK(sigismember(&pending, SIGUSR1) == 1, "SIGUSR1 is not pending");
    struct timespec now = {0, 0};
    sigset_t one;
    siginfo_t info;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN);
    for (int i = 1; i <= 3; i++) {
        int number = sigtimedwait(&one, &info, &now);
        CHECK(number == SIGRTMIN, "no. %d: %d", i, number);
        CHECK(info.si_value.sival_int == i, "no. %d has value %d", i,
              info.si_value.sival_int);
        CHECK(info.si_code == SI_QUEUE, "no. %d has code %d", i, info.si_code);
        CHECK(info.si_pid == getpid(), "no. %d is from %d", i, info.si_pid);
    }
    CHECK(sigtimedwait(&one, &info, &now) == -1, "one too many");
    sigaddset(&one, SIGTERM);
    CHECK(sigtimedwait(&one, &info, &now) == SIGTERM, "SIGTERM is gone");
    CHECK(info.si_value.sival_int == 9, "SIGTERM has value %d", info.si_value.sival_int);
    sigaddset(&one, SIGUSR1);
    CHECK(sigtimedwait(&one, &info, &now) == SIGUSR1, "SIGUSR1 is gone");
    CHECK(info.si_code == SI_USER, "SIGUSR1 has code %d", info.si_code);
    return scenario_end();
}
