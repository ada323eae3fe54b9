// Digests of pages: NH, the universal hash of UMAC (RFC 4418, 5.2.2), with words of 64
// bits. For two pages that differ, chosen without knowledge of the key, the digests are
// equal for one key in 2^64.

#include <stdint.h>
#include <string.h>

#include "api.h"
#include "runs.h"

enum { WORDS = PAGE_BYTES / 8 };

typedef unsigned __int128 wide;

static wide digest(const uint8_t *page, const uint64_t *key) {
    wide sum[4] = {0};
    for (unsigned i = 0; i < WORDS; i += 8) {
        uint64_t words[8];
        memcpy(words, page + 8 * i, sizeof words);
        for (unsigned j = 0; j < 4; j++)
            sum[j] += (wide)(words[2 * j] + key[i + 2 * j]) *
                      (words[2 * j + 1] + key[i + 2 * j + 1]);
    }
    return sum[0] + sum[1] + sum[2] + sum[3];
}

int64_t pages_digest(const uint8_t *buffer, const uint64_t *bounds, uint64_t count,
                     uint64_t base, const uint64_t *key, uint64_t *digests,
                     int32_t update, uint64_t *changed) {
    uint64_t changed_count = 0;
    for (uint64_t i = 0; i < count; i += 2) {
        for (uint64_t at = bounds[i]; at < bounds[i + 1]; at += PAGE_BYTES) {
            wide now = digest(buffer, key);
            uint64_t words[2] = {(uint64_t)now, (uint64_t)(now >> 64)};
            uint64_t *known = digests + (at - base) / PAGE_BYTES * 2;
            buffer += PAGE_BYTES;
            if (known[0] == words[0] && known[1] == words[1])
                continue;
            runs_append(changed, &changed_count, at, at + PAGE_BYTES);
            if (update)
                memcpy(known, words, sizeof words);
        }
    }
    return (int64_t)changed_count;
}
