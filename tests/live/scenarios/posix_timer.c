// Timers keep their ids (with gaps), their clocks, their signals and the time left.
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>

#include "scenario.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { TIMERS = 6 };

static int make(clockid_t clock, int notify, int number, int value)
{
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = number};
    event.sigev_value.sival_int = value;
    event.sigev_notify_thread_id = getpid();
    int id;
    NEED(syscall(SYS_timer_create, clock, &event, &id) == 0);
    return id;
}

static void arm(int id, time_t value_s, time_t interval_s)
{
    struct itimerspec when = {{interval_s, 5}, {value_s, 0}};
    NEED(syscall(SYS_timer_settime, id, 0, &when, NULL) == 0);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGRTMIN + 2);
    NEED(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
    int ids[TIMERS], surplus[2];
    ids[0] = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 11);
    surplus[0] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
    ids[1] = make(CLOCK_REALTIME, SIGEV_THREAD_ID, SIGUSR2, 12);
    ids[2] = make(CLOCK_BOOTTIME, SIGEV_NONE, 0, 0);
    surplus[1] = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
    ids[3] = make(CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIGUSR1, 14);
    ids[4] = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR1, 15);
    ids[5] = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGRTMIN + 2, 16);
    NEED(syscall(SYS_timer_delete, surplus[0]) == 0);
    NEED(syscall(SYS_timer_delete, surplus[1]) == 0);
    arm(ids[0], 3600, 60);
    arm(ids[1], 7200, 0);
    arm(ids[2], 3600, 0);
    arm(ids[3], 5000, 0);
    scenario_ready(); // 4 is left disarmed, and so is 5
    scenario_wait_moved();

    static const time_t left_s[TIMERS] = {3600, 7200, 3600, 5000, 0, 0};
    for (int i = 0; i < TIMERS; i++) {
        struct itimerspec now = {{0, 0}, {0, 0}};
        NEED(syscall(SYS_timer_gettime, ids[i], &now) == 0);
        CHECK(now.it_value.tv_sec <= left_s[i] &&
                  now.it_value.tv_sec >= left_s[i] - left_s[i] / 10,
              "timer %d has %ld s left of %ld", i, now.it_value.tv_sec, left_s[i]);
        CHECK(now.it_interval.tv_sec == (i == 0 ? 60 : 0), "timer %d: interval %ld", i,
              now.it_interval.tv_sec);
    }
    CHECK(syscall(SYS_timer_delete, surplus[0]) == -1, "a deleted timer is back");
    arm(ids[5], 0, 0);
    struct itimerspec soon = {{0, 0}, {0, 1000}};
    NEED(syscall(SYS_timer_settime, ids[5], 0, &soon, NULL) == 0);
    siginfo_t info;
    struct timespec patience = {20, 0};
    int number = sigtimedwait(&mask, &info, &patience);
    CHECK(number == SIGRTMIN + 2, "the timer sent %d", number);
    CHECK(info.si_code == SI_TIMER && info.si_value.sival_int == 16,
          "code %d, value %d", info.si_code, info.si_value.sival_int);
    CHECK(info.si_timerid == ids[5], "from timer %d, not %d", info.si_timerid, ids[5]);
    return scenario_end();
}
