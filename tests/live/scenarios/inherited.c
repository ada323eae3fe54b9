// What a family talks through: descriptions that parent and child share, pipes between
// them with what lies in them, and things that count or tell for both.
#define _GNU_SOURCE
#include "scenario.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <signal.h>

static int down[2], up[2], packets[2];
static int between[2], both[2], last[2];
static int shared, twice, event, epoll, timer, signals;

static uint64_t read_number(int fd)
{
    uint64_t number = 0;
    if (read(fd, &number, sizeof number) != sizeof number)
        return UINT64_MAX;
    return number;
}

// Whether a datagram, or what lies in a stream, is this.
static int takes(int fd, const char *wanted)
{
    char text[32] = "";
    long size = recv(fd, text, sizeof text, MSG_DONTWAIT);
    if (size == (long)strlen(wanted) && !memcmp(text, wanted, size))
        return 1;
    scenario_say("fd %d gave %ld, %s", fd, size, text);
    return 0;
}

static pid_t maker(int fd)
{
    struct ucred who = {0};
    socklen_t size = sizeof who;
    NEED(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) == 0);
    return who.pid;
}

static void talk_as_child(void)
{
    CHECK(takes(between[1], "to the child"), "its end of a pair");
    CHECK(takes(last[0], "one") && takes(last[0], "two"), "both ends are its own");
    CHECK(maker(last[0]) == getppid(), "pid %d made it", maker(last[0]));
    CHECK(takes(both[1], "for both"), "an end that both have");
    NEED(send(both[0], "by the child", 12, 0) == 12);
}

__attribute__((noreturn)) static void child(void)
{
    char text[8] = "";
    close(down[1]);
    close(up[0]);
    close(between[0]);
    // It sleeps in here while it is moved: the pipe is empty by then.
    NEED(read(down[0], text, 4) == 4);
    NEED(write(up[1], "here", 4) == 4);
    NEED(read(down[0], text, 2) == 2);
    CHECK(!memcmp(text, "go", 2), "it came: %.2s", text);
    off_t at = lseek(shared, 0, SEEK_CUR);
    CHECK(at == 7, "the shared file is at %ld", (long)at);
    CHECK(lseek(twice, 0, SEEK_CUR) == 3, "the other is at %ld",
          (long)lseek(twice, 0, SEEK_CUR));
    NEED(lseek(shared, 100, SEEK_SET) == 100);
    NEED(eventfd_write(event, 40) == 0);
    NEED(fcntl(shared, F_SETFL, O_APPEND) == 0);
    struct epoll_event found = {0};
    int count = epoll_wait(epoll, &found, 1, 0);
    CHECK(count == 1 && found.data.u64 == 4711, "the set has %d: %lu", count,
          (unsigned long)found.data.u64);
    struct stat one, other;
    CHECK(fstat(0, &one) == 0 && fstat(down[0], &other) == 0 && one.st_ino == other.st_ino,
          "fd 0 is not the pipe any more");
    talk_as_child();
    NEED(write(up[1], "done", 4) == 4);
    _exit(scenario_failures != 0);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    char path[] = "/tmp/inherited-XXXXXX", text[8] = "";
    snprintf(path, sizeof path, "./inherited.XXXXXX");
    shared = mkstemp(path);
    NEED(shared >= 0 && write(shared, "0123456789", 10) == 10);
    NEED(pipe(down) == 0 && pipe(up) == 0 && pipe2(packets, O_DIRECT | O_NONBLOCK) == 0);
    NEED(fcntl(up[0], F_SETPIPE_SZ, 262144) == 262144);
    NEED((event = eventfd(2, 0)) >= 0 && (epoll = epoll_create1(0)) >= 0);
    NEED((timer = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0);
    struct itimerspec in = {.it_value = {3600, 0}};
    NEED(timerfd_settime(timer, 0, &in, NULL) == 0);
    sigset_t usr1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    NEED(sigprocmask(SIG_BLOCK, &usr1, NULL) == 0);
    NEED((signals = signalfd(-1, &usr1, 0)) >= 0);
    struct epoll_event watch = {.events = EPOLLIN, .data.u64 = 4711};
    NEED(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &watch) == 0);
    NEED((twice = open(path, O_RDONLY)) >= 0 && lseek(twice, 3, SEEK_SET) == 3);
    NEED(dup2(down[0], 0) == 0);

    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, between) == 0);
    NEED(socketpair(AF_UNIX, SOCK_STREAM, 0, both) == 0);
    NEED(socketpair(AF_UNIX, SOCK_DGRAM, 0, last) == 0);
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0)
        child();
    close(0);
    close(down[0]);
    close(up[1]);
    NEED(send(between[0], "to the child", 12, 0) == 12);
    NEED(send(between[1], "to the parent", 13, 0) == 13);
    NEED(send(both[0], "for both", 8, 0) == 8);
    NEED(send(last[1], "one", 3, 0) == 3 && send(last[1], "two", 3, 0) == 3);
    close(between[1]);
    close(last[0]);
    close(last[1]);
    NEED(write(packets[1], "one", 3) == 3 && write(packets[1], "three", 5) == 5);
    NEED(write(down[1], "1234", 4) == 4 && read(up[0], text, 4) == 4);
    NEED(lseek(shared, 7, SEEK_SET) == 7);
    int own = open(path, O_RDONLY);
    NEED(own >= 0 && lseek(own, 1, SEEK_SET) == 1);
    scenario_ready();
    scenario_wait_moved();

    CHECK(lseek(shared, 0, SEEK_CUR) == 7, "the file is at %ld",
          (long)lseek(shared, 0, SEEK_CUR));
    NEED(write(down[1], "go", 2) == 2);
    CHECK(read(up[0], text, 4) == 4 && !memcmp(text, "done", 4), "it says %.4s", text);
    CHECK(lseek(shared, 0, SEEK_CUR) == 100, "the child moved it to %ld",
          (long)lseek(shared, 0, SEEK_CUR));
    CHECK(fcntl(shared, F_GETFL) & O_APPEND, "the flags are %#x", fcntl(shared, F_GETFL));
    CHECK(lseek(own, 0, SEEK_CUR) == 1, "its own is at %ld", (long)lseek(own, 0, SEEK_CUR));
    uint64_t counted = read_number(event);
    CHECK(counted == 42, "the counter is %lu", (unsigned long)counted);
    CHECK(fcntl(up[0], F_GETPIPE_SZ) == 262144, "the pipe holds %d",
          fcntl(up[0], F_GETPIPE_SZ));
    CHECK(read(packets[0], text, 8) == 3 && read(packets[0], text, 8) == 5,
          "packets have changed");
    struct itimerspec left;
    CHECK(timerfd_gettime(timer, &left) == 0 && left.it_value.tv_sec > 3000,
          "the timer has %ld s", (long)left.it_value.tv_sec);
    CHECK(takes(between[0], "to the parent"), "its end of a pair");
    CHECK(takes(both[1], "by the child"), "an end that both have");
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the child ended as %#x", status);
    CHECK(read(up[0], text, 1) == 0, "nobody else has the writing end");
    CHECK(takes(between[0], ""), "nobody else has the child's end");
    NEED(kill(getpid(), SIGUSR1) == 0);
    struct signalfd_siginfo info;
    CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1,
          "no signal came");
    unlink(path);
    return scenario_end();
}
