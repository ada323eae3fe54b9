// A process that does everything to its memory that a tracker must notice.
//
// churn SEED OPERATIONS: opens a userfaultfd for the tracker, prints its number, and
// from then on does that many random operations for each byte that it reads, with an
// "a" in return. The same seed does the same, and nothing is left to the C library.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, SLOTS = 8, SLOT_PAGES = 48, FILE_PAGES = 48, NOT_MAPPED = -1 };
enum { UFFD_USER_MODE_ONLY = 1, HUGE_BYTES = 2 << 20, DONTUNMAP = 4 };

struct slot {
    uint8_t *base;
    int prot[SLOT_PAGES];  // NOT_MAPPED, or PROT_…
};

static struct slot slots[SLOTS];
static uint64_t state;
static int file = -1;
static pid_t child;
static uint8_t *heap, *heap_end;
static uint8_t *huge;

// splitmix64
static uint64_t dice(uint64_t sides) {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (z ^ z >> 31) % sides;
}

static void spend(uint8_t *page) {
    switch (dice(4)) {
    case 0:
        memset(page, 0, PAGE);
        break;
    case 1:
        page[dice(PAGE)] = (uint8_t)dice(256);
        break;
    default:
        *(uint64_t *)(page + 8 * dice(PAGE / 8)) = dice(UINT64_MAX);
    }
}

// A run of pages of one slot, all mapped; 0 if the dice found a hole.
static int pick(struct slot **slot, int *first, int *last) {
    *slot = &slots[dice(SLOTS)];
    *first = (int)dice(SLOT_PAGES);
    *last = *first + 1 + (int)dice(dice(2) ? 4 : (uint64_t)(SLOT_PAGES - *first));
    if (*last > SLOT_PAGES)
        *last = SLOT_PAGES;
    for (int i = *first; i < *last; i++)
        if ((*slot)->prot[i] == NOT_MAPPED)
            return 0;
    return 1;
}

static void remember(struct slot *slot, int first, int last, int prot) {
    for (int i = first; i < last; i++)
        slot->prot[i] = prot;
}

static void map(struct slot *slot, int first, int last, int kind) {
    static const int RW = PROT_READ | PROT_WRITE;
    uint8_t *at = slot->base + first * PAGE;
    size_t length = (size_t)(last - first) * PAGE;
    void *got;
    if (kind < 5)
        got = mmap(at, length, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    else if (kind < 6)
        got = mmap(at, length, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    else
        got = mmap(at, length, RW, MAP_PRIVATE | MAP_FIXED, file, first * PAGE);
    if (got != at)
        abort();
    remember(slot, first, last, RW);
}

static void move(struct slot *from, int first, int last) {
    struct slot *to = &slots[dice(SLOTS)];
    int there = (int)dice((uint64_t)(SLOT_PAGES - (last - first) + 1));
    if (to == from && there < last && first < there + last - first)
        return;
    size_t length = (size_t)(last - first) * PAGE;
    int keep = dice(3) == 0 ? DONTUNMAP : 0;
    void *got = mremap(from->base + first * PAGE, length, length,
                       MREMAP_MAYMOVE | MREMAP_FIXED | keep, to->base + there * PAGE);
    if (got == MAP_FAILED) {
        // How far it came is anybody's guess when it was about several mappings.
        munmap(to->base + there * PAGE, length);
        remember(to, there, there + last - first, NOT_MAPPED);
        munmap(from->base + first * PAGE, length);
        remember(from, first, last, NOT_MAPPED);
        return;
    }
    for (int i = 0; i < last - first; i++)
        to->prot[there + i] = from->prot[first + i];
    if (!keep)
        remember(from, first, last, NOT_MAPPED);
}

// Growing in place: over the next page, if nothing lies there.
static void resize(struct slot *slot, int first, int last) {
    uint8_t *at = slot->base + first * PAGE;
    size_t length = (size_t)(last - first) * PAGE;
    if (dice(2) && last < SLOT_PAGES && slot->prot[last] == NOT_MAPPED) {
        if (mremap(at, length, length + PAGE, 0) == at)
            slot->prot[last] = slot->prot[last - 1];
    } else if (last - first > 1 && mremap(at, length, length - PAGE, 0) == at) {
        slot->prot[last - 1] = NOT_MAPPED;
    }
}

static void protect(struct slot *slot, int first, int last) {
    static const int PROTS[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
    int prot = PROTS[dice(3)];
    if (mprotect(slot->base + first * PAGE, (size_t)(last - first) * PAGE, prot))
        abort();
    remember(slot, first, last, prot);
}

static void __attribute__((noinline)) deepen(int levels) {
    volatile uint8_t frame[3 * PAGE];
    for (unsigned i = 0; i < sizeof frame; i += 512)
        frame[i] = (uint8_t)dice(256);
    if (levels)
        deepen(levels - 1);
    frame[0]++;
}

static void breathe(void) {
    uint8_t *end = heap + dice(32) * PAGE;
    if (brk(end))
        abort();
    heap_end = end;
    for (uint8_t *page = heap; page < heap_end; page += PAGE)
        if (dice(3) == 0)
            spend(page);
}

// A child shares all pages until someone writes; some linger.
static void beget(void) {
    if (child) {
        kill(child, SIGKILL);
        waitpid(child, 0, 0);
        child = 0;
        return;
    }
    pid_t parent = getpid();
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        while (getppid() == parent)  // it may have been killed before we asked
            pause();
        _exit(0);
    }
}

static void write_or_read(struct slot *slot, int first, int last) {
    for (int i = first; i < last; i++) {
        if (slot->prot[i] & PROT_WRITE && dice(4))
            spend(slot->base + i * PAGE);
        else if (slot->prot[i] & PROT_READ)
            (void)*(volatile uint8_t *)(slot->base + i * PAGE);
    }
}

static void operate(void) {
    struct slot *slot;
    int first, last, whole = pick(&slot, &first, &last);
    uint8_t *at = slot->base + first * PAGE;
    size_t length = (size_t)(last - first) * PAGE;
    uint64_t what = dice(100);
    if (what < 4) {
        breathe();
    } else if (what < 6) {
        deepen((int)dice(30));
    } else if (what < 7) {
        beget();
    } else if (what < 11 && huge) {
        if (dice(4))
            spend(huge + dice(2 * HUGE_BYTES / PAGE) * PAGE);
        else
            madvise(huge + dice(2 * HUGE_BYTES / PAGE) * PAGE, PAGE * dice(8),
                    MADV_DONTNEED);
    } else if (what < 20) {
        map(slot, first, last, (int)dice(8));
    } else if (!whole) {
        return;
    } else if (what < 62) {
        write_or_read(slot, first, last);
    } else if (what < 72) {
        madvise(at, length, MADV_DONTNEED);
    } else if (what < 74) {
        madvise(at, length, MADV_FREE);
    } else if (what < 79) {
        munmap(at, length);
        remember(slot, first, last, NOT_MAPPED);
    } else if (what < 83) {
        munmap(at, length);
        map(slot, first, last, (int)dice(8));
        write_or_read(slot, first, first + 1);
    } else if (what < 89) {
        move(slot, first, last);
    } else if (what < 92) {
        resize(slot, first, last);
    } else {
        protect(slot, first, last);
    }
}

static int scratch_file(void) {
    int fd = (int)syscall(SYS_memfd_create, "churn", 0);
    for (int i = 0; i < FILE_PAGES; i++) {
        uint8_t page[PAGE];
        memset(page, 0x40 + i, sizeof page);
        if (write(fd, page, sizeof page) != PAGE)
            abort();
    }
    return fd;
}

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    state = strtoull(arguments[1], 0, 10);
    int operations = atoi(arguments[2]);
    file = scratch_file();
    for (int i = 0; i < SLOTS; i++) {
        slots[i].base = (uint8_t *)(0x100000000000 + i * 0x1000000l);
        remember(&slots[i], 0, SLOT_PAGES, NOT_MAPPED);
        map(&slots[i], 0, SLOT_PAGES, (int)dice(8));
        write_or_read(&slots[i], 0, SLOT_PAGES / 2);
    }
    if (state % 8 == 0) {
        huge = mmap((void *)0x200000000000, 2 * HUGE_BYTES, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        madvise(huge, 2 * HUGE_BYTES, MADV_HUGEPAGE);
        memset(huge, 1, HUGE_BYTES + 5 * PAGE);
    }
    // Behind what the C library may have taken, page aligned.
    heap = (uint8_t *)(((uintptr_t)sbrk(0) + PAGE - 1) / PAGE * PAGE + 16 * PAGE);
    breathe();
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    dprintf(1, "%d\n", uffd);
    char command;
    for (int told = 0; read(0, &command, 1) == 1; told++) {
        if (told == 0)
            close(uffd);  // the tracker has its own now
        for (int i = 0; told && i < operations; i++)
            operate();
        if (write(1, "a", 1) != 1)
            return 1;
    }
    return 0;
}
