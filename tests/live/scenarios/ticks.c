// Timers tick on while the process is frozen: afterwards as many have been counted as
// time has passed, whether they were waiting to be taken or fell due in the freeze.
#define _GNU_SOURCE
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

#include "scenario.h"

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum { PERIOD_NS = 1000000, ONCE = 250, ONCE_APART_NS = 8000000 };
// The time of an expiry is read from outside, microseconds late.
enum { OFF_MAX = 1 };

static int64_t start_ns;

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static struct timespec at(int64_t ns)
{
    return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static timer_t make(clockid_t clock, int notify, int number, int value)
{
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = number};
    event.sigev_value.sival_int = value;
    event.sigev_notify_thread_id = getpid();
    timer_t id;
    NEED(timer_create(clock, &event, &id) == 0);
    return id;
}

// Ticks every period from start_ns on.
static void tick(timer_t id)
{
    struct itimerspec when = {{0, PERIOD_NS}, at(start_ns + PERIOD_NS)};
    NEED(timer_settime(id, TIMER_ABSTIME, &when, NULL) == 0);
}

static volatile int64_t handled;
static volatile int went_off[ONCE];

static void on_tick(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    handled += 1 + info->si_overrun;
}

static void on_once(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    went_off[info->si_value.sival_int]++;
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    NEED(sigaction(number, &action, NULL) == 0);
}

// Takes what waits of this signal; how many expiries that is.
static int64_t take(int number)
{
    struct timespec no_wait = {0, 0};
    int64_t taken = 0;
    sigset_t only;
    siginfo_t info;
    sigemptyset(&only);
    sigaddset(&only, number);
    while (sigtimedwait(&only, &info, &no_wait) == number)
        taken += 1 + info.si_overrun;
    return taken;
}

static int64_t take_fd(int fd)
{
    uint64_t ticks = 0;
    return read(fd, &ticks, sizeof ticks) == sizeof ticks ? (int64_t)ticks : 0;
}

// What `counted` of it may be: `before` and `after` are times around the counting.
#define CHECK_TICKS(what, counting)                                                     \
    do {                                                                                \
        int64_t before = clock_ns(CLOCK_MONOTONIC), counted = (counting);               \
        int64_t after = clock_ns(CLOCK_MONOTONIC);                                      \
        int64_t least = (before - start_ns) / PERIOD_NS - OFF_MAX;                      \
        int64_t most = (after - start_ns) / PERIOD_NS + OFF_MAX;                        \
        CHECK(counted >= least && counted <= most, "%s: %ld, not %ld to %ld", what,     \
              counted, least, most);                                                    \
    } while (0)

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    const int process = SIGRTMIN + 1, thread = SIGRTMIN + 2, dated = SIGRTMIN + 3;
    const int soon = SIGRTMIN + 4, once = SIGRTMIN + 5;
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, process);
    sigaddset(&blocked, thread);
    sigaddset(&blocked, dated);
    sigaddset(&blocked, SIGALRM);
    NEED(sigprocmask(SIG_BLOCK, &blocked, NULL) == 0);
    handle(soon, on_tick);
    handle(once, on_once);

    timer_t of_process = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, process, 0);
    timer_t of_thread = make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, thread, 0);
    timer_t by_date = make(CLOCK_REALTIME, SIGEV_SIGNAL, dated, 0);
    timer_t handler = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, soon, 0);
    int unread = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int often_read = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int wall = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK);
    NEED(unread >= 0 && often_read >= 0 && wall >= 0);
    timer_t single[ONCE];
    for (int i = 0; i < ONCE; i++)
        single[i] = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, once, i);

    start_ns = clock_ns(CLOCK_MONOTONIC);
    int64_t ahead_ns = clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC);
    tick(of_process);
    tick(of_thread);
    tick(handler);
    struct itimerspec when = {{0, PERIOD_NS}, at(start_ns + PERIOD_NS)};
    NEED(timerfd_settime(unread, TFD_TIMER_ABSTIME, &when, NULL) == 0);
    NEED(timerfd_settime(often_read, TFD_TIMER_ABSTIME, &when, NULL) == 0);
    when.it_value = at(start_ns + PERIOD_NS - clock_ns(CLOCK_MONOTONIC) + PERIOD_NS);
    NEED(timerfd_settime(wall, 0, &when, NULL) == 0);
    int64_t missing = 1; // it was set to begin one period later
    when.it_value = at(start_ns + PERIOD_NS + ahead_ns);
    NEED(timer_settime(by_date, TIMER_ABSTIME, &when, NULL) == 0);
    for (int i = 0; i < ONCE; i++) {
        struct itimerspec then = {{0, 0}, at(start_ns + (i + 1L) * ONCE_APART_NS)};
        NEED(timer_settime(single[i], TIMER_ABSTIME, &then, NULL) == 0);
    }
    struct itimerval alarm = {{0, PERIOD_NS / 1000}, {0, PERIOD_NS / 1000}};
    NEED(setitimer(ITIMER_REAL, &alarm, NULL) == 0);
    scenario_ready();
    int64_t taken = 0;
    while (!scenario_moved) {
        struct timespec moment = {0, 300000};
        nanosleep(&moment, NULL);
        taken += take_fd(often_read);
    }

    CHECK_TICKS("queued to the process", take(process));
    CHECK_TICKS("queued to the thread", take(thread));
    CHECK_TICKS("queued by a date", take(dated));
    CHECK_TICKS("handled", handled);
    CHECK_TICKS("an unread timerfd", take_fd(unread));
    CHECK_TICKS("a timerfd", (taken += take_fd(often_read)));
    CHECK_TICKS("a timerfd of the wall clock", take_fd(wall) + missing);
    CHECK(take(SIGALRM) == 1, "more or less than one alarm");
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGALRM);
    int rung;
    do // the ticks that are handled interrupt it
        rung = sigtimedwait(&only, NULL, &(struct timespec){20, 0});
    while (rung < 0 && errno == EINTR);
    CHECK(rung == SIGALRM, "the alarm does not ring again");
    while (!went_off[ONCE - 1])
        nanosleep(&(struct timespec){0, PERIOD_NS}, NULL);
    for (int i = 0; i < ONCE; i++)
        CHECK(went_off[i] == 1, "timer %d went off %d times", i, went_off[i]);
    return scenario_end();
}
