// Each page has a checksum, which tells which page is wrong. They live in memory that may
// be lost together with the page, so one sum of them all is kept somewhere else. Every
// write keeps up both, so the memory can be verified at any time.

#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { PAGE_BYTES = 4096, WORDS_PER_PAGE = PAGE_BYTES / 8 };

uint64_t heap_mix(uint64_t x)
{
    x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ULL;
    return x ^ (x >> 32);
}

// Depends on the place, so that a page in the place of another is wrong.
static uint64_t word_sum(uint64_t index, uint64_t word)
{
    return heap_mix(word + index * 0xd6e8feb86659fd93ULL);
}

static uint64_t page_sum(const struct heap *heap, uint64_t page)
{
    uint64_t sum = 0;
    for (uint64_t i = page * WORDS_PER_PAGE; i < (page + 1) * WORDS_PER_PAGE; i++)
        sum += word_sum(i, heap->words[i]);
    return sum;
}

bool heap_fill(struct heap *heap, uint64_t bytes, bool huge, uint64_t *checksum)
{
    uint64_t pages = bytes / PAGE_BYTES;
    int advice = huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE;
    heap->words =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    heap->words_count = pages * WORDS_PER_PAGE;
    heap->page_sums = calloc(pages, sizeof *heap->page_sums);
    heap->checksum = checksum;
    if (heap->words == MAP_FAILED || !heap->page_sums)
        return false;
    // EINVAL: a kernel without huge pages; it will not make any then.
    if (madvise(heap->words, bytes, advice) < 0 && errno != EINVAL)
        return false;
    for (uint64_t page = 0; page < pages; page++) {
        for (uint64_t i = page * WORDS_PER_PAGE; i < (page + 1) * WORDS_PER_PAGE; i++)
            heap->words[i] = heap_mix(i + 1);
        heap->page_sums[page] = page_sum(heap, page);
        *checksum += heap->page_sums[page];
    }
    return true;
}

void heap_write_at_random(struct heap *heap, uint64_t *random)
{
    *random = heap_mix(*random + 0x632be59bd9b4e019ULL);
    uint64_t i = (uint64_t)(((unsigned __int128)*random * heap->words_count) >> 64);
    uint64_t word = heap_mix(*random ^ heap->words[i]);
    uint64_t change = word_sum(i, word) - word_sum(i, heap->words[i]);
    heap->words[i] = word;
    heap->page_sums[i / WORDS_PER_PAGE] += change;
    *heap->checksum += change;
}

uint64_t heap_wrong_pages(const struct heap *heap, uint64_t *first_address)
{
    uint64_t wrong = 0, checksum = 0;
    for (uint64_t page = 0; page < heap->words_count / WORDS_PER_PAGE; page++) {
        uint64_t sum = page_sum(heap, page);
        checksum += sum;
        if (sum != heap->page_sums[page] && wrong++ == 0)
            *first_address = (uint64_t)(uintptr_t)(heap->words + page * WORDS_PER_PAGE);
    }
    // Pages that were lost together with their checksums, nobody knows which.
    return wrong ? wrong : checksum != *heap->checksum;
}
