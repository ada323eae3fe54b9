// A process with many threads, open files or mappings, that can tell whether it still has
// them all.
//
//   crowd THREADS FILES VMAS PERIOD_US
//
//   THREADS    all threads, two at least; those above two wait on a futex
//   FILES      descriptions of this program's file, each with an offset of its own
//   VMAS       mappings of one page each, by turns writable and not
//   PERIOD_US  between two beats of the heartbeat
//
// It is asked through its control area (control.h). Exit codes: 0 it was told to quit and
// all is well, 2 wrong arguments, 3 something is not as it was.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "control.h"
#include "heap.h"

enum { OFFSETS = 4096, WORDS_PER_PAGE = CONTROL_PAGE_BYTES / 8 };

static uint64_t files_count, vmas_count;
static int *files;
static uint64_t *pages;

static bool open_files(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    files = calloc(files_count + 1, sizeof *files);
    for (uint64_t i = 0; files && i < files_count; i++) {
        files[i] = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
        if (files[i] < 0 || lseek(files[i], (off_t)(i % OFFSETS), SEEK_SET) < 0)
            return false;
    }
    return files != NULL;
}

// Neighbours with other rights cannot become one mapping.
static bool make_mappings(void)
{
    if (vmas_count == 0)
        return true;
    pages = mmap(NULL, vmas_count * CONTROL_PAGE_BYTES, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED)
        return false;
    for (uint64_t i = 0; i < vmas_count; i++) {
        uint64_t *page = pages + i * WORDS_PER_PAGE;
        *page = heap_mix(i + 1);
        if (i % 2 && mprotect(page, CONTROL_PAGE_BYTES, PROT_READ) < 0)
            return false;
    }
    return true;
}

static uint64_t wrong_files(void)
{
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < files_count; i++)
        wrong += lseek(files[i], 0, SEEK_CUR) != (off_t)(i % OFFSETS);
    return wrong;
}

static uint64_t wrong_pages(void)
{
    uint64_t wrong = 0;
    for (uint64_t i = 0; i < vmas_count; i++) {
        if (pages[i * WORDS_PER_PAGE] == heap_mix(i + 1))
            continue;
        if (wrong++ == 0)
            control->memory_wrong_at = (uint64_t)(uintptr_t)(pages + i * WORDS_PER_PAGE);
    }
    return wrong;
}

// Mappings among ours, as the kernel counts them; each must be one page with its rights.
static bool mappings_are_ours(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512], rights[5];
    unsigned long start, end, first = (unsigned long)pages;
    uint64_t found = 0;
    bool good = maps != NULL;
    while (maps && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx %4s", &start, &end, rights) != 3)
            continue;
        if (start < first || start >= first + vmas_count * CONTROL_PAGE_BYTES)
            continue;
        const char *expected = (start - first) / CONTROL_PAGE_BYTES % 2 ? "r--p" : "rw-p";
        good &= end - start == CONTROL_PAGE_BYTES && strcmp(rights, expected) == 0;
        found++;
    }
    if (maps)
        fclose(maps);
    return good && found == vmas_count;
}

static bool all_is_well(void)
{
    control->descriptors_wrong += wrong_files();
    control->memory_wrong += wrong_pages() + !mappings_are_ours();
    return control_faultless();
}

int main(int argc, char **argv)
{
    uint64_t threads, period_us;
    if (argc != 5 || !control_parse_number(argv[1], 2, 30000, &threads) ||
        !control_parse_number(argv[2], 0, 1 << 20, &files_count) ||
        !control_parse_number(argv[3], 0, 1 << 20, &vmas_count) ||
        !control_parse_number(argv[4], 1, 60000000, &period_us)) {
        fprintf(stderr, "usage: crowd THREADS FILES VMAS PERIOD_US\n");
        return 2;
    }
    if (!control_map(period_us))
        return control_fail("cannot map the control area");
    control->threads = (uint32_t)threads;
    if (!open_files())
        return control_fail("cannot open so many files");
    if (!make_mappings())
        return control_fail("cannot have so many mappings");
    control_block_signals();
    pthread_t *started = calloc(threads - 1, sizeof *started);
    for (uint64_t i = 0; i < threads - 1; i++)
        if (!started ||
            !control_start_thread(&started[i], i ? control_idle : control_heartbeat, i))
            return control_fail("cannot start the threads");
    if (!control_say_ready())
        return control_fail("cannot say that it is ready");
    while (!control_quitting()) {
        control_succeeded(poll(NULL, 0, 5));
        control_answer(all_is_well);
    }
    for (uint64_t i = 0; i < threads - 1; i++)
        pthread_join(started[i], NULL);
    return control_exit_code();
}
