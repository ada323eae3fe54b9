// Growing boundary arrays.

#pragma once

#include <stdint.h>

enum { PAGE_BYTES = 4096 };

// Appends a run and lets it grow together with the one before if they touch.
static inline void runs_append(uint64_t *bounds, uint64_t *count, uint64_t start,
                               uint64_t end) {
    if (*count && bounds[*count - 1] == start) {
        bounds[*count - 1] = end;
    } else {
        bounds[(*count)++] = start;
        bounds[(*count)++] = end;
    }
}
