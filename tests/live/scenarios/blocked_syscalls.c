// Threads that block in every way there is: none notices that it was stopped, and a
// sleep that is cut short by a signal knows how much of it is left. With an argument,
// sockets too.
#define _GNU_SOURCE
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "scenario.h"

enum { LONG_S = 1000, LONG_MS = LONG_S * 1000 };

static struct timespec left[3];
static int pipes[2], sockets[2], event, epolls[2];
static uint32_t word;

static const struct timespec long_time = {LONG_S, 0};

// The C library's nanosleep(3) is clock_nanosleep(2).
static long sleep_without_rest(void) { return syscall(SYS_nanosleep, &long_time, NULL); }
static long sleep_with_rest(void)
{
    return syscall(SYS_nanosleep, &long_time, &left[0]);
}
static long sleep_in_place(void)
{
    left[1] = long_time;
    return syscall(SYS_nanosleep, &left[1], &left[1]);
}
static long clock_sleep(void)
{
    errno = clock_nanosleep(CLOCK_BOOTTIME, 0, &long_time, &left[2]);
    return errno ? -1 : 0;
}
static long clock_sleep_absolute(void)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += LONG_S;
    errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL);
    return errno ? -1 : 0;
}
static long poll_for_long(void)
{
    return poll(&(struct pollfd){.fd = pipes[0], .events = POLLIN}, 1, LONG_MS);
}
static long poll_for_ever(void)
{
    return poll(&(struct pollfd){.fd = pipes[0], .events = POLLIN}, 1, -1);
}
static long futex_for_long(void)
{
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &long_time, NULL, 0);
}
static long futex_until(void)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += LONG_S;
    return syscall(SYS_futex, &word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &end,
                   NULL, ~0u);
}
static long futex_for_ever(void)
{
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0);
}
static long epoll_for_long(void)
{
    struct epoll_event got;
    return epoll_wait(epolls[0], &got, 1, 3 * LONG_MS);
}
static long epoll_for_ever(void)
{
    struct epoll_event got;
    return epoll_wait(epolls[1], &got, 1, -1);
}
static long wait_for_signal(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    // Longer than the sleeps, like epoll_wait: nothing else would tell them apart.
    return sigtimedwait(&set, NULL, &(struct timespec){2 * LONG_S, 0}) == SIGUSR2 ? 1 : -1;
}
static long receive(void)
{
    char byte;
    return recv(sockets[0], &byte, 1, 0);
}
static long read_event(void)
{
    uint64_t count;
    return read(event, &count, sizeof count) == sizeof count;
}
static long receive_with_timeout(void)
{
    char byte;
    return recv(sockets[1], &byte, 1, 0);
}
static long pause_for_ever(void) { return pause(); }

static const struct call {
    const char *name;
    long (*block)(void);
    int answer; // 0: broken off by a signal in the end; -2: gives 0; else what it gives
} calls[] = {
    {"nanosleep", sleep_without_rest, 0},
    {"nanosleep, rest", sleep_with_rest, 0},
    {"nanosleep, rest in place", sleep_in_place, 0},
    {"clock_nanosleep", clock_sleep, 0},
    {"clock_nanosleep, absolute", clock_sleep_absolute, 0},
    {"poll", poll_for_long, 1},
    {"poll, endless", poll_for_ever, 1},
    {"futex", futex_for_long, -2},
    {"futex, absolute", futex_until, -2},
    {"futex, endless", futex_for_ever, -2},
    {"epoll_wait", epoll_for_long, 1},
    {"epoll_wait, endless", epoll_for_ever, 1},
    {"sigtimedwait", wait_for_signal, 1},
    {"eventfd", read_event, 1},
    {"pause", pause_for_ever, 0},
    {"recv", receive, 1},
    {"recv, SO_RCVTIMEO", receive_with_timeout, 1},
};
enum { CALLS = sizeof calls / sizeof *calls, SOCKET_CALLS = 2 };

static struct {
    pthread_t thread;
    volatile pid_t tid;
    volatile int returned;
    long result;
    int error;
} state[CALLS];

static void *run(void *argument)
{
    long i = (long)argument;
    state[i].tid = syscall(SYS_gettid);
    errno = 0;
    state[i].result = calls[i].block();
    state[i].error = errno;
    state[i].returned = 1;
    return NULL;
}

static void on_usr1(int number) { (void)number; }

// Whether /proc says that a thread sleeps in a system call.
static int sleeps(pid_t tid)
{
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task/%d/syscall", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    long length = read(fd, text, sizeof text - 1);
    close(fd);
    return length > 0 && strncmp(text, "running", 7) != 0;
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    sigset_t mask;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    NEED(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
    NEED(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_usr1}, NULL) == 0);
    NEED(pipe2(pipes, O_CLOEXEC) == 0);
    int with_sockets = argc > 2, pairs[2][2];
    int count = with_sockets ? CALLS : CALLS - SOCKET_CALLS;
    for (int i = 0; with_sockets && i < 2; i++) {
        struct timeval timeout = {i ? LONG_S : 0, 0};
        NEED(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pairs[i]) == 0);
        sockets[i] = pairs[i][0];
        NEED(setsockopt(sockets[i], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) ==
             0);
    }
    for (int i = 0; i < 2; i++) {
        NEED((epolls[i] = epoll_create1(EPOLL_CLOEXEC)) >= 0);
        struct epoll_event wanted = {.events = EPOLLIN};
        NEED(epoll_ctl(epolls[i], EPOLL_CTL_ADD, pipes[0], &wanted) == 0);
    }
    NEED((event = eventfd(0, EFD_CLOEXEC)) >= 0);
    for (long i = 0; i < count; i++)
        NEED(pthread_create(&state[i].thread, NULL, run, (void *)i) == 0);
    for (int i = 0; i < count; i++)
        while (!state[i].tid || !sleeps(state[i].tid))
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    scenario_ready();
    scenario_wait_moved();

    for (int i = 0; i < count; i++)
        CHECK(!state[i].returned, "%s returned %ld, %s", calls[i].name, state[i].result,
              strerror(state[i].error));
    NEED(write(pipes[1], "x", 1) == 1);
    for (int i = 0; with_sockets && i < 2; i++)
        NEED(write(pairs[i][1], "x", 1) == 1);
    NEED(write(event, &(uint64_t){1}, sizeof(uint64_t)) == sizeof(uint64_t));
    syscall(SYS_futex, &word, FUTEX_WAKE, 100, NULL, NULL, 0);
    for (int i = 0; i < count; i++) {
        if (calls[i].answer == 0 && !state[i].returned)
            NEED(pthread_kill(state[i].thread, SIGUSR1) == 0);
        if (calls[i].block == wait_for_signal && !state[i].returned)
            NEED(pthread_kill(state[i].thread, SIGUSR2) == 0);
        NEED(pthread_join(state[i].thread, NULL) == 0);
        long wanted = calls[i].answer == -2 ? 0 : calls[i].answer ? calls[i].answer : -1;
        CHECK(state[i].result == wanted, "%s gave %ld, %s", calls[i].name,
              state[i].result, strerror(state[i].error));
        if (calls[i].answer == 0)
            CHECK(state[i].error == EINTR, "%s: %s", calls[i].name,
                  strerror(state[i].error));
    }
    for (int i = 0; i < 3; i++)
        CHECK(left[i].tv_sec < LONG_S && left[i].tv_sec > LONG_S / 3,
              "sleep %d has %ld s left", i, left[i].tv_sec);
    return scenario_end();
}
