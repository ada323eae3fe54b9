// What blocked_syscalls.c does not have: threads that wait in calls which take their
// timeout from memory or a socket, for children, for locks and for descriptors.
//
// With "stay" also those that wait for what cannot go to another host. With a number as
// argv[3], the timeouts in milliseconds: then all are awaited, and how late each was is
// said (for a person; no test asks for it).
#define _GNU_SOURCE
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "scenario.h"

static long timeout_ms = 1000000;
static int ready[2], full[2], epoll, timer, signals, locked, watch, terminal;
static int waiting[2], stuffed[2], listening, queue = -1, semaphores = -1;
static aio_context_t requests;
static pid_t children[2];
static uint32_t word;
static sigset_t usr2;

static long one_if(int success) { return success ? 1 : -1; }
static struct timespec span(void)
{
    return (struct timespec){timeout_ms / 1000, timeout_ms % 1000 * 1000000};
}
static struct timeval limit(void)
{
    return (struct timeval){timeout_ms / 1000, timeout_ms % 1000 * 1000};
}
static struct timespec end_on(clockid_t clock)
{
    struct timespec now, more = span();
    clock_gettime(clock, &now);
    now.tv_sec += more.tv_sec + (now.tv_nsec + more.tv_nsec) / 1000000000;
    now.tv_nsec = (now.tv_nsec + more.tv_nsec) % 1000000000;
    return now;
}
static struct pollfd *one(void)
{
    static _Thread_local struct pollfd fd;
    fd = (struct pollfd){.fd = ready[0], .events = POLLIN};
    return &fd;
}
static fd_set *set(void)
{
    static _Thread_local fd_set fds;
    FD_ZERO(&fds);
    FD_SET(ready[0], &fds);
    return &fds;
}

static long do_nanosleep(void)
{
    struct timespec time = span();
    return syscall(SYS_nanosleep, &time, NULL);
}
static long do_clock_nanosleep(void)
{
    struct timespec time = span();
    return syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &time, NULL);
}
static long do_clock_nanosleep_until(void)
{
    struct timespec end = end_on(CLOCK_REALTIME);
    return syscall(SYS_clock_nanosleep, CLOCK_REALTIME, TIMER_ABSTIME, &end, NULL);
}
static long do_poll(void) { return poll(one(), 1, timeout_ms); }
static long do_ppoll(void)
{
    struct timespec time = span();
    return syscall(SYS_ppoll, one(), 1, &time, NULL, 0);
}
static long do_ppoll_for_ever(void) { return syscall(SYS_ppoll, one(), 1, NULL, NULL, 0); }
static long do_select(void)
{
    struct timeval time = limit();
    return syscall(SYS_select, ready[0] + 1, set(), NULL, NULL, &time);
}
static long do_select_for_ever(void)
{
    return syscall(SYS_select, ready[0] + 1, set(), NULL, NULL, NULL);
}
static long do_pselect(void)
{
    struct timespec time = span();
    return syscall(SYS_pselect6, ready[0] + 1, set(), NULL, NULL, &time, NULL);
}
static long do_epoll_wait(void)
{
    struct epoll_event got;
    return syscall(SYS_epoll_wait, epoll, &got, 1, timeout_ms);
}
static long do_epoll_pwait(void)
{
    struct epoll_event got;
    return syscall(SYS_epoll_pwait, epoll, &got, 1, timeout_ms, NULL, 8);
}
static long do_epoll_pwait2(void)
{
    struct epoll_event got;
    struct timespec time = span();
    return syscall(SYS_epoll_pwait2, epoll, &got, 1, &time, NULL, 8);
}
static long do_futex(void)
{
    struct timespec time = span();
    return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &time, NULL, 0);
}
static long futex_waitv(struct timespec *end)
{
    struct futex_waitv {
        uint64_t value, address;
        uint32_t flags, reserved;
    } waiter = {0, (uintptr_t)&word, 2 /* FUTEX_32 */, 0};
    return syscall(449, &waiter, 1, 0, end, CLOCK_MONOTONIC);
}
static long do_futex_waitv(void)
{
    struct timespec end = end_on(CLOCK_MONOTONIC);
    return futex_waitv(&end);
}
static long do_futex_waitv_for_ever(void) { return futex_waitv(NULL); }
static long do_recv(void)
{
    char byte;
    return recv(waiting[0], &byte, 1, 0);
}
static long do_send(void) { return send(stuffed[0], &word, 1, MSG_NOSIGNAL); }
static long do_sigtimedwait(void)
{
    struct timespec time = span();
    return one_if(syscall(SYS_rt_sigtimedwait, &usr2, NULL, &time, 8) == SIGUSR2);
}
static long do_sigsuspend(void)
{
    sigset_t others;
    sigfillset(&others);
    sigdelset(&others, SIGUSR1);
    return sigsuspend(&others);
}
static long do_wait4(void) { return one_if(wait4(children[0], NULL, 0, NULL) == children[0]); }
static long do_waitid(void)
{
    siginfo_t info = {0};
    return one_if(waitid(P_PID, children[1], &info, WEXITED) == 0 && info.si_pid == children[1]);
}
static long do_flock(void)
{
    int own = open("flocked", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return one_if(own >= 0 && flock(own, LOCK_EX) == 0);
}
static long do_setlkw(void)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    return one_if(fcntl(locked, F_SETLKW, &lock) == 0);
}
static long do_read_pipe(void)
{
    char byte;
    return read(full[0], &byte, 1);
}
static long do_read_timerfd(void)
{
    uint64_t ticks;
    return one_if(read(timer, &ticks, sizeof ticks) == sizeof ticks);
}
static long do_read_signalfd(void)
{
    struct signalfd_siginfo info;
    return one_if(read(signals, &info, sizeof info) == sizeof info);
}
static long do_read_inotify(void)
{
    char events[4096];
    return one_if(read(watch, events, sizeof events) > 0);
}
static long do_read_terminal(void)
{
    char line[8];
    return one_if(read(terminal, line, sizeof line) > 0);
}
static long do_accept(void) { return one_if(accept(listening, NULL, NULL) >= 0); }
static long do_msgrcv(void)
{
    struct { long type; char text[8]; } got;
    return one_if(msgrcv(queue, &got, sizeof got.text, 0, 0) >= 0);
}
static long do_semtimedop(void)
{
    struct timespec time = span();
    struct sembuf take = {.sem_num = 0, .sem_op = -1};
    return one_if(semtimedop(semaphores, &take, 1, &time) == 0);
}
static long do_io_getevents(void)
{
    struct io_event got;
    struct timespec time = span();
    return syscall(SYS_io_getevents, requests, 1, 1, &got, &time);
}

enum how { WAKES, BROKEN }; // how it ends if its timeout does not

static const struct call {
    const char *name;
    long (*block)(void);
    enum how how;
    int is_timed;
    int stays; // it waits for what cannot go
} calls[] = {
    {"nanosleep", do_nanosleep, BROKEN, 1, 0},
    {"clock_nanosleep", do_clock_nanosleep, BROKEN, 1, 0},
    {"clock_nanosleep, absolute", do_clock_nanosleep_until, BROKEN, 1, 0},
    {"poll", do_poll, WAKES, 1, 0},
    {"ppoll", do_ppoll, WAKES, 1, 0},
    {"ppoll, endless", do_ppoll_for_ever, WAKES, 0, 0},
    {"select", do_select, WAKES, 1, 0},
    {"select, endless", do_select_for_ever, WAKES, 0, 0},
    {"pselect", do_pselect, WAKES, 1, 0},
    {"epoll_wait", do_epoll_wait, WAKES, 1, 0},
    {"epoll_pwait", do_epoll_pwait, WAKES, 1, 0},
    {"epoll_pwait2", do_epoll_pwait2, WAKES, 1, 0},
    {"futex", do_futex, BROKEN, 1, 0},
    {"futex_waitv", do_futex_waitv, BROKEN, 1, 0},
    {"futex_waitv, endless", do_futex_waitv_for_ever, BROKEN, 0, 0},
    {"recv, SO_RCVTIMEO", do_recv, WAKES, 1, 0},
    {"send, SO_SNDTIMEO", do_send, WAKES, 1, 0},
    {"sigtimedwait", do_sigtimedwait, WAKES, 1, 0},
    {"sigsuspend", do_sigsuspend, BROKEN, 0, 0},
    {"wait4", do_wait4, WAKES, 0, 0},
    {"waitid", do_waitid, WAKES, 0, 0},
    {"flock", do_flock, WAKES, 0, 0},
    {"F_SETLKW", do_setlkw, WAKES, 0, 0},
    {"read, pipe", do_read_pipe, WAKES, 0, 0},
    {"read, timerfd", do_read_timerfd, WAKES, 0, 0},
    {"read, signalfd", do_read_signalfd, WAKES, 0, 0},
    {"read, inotify", do_read_inotify, WAKES, 0, 1},
    {"read, terminal", do_read_terminal, WAKES, 0, 1},
    {"accept, SO_RCVTIMEO", do_accept, WAKES, 1, 1},
    {"msgrcv", do_msgrcv, BROKEN, 0, 1},
    {"semtimedop", do_semtimedop, BROKEN, 1, 1},
    {"io_getevents", do_io_getevents, BROKEN, 1, 1},
};
enum { CALLS = sizeof calls / sizeof *calls };

static struct {
    pthread_t thread;
    volatile pid_t tid;
    volatile int returned;
    long result;
    int error;
    double took_ms;
} state[CALLS];

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static void *run(void *argument)
{
    long i = (long)argument;
    double began_ms = now_ms();
    state[i].tid = syscall(SYS_gettid);
    errno = 0;
    state[i].result = calls[i].block();
    state[i].error = errno;
    state[i].took_ms = now_ms() - began_ms;
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

// One that holds locks, and is waited for.
static pid_t bear(int which)
{
    int told[2];
    char byte;
    NEED(pipe(told) == 0);
    pid_t pid = fork();
    NEED(pid >= 0);
    if (pid == 0) {
        close(told[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
        if (which == 0)
            NEED(fcntl(locked, F_SETLK, &lock) == 0);
        int own = open("flocked", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (which == 1)
            NEED(own >= 0 && flock(own, LOCK_EX) == 0);
        NEED(write(told[1], "!", 1) == 1);
        close(told[1]);
        for (;;)
            pause();
    }
    close(told[1]);
    NEED(read(told[0], &byte, 1) == 1);
    close(told[0]);
    return pid;
}

static void pair_with_timeout(int pair[2], int type, int option)
{
    struct timeval time = limit();
    NEED(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair) == 0);
    NEED(setsockopt(pair[0], SOL_SOCKET, option, &time, sizeof time) == 0);
}

static void arrange_what_stays(void)
{
    struct timeval time = limit();
    struct sockaddr_un any = {.sun_family = AF_UNIX};
    NEED((watch = inotify_init1(IN_CLOEXEC)) >= 0);
    NEED(inotify_add_watch(watch, ".", IN_CREATE) >= 0);
    NEED((terminal = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC)) >= 0);
    NEED((listening = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
    NEED(bind(listening, (void *)&any, sizeof any.sun_family) == 0);
    NEED(listen(listening, 1) == 0);
    NEED(setsockopt(listening, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0);
    // A semaphore that others see would keep them from being moved.
    NEED(unshare(CLONE_NEWIPC) == 0);
    NEED((queue = msgget(IPC_PRIVATE, 0600)) >= 0);
    NEED((semaphores = semget(IPC_PRIVATE, 1, 0600)) >= 0);
    NEED(syscall(SYS_io_setup, 1, &requests) == 0);
}

static void arrange(void)
{
    NEED((locked = open("locked", O_RDWR | O_CREAT | O_CLOEXEC, 0600)) >= 0);
    children[0] = bear(0);
    children[1] = bear(1);
    NEED(pipe2(ready, O_CLOEXEC) == 0 && pipe2(full, O_CLOEXEC) == 0);
    NEED((epoll = epoll_create1(EPOLL_CLOEXEC)) >= 0);
    struct epoll_event wanted = {.events = EPOLLIN};
    NEED(epoll_ctl(epoll, EPOLL_CTL_ADD, ready[0], &wanted) == 0);
    NEED((timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)) >= 0);
    sigset_t rt;
    sigemptyset(&rt);
    sigaddset(&rt, SIGRTMIN + 3);
    NEED((signals = signalfd(-1, &rt, SFD_CLOEXEC)) >= 0);
    pair_with_timeout(waiting, SOCK_STREAM, SO_RCVTIMEO);
    pair_with_timeout(stuffed, SOCK_DGRAM, SO_SNDTIMEO);
    char many[1000] = "";
    while (send(stuffed[0], many, sizeof many, MSG_DONTWAIT) > 0)
        ;
    NEED(errno == EAGAIN);
}

// Have everything come that they wait for.
static void end_all(int stays)
{
    char many[1000], name[] = "./made-XXXXXX";
    NEED(write(ready[1], "x", 1) == 1 && write(full[1], "x", 1) == 1);
    NEED(write(waiting[1], "x", 1) == 1);
    while (recv(stuffed[1], many, sizeof many, MSG_DONTWAIT) > 0)
        ;
    struct itimerspec at_once = {.it_value = {0, 1}};
    NEED(timerfd_settime(timer, 0, &at_once, NULL) == 0);
    NEED(kill(getpid(), SIGRTMIN + 3) == 0);
    NEED(kill(children[0], SIGKILL) == 0 && kill(children[1], SIGKILL) == 0);
    if (!stays)
        return;
    int made = mkstemp(name);
    NEED(made >= 0 && unlink(name) == 0);
    struct sockaddr_un there;
    socklen_t size = sizeof there;
    int caller = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    NEED(getsockname(listening, (void *)&there, &size) == 0);
    NEED(caller >= 0 && connect(caller, (void *)&there, size) == 0);
    char path[64] = "";
    NEED(grantpt(terminal) == 0 && unlockpt(terminal) == 0);
    NEED(ptsname_r(terminal, path, sizeof path) == 0);
    int other = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    NEED(other >= 0 && write(other, "x\n", 2) == 2);
}

int main(int argc, char **argv)
{
    scenario_begin(argc, argv);
    int stays = argc > 2 && !strcmp(argv[2], "stay"), measured = argc > 3;
    if (measured)
        timeout_ms = atol(argv[3]);
    sigset_t mask;
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    mask = usr2;
    sigaddset(&mask, SIGRTMIN + 3);
    NEED(sigprocmask(SIG_BLOCK, &mask, NULL) == 0);
    NEED(sigaction(SIGUSR1, &(struct sigaction){.sa_handler = on_usr1}, NULL) == 0);
    arrange();
    if (stays)
        arrange_what_stays();
    for (long i = 0; i < CALLS; i++)
        if (stays || !calls[i].stays)
            NEED(pthread_create(&state[i].thread, NULL, run, (void *)i) == 0);
    for (int i = 0; i < CALLS; i++)
        while (state[i].thread && (!state[i].tid || !sleeps(state[i].tid)))
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    scenario_ready();
    scenario_wait_moved();

    for (int i = 0; i < CALLS; i++) {
        if (!state[i].thread)
            continue;
        if (measured && calls[i].is_timed) {
            pthread_join(state[i].thread, NULL);
            scenario_say("%s: %+.1f ms, %ld %s", calls[i].name,
                         state[i].took_ms - timeout_ms, state[i].result,
                         strerror(state[i].error));
        } else {
            CHECK(!state[i].returned, "%s returned %ld, %s", calls[i].name,
                  state[i].result, strerror(state[i].error));
        }
    }
    end_all(stays);
    for (int i = 0; i < CALLS; i++) {
        if (!state[i].thread || (measured && calls[i].is_timed))
            continue;
        if (calls[i].how == BROKEN && !state[i].returned)
            NEED(pthread_kill(state[i].thread, SIGUSR1) == 0);
        if (calls[i].block == do_sigtimedwait && !state[i].returned)
            NEED(pthread_kill(state[i].thread, SIGUSR2) == 0);
        NEED(pthread_join(state[i].thread, NULL) == 0);
        long wanted = calls[i].how == BROKEN ? -1 : 1;
        CHECK(state[i].result == wanted, "%s gave %ld, %s", calls[i].name,
              state[i].result, strerror(state[i].error));
        if (calls[i].how == BROKEN)
            CHECK(state[i].error == EINTR, "%s: %s", calls[i].name,
                  strerror(state[i].error));
    }
    return scenario_end();
}
