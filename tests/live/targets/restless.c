// A process that is never the same for long, and checks itself all the while:
//
//   restless maps | remaps | threads
//
//   maps     maps, fills, verifies, replaces, protects and unmaps memory
//   remaps   moves and extends it as well (mremap(2))
//   threads  creates threads, each of which fills and verifies memory and ends
//
// Its first word in memory at 0x10000000000 counts the good rounds. Where something is
// wrong it stops for ever; the next words are the line and errno. It closes stdout when
// it has begun.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CONTROL ((volatile uint64_t *)0x10000000000)

enum { SLOTS = 32, PAGES_MAX = 64, PAGE = 4096, THREADS = 4, STILL_BYTES = 70 << 20 };

#define REQUIRE(what)                                                                  \
    do {                                                                               \
        if (!(what))                                                                   \
            stop_at(__LINE__);                                                         \
    } while (0)

// To be looked at from outside.
static void stop_at(int line) {
    CONTROL[2] = (uint64_t)errno;
    CONTROL[1] = (uint64_t)line;
    for (;;)
        pause();
}

static int remaps;
static uint64_t random_state = 88172645463325252;

static uint64_t any(uint64_t below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % below;
}

struct slot {
    uint64_t *at;
    size_t pages;
    uint64_t seed;
};

static void fill(struct slot *slot) {
    for (size_t i = 0; i < slot->pages; i++)
        slot->at[i * PAGE / 8] = slot->seed + i;
}

static int is_intact(const struct slot *slot) {
    for (size_t i = 0; i < slot->pages; i++)
        if (slot->at[i * PAGE / 8] != slot->seed + i || slot->at[i * PAGE / 8 + 1])
            return 0;
    return 1;
}

static void change(struct slot *slot) {
    if (!slot->at) {
        slot->pages = 1 + any(PAGES_MAX);
        slot->seed = any(1u << 30);
        slot->at = mmap(0, slot->pages * PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        REQUIRE(slot->at != MAP_FAILED);
        fill(slot);
        return;
    }
    REQUIRE(is_intact(slot));
    size_t size = slot->pages * PAGE;
    switch (any(remaps ? 5 : 4)) {
    case 0:
        REQUIRE(munmap(slot->at, size) == 0);
        slot->at = 0;
        return;
    case 4:  // elsewhere, and one page longer
        slot->at = mremap(slot->at, size, size + PAGE, MREMAP_MAYMOVE);
        REQUIRE(slot->at != MAP_FAILED);
        slot->pages++;
        break;
    case 2:
        REQUIRE(madvise(slot->at, size, MADV_DONTNEED) == 0);
        for (size_t i = 0; i < slot->pages; i++)
            REQUIRE(slot->at[i * PAGE / 8] == 0);
        break;
    case 3:  // another mapping in its place
        REQUIRE(mmap(slot->at, size, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == slot->at);
        break;
    case 1:
        REQUIRE(mprotect(slot->at, size, PROT_READ) == 0);
        REQUIRE(is_intact(slot));
        REQUIRE(mprotect(slot->at, size, PROT_READ | PROT_WRITE) == 0);
    }
    slot->seed = any(1u << 30);
    fill(slot);
}

static void *short_life(void *argument) {
    uint64_t seed = (uint64_t)argument;
    uint64_t mine[512];
    for (int i = 0; i < 512; i++)
        ((volatile uint64_t *)mine)[i] = seed + (uint64_t)i;
    usleep((useconds_t)(seed % 3000));
    for (int i = 0; i < 512; i++)
        REQUIRE(((volatile uint64_t *)mine)[i] == seed + (uint64_t)i);
    return argument;
}

static void round_of_threads(void) {
    pthread_t threads[THREADS];
    uint64_t seeds[THREADS];
    for (int i = 0; i < THREADS; i++) {
        seeds[i] = any(1u << 30);
        REQUIRE(pthread_create(&threads[i], 0, short_life, (void *)seeds[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *result = 0;
        REQUIRE(pthread_join(threads[i], &result) == 0);
        REQUIRE((uint64_t)result == seeds[i]);
    }
}

int main(int count, char **words) {
    static struct slot slots[SLOTS];
    if (count < 2)
        return 2;
    remaps = !strcmp(words[1], "remaps");
    int threads = !strcmp(words[1], "threads");
    if (mmap((void *)CONTROL, PAGE, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED)
        return 1;
    char *still = malloc(STILL_BYTES);  // so that a round takes its time
    memset(still, 's', STILL_BYTES);
    int nothing = open("/dev/null", O_RDWR);
    dup2(nothing, 1);
    close(nothing);
    for (;;) {
        if (threads)
            round_of_threads();
        else
            for (int i = 0; i < SLOTS; i++)
                change(&slots[i]);
        CONTROL[0]++;
        if (!threads)
            usleep(200);
    }
}
