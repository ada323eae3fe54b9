// Which pages of a process are its own, and which of them were written.
//
// Documentation/admin-guide/mm/pagemap.rst. The constants are of our own making: the
// headers of a distribution may be older than its kernel.

#include <errno.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "api.h"
#include "runs.h"

enum {
    PAGE_IS_WRITTEN = 1 << 1,
    PAGE_IS_FILE = 1 << 2,
    PAGE_IS_PRESENT = 1 << 3,
    PAGE_IS_SWAPPED = 1 << 4,
    PAGE_IS_PFNZERO = 1 << 5,
    PAGE_IS_GUARD = 1 << 8,
};

enum { PM_SCAN_WP_MATCHING = 1, PM_SCAN_CHECK_WPASYNC = 2 };

struct region {
    uint64_t start, end, categories;
};

struct scan_arguments {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
_Static_assert(sizeof(struct scan_arguments) == 96, "struct pm_scan_arg");

#define PAGEMAP_SCAN _IOWR('f', 16, struct scan_arguments)

enum { REGIONS_MAX = 1024, CHUNKS_PER_RANGE_MAX = 256 };

static int is_full(const struct run_list *list, uint64_t runs) {
    return list->capacity - list->count < 2 * runs;
}

static int any_is_full(const struct page_scan *scan, uint64_t runs) {
    return is_full(&scan->own, runs) || is_full(&scan->written, runs) ||
           is_full(&scan->swapped, runs) || is_full(&scan->guarded, runs) ||
           is_full(&scan->lost, runs);
}

static int places_are_full(const struct page_scan *scan) {
    return scan->places && scan->place_capacity - scan->place_count < REGIONS_MAX;
}

static void append(struct run_list *list, uint64_t start, uint64_t end) {
    runs_append(list->bounds, &list->count, start, end);
}

static void note(struct page_scan *scan, const struct region *region) {
    if (scan->how & PAGE_SCAN_QUICK) {
        append(&scan->written, region->start, region->end);
        return;
    }
    if (region->categories & PAGE_IS_GUARD) {
        append(&scan->guarded, region->start, region->end);
        return;
    }
    append(&scan->own, region->start, region->end);
    if (region->categories & PAGE_IS_WRITTEN)
        append(&scan->written, region->start, region->end);
    if (region->categories & PAGE_IS_SWAPPED)
        append(&scan->swapped, region->start, region->end);
}

// Enough calls that one lost page does not condemn a whole range, and few enough that
// terabytes of reserved addresses are passed in a moment.
static uint64_t chunk_end(const struct page_scan *scan) {
    uint64_t start = scan->ranges[scan->index], end = scan->ranges[scan->index + 1];
    uint64_t chunk = (end - start) / CHUNKS_PER_RANGE_MAX / PAGE_BYTES * PAGE_BYTES;
    if (chunk < scan->chunk_bytes)
        chunk = scan->chunk_bytes;
    return end - scan->address > chunk ? scan->address + chunk : end;
}

static struct scan_arguments what_to_find(const struct page_scan *scan) {
    static const uint64_t NOT_OURS = PAGE_IS_FILE | PAGE_IS_PFNZERO;
    struct scan_arguments arguments = {
        .size = sizeof arguments,
        .flags = (scan->how & PAGE_SCAN_PROTECT ? PM_SCAN_WP_MATCHING : 0) |
                 (scan->how & PAGE_SCAN_CHECK ? PM_SCAN_CHECK_WPASYNC : 0),
    };
    if (scan->how & PAGE_SCAN_QUICK) {
        // With exactly these masks the kernel looks at one bit of each entry, which is
        // ten times as fast (fs/proc/task_mmu.c, pagemap_scan_pmd_entry()).
        arguments.category_mask = arguments.return_mask = PAGE_IS_WRITTEN;
        return arguments;
    }
    // Protection is asked for pages that are there, and not for the others: each would
    // cost a marker in a page table (Documentation/admin-guide/mm/userfaultfd.rst).
    arguments.category_inverted = arguments.category_mask = NOT_OURS;
    arguments.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
    arguments.return_mask = PAGE_IS_WRITTEN | PAGE_IS_SWAPPED |
                            (scan->how & PAGE_SCAN_GUARDS ? PAGE_IS_GUARD : 0);
    return arguments;
}

static int64_t scan_chunk(struct page_scan *scan, uint64_t end) {
    struct scan_arguments arguments = what_to_find(scan);
    struct region regions[REGIONS_MAX];
    while (scan->address < end) {
        if (any_is_full(scan, REGIONS_MAX))
            return 1;
        arguments.start = scan->address;
        arguments.end = end;
        arguments.walk_end = 0;
        arguments.vec = (uintptr_t)regions;
        arguments.vec_len = REGIONS_MAX;
        int count = ioctl(scan->pagemap, PAGEMAP_SCAN, &arguments);
        if (count < 0 && errno == EPERM && scan->how & PAGE_SCAN_CHECK) {
            // Pages before the place that was refused may have been protected
            // already, and are not reported: all of it is lost.
            append(&scan->lost, scan->address, end);
            scan->address = end;
            return 0;
        }
        if (count < 0)
            return -errno;
        for (int i = 0; i < count; i++)
            note(scan, &regions[i]);
        // Not walk_end: when the last stretch of a walk that the kernel made in several
        // came to its end, walk_end still says where that stretch began (seen on 6.18).
        scan->address = count < REGIONS_MAX ? end : regions[count - 1].end;
    }
    return 0;
}

static uint64_t entries_until(const struct page_scan *scan, uint64_t max) {
    uint64_t pages = (scan->ranges[scan->index + 1] - scan->address) / PAGE_BYTES;
    return pages < max ? pages : max;
}

// 0, or -ESRCH when nobody uses this memory any more: then a scan finds nothing, while
// read(2) says so.
static int64_t check_alive(const struct page_scan *scan) {
    uint64_t entry;
    ssize_t got = pread(scan->pagemap, &entry, sizeof entry, 0);
    if (got < 0)
        return -errno;
    return got == 0 ? -ESRCH : 0;
}

int64_t page_scan_run(struct page_scan *scan) {
    for (; scan->index < scan->range_count; scan->index += 2, scan->address = 0) {
        if (scan->address == 0)
            scan->address = scan->ranges[scan->index];
        while (scan->address < scan->ranges[scan->index + 1]) {
            int64_t result = scan_chunk(scan, chunk_end(scan));
            if (result)
                return result;
        }
    }
    return check_alive(scan);
}

int64_t page_scan_knows_guards(int32_t pagemap) {
    // Nothing lies at the first page; what counts is that the mask is understood.
    struct region region;
    struct scan_arguments arguments = {
        .size = sizeof arguments,
        .start = 0,
        .end = PAGE_BYTES,
        .vec = (uintptr_t)&region,
        .vec_len = 1,
        .category_anyof_mask = PAGE_IS_GUARD,
        .return_mask = PAGE_IS_GUARD,
    };
    return ioctl(pagemap, PAGEMAP_SCAN, &arguments) < 0 ? -errno : 0;
}

// An entry as read: Documentation/admin-guide/mm/pagemap.rst.
static const uint64_t PRESENT = 1ull << 63, SWAPPED = 1ull << 62,
                      FILE_OR_SHARED = 1ull << 61, GUARD = 1ull << 58,
                      MAPPED_ONCE = 1ull << 56, SOFT_DIRTY = 1ull << 55,
                      FRAME = (1ull << 55) - 1;

// Whether a page is where `known` says, moving on to its place there.
static int is_known(struct page_scan *scan, uint64_t at, uint32_t place) {
    const uint64_t *run = scan->known + scan->known_index;
    for (; scan->known_index < scan->known_count && run[1] <= at; run += 2) {
        scan->known_index += 2;
        scan->known_places += (run[1] - run[0]) / PAGE_BYTES;
    }
    return scan->known_index < scan->known_count && run[0] <= at &&
           scan->known_places[(at - run[0]) / PAGE_BYTES] == place;
}

static void note_entry(struct page_scan *scan, uint64_t entry, uint64_t at) {
    uint64_t end = at + PAGE_BYTES;
    if (entry & GUARD) {
        append(&scan->guarded, at, end);
        return;
    }
    if (!(entry & (PRESENT | SWAPPED)) || entry & FILE_OR_SHARED)
        return;
    if (scan->zero_frame && entry & PRESENT && (entry & FRAME) == scan->zero_frame)
        return;
    append(&scan->own, at, end);
    if (entry & SWAPPED)
        append(&scan->swapped, at, end);
    if (!scan->places)
        return;
    uint64_t where = entry & (FRAME | PRESENT | SWAPPED);
    uint32_t place = (uint32_t)(where ^ where >> 32);
    int may_be_zero_page = entry & PRESENT && !scan->zero_frame && !(entry & MAPPED_ONCE);
    if (!is_known(scan, at, place) || entry & SOFT_DIRTY || may_be_zero_page)
        append(&scan->written, at, end);
    scan->places[scan->place_count++] = place;
}

int64_t page_list_run(struct page_scan *scan) {
    uint64_t entries[REGIONS_MAX];
    for (; scan->index < scan->range_count; scan->index += 2, scan->address = 0) {
        if (scan->address == 0)
            scan->address = scan->ranges[scan->index];
        while (scan->address < scan->ranges[scan->index + 1]) {
            if (any_is_full(scan, REGIONS_MAX) || places_are_full(scan))
                return 1;
            uint64_t bytes = entries_until(scan, REGIONS_MAX) * sizeof *entries;
            off_t where = (off_t)(scan->address / PAGE_BYTES * sizeof *entries);
            ssize_t got = pread(scan->pagemap, entries, bytes, where);
            if (got < 0)
                return -errno;
            if (got == 0)
                return -ESRCH;
            uint64_t count = (uint64_t)got / sizeof *entries;
            for (uint64_t i = 0; i < count; i++)
                note_entry(scan, entries[i], scan->address + i * PAGE_BYTES);
            scan->address += count * PAGE_BYTES;
        }
    }
    return 0;
}
