// A program that notices when it is not itself any more: the target of the demo.
//
//   workload SIZE_MIB RATE_MIB_S THREADS PERIOD_US HUGE DESCRIPTORS
//
//   SIZE_MIB     memory that it fills and can verify at any time
//   RATE_MIB_S   pages it writes to, in MiB per second: each write changes 8 bytes
//                at random and counts for the whole 4 KiB page that it makes dirty
//   THREADS      all threads, five at least; those above five wait on a futex
//   PERIOD_US    between two beats of the heartbeat
//   HUGE         yes: ask for huge pages; no: refuse them
//   DESCRIPTORS  yes: hold an epoll, a timerfd, an eventfd, a pipe and a file too
//
// It prints "ready" when its memory is filled, and then lets go of stdout and stderr.
// All else is read from, and asked through, the control area: private memory at a fixed
// address, for process_vm_readv(2) or /proc/PID/mem. Exit codes: 0 it was told to quit
// and all is well, 2 wrong arguments, 3 something is not as it was.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "control.h"
#include "heap.h"
#include "vectors.h"

static struct heap heap;
static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

static void *writer(void *unused)
{
    enum { BURST_MS_MAX = 10 };  // what a pause has kept us from is not made up for
    uint64_t pages_per_s = control->rate_bytes_per_s / CONTROL_PAGE_BYTES;
    uint64_t random = 1, last_ns = control_now_ns();
    double due = 0;
    while (!control_quitting()) {
        control_succeeded(poll(NULL, 0, pages_per_s ? 1 : 20));
        uint64_t now = control_now_ns();
        due += (double)(now - last_ns) * 1e-9 * (double)pages_per_s;
        last_ns = now;
        double most = (double)pages_per_s * BURST_MS_MAX / 1000 + 1;
        if (due > most)
            due = most;
        pthread_mutex_lock(&heap_lock);
        for (; due >= 1; due -= 1) {
            heap_write_at_random(&heap, &random);
            control->pages_written++;
        }
        pthread_mutex_unlock(&heap_lock);
    }
    return unused;
}

// Keeps numbers in vector registers only, across system calls.
static void *vectors(void *unused)
{
    struct vectors state;
    vectors_init(&state);
    while (!control_quitting()) {
        long failed = vectors_grow(&state, control->vector_bits);
        if (failed == VECTORS_WRONG) {
            control_count(&control->vector_wrong, 1);
        } else if (failed) {
            errno = (int)failed;
            control_succeeded(-1);
        }
        control->vector_rounds += VECTORS_ROUNDS;
    }
    return unused;
}

enum { SIGNAL_PERIOD_MS = 10, TIMERFD_PERIOD_MS = 20 };
// What a timer may be off by. A timer counts what time has passed, not what we did in
// it, so this has nothing to do with how busy the machine is, but with moves: each may
// lose the fraction of a period.
enum { TICKS_OFF_MAX = 50 };

static uint64_t timers_started_ns;

static void on_tick(int number, siginfo_t *info, void *context)
{
    (void)number;
    (void)context;
    if (info->si_code == SI_TIMER)
        control_count(&control->signals, 1 + (uint64_t)info->si_overrun);
}

static int tick_signal(void)
{
    return SIGRTMIN + 1;
}

static void check_ticks(uint64_t ticks, uint64_t period_ms)
{
    uint64_t expected = (control_now_ns() - timers_started_ns) / (period_ms * 1000000);
    uint64_t off = ticks > expected ? ticks - expected : expected - ticks;
    if (off > TICKS_OFF_MAX)
        control_count(&control->timers_wrong, 1);
}

// Sleeps until signals come; the only thread that lets them in.
static void *timer(void *unused)
{
    struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = tick_signal()};
    struct timespec period = {.tv_nsec = SIGNAL_PERIOD_MS * 1000000};
    struct itimerspec every = {period, period};
    timer_t id;
    sigset_t open;
    sigfillset(&open);
    sigdelset(&open, tick_signal());
    if (sigaction(tick_signal(), &action, NULL) < 0 ||
        timer_create(CLOCK_MONOTONIC, &event, &id) < 0 ||
        timer_settime(id, 0, &every, NULL) < 0) {
        control_succeeded(-1);
        return unused;
    }
    while (!control_quitting())
        sigsuspend(&open);  // EINTR is what it is for
    timer_delete(id);
    return unused;
}

static struct {
    int epoll, timerfd, eventfd, pipe_out, pipe_in, file;
    uint64_t pipe_word;  // what waits in the pipe
    off_t file_offset;
} held;

static bool open_descriptors(const char *program)
{
    struct timespec period = {.tv_nsec = TIMERFD_PERIOD_MS * 1000000};
    struct itimerspec every = {period, period};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return false;
    held.pipe_out = ends[0];
    held.pipe_in = ends[1];
    held.epoll = epoll_create1(EPOLL_CLOEXEC);
    held.timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    held.eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    held.file = open(program, O_RDONLY | O_CLOEXEC);
    held.file_offset = 5;
    held.pipe_word = heap_mix(1);
    struct epoll_event on_timer = {.events = EPOLLIN, .data.u64 = 0x7469636b};
    struct epoll_event on_event = {.events = EPOLLIN, .data.u64 = 0x6576656e};
    return held.epoll >= 0 && held.timerfd >= 0 && held.eventfd >= 0 && held.file >= 0 &&
           epoll_ctl(held.epoll, EPOLL_CTL_ADD, held.timerfd, &on_timer) == 0 &&
           epoll_ctl(held.epoll, EPOLL_CTL_ADD, held.eventfd, &on_event) == 0 &&
           lseek(held.file, held.file_offset, SEEK_SET) == held.file_offset &&
           write(held.pipe_in, &held.pipe_word, 8) == 8 &&
           timerfd_settime(held.timerfd, 0, &every, NULL) == 0;
}

// Each of them still is what it was, and works.
static bool descriptors_work(void)
{
    uint64_t word = 0, added = 7, counted = 0;
    char byte;
    bool good = read(held.pipe_out, &word, 8) == 8 && word == held.pipe_word;
    held.pipe_word = heap_mix(held.pipe_word);
    good &= write(held.pipe_in, &held.pipe_word, 8) == 8;
    good &= write(held.eventfd, &added, 8) == 8;
    good &= read(held.eventfd, &counted, 8) == 8 && counted == added;
    good &= lseek(held.file, 0, SEEK_CUR) == held.file_offset;
    good &= read(held.file, &byte, 1) == 1;
    good &= lseek(held.file, held.file_offset, SEEK_SET) == held.file_offset;
    return good;
}

static bool descriptors;

static void wait_a_little(void)
{
    enum { WAIT_MS = 5 };
    if (!descriptors) {
        control_succeeded(poll(NULL, 0, WAIT_MS));
        return;
    }
    struct epoll_event event;
    int events = epoll_wait(held.epoll, &event, 1, WAIT_MS);
    uint64_t ticks;
    if (!control_succeeded(events) || events == 0)
        return;
    if (event.data.u64 != 0x7469636b)
        control_count(&control->descriptors_wrong, 1);
    else if (control_succeeded(read(held.timerfd, &ticks, 8)))
        control->timerfd_ticks += ticks;
}

static bool all_is_well(void)
{
    pthread_mutex_lock(&heap_lock);
    control->memory_wrong += heap_wrong_pages(&heap, &control->memory_wrong_at);
    pthread_mutex_unlock(&heap_lock);
    check_ticks(__atomic_load_n(&control->signals, __ATOMIC_RELAXED), SIGNAL_PERIOD_MS);
    if (descriptors) {
        wait_a_little();  // collects the ticks that came while we were summing
        check_ticks(control->timerfd_ticks, TIMERFD_PERIOD_MS);
        if (!descriptors_work())
            control_count(&control->descriptors_wrong, 1);
    }
    return control_faultless();
}

static bool parse_choice(const char *text, bool *choice)
{
    *choice = strcmp(text, "yes") == 0;
    return *choice || strcmp(text, "no") == 0;
}

int main(int argc, char **argv)
{
    uint64_t size_mib, rate_mib_s, threads, period_us;
    bool huge;
    if (argc != 7 || !control_parse_number(argv[1], 1, 1 << 20, &size_mib) ||
        !control_parse_number(argv[2], 0, 1 << 20, &rate_mib_s) ||
        !control_parse_number(argv[3], 5, 30000, &threads) ||
        !control_parse_number(argv[4], 1, 60000000, &period_us) ||
        !parse_choice(argv[5], &huge) || !parse_choice(argv[6], &descriptors)) {
        fprintf(stderr, "usage: workload SIZE_MIB RATE_MIB_S THREADS PERIOD_US "
                        "HUGE(yes|no) DESCRIPTORS(yes|no)\n");
        return 2;
    }
    if (!control_map(period_us))
        return control_fail("cannot map the control area");
    control->threads = (uint32_t)threads;
    control->vector_bits = vectors_widest();
    control->heap_bytes = size_mib << 20;
    control->rate_bytes_per_s = rate_mib_s << 20;
    if (!heap_fill(&heap, control->heap_bytes, huge, &control->checksum))
        return control_fail("cannot have that much memory");
    control->heap_address = (uint64_t)(uintptr_t)heap.words;

    control_block_signals();
    pthread_t *started = calloc(threads - 1, sizeof *started);
    enum { HEARTBEAT, WRITER, VECTORS, TIMER, IDLERS };
    void *(*const bodies[])(void *) = {control_heartbeat, writer, vectors, timer};
    timers_started_ns = control_now_ns();
    if (descriptors && !open_descriptors("/proc/self/exe"))
        return control_fail("cannot open the descriptors");
    for (uint64_t i = 0; i < threads - 1; i++)
        if (!started ||
            !control_start_thread(&started[i], i < IDLERS ? bodies[i] : control_idle, i))
            return control_fail("cannot start the threads");
    if (!control_say_ready())
        return control_fail("cannot say that it is ready");

    while (!control_quitting()) {
        wait_a_little();
        control_answer(all_is_well);
    }
    pthread_kill(started[TIMER], tick_signal());  // should its timer have been lost
    for (uint64_t i = 0; i < threads - 1; i++)
        pthread_join(started[i], NULL);
    return control_exit_code();
}
