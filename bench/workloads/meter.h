// How much was done, and how long each piece took, in intervals of time; see meter.c.

#include <stdbool.h>
#include <stdint.h>

enum {
    METER_INTERVALS = 4096,  // the last so many are kept
    METER_INTERVAL_NS = 20000000,
    METER_BUCKETS = 252,
};

#define METER_ADDRESS 0x10100000000ULL

// One interval; meter.py reads it by these offsets.
struct meter_interval {
    uint64_t number;  // when it began: CLOCK_MONOTONIC divided by its length
    uint64_t count;
    uint64_t longest_ns;
    uint64_t unused;
    uint32_t buckets[METER_BUCKETS];
};

// Map it at its address; false with errno set.
bool meter_map(void);

// Something that took `latency_ns` was done at `now_ns`. From one thread only.
void meter_add(uint64_t latency_ns, uint64_t now_ns);
