// A ring of intervals, each with a histogram of what was done in it, for a reader outside
// who knows what happened when. A latency below 8 ns counts in the bucket of its number;
// each power of two above has 8 buckets of the same width. So a bucket is exact to 12.5 %.

#define _GNU_SOURCE
#include "meter.h"

#include <stddef.h>
#include <sys/mman.h>

_Static_assert(offsetof(struct meter_interval, buckets) == 32, "meter.py");
_Static_assert(sizeof(struct meter_interval) == 1040, "meter.py");

static struct meter_interval *const ring = (struct meter_interval *)METER_ADDRESS;

bool meter_map(void)
{
    void *got = mmap(ring, METER_INTERVALS * sizeof *ring, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    return got == ring;
}

static unsigned bucket(uint64_t latency_ns)
{
    if (latency_ns < 8)
        return (unsigned)latency_ns;
    unsigned power = 63 - (unsigned)__builtin_clzll(latency_ns);
    unsigned number = (power - 2) * 8 + (unsigned)(latency_ns >> (power - 3) & 7);
    return number < METER_BUCKETS ? number : METER_BUCKETS - 1;
}

void meter_add(uint64_t latency_ns, uint64_t now_ns)
{
    uint64_t number = now_ns / METER_INTERVAL_NS;
    struct meter_interval *interval = &ring[number % METER_INTERVALS];
    if (interval->number != number)
        *interval = (struct meter_interval){.number = number};
    interval->count++;
    interval->buckets[bucket(latency_ns)]++;
    if (latency_ns > interval->longest_ns)
        interval->longest_ns = latency_ns;
}
