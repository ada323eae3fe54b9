// What every workload shows and takes: private memory at a fixed address, for
// process_vm_readv(2) or /proc/PID/mem, so that it can be asked wherever it lives.

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum { CONTROL_PAGE_BYTES = 4096, CONTROL_GAPS = 768 };

#define CONTROL_ADDRESS 0x10000000000ULL

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
    uint64_t gaps_seen;         // the next goes to gaps[gaps_seen % CONTROL_GAPS]
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
    uint8_t padding[CONTROL_PAGE_BYTES - 248];
    struct gap gaps[CONTROL_GAPS];
};

static struct control *const control = (struct control *)CONTROL_ADDRESS;

// Map it, all zero but for the period of the heartbeat; false with errno set.
bool control_map(uint64_t period_us);

// The body of a thread that beats until the end, and notes the gaps between its beats.
void *control_heartbeat(void *unused);

// The body of a thread with nothing to do but to stay itself; `number` tells it apart.
void *control_idle(void *number);

// A thread with a small stack; false with errno set.
bool control_start_thread(pthread_t *thread, void *(*body)(void *), uint64_t number);

// Have all threads started from now on take no signals but those that end us.
void control_block_signals(void);

// Print "ready", and let go of stdout and stderr: nobody outside needs to hold a pipe
// open for us from here on.
bool control_say_ready(void);

// Answer the command that was given, if one was, with what `all_is_well` finds.
void control_answer(bool (*all_is_well)(void));

bool control_quitting(void);

// Nothing of what went wrong has been counted.
bool control_faultless(void);

void control_count(uint64_t *what, uint64_t by);

// Judge the result of a call that should have succeeded. All threads but one with a
// handler block all signals, so none of them may ever see EINTR.
bool control_succeeded(long result);

uint64_t control_now_ns(void);

// A whole number of a command line, within bounds.
bool control_parse_number(const char *text, uint64_t least, uint64_t most,
                          uint64_t *number);

// When all threads have ended: 0 if all was well when we were told to quit, else 3.
int control_exit_code(void);

// Complain of what errno says; the exit code.
int control_fail(const char *what);
