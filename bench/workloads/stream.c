// A thread that does nothing but read memory, and sometimes writes to it.
//
//   stream SIZE_MIB WRITES_PER_S PERIOD_US
//
//   SIZE_MIB      should be more than the caches hold
//   WRITES_PER_S  so many words are changed, at random
//   PERIOD_US     between two beats of the heartbeat
//
// It sums the memory up in pieces of 64 KiB, one after another; each piece has to have the
// sum that it had. What is metered (meter.h) is the time that a piece takes.
// It is asked through its control area (control.h). Exit codes: 0 it was told to quit and
// all is well, 2 wrong arguments, 3 something is not as it was.

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "control.h"
#include "heap.h"
#include "meter.h"

enum { PIECE_BYTES = 64 << 10, PIECE_WORDS = PIECE_BYTES / 8 };

static uint64_t *words, *sums, pieces;

static uint64_t sum_of(uint64_t piece)
{
    const uint64_t *first = words + piece * PIECE_WORDS;
    uint64_t sum = 0;
    for (unsigned i = 0; i < PIECE_WORDS; i++)
        sum += first[i];
    return sum;
}

static bool fill(uint64_t bytes)
{
    pieces = bytes / PIECE_BYTES;
    words = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sums = calloc(pieces, sizeof *sums);
    if (words == MAP_FAILED || !sums)
        return false;
    for (uint64_t i = 0; i < pieces * PIECE_WORDS; i++)
        words[i] = heap_mix(i + 1);
    for (uint64_t piece = 0; piece < pieces; piece++)
        sums[piece] = sum_of(piece);
    return true;
}

static void look_at(uint64_t piece)
{
    if (sum_of(piece) == sums[piece])
        return;
    control_count(&control->memory_wrong, 1);
    control->memory_wrong_at = (uint64_t)(uintptr_t)(words + piece * PIECE_WORDS);
}

static void write_at_random(uint64_t random)
{
    uint64_t i = (uint64_t)(((unsigned __int128)random * pieces * PIECE_WORDS) >> 64);
    uint64_t word = heap_mix(random ^ words[i]);
    sums[i / PIECE_WORDS] += word - words[i];
    words[i] = word;
    control->pages_written++;
}

static bool all_is_well(void)
{
    for (uint64_t piece = 0; piece < pieces; piece++)
        look_at(piece);
    return control_faultless();
}

static void read_until_told(uint64_t writes_per_s)
{
    uint64_t random = 1, written = 0, piece = 0, began_ns = control_now_ns();
    uint64_t now = began_ns;
    while (!control_quitting()) {
        uint64_t before = now;
        double due = (double)(now - began_ns) * 1e-9 * (double)writes_per_s;
        for (; (double)written < due; written++) {
            random = heap_mix(random + 0x632be59bd9b4e019ULL);
            write_at_random(random);
        }
        look_at(piece);
        piece = (piece + 1) % pieces;
        now = control_now_ns();
        meter_add(now - before, now);
        control_answer(all_is_well);
    }
}

int main(int argc, char **argv)
{
    uint64_t size_mib, writes_per_s, period_us;
    if (argc != 4 || !control_parse_number(argv[1], 1, 1 << 20, &size_mib) ||
        !control_parse_number(argv[2], 0, 100000000, &writes_per_s) ||
        !control_parse_number(argv[3], 1, 60000000, &period_us)) {
        fprintf(stderr, "usage: stream SIZE_MIB WRITES_PER_S PERIOD_US\n");
        return 2;
    }
    if (!control_map(period_us) || !meter_map())
        return control_fail("cannot map the control area");
    control->threads = 2;
    if (!fill(size_mib << 20))
        return control_fail("cannot have that much memory");
    control->heap_address = (uint64_t)(uintptr_t)words;
    control->heap_bytes = pieces * PIECE_BYTES;
    control_block_signals();
    pthread_t heartbeat;
    if (!control_start_thread(&heartbeat, control_heartbeat, 0))
        return control_fail("cannot start the heartbeat");
    if (!control_say_ready())
        return control_fail("cannot say that it is ready");
    read_until_told(writes_per_s);
    pthread_join(heartbeat, NULL);
    return control_exit_code();
}
