// The bytes of another process, in bulk.

#define _GNU_SOURCE  // process_vm_readv

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "api.h"
#include "runs.h"

enum { VECTORS_MAX = 64, ZEROS_BYTES = 256 * 1024 };

static const uint8_t zeros_source[ZEROS_BYTES];

// A place in a list of runs.
struct place {
    const uint64_t *bounds;
    uint64_t count, index, address;
};

static struct place place_begin(const uint64_t *bounds, uint64_t count) {
    struct place place = {bounds, count, 0, count ? bounds[0] : 0};
    return place;
}

static int at_end(const struct place *place) {
    return place->index >= place->count;
}

static uint64_t run_left(const struct place *place) {
    return place->bounds[place->index + 1] - place->address;
}

static void go_on(struct place *place, uint64_t bytes) {
    while (bytes && !at_end(place)) {
        uint64_t step = run_left(place) < bytes ? run_left(place) : bytes;
        bytes -= step;
        place->address += step;
        if (run_left(place) == 0) {
            place->index += 2;
            if (!at_end(place))
                place->address = place->bounds[place->index];
        }
    }
}

// The next runs as vectors, at most bytes_max together.
static unsigned vectors(struct place place, struct iovec *out, uint64_t bytes_max,
                        uint64_t *bytes) {
    unsigned n = 0;
    for (*bytes = 0; n < VECTORS_MAX && !at_end(&place) && *bytes < bytes_max; n++) {
        uint64_t length = run_left(&place);
        if (length > bytes_max - *bytes)
            length = bytes_max - *bytes;
        out[n].iov_base = (void *)place.address;
        out[n].iov_len = length;
        *bytes += length;
        go_on(&place, length);
    }
    return n;
}

static void note(struct place place, uint64_t bytes, uint64_t *got, uint64_t *count) {
    while (bytes && !at_end(&place)) {
        uint64_t step = run_left(&place) < bytes ? run_left(&place) : bytes;
        runs_append(got, count, place.address, place.address + step);
        bytes -= step;
        go_on(&place, step);
    }
}

// Whether to go on with /proc/PID/mem: it also reaches what the process itself may not
// (PROT_NONE, read-only), and it was opened when we were allowed to.
static int has_other_way(int error) {
    return error == EFAULT || error == EPERM;
}

int64_t memory_read_runs(const struct task_memory *memory, const uint64_t *bounds,
                         uint64_t count, uint8_t *buffer, uint64_t *got) {
    struct place place = place_begin(bounds, count);
    uint64_t got_count = 0;
    while (!at_end(&place)) {
        struct iovec remote[VECTORS_MAX];
        uint64_t bytes;
        unsigned n = vectors(place, remote, 1ull << 30, &bytes);
        struct iovec local = {buffer, bytes};
        ssize_t done = process_vm_readv(memory->pid, &local, 1, remote, n, 0);
        if (done < 0 && !has_other_way(errno))
            return -errno;
        if (done <= 0) {
            done = pread(memory->mem, buffer, run_left(&place), (off_t)place.address);
            if (done == 0)
                return -ESRCH;  // mem_rw(): nobody uses this memory any more
            if (done < 0 && errno != EIO && errno != EFAULT)
                return -errno;
        }
        if (done > 0) {
            // Whole pages only; the rest of a page that was cut is read again.
            done -= done % PAGE_BYTES;
            note(place, (uint64_t)done, got, &got_count);
            buffer += done;
            go_on(&place, (uint64_t)done);
        }
        if (done <= 0)
            go_on(&place, PAGE_BYTES);
    }
    return (int64_t)got_count;
}

static int64_t write_some(const struct task_memory *memory, struct place place,
                          const uint8_t *buffer, uint64_t bytes_max) {
    struct iovec remote[VECTORS_MAX];
    uint64_t bytes;
    unsigned n = vectors(place, remote, bytes_max, &bytes);
    struct iovec local = {(void *)buffer, bytes};
    ssize_t done = process_vm_writev(memory->pid, &local, 1, remote, n, 0);
    if (done > 0)
        return done;
    if (done < 0 && !has_other_way(errno))
        return -errno;
    uint64_t length = run_left(&place) < bytes_max ? run_left(&place) : bytes_max;
    done = pwrite(memory->mem, buffer, length, (off_t)place.address);
    if (done == 0)
        return -ESRCH;
    return done < 0 ? -errno : done;
}

int64_t memory_write_runs(const struct task_memory *memory, const uint64_t *bounds,
                          uint64_t count, const uint8_t *buffer, uint64_t *failed) {
    struct place place = place_begin(bounds, count);
    while (!at_end(&place)) {
        int64_t done = write_some(memory, place, buffer, 1ull << 30);
        if (done < 0) {
            *failed = place.address;
            return done;
        }
        buffer += done;
        go_on(&place, (uint64_t)done);
    }
    return 0;
}

int64_t memory_zero_runs(const struct task_memory *memory, const uint64_t *bounds,
                         uint64_t count, uint64_t *failed) {
    struct place place = place_begin(bounds, count);
    while (!at_end(&place)) {
        int64_t done = write_some(memory, place, zeros_source, ZEROS_BYTES);
        if (done < 0) {
            *failed = place.address;
            return done;
        }
        go_on(&place, (uint64_t)done);
    }
    return 0;
}

static int is_zero(const uint8_t *page) {
    for (unsigned i = 0; i < PAGE_BYTES; i += 256) {
        uint64_t words[32], any = 0;
        memcpy(words, page + i, sizeof words);
        for (unsigned j = 0; j < 32; j++)
            any |= words[j];
        if (any)
            return 0;
    }
    return 1;
}

int64_t pages_split(uint8_t *buffer, const uint64_t *bounds, uint64_t count,
                    const uint64_t *holes, uint64_t hole_count, uint64_t *data,
                    uint64_t *data_count, uint64_t *zeros, uint64_t *zero_count) {
    uint8_t *from = buffer, *to = buffer;
    uint64_t hole = 0;
    *data_count = *zero_count = 0;
    for (uint64_t i = 0; i < count; i += 2) {
        for (uint64_t at = bounds[i]; at < bounds[i + 1]; at += PAGE_BYTES) {
            while (hole < hole_count && holes[hole + 1] <= at)
                hole += 2;
            int may_skip = hole < hole_count && holes[hole] <= at;
            if (may_skip && is_zero(from)) {
                runs_append(zeros, zero_count, at, at + PAGE_BYTES);
            } else {
                if (to != from)
                    memcpy(to, from, PAGE_BYTES);
                runs_append(data, data_count, at, at + PAGE_BYTES);
                to += PAGE_BYTES;
            }
            from += PAGE_BYTES;
        }
    }
    return (int64_t)(*data_count + *zero_count);
}
