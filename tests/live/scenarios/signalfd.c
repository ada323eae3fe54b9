// Signals of its set can be read from a signalfd, others cannot.
#define _GNU_SOURCE
#include "scenario.h"

#include <signal.h>
#include <sys/signalfd.h>

enum { FD = 10 };

static sigset_t set_of(int one, int other)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, one);
    sigaddset(&set, other);
    return set;
}

static void arrange(void)
{
    sigset_t mask = set_of(SIGUSR1, SIGRTMIN + 3);
    int fd = signalfd(-1, &mask, SFD_NONBLOCK);
    NEED(fd >= 0 && dup2(fd, FD) == FD);
    close(fd);
}

static void check(void)
{
    struct signalfd_siginfo found;
    raise(SIGUSR2);
    CHECK(read(FD, &found, sizeof found) < 0 && errno == EAGAIN, "%s", strerror(errno));
    raise(SIGRTMIN + 3);
    CHECK(read(FD, &found, sizeof found) == sizeof found, "%s", strerror(errno));
    CHECK(found.ssi_signo == (unsigned)SIGRTMIN + 3, "%u", found.ssi_signo);
    raise(SIGUSR1);
    CHECK(read(FD, &found, sizeof found) == sizeof found, "%s", strerror(errno));
    CHECK(found.ssi_signo == SIGUSR1, "%u", found.ssi_signo);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    sigset_t blocked = set_of(SIGUSR1, SIGUSR2);
    sigaddset(&blocked, SIGRTMIN + 3);
    NEED(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    if (!scenario_bare)
        arrange();
    scenario_ready();
    scenario_wait_moved();
    check();
    return scenario_end();
}
