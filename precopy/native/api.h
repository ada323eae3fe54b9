// What precopy._native offers. Plain declarations only: both the C files and cffi
// read this file.
//
// A boundary array is start, end, start, end, … of byte addresses, page aligned. A
// page set is a boundary array that is strictly increasing (so no two runs touch).
// Functions return a count or -errno unless they say something else.

// ---- page_set.c: the algebra of page sets

// Bit i of `table` says whether an address is in the result when bit 0 of i is set
// iff it is in a, and bit 1 of i iff it is in b.
enum page_set_table { PAGE_SET_MINUS = 2, PAGE_SET_AND = 8, PAGE_SET_OR = 14 };

// Returns the number of boundaries written to out, which has room for both inputs.
int64_t page_set_combine(const uint64_t *a, uint64_t a_count, const uint64_t *b,
                         uint64_t b_count, uint32_t table, uint64_t *out);

// 0, or -EINVAL if it is no page set within [low, high).
int64_t page_set_check(const uint64_t *bounds, uint64_t count, uint64_t low,
                       uint64_t high);

int64_t page_set_bytes(const uint64_t *bounds, uint64_t count);

// Cuts the next pages_max pages off, from (*index, *address) on, which begin at 0
// and are moved on. Returns the number of boundaries written to out, which has room
// for 2 * pages_max; 0 at the end.
int64_t page_set_cut(const uint64_t *bounds, uint64_t count, uint64_t *index,
                     uint64_t *address, uint64_t pages_max, uint64_t *out);

// Joins runs that are at most gap_bytes apart. Returns the number of boundaries written
// to out, which has room for as many as bounds has.
int64_t page_set_bridge(const uint64_t *bounds, uint64_t count, uint64_t gap_bytes,
                        uint64_t *out);

// ---- pagemap.c: which pages of a process are there, and which were written

struct run_list {
    uint64_t *bounds;
    uint64_t capacity;
    uint64_t count;
};

enum page_scan_how {
    PAGE_SCAN_PROTECT = 1,  // write-protect again what was found written
    PAGE_SCAN_CHECK = 2,    // ranges without asynchronous write-protection are lost
    PAGE_SCAN_GUARDS = 4,   // the kernel knows guard pages
    PAGE_SCAN_QUICK = 8,    // only find what is not protected, there or not: `written`
};

struct page_scan {
    int32_t pagemap;
    uint32_t how;
    const uint64_t *ranges;  // a boundary array, in any order
    uint64_t range_count;    // of boundaries
    uint64_t chunk_bytes;    // what one call to the kernel looks at, at least
    uint64_t index;          // where to go on; 0, 0 to begin
    uint64_t address;
    uint64_t zero_frame;  // where the zero page is in memory; 0 if that is not known
    // Found so far, each a page set if the ranges are in order.
    struct run_list own;      // present or swapped, neither a file's nor the zero page
    struct run_list written;  // those of them that were written since protected
    struct run_list swapped;  // those of them that are not present
    struct run_list guarded;  // guard pages
    struct run_list lost;     // ranges of which nothing is known: see PAGE_SCAN_CHECK
    // For page_list_run, or null: where each page of `own` is, in memory or in swap, one
    // word each in order; and where those of `known` were, a page set.
    uint32_t *places;
    uint64_t place_capacity;
    uint64_t place_count;
    const uint64_t *known;
    uint64_t known_count;  // of boundaries
    const uint32_t *known_places;
    uint64_t known_index;  // 0 to begin
};

// PAGEMAP_SCAN over all ranges. 0 when done, 1 when a list may be full: give it a
// larger one and call again; or -errno.
int64_t page_scan_run(struct page_scan *scan);

// 0 if the kernel's PAGEMAP_SCAN knows guard pages, else -errno.
int64_t page_scan_knows_guards(int32_t pagemap);

// The same by read(2), which every kernel has: fills own, swapped and guarded. Given
// `places` and ranges in order, `written` are own pages that are marked soft-dirty, or
// that `known` does not have in the same place. Without zero_frame the zero page cannot
// be told from an own page; then whatever may be one counts as written.
int64_t page_list_run(struct page_scan *scan);

// ---- uffd.c

// UFFDIO_API with what asynchronous write-protection needs. 0 or -errno.
int64_t uffd_begin(int32_t uffd);

// UFFDIO_REGISTER for write-protection, whatever is mapped there. 0 or -errno, and then
// some of it may be registered. Takes microseconds, however much it is.
int64_t uffd_register(int32_t uffd, uint64_t start, uint64_t end);

// No page there is protected any more, if all of it is registered. 0 or -errno. Takes 10
// to 30 ms a GiB.
int64_t uffd_marks_off(int32_t uffd, uint64_t start, uint64_t end);

// ---- pages.c: the bytes themselves

struct task_memory {
    int32_t pid;  // for process_vm_readv(2) and process_vm_writev(2)
    int32_t mem;  // /proc/PID/mem
};

// Reads the runs one behind the other into buffer, which has room for them, leaving
// out pages that are not there; what was read goes to `got` (room for 2 per page).
// Returns the number of boundaries in `got`; -ESRCH when the process has gone.
int64_t memory_read_runs(const struct task_memory *memory, const uint64_t *bounds,
                         uint64_t count, uint8_t *buffer, uint64_t *got);

// Writes buffer to the runs, one behind the other. Returns 0 or -errno, and then the
// address that could not be written in *failed.
int64_t memory_write_runs(const struct task_memory *memory, const uint64_t *bounds,
                          uint64_t count, const uint8_t *buffer, uint64_t *failed);

// Writes zeros to the runs; returns as above.
int64_t memory_zero_runs(const struct task_memory *memory, const uint64_t *bounds,
                         uint64_t count, uint64_t *failed);

// Moves the pages of buffer that are not zero to its front and sorts their addresses:
// data and zeros have room for 2 boundaries per page. Pages outside of `holes` (a
// page set) count as data whatever is in them.
int64_t pages_split(uint8_t *buffer, const uint64_t *bounds, uint64_t count,
                    const uint64_t *holes, uint64_t hole_count, uint64_t *data,
                    uint64_t *data_count, uint64_t *zeros, uint64_t *zero_count);

// ---- digests.c: whether a page is what it was

// For each page of the runs, which lie one behind the other in buffer, and from `base`
// on: digests[2 * n] and the word behind it are the digest of the page that is n pages
// behind `base`. Where it is another, the page goes to `changed` (room for 2 boundaries
// a page); with `update` it is noted as well. `key` is a page of random words. Returns
// the number of boundaries in `changed`.
int64_t pages_digest(const uint8_t *buffer, const uint64_t *bounds, uint64_t count,
                     uint64_t base, const uint64_t *key, uint64_t *digests,
                     int32_t update, uint64_t *changed);
