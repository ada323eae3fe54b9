// An epoll set waits for what it waited for, as it did: level, edge and one shot, in
// another set, and under two numbers.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

enum {
    SET = 10,
    LEVEL = 11,
    EDGE = 12,
    ONCE = 13,     // armed
    SPENT = 14,    // has reported
    PIPE = 15,     // and 16
    OUTER = 17,    // watches SET
    TWICE = 18,    // the same eventfd as LEVEL, registered under this number too
    SPENT_PIPE = 20, // and 21: has reported, and nothing is in it now
};

static void place(int fd, int number)
{
    NEED(fd >= 0 && dup2(fd, number) == number);
    close(fd);
}

static void watch(int set, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {.events = events, .data.u64 = data};
    NEED(epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) == 0);
}

static void arrange(void)
{
    struct epoll_event event;
    place(epoll_create1(0), SET);
    place(epoll_create1(EPOLL_CLOEXEC), OUTER);
    place(eventfd(0, EFD_NONBLOCK), LEVEL);
    place(eventfd(0, EFD_NONBLOCK), EDGE);
    place(eventfd(0, EFD_NONBLOCK), ONCE);
    place(eventfd(0, EFD_NONBLOCK), SPENT);
    int ends[2];
    NEED(pipe(ends) == 0);
    place(ends[0], PIPE);
    place(ends[1], PIPE + 1);
    NEED(pipe(ends) == 0);
    place(ends[0], SPENT_PIPE);
    place(ends[1], SPENT_PIPE + 1);
    NEED(dup2(LEVEL, TWICE) == TWICE);

    watch(SET, SPENT, EPOLLIN | EPOLLONESHOT, 14);
    uint64_t one = 1;
    NEED(write(SPENT, &one, sizeof one) == sizeof one);
    NEED(epoll_wait(SET, &event, 1, 0) == 1 && event.data.u64 == 14);
    watch(SET, SPENT_PIPE, EPOLLIN | EPOLLONESHOT, 20);
    char byte;
    NEED(write(SPENT_PIPE + 1, "x", 1) == 1);
    NEED(epoll_wait(SET, &event, 1, 0) == 1 && event.data.u64 == 20);
    NEED(read(SPENT_PIPE, &byte, 1) == 1);

    watch(SET, LEVEL, EPOLLIN, 0x1122334455667788);
    watch(SET, TWICE, EPOLLIN | EPOLLOUT | EPOLLET, 18);
    watch(SET, EDGE, EPOLLIN | EPOLLET, 12);
    watch(SET, ONCE, EPOLLIN | EPOLLONESHOT, 13);
    watch(SET, PIPE, EPOLLIN, 15);
    watch(OUTER, SET, EPOLLIN, 17);
    epoll_wait(SET, &event, 1, 0); // the first edge of TWICE, which is writable
}

// Waits until nothing new is ready; gives back the bits of the numbers that were.
static unsigned ready(void)
{
    struct epoll_event events[16];
    unsigned found = 0;
    int count = epoll_wait(SET, events, 16, 0);
    for (int i = 0; i < count; i++)
        found |= 1u << (events[i].data.u64 < 32 ? events[i].data.u64 : LEVEL);
    return found;
}

static void check(void)
{
    struct epoll_event event;
    uint64_t one = 1;
    // At most the edge of what is writable comes once more.
    unsigned first = ready();
    CHECK((first & ~(1u << TWICE)) == 0, "%#x", first);
    CHECK(epoll_wait(OUTER, &event, 1, 0) == 0, "%#lx", (long)event.data.u64);

    NEED(write(LEVEL, &one, sizeof one) == sizeof one);
    CHECK(epoll_wait(OUTER, &event, 1, 0) == 1 && event.data.u64 == 17, "outer");
    CHECK(ready() == (1u << LEVEL | 1u << TWICE), "level, and its twin");
    CHECK(ready() == 1u << LEVEL, "level again");
    struct epoll_event events[16];
    CHECK(epoll_wait(SET, events, 16, 0) == 1 &&
              events[0].data.u64 == 0x1122334455667788,
          "%#lx", (long)events[0].data.u64);
    NEED(read(LEVEL, &one, sizeof one) == sizeof one);

    NEED(write(EDGE, &one, sizeof one) == sizeof one);
    CHECK(ready() & 1u << EDGE, "edge");
    CHECK(!(ready() & 1u << EDGE), "edge again");

    NEED(write(ONCE, &one, sizeof one) == sizeof one);
    CHECK(ready() & 1u << ONCE, "once");
    NEED(write(ONCE, &one, sizeof one) == sizeof one);
    CHECK(!(ready() & 1u << ONCE), "once, again");

    NEED(write(SPENT, &one, sizeof one) == sizeof one);
    CHECK(!(ready() & 1u << SPENT), "spent");
    NEED(write(SPENT_PIPE + 1, "x", 1) == 1);
    CHECK(!(ready() & 1u << SPENT_PIPE), "spent pipe");
    event = (struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 14};
    CHECK(epoll_ctl(SET, EPOLL_CTL_MOD, SPENT, &event) == 0, "%s", strerror(errno));
    CHECK(ready() & 1u << SPENT, "armed again");

    NEED(write(PIPE + 1, "x", 1) == 1);
    CHECK(ready() & 1u << PIPE, "pipe");
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
