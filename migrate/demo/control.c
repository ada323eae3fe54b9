// The side of a workload that faces outwards; see control.h.

#define _GNU_SOURCE
#include "control.h"
#include "heap.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MAGIC 0x31444c4b524f574dULL  // "MWORKLD1" in memory

enum { COMMAND_NONE, COMMAND_VERIFY, COMMAND_QUIT, COMMAND_FORGET_GAPS };
enum { ANSWER_NONE, ANSWER_GOOD, ANSWER_WRONG };

_Static_assert(offsetof(struct control, beats) == 72, "workload.py");
_Static_assert(offsetof(struct control, last_errno) == 240, "workload.py");
_Static_assert(offsetof(struct control, gaps) == CONTROL_PAGE_BYTES, "workload.py");
_Static_assert(sizeof(struct control) == 4 * CONTROL_PAGE_BYTES, "workload.py");

bool control_map(uint64_t period_us)
{
    void *got = mmap((void *)CONTROL_ADDRESS, sizeof *control, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != control)
        return false;
    control->magic = MAGIC;
    control->period_ns = period_us * 1000;
    control->gap_threshold_ns = period_us * 1000 * 4 > 200000 ? period_us * 1000 * 4 : 200000;
    return true;
}

void control_count(uint64_t *what, uint64_t by)
{
    __atomic_fetch_add(what, by, __ATOMIC_RELAXED);
}

bool control_quitting(void)
{
    return __atomic_load_n(&control->quitting, __ATOMIC_ACQUIRE);
}

uint64_t control_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

bool control_succeeded(long result)
{
    if (result >= 0)
        return true;
    if (errno == EINTR) {
        control_count(&control->interrupted, 1);
    } else {
        control_count(&control->calls_failed, 1);
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
        control->gaps[control->gaps_seen % CONTROL_GAPS] = (struct gap){start_ns, end_ns};
        __atomic_store_n(&control->gaps_seen, control->gaps_seen + 1, __ATOMIC_RELEASE);
    }
}

static uint32_t forget_gaps;

void *control_heartbeat(void *unused)
{
    struct timespec period = {
        .tv_sec = (time_t)(control->period_ns / 1000000000),
        .tv_nsec = (long)(control->period_ns % 1000000000),
    };
    control->last_beat_ns = control_now_ns();
    while (!control_quitting()) {
        control_succeeded(nanosleep(&period, NULL));
        uint64_t now = control_now_ns();
        if (now < control->last_beat_ns)
            control_count(&control->clock_backwards, 1);
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

static __thread uint64_t mine[64];  // each thread's own, found through its fs register

void *control_idle(void *argument)
{
    uint64_t number = (uint64_t)(uintptr_t)argument;
    struct timespec wait = {.tv_nsec = 500000000};
    for (unsigned i = 0; i < 64; i++)
        mine[i] = heap_mix(number * 64 + i);
    while (!control_quitting()) {
        long woken = syscall(SYS_futex, &control->quitting, FUTEX_WAIT_PRIVATE, 0, &wait);
        if (woken < 0 && errno != ETIMEDOUT && errno != EAGAIN)
            control_succeeded(woken);
        for (unsigned i = 0; i < 64; i++)
            if (mine[i] != heap_mix(number * 64 + i))
                control_count(&control->threads_wrong, 1);
    }
    return NULL;
}

void control_answer(bool (*all_is_well)(void))
{
    uint32_t command = __atomic_load_n(&control->command, __ATOMIC_ACQUIRE);
    if (command == COMMAND_NONE)
        return;
    bool good = true;
    if (command == COMMAND_FORGET_GAPS)
        __atomic_store_n(&forget_gaps, 1, __ATOMIC_RELEASE);
    else
        good = all_is_well();
    control->answer = good ? ANSWER_GOOD : ANSWER_WRONG;
    if (command == COMMAND_QUIT) {
        __atomic_store_n(&control->quitting, 1, __ATOMIC_RELEASE);
        syscall(SYS_futex, &control->quitting, FUTEX_WAKE_PRIVATE, INT_MAX, NULL);
    }
    __atomic_store_n(&control->command, COMMAND_NONE, __ATOMIC_RELEASE);
    __atomic_store_n(&control->answers, control->answers + 1, __ATOMIC_RELEASE);
}

bool control_faultless(void)
{
    return !(control->interrupted | control->clock_backwards | control->vector_wrong |
             control->memory_wrong | control->timers_wrong | control->descriptors_wrong |
             control->threads_wrong | control->calls_failed);
}

int control_exit_code(void)
{
    return control->answer == ANSWER_GOOD && !control->threads_wrong ? 0 : 3;
}

bool control_start_thread(pthread_t *thread, void *(*body)(void *), uint64_t number)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, PTHREAD_STACK_MIN + (64 << 10));
    int error = pthread_create(thread, &attributes, body, (void *)(uintptr_t)number);
    pthread_attr_destroy(&attributes);
    errno = error;
    return error == 0;
}

void control_block_signals(void)
{
    // Those sent to a broken thread keep their effect.
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int *s = (const int[]){SIGTERM, SIGINT, SIGHUP, SIGQUIT, 0}; *s; s++)
        sigdelset(&blocked, *s);
    pthread_sigmask(SIG_BLOCK, &blocked, NULL);
}

bool control_say_ready(void)
{
    int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    __atomic_store_n(&control->ready, 1, __ATOMIC_RELEASE);
    return write(STDOUT_FILENO, "ready\n", 6) == 6 && dup2(null, STDOUT_FILENO) >= 0 &&
           dup2(null, STDERR_FILENO) >= 0 && close(null) == 0;
}

bool control_parse_number(const char *text, uint64_t least, uint64_t most,
                          uint64_t *number)
{
    char *end;
    errno = 0;
    *number = strtoull(text, &end, 10);
    return errno == 0 && *text >= '0' && *text <= '9' && *end == 0 && *number >= least &&
           *number <= most;
}

int control_fail(const char *what)
{
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
    return 3;
}
