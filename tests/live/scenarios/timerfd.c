// Timers go on with the time that they had left; what went off and was not read yet
// is not lost.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/timerfd.h>

enum { SLOW = 10, FAST = 11, DATED = 12, IDLE = 13, GONE_OFF = 14 };

#define DATE 4102444800 // the first second of 2100

static void timer_at(int number, int clock, int flags, struct itimerspec setting)
{
    int fd = timerfd_create(clock, TFD_NONBLOCK);
    NEED(fd >= 0 && dup2(fd, number) == number);
    close(fd);
    NEED(timerfd_settime(number, flags, &setting, NULL) == 0);
}

static void arrange(void)
{
    timer_at(SLOW, CLOCK_MONOTONIC, 0, (struct itimerspec){{7, 500}, {3600, 0}});
    timer_at(FAST, CLOCK_MONOTONIC, 0, (struct itimerspec){{0, 5000000}, {0, 5000000}});
    timer_at(DATED, CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET,
             (struct itimerspec){{0, 0}, {DATE, 0}});
    timer_at(IDLE, CLOCK_BOOTTIME, 0, (struct itimerspec){{0, 0}, {0, 0}});
    timer_at(GONE_OFF, CLOCK_MONOTONIC, 0, (struct itimerspec){{0, 0}, {0, 1000000}});
    struct timespec moment = {0, 20000000};
    nanosleep(&moment, NULL);
}

static void check(void)
{
    struct itimerspec left;
    uint64_t ticks = 0;
    CHECK(timerfd_gettime(SLOW, &left) == 0, "%s", strerror(errno));
    CHECK(left.it_value.tv_sec > 3000 && left.it_value.tv_sec < 3600, "%ld",
          (long)left.it_value.tv_sec);
    CHECK(left.it_interval.tv_sec == 7 && left.it_interval.tv_nsec == 500, "%ld",
          (long)left.it_interval.tv_sec);
    CHECK(read(SLOW, &ticks, sizeof ticks) < 0 && errno == EAGAIN, "%s",
          strerror(errno));

    CHECK(read(FAST, &ticks, sizeof ticks) == sizeof ticks && ticks >= 4, "%llu",
          (unsigned long long)ticks);
    CHECK(fcntl(FAST, F_SETFL, 0) == 0, "%s", strerror(errno));
    CHECK(read(FAST, &ticks, sizeof ticks) == sizeof ticks && ticks >= 1, "it stopped");

    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    CHECK(timerfd_gettime(DATED, &left) == 0, "%s", strerror(errno));
    long date = now.tv_sec + left.it_value.tv_sec;
    CHECK(date >= DATE - 2 && date <= DATE + 2, "%ld", date);

    CHECK(timerfd_gettime(IDLE, &left) == 0, "%s", strerror(errno));
    CHECK(!left.it_value.tv_sec && !left.it_value.tv_nsec, "%ld",
          (long)left.it_value.tv_sec);

    CHECK(read(GONE_OFF, &ticks, sizeof ticks) == sizeof ticks && ticks == 1, "%llu",
          (unsigned long long)ticks);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    if (!scenario_bare)
        arrange();
    scenario_ready();
    scenario_wait_moved();
    check();
    return scenario_end();
}
