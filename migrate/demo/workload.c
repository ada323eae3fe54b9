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
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "heap.h"
#include "vectors.h"

enum { PAGE_BYTES = 4096, GAPS = 768 };

#define CONTROL_ADDRESS 0x10000000000ULL
#define MAGIC 0x31444c4b524f574dULL  // "MWORKLD1" in memory

enum { COMMAND_NONE, COMMAND_VERIFY, COMMAND_QUIT, COMMAND_FORGET_GAPS };
enum { ANSWER_NONE, ANSWER_GOOD, ANSWER_WRONG };

struct gap {
    uint64_t start_ns, end_ns;  // the two beats around it, CLOCK_MONOTONIC
};

// Little-endian, no padding; workload.py reads it by these offsets.
struct control {
    uint64_t magic;
    uint32_t ready;    // 1 as soon as the memory is filled
    uint32_t command;  // written from outside; back to 0 when it has been answered
    uint32_t answer;
    uint32_t threads;
    uint32_t vector_bits;  // 128, 256 or 512: the registers that the checks keep busy
    uint32_t quitting;
    uint64_t answers;  // how many commands have been answered
    uint64_t heap_address, heap_bytes;
    uint64_t period_ns, rate_bytes_per_s;
    uint64_t beats, last_beat_ns;
    uint64_t gap_version;  // odd while `longest` is being written
    struct gap longest;
    uint64_t gap_threshold_ns;  // longer ones go into `gaps`
    uint64_t gaps_seen;         // the next goes to gaps[gaps_seen % GAPS]
    uint64_t pages_written;
    uint64_t checksum;  // over all memory, kept up with every write
    uint64_t vector_rounds;
    uint64_t timerfd_ticks;  // every 20 ms
    uint64_t signals;        // every 10 ms; those that came late together count too
    // What went wrong, all zero in a good life.
    uint64_t interrupted;      // EINTR where no handler ever runs
    uint64_t clock_backwards;  // CLOCK_MONOTONIC went back
    uint64_t vector_wrong;     // a vector, mask or control register changed
    uint64_t memory_wrong;     // pages that do not match their checksum
    uint64_t memory_wrong_at;  // the address of the first
    uint64_t timers_wrong;     // more or fewer ticks than time has passed
    uint64_t descriptors_wrong;
    uint64_t threads_wrong;  // thread-local memory changed
    uint64_t calls_failed;   // any other error that nobody expected
    uint64_t last_errno;     // of those
    uint8_t padding[PAGE_BYTES - 248];
    struct gap gaps[GAPS];
};
_Static_assert(offsetof(struct control, beats) == 72, "workload.py");
_Static_assert(offsetof(struct control, last_errno) == 240, "workload.py");
_Static_assert(offsetof(struct control, gaps) == PAGE_BYTES, "workload.py");
_Static_assert(sizeof(struct control) == 4 * PAGE_BYTES, "workload.py");

static struct control *const control = (struct control *)CONTROL_ADDRESS;

static void count(uint64_t *what, uint64_t by)
{
    __atomic_fetch_add(what, by, __ATOMIC_RELAXED);
}

static bool quitting(void)
{
    return __atomic_load_n(&control->quitting, __ATOMIC_ACQUIRE);
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

// Judge the result of a call that should have succeeded. All threads but the one with
// the handler block all signals, so none of them may ever see EINTR.
static bool succeeded(long result)
{
    if (result >= 0)
        return true;
    if (errno == EINTR) {
        count(&control->interrupted, 1);
    } else {
        count(&control->calls_failed, 1);
        control->last_errno = (uint64_t)errno;
    }
    return false;
}

static void note_gap(uint64_t start_ns, uint64_t end_ns)
{
    uint64_t gap_ns = end_ns - start_ns;
    if (gap_ns > control->longest.end_ns - control->longest.start_ns) {
        __atomic_store_n(&control->gap_version, control->gap_version + 1, __ATOMIC_SEQ_CST);
        control->longest = (struct gap){start_ns, end_ns};
        __atomic_store_n(&control->gap_version, control->gap_version + 1, __ATOMIC_SEQ_CST);
    }
    if (gap_ns > control->gap_threshold_ns) {
        control->gaps[control->gaps_seen % GAPS] = (struct gap){start_ns, end_ns};
        __atomic_store_n(&control->gaps_seen, control->gaps_seen + 1, __ATOMIC_RELEASE);
    }
}

static uint32_t forget_gaps;

static void *heartbeat(void *unused)
{
    struct timespec period = {
        .tv_sec = (time_t)(control->period_ns / 1000000000),
        .tv_nsec = (long)(control->period_ns % 1000000000),
    };
    control->last_beat_ns = now_ns();
    while (!quitting()) {
        succeeded(nanosleep(&period, NULL));
        uint64_t now = now_ns();
        if (now < control->last_beat_ns)
            count(&control->clock_backwards, 1);
        else
            note_gap(control->last_beat_ns, now);
        control->last_beat_ns = now;
        control->beats++;
        if (__atomic_exchange_n(&forget_gaps, 0, __ATOMIC_ACQ_REL)) {
            control->longest = (struct gap){now, now};
            control->gaps_seen = 0;
        }
    }
    return unused;
}

static struct heap heap;
static pthread_mutex_t heap_lock = PTHREAD_MUTEX_INITIALIZER;

static void *writer(void *unused)
{
    enum { BURST_MS_MAX = 10 };  // what a pause has kept us from is not made up for
    uint64_t pages_per_s = control->rate_bytes_per_s / PAGE_BYTES;
    uint64_t random = 1, last_ns = now_ns();
    double due = 0;
    while (!quitting()) {
        succeeded(poll(NULL, 0, pages_per_s ? 1 : 20));
        uint64_t now = now_ns();
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
    while (!quitting()) {
        long failed = vectors_grow(&state, control->vector_bits);
        if (failed == VECTORS_WRONG) {
            count(&control->vector_wrong, 1);
        } else if (failed) {
            errno = (int)failed;
            succeeded(-1);
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
        count(&control->signals, 1 + (uint64_t)info->si_overrun);
}

static int tick_signal(void)
{
    return SIGRTMIN + 1;
}

static void check_ticks(uint64_t ticks, uint64_t period_ms)
{
    uint64_t expected = (now_ns() - timers_started_ns) / (period_ms * 1000000);
    uint64_t off = ticks > expected ? ticks - expected : expected - ticks;
    if (off > TICKS_OFF_MAX)
        count(&control->timers_wrong, 1);
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
        succeeded(-1);
        return unused;
    }
    while (!quitting())
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

static void wait_a_little(bool descriptors)
{
    enum { WAIT_MS = 5 };
    if (!descriptors) {
        succeeded(poll(NULL, 0, WAIT_MS));
        return;
    }
    struct epoll_event event;
    int events = epoll_wait(held.epoll, &event, 1, WAIT_MS);
    uint64_t ticks;
    if (!succeeded(events) || events == 0)
        return;
    if (event.data.u64 != 0x7469636b)
        count(&control->descriptors_wrong, 1);
    else if (succeeded(read(held.timerfd, &ticks, 8)))
        control->timerfd_ticks += ticks;
}

static __thread uint64_t mine[64];  // each thread's own, found through its fs register

static void *idler(void *argument)
{
    uint64_t number = (uint64_t)(uintptr_t)argument;
    struct timespec wait = {.tv_nsec = 500000000};
    for (unsigned i = 0; i < 64; i++)
        mine[i] = heap_mix(number * 64 + i);
    while (!quitting()) {
        long woken = syscall(SYS_futex, &control->quitting, FUTEX_WAIT_PRIVATE, 0, &wait);
        if (woken < 0 && errno != ETIMEDOUT && errno != EAGAIN)
            succeeded(woken);
        for (unsigned i = 0; i < 64; i++)
            if (mine[i] != heap_mix(number * 64 + i))
                count(&control->threads_wrong, 1);
    }
    return NULL;
}

static bool all_is_well(bool descriptors)
{
    pthread_mutex_lock(&heap_lock);
    control->memory_wrong += heap_wrong_pages(&heap, &control->memory_wrong_at);
    pthread_mutex_unlock(&heap_lock);
    check_ticks(__atomic_load_n(&control->signals, __ATOMIC_RELAXED), SIGNAL_PERIOD_MS);
    if (descriptors) {
        wait_a_little(true);  // collects the ticks that came while we were summing
        check_ticks(control->timerfd_ticks, TIMERFD_PERIOD_MS);
        if (!descriptors_work())
            count(&control->descriptors_wrong, 1);
    }
    return !(control->interrupted | control->clock_backwards | control->vector_wrong |
             control->memory_wrong | control->timers_wrong | control->descriptors_wrong |
             control->threads_wrong | control->calls_failed);
}

static void answer_commands(bool descriptors)
{
    while (!quitting()) {
        wait_a_little(descriptors);
        uint32_t command = __atomic_load_n(&control->command, __ATOMIC_ACQUIRE);
        if (command == COMMAND_NONE)
            continue;
        bool good = true;
        if (command == COMMAND_FORGET_GAPS)
            __atomic_store_n(&forget_gaps, 1, __ATOMIC_RELEASE);
        else
            good = all_is_well(descriptors);
        control->answer = good ? ANSWER_GOOD : ANSWER_WRONG;
        if (command == COMMAND_QUIT)
            __atomic_store_n(&control->quitting, 1, __ATOMIC_RELEASE);
        __atomic_store_n(&control->command, COMMAND_NONE, __ATOMIC_RELEASE);
        __atomic_store_n(&control->answers, control->answers + 1, __ATOMIC_RELEASE);
    }
}

static bool start_thread(pthread_t *thread, void *(*body)(void *), uint64_t number)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN + (64 << 10));
    int error = pthread_create(thread, &attributes, body, (void *)(uintptr_t)number);
    pthread_attr_destroy(&attributes);
    errno = error;
    return error == 0;
}

static bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *number)
{
    char *end;
    errno = 0;
    *number = strtoull(text, &end, 10);
    return errno == 0 && *text >= '0' && *text <= '9' && *end == 0 && *number >= least &&
           *number <= most;
}

static bool parse_choice(const char *text, bool *choice)
{
    *choice = strcmp(text, "yes") == 0;
    return *choice || strcmp(text, "no") == 0;
}

static int fail(const char *what)
{
    fprintf(stderr, "workload: %s: %s\n", what, strerror(errno));
    return 3;
}

// Nobody outside needs to hold a pipe open for us from here on.
static bool say_ready(void)
{
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    __atomic_store_n(&control->ready, 1, __ATOMIC_RELEASE);
    return write(STDOUT_FILENO, "ready\n", 6) == 6 && dup2(null, STDOUT_FILENO) >= 0 &&
           dup2(null, STDERR_FILENO) >= 0 && close(null) == 0;
}

int main(int argc, char **argv)
{
    uint64_t size_mib, rate_mib_s, threads, period_us;
    bool huge, descriptors;
    if (argc != 7 || !parse_number(argv[1], 1, 1 << 20, &size_mib) ||
        !parse_number(argv[2], 0, 1 << 20, &rate_mib_s) ||
        !parse_number(argv[3], 5, 30000, &threads) ||
        !parse_number(argv[4], 1, 60000000, &period_us) || !parse_choice(argv[5], &huge) ||
        !parse_choice(argv[6], &descriptors)) {
        fprintf(stderr, "usage: workload SIZE_MIB RATE_MIB_S THREADS PERIOD_US "
                        "HUGE(yes|no) DESCRIPTORS(yes|no)\n");
        return 2;
    }
    void *got = mmap((void *)CONTROL_ADDRESS, sizeof *control, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != control)
        return fail("cannot map the control area");
    *control = (struct control){
        .magic = MAGIC,
        .threads = (uint32_t)threads,
        .vector_bits = vectors_widest(),
        .heap_bytes = size_mib << 20,
        .period_ns = period_us * 1000,
        .rate_bytes_per_s = rate_mib_s << 20,
        .gap_threshold_ns = period_us * 1000 * 4 > 200000 ? period_us * 1000 * 4 : 200000,
    };
    if (!heap_fill(&heap, control->heap_bytes, huge, &control->checksum))
        return fail("cannot have that much memory");
    control->heap_address = (uint64_t)(uintptr_t)heap.words;

    // Inherited by all threads; those sent to a broken thread keep their effect.
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int *s = (const int[]){SIGTERM, SIGINT, SIGHUP, SIGQUIT, 0}; *s; s++)
        sigdelset(&blocked, *s);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);

    pthread_t *started = calloc(threads - 1, sizeof *started);
    enum { HEARTBEAT, WRITER, VECTORS, TIMER, IDLER };
    void *(*const bodies[])(void *) = {heartbeat, writer, vectors, timer};
    timers_started_ns = now_ns();
    if (descriptors && !open_descriptors("/proc/self/exe"))
        return fail("cannot open the descriptors");
    for (uint64_t i = 0; i < threads - 1; i++)
        if (!started || !start_thread(&started[i], i < IDLER ? bodies[i] : idler, i))
            return fail("cannot start the threads");
    if (!say_ready())
        return fail("cannot say that it is ready");

    answer_commands(descriptors);
    syscall(SYS_futex, &control->quitting, FUTEX_WAKE_PRIVATE, INT_MAX, NULL);
    pthread_kill(started[TIMER], tick_signal());  // should its timer have been lost
    for (uint64_t i = 0; i < threads - 1; i++)
        pthread_join(started[i], NULL);
    return control->answer == ANSWER_GOOD && !control->threads_wrong ? 0 : 3;
}
