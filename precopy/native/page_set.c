#include <errno.h>
#include <stdint.h>

#include "api.h"
#include "runs.h"

int64_t page_set_combine(const uint64_t *a, uint64_t a_count, const uint64_t *b,
                         uint64_t b_count, uint32_t table, uint64_t *out) {
    uint64_t i = 0, j = 0, n = 0;
    uint32_t inside = 0, was = 0;
    while (i < a_count || j < b_count) {
        uint64_t next_a = i < a_count ? a[i] : UINT64_MAX;
        uint64_t next_b = j < b_count ? b[j] : UINT64_MAX;
        uint64_t next = next_a < next_b ? next_a : next_b;
        if (next_a == next) {
            inside ^= 1;
            i++;
        }
        if (next_b == next) {
            inside ^= 2;
            j++;
        }
        uint32_t is = table >> inside & 1;
        if (is != was)
            out[n++] = next;
        was = is;
    }
    return (int64_t)n;
}

int64_t page_set_check(const uint64_t *bounds, uint64_t count, uint64_t low,
                       uint64_t high) {
    if (count % 2)
        return -EINVAL;
    for (uint64_t i = 0; i < count; i++) {
        if (bounds[i] % PAGE_BYTES || bounds[i] < low || bounds[i] > high)
            return -EINVAL;
        if (i && bounds[i] <= bounds[i - 1])
            return -EINVAL;
    }
    return 0;
}

int64_t page_set_bytes(const uint64_t *bounds, uint64_t count) {
    uint64_t bytes = 0;
    for (uint64_t i = 0; i < count; i += 2)
        bytes += bounds[i + 1] - bounds[i];
    return (int64_t)bytes;
}

int64_t page_set_bridge(const uint64_t *bounds, uint64_t count, uint64_t gap_bytes,
                        uint64_t *out) {
    uint64_t n = 0;
    for (uint64_t i = 0; i < count; i += 2) {
        if (n && bounds[i] - out[n - 1] <= gap_bytes) {
            out[n - 1] = bounds[i + 1];
        } else {
            out[n++] = bounds[i];
            out[n++] = bounds[i + 1];
        }
    }
    return (int64_t)n;
}

int64_t page_set_cut(const uint64_t *bounds, uint64_t count, uint64_t *index,
                     uint64_t *address, uint64_t pages_max, uint64_t *out) {
    uint64_t left = pages_max * PAGE_BYTES, n = 0;
    while (left && *index < count) {
        uint64_t start = bounds[*index], end = bounds[*index + 1];
        if (*address > start)
            start = *address;
        uint64_t length = end - start < left ? end - start : left;
        out[n++] = start;
        out[n++] = start + length;
        left -= length;
        *address = start + length;
        if (*address == end)
            *index += 2;
    }
    return (int64_t)n;
}
