// Memory that can tell whether it is what it was; see heap.c.

#include <stdbool.h>
#include <stdint.h>

struct heap {
    uint64_t *words;
    uint64_t words_count;
    uint64_t *page_sums;
    uint64_t *checksum;  // of all pages together, kept by the caller
};

// Map `bytes` of memory, fill it with what looks random, and keep its sum in `checksum`
// from now on. False, with errno set, if there is not that much.
bool heap_fill(struct heap *heap, uint64_t bytes, bool huge, uint64_t *checksum);

// Change 8 bytes somewhere; `random` is the state of the dice.
void heap_write_at_random(struct heap *heap, uint64_t *random);

// How many pages are not what they were, with the address of the first if it is known.
uint64_t heap_wrong_pages(const struct heap *heap, uint64_t *first_address);

// A number that looks random, a different one for each x.
uint64_t heap_mix(uint64_t x);
