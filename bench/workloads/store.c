// A store of keys and values with one thread that serves, in the manner of redis.
//
//   store SIZE_MIB REQUESTS_PER_S WRITES_PER_S PERIOD_US
//
//   SIZE_MIB        of values, 256 bytes each
//   REQUESTS_PER_S  0: the next one comes as soon as one is done; else they come when
//                   they are due, whether we are done or not, and wait in line
//   WRITES_PER_S    so many of the requests change a value; the others get one
//   PERIOD_US       between two beats of the heartbeat
//
// Requests are lines of text, "GET key" and "SET key value", parsed as if they had come
// through a socket. Every value can be told to be right by itself, and each GET looks.
// What is metered (meter.h) is the time from when a request was due to its reply.
// It is asked through its control area (control.h). Exit codes: 0 it was told to quit and
// all is well, 2 wrong arguments, 3 something is not as it was.

#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "control.h"
#include "heap.h"
#include "meter.h"

enum { VALUE_WORDS = 30, LINE_BYTES = 64, KEY_DIGITS = 16 };

struct entry {
    uint64_t key;  // 0: there is none
    uint64_t value[VALUE_WORDS];
    uint64_t checksum;
};
_Static_assert(sizeof(struct entry) == 256, "head of this file");

static struct entry *table;
static uint64_t entries, entries_mask;  // of the table; a power of two

static uint64_t key_of(uint64_t number)
{
    return heap_mix(number + 1) | 1;
}

static uint64_t checksum(const struct entry *entry)
{
    uint64_t sum = entry->key;
    for (unsigned i = 0; i < VALUE_WORDS; i++)
        sum = (sum ^ entry->value[i]) * 0x9e3779b97f4a7c15ULL;
    return sum;
}

static void set_value(struct entry *entry, uint64_t value)
{
    for (unsigned i = 0; i < VALUE_WORDS; i++)
        entry->value[i] = value + i;
    entry->checksum = checksum(entry);
}

// The entry of a key, or the free one where it belongs.
static struct entry *find(uint64_t key)
{
    uint64_t i = heap_mix(key) & entries_mask;
    while (table[i].key && table[i].key != key)
        i = (i + 1) & entries_mask;
    return &table[i];
}

static bool fill(uint64_t bytes)
{
    uint64_t room = 2;
    while (room * sizeof *table <= bytes)
        room *= 2;
    room /= 2;
    entries_mask = room - 1;
    entries = room / 4 * 3;  // full enough for some keys to meet
    table = mmap(NULL, room * sizeof *table, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (table == MAP_FAILED)
        return false;
    for (uint64_t number = 0; number < entries; number++) {
        struct entry *entry = find(key_of(number));
        entry->key = key_of(number);
        set_value(entry, number);
    }
    return true;
}

static void write_hex(char *to, uint64_t number)
{
    for (unsigned i = 0; i < KEY_DIGITS; i++)
        to[i] = "0123456789abcdef"[number >> (60 - 4 * i) & 15];
}

static void make_request(char *line, bool write, uint64_t random)
{
    uint64_t number = (uint64_t)(((unsigned __int128)random * entries) >> 64);
    memcpy(line, write ? "SET " : "GET ", 4);
    write_hex(line + 4, key_of(number));
    line[20] = ' ';
    write_hex(line + 21, heap_mix(random));
    line[37] = 0;
}

// Do what `line` says; the first word of the reply.
static uint64_t serve(const char *line)
{
    char *rest;
    uint64_t key = strtoull(line + 4, &rest, 16);
    struct entry *entry = find(key);
    if (entry->key != key || checksum(entry) != entry->checksum) {
        control_count(&control->memory_wrong, 1);
        control->memory_wrong_at = (uint64_t)(uintptr_t)entry;
        return 0;
    }
    if (*line == 'S') {
        set_value(entry, strtoull(rest, NULL, 16));
        control->pages_written++;
    }
    return entry->value[0];
}

static bool all_is_well(void)
{
    for (uint64_t number = 0; number < entries; number++) {
        const struct entry *entry = find(key_of(number));
        if (entry->key != key_of(number) || checksum(entry) != entry->checksum)
            control_count(&control->memory_wrong, 1);
    }
    return control_faultless();
}

static void wait_until(uint64_t due_ns)
{
    uint64_t now = control_now_ns();
    if (now >= due_ns)
        return;
    uint64_t wait_ns = due_ns - now;
    struct timespec wait = {(time_t)(wait_ns / 1000000000), (long)(wait_ns % 1000000000)};
    control_succeeded(nanosleep(&wait, NULL));
}

static void serve_until_told(uint64_t requests_per_s, uint64_t writes_per_s)
{
    char line[LINE_BYTES];
    uint64_t random = 1, replies = 0, written = 0, began_ns = control_now_ns();
    uint64_t asked = 0, now = began_ns;
    while (!control_quitting()) {
        uint64_t due_ns = now;
        if (requests_per_s) {
            unsigned __int128 after = (unsigned __int128)asked++ * 1000000000;
            due_ns = began_ns + (uint64_t)(after / requests_per_s);
            wait_until(due_ns);
        }
        random = heap_mix(random + 0x632be59bd9b4e019ULL);
        double passed_s = (double)(due_ns - began_ns) * 1e-9;
        bool write = (double)written < passed_s * (double)writes_per_s;
        written += write;
        make_request(line, write, random);
        replies += serve(line);
        now = control_now_ns();
        meter_add(now - due_ns, now);
        control_answer(all_is_well);
    }
    control->checksum = replies;
}

int main(int argc, char **argv)
{
    uint64_t size_mib, requests_per_s, writes_per_s, period_us;
    if (argc != 5 || !control_parse_number(argv[1], 1, 1 << 20, &size_mib) ||
        !control_parse_number(argv[2], 0, 100000000, &requests_per_s) ||
        !control_parse_number(argv[3], 0, 100000000, &writes_per_s) ||
        !control_parse_number(argv[4], 1, 60000000, &period_us)) {
        fprintf(stderr, "usage: store SIZE_MIB REQUESTS_PER_S WRITES_PER_S PERIOD_US\n");
        return 2;
    }
    if (!control_map(period_us) || !meter_map())
        return control_fail("cannot map the control area");
    control->threads = 2;
    if (!fill(size_mib << 20))
        return control_fail("cannot have that much memory");
    control->heap_address = (uint64_t)(uintptr_t)table;
    control->heap_bytes = (entries_mask + 1) * sizeof *table;
    control_block_signals();
    pthread_t heartbeat;
    if (!control_start_thread(&heartbeat, control_heartbeat, 0))
        return control_fail("cannot start the heartbeat");
    if (!control_say_ready())
        return control_fail("cannot say that it is ready");
    serve_until_told(requests_per_s, writes_per_s);
    pthread_join(heartbeat, NULL);
    return control_exit_code();
}
