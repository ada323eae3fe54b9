// A process with 64 GiB of reserved addresses of which it touches 100 MiB, spread in
// runs of 1 MiB. It closes stdout when it is ready, and waits.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define RESERVED_BYTES (64ull << 30)

enum { RUNS = 100, RUN_BYTES = 1 << 20 };

int main(void) {
    char *area = mmap((void *)0x20000000000, RESERVED_BYTES, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE,
                      -1, 0);
    if (area == MAP_FAILED)
        return 1;
    madvise(area, RESERVED_BYTES, MADV_NOHUGEPAGE);
    for (uint64_t i = 0; i < RUNS; i++)
        memset(area + i * (RESERVED_BYTES / RUNS / RUN_BYTES * RUN_BYTES), 's',
               RUN_BYTES);
    int nothing = open("/dev/null", O_RDWR);
    dup2(nothing, 1);
    close(nothing);
    for (;;)
        pause();
}
